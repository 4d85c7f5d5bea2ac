//! Between counts and the fractions that a simulation reckons with.

/// A count as a fraction; exact below 2^53.
#[allow(clippy::cast_precision_loss, reason = "what is lost is less than noise")]
pub(super) fn fraction(count: u64) -> f64 {
    count as f64
}

/// The nearest count.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, as it should"
)]
pub(super) fn count(fraction: f64) -> u64 {
    fraction.round() as u64
}

/// Bits without any order, always the same ones for a seed and a number (the finaliser of splitmix64).
pub(super) fn scatter(seed: u64, number: u64) -> u64 {
    let mut bits = seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Between -1 and 1.
pub(super) fn noise(seed: u64, number: u64) -> f64 {
    fraction(scatter(seed, number) >> 11) / fraction(1 << 52) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_even_and_repeats() {
        let values: Vec<f64> = (0..10_000).map(|number| noise(7, number)).collect();
        assert!(values.iter().all(|value| (-1.0..1.0).contains(value)));
        let mean = values.iter().sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.03, "{mean}");
        assert_eq!(values[17].to_bits(), noise(7, 17).to_bits());
        assert_ne!(noise(8, 17).to_bits(), noise(7, 17).to_bits());
    }
}
