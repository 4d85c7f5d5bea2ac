//! Which shard groups belong on which node: from a [`Layout`] and a [`Policy`] to a [`MovePlan`], by a pure function.
//!
//! A shard group is what moves together: the shards of all tables of one colocation group that cover the same range of
//! hashes. The plan is a value: it is printed, hashed, approved, and carried out as it stands.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use sha2::{Digest, Sha256};

use self::state::{Fate, State};
use crate::api::{RebalanceSpec, RebalanceStrategy, Threshold};
use crate::names::Group;

mod ready;
mod rest;
mod schedule;
mod search;
mod state;
mod table;
pub mod windows;

pub use rest::Overtaken;
pub use state::BASE_BYTES;
pub(super) use table::Bytes;

/// What is where, and where it may go. The order of the lists has no meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layout {
    /// The registered nodes. A shard group on a node that is not among them is taken to be out of reach.
    pub nodes: BTreeMap<Group, Node>,
    /// Every shard group of hash-distributed tables, once.
    pub groups: Vec<ShardGroup>,
    /// Hashes that are bound to a node.
    #[serde(default)]
    pub pins: Vec<Pin>,
}

/// Plans the moves that bring `layout` to what `policy` asks for.
///
/// The same layout gives the same plan, in whatever order its lists are; a layout in which every move of a plan was made
/// gives a plan without moves.
#[must_use]
pub fn plan(layout: &Layout, policy: &Policy) -> MovePlan {
    let mut state = State::new(layout, policy.strategy);
    let mut moves: Vec<Move> = Vec::new();
    loop {
        let mut wanted = state.clone();
        search::search(&mut wanted, policy);
        let wave = moves.last().map_or(0, |last| last.wave);
        let waiting = schedule::order(&state, &wanted);
        let next = schedule::schedule(&mut state, &wanted, waiting, policy, wave);
        let done = next.is_empty() || state.at == wanted.at;
        moves.extend(next);
        if done {
            for (step, number) in moves.iter_mut().zip(1..) {
                step.number = number;
            }
            let bytes = moves.iter().map(|step| step.bytes).fold(0, u64::saturating_add);
            return MovePlan {
                bytes,
                hash: hash(&moves),
                stuck: stuck(&wanted),
                over: shared(layout),
                spread: policy.spread(),
                moves,
            };
        }
        // No order of all moves makes each of them help: what is left is looked for again from here.
        state.settle();
    }
}

/// The nodes that hold their share.
fn shared(layout: &Layout) -> Vec<Group> {
    layout.nodes.iter().filter(|(_, node)| node.role == Role::Shared).map(|(group, _)| *group).collect()
}

/// What has to move and cannot.
fn stuck(state: &State) -> Vec<Stuck> {
    let stuck = |item: &state::Item| {
        let Fate::Stuck(obstacle) = item.fate else { return None };
        let ShardGroup { colocation_id, shard_id, node, bytes, .. } = item.group;
        Some(Stuck { colocation_id, shard_id, node, bytes, obstacle })
    };
    state.items.iter().filter_map(stuck).collect()
}

/// Names a list of moves; an empty one has no name. It is made of what is shown of each, so that anybody can make it of the
/// moves that were made.
fn hash(moves: &[Move]) -> String {
    if moves.is_empty() {
        return String::new();
    }
    let mut digest = Sha256::new();
    for Move { shard_id, from, to, .. } in moves {
        digest.update(format!("{shard_id} {from} {to}\n"));
    }
    // Half of it is short enough to be typed, and long enough to be no other's.
    digest.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What may be done with one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// What it is for.
    pub role: Role,
    /// Bytes that may still be placed here, the headroom to keep already taken off; `None` if nobody knows, which limits
    /// nothing.
    pub free_bytes: Option<u64>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It holds its share of the shard groups.
    Shared,
    /// It holds pinned shard groups, and nothing else.
    Dedicated,
    /// It has to end without any (`shouldhaveshards` is false).
    Draining,
    /// It cannot take part now: inactive, unreachable or out of sync. Nothing moves to it or from it.
    Unavailable,
}

/// The shards of one colocation group that cover one range of hashes, on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardGroup {
    /// `pg_dist_colocation.colocationid`.
    pub colocation_id: i32,
    /// The lowest id among its shards: naming it moves them all.
    pub shard_id: i64,
    /// The hashes it covers.
    pub range: HashRange,
    /// Where it is.
    pub node: Group,
    /// Bytes of all its shards, indexes and TOAST included.
    pub bytes: u64,
    /// How much it is used, in a unit that is the same for all groups; counts for [`Strategy::ByLoad`] only.
    #[serde(default)]
    pub load: u64,
}

/// A range of hashes, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HashRange {
    /// The lowest hash.
    pub min: i32,
    /// The highest hash.
    pub max: i32,
}

impl HashRange {
    /// Whether `hash` is one of them.
    #[must_use]
    pub fn contains(self, hash: i32) -> bool {
        (self.min..=self.max).contains(&hash)
    }
}

/// Binds the shard group that covers a hash to a node. It is kept where it is while that node cannot take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pin {
    /// The colocation group.
    pub colocation_id: i32,
    /// A hash of the shard group.
    pub hash: i32,
    /// Where it belongs.
    pub node: Group,
}

/// How the shard groups are to be spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// What is to be even.
    pub strategy: Strategy,
    /// How far a node may be from the average before anything moves, in thousandths of the average.
    pub threshold: u32,
    /// Moves at the same time in the whole cluster; at least 1.
    pub max_parallel_moves: u32,
    /// Moves at the same time that a node takes part in, as source or target; at least 1.
    pub moves_per_node: u32,
    /// What is worth a move.
    pub goal: Goal,
}

impl Policy {
    /// What the resource asks for. A node takes part in one move at a time: a second copy beside the first would only make
    /// both slower, and the node with them.
    #[must_use]
    pub fn new(spec: &RebalanceSpec, goal: Goal) -> Self {
        Self {
            strategy: spec.strategy.into(),
            threshold: spec.threshold.thousandths(),
            max_parallel_moves: u32::try_from(spec.max_parallel_moves).unwrap_or(1),
            moves_per_node: 1,
            goal,
        }
    }

    /// What of it makes a spread another one.
    #[must_use]
    pub fn spread(&self) -> Spread {
        Spread { strategy: self.strategy, threshold: self.threshold }
    }
}

/// How even the shard groups are to be, and in what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// What is to be even.
    pub strategy: Strategy,
    /// As [`Policy::threshold`].
    pub threshold: u32,
}

impl Spread {
    /// Whether what is even by the one is so by the other. Numbers are evened out whatever the threshold is.
    #[must_use]
    pub fn is_same(self, other: Self) -> bool {
        self.strategy == other.strategy
            && (self.strategy == Strategy::ByCount || self.threshold == other.threshold)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threshold = Threshold::of_thousandths(self.threshold);
        write!(f, "{:?} with a threshold of {}", self.strategy, threshold.as_str())
    }
}

/// What is to be even between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Bytes, each shard group counted as [`BASE_BYTES`] more, so that empty ones are spread too.
    BySize,
    /// The number of shard groups.
    ByCount,
    /// The load, each shard group counted as a small amount more, so that idle ones are spread too.
    ByLoad,
}

impl From<RebalanceStrategy> for Strategy {
    fn from(strategy: RebalanceStrategy) -> Self {
        match strategy {
            RebalanceStrategy::BySize => Self::BySize,
            RebalanceStrategy::ByCount => Self::ByCount,
            RebalanceStrategy::ByLoad => Self::ByLoad,
        }
    }
}

impl From<Strategy> for RebalanceStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::BySize => Self::BySize,
            Strategy::ByCount => Self::ByCount,
            Strategy::ByLoad => Self::ByLoad,
        }
    }
}

/// What is worth a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Only what has to be: draining nodes are emptied, pinned shard groups are brought home.
    Settle,
    /// That, and an even spread.
    Balance,
}

/// One shard group from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// Its place in the plan, counted from 1. It keeps it when others of the plan were made.
    pub number: u32,
    /// `pg_dist_colocation.colocationid`.
    pub colocation_id: i32,
    /// The shard to name to `citus_move_shard_placement`.
    pub shard_id: i64,
    /// The hashes that move.
    pub range: HashRange,
    /// Where it is.
    pub from: Group,
    /// Where it goes.
    pub to: Group,
    /// Bytes to copy.
    pub bytes: u64,
    /// What for.
    pub cause: Cause,
    /// Moves of one wave, counted from 1, can run at the same time; one of a later wave may begin before the wave is over: see
    /// [`MovePlan::ready`].
    pub wave: u32,
}

/// What a move is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The source has to end empty, or is dedicated to others.
    Drain,
    /// The shard group is pinned to the target.
    Pin,
    /// The spread gets more even.
    Balance,
}

/// The moves to make, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MovePlan {
    /// The moves, by wave. Each of them leaves the spread no worse than the one before it.
    pub moves: Vec<Move>,
    /// Bytes of all moves.
    pub bytes: u64,
    /// Names the list of moves as the plan was made: the first 16 hexadecimal digits of the SHA-256 of a line
    /// `SHARD FROM TO` for each. Equal lists have equal hashes, whatever the sizes are by now. Empty if there are no moves.
    pub hash: String,
    /// Shard groups that have to move and cannot, and why.
    pub stuck: Vec<Stuck>,
    /// The nodes that the shard groups are spread over, in order.
    pub over: Vec<Group>,
    /// What was to be even, and how far.
    pub spread: Spread,
}

/// A shard group that has to move and cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stuck {
    /// `pg_dist_colocation.colocationid`.
    pub colocation_id: i32,
    /// Its lowest shard id.
    pub shard_id: i64,
    /// Where it is.
    pub node: Group,
    /// Its size.
    pub bytes: u64,
    /// Why it stays.
    pub obstacle: Obstacle,
}

/// Why a shard group stays where it should not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum Obstacle {
    /// There is no node that may hold it.
    NoTarget,
    /// Every node that may hold it has less room than it needs; the roomiest has this much.
    NoRoom {
        /// Bytes that may still be placed on the roomiest node when its turn comes.
        largest: u64,
    },
    /// It is pinned to a node that cannot take it: retarget the pin.
    PinnedTo {
        /// The node it is pinned to.
        node: Group,
    },
}

#[cfg(test)]
mod properties;
