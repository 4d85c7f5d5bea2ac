//! What is to be done about load and size: from a [`Policy`], a [`History`] and one [`Period`] to a [`Decision`], by a pure
//! function.
//!
//! A tenant is hot if it makes up a large share of what its worker does, long enough, on a worker that has something to
//! do. It gets a shard of its own on a worker that can bear it. There is no way back from a split but a rewrite of the
//! tables, so that everything here is slow to act: periods in a row, a cooldown after each action, a budget.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::names::Group;
use crate::shards::rebalance::Role;

mod decide;
#[cfg(test)]
mod properties;

pub use decide::decide;

/// When something is done about a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Whether what is decided is also done.
    pub mode: Mode,
    /// A tenant with this part of its worker's queries, writes or CPU time is hot, in percent.
    pub share_percent: u32,
    /// A tenant with fewer queries in a period is not, nor one with fewer writes for its share of writes.
    pub min_queries: u64,
    /// Periods that it has to be hot without a break; at least 1.
    pub consecutive_periods: u32,
    /// The least time between two actions.
    pub cooldown: SignedDuration,
    /// Tenants that may have a shard of their own at the same time.
    pub max_isolated: usize,
    /// A pinned tenant that was quiet for so long is not pinned any more.
    pub release_after: SignedDuration,
    /// A larger shard group is split; `None` for never.
    pub max_shard_bytes: Option<u64>,
    /// Neither isolation nor split makes more shard groups than this.
    pub max_shard_groups: usize,
}

/// What becomes of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It is written down, as if it had been carried out.
    Observe,
    /// It is carried out.
    Isolate,
}

/// What was seen in one period, and what is where at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Period {
    /// When it ended.
    pub end: Timestamp,
    /// How long it was.
    pub length: SignedDuration,
    /// The nodes; one whose figures are missing is [`Role::Unavailable`].
    pub nodes: BTreeMap<Group, NodeLoad>,
    /// The tenants that were seen, each once: those of equal hash are one.
    pub tenants: Vec<TenantLoad>,
    /// The tenants with a pinned shard of their own.
    pub isolated: Vec<Tenant>,
    /// The shard groups above [`Policy::max_shard_bytes`] that cover more than one hash.
    pub large: Vec<LargeShard>,
    /// Shard groups in the cluster.
    pub shard_groups: usize,
    /// Whether shards are being moved or split: nothing else is begun then.
    pub underway: bool,
}

/// What a node did in a period, and could have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLoad {
    /// What it is for.
    pub role: Role,
    /// Queries that it answered.
    pub queries: u64,
    /// Those of them that write.
    pub writes: u64,
    /// CPU time in microseconds.
    pub cpu: u64,
    /// CPU time that it could have spent, in microseconds; 0 if nobody knows.
    pub cpu_limit: u64,
    /// Bytes that may still be placed here; `None` if nobody knows.
    pub free_bytes: Option<u64>,
}

/// Whose rows are meant: those whose distribution column has this hash. Isolation can tell no closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// `pg_dist_colocation.colocationid`.
    pub colocation_id: i32,
    /// The hash of the distribution column.
    pub hash: i32,
}

/// What a tenant did in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantLoad {
    /// Which.
    pub tenant: Tenant,
    /// Where it is.
    pub node: Group,
    /// Queries.
    pub queries: u64,
    /// Those of them that write.
    pub writes: u64,
    /// CPU time in microseconds.
    pub cpu: u64,
    /// Bytes of its shard group: all of it is copied to isolate the tenant.
    pub shard_bytes: u64,
}

/// A shard group that has grown too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LargeShard {
    /// The lowest id among its shards.
    pub shard_id: i64,
    /// Where it is.
    pub node: Group,
    /// Its size.
    pub bytes: u64,
}

/// What is remembered between periods; bounded by the number of nodes and by the budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// End of the last period.
    pub seen: Option<Timestamp>,
    /// Periods in a row that a tenant was hot.
    pub hot: BTreeMap<Tenant, u32>,
    /// Periods in a row that a node was busy and no tenant of it was hot.
    pub busy: BTreeMap<Group, u32>,
    /// Since when a pinned tenant has been quiet.
    pub quiet: BTreeMap<Tenant, Timestamp>,
    /// When something was decided last that was, or would have been, carried out.
    pub acted: Option<Timestamp>,
    /// The tenants that [`Mode::Isolate`] would have isolated.
    pub imagined: BTreeMap<Tenant, Timestamp>,
}

/// What to do now, and why that and no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The one thing to do; in [`Mode::Observe`] the one that would be done.
    pub action: Option<Action>,
    /// The hot tenants, the hottest first.
    pub hot: Vec<Hot>,
    /// What should be done and is not.
    pub refused: Vec<Refused>,
    /// When the cooldown ends, if something would be done without it.
    pub cooling_until: Option<Timestamp>,
}

/// A hot tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hot {
    /// Which.
    pub tenant: Tenant,
    /// Where it is.
    pub node: Group,
    /// Its part of what the node does, in percent.
    pub share: u32,
    /// Periods in a row.
    pub periods: u32,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Action {
    /// The tenant gets a shard group of its own on another node, and is pinned there.
    Isolate {
        /// Which.
        tenant: Tenant,
        /// Where it is.
        from: Group,
        /// Where it is to be.
        to: Group,
    },
    /// The shard group is split in two.
    Split {
        /// The lowest id among its shards.
        shard_id: i64,
        /// Where it is.
        node: Group,
    },
    /// A node has too much to do and no tenant is to blame: the shards are to be spread by load.
    Spread {
        /// The node.
        node: Group,
    },
    /// The tenant has been quiet for long: its shard group is one like the others again.
    Release {
        /// Which.
        tenant: Tenant,
    },
}

/// Something that should be done and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// For the sake of this tenant; `None` for a large shard group.
    pub tenant: Option<Tenant>,
    /// Why not.
    pub reason: Reason,
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
pub enum Reason {
    /// [`Policy::max_isolated`].
    #[error("as many tenants are isolated as may be; release one, or raise maxIsolated")]
    Budget,
    /// [`Policy::max_shard_groups`].
    #[error("there are as many shards as may be: every split costs connections and planning time")]
    TooManyShards,
    /// It would be too much for every node, even one that did nothing else.
    #[error(
        "it is more than any worker can do: give the workers more CPU, or read it from standbys; to move it would help nobody"
    )]
    TooHot,
    /// No node can take it besides what it does.
    #[error("no other worker has so much CPU time and room to spare; add a worker, or dedicate one")]
    NoHeadroom,
}
