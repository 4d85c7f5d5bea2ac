//! Which server a statement goes to: straight to the one that owns its shard, as far as that is known.
//!
//! The [map] is a copy of Citus' catalogs and may be old at any moment. That costs a hop and never an answer:
//! every node plans statements on the distributed tables, and one that does not hold the shard passes them on to the
//! node that does. For the same reason nothing on the way of a statement tells that the map is old. So the operator
//! says on the coordinator when it has moved a shard (`NOTIFY`), and as others may move shards as well, one small query
//! asks every second whether the catalogs differ from those that were read. (To be told by whoever moves them would need
//! a trigger on Citus' own catalogs; statistics of their tables arrive up to 10 s late.) The map is read anew as well
//! when an error of a server says that a shard or a node is not where it was, and once a minute in any case. It is
//! replaced as a whole.
//!
//! Without the coordinator the last map is used for as long as that takes.

mod catalog;
pub mod hash;
pub mod map;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    catalog::{Catalog, Layout, Place},
    hash::hash_uuid,
    map::ShardMap,
};
use super::{
    contact::Way,
    node::{Node, Settings},
    queue::Places,
    tables::Table,
};
use crate::metrics::{Metrics, RefreshReason, Route, RoutingMode};

/// How often the coordinator is asked whether anything changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time between two readings of the map.
const READ_INTERVAL: Duration = Duration::from_mins(1);
/// Shortest time between two readings, however many errors ask for one.
const READ_PAUSE: Duration = Duration::from_millis(100);
/// How long a node is away before the coordinator is asked whether it gets there.
const AWAY_LIMIT: Duration = Duration::from_millis(500);
/// Pause before connecting to the coordinator again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The routing of all statements.
pub(super) struct Routing {
    coordinator: Arc<Node>,
    settings: Settings,
    /// For statements that wait for servers.
    places: Places,
    view: RwLock<Arc<View>>,
    /// An error gave reason to doubt the map.
    doubt: Notify,
    metrics: Arc<Metrics>,
    enabled: bool,
}

/// What is known at a time.
#[derive(Default)]
struct View {
    map: ShardMap<usize>,
    /// Nodes, by the numbers in the map.
    nodes: Vec<Target>,
}

/// A node of the cluster.
#[derive(Clone)]
struct Target {
    place: Place,
    node: Arc<Node>,
}

impl Routing {
    /// Routing that knows nothing yet and never will unless `enabled`.
    pub(super) fn new(
        coordinator: &Arc<Node>,
        settings: Settings,
        places: Places,
        enabled: bool,
        metrics: &Arc<Metrics>,
    ) -> Self {
        metrics.routing.mode(if enabled { RoutingMode::Unknown } else { RoutingMode::Off });
        Self {
            coordinator: Arc::clone(coordinator),
            settings,
            places,
            view: RwLock::default(),
            doubt: Notify::new(),
            metrics: Arc::clone(metrics),
            enabled,
        }
    }

    /// Where a statement on this table with this key goes, and why. One without a key touches all shards.
    pub(super) fn route(&self, table: Table, key: Option<Uuid>) -> (Arc<Node>, Route) {
        let Some(key) = key else { return self.coordinator(Route::AllShards) };
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        match view.map.node(table, hash_uuid(key)).map(|number| &view.nodes[number]) {
            Some(target) if !target.place.plans => self.coordinator(Route::Unknown),
            Some(target) if target.node.way() == Way::ThroughCoordinator => self.coordinator(Route::Detour),
            Some(target) => (Arc::clone(&target.node), Route::Owner),
            None => self.coordinator(Route::Unknown),
        }
    }

    /// The coordinator, for this reason.
    pub(super) fn coordinator(&self, why: Route) -> (Arc<Node>, Route) {
        (Arc::clone(&self.coordinator), why)
    }

    /// An error gave reason to doubt the map: it is read again soon.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// All servers, the coordinator first.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        let view = self.view();
        let others = view.nodes.iter().filter(|target| target.place.address.is_some());
        std::iter::once(&self.coordinator).chain(others.map(|target| &target.node)).map(Arc::clone).collect()
    }

    /// Keeps the map up to date until `stop`.
    pub(super) async fn keep_up_to_date(&self, stop: &CancellationToken) {
        if !self.enabled {
            return;
        }
        loop {
            let watched = async {
                let (catalog, traffic) = Catalog::connect(self.coordinator.connector()).await?;
                tokio::select! {
                    watched = self.watch(&catalog, stop) => watched,
                    end = traffic => Ok(end?),
                }
            };
            if let Err(error) = watched.await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the map of shards is not kept up to date for the moment"
                );
            }
            sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Looks at the catalogs until the connection fails.
    async fn watch(&self, catalog: &Catalog, stop: &CancellationToken) -> Result<()> {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !catalog.is_citus().await? {
            self.apply(Layout::default(), stop);
            looks.tick().await;
        }
        // With each session anew: the server may be another one, of another version.
        if let Some(difference) = catalog.hashes_differ().await? {
            tracing::error!(
                difference,
                "this server hashes ids differently: statements go through the coordinator"
            );
            self.apply(Layout::default(), stop);
            self.metrics.routing.mode(RoutingMode::HashMismatch);
            return std::future::pending().await;
        }
        // Before the first look: no change falls between both.
        catalog.listen().await?;
        let mut known = None;
        loop {
            let occasion = tokio::select! {
                () = self.doubt.notified() => Occasion::Doubt,
                () = catalog.noticed() => Occasion::Notice,
                _ = looks.tick() => Occasion::Interval,
            };
            let version = catalog.version().await?;
            if let Some(reason) = reason_to_read(known.as_ref(), &version, occasion, Instant::now()) {
                // The version was read before: a change in between shows at the next look.
                let layout = catalog.layout().await?;
                known = Some((version, Instant::now()));
                tracing::debug!(?reason, nodes = layout.places.len(), map = ?layout.map, "map of shards read");
                self.metrics.routing.refreshed(reason, layout.map.shards());
                self.apply(layout, stop);
            }
            self.ask_about_nodes_that_are_away(catalog).await?;
            if occasion != Occasion::Interval {
                sleep(READ_PAUSE).await;
            }
        }
    }

    /// Takes over a map. Nodes stay connected as long as they hold shards.
    fn apply(&self, layout: Layout, stop: &CancellationToken) {
        let distributed = !layout.map.is_empty();
        self.metrics.routing.mode(if distributed { RoutingMode::Owner } else { RoutingMode::NotDistributed });
        let old = self.view();
        let mut known: HashMap<_, _> =
            old.nodes.iter().map(|target| (target.place.address.clone(), Arc::clone(&target.node))).collect();
        known.insert(None, Arc::clone(&self.coordinator));
        let target = |place: Place| {
            let node = known.get(&place.address).map_or_else(|| self.open(&place, stop), Arc::clone);
            Target { place, node }
        };
        let nodes: Vec<Target> = layout.places.into_iter().map(target).collect();
        let unused = |old: &&Target| !nodes.iter().any(|new| Arc::ptr_eq(&new.node, &old.node));
        let left: Vec<Arc<Node>> = old
            .nodes
            .iter()
            .filter(unused)
            .filter(|target| !Arc::ptr_eq(&target.node, &self.coordinator))
            .map(|target| Arc::clone(&target.node))
            .collect();
        *self.view.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(View { map: layout.map, nodes });
        for node in left {
            // Whoever waits for it in vain goes where the new map says.
            if node.live() == 0 {
                node.close();
                continue;
            }
            // Statements under way there still have their time.
            let patience = 2 * self.settings.statement_limit;
            tokio::spawn(async move {
                sleep(patience).await;
                node.close();
            });
        }
    }

    fn open(&self, place: &Place, stop: &CancellationToken) -> Arc<Node> {
        let Some((host, port)) = &place.address else { return Arc::clone(&self.coordinator) };
        let connector = self.coordinator.connector().to(host, *port);
        let node = Arc::new(Node::new(connector, self.settings, self.places.clone(), &self.metrics));
        node.open(stop);
        node
    }

    /// A node that this process cannot reach may be down, or only out of its reach. The coordinator knows.
    async fn ask_about_nodes_that_are_away(&self, catalog: &Catalog) -> Result<()> {
        let view = self.view();
        for Target { place, node } in &view.nodes {
            if let Some((host, port)) = &place.address
                && node.away_for().is_some_and(|away| away > AWAY_LIMIT)
            {
                node.note_coordinator_reaches(catalog.reaches(host, *port).await?);
            }
        }
        Ok(())
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why the catalogs are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// An error gave reason to doubt the map.
    Doubt,
    /// Somebody said that they have changed.
    Notice,
    /// It was time.
    Interval,
}

/// Why the map has to be read now, if it has to: given what was read and when, what the version of the catalogs is now,
/// and why it was looked at.
fn reason_to_read<V: PartialEq>(
    known: Option<&(V, Instant)>,
    version: &V,
    occasion: Occasion,
    now: Instant,
) -> Option<RefreshReason> {
    match known {
        None => Some(RefreshReason::Start),
        Some((old, _)) if old != version && occasion == Occasion::Notice => Some(RefreshReason::Notice),
        Some((old, _)) if old != version => Some(RefreshReason::Change),
        Some(_) if occasion == Occasion::Doubt => Some(RefreshReason::Error),
        Some((_, read)) if now.duration_since(*read) >= READ_INTERVAL => Some(RefreshReason::Timer),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_read_on_a_change_on_an_error_and_after_a_minute_and_not_else() {
        use Occasion::{Doubt, Interval, Notice};
        let read = Instant::now();
        let reason =
            |version, occasion, later| reason_to_read(Some(&(1, read)), &version, occasion, read + later);
        assert_eq!(reason_to_read(None, &1, Interval, read), Some(RefreshReason::Start));
        assert_eq!(reason_to_read(None, &1, Notice, read), Some(RefreshReason::Start));
        assert_eq!(reason(1, Interval, LOOK_INTERVAL), None);
        assert_eq!(reason(1, Notice, LOOK_INTERVAL), None, "it is known already");
        assert_eq!(reason(2, Interval, LOOK_INTERVAL), Some(RefreshReason::Change));
        assert_eq!(reason(2, Notice, LOOK_INTERVAL), Some(RefreshReason::Notice));
        assert_eq!(reason(1, Doubt, LOOK_INTERVAL), Some(RefreshReason::Error));
        assert_eq!(reason(2, Doubt, LOOK_INTERVAL), Some(RefreshReason::Change));
        assert_eq!(reason(1, Interval, READ_INTERVAL), Some(RefreshReason::Timer));
    }
}
