//! Whether steps that spread tables get on, of which Citus itself shows nothing: while one runs nothing else changes the topology.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Endings;
use crate::shards::observed::{Catalog, End, RunningSpread};

/// How far these steps were when they were last seen to get on. A new operator begins to watch anew.
#[derive(Debug, Default)]
pub struct Spreads {
    seen: BTreeMap<i32, Seen>,
}

#[derive(Debug)]
struct Seen {
    running: RunningSpread,
    since: Instant,
    looked: Instant,
    endings: Endings,
}

/// A step that spreads a table, or copies the reference tables, and does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StalledSpread {
    /// The step.
    pub running: RunningSpread,
    /// How long there has been no progress.
    pub idle: Duration,
    /// How it is to be ended now; `None` while it is given time to.
    pub end: Option<End>,
}

impl Spreads {
    /// Takes in what `catalog` says at `now`.
    pub fn look(&mut self, catalog: Option<&Catalog>, now: Instant) {
        let Some(catalog) = catalog else { return };
        let mut seen = BTreeMap::new();
        for running in &catalog.spreads {
            let is_it = |before: &Seen| {
                before.running.operation == running.operation && before.running.since == running.since
            };
            let before = self.seen.remove(&running.operation.pid).filter(is_it);
            let endings = before.as_ref().map(|before| before.endings).unwrap_or_default();
            let same = |before: &Seen| {
                before.running.progress == running.progress || (before.running.waits && running.waits)
            };
            let since = before.filter(same).map_or(now, |before| before.since);
            let running = running.clone();
            seen.insert(running.operation.pid, Seen { running, since, looked: now, endings });
        }
        self.seen = seen;
    }

    /// The steps that had made no progress for `limit` when they were last looked at.
    #[must_use]
    pub fn stalled(&self, limit: Duration) -> Vec<StalledSpread> {
        let stalled = |seen: &Seen| {
            let idle = seen.looked.saturating_duration_since(seen.since);
            let (running, end) = (seen.running.clone(), seen.endings.next(seen.looked));
            (idle >= limit).then_some(StalledSpread { running, idle, end })
        };
        self.seen.values().filter_map(stalled).collect()
    }

    /// Remembers that the step of the process `pid` was cancelled or terminated at `now`.
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
    use crate::shards::observed::Operation;

    fn catalog(progress: &str, waits: bool) -> Catalog {
        let application = "dialog-operator: copy the reference tables to every node".to_owned();
        let spread = RunningSpread {
            operation: Operation { pid: 7, application },
            since: "2026-01-05T09:00:00Z".parse().unwrap(),
            nodes: vec![Group::Coordinator],
            progress: vec![progress.to_owned()],
            waits,
        };
        Catalog { spreads: vec![spread], ..Catalog::default() }
    }

    #[test]
    fn a_copy_that_waits_for_a_lock_makes_no_progress_whatever_others_write() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Spreads::default();
        // However long it takes, what is copied or followed is progress.
        for (second, progress) in [(0, "1=100"), (50, "1=200"), (100, "s=0/1")] {
            watch.look(Some(&catalog(progress, false)), at(second));
            assert_eq!(watch.stalled(limit), []);
        }
        for (second, progress, stalled) in [(130, "s=0/4", 0), (189, "s=0/5", 0), (190, "s=0/6", 1)] {
            watch.look(Some(&catalog(progress, true)), at(second));
            assert_eq!(watch.stalled(limit).len(), stalled, "{second}");
        }
        // Catalogs that could not be read say nothing.
        watch.look(None, at(191));
        let [stalled] = &watch.stalled(limit)[..] else { panic!("no stall") };
        assert_eq!((stalled.idle, stalled.end), (limit, Some(End::Cancel)));
        watch.ended(7, at(191));
        assert_eq!(watch.stalled(limit)[0].end, None, "it is given time to end");
        // The same session has begun another.
        let mut other = catalog("s=0/6", true);
        other.spreads[0].since = "2026-01-05T09:04:00Z".parse().unwrap();
        watch.look(Some(&other), at(240));
        assert_eq!(watch.stalled(limit), []);
        watch.look(Some(&Catalog::default()), at(300));
        assert_eq!(watch.stalled(Duration::ZERO), [], "it has ended");
    }
}
