//! The longest time in which nothing was acknowledged.

use std::ops::Range;

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
    let Some(sends) = Sends::of(entries) else { return Gap::default() };
    let waits = sends.waits().into_iter().map(|wait| wait.end - wait.start);
    let gaps = sends.gaps();
    let (began, ended) =
        gaps.max_by_key(|(began, ended)| ended.saturating_sub(*began)).unwrap_or((sends.first, sends.last));
    Gap {
        longest_gap_ms: ended.saturating_sub(began) as f64 / 1e3,
        gap_began_s: began as f64 / 1e6,
        longest_wait_ms: waits.max().unwrap_or_default() as f64 / 1e3,
    }
}

/// The parts of all gaps of these sends during which one was waiting for its answer, in order and in microseconds after the
/// start of the run.
#[must_use]
pub fn waits<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> Vec<Range<u64>> {
    Sends::of(entries).map_or_else(Vec::new, |sends| sends.waits())
}

/// Sends, by what became of them.
struct Sends {
    /// When each was acknowledged, and when it was due; in order.
    acknowledged: Vec<(u64, u64)>,
    /// When those were due that failed; in order.
    failed: Vec<u64>,
    /// When the first one was due.
    first: u64,
    /// The last moment when something was asked for or answered.
    last: u64,
}

impl Sends {
    /// `None` if there are none.
    fn of<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> Option<Self> {
        let mut acknowledged: Vec<(u64, u64)> = entries
            .clone()
            .filter(|entry| entry.code.is_success())
            .map(|entry| (entry.finished, entry.intended))
            .collect();
        acknowledged.sort_unstable();
        let mut failed: Vec<u64> =
            entries.clone().filter(|entry| !entry.code.is_success()).map(|entry| entry.intended).collect();
        failed.sort_unstable();
        let first = entries.clone().map(|entry| entry.intended).min()?;
        let last = entries.map(|entry| if entry.code.is_success() { entry.finished } else { entry.intended });
        let last = last.max().unwrap_or(first);
        Some(Self { acknowledged, failed, first, last })
    }

    /// The begin and the end of each gap.
    fn gaps(&self) -> impl Iterator<Item = (u64, u64)> {
        let moments = std::iter::once(self.first)
            .chain(self.acknowledged.iter().map(|(finished, _)| *finished))
            .chain(std::iter::once(self.last));
        moments.clone().zip(moments.skip(1))
    }

    /// For each gap: from its begin, or the due time of the oldest send that was waiting in it if that is later, to its end.
    fn waits(&self) -> Vec<Range<u64>> {
        // The oldest due time among this and all later acknowledgements: who was waiting before it.
        let mut oldest = vec![u64::MAX; self.acknowledged.len() + 1];
        for (place, (_, intended)) in self.acknowledged.iter().enumerate().rev() {
            oldest[place] = oldest[place + 1].min(*intended);
        }
        let wait = |((began, ended), oldest): ((u64, u64), u64)| {
            // A send that failed was waited for from when it was due; one that was due before the gap had had
            // its chance.
            let failed = self.failed.get(self.failed.partition_point(|intended| *intended < began)).copied();
            began.max(oldest.min(failed.unwrap_or(u64::MAX)))..ended
        };
        self.gaps().zip(oldest).map(wait).filter(|wait| !wait.is_empty()).collect()
    }
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

    #[test]
    fn a_wait_begins_when_the_first_who_waits_is_due() {
        let entries = [entry(0, 10, 200), entry(2_000, 2_010, 200), entry(2_005, 2_400, 200)];
        assert_eq!(waits(entries.iter()), [0..10, 2_000..2_010, 2_010..2_400]);
        // What failed was waited for until the next answer, though it came to none.
        let entries = [entry(0, 10, 200), entry(100, 900, 503), entry(300, 400, 200)];
        assert_eq!(waits(entries.iter()), [0..10, 100..400]);
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
