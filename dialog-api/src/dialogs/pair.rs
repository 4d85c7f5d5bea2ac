//! Which dialog a pair of users has.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// What the hash of a pair begins with, so that another way of making ids can never make the same.
const DIALOG_ID_VERSION: &[u8] = b"dialog-id/1";

/// Two users, in order. The same pair whoever of them asks; both may be the same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The smaller id.
    pub low: Uuid,
    /// The greater id.
    pub high: Uuid,
}

impl Pair {
    /// The pair of these two.
    #[must_use]
    pub fn new(one: Uuid, other: Uuid) -> Self {
        Self { low: one.min(other), high: one.max(other) }
    }

    /// The id of the pair's dialog: the first 128 bits of a SHA-256, all of them used, so that two of 10^10
    /// dialogs share an id with probability 1.5e-19. It is a value of PostgreSQL's type uuid and no UUID of
    /// any version.
    #[must_use]
    pub fn dialog_id(self) -> Uuid {
        let hash = Sha256::new()
            .chain_update(DIALOG_ID_VERSION)
            .chain_update(self.low.as_bytes())
            .chain_update(self.high.as_bytes())
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Uuid::from_bytes(id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_id() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    /// Dialogs already stored are found by this value: it can never change.
    #[test]
    fn the_id_of_a_dialog_is_fixed_for_ever() {
        let pair = Pair::new(Uuid::from_u128(1), Uuid::from_u128(2));
        let hash = Sha256::digest(
            [b"dialog-id/1".as_slice(), Uuid::from_u128(1).as_bytes(), Uuid::from_u128(2).as_bytes()]
                .concat(),
        );
        assert_eq!(pair.dialog_id().as_bytes(), &hash[..16]);
        assert_eq!(pair.dialog_id().to_string(), "61ade535-9df9-9edf-57d7-d1f1bc88f8c3");
    }

    proptest! {
        #[test]
        fn both_have_the_same_dialog(one in any_id(), other in any_id()) {
            prop_assert_eq!(Pair::new(one, other).dialog_id(), Pair::new(other, one).dialog_id());
        }

        #[test]
        fn another_pair_has_another_dialog(one in any_id(), other in any_id(), third in any_id()) {
            prop_assume!(other != third);
            prop_assert_ne!(Pair::new(one, other).dialog_id(), Pair::new(one, third).dialog_id());
        }
    }
}
