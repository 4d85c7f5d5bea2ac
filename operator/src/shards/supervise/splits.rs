//! Whether splits get on, of which Citus itself shows nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Endings, WRITERS_WAIT};
use crate::shards::observed::{Catalog, End, RunningSplit};

/// Failures to follow a change after which a split is hopeless: the same change is tried again and again, and a connection
/// that breaks once is none.
const HOPELESS: i64 = 3;
/// How long it has to go on failing for that: a server may try again several times a second, and what passes, as a disk that
/// is full for a moment, ends nobody's split.
const GOES_ON: Duration = Duration::from_secs(10);
/// Failures that are further apart have nothing to do with each other.
const APART: Duration = Duration::from_mins(1);

/// How far the splits were when they were last seen to get on. A new operator begins to watch anew.
#[derive(Debug, Default)]
pub struct Splits {
    seen: BTreeMap<i32, Seen>,
}

#[derive(Debug)]
struct Seen {
    running: RunningSplit,
    since: Instant,
    looked: Instant,
    /// Since when writers were seen to wait for its end.
    blocking: Option<Instant>,
    failing: Option<Failing>,
    endings: Endings,
}

/// Failures to follow a change, one soon after the other.
#[derive(Clone, Copy, Debug)]
struct Failing {
    /// Failures before the first of these.
    before: i64,
    /// When the first was seen.
    first: Instant,
    /// When the last was.
    last: Instant,
}

impl Failing {
    /// What is known at `now` of failures, of which there are `errors` and were `earlier`.
    fn next(known: Option<Self>, earlier: i64, errors: i64, now: Instant) -> Option<Self> {
        if errors <= earlier {
            return known.filter(|_| errors == earlier);
        }
        let known = known.filter(|known| now.saturating_duration_since(known.last) < APART);
        Some(Self { last: now, ..known.unwrap_or(Self { before: earlier, first: now, last: now }) })
    }

    /// Whether it will go on, with `errors` by now.
    fn is_hopeless(self, errors: i64) -> bool {
        errors - self.before >= HOPELESS && self.last.saturating_duration_since(self.first) >= GOES_ON
    }
}

/// A split that does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StalledSplit {
    /// The split.
    pub running: RunningSplit,
    /// How long there has been no progress.
    pub idle: Duration,
    /// How long writers have waited for it, if that is longer than they are to.
    pub blocking: Option<Duration>,
    /// Whether it will make none.
    pub hopeless: bool,
    /// How it is to be ended now; `None` while it is given time to.
    pub end: Option<End>,
}

impl Splits {
    /// Takes in what `catalog` says at `now`.
    pub fn look(&mut self, catalog: Option<&Catalog>, now: Instant) {
        let Some(catalog) = catalog else { return };
        let mut seen = BTreeMap::new();
        for running in &catalog.splits {
            let before = self.seen.remove(&running.pid).filter(|before| {
                before.running.application == running.application && before.running.since == running.since
            });
            let endings = before.as_ref().map(|before| before.endings).unwrap_or_default();
            let (known, earlier) =
                before.as_ref().map_or((None, 0), |before| (before.failing, before.running.errors));
            let failing = Failing::next(known, earlier, running.errors, now);
            // One that copies while they wait is ended by its own statement's limit.
            let blocks = !running.blocking && catalog.blocking.contains(&running.pid);
            let blocked = before.as_ref().and_then(|before| before.blocking);
            let blocking = blocks.then(|| blocked.unwrap_or(now));
            let same = |before: &Seen| {
                before.running.progress == running.progress || (before.running.waits && running.waits)
            };
            let since = before.filter(same).map_or(now, |before| before.since);
            let running = running.clone();
            seen.insert(running.pid, Seen { running, since, looked: now, blocking, failing, endings });
        }
        self.seen = seen;
    }

    /// The splits that had made no progress for `limit` when they were last looked at, those that had kept writers waiting at
    /// their end for [`WRITERS_WAIT`], and those that will make none.
    #[must_use]
    pub fn stalled(&self, limit: Duration) -> Vec<StalledSplit> {
        let stalled = |seen: &Seen| {
            let idle = seen.looked.saturating_duration_since(seen.since);
            let blocking = seen.blocking.map(|since| seen.looked.saturating_duration_since(since));
            let blocking = blocking.filter(|waited| *waited >= WRITERS_WAIT);
            let hopeless = seen.failing.is_some_and(|failing| failing.is_hopeless(seen.running.errors));
            let end = seen.endings.next(seen.looked);
            let running = seen.running.clone();
            (hopeless || blocking.is_some() || idle >= limit).then_some(StalledSplit {
                running,
                idle,
                blocking,
                hopeless,
                end,
            })
        };
        self.seen.values().filter_map(stalled).collect()
    }

    /// Remembers that the split of the process `pid` was cancelled or terminated at `now`.
    pub fn ended(&mut self, pid: i32, now: Instant) {
        if let Some(seen) = self.seen.get_mut(&pid) {
            seen.endings.count(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Group;
    use crate::shards::step::Split;

    fn catalog(progress: &str, waits: bool, errors: i64) -> Catalog {
        let split = RunningSplit {
            pid: 7,
            application: format!("dialog-operator: {}102008 worker-0", Split::PURPOSE),
            shard_id: 102_008,
            from: Group::Worker(0),
            since: "2026-01-05T09:00:00Z".parse().unwrap(),
            nodes: vec![Group::Worker(0)],
            phase: "Catching Up",
            progress: vec![progress.to_owned()],
            errors,
            waits,
            blocking: false,
        };
        Catalog { splits: vec![split], ..Catalog::default() }
    }

    #[test]
    fn a_split_that_waits_for_a_lock_makes_no_progress_whatever_others_write() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Splits::default();
        // However long it takes, what is copied or followed is progress.
        for (second, progress) in [(0, "1=100"), (50, "1=200"), (100, "s=0/1")] {
            watch.look(Some(&catalog(progress, false, 0)), at(second));
            assert_eq!(watch.stalled(limit), []);
        }
        // A lock that somebody had for a moment is no matter.
        watch.look(Some(&catalog("s=0/2", true, 0)), at(110));
        watch.look(Some(&catalog("s=0/3", false, 0)), at(120));
        for (second, progress, stalled) in [(130, "s=0/4", 0), (189, "s=0/5", 0), (190, "s=0/6", 1)] {
            watch.look(Some(&catalog(progress, true, 0)), at(second));
            assert_eq!(watch.stalled(limit).len(), stalled, "{second}");
        }
        // Catalogs that could not be read say nothing.
        watch.look(None, at(191));
        let [stalled] = &watch.stalled(limit)[..] else { panic!("no stall") };
        assert_eq!((stalled.idle, stalled.end), (limit, Some(End::Cancel)));
        watch.ended(7, at(191));
        assert_eq!(watch.stalled(limit)[0].end, None, "it is given time to end");
        watch.look(Some(&Catalog::default()), at(200));
        assert_eq!(watch.stalled(Duration::ZERO), [], "it has ended");
    }

    #[test]
    fn writers_wait_for_a_split_only_as_long_as_its_end_takes() {
        let start = Instant::now();
        let looks = |quick: bool, looks: &[(u64, bool)]| -> Vec<Option<(Duration, Option<End>)>> {
            let mut watch = Splits::default();
            let look = |(second, blocks): &(u64, bool)| {
                // It gets on all the time, as far as anything shows.
                let mut catalog = catalog(&second.to_string(), false, 0);
                catalog.splits[0].blocking = quick;
                catalog.blocking = blocks.then_some(7).into_iter().collect();
                watch.look(Some(&catalog), start + Duration::from_secs(*second));
                let stalled = watch.stalled(Duration::from_mins(10)).into_iter().next();
                stalled.and_then(|stalled| Some((stalled.blocking?, stalled.end)))
            };
            looks.iter().map(look).collect()
        };
        let wait = [(0, true), (4, true), (5, false), (6, true), (10, true), (11, true), (12, false)];
        let cancelled = Some((WRITERS_WAIT, Some(End::Cancel)));
        assert_eq!(looks(false, &wait), [None, None, None, None, None, cancelled, None]);
        assert_eq!(looks(true, &wait), [const { None }; 7], "its own statement ends it");
    }

    #[test]
    fn a_split_whose_target_cannot_follow_is_no_matter_of_time() {
        // A second and the failures by then, and when it is known to be hopeless.
        type Looks = &'static [(u64, i64)];
        let cases: [(Looks, Option<u64>); 5] = [
            (&[(0, 0), (5, 1), (10, 2), (15, 3)], Some(15)),
            (&[(0, 0), (5, 1), (14, 2), (18, 2), (20, 2)], None),
            // Five times a second for a second, as while a disk is full, and not again.
            (&[(0, 0), (1, 5), (2, 5), (11, 5), (60, 5)], None),
            (&[(0, 0), (1, 5), (2, 10), (10, 50), (11, 55)], Some(11)),
            // Something else much later.
            (&[(0, 0), (1, 5), (300, 6), (301, 10), (305, 10)], None),
        ];
        for (looks, expected) in cases {
            let (start, limit) = (Instant::now(), Duration::from_mins(10));
            let mut watch = Splits::default();
            let hopeless = looks.iter().find(|(second, errors)| {
                let catalog = catalog(&second.to_string(), false, *errors);
                watch.look(Some(&catalog), start + Duration::from_secs(*second));
                watch.stalled(limit).iter().any(|stalled| stalled.hopeless)
            });
            assert_eq!(hopeless.map(|(second, _)| *second), expected, "{looks:?}");
        }
    }
}
