//! Whether moves get on: time runs out on no progress, never on elapsed time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::observed::{Catalog, Progress, RunningMove};

/// How far the moves were when they were last seen to get on. A new operator begins to watch anew.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<i32, Seen>,
}

#[derive(Debug)]
struct Seen {
    running: RunningMove,
    progress: Vec<Progress>,
    since: Instant,
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
            let progress: Vec<Progress> =
                catalog.progress.iter().filter(|progress| progress.pid == running.pid).cloned().collect();
            let before = self.seen.remove(&running.pid).filter(|before| before.running == running);
            let since =
                before.filter(|before| before.progress == progress).map_or(now, |before| before.since);
            seen.insert(running.pid, Seen { running, progress, since });
        }
        self.seen = seen;
    }

    /// The moves that have made no progress for `limit` at `now`.
    #[must_use]
    pub fn stalled(&self, limit: Duration, now: Instant) -> Vec<Stalled> {
        let stalled = |seen: &Seen| {
            let idle = now.saturating_duration_since(seen.since);
            let phase = seen.progress.first().map(|progress| progress.phase.clone()).unwrap_or_default();
            (idle >= limit).then_some(Stalled { running: seen.running, phase, idle })
        };
        self.seen.values().filter_map(stalled).collect()
    }

    /// The longest time that one of the moves under way has made no progress at `now`.
    #[must_use]
    pub fn longest_idle(&self, now: Instant) -> Option<Duration> {
        self.seen.values().map(|seen| now.saturating_duration_since(seen.since)).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::observed::Operation;

    fn catalog(target_bytes: i64, lsn: &str) -> Catalog {
        let application = "dialog-operator: move 102008 worker-0>worker-1".to_owned();
        let progress = Progress {
            pid: 7,
            shard_id: 102_008,
            source_bytes: 100,
            target_bytes,
            source_lsn: Some("0/1".to_owned()),
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
            watch.look(Some(&catalog(bytes, lsn)), at(second));
            assert_eq!(watch.stalled(limit, at(second)), []);
        }
        watch.look(Some(&catalog(3, "0/2")), at(209));
        assert_eq!(watch.stalled(limit, at(209)), []);
        // Catalogs that could not be read say nothing about the move.
        watch.look(None, at(210));
        let [stalled] = &watch.stalled(limit, at(210))[..] else { panic!("no stall") };
        assert_eq!((stalled.running.pid, stalled.idle), (7, limit));
        assert_eq!(stalled.phase, "Copying Data");
        watch.look(Some(&Catalog::default()), at(211));
        assert_eq!(watch.stalled(Duration::ZERO, at(211)), [], "it has ended");
    }
}
