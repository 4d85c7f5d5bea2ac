//! What `/metrics` tells about the ways of statements to the servers.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Which way a statement was sent, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Route {
    /// To the server that owns the shard.
    Owner,
    /// Through the coordinator: the owner is not known, or its own copy of the catalogs is not current.
    Unknown,
    /// Through the coordinator: it reaches the owner and this process does not.
    Detour,
    /// Through the coordinator: the owner answered with an error that the coordinator may not meet.
    Retry,
    /// Through the coordinator: the statement touches all shards, and has no owner.
    AllShards,
}

/// How statements are routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoutingMode {
    /// Straight to the owner of the shard.
    Owner,
    /// Through the coordinator, because the catalogs have not been read yet.
    Unknown,
    /// To the one server, because the tables are not distributed.
    NotDistributed,
    /// Through the coordinator, because the server hashes ids differently.
    HashMismatch,
    /// Through the coordinator, as configured.
    Off,
}

/// Why the map of shards was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefreshReason {
    /// A new session on the coordinator.
    Start,
    /// Somebody said that the catalogs have changed, and they had.
    Notice,
    /// The catalogs have changed, which nobody said.
    Change,
    /// A statement met an error where its shard should be.
    Error,
    /// It was read long ago.
    Timer,
}

/// Gives labels their values; the metrics' names do not change with the program's.
macro_rules! label_values {
    ($kind:ident { $($variant:ident = $value:literal),* $(,)? }) => {
        impl $kind {
            const ALL: &[Self] = &[$(Self::$variant),*];

            const fn value(self) -> &'static str {
                match self { $(Self::$variant => $value),* }
            }
        }

        impl EncodeLabelValue for $kind {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&self.value(), encoder)
            }
        }
    };
}

label_values!(Route {
    Owner = "owner",
    Unknown = "unknown",
    Detour = "detour",
    Retry = "retry",
    AllShards = "all_shards",
});
label_values!(RoutingMode {
    Owner = "owner",
    Unknown = "unknown",
    NotDistributed = "not_distributed",
    HashMismatch = "hash_mismatch",
    Off = "off",
});
label_values!(RefreshReason {
    Start = "start",
    Notice = "notice",
    Change = "change",
    Error = "error",
    Timer = "timer",
});

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: Route,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: RoutingMode,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: RefreshReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

/// How many hold the place of a server.
type Holders = Arc<Mutex<HashMap<NodeLabels, usize>>>;

/// Metrics of the routing.
#[derive(Debug)]
pub struct RoutingMetrics {
    statements: Vec<Counter>,
    modes: Family<ModeLabels, Gauge>,
    refreshes: Family<ReasonLabels, Counter>,
    shards: Gauge,
    connections: Family<NodeLabels, Gauge>,
    waits: Family<NodeLabels, Counter>,
    queues: Family<NodeLabels, Gauge>,
    holders: Holders,
}

impl RoutingMetrics {
    /// Registers them, all counters at zero.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let statements = Family::<RouteLabels, Counter>::default();
        let modes = Family::<ModeLabels, Gauge>::default();
        let refreshes = Family::<ReasonLabels, Counter>::default();
        let (shards, connections) = (Gauge::default(), Family::<NodeLabels, Gauge>::default());
        let waits = Family::<NodeLabels, Counter>::default();
        let queues = Family::<NodeLabels, Gauge>::default();
        registry.register(
            "routing_statements",
            "Statements sent, retries included, by the way they went",
            statements.clone(),
        );
        registry.register("routing_mode", "1 for the way in which statements are routed", modes.clone());
        registry.register(
            "routing_map_refreshes",
            "How often the map of shards was read, and why",
            refreshes.clone(),
        );
        registry.register(
            "routing_map_shards",
            "Shards in the map; tables that lie together count once",
            shards.clone(),
        );
        registry.register(
            "node_connections_live",
            "Connections to each server that work",
            connections.clone(),
        );
        registry.register(
            "node_waits",
            "Statements that waited for each server while there was no connection to it",
            waits.clone(),
        );
        registry.register(
            "node_queue",
            "Statements that wait for each server now, or for their turn after others who have waited",
            queues.clone(),
        );
        for reason in RefreshReason::ALL {
            drop(refreshes.get_or_create(&ReasonLabels { reason: *reason }));
        }
        let statements = Route::ALL
            .iter()
            .map(|route| statements.get_or_create_owned(&RouteLabels { route: *route }))
            .collect();
        let holders = Holders::default();
        Self { statements, modes, refreshes, shards, connections, waits, queues, holders }
    }

    /// Counts a statement that is sent.
    pub fn statement(&self, route: Route) {
        self.statements[route as usize].inc();
    }

    /// Statements are routed like this from now on.
    pub fn mode(&self, current: RoutingMode) {
        for mode in RoutingMode::ALL {
            self.modes.get_or_create(&ModeLabels { mode: *mode }).set(i64::from(*mode == current));
        }
    }

    /// The map was read; so many shards are in it.
    pub fn refreshed(&self, reason: RefreshReason, shards: usize) {
        self.refreshes.get_or_create(&ReasonLabels { reason }).inc();
        self.shards.set(i64::try_from(shards).unwrap_or(i64::MAX));
    }

    /// The place for a server's numbers; it is there until the returned value is dropped. A server that comes back while
    /// its old connections are still closing has two values, which add up.
    #[must_use]
    pub fn node(&self, address: &str) -> NodeMetrics {
        let labels = NodeLabels { node: address.to_owned() };
        let mut holders = lock(&self.holders);
        *holders.entry(labels.clone()).or_default() += 1;
        let gauge = self.connections.get_or_create_owned(&labels);
        let waits = self.waits.get_or_create_owned(&labels);
        let queue = self.queues.get_or_create_owned(&labels);
        drop(holders);
        NodeMetrics {
            gauges: [self.connections.clone(), self.queues.clone()],
            counters: self.waits.clone(),
            holders: Arc::clone(&self.holders),
            labels,
            gauge,
            live: AtomicI64::new(0),
            waits,
            queue,
        }
    }
}

/// What the metrics tell about one server.
#[derive(Debug)]
pub struct NodeMetrics {
    gauges: [Family<NodeLabels, Gauge>; 2],
    counters: Family<NodeLabels, Counter>,
    holders: Holders,
    labels: NodeLabels,
    gauge: Gauge,
    live: AtomicI64,
    waits: Counter,
    queue: Gauge,
}

impl NodeMetrics {
    /// So many connections work now.
    pub fn live(&self, live: usize) {
        let live = i64::try_from(live).unwrap_or(i64::MAX);
        self.gauge.inc_by(live - self.live.swap(live, Ordering::Relaxed));
    }

    /// Counts a statement that waits for a connection.
    pub fn wait(&self) {
        self.waits.inc();
    }

    /// How many wait at the moment: to be kept by those who know.
    #[must_use]
    pub fn queue(&self) -> Gauge {
        self.queue.clone()
    }
}

impl Drop for NodeMetrics {
    fn drop(&mut self) {
        self.live(0);
        let mut holders = lock(&self.holders);
        let left = holders.get_mut(&self.labels).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            holders.remove(&self.labels);
            for family in &self.gauges {
                family.remove(&self.labels);
            }
            self.counters.remove(&self.labels);
        }
    }
}

/// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
fn lock(holders: &Holders) -> MutexGuard<'_, HashMap<NodeLabels, usize>> {
    holders.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn ways_modes_and_servers_are_told() {
        let mut registry = Registry::default();
        let metrics = RoutingMetrics::register(&mut registry);
        let node = metrics.node("worker-0:5432");
        node.live(8);
        node.wait();
        metrics.mode(RoutingMode::Unknown);
        metrics.mode(RoutingMode::Owner);
        metrics.statement(Route::Owner);
        metrics.refreshed(RefreshReason::Start, 12);
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        for line in [
            r#"routing_statements_total{route="owner"} 1"#,
            r#"routing_statements_total{route="retry"} 0"#,
            r#"routing_statements_total{route="all_shards"} 0"#,
            r#"routing_mode{mode="owner"} 1"#,
            r#"routing_mode{mode="unknown"} 0"#,
            r#"routing_map_refreshes_total{reason="start"} 1"#,
            "routing_map_shards 12",
            r#"node_connections_live{node="worker-0:5432"} 8"#,
            r#"node_waits_total{node="worker-0:5432"} 1"#,
            r#"node_queue{node="worker-0:5432"} 0"#,
        ] {
            assert!(text().lines().any(|found| found == line), "{line} is not in\n{}", text());
        }
        let again = metrics.node("worker-0:5432");
        again.live(2);
        again.wait();
        assert!(text().contains("worker-0:5432\"} 10\n"), "{}", text());
        drop(node);
        let text_now = text();
        let lines = ["connections_live", "waits_total"]
            .map(|name| format!("node_{name}{{node=\"worker-0:5432\"}} 2\n"));
        assert!(lines.iter().all(|line| text_now.contains(line)), "{text_now}");
        drop(again);
        assert!(!text().contains("worker-0"));
    }
}
