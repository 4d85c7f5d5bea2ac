//! What is measured of databases: per cluster and group, so as many series as there are nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::step::Step;
use crate::api::{MoveStatus, NodeState, NodeStatus, RebalanceStatus};
use crate::condition::{Finding, Holds};

pub mod heat;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStep {
    step: &'static str,
    result: &'static str,
}

/// One database group of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByNode {
    namespace: String,
    cluster: String,
    group: String,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCluster {
    namespace: String,
    cluster: String,
}

/// One move under way, and what Citus is doing for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMove {
    namespace: String,
    cluster: String,
    shard: i64,
    from: String,
    to: String,
    phase: String,
}

/// One condition of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCondition {
    namespace: String,
    cluster: String,
    condition: &'static str,
}

/// The metrics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    moves_left: Family<ByCluster, Gauge>,
    bytes_left: Family<ByCluster, Gauge>,
    moves_done: Family<ByCluster, Gauge>,
    bytes_done: Family<ByCluster, Gauge>,
    eta: Family<ByCluster, Gauge>,
    last_progress: Family<ByCluster, Gauge>,
    phase: Family<ByMove, Gauge>,
    /// The moves that are shown, by cluster.
    current: Arc<Mutex<HashMap<ByCluster, Vec<ByMove>>>>,
    idle: Family<ByCluster, Gauge>,
    steps: Family<ByStep, Counter>,
    up: Family<ByNode, Gauge>,
    shards: Family<ByNode, Gauge>,
    bytes: Family<ByNode, Gauge>,
    rounds: Counter,
    conditions: Family<ByCondition, Gauge>,
    /// Load.
    pub heat: heat::Metrics,
}

impl Metrics {
    /// Metrics that are read through `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { heat: heat::Metrics::register(registry), ..Self::default() };
        registry.register("steps", "Changes of databases by kind and result", metrics.steps.clone());
        registry.register(
            "node_up",
            "1 while the group's primary answers; absent before it has done so",
            metrics.up.clone(),
        );
        registry.register("node_shards", "Shards of distributed tables on the node", metrics.shards.clone());
        let bytes = "Bytes of these shards, indexes and TOAST included";
        registry.register_with_unit("node_shards_size", bytes, Unit::Bytes, metrics.bytes.clone());
        let moves = "Moves of shards that are under way or still to be made";
        registry.register("rebalance_moves_left", moves, metrics.moves_left.clone());
        let bytes = "Bytes that these still have to copy";
        registry.register_with_unit("rebalance_left", bytes, Unit::Bytes, metrics.bytes_left.clone());
        let moves = "Moves of shards of this rebalance that were made";
        registry.register("rebalance_moves_done", moves, metrics.moves_done.clone());
        let bytes = "Bytes that these have copied";
        registry.register_with_unit("rebalance_done", bytes, Unit::Bytes, metrics.bytes_done.clone());
        let eta =
            "When this rebalance is expected to end, as seconds since 1970; absent while nobody can know";
        registry.register_with_unit("rebalance_end_timestamp", eta, Unit::Seconds, metrics.eta.clone());
        let last = "When a move of this rebalance got on last, as seconds since 1970; absent before the first has begun";
        let name = "rebalance_last_progress_timestamp";
        registry.register_with_unit(name, last, Unit::Seconds, metrics.last_progress.clone());
        let phase = "1 for each move of a shard under way and what Citus is doing for it; the phase is empty before Citus says so";
        registry.register("rebalance_move_phase", phase, metrics.phase.clone());
        let idle = "How long the slowest move under way has made no progress";
        registry.register_with_unit("rebalance_idle", idle, Unit::Seconds, metrics.idle.clone());
        let conditions = "1 while a condition of the DialogCluster is True, 0 while it is False; absent while it is Unknown";
        registry.register("condition", conditions, metrics.conditions.clone());
        registry.register("rounds", "Looks at a cluster's databases", metrics.rounds.clone());
        metrics
    }

    /// Counts one step.
    pub fn step(&self, step: &Step, done: bool) {
        let result = if done { "done" } else { "failed" };
        self.steps.get_or_create(&ByStep { step: step.kind(), result }).inc();
    }

    /// Shows how far a cluster's moves are; nothing where none is to be made.
    pub fn moves(
        &self,
        namespace: &str,
        cluster: &str,
        moves: Option<&RebalanceStatus>,
        idle: Option<Duration>,
    ) {
        let label = ByCluster { namespace: namespace.to_owned(), cluster: cluster.to_owned() };
        self.phases(&label, moves.map_or(&[][..], |moves| &moves.current));
        let Some(moves) = moves else {
            self.moves_left.remove(&label);
            self.bytes_left.remove(&label);
            self.moves_done.remove(&label);
            self.bytes_done.remove(&label);
            self.eta.remove(&label);
            self.last_progress.remove(&label);
            self.idle.remove(&label);
            return;
        };
        self.moves_left.get_or_create(&label).set(moves.moves_total - moves.moves_done);
        self.bytes_left.get_or_create(&label).set(moves.bytes_left);
        self.moves_done.get_or_create(&label).set(moves.moves_done);
        self.bytes_done.get_or_create(&label).set(moves.bytes_done);
        match &moves.eta {
            Some(eta) => drop(self.eta.get_or_create(&label).set(eta.0.as_second())),
            None => drop(self.eta.remove(&label)),
        }
        match &moves.last_progress_at {
            Some(at) => drop(self.last_progress.get_or_create(&label).set(at.0.as_second())),
            None => drop(self.last_progress.remove(&label)),
        }
        let idle = idle.map_or(0, |idle| i64::try_from(idle.as_secs()).unwrap_or(i64::MAX));
        self.idle.get_or_create(&label).set(idle);
    }

    /// Shows the moves of a cluster that are under way, each with its phase, and no others of it.
    fn phases(&self, cluster: &ByCluster, current: &[MoveStatus]) {
        let of = |one: &MoveStatus| ByMove {
            namespace: cluster.namespace.clone(),
            cluster: cluster.cluster.clone(),
            shard: one.shard_id,
            from: one.from.clone(),
            to: one.to.clone(),
            phase: one.phase.clone(),
        };
        let now: Vec<ByMove> = current.iter().map(of).collect();
        // A panic elsewhere leaves nothing half shown, so its poison is ignored.
        let mut shown = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in shown.remove(cluster).iter().flatten().filter(|one| !now.contains(one)) {
            self.phase.remove(gone);
        }
        for one in &now {
            self.phase.get_or_create(one).set(1);
        }
        if !now.is_empty() {
            shown.insert(cluster.clone(), now);
        }
    }

    /// Shows what conditions say.
    pub fn conditions(&self, namespace: &str, cluster: &str, findings: &[Finding]) {
        for finding in findings {
            let label = ByCondition {
                namespace: namespace.to_owned(),
                cluster: cluster.to_owned(),
                condition: finding.kind,
            };
            match finding.holds {
                Holds::Unknown => drop(self.conditions.remove(&label)),
                holds => drop(self.conditions.get_or_create(&label).set(i64::from(holds == Holds::True))),
            }
        }
    }

    /// Shows the nodes of a cluster, and no others of it: `before` are the ones shown last.
    pub fn nodes(&self, namespace: &str, cluster: &str, before: &[String], nodes: &[NodeStatus]) {
        self.rounds.inc();
        let label = |group: &str| ByNode {
            namespace: namespace.to_owned(),
            cluster: cluster.to_owned(),
            group: group.to_owned(),
        };
        for group in before.iter().filter(|group| !nodes.iter().any(|node| node.group == **group)) {
            let gone = label(group);
            self.up.remove(&gone);
            self.shards.remove(&gone);
            self.bytes.remove(&gone);
        }
        for node in nodes {
            let node_label = label(&node.group);
            if node.state == NodeState::Awaited {
                // Nobody misses it.
                self.up.remove(&node_label);
            } else {
                self.up.get_or_create(&node_label).set(i64::from(node.state != NodeState::Unreachable));
            }
            self.shards.get_or_create(&node_label).set(node.shards);
            if let Some(bytes) = node.bytes {
                self.bytes.get_or_create(&node_label).set(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::names::Group;

    #[test]
    fn what_is_known_of_a_condition_is_shown() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let shown = |holds: Holds| {
            metrics.conditions("ns", "chat", &[Finding::new("ScaleInBlocked", holds, "NoPlace", "no room")]);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let line = text.lines().find(|line| line.starts_with("condition{")).map(str::to_owned);
            line.map(|line| {
                line.replace("{namespace=\"ns\",cluster=\"chat\",condition=\"ScaleInBlocked\"}", "")
            })
        };
        assert_eq!(shown(Holds::True).as_deref(), Some("condition 1"));
        assert_eq!(shown(Holds::False).as_deref(), Some("condition 0"));
        assert_eq!(shown(Holds::Unknown), None);
    }

    #[test]
    fn nodes_are_shown_while_they_are_there_and_steps_are_counted() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let node = |group: &str, state| NodeStatus {
            group: group.to_owned(),
            host: String::new(),
            state,
            shards: 144,
            bytes: Some(4096),
        };
        let nodes = [node("worker-0", NodeState::Active), node("worker-1", NodeState::Unreachable)];
        let text = |registry: &Registry| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            text
        };
        metrics.nodes("ns", "chat", &[], &nodes);
        metrics.nodes("ns", "chat", &[], &[node("worker-2", NodeState::Awaited)]);
        metrics.step(&Step::AddNode { group: Group::Worker(0) }, true);
        let both = text(&registry);
        assert!(!both.contains("node_up{namespace=\"ns\",cluster=\"chat\",group=\"worker-2\"}"), "{both}");
        for line in [
            "node_up{namespace=\"ns\",cluster=\"chat\",group=\"worker-0\"} 1",
            "node_up{namespace=\"ns\",cluster=\"chat\",group=\"worker-1\"} 0",
            "node_shards{namespace=\"ns\",cluster=\"chat\",group=\"worker-0\"} 144",
            "node_shards_size_bytes{namespace=\"ns\",cluster=\"chat\",group=\"worker-0\"} 4096",
            "steps_total{step=\"AddNode\",result=\"done\"} 1",
        ] {
            assert!(both.contains(line), "{line} is not in:\n{both}");
        }
        let moves = RebalanceStatus {
            moves_done: 6,
            moves_total: 24,
            bytes_done: 1024,
            bytes_left: 4096,
            eta: Some(Time(Timestamp::from_second(1_767_225_600).unwrap())),
            last_progress_at: Some(Time(Timestamp::from_second(1_767_222_000).unwrap())),
            ..RebalanceStatus::default()
        };
        metrics.moves("ns", "chat", Some(&moves), Some(Duration::from_secs(7)));
        let during = text(&registry);
        for line in [
            "moves_left{namespace=\"ns\",cluster=\"chat\"} 18",
            "left_bytes{namespace=\"ns\",cluster=\"chat\"} 4096",
            "moves_done{namespace=\"ns\",cluster=\"chat\"} 6",
            "done_bytes{namespace=\"ns\",cluster=\"chat\"} 1024",
            "end_timestamp_seconds{namespace=\"ns\",cluster=\"chat\"} 1767225600",
            "last_progress_timestamp_seconds{namespace=\"ns\",cluster=\"chat\"} 1767222000",
            "idle_seconds{namespace=\"ns\",cluster=\"chat\"} 7",
        ] {
            assert!(during.contains(&format!("rebalance_{line}")), "{line} is not in:\n{during}");
        }
        metrics.moves("ns", "chat", None, None);
        for gone in ["rebalance_moves_left{", "rebalance_last_progress"] {
            let text = text(&registry);
            assert!(!text.contains(&format!("\n{gone}")), "nothing is left to move:\n{text}");
        }
        metrics.nodes("ns", "chat", &["worker-0".to_owned(), "worker-1".to_owned()], &nodes[..1]);
        assert!(!text(&registry).contains("worker-1"), "a node that is gone is not shown");
    }

    #[test]
    fn each_move_under_way_is_shown_with_its_phase_and_no_longer() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let one = |shard_id, phase: &str| MoveStatus {
            shard_id,
            from: "worker-0".to_owned(),
            to: "worker-1".to_owned(),
            phase: phase.to_owned(),
            bytes_done: 0,
            bytes_total: 0,
        };
        let shown = |cluster: &str, current: Option<Vec<MoveStatus>>| {
            let moves = current.map(|current| RebalanceStatus { current, ..RebalanceStatus::default() });
            metrics.moves("ns", cluster, moves.as_ref(), None);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let series =
                text.lines().filter_map(|line| line.strip_prefix("rebalance_move_phase{namespace=\"ns\","));
            let mut series: Vec<String> = series.map(str::to_owned).collect();
            series.sort_unstable();
            series
        };
        let line = |cluster: &str, shard: i64, phase: &str| {
            format!(
                "cluster=\"{cluster}\",shard=\"{shard}\",from=\"worker-0\",to=\"worker-1\",phase=\"{phase}\"}} 1"
            )
        };
        let both = Some(vec![one(1, "Copying Data"), one(2, "")]);
        assert_eq!(shown("chat", both), [line("chat", 1, "Copying Data"), line("chat", 2, "")]);
        let other = Some(vec![one(7, "Setting Up")]);
        let left = [line("chat", 1, "Copying Data"), line("chat", 2, ""), line("shop", 7, "Setting Up")];
        assert_eq!(shown("shop", other), left, "another cluster's are its own");
        let later = Some(vec![one(1, "Catching Up")]);
        assert_eq!(shown("chat", later), [line("chat", 1, "Catching Up"), line("shop", 7, "Setting Up")]);
        assert_eq!(shown("chat", None), [line("shop", 7, "Setting Up")]);
    }
}
