//! What the resource asks of the database, and nothing of the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rebalance::{self, windows};
use crate::api::{
    Amount, DialogCluster, DialogClusterSpec, ForeignStrategy, HotTenantsMode, PinSpec, RebalanceMode,
    RebalanceSpec, ResourcesSpec, Table,
};
use crate::heat;

/// The annotation whose value is the hash of the plan that may be carried out.
pub const APPROVE_ANNOTATION: &str = "dialogcluster.io/approve-plan";
/// The annotation that asks for one rebalance: each new value for another.
pub const REBALANCE_ANNOTATION: &str = "dialogcluster.io/rebalance";

/// The part of a `DialogCluster` that this controller acts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Worker groups.
    pub workers: u32,
    /// Shards of each colocation group.
    pub shard_count: i32,
    /// The shard policy: the tables of dialog-api, and those that the resource adds.
    pub tables: Vec<Table>,
    /// PostgreSQL's own parameters on every node.
    pub parameters: BTreeMap<String, String>,
    /// How shards are spread.
    pub rebalance: Rebalance,
    /// How load is watched; `None` if nobody is to look.
    pub watch: Option<Watch>,
    /// Workers that hold pinned shards only: the first ones. There are others, unless there are no workers.
    pub dedicated: u32,
    /// Tenants that somebody has decided about.
    pub pins: Vec<PinSpec>,
}

impl Wanted {
    /// What `cluster` asks for at `now`, by its spec, its annotations and what its status says was answered.
    #[must_use]
    pub fn of(cluster: &DialogCluster, now: Timestamp) -> Self {
        let mut wanted = Self::from(&cluster.spec);
        let spec = &cluster.spec.sharding.rebalance;
        let status = cluster.status.as_ref();
        let handled = status.and_then(|status| status.last_handled_rebalance.as_deref());
        wanted.rebalance.gate = gate(spec, cluster.annotations(), handled, now);
        wanted.rebalance.request = request(spec, cluster.annotations());
        wanted.rebalance.hold = status.is_some_and(|status| status.hold_moves.is_some());
        wanted
    }

    /// What may be begun for `cluster` at `now`: what it asks for; `None` if it is paused or being deleted.
    #[must_use]
    pub fn to_begin(cluster: &DialogCluster, now: Timestamp) -> Option<Self> {
        let stays = cluster.metadata.deletion_timestamp.is_none() && !cluster.spec.paused;
        stays.then(|| Self::of(cluster, now))
    }

    /// Whether there is something to be kept in the operator's own tables.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.watch.is_some() || self.dedicated > 0 || !self.pins.is_empty()
    }
}

/// How load is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// What is hot, and what follows.
    pub policy: heat::Policy,
    /// How long the servers count before it is looked at; at least a second.
    pub period: SignedDuration,
    /// CPU time that a worker may spend, in thousandths of a core; `None` if the resource does not say.
    pub worker_cpu: Option<u64>,
    /// The same of the coordinator.
    pub coordinator_cpu: Option<u64>,
}

impl Watch {
    /// What the resource asks for.
    #[must_use]
    pub fn new(spec: &DialogClusterSpec) -> Option<Self> {
        let hot = &spec.sharding.hot_tenants;
        let cpu = |resources: &ResourcesSpec| resources.limits.cpu.as_ref().and_then(Amount::thousandths);
        (hot.mode != HotTenantsMode::Off).then(|| Self {
            policy: heat::Policy::new(&spec.sharding),
            period: SignedDuration::try_from(hot.statistics.period()).unwrap_or(SignedDuration::from_mins(1)),
            worker_cpu: cpu(&spec.workers.resources),
            coordinator_cpu: cpu(&spec.coordinator.resources),
        })
    }
}

/// How shards are spread, and whether they may be moved now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebalance {
    /// What is to be even, and how many moves are made at the same time.
    pub policy: rebalance::Policy,
    /// Whether moves that only make the spread more even may be made now.
    pub gate: Gate,
    /// Whether a server is about to be restarted, or is not back yet: no move begins before.
    pub hold: bool,
    /// How long a move may make no progress.
    pub stall_timeout: Duration,
    /// The value by which somebody asks for one rebalance, or approves one.
    pub request: Option<String>,
    /// Whether a default strategy of Citus' rebalancer that somebody has chosen may be replaced.
    pub replaces: bool,
}

/// The value of the annotation by which somebody asks for a rebalance in this mode, or approves one.
#[must_use]
pub fn request(spec: &RebalanceSpec, annotations: &BTreeMap<String, String>) -> Option<String> {
    match spec.mode {
        RebalanceMode::Approve => annotations.get(APPROVE_ANNOTATION).map(|hash| hash.trim().to_owned()),
        RebalanceMode::Automatic | RebalanceMode::Manual => annotations.get(REBALANCE_ANNOTATION).cloned(),
    }
}

/// Whether moves that only make the spread more even may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// The ones of the plan with this hash may.
    Approved(String),
    /// They may not.
    Closed {
        /// For programs.
        reason: &'static str,
        /// For people: why, and what to do.
        message: String,
    },
}

const OUTSIDE_WINDOW: &str = "OutsideWindow";
const WINDOW_INVALID: &str = "WindowInvalid";

impl Gate {
    /// Whether it is closed by the windows, whatever the mode asks for.
    #[must_use]
    pub fn is_outside_windows(&self) -> bool {
        matches!(self, Self::Closed { reason: OUTSIDE_WINDOW | WINDOW_INVALID, .. })
    }
}

impl From<&DialogClusterSpec> for Wanted {
    fn from(spec: &DialogClusterSpec) -> Self {
        // The schema keeps the count within 0 and 99.
        let workers = u32::try_from(spec.workers.count).unwrap_or(0);
        let dedicated = u32::try_from(spec.sharding.hot_tenants.dedicated_workers).unwrap_or(0);
        Self {
            workers,
            dedicated: dedicated.min(workers.saturating_sub(1)),
            shard_count: spec.sharding.shard_count,
            tables: [Table::dialog_api(), spec.sharding.tables.clone()].concat(),
            parameters: spec.postgres.parameters.clone(),
            rebalance: Rebalance {
                policy: rebalance::Policy::new(&spec.sharding.rebalance, rebalance::Goal::Balance),
                gate: Gate::Open,
                hold: false,
                stall_timeout: spec.sharding.rebalance.stall_timeout(),
                request: None,
                replaces: spec.sharding.rebalance.foreign_strategy == ForeignStrategy::Replace,
            },
            watch: Watch::new(spec),
            pins: spec.sharding.pins.clone(),
        }
    }
}

/// Whether moves that only make the spread more even may be made at `now`, by the resource and its annotations. `handled`
/// is the request for a rebalance that was answered last: it is none any more.
#[must_use]
pub fn gate(
    spec: &RebalanceSpec,
    annotations: &BTreeMap<String, String>,
    handled: Option<&str>,
    now: Timestamp,
) -> Gate {
    let closed = |reason, message: String| Gate::Closed { reason, message };
    let opening = match windows::windows(&spec.windows) {
        Ok(windows) => windows::open_at(&windows, now),
        // None counts: to leave one out could open what should be closed.
        Err(error) => return closed(WINDOW_INVALID, error.to_string()),
    };
    if let windows::Opening::Closed { until } = opening {
        let when = until.map_or_else(
            || "no window opens any more".to_owned(),
            |until| format!("the next window opens at {until}"),
        );
        return closed(OUTSIDE_WINDOW, when);
    }
    match spec.mode {
        RebalanceMode::Automatic => Gate::Open,
        RebalanceMode::Manual => match annotations.get(REBALANCE_ANNOTATION) {
            None => {
                let message = format!("set the annotation {REBALANCE_ANNOTATION} to have them made");
                closed("PlanAvailable", message)
            }
            Some(request) if handled == Some(request) => {
                let message = format!(
                    "the rebalance that the annotation {REBALANCE_ANNOTATION} asked for has ended; give it another value to \
                     have these made"
                );
                closed("PlanAvailable", message)
            }
            Some(_) => Gate::Open,
        },
        RebalanceMode::Approve => {
            let look =
                format!("look at status.plan, and set the annotation {APPROVE_ANNOTATION} to its hash");
            match request(spec, annotations) {
                None => closed("AwaitingApproval", look),
                // Were the shards moved back by hand, the same list would have the same hash.
                Some(hash) if handled == Some(hash.as_str()) => {
                    let message = format!(
                        "the plan {hash} was approved and carried out; {look}, after removing it if it is the same"
                    );
                    closed("AwaitingApproval", message)
                }
                Some(hash) => Gate::Approved(hash),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_be_begun_is_what_the_resource_says_now() {
        let now: Timestamp = "2026-03-03T02:30:00Z".parse().unwrap();
        let begun = |change: fn(&mut DialogCluster)| {
            let mut cluster: DialogCluster = serde_json::from_value(json!({
                "apiVersion": "dialogcluster.io/v1alpha1",
                "kind": "DialogCluster",
                "metadata": {"name": "chat", "annotations": {APPROVE_ANNOTATION: "0123456789abcdef"}},
                "spec": {"workers": {"count": 3}, "sharding": {"rebalance": {"mode": "Approve"}}},
                "status": {},
            }))
            .unwrap();
            change(&mut cluster);
            let wanted = Wanted::to_begin(&cluster, now)?;
            let gate = match wanted.rebalance.gate {
                Gate::Open => "Open".to_owned(),
                Gate::Approved(hash) => hash,
                Gate::Closed { reason, .. } => reason.to_owned(),
            };
            Some((wanted.workers, gate, wanted.rebalance.hold))
        };
        let says = |workers, gate: &str, hold| Some((workers, gate.to_owned(), hold));
        assert_eq!(begun(|_| ()), says(3, "0123456789abcdef", false));
        assert_eq!(begun(|cluster| cluster.spec.workers.count = 2), says(2, "0123456789abcdef", false));
        assert_eq!(begun(|cluster| cluster.annotations_mut().clear()), says(3, "AwaitingApproval", false));
        let manual = begun(|cluster| cluster.spec.sharding.rebalance.mode = RebalanceMode::Manual);
        assert_eq!(manual, says(3, "PlanAvailable", false));
        let answered = begun(|cluster| {
            let status = cluster.status.as_mut().unwrap();
            status.last_handled_rebalance = Some("0123456789abcdef".to_owned());
        });
        assert_eq!(answered, says(3, "AwaitingApproval", false));
        let held = begun(|cluster| {
            let since = "2026-03-03T02:30:00Z".parse().unwrap();
            cluster.status.as_mut().unwrap().hold_moves = Some(MicroTime(since));
        });
        assert_eq!(held, says(3, "0123456789abcdef", true));
        assert_eq!(begun(|cluster| cluster.spec.paused = true), None);
        let deleted = begun(|cluster| {
            cluster.metadata.deletion_timestamp = Some(Time("2026-03-03T02:30:00Z".parse().unwrap()));
        });
        assert_eq!(deleted, None);
    }

    #[test]
    fn the_gate_opens_for_who_may_open_it() {
        let now: Timestamp = "2026-03-03T02:30:00Z".parse().unwrap();
        let open = json!([{"schedule": "0 2 * * *", "duration": "2h", "timeZone": "UTC"}]);
        let shut = json!([{"schedule": "0 5 * * *", "duration": "2h", "timeZone": "UTC"}]);
        let nonsense = json!([{"schedule": "every now and then", "duration": "2h", "timeZone": "UTC"}]);
        let none = BTreeMap::new();
        let approved = BTreeMap::from([(APPROVE_ANNOTATION.to_owned(), "0123456789abcdef".to_owned())]);
        let asked = BTreeMap::from([(REBALANCE_ANNOTATION.to_owned(), "now".to_owned())]);
        let again = BTreeMap::from([(REBALANCE_ANNOTATION.to_owned(), "again".to_owned())]);
        let done = BTreeMap::from([(APPROVE_ANNOTATION.to_owned(), " now\n".to_owned())]);
        let say = |mode: &str, windows: &serde_json::Value, annotations: &BTreeMap<String, String>| {
            let spec = serde_json::from_value(json!({"mode": mode, "windows": windows})).unwrap();
            match gate(&spec, annotations, Some("now"), now) {
                Gate::Open => "Open".to_owned(),
                Gate::Approved(hash) => hash,
                Gate::Closed { reason, .. } => reason.to_owned(),
            }
        };
        assert_eq!(say("Automatic", &json!([]), &none), "Open");
        assert_eq!(say("Automatic", &open, &none), "Open");
        assert_eq!(say("Automatic", &shut, &none), "OutsideWindow");
        assert_eq!(say("Automatic", &nonsense, &none), "WindowInvalid");
        assert_eq!(say("Approve", &open, &none), "AwaitingApproval");
        assert_eq!(say("Approve", &open, &approved), "0123456789abcdef");
        assert_eq!(say("Approve", &open, &done), "AwaitingApproval", "it was carried out");
        assert_eq!(say("Approve", &shut, &approved), "OutsideWindow");
        assert_eq!(say("Manual", &open, &approved), "PlanAvailable");
        assert_eq!(say("Manual", &open, &asked), "PlanAvailable", "it was answered");
        assert_eq!(say("Manual", &open, &again), "Open");
        assert_eq!(say("Manual", &shut, &again), "OutsideWindow");
    }
}
