//! What is measured of load: per node, per group of tables, and of the hot tenants, of which there are few; and of what is
//! done about it.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{ByCluster, ByNode};
use crate::api::{HotTenant, SizeStatus};
use crate::heat::{NodeLoad, Reason};
use crate::names::Group;
use crate::shards::heat::Heat;
use crate::shards::heat::actions::{Act, Author, Outcome};
use crate::shards::observed::Observed;
use crate::shards::wanted::Wanted;

/// A gauge of parts and rates.
type Fraction = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTenant {
    namespace: String,
    cluster: String,
    group: String,
    tables: String,
    tenant: String,
    pinned: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTables {
    namespace: String,
    cluster: String,
    tables: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    namespace: String,
    cluster: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    namespace: String,
    cluster: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    namespace: String,
    cluster: String,
    kind: &'static str,
    outcome: &'static str,
}

/// Bounds of the durations of actions in seconds: from the quick way of a small shard to the copy of a large one.
const DURATIONS: [f64; 10] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0];

/// What of the budgets is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tenants that may still be isolated.
    pub isolations: usize,
    /// Shard groups that may still be made.
    pub shard_groups: usize,
}

impl Budget {
    /// What the policy may still do by what is seen; `None` where nobody watches, or catalogs could not be read.
    #[must_use]
    pub fn of(wanted: &Wanted, observed: &Observed) -> Option<Self> {
        let (policy, catalog) = (&wanted.watch.as_ref()?.policy, observed.catalog.as_ref()?);
        // Who is pinned by hand counts for nothing.
        let isolated = observed.kept.pins.iter().filter(|pin| pin.author == Author::Policy).count();
        Some(Self {
            isolations: policy.max_isolated.saturating_sub(isolated),
            shard_groups: policy.max_shard_groups.saturating_sub(catalog.placements.len()),
        })
    }
}

/// The metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    started: Family<ByKind, Counter>,
    ended: Family<ByOutcome, Counter>,
    duration: Family<ByKind, Histogram>,
    isolations_left: Family<ByCluster, Gauge>,
    shard_groups_left: Family<ByCluster, Gauge>,
    queries: Family<ByNode, Fraction>,
    writes: Family<ByNode, Fraction>,
    cpu: Family<ByNode, Fraction>,
    cpu_limit: Family<ByNode, Fraction>,
    hot: Family<ByCluster, Gauge>,
    isolated: Family<ByCluster, Gauge>,
    share: Family<ByTenant, Fraction>,
    refused: Family<ByReason, Gauge>,
    size: Family<ByTables, Gauge>,
    largest: Family<ByTables, Gauge>,
    growth: Family<ByTables, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: Family::default(),
            ended: Family::default(),
            duration: Family::new_with_constructor((|| Histogram::new(DURATIONS)) as fn() -> Histogram),
            isolations_left: Family::default(),
            shard_groups_left: Family::default(),
            queries: Family::default(),
            writes: Family::default(),
            cpu: Family::default(),
            cpu_limit: Family::default(),
            hot: Family::default(),
            isolated: Family::default(),
            share: Family::default(),
            refused: Family::default(),
            size: Family::default(),
            largest: Family::default(),
            growth: Family::default(),
        }
    }
}

impl Metrics {
    /// Metrics that are read through `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let queries = "Queries per second of the node in the last period";
        registry.register("node_query_rate", queries, metrics.queries.clone());
        let writes = "Rows per second that the node wrote in the last period";
        registry.register("node_write_rate", writes, metrics.writes.clone());
        let cpu = "Cores that the node's processes kept busy in the last period";
        registry.register("node_cpu_cores", cpu, metrics.cpu.clone());
        let limit = "Cores that they may keep busy; absent where nobody knows";
        registry.register("node_cpu_limit_cores", limit, metrics.cpu_limit.clone());
        let hot = "Tenants that take a large part of their node, but for those that are pinned there";
        registry.register("hot_tenants", hot, metrics.hot.clone());
        let isolated = "Tenants that are pinned to a node with a shard of their own";
        registry.register("isolated_tenants", isolated, metrics.isolated.clone());
        let share = "The part of its node's queries, writes or CPU time that a hot tenant takes";
        registry.register_with_unit("hot_tenant_share", share, Unit::Ratios, metrics.share.clone());
        let refused = "What should be done about load and is not, by reason";
        registry.register("refused_actions", refused, metrics.refused.clone());
        let size = "Bytes of a group of tables, indexes and TOAST included";
        registry.register_with_unit("tables_size", size, Unit::Bytes, metrics.size.clone());
        let largest = "Bytes of its largest shard, with those that move together with it";
        registry.register_with_unit(
            "tables_largest_shard_size",
            largest,
            Unit::Bytes,
            metrics.largest.clone(),
        );
        let growth = "By how many bytes it grew in an hour, over the last day at most; absent before an hour has passed";
        registry.register("tables_growth_bytes_per_hour", growth, metrics.growth.clone());
        let started = "What was begun about load and size, by kind";
        registry.register("actions_started", started, metrics.started.clone());
        let ended = "What became of it, by kind and outcome";
        registry.register("actions_ended", ended, metrics.ended.clone());
        let duration = "How long what was done took, from its first attempt to its end";
        registry.register_with_unit("action_duration", duration, Unit::Seconds, metrics.duration.clone());
        let isolations = "Tenants that the policy may still isolate";
        registry.register("isolations_left", isolations, metrics.isolations_left.clone());
        let groups = "Shard groups that the policy may still make";
        registry.register("shard_groups_left", groups, metrics.shard_groups_left.clone());
        metrics
    }

    /// Counts what was begun and what has ended between `before` and `now`: the last actions that are written down, as this
    /// process has seen them. What it sees first was counted by another.
    pub fn actions(&self, namespace: &str, cluster: &str, before: &[Act], now: &[Act]) {
        let names = Names { namespace, cluster };
        let last = before.iter().map(|act| act.id).max().unwrap_or(i64::MIN);
        for act in now {
            let known = before.iter().find(|known| known.id == act.id);
            if known.is_none() && act.id < last {
                continue;
            }
            if act.begun.is_some() && known.is_none_or(|known| known.begun.is_none()) {
                self.started.get_or_create(&names.kind(act)).inc();
            }
            let Some(outcome) = act.outcome.filter(|_| known.is_none_or(|known| known.outcome.is_none()))
            else {
                continue;
            };
            let ByKind { namespace, cluster, kind } = names.kind(act);
            self.ended.get_or_create(&ByOutcome { namespace, cluster, kind, outcome: outcome.name() }).inc();
            if let Some(lasted) = act.lasted().filter(|_| outcome == Outcome::Done) {
                self.duration.get_or_create(&names.kind(act)).observe(lasted.as_secs_f64());
            }
        }
    }

    /// Shows what is left of a cluster's budgets; nothing where nobody watches.
    pub fn budget(&self, namespace: &str, cluster: &str, budget: Option<Budget>) {
        let label = Names { namespace, cluster }.cluster();
        let Some(Budget { isolations, shard_groups }) = budget else {
            self.isolations_left.remove(&label);
            self.shard_groups_left.remove(&label);
            return;
        };
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.isolations_left.get_or_create(&label).set(number(isolations));
        self.shard_groups_left.get_or_create(&label).set(number(shard_groups));
    }

    /// Shows how many tenants are pinned; nothing where that is not known.
    pub fn isolated(&self, namespace: &str, cluster: &str, count: Option<usize>) {
        let label = Names { namespace, cluster }.cluster();
        match count {
            Some(count) => {
                self.isolated.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            None => {
                self.isolated.remove(&label);
            }
        }
    }

    /// Shows what is known of a cluster's load, and nothing that was known `before` and is not any more.
    pub fn show(&self, namespace: &str, cluster: &str, before: Option<&Heat>, now: Option<&Heat>) {
        let names = Names { namespace, cluster };
        if let Some(before) = before {
            self.forget(&names, before);
        }
        let Some(now) = now else {
            self.hot.remove(&names.cluster());
            return;
        };
        for (group, load) in &now.nodes {
            self.node(&names.node(*group), load, now.length.as_secs_f64());
        }
        let hot = now.hot.iter().filter(|hot| !hot.pinned).count();
        self.hot.get_or_create(&names.cluster()).set(i64::try_from(hot).unwrap_or(i64::MAX));
        for hot in &now.hot {
            self.share.get_or_create(&names.tenant(hot)).set(f64::from(hot.share_percent) / 100.0);
        }
        for refusal in &now.refused {
            self.refused.get_or_create(&names.reason(refusal.reason)).inc();
        }
        for size in &now.sizes {
            self.size.get_or_create(&names.tables(size)).set(size.bytes);
            self.largest.get_or_create(&names.tables(size)).set(size.largest_bytes);
            if let Some(growth) = size.growth_per_hour {
                self.growth.get_or_create(&names.tables(size)).set(growth);
            }
        }
    }

    fn node(&self, label: &ByNode, load: &NodeLoad, seconds: f64) {
        if load.role == crate::shards::rebalance::Role::Unavailable {
            return;
        }
        let rate = |count: u64| per(count, seconds);
        self.queries.get_or_create(label).set(rate(load.queries));
        self.writes.get_or_create(label).set(rate(load.writes));
        self.cpu.get_or_create(label).set(rate(load.cpu) / 1e6);
        if load.cpu_limit > 0 {
            self.cpu_limit.get_or_create(label).set(rate(load.cpu_limit) / 1e6);
        }
    }

    fn forget(&self, names: &Names<'_>, heat: &Heat) {
        for group in heat.nodes.keys() {
            let label = names.node(*group);
            for family in [&self.queries, &self.writes, &self.cpu, &self.cpu_limit] {
                family.remove(&label);
            }
        }
        for hot in &heat.hot {
            self.share.remove(&names.tenant(hot));
        }
        for refusal in &heat.refused {
            self.refused.remove(&names.reason(refusal.reason));
        }
        for size in &heat.sizes {
            self.size.remove(&names.tables(size));
            self.largest.remove(&names.tables(size));
            self.growth.remove(&names.tables(size));
        }
    }
}

/// What was counted per second.
#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn per(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1.0)
}

struct Names<'a> {
    namespace: &'a str,
    cluster: &'a str,
}

impl Names<'_> {
    fn cluster(&self) -> ByCluster {
        ByCluster { namespace: self.namespace.to_owned(), cluster: self.cluster.to_owned() }
    }

    fn node(&self, group: Group) -> ByNode {
        let ByCluster { namespace, cluster } = self.cluster();
        ByNode { namespace, cluster, group: group.to_string() }
    }

    fn tenant(&self, hot: &HotTenant) -> ByTenant {
        let ByCluster { namespace, cluster } = self.cluster();
        let HotTenant { tenant, group: tables, node: group, pinned, .. } = hot.clone();
        ByTenant { namespace, cluster, group, tables, tenant, pinned: if pinned { "true" } else { "false" } }
    }

    fn kind(&self, act: &Act) -> ByKind {
        let ByCluster { namespace, cluster } = self.cluster();
        ByKind { namespace, cluster, kind: act.action.kind() }
    }

    fn tables(&self, size: &SizeStatus) -> ByTables {
        let ByCluster { namespace, cluster } = self.cluster();
        ByTables { namespace, cluster, tables: size.group.clone() }
    }

    fn reason(&self, reason: Reason) -> ByReason {
        let ByCluster { namespace, cluster } = self.cluster();
        ByReason { namespace, cluster, reason: reason.name() }
    }
}

#[cfg(test)]
mod tests;
