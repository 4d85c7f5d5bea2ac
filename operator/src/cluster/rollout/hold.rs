//! Whether moves and splits of shards are held for an update of servers, and until when.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Step;
use crate::api::DialogClusterStatus;
use crate::cluster::instance::Instance;
use crate::cluster::observe::ObservedGroup;
use crate::names::Group;

/// How long after the start or the end of a server, or after it was last known what an update does next, moves are still held.
const PATIENCE: SignedDuration = SignedDuration::from_mins(3);

/// That no move or split of a shard begins, for the sake of servers that are restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Since when.
    pub since: MicroTime,
    /// When that ends, unless it is known again before what the update does next; `None` while that is known.
    pub until: Option<Time>,
}

impl Hold {
    /// What a status says of it.
    #[must_use]
    pub fn of(status: Option<&DialogClusterStatus>) -> Option<Self> {
        let status = status?;
        Some(Self { since: status.hold_moves.clone()?, until: status.hold_moves_until.clone() })
    }

    /// What is left of it at `now`, where nobody knows what the update does next.
    #[must_use]
    pub fn in_doubt(self, now: Timestamp) -> Option<Self> {
        let until = self.longest(now);
        self.ending(until, now)
    }

    /// When it ends in doubt.
    fn longest(&self, now: Timestamp) -> Timestamp {
        self.until.as_ref().map_or(now + PATIENCE, |until| until.0)
    }

    fn ending(self, until: Timestamp, now: Timestamp) -> Option<Self> {
        (now < until).then_some(Self { until: Some(Time(until)), ..self })
    }

    /// What becomes of it, if it is `before`, while `step` is under way: nothing begins when a server is about to be restarted. After
    /// that it goes on until the server is back and the next one follows, but not for as long as an update may wait for something
    /// else, such as a Pod that cannot be created: shards may have to move meanwhile. A look that fails, or lacks what a group says, ends
    /// nothing: the update may be due as before, and what began now would have to be waited for.
    #[must_use]
    pub fn next(
        before: Option<Self>,
        step: &Step,
        groups: &BTreeMap<Group, (&ObservedGroup, i32)>,
        now: Timestamp,
    ) -> Option<Self> {
        let is_known = || groups.values().all(|(group, _)| group.revision.is_some());
        let (is_over, in_doubt) = match step {
            Step::Replace { .. }
            | Step::SwitchOver { .. }
            | Step::Restart { .. }
            | Step::AfterMoves { .. } => {
                let since = before.map_or(MicroTime(now), |hold| hold.since);
                return Some(Self { since, until: None });
            }
            Step::Helpless { .. } => return None,
            Step::Nothing | Step::ScaleIn(_) if is_known() => (true, false),
            Step::Nothing | Step::ScaleIn(_) | Step::Wait(_) => (false, true),
            Step::CatchUp { .. } => (false, false),
        };
        let hold = before?;
        // Once everything is up to date, it is only the last server that has to come back.
        let counts = |instance: &&Instance| !is_over || !instance.is_ready || instance.is_terminating;
        let instances = || groups.values().flat_map(|(group, _)| &group.instances).filter(counts);
        if instances().any(|instance| instance.is_terminating && instance.is_ready) {
            return Some(Self { until: None, ..hold });
        }
        let events = |instance: &Instance| [instance.created, instance.started, instance.stopped];
        let lately = |at: &Timestamp| now.duration_since(*at).abs() < PATIENCE;
        let last = instances().flat_map(events).flatten().filter(lately).max();
        let until = last.map(|at| at + PATIENCE).max(in_doubt.then(|| hold.longest(now)))?;
        hold.ending(until, now)
    }
}
