//! PostgreSQL's hash of a uuid, by which Citus chooses the shard of a row.
//!
//! It is Bob Jenkins' lookup3 over the 16 bytes (public domain), with PostgreSQL's start value and the words read
//! as a little-endian server reads them. A server of the other kind hashes differently; that, like anything else
//! that could ever differ, shows when the routing compares this function with the server's own.

use uuid::Uuid;

/// Golden ratio, length in bytes and the constant that PostgreSQL adds.
const START: u32 = 0x9e37_79b9_u32.wrapping_add(16).wrapping_add(3_923_095);

/// The hash of an id, as `worker_hash(uuid)` has it on a server of Citus.
#[must_use]
pub fn hash_uuid(id: Uuid) -> i32 {
    let bytes = id.as_bytes();
    let word = |index: usize| {
        let at = 4 * index;
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    // Three words fill the state and are mixed; the fourth is the rest.
    let (a, b, c) =
        mix(START.wrapping_add(word(0)), START.wrapping_add(word(1)), START.wrapping_add(word(2)));
    finish(a.wrapping_add(word(3)), b, c).cast_signed()
}

/// Mixes three words so that every bit influences every other.
const fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

/// Mixes three words into the last one.
const fn finish(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a server answered. (The tests with Citus compare many thousands.)
    #[test]
    fn known_values() {
        assert_eq!(hash_uuid(Uuid::nil()), 1_353_656_403);
        assert_eq!(hash_uuid(Uuid::max()), -682_383_255);
    }

    proptest! {
        #[test]
        fn every_bit_counts(id in any::<u128>(), bit in 0_u32..128) {
            prop_assert_ne!(hash_uuid(Uuid::from_u128(id)), hash_uuid(Uuid::from_u128(id ^ (1 << bit))));
        }
    }
}
