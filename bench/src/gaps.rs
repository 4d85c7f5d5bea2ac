//! The longest time in which nothing was acknowledged.

use serde::{Deserialize, Serialize};

use crate::ledger::Entry;

/// A stretch of time without an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// How long it was, in milliseconds.
    pub longest_gap_ms: f64,
    /// When it began, in seconds after the start of the run.
    pub gap_began_s: f64,
    /// The part of the longest such stretch during which a send was waiting for its answer, in milliseconds: the
    /// gap less the time in which nothing was asked for.
    pub longest_wait_ms: f64,
}

/// The longest gap of these sends: from the first one's due time to the first acknowledgement, between two, or
/// from the last to the due time of the last send, if that was never answered.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "microseconds far below 2^53")]
pub fn longest<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> Gap {
    let mut acknowledged: Vec<(u64, u64)> = entries
        .clone()
        .filter(|entry| entry.code.is_success())
        .map(|entry| (entry.finished, entry.intended))
        .collect();
    acknowledged.sort_unstable();
    let mut failed: Vec<u64> =
        entries.clone().filter(|entry| !entry.code.is_success()).map(|entry| entry.intended).collect();
    failed.sort_unstable();
    let Some(first) = entries.clone().map(|entry| entry.intended).min() else { return Gap::default() };
    // The end counts as the last moment when something was asked for or answered.
    let last = entries.map(|entry| if entry.code.is_success() { entry.finished } else { entry.intended });
    let last = last.max().unwrap_or(first);

    let waits = waits(&acknowledged, &failed, first, last);
    let moments = std::iter::once(first)
        .chain(acknowledged.iter().map(|(finished, _)| *finished))
        .chain(std::iter::once(last));
    let gaps = moments.clone().zip(moments.skip(1));
    let (began, ended) =
        gaps.max_by_key(|(began, ended)| ended.saturating_sub(*began)).unwrap_or((first, last));
    Gap {
        longest_gap_ms: ended.saturating_sub(began) as f64 / 1e3,
        gap_began_s: began as f64 / 1e6,
        longest_wait_ms: waits as f64 / 1e3,
    }
}

/// For each gap: from its begin, or the due time of the oldest send that was waiting in it if that is later, to
/// its end; the longest of them.
fn waits(acknowledged: &[(u64, u64)], failed: &[u64], first: u64, last: u64) -> u64 {
    // The oldest due time among this and all later acknowledgements: who was waiting before it.
    let mut oldest = vec![u64::MAX; acknowledged.len() + 1];
    for (place, (_, intended)) in acknowledged.iter().enumerate().rev() {
        oldest[place] = oldest[place + 1].min(*intended);
    }
    let mut began = first;
    let ends = acknowledged.iter().map(|(finished, _)| *finished).chain(std::iter::once(last));
    let mut longest = 0;
    for (ended, oldest) in ends.zip(oldest) {
        // A send that failed was waited for from when it was due; one that was due before the gap had had
        // its chance.
        let failed = failed.get(failed.partition_point(|intended| *intended < began)).copied();
        let since = began.max(oldest.min(failed.unwrap_or(u64::MAX)));
        longest = longest.max(ended.saturating_sub(since));
        began = ended;
    }
    longest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Code;

    fn entry(intended: u64, finished: u64, status: u16) -> Entry {
        let code = Code::Status(status);
        Entry { sequence: 0, from: 0, to: 1, intended, started: intended, finished, code, attempts: 1 }
    }

    fn of(entries: &[Entry]) -> (u64, u64, u64) {
        let Gap { longest_gap_ms, gap_began_s, longest_wait_ms } = longest(entries.iter());
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
        let whole = |number: f64| number.round() as u64;
        (whole(longest_gap_ms * 1e3), whole(gap_began_s * 1e6), whole(longest_wait_ms * 1e3))
    }

    #[test]
    fn the_longest_of_several() {
        let entries = [entry(0, 10, 200), entry(5, 20, 200), entry(30, 500, 200), entry(490, 510, 200)];
        assert_eq!(of(&entries), (480, 20, 470));
    }

    #[test]
    fn nobody_waits_while_nothing_is_asked() {
        assert_eq!(of(&[entry(0, 10, 200), entry(900, 910, 200)]), (900, 10, 10));
    }

    #[test]
    fn what_never_comes_back_is_a_gap_up_to_the_last_send() {
        let entries = [entry(0, 10, 200), entry(20, 5_000, 503), entry(1_000, 6_000, 503)];
        assert_eq!(of(&entries), (990, 10, 980));
    }

    #[test]
    fn nothing_acknowledged_at_all_is_one_gap() {
        assert_eq!(of(&[entry(100, 200, 503), entry(700, 800, 503)]), (600, 100, 600));
        assert_eq!(of(&[]), (0, 0, 0));
    }

    proptest! {
        /// Against the definition, moment by moment.
        #[test]
        fn as_by_the_definition(
            sends in prop::collection::vec((0_u64..300, 1_u64..80, any::<bool>()), 1..30),
        ) {
            let entries: Vec<Entry> = sends.iter()
                .map(|(intended, latency, well)| entry(*intended, intended + latency, if *well { 200 } else { 503 }))
                .collect();
            let first = entries.iter().map(|entry| entry.intended).min().unwrap();
            let last = entries.iter()
                .map(|entry| if entry.code.is_success() { entry.finished } else { entry.intended }).max().unwrap();
            let answered = |moment: u64| {
                entries.iter().any(|entry| entry.code.is_success() && entry.finished == moment)
            };
            let (mut began, mut longest) = (first, 0);
            for moment in first..=last {
                longest = longest.max(moment - began);
                if answered(moment) {
                    began = moment;
                }
            }
            let (gap, _, wait) = of(&entries);
            prop_assert_eq!(gap, longest);
            prop_assert!(wait <= gap);
        }
    }
}
