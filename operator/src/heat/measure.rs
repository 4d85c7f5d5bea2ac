//! From what servers count to the figures of a period.

use serde::{Deserialize, Serialize};

/// What a server has counted since its statistics began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Queries.
    pub queries: u64,
    /// Those of them that write.
    pub writes: u64,
    /// CPU time in microseconds.
    pub cpu: u64,
}

impl Counters {
    /// What was counted since `before`; `None` if the statistics began anew in between. Nobody knows when they did, so
    /// that what has been counted since is no figure of the period: a tenant's share of it would be far too large.
    #[must_use]
    pub fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            queries: self.queries.checked_sub(before.queries)?,
            writes: self.writes.checked_sub(before.writes)?,
            cpu: self.cpu.checked_sub(before.cpu)?,
        })
    }
}

/// The last hash of the lower half of what `weights` tells by hash: the split that makes the halves most equal, the lower
/// one if two do. `None` if all weight is of one hash.
#[must_use]
pub fn median(mut weights: Vec<(i32, u64)>) -> Option<i32> {
    weights.retain(|(_, weight)| *weight > 0);
    weights.sort_unstable();
    weights.dedup_by(|next, hash| {
        let same = next.0 == hash.0;
        if same {
            hash.1 = hash.1.saturating_add(next.1);
        }
        same
    });
    let total: u128 = weights.iter().map(|(_, weight)| u128::from(*weight)).sum();
    // The upper half must not be empty.
    weights.pop();
    let mut lower = 0;
    let halves = weights.into_iter().map(|(hash, weight)| {
        lower += u128::from(weight);
        (lower.abs_diff(total - lower), hash)
    });
    halves.min().map(|(_, hash)| hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_went_back_tell_nothing() {
        let before = Counters { queries: 100, writes: 50, cpu: 1_000 };
        let after = Counters { queries: 130, writes: 60, cpu: 1_900 };
        assert_eq!(after.since(before), Some(Counters { queries: 30, writes: 10, cpu: 900 }));
        assert_eq!(Counters { cpu: 999, ..after }.since(before), None);
    }

    #[test]
    fn a_median_leaves_something_on_both_sides() {
        for (weights, expected) in [
            (vec![(1, 10), (2, 10), (3, 10), (4, 10)], Some(2)),
            (vec![(4, 90), (-7, 1), (9, 9)], Some(4)),
            (vec![(i32::MIN, 1), (i32::MAX, 1_000)], Some(i32::MIN)),
            (vec![(5, 3), (5, 4)], None),
            (vec![(5, 3), (6, 0)], None),
            (vec![(5, u64::MAX), (6, u64::MAX), (5, u64::MAX)], Some(5)),
            (Vec::new(), None),
        ] {
            assert_eq!(median(weights.clone()), expected, "{weights:?}");
        }
    }
}
