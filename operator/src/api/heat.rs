//! What is watched of tenants, and what was found.

use std::fmt;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::rebalance::{Threshold, duration};

/// What is said about dialogs and users that take a large part of their worker.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HotTenantsSpec {
    /// Whether they are looked for.
    #[serde(default)]
    pub mode: HotTenantsMode,
    /// A tenant with this part of its worker's queries, writes or CPU time is hot, in percent.
    #[serde(default = "defaults::share_percent")]
    #[schemars(range(min = 5, max = 100))]
    pub share_percent: i32,
    /// Nobody is hot on a worker that spends no more of its CPU time than this, in percent of `workers.resources.limits.cpu`,
    /// or of all cores of its Kubernetes node where there is no limit: less is meant for workers that share a large one.
    #[serde(default = "defaults::min_cpu_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub min_cpu_percent: i32,
    /// A tenant with fewer queries in a period is not hot, nor one with fewer writes for its part of the writes.
    #[serde(default = "defaults::min_queries")]
    #[schemars(range(min = 1))]
    pub min_queries: i64,
    /// Periods in a row that a tenant has to be hot before anything follows from it.
    #[serde(default = "defaults::consecutive_periods")]
    #[schemars(range(min = 1, max = 100))]
    pub consecutive_periods: i32,
    /// The least time between two isolations, between any action and the next that isolates nobody, and between the release of
    /// a tenant and its next isolation, for example `1h`.
    #[serde(default = "defaults::cooldown")]
    #[schemars(length(min = 2, max = 16), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('720h')")
        .message("sharding.hotTenants.cooldown: must be between 1s and 720h"))]
    pub cooldown: String,
    /// Tenants that may have a shard of their own at the same time.
    #[serde(default = "defaults::max_isolated")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_isolated: i32,
    /// Workers that hold the shards of pinned tenants and nothing else: the first ones, so that another count of workers
    /// changes none of them. Hot tenants go there before anywhere else.
    #[serde(default)]
    #[schemars(range(min = 0, max = 98))]
    pub dedicated_workers: i32,
    /// A tenant with a shard of its own that was quiet for so long is one like the others again, for example `168h`.
    #[serde(default = "defaults::release_after")]
    #[schemars(length(min = 2, max = 16), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('8760h')")
        .message("sharding.hotTenants.releaseAfter: must be between 1m and 8760h"))]
    pub release_after: String,
    /// Neither isolation nor splitting makes more shards of all colocation groups than this, each with its tables counted
    /// once.
    #[serde(default = "defaults::max_shard_groups")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_shard_groups: i32,
    /// How Citus counts what tenants do.
    #[serde(default)]
    pub statistics: StatisticsSpec,
}

/// Whether hot tenants are looked for, and what follows.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum HotTenantsMode {
    /// No: Citus counts nothing.
    Off,
    /// They are shown, with what would be done about them; nothing is done.
    #[default]
    Observe,
    /// What follows is done: a hot tenant gets a shard of its own on another worker, and a shard that is too large is
    /// split. Neither can be taken back but by rewriting the tables.
    Isolate,
}

/// How Citus counts what tenants do (`citus_stat_tenants`).
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatisticsSpec {
    /// How long it counts before the figures are looked at, for example `1m`. A day must be a multiple of it.
    #[serde(default = "defaults::statistics_period")]
    #[schemars(length(min = 2, max = 16), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('5s') && duration(self) <= duration('1h') \
        && 86400 % duration(self).getSeconds() == 0")
        .message("sharding.hotTenants.statistics.period: must be between 5s and 1h, and a day a multiple of it"))]
    pub period: String,
    /// Tenants that each server keeps figures of: the busiest. Changing it restarts the servers.
    #[serde(default = "defaults::statistics_limit")]
    #[schemars(range(min = 10, max = 10_000))]
    pub limit: i32,
    /// Of the queries of tenants of which there are no figures yet, the part that is counted: fewer cost less, and find a
    /// new tenant later.
    #[serde(default = "defaults::sample_rate")]
    pub sample_rate: Threshold,
}

impl StatisticsSpec {
    /// How long Citus counts.
    #[must_use]
    pub fn period(&self) -> Duration {
        // The schema lets nothing else in.
        duration(&self.period).unwrap_or(Duration::from_mins(1))
    }
}

impl HotTenantsSpec {
    /// The least time between two isolations, between any action and the next that isolates nobody, and between the release of
    /// a tenant and its next isolation.
    #[must_use]
    pub fn cooldown(&self) -> Duration {
        duration(&self.cooldown).unwrap_or(Duration::from_hours(1))
    }

    /// How long a tenant has to be quiet to be one like the others again.
    #[must_use]
    pub fn release_after(&self) -> Duration {
        duration(&self.release_after).unwrap_or(Duration::from_hours(168))
    }
}

/// A dialog or user about whom somebody has decided: the policy for hot tenants leaves it alone.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PinSpec {
    /// The group of tables: `dialog`, `user`, or one of `sharding.tables`.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub group: String,
    /// The value of the distribution column: of the group `dialog` the dialog's id.
    #[schemars(length(min = 1, max = 98))]
    pub tenant: String,
    /// The number of the worker on which it gets a shard of its own, and stays. Absent, it is one like the others, however
    /// hot it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 98))]
    pub worker: Option<i32>,
}

/// A tenant that takes a large part of its worker.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HotTenant {
    /// The value of the distribution column: of the group `dialog` the dialog's id.
    #[schemars(length(max = 100))]
    pub tenant: String,
    /// The group of tables, as in `spec.sharding.tables`.
    #[schemars(length(max = 63))]
    pub group: String,
    /// The worker that it is on.
    pub node: String,
    /// Its part of what the worker does, in percent: of queries, writes or CPU time, whichever is most.
    pub share_percent: i32,
    /// Of which of them.
    #[serde(default)]
    pub share_of: ShareOf,
    /// Queries per second in the last period.
    pub queries_per_second: i64,
    /// Those of them that write.
    pub writes_per_second: i64,
    /// CPU time that it took of the worker, in thousandths of a core.
    #[serde(default)]
    pub cpu_millicores: i64,
    /// Periods in a row that it has been hot.
    pub periods: i32,
    /// Whether it has a shard of its own, and is pinned to a worker.
    #[serde(default)]
    pub pinned: bool,
    /// Whether `spec.sharding.pins` has it be one like the others, however hot: nothing follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_alone: bool,
}

/// What a tenant takes a part of.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ShareOf {
    /// The queries that the worker answers.
    #[default]
    Queries,
    /// The rows that it writes.
    Writes,
    /// The CPU time that it spends.
    Cpu,
}

impl fmt::Display for ShareOf {
    /// In the words of a message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queries => "queries",
            Self::Writes => "writes",
            Self::Cpu => "CPU time",
        })
    }
}

/// A tenant with a shard of its own that is pinned to a worker.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IsolatedTenant {
    /// The value of the distribution column: of the group `dialog` the dialog's id. If nobody knows that any more, its hash.
    #[schemars(length(max = 100))]
    pub tenant: String,
    /// The group of tables, as in `spec.sharding.tables`.
    #[schemars(length(max = 63))]
    pub group: String,
    /// The worker that it is pinned to.
    pub worker: String,
    /// Since when it is pinned.
    pub since: Time,
    /// Who asked for it: `policy` if it follows from `spec.sharding.hotTenants`, `spec` if `spec.sharding.pins` says so.
    pub asked_by: String,
}

/// What follows from the load.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeatStatus {
    /// What was decided last; in the mode `Observe` it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<DecisionStatus>,
    /// What should be done and cannot, and what would help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub refused: Vec<String>,
    /// When something can be done again that would be done now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooling_until: Option<Time>,
    /// What was done last, or is being done, newest first. The table `dialog_operator.actions` on the coordinator has more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub actions: Vec<ActionStatus>,
    /// How large the groups of tables are: the 64 largest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["group".into()]))]
    pub sizes: Vec<SizeStatus>,
    /// The shards above `spec.sharding.maxShardSize`, the largest first, and whose most of their rows are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["shard".into()]))]
    pub large: Vec<LargeShardStatus>,
}

/// Something that was decided.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionStatus {
    /// The end of the period that it was decided after.
    pub at: Time,
    /// `Isolate`, `Split`, `Spread` or `Release`.
    pub kind: String,
    /// What, why, and from where to where.
    #[schemars(length(max = 512))]
    pub message: String,
}

/// Something that was done, or is being done.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionStatus {
    /// Its number.
    pub id: i64,
    /// When it was decided, by the coordinator's clock.
    pub decided: Time,
    /// When it was done, or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    /// `Isolate`, `Split`, `Spread`, `Release` or `Retarget`.
    pub kind: String,
    /// The value of the tenant's distribution column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who asked for it: `policy` if it follows from `spec.sharding.hotTenants`.
    pub asked_by: String,
    /// What, why, and from where to where.
    pub why: String,
    /// `Done`, `Failed` or `Dropped`; absent while it is being done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why it failed, or was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<i64>,
    /// Figures of the last period before it; absent if nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<ActionFigures>,
    /// Figures of the first whole period after it in which its workers answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ActionFigures>,
}

/// What the nodes of an action and its tenant did in a period. What nobody knows is absent.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionFigures {
    /// CPU time of the worker that it was taken from, of what the worker may spend, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_cpu_percent: Option<i64>,
    /// The same of the worker that it was given to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_cpu_percent: Option<i64>,
    /// Queries per second of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_queries_per_second: Option<i64>,
    /// Those of them that write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_writes_per_second: Option<i64>,
}

/// How large the tables of a colocation group are.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SizeStatus {
    /// The group, as in `spec.sharding.tables`.
    #[schemars(length(max = 63))]
    pub group: String,
    /// Shards, those that move together counted as one.
    pub shards: i64,
    /// Bytes of all of them, indexes and TOAST included, to the nearest MiB.
    pub bytes: i64,
    /// Bytes of the largest.
    pub largest_bytes: i64,
    /// By how many bytes they grew in an hour, over the last day at most; absent before an hour has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth_per_hour: Option<i64>,
}

/// A shard that is too large, and who fills it, by a sample of its largest table: the largest are looked into, until there are
/// three that can be split and would not have been already.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LargeShardStatus {
    /// The lowest id among the shards that move together.
    pub shard: i64,
    /// The group of tables, as in `spec.sharding.tables`.
    #[schemars(length(max = 63))]
    pub group: String,
    /// The worker that it is on.
    pub node: String,
    /// Bytes of it, indexes and TOAST included, to the nearest MiB.
    pub bytes: i64,
    /// The tenant with most rows in it, by the value of its distribution column; absent while it was not looked into, or has
    /// no rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub tenant: Option<String>,
    /// Its part of the rows, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_percent: Option<i32>,
}
