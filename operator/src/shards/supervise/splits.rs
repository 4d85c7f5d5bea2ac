//! Whether splits get on, of which Citus itself shows nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Endings;
use crate::shards::observed::{Operation, Stall, StallKind};

/// Failures to follow a change after which a split is hopeless: the same change is tried again every few seconds, and a
/// connection that breaks once is none.
const HOPELESS: i64 = 3;

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
    seen: BTreeMap<i32, Seen>,
}

#[derive(Debug)]
struct Seen {
    application: String,
    mark: SplitMark,
    since: Instant,
    endings: Endings,
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
            let endings = before.as_ref().map(|before| before.endings).unwrap_or_default();
            let same = before.filter(|before| before.mark.progress == mark.progress);
            let since = same.map_or(now, |before| before.since);
            let idle = now.saturating_duration_since(since);
            let stall = if mark.errors >= HOPELESS {
                let cause = format!(
                    "its target failed {} times to follow the changes of its source, and will go on to: its log says why",
                    mark.errors
                );
                Some((StallKind::ReplicationFailed, cause))
            } else {
                let cause = "nothing is copied or followed: look at the logs of its nodes";
                (idle >= limit).then(|| (StallKind::Unknown, cause.to_owned()))
            };
            if let Some((kind, cause)) = stall {
                let (seconds, end) = (idle.as_secs(), endings.next(now));
                stalls.push(Stall { pid, application: application.clone(), seconds, kind, cause, end });
            }
            seen.insert(pid, Seen { application, mark, since, endings });
        }
        self.seen = seen;
        stalls
    }

    /// Remembers that the split of the process `pid` was cancelled or terminated at `now`.
    pub fn ended(&mut self, pid: i32, now: Instant) {
        if let Some(seen) = self.seen.get_mut(&pid) {
            seen.endings.count(now);
        }
    }
}
