//! The `DialogCluster` resource, and nothing else.
//!
//! Everything that can be refused is refused by the API server: each rule here carries a sentence that names the
//! field. A field that has no behaviour is absent. Units are Kubernetes quantities unless a field says otherwise.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod defaults;
mod heat;
mod progress;
mod quantity;
mod rebalance;
mod rules;
mod table;

pub use heat::{
    ActionFigures, ActionStatus, DecisionStatus, HeatStatus, HotTenant, HotTenantsMode, HotTenantsSpec,
    IsolatedTenant, LargeShardStatus, PinSpec, ShareOf, SizeStatus, StatisticsSpec,
};
pub use progress::{HeldMovesStatus, MoveStatus, NodeState, NodeStatus, RebalanceStatus, SplitStatus};
pub use quantity::Amount;
pub use rebalance::{
    ForeignStrategy, PlanStatus, PlannedMove, RebalanceMode, RebalanceSpec, RebalanceStrategy,
    RebalanceWindow, Threshold,
};
pub use table::{Table, TableKind};

/// The API group of every resource of this operator.
pub const GROUP: &str = "dialogcluster.io";

/// The most workers that can be asked for.
pub const MOST_WORKERS: u32 = 99;

/// A chat service on a sharded PostgreSQL: one Citus coordinator, workers, dialog tables distributed over them, and an
/// HTTP API.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "dialogcluster.io",
    version = "v1alpha1",
    kind = "DialogCluster",
    plural = "dialogclusters",
    shortname = "dlg",
    category = "all",
    namespaced,
    derive = "PartialEq",
    status = "DialogClusterStatus",
    doc = "A chat service on a sharded PostgreSQL: a Citus coordinator, workers, and an HTTP API.",
    validation = Rule::new("self.metadata.name.size() <= 37")
        .message("metadata.name: must have at most 37 characters, so that the names derived from it fit"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: must be a DNS-1035 label: lower case letters, digits and '-', starting with a letter"),
    validation = Rule::new("self.spec.sharding.hotTenants.dedicatedWorkers == 0 \
        || self.spec.sharding.hotTenants.dedicatedWorkers < self.spec.workers.count")
        .message("sharding.hotTenants.dedicatedWorkers: must be less than workers.count"),
    validation = Rule::new("!has(self.spec.sharding.pins) \
        || self.spec.sharding.pins.all(p, !has(p.worker) || p.worker < self.spec.workers.count)")
        .message("sharding.pins: worker must be less than workers.count"),
    scale(
        spec_replicas_path = ".spec.workers.count",
        status_replicas_path = ".status.workers",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Workers", type_ = "integer", json_path = ".spec.workers.count"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Shards", type_ = "integer", json_path = ".status.shards"),
    printcolumn(name = "Balanced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Balanced\")].status"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DialogClusterSpec {
    /// Container image with PostgreSQL, Patroni and, for more than one node, Citus. Defaults to the one the operator
    /// was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// The node that holds the catalogs and that clients may always ask.
    #[serde(default)]
    pub coordinator: CoordinatorSpec,

    /// The nodes that hold the shards.
    #[serde(default)]
    pub workers: WorkersSpec,

    /// PostgreSQL's own configuration.
    #[serde(default)]
    pub postgres: PostgresSpec,

    /// How tables are distributed.
    #[serde(default)]
    pub sharding: ShardingSpec,

    /// The HTTP service.
    #[serde(default)]
    pub api: ApiSpec,

    /// While true, the API server refuses to delete this object.
    #[serde(default)]
    pub deletion_protection: bool,

    /// While true, the operator observes and reports, and begins nothing. Shard moves and splits that are under way go on; one
    /// that makes no progress for `sharding.rebalance.stallTimeout`, or keeps writers waiting, is cancelled all the same, and
    /// made again later.
    #[serde(default)]
    pub paused: bool,
}

/// The coordinator group.
#[derive(JsonSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CoordinatorSpec {
    /// PostgreSQL instances in the group: one primary, the rest standbys.
    #[schemars(range(min = 1, max = 7))]
    pub instances: i32,
    /// The volume of each instance.
    pub storage: StorageSpec,
    /// CPU and memory of each instance.
    pub resources: ResourcesSpec,
    /// Which Kubernetes nodes the instances may run on.
    pub placement: PlacementSpec,
}

/// The worker groups.
#[derive(JsonSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkersSpec {
    /// Worker groups. With 0 the coordinator holds the shards.
    #[schemars(range(min = 0, max = MOST_WORKERS))]
    pub count: i32,
    /// PostgreSQL instances in each group: one primary, the rest standbys.
    #[schemars(range(min = 1, max = 7))]
    pub instances: i32,
    /// The volume of each instance.
    pub storage: StorageSpec,
    /// CPU and memory of each instance.
    pub resources: ResourcesSpec,
    /// Which Kubernetes nodes the instances may run on.
    pub placement: PlacementSpec,
}

/// The volume of one PostgreSQL instance.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.className) == has(oldSelf.className)")
    .message("storage.className: is immutable; a volume cannot change its class"))]
pub struct StorageSpec {
    /// Size of the volume, for example `10Gi`.
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))")
        .message("storage.size: must be greater than zero"))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("storage.size: is immutable; volumes are not expanded by this version"))]
    #[serde(default = "defaults::storage_size")]
    pub size: Amount,
    /// StorageClass of the volume; the cluster's default class if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::dns_subdomain("storage.className"))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("storage.className: is immutable; a volume cannot change its class"))]
    pub class_name: Option<String>,
    /// What becomes of the volume when the `DialogCluster` is deleted.
    #[serde(default)]
    pub reclaim: Reclaim,
}

/// What becomes of volumes when their cluster is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Reclaim {
    /// The volume stays, to be adopted by a cluster of the same name or deleted by hand.
    #[default]
    Retain,
    /// The volume is deleted with the cluster, and the data with it.
    Delete,
}

/// CPU and memory of one container, as Kubernetes quantities.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::within_limit("cpu"), validation = rules::within_limit("memory"))]
pub struct ResourcesSpec {
    /// What the scheduler reserves.
    #[serde(default)]
    pub requests: ResourceAmounts,
    /// What the container may not exceed.
    #[serde(default)]
    pub limits: ResourceAmounts,
}

/// Amounts of the two resources that a container is given.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceAmounts {
    /// Cores, for example `500m` or `2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Amount>,
    /// Bytes, for example `1Gi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Amount>,
}

/// Which Kubernetes nodes pods may run on. Instances of one group are always spread over nodes where possible.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?\
        [A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$') && self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))")
        .message("placement.nodeSelector: must hold labels, such as kubernetes.io/arch: amd64"))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.all(t, !has(t.effect) || t.effect == '' || t.effect == 'NoSchedule' \
        || t.effect == 'PreferNoSchedule' || t.effect == 'NoExecute')")
        .message("placement.tolerations: effect must be NoSchedule, PreferNoSchedule or NoExecute"))]
    #[x_kube(validation = Rule::new("self.all(t, !has(t.operator) || t.operator != 'Exists' || !has(t.value) \
        || t.value == '')")
        .message("placement.tolerations: the operator Exists has no value"))]
    pub tolerations: Vec<Toleration>,
}

/// PostgreSQL's own configuration.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresSpec {
    /// Server parameters of every node, as in `postgresql.conf`. The ones the operator owns are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 200, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)?$'))")
        .message("postgres.parameters: names are lower case letters, digits and '_', with at most one '.'"))]
    #[x_kube(validation = rules::no_owned_parameter())]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('ssl'))")
        .message("postgres.parameters: ssl* are owned by the operator"))]
    pub parameters: BTreeMap<String, String>,
}

/// How tables are distributed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.rebalance) || !has(self.rebalance.strategy) || self.rebalance.strategy != 'ByLoad' \
    || !has(self.hotTenants) || !has(self.hotTenants.mode) || self.hotTenants.mode != 'Off'")
    .message("sharding.rebalance.strategy: ByLoad needs sharding.hotTenants.mode Observe or Isolate, which measure load"))]
pub struct ShardingSpec {
    /// Shards of each colocation group. A multiple of the worker counts you plan keeps them even.
    #[schemars(range(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("sharding.shardCount: is immutable; the tables are distributed already"))]
    #[serde(default = "defaults::shard_count")]
    pub shard_count: i32,
    /// The shard policy for tables beside dialog-api's own, which are always distributed: `messages`,
    /// `messages_archive`, `dialogs` and `dialog_state` by `dialog_id` in the group `dialog`; `users`, `credentials`,
    /// `user_dialogs` and `erasures` by `user_id` in the group `user`. Tables can be added; an entry cannot be changed
    /// or taken away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("oldSelf.all(o, self.exists(n, n == o))")
        .message("sharding.tables: an entry is immutable and cannot be removed; tables can only be added"))]
    #[x_kube(validation = Rule::new("self.all(t, self.all(u, !has(t.group) || !has(u.group) || t.group != u.group \
        || t.column == u.column))")
        .message("sharding.tables: tables of one group must be distributed by the same column"))]
    #[x_kube(validation = Rule::new("self.all(t, !has(t.group) || (t.group != 'dialog' || t.column == 'dialog_id') \
        && (t.group != 'user' || t.column == 'user_id'))")
        .message("sharding.tables: the group dialog goes by the column dialog_id, the group user by user_id"))]
    #[x_kube(validation = Rule::new("self.all(t, !(t.name in ['messages', 'messages_archive', 'dialogs', 'dialog_state', \
        'users', 'credentials', 'user_dialogs', 'erasures', 'sweeps', 'schema_migrations']))")
        .message("sharding.tables: names a table of dialog-api, which the operator distributes by itself"))]
    pub tables: Vec<Table>,
    /// When and how shards move to where they are missed.
    #[serde(default)]
    pub rebalance: RebalanceSpec,
    /// What is said about dialogs and users that take a large part of their worker.
    #[serde(default)]
    pub hot_tenants: HotTenantsSpec,
    /// Dialogs and users that somebody has decided about. An entry that goes takes its pin with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["group".into(), "tenant".into()]))]
    pub pins: Vec<PinSpec>,
    /// A shard, with those that move together with it, is too large above this, for example `20Gi`.
    #[serde(default = "defaults::max_shard_size")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))")
        .message("sharding.maxShardSize: must be greater than zero"))]
    pub max_shard_size: Amount,
}

/// The HTTP service.
#[derive(JsonSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiSpec {
    /// Container image of dialog-api. Defaults to the one the operator was installed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Pods of the service.
    #[schemars(range(min = 0, max = 100))]
    pub replicas: i32,
    /// How it is reached from outside; absent, it has a Service only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressSpec>,
    /// CPU and memory of each pod.
    pub resources: ResourcesSpec,
}

/// How the HTTP service is reached from outside the cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IngressSpec {
    /// Host name that clients ask for.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')")
        .message("api.ingress.host: must be a lower case DNS name without a scheme, port or path"))]
    pub host: String,
    /// IngressClass; the cluster's default class if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::dns_subdomain("api.ingress.className"))]
    pub class_name: Option<String>,
    /// Secret with the certificate of `host`; plain HTTP if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::dns_subdomain("api.ingress.tlsSecretName"))]
    pub tls_secret_name: Option<String>,
}

/// What the operator saw last. Never an authority for anything that cannot be undone.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DialogClusterStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people; programs read `conditions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Worker groups that have a primary which is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<i32>,
    /// Selector of the worker pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Where the HTTP service answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// PostgreSQL's version on the coordinator, for example `15.20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<String>,
    /// Citus' version on the coordinator, for example `13.2.2`; absent where the image has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub citus_version: Option<String>,
    /// Shards of all distributed tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<i64>,
    /// The nodes, coordinator first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["group".into()]))]
    pub nodes: Vec<NodeStatus>,
    /// How far the moves of shards are; absent while nothing is to be moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<RebalanceStatus>,
    /// The split of a shard that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitStatus>,
    /// Since when no move or split of a shard begins, because a server is about to be restarted, or was just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_moves: Option<MicroTime>,
    /// When that ends, unless the update goes on before: absent while it is known what it does next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_moves_until: Option<Time>,
    /// What is still under way since then; absent until it is known, and where nothing is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_moves: Option<HeldMovesStatus>,
    /// The value of the annotation `dialogcluster.io/rebalance`, or in the mode `Approve` of
    /// `dialogcluster.io/approve-plan`, whose rebalance has come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_rebalance: Option<String>,
    /// What would make the shards even, if anything would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// The tenants that take a large part of their worker, the hottest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["group".into(), "tenant".into()]))]
    pub hot: Vec<HotTenant>,
    /// The tenants that are pinned to a worker with a shard of their own, those that have been for longest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["group".into(), "tenant".into()]))]
    pub isolated: Vec<IsolatedTenant>,
    /// How many there are, those included that the list has no room for; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated_count: Option<i64>,
    /// What follows from load and sizes; absent while nobody looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heat: Option<HeatStatus>,
    /// What holds and what does not, keyed by type; each with a reason for programs and a sentence that says what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One word for people about the state of a cluster.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Phase {
    /// Nothing serves yet.
    Creating,
    /// Everything that was asked for is there.
    Ready,
    /// It serves, and a change is under way.
    Updating,
    /// It served before, and something is missing now.
    Degraded,
    /// `spec.paused` is set.
    Paused,
    /// The object is being deleted.
    Deleting,
}
