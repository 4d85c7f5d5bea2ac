//! In which phases moves are made known that take long.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Seen, Watch};
use crate::shards::observed::RunningMove;

/// Only moves that take longer are told of between their begin and their end. Those of small shards are over before anybody would
/// look for them, and a rebalance has thousands; with this and a handful of phases, each move at a time makes a few Events in half a
/// minute at most.
pub const TOLD_AFTER: Duration = Duration::from_secs(30);

/// A phase of a move that takes long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The move.
    pub running: RunningMove,
    /// What Citus calls the phase, for example `Catching Up`.
    pub phase: String,
    /// How long there has been no progress.
    pub idle: Duration,
}

/// Which phases of a move were made known.
#[derive(Debug)]
pub(super) struct Phases {
    /// When the move was seen first.
    since: Instant,
    told: BTreeSet<String>,
}

impl Phases {
    /// None yet of a move that is seen for the first time at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, told: BTreeSet::new() }
    }

    /// Whether `phase`, in which the move is at `now`, is to be made known; it is to be so once.
    pub(super) fn is_news(&mut self, phase: &str, now: Instant) -> bool {
        let is_long = now.saturating_duration_since(self.since) >= TOLD_AFTER;
        // Before the first phase Citus says nothing.
        is_long && !phase.is_empty() && self.told.insert(phase.to_owned())
    }
}

impl Watch {
    /// The phases in which moves that take long were seen in the last look, each once: moves that take longer than
    /// [`TOLD_AFTER`] since the first.
    pub fn entered(&mut self) -> Vec<Entered> {
        let entered = |seen: &mut Seen| {
            let phase = seen.phase().to_owned();
            let is_news = seen.phases.is_news(&phase, seen.looked);
            is_news.then(|| Entered { running: seen.running, phase, idle: seen.idle() })
        };
        self.seen.values_mut().filter_map(entered).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::supervise::tests::catalog;

    #[test]
    fn a_phase_is_news_once_and_only_of_a_move_that_takes_long() {
        let start = Instant::now();
        let mut watch = Watch::default();
        let mut look = |pid: i32, second: u64, phase: &str| -> Vec<(i32, String, u64)> {
            let mut catalog = catalog(0, 1, "0/1");
            catalog.operations[0].pid = pid;
            (catalog.progress[0].pid, catalog.progress[0].phase) = (pid, phase.to_owned());
            watch.look(Some(&catalog), start + Duration::from_secs(second));
            let news = |entered: Entered| (entered.running.pid, entered.phase, entered.idle.as_secs());
            watch.entered().into_iter().map(news).collect()
        };
        // A small shard goes through all of them.
        for (second, phase) in [(0, ""), (5, "Copying Data"), (10, "Catching Up"), (29, "Completing")] {
            assert_eq!(look(6, second, phase), [], "{phase}");
        }
        assert_eq!(look(7, 30, "Setting Up"), [], "another move, from its first look on");
        assert_eq!(look(7, 40, "Copying Data"), []);
        assert_eq!(look(7, 59, "Copying Data"), []);
        assert_eq!(look(7, 60, "Copying Data"), [(7, "Copying Data".to_owned(), 20)]);
        assert_eq!(look(7, 65, "Copying Data"), [], "it was told");
        assert_eq!(look(7, 70, "Catching Up"), [(7, "Catching Up".to_owned(), 0)]);
        assert_eq!([look(7, 75, ""), look(7, 80, "Copying Data")], [[], []]);
        // It is tried anew, by another session.
        assert_eq!(look(8, 85, "Copying Data"), []);
        assert_eq!(look(8, 115, "Copying Data"), [(8, "Copying Data".to_owned(), 30)]);
    }
}
