//! What is measured of databases: per cluster and group, so as many series as there are nodes.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::step::Step;
use crate::api::{NodeState, NodeStatus};

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

/// The metrics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    steps: Family<ByStep, Counter>,
    up: Family<ByNode, Gauge>,
    shards: Family<ByNode, Gauge>,
    bytes: Family<ByNode, Gauge>,
    rounds: Counter,
}

impl Metrics {
    /// Metrics that are read through `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("steps", "Changes of databases by kind and result", metrics.steps.clone());
        registry.register("node_up", "1 while the group's primary answers", metrics.up.clone());
        registry.register("node_shards", "Shards of distributed tables on the node", metrics.shards.clone());
        let bytes = "Bytes of these shards, indexes and TOAST included";
        registry.register_with_unit("node_shards_size", bytes, Unit::Bytes, metrics.bytes.clone());
        registry.register("rounds", "Looks at a cluster's databases", metrics.rounds.clone());
        metrics
    }

    /// Counts one step.
    pub fn step(&self, step: &Step, done: bool) {
        let result = if done { "done" } else { "failed" };
        self.steps.get_or_create(&ByStep { step: step.kind(), result }).inc();
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
            self.up.get_or_create(&node_label).set(i64::from(node.state != NodeState::Unreachable));
            self.shards.get_or_create(&node_label).set(node.shards);
            self.bytes.get_or_create(&node_label).set(node.bytes);
        }
    }
}
