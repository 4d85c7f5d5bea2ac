//! What is to be done about load and size: from a [`Policy`], a [`History`] and one [`Period`] to a [`Decision`], by a pure
//! function.
//!
//! A tenant is hot if it makes up a large share of what its worker does, long enough, on a worker that has something to
//! do. It gets a shard of its own on a worker that can bear it. There is no way back from a split but a rewrite of the
//! tables, so that everything here is slow to act: periods in a row, a cooldown after each action, a budget.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::api::{Amount, HotTenantsMode, ShardingSpec, ShareOf};
use crate::names::Group;
use crate::shards::rebalance::{Pin, Role, Strategy};

mod decide;
#[cfg(test)]
mod fixture;
mod history;
mod imagine;
mod measure;
mod place;
#[cfg(test)]
mod properties;
mod reason;
#[cfg(test)]
mod situations;
mod watch;

pub use decide::decide;
pub use history::{Acted, History, Imagined, Streak};
pub use measure::{Counters, median};
pub(crate) use place::retarget;
pub use reason::Reason;

/// A shard group of no more bytes is copied so quickly that nobody minds being kept from writing meanwhile.
pub const QUICK_BYTES: u64 = 16 << 20;

/// When something is done about a tenant. What is left out has the value of [`Policy::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// Whether what is decided is also done.
    pub mode: Mode,
    /// A tenant with this part of its worker's queries, writes or CPU time is hot, in percent.
    pub share_percent: u32,
    /// Nobody harms a node that spends no more of its CPU time than this, in percent.
    pub min_cpu_percent: u32,
    /// A tenant with fewer queries in a period is not, nor one with fewer writes for its share of writes.
    pub min_queries: u64,
    /// Periods that it has to be hot without a break; at least 1.
    pub consecutive_periods: u32,
    /// The least time between two isolations, between anything and what is done next that is none, and between the end of a
    /// tenant's pin and the next.
    pub cooldown: SignedDuration,
    /// Tenants that may have a shard of their own at the same time.
    pub max_isolated: usize,
    /// A pinned tenant that was quiet for so long is not pinned any more.
    pub release_after: SignedDuration,
    /// A larger shard group is split; `None` for never. Written as a quantity: `20Gi`.
    #[serde(rename = "maxShardSize", deserialize_with = "size")]
    pub max_shard_bytes: Option<u64>,
    /// Neither isolation nor split makes more shard groups than this.
    pub max_shard_groups: usize,
    /// What the planner of moves makes even: only [`Strategy::ByLoad`] relieves a worker that has too much to do.
    pub strategy: Strategy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Isolate,
            share_percent: 20,
            min_cpu_percent: 30,
            min_queries: 100,
            consecutive_periods: 3,
            cooldown: SignedDuration::from_hours(1),
            max_isolated: 8,
            release_after: SignedDuration::from_hours(7 * 24),
            max_shard_bytes: Some(20 << 30),
            max_shard_groups: 10_000,
            strategy: Strategy::BySize,
        }
    }
}

impl Policy {
    /// What the resource asks for.
    #[must_use]
    pub fn new(spec: &ShardingSpec) -> Self {
        let hot = &spec.hot_tenants;
        // The schema lets nothing else in than these numbers can hold.
        let number = |value: i32| usize::try_from(value).unwrap_or(0);
        let time = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        Self {
            mode: match hot.mode {
                HotTenantsMode::Off | HotTenantsMode::Observe => Mode::Observe,
                HotTenantsMode::Isolate => Mode::Isolate,
            },
            share_percent: u32::try_from(hot.share_percent).unwrap_or(0),
            min_cpu_percent: u32::try_from(hot.min_cpu_percent).unwrap_or(0),
            min_queries: u64::try_from(hot.min_queries).unwrap_or(0),
            consecutive_periods: u32::try_from(hot.consecutive_periods).unwrap_or(0),
            cooldown: time(hot.cooldown()),
            max_isolated: number(hot.max_isolated),
            release_after: time(hot.release_after()),
            max_shard_bytes: spec.max_shard_size.units(),
            max_shard_groups: number(hot.max_shard_groups),
            strategy: spec.rebalance.strategy.into(),
        }
    }
}

/// Bytes, written as a quantity.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(amount) = Option::<Amount>::deserialize(deserializer)? else { return Ok(None) };
    let bytes = amount.units();
    bytes
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("{:?} is no size: write 20Gi", amount.to_string())))
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
    /// The tenants that were seen, of those with a pinned shard all that the servers list, and of those that were hot also
    /// who did nothing, as far as that is known. Those of equal hash count as one.
    pub tenants: Vec<TenantLoad>,
    /// The tenants with a shard of their own, and where it belongs.
    pub pins: Vec<Pin>,
    /// The tenants about whom somebody has decided: the policy leaves them alone, pinned or not.
    #[serde(default)]
    pub held: Vec<Tenant>,
    /// Of the pinned tenants that were quiet so far, those that have no row any more.
    #[serde(default)]
    pub empty: Vec<Tenant>,
    /// Pinned tenants with a shard group of their own, and how many statements can have used that at most, by its server's
    /// counters of its tables, where these tell: whomever the server lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<(Tenant, u64)>,
    /// The shard groups above [`Policy::max_shard_bytes`].
    pub large: Vec<LargeShard>,
    /// Shard groups in the cluster.
    pub shard_groups: usize,
    /// Whether shards are being moved or split: nothing else is begun then.
    pub underway: bool,
    /// What the planner of moves could do now to even out load.
    #[serde(default)]
    pub relief: Relief,
    /// Whether what is split for its size alone has to wait for a window.
    #[serde(default)]
    pub splits_held: bool,
}

/// What the planner of moves could do to even out load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relief {
    /// It has shards to move, and may.
    #[default]
    Ready,
    /// It has, and has to wait: for a window, an approval, or somebody who asks for it.
    Held,
    /// No move would be worth it.
    Useless,
    /// It does not know yet what the shards have to do.
    Unmeasured,
}

/// What a node did in a period, and could have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLoad {
    /// What it is for.
    pub role: Role,
    /// Queries that it answered.
    pub queries: u64,
    /// Rows that it wrote, or its tenants' statements that write if these are more.
    pub writes: u64,
    /// CPU time in microseconds.
    pub cpu: u64,
    /// CPU time that it could have spent, in microseconds; 0 if nobody knows.
    pub cpu_limit: u64,
    /// Bytes that may still be placed here; `None` if nobody knows.
    pub free_bytes: Option<u64>,
    /// A tenant with no more queries than this may be missing from the period, which holds only so many; 0 if none is.
    pub unseen: u64,
    /// So many queries of a tenant, pinned or not, the server itself may not have counted, as it lists only so many tenants;
    /// 0 if none.
    #[serde(default)]
    pub unlisted: u64,
}

impl NodeLoad {
    /// Of a node of which nothing is known but what it is for.
    #[must_use]
    pub fn unknown(role: Role) -> Self {
        Self { role, queries: 0, writes: 0, cpu: 0, cpu_limit: 0, free_bytes: None, unseen: 0, unlisted: 0 }
    }
}

/// Whose rows are meant: those whose distribution column has this hash. Isolation can tell no closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// `pg_dist_colocation.colocationid`.
    pub colocation_id: i32,
    /// The hash of the distribution column.
    pub hash: i32,
}

impl Tenant {
    /// Binds it to a node.
    #[must_use]
    pub fn pin(self, node: Group) -> Pin {
        Pin { colocation_id: self.colocation_id, hash: self.hash, node }
    }
}

impl From<&Pin> for Tenant {
    fn from(pin: &Pin) -> Self {
        Self { colocation_id: pin.colocation_id, hash: pin.hash }
    }
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
    /// Those of them that write, however many rows each.
    pub writes: u64,
    /// CPU time in microseconds.
    pub cpu: u64,
    /// Bytes of its shard group: all of it is copied to isolate the tenant.
    pub shard_bytes: u64,
    /// Whether its shard group covers no other hash: then it is moved, and nothing is split.
    pub alone: bool,
}

/// A shard group that has grown too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LargeShard {
    /// `pg_dist_colocation.colocationid`.
    pub colocation_id: i32,
    /// The lowest id among its shards.
    pub shard_id: i64,
    /// Where it is.
    pub node: Group,
    /// Its size.
    pub bytes: u64,
    /// The hash in the middle of its rows, by [`median`]; `None` if they are all of one hash.
    pub median: Option<i32>,
    /// The tenant with most rows in it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heaviest: Option<Heaviest>,
}

/// The tenant with most rows in a shard group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heaviest {
    /// Which.
    pub tenant: Tenant,
    /// Its part of the rows, in percent.
    pub percent: u32,
}

/// What to do now, and why that and no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The one thing to do; in [`Mode::Observe`] the one that would be done.
    pub action: Option<Action>,
    /// The hot tenants, the hottest first.
    pub hot: Vec<Hot>,
    /// Pins to nodes that leave or have left, with the nodes that they are for now, in every mode. It is not an action: it
    /// costs nothing, and a node that leaves must not wait for a cooldown, nor in a cluster for the end of a period.
    pub retargeted: Vec<Pin>,
    /// What should be done and is not.
    pub refused: Vec<Refused>,
    /// When the cooldown ends, if something would be done without it.
    pub cooling_until: Option<Timestamp>,
    /// Whether a tenant would be isolated if no shards were being moved or split.
    #[serde(default)]
    pub urgent: bool,
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
    /// Of what.
    pub of: ShareOf,
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
        /// Where the rest of its shard group goes: a split under load must leave nothing on its source node. `None` if the
        /// rest has no other place, or if there is none because the tenant is alone.
        rest: Option<Group>,
    },
    /// The shard group is split in two, on other nodes.
    Split {
        /// Its tables': `pg_dist_colocation.colocationid`.
        colocation_id: i32,
        /// The lowest id among its shards.
        shard_id: i64,
        /// Where it is.
        from: Group,
        /// The last hash of the first half.
        at: i32,
        /// Where the halves are to be.
        to: [Group; 2],
    },
    /// A node has too much to do and no tenant is to blame: what the two have is to be spread between them by load.
    Spread {
        /// The node.
        from: Group,
        /// The one with most to spare.
        to: Group,
    },
    /// The tenant has been quiet for long: its shard group is one like the others again.
    Release {
        /// Which.
        tenant: Tenant,
    },
    /// The node that the tenant is pinned to leaves: it is pinned to another one. It is never decided, as it costs nothing:
    /// see [`Decision::retargeted`].
    Retarget {
        /// Which.
        tenant: Tenant,
        /// Where it was pinned.
        from: Group,
        /// Where it is pinned now.
        to: Group,
    },
}

impl Action {
    /// The kind, for programs.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Isolate { .. } => "Isolate",
            Self::Split { .. } => "Split",
            Self::Spread { .. } => "Spread",
            Self::Release { .. } => "Release",
            Self::Retarget { .. } => "Retarget",
        }
    }

    /// Whom it is about, if it is about one tenant.
    #[must_use]
    pub fn tenant(self) -> Option<Tenant> {
        match self {
            Self::Isolate { tenant, .. } | Self::Release { tenant } | Self::Retarget { tenant, .. } => {
                Some(tenant)
            }
            Self::Split { .. } | Self::Spread { .. } => None,
        }
    }
}

/// Something that should be done and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// For the sake of this tenant, or of a large shard group, or of a node.
    pub tenant: Option<Tenant>,
    /// The shard group that is too large.
    pub shard_id: Option<i64>,
    /// The node that has too much to do.
    pub node: Option<Group>,
    /// Why not.
    pub reason: Reason,
}

impl Refused {
    /// For a tenant's sake.
    fn tenant(tenant: Tenant, reason: Reason) -> Self {
        Self { tenant: Some(tenant), shard_id: None, node: None, reason }
    }

    /// For a large shard group's.
    fn shard(shard_id: i64, reason: Reason) -> Self {
        Self { tenant: None, shard_id: Some(shard_id), node: None, reason }
    }

    /// For a node's.
    fn node(node: Group, reason: Reason) -> Self {
        Self { tenant: None, shard_id: None, node: Some(node), reason }
    }
}
