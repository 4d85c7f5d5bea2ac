//! Whether moves get on: time runs out on no progress, never on elapsed time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::observed::{Catalog, Operation, Progress, RunningMove, Stall};

/// Failures to follow a change after which a split is hopeless: the same change is tried again every few seconds, and a
/// connection that breaks once is none.
const HOPELESS: i64 = 3;

/// How far the moves were when they were last seen to get on. A new operator begins to watch anew.
///
/// Time counts from look to look: an operator that could not look knows nothing of what happened meanwhile.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<i32, Seen>,
}

/// How far a move is by its own counters: what is written on the source meanwhile moves the source's position and size,
/// and is no progress of the move.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    shard_id: i64,
    phase: String,
    target_bytes: i64,
    /// Where the source's log was when the phase was first seen: the target has to come as far.
    goal: Option<u64>,
    /// Where the target is on its way there; beyond it follows whatever others write.
    position: Option<u64>,
}

impl Mark {
    fn of(progress: &Progress, before: &[Self]) -> Self {
        let Progress { shard_id, target_bytes, phase, .. } = progress.clone();
        let same = before.iter().find(|mark| mark.shard_id == shard_id && mark.phase == phase);
        let goal = same.map_or_else(|| position(progress.source_lsn.as_deref()), |mark| mark.goal);
        let target = position(progress.target_lsn.as_deref());
        Self {
            shard_id,
            phase,
            target_bytes,
            goal,
            position: target.map(|at| goal.map_or(at, |goal| at.min(goal))),
        }
    }
}

/// A position in the log: two hexadecimal numbers of 32 bits.
fn position(lsn: Option<&str>) -> Option<u64> {
    let (high, low) = lsn?.split_once('/')?;
    let half = |digits| u32::from_str_radix(digits, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

#[derive(Debug)]
struct Seen {
    running: RunningMove,
    marks: Vec<Mark>,
    since: Instant,
    looked: Instant,
}

/// A move without progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// The move.
    pub running: RunningMove,
    /// Its phase, as Citus calls it; empty before the first.
    pub phase: String,
    /// How long there has been no progress.
    pub idle: Duration,
}

impl Watch {
    /// Takes in what `catalog` says at `now`.
    pub fn look(&mut self, catalog: Option<&Catalog>, now: Instant) {
        let Some(catalog) = catalog else { return };
        let mut seen = BTreeMap::new();
        for running in catalog.moves() {
            let before = self.seen.remove(&running.pid).filter(|before| before.running == running);
            let own = catalog.progress.iter().filter(|progress| progress.pid == running.pid);
            let known = before.as_ref().map_or(&[][..], |before| &before.marks);
            let marks: Vec<Mark> = own.map(|progress| Mark::of(progress, known)).collect();
            let since = before.filter(|before| before.marks == marks).map_or(now, |before| before.since);
            seen.insert(running.pid, Seen { running, marks, since, looked: now });
        }
        self.seen = seen;
    }

    /// The moves that had made no progress for `limit` when they were last looked at.
    #[must_use]
    pub fn stalled(&self, limit: Duration) -> Vec<Stalled> {
        let stalled = |seen: &Seen| {
            let idle = seen.idle();
            let phase = seen.marks.first().map(|mark| mark.phase.clone()).unwrap_or_default();
            (idle >= limit).then_some(Stalled { running: seen.running, phase, idle })
        };
        self.seen.values().filter_map(stalled).collect()
    }

    /// The longest time that one of the moves under way was seen to make no progress.
    #[must_use]
    pub fn longest_idle(&self) -> Option<Duration> {
        self.seen.values().map(Seen::idle).max()
    }
}

impl Seen {
    fn idle(&self) -> Duration {
        self.looked.saturating_duration_since(self.since)
    }
}

/// How far a split is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitMark {
    /// What the servers show of it, each in its own words.
    pub progress: Vec<String>,
    /// How often a change that it follows could not be made. In a split that will come to its end there is none.
    pub errors: i64,
}

/// How far the splits were when they were last seen to get on.
#[derive(Debug, Default)]
pub struct Splits {
    seen: BTreeMap<i32, SeenSplit>,
}

#[derive(Debug)]
struct SeenSplit {
    application: String,
    mark: SplitMark,
    since: Instant,
}

impl Splits {
    /// Takes in how far the splits under way are at `now`; those that have made no progress for `limit`, or will make none.
    pub fn look(
        &mut self,
        running: Vec<(Operation, SplitMark)>,
        now: Instant,
        limit: Duration,
    ) -> Vec<Stall> {
        let mut seen = BTreeMap::new();
        let mut stalls = Vec::new();
        for (Operation { pid, application }, mark) in running {
            let before = self.seen.remove(&pid).filter(|before| before.application == application);
            let same = before.filter(|before| before.mark.progress == mark.progress);
            let since = same.map_or(now, |before| before.since);
            let idle = now.saturating_duration_since(since);
            let cause = if mark.errors >= HOPELESS {
                Some(format!(
                    "its target failed {} times to follow the changes of its source, and will go on to: its log says why",
                    mark.errors
                ))
            } else {
                (idle >= limit)
                    .then(|| "nothing is copied or followed: look at the logs of its nodes".to_owned())
            };
            if let Some(cause) = cause {
                stalls.push(Stall { pid, application: application.clone(), seconds: idle.as_secs(), cause });
            }
            seen.insert(pid, SeenSplit { application, mark, since });
        }
        self.seen = seen;
        stalls
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::observed::Operation;

    /// Somebody writes on the source all the time.
    fn catalog(source: i64, target_bytes: i64, lsn: &str) -> Catalog {
        let application = "dialog-operator: move 102008 worker-0>worker-1".to_owned();
        let progress = Progress {
            pid: 7,
            shard_id: 102_008,
            source_bytes: source,
            target_bytes,
            source_lsn: Some(format!("0/{source:X}")),
            target_lsn: Some(lsn.to_owned()),
            phase: "Copying Data".to_owned(),
        };
        let operations = vec![Operation { pid: 7, application }];
        Catalog { operations, progress: vec![progress], ..Catalog::default() }
    }

    #[test]
    fn time_runs_out_on_no_progress_only() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        // However long it takes, bytes or a position in the log get on.
        for (second, bytes, lsn) in [(0, 1, "0/1"), (50, 2, "0/1"), (100, 2, "0/2"), (150, 3, "0/2")] {
            watch.look(Some(&catalog(1000 + second, bytes, lsn)), at(second.unsigned_abs()));
            assert_eq!(watch.stalled(limit), []);
        }
        watch.look(Some(&catalog(1209, 3, "0/2")), at(209));
        assert_eq!(watch.stalled(limit), []);
        watch.look(Some(&catalog(1210, 3, "0/2")), at(210));
        // Catalogs that could not be read say nothing about the move.
        watch.look(None, at(211));
        let [stalled] = &watch.stalled(limit)[..] else { panic!("no stall") };
        assert_eq!((stalled.running.pid, stalled.idle), (7, limit));
        assert_eq!(stalled.phase, "Copying Data");
        watch.look(Some(&Catalog::default()), at(212));
        assert_eq!(watch.stalled(Duration::ZERO), [], "it has ended");
    }

    #[test]
    fn to_follow_what_others_write_is_no_progress() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let mut watch = Watch::default();
        let mut look = |second: u32, lsn: &str| {
            // The source was at 0/64 when the phase began.
            let source = i64::from(second + 100);
            watch.look(Some(&catalog(source, 3, lsn)), start + Duration::from_secs(second.into()));
            watch.stalled(limit).len()
        };
        assert_eq!([look(0, "0/10"), look(50, "0/40"), look(100, "0/64")], [0, 0, 0], "it catches up");
        assert_eq!(
            [look(130, "0/82"), look(159, "0/9F"), look(160, "0/A0")],
            [0, 0, 1],
            "it waits for something"
        );
        assert_eq!(position(Some("1/A0")), Some((1 << 32) + 160));
        assert_eq!(position(Some("somewhere")), None);
    }

    #[test]
    fn who_could_not_look_does_not_know_that_nothing_happened() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        watch.look(Some(&catalog(0, 1, "0/1")), at(0));
        watch.look(Some(&catalog(5, 1, "0/1")), at(5));
        // For ten minutes nothing can be read, and the move gets on.
        watch.look(None, at(600));
        assert_eq!(watch.stalled(limit), []);
        assert_eq!(watch.longest_idle(), Some(Duration::from_secs(5)));
        watch.look(Some(&catalog(605, 9, "0/1")), at(605));
        assert_eq!(watch.stalled(limit), []);
    }
}
