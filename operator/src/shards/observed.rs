//! What the servers said: one value, read at one time, from which everything is decided.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::heat::Heat;
use super::heat::actions::Kept;
use super::rebalance::{HashRange, MovePlan};
use super::retire::Stay;
use super::round::Failure;
use super::step::Step;
use super::strategy;
use super::topology::Topology;
use crate::api::PlanStatus;
use crate::names::Group;
use crate::pg::Endpoint;

mod moves;
mod words;

pub use moves::{
    Change, Cleanup, Foreign, LostSlot, Operation, Orphan, OrphanKind, Progress, Resources, Room,
    RunningMove, RunningSplit, RunningSpread, StoredShards, Transaction, end_of_prepared,
};

/// The cluster as its servers describe it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Every group that is wanted or registered.
    pub nodes: BTreeMap<Group, Node>,
    /// Citus' catalogs on the coordinator; `None` while they cannot be read, for whatever reason.
    pub catalog: Option<Catalog>,
    /// The tables of the policy that exist in the coordinator's database, by name.
    pub tables: BTreeMap<String, Table>,
    /// The groups that have servers in Kubernetes, asked for or not, registered or not. One that is being deleted is not
    /// among them.
    pub existing: BTreeSet<Group>,
    /// Why those of them stay that are not asked for and not registered, by their own servers' word.
    pub staying: BTreeMap<Group, Stay>,
    /// The last sizes of shard groups on servers that do not answer now: who is away for a moment is not empty.
    pub away: BTreeMap<Group, BTreeMap<i64, i64>>,
    /// Moves without progress for longer than is allowed, each with what was found out about it.
    pub stalls: Vec<Stall>,
    /// Moves that have failed since one was made, the last one first, and why: put off, or being tried again.
    pub failed_moves: Vec<(Step, Failure)>,
    /// The plan that is being carried out, as it was made. What is left of it goes on as long as the world allows.
    pub held: Option<MovePlan>,
    /// The plan that the status shows: what an operator that is started anew carries on with.
    pub shown: Option<PlanStatus>,
    /// The last plan that could not be carried on with.
    pub overtaken: Option<Dropped>,
    /// What is known of load; `None` before it was looked at.
    pub heat: Option<Heat>,
    /// What was decided about load and is being done, and where tenants are pinned.
    pub kept: Kept,
    /// The hashes of the tenants that the resource names, or why a value has none.
    pub hashes: Hashes,
    /// Steps that take long, failed lately, and are put off: what does not need them goes first.
    pub deferred: Vec<Step>,
    /// What Citus could not take away when it was asked last, why, and what to do; `None` as soon as nothing is noted.
    pub uncleaned: Option<String>,
    /// Why what was done cannot be noted as ended, as it was said last: what it has left is not gone.
    pub unended: Option<String>,
    /// When others were last seen to keep what is to be done about load from being done, by the coordinator's clock.
    pub held_up: Option<Timestamp>,
}

impl Observed {
    /// What is known about `group`'s server, if it answered.
    #[must_use]
    pub fn facts(&self, group: Group) -> Option<&Facts> {
        match self.nodes.get(&group)? {
            Node::Up(facts) => Some(facts),
            Node::Down(_) => None,
        }
    }

    /// Takes over the sizes that were measured `before`, and what else was looked for with them, where they were not measured
    /// this time.
    pub fn keep_sizes(&mut self, before: &Self) {
        for (group, node) in &mut self.nodes {
            if let (Node::Up(facts), Some(known)) = (&mut *node, before.facts(*group)) {
                facts.strays = facts.strays.take().or_else(|| known.strays.clone());
            }
            let measured = before.facts(*group).and_then(|facts| facts.sizes.as_ref());
            let Some(sizes) = measured.or(before.away.get(group)) else { continue };
            match node {
                Node::Up(facts) => drop(facts.sizes.get_or_insert_with(|| sizes.clone())),
                Node::Down(_) => drop(self.away.insert(*group, sizes.clone())),
            }
        }
    }

    /// Takes over what Citus could not take away `before`: that holds until it can, or until nothing is noted any more.
    pub fn keep_uncleaned(&mut self, before: &Self) {
        let noted = self.catalog.as_ref().is_none_or(|catalog| !catalog.cleanup.is_empty());
        self.uncleaned = before.uncleaned.clone().filter(|_| noted);
        self.unended = before.unended.clone().filter(|_| noted);
    }

    /// Notes that others keep what is to be done about load from being done, if they do now: as of now, or of `before`.
    pub fn keep_held_up(&mut self, before: Option<&Self>, now: bool) {
        let known = before.and_then(|before| before.held_up).filter(|_| {
            // Who could not read what is open does not know.
            self.kept.now.is_none() || self.kept.open().is_some()
        });
        self.held_up = if now { self.kept.now.or(known) } else { known };
    }

    /// Bytes of each shard group that was measured, by its lowest shard id, wherever it was measured.
    ///
    /// A shard group that has just moved was measured where it was.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<i64, i64> {
        let up = self.nodes.keys().filter_map(|group| self.facts(*group)?.sizes.as_ref());
        // What is known of those that answer is newer.
        self.away.values().chain(up).flatten().map(|(shard, bytes)| (*shard, *bytes)).collect()
    }
}

/// Hashes by what was hashed; a value that is none of its type has a reason instead.
pub type Hashes = BTreeMap<Name, Result<i32, String>>;

/// A value of a distribution column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The type of the column.
    pub type_name: String,
    /// The value.
    pub tenant: String,
}

/// A plan that could not be carried on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Its name.
    pub hash: String,
    /// In what the world is not any more as it was made for.
    pub why: String,
}

/// One group's primary.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// It did not answer, or not as a primary; the sentence says why.
    Down(String),
    /// It answered.
    Up(Box<Facts>),
}

/// What one server says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// PostgreSQL's version for people, for example `15.20`.
    pub version: String,
    /// Whether this was read inside the database `dialog`; otherwise nothing is known about what is in it.
    pub inside: bool,
    /// The role `dialog_operator`.
    pub operator: Option<Role>,
    /// The role `dialog_api`.
    pub api: Option<Role>,
    /// The owner of the database `dialog`; `None` while there is no such database.
    pub database_owner: Option<String>,
    /// Citus on this server.
    pub citus: Citus,
    /// The settings that the operator asks for, as they are in force; absent where the server does not know one.
    pub settings: BTreeMap<String, String>,
    /// The parameters that the resource declares, by name.
    pub parameters: BTreeMap<String, Parameter>,
    /// Settings of the operator's that somebody changed by `ALTER SYSTEM`.
    pub overrides: Vec<String>,
    /// Bytes of the shard groups placed here, by their lowest shard ids; `None` while there are no catalogs to tell, or
    /// nobody asked.
    pub sizes: Option<BTreeMap<i64, i64>>,
    /// Citus' number of this server's group, by its own word; 0 before it was ever registered, and on the coordinator.
    pub local_group: i32,
    /// The operator's own tables are here; looked for on the coordinator only.
    pub own_tables: bool,
    /// What moves and splits have left here and nobody will take away, tables aside.
    pub orphans: Vec<Orphan>,
    /// Tables among it; `None` while nobody looked, which is done when shards are measured.
    pub strays: Option<Vec<Orphan>>,
    /// What moves need here; `None` where Citus is not at work.
    pub resources: Option<Resources>,
}

impl Facts {
    /// What moves and splits have left here.
    pub fn left_behind(&self) -> impl Iterator<Item = &Orphan> {
        self.orphans.iter().chain(self.strays.iter().flatten())
    }

    /// Bytes of all shards placed here, if they were measured.
    #[must_use]
    pub fn bytes(&self) -> Option<i64> {
        Some(self.sizes.as_ref()?.values().sum())
    }
}

/// What became of a declared parameter on one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameter {
    /// The server has a parameter of this name.
    pub known: bool,
    /// The value in the server's configuration files that counts.
    pub written: Option<String>,
    /// Why the server would not take that value now.
    pub error: Option<String>,
    /// The value is taken at the next start.
    pub restart_pending: bool,
}

/// A role's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// It may log in.
    pub login: bool,
    /// It may do anything.
    pub superuser: bool,
}

/// How far Citus is on one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Citus {
    /// The version of the extension's files in the image.
    pub available: Option<String>,
    /// Whether the server loaded the library at its start.
    pub preloaded: bool,
    /// The version of the extension in the database `dialog`.
    pub installed: Option<String>,
    /// The release for people, for example `13.2.2`; known once the extension is installed.
    pub release: Option<String>,
}

/// What Citus' catalogs on the coordinator say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// `pg_dist_node`.
    pub members: Vec<Member>,
    /// `pg_dist_placement` of distributed tables, one entry for what moves together.
    pub placements: Vec<Placement>,
    /// Operations that move data and are running, started by this operator or one before it.
    pub operations: Vec<Operation>,
    /// The processes of those that have, or wait for, the lock that keeps all waiting who write to their shard group.
    pub blocking: BTreeSet<i32>,
    /// Changes of the topology that somebody else has started.
    pub foreign: Vec<Foreign>,
    /// What Citus has still to take away, by node.
    pub cleanup: Vec<Cleanup>,
    /// Owners of the distributed tables of each colocation group.
    pub owners: BTreeMap<i32, i64>,
    /// Distributed tables that logical replication cannot follow: names by colocation group.
    pub unfollowable: BTreeMap<i32, Vec<String>>,
    /// The nodes that have a copy of each reference table, by Citus' group numbers: whether the policy names the table or not,
    /// no shard moves while an active node has none.
    pub copies: BTreeMap<String, BTreeSet<i32>>,
    /// Those of them that logical replication cannot follow: Citus copies none while one of these lacks a copy.
    pub uncopyable: BTreeSet<String>,
    /// Tables that are placed on workers without being cut by a hash, by Citus' number of the node: nobody moves these.
    pub immovable: BTreeMap<i32, Vec<String>>,
    /// How far the moves are; empty while none is running.
    pub progress: Vec<Progress>,
    /// The processes of the moves that build an index on their target, and wait for nobody.
    pub building: BTreeSet<i32>,
    /// What is free where the moves come from and go to, of servers that answer.
    pub rooms: Vec<Room>,
    /// Moves whose target follows a replication slot that is not there.
    pub lost_slots: Vec<LostSlot>,
    /// The splits that are running, and how far they are.
    pub splits: Vec<RunningSplit>,
    /// The steps that spread tables and are running, and how far they are.
    pub spreads: Vec<RunningSpread>,
    /// What Citus' own rebalancer goes by.
    pub strategies: strategy::Seen,
}

impl Catalog {
    /// The row of `group`, if it is registered under its address.
    #[must_use]
    pub fn member(&self, group: Group, topology: &Topology) -> Option<&Member> {
        let endpoint = topology.endpoint(group)?;
        self.members.iter().find(|member| member.endpoint == *endpoint)
    }

    /// The groups that are registered under their addresses.
    pub fn groups(&self, topology: &Topology) -> impl Iterator<Item = Group> {
        self.members.iter().filter_map(|member| topology.group(&member.endpoint))
    }

    /// The moves that are running, by this operator or one before it.
    pub fn moves(&self) -> impl Iterator<Item = RunningMove> {
        self.operations.iter().filter_map(RunningMove::of)
    }

    /// Records of what is still to be taken away on the node with Citus' number `group_id`.
    #[must_use]
    pub fn cleanup_of(&self, group_id: i32) -> i64 {
        self.cleanup.iter().filter(|record| record.group_id == group_id).map(|record| record.records).sum()
    }
}

/// One row of `pg_dist_node`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "they are the columns of the catalog")]
pub struct Member {
    /// `nodeid`, by which moves name a node.
    pub node_id: i32,
    /// `nodename` and `nodeport`.
    pub endpoint: Endpoint,
    /// Citus' number of the group; 0 is the coordinator.
    pub group_id: i32,
    /// Citus uses it.
    pub active: bool,
    /// It is to have a copy of the catalogs.
    pub has_metadata: bool,
    /// It has a copy of the catalogs, and the copy is in sync.
    pub synced: bool,
    /// New shards may be placed here.
    pub should_have_shards: bool,
}

/// The shards of one colocation group that cover one range of hashes, on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// `pg_dist_colocation.colocationid`.
    pub colocation_id: i32,
    /// Citus' number of the node's group.
    pub group_id: i32,
    /// The lowest id among the shards.
    pub shard_id: i64,
    /// The hashes.
    pub range: HashRange,
    /// Shards: one per table of the colocation group.
    pub shards: i64,
}

/// What does not get on, a move, a split, or a step that spreads a table: without progress for longer than is allowed, in the way of
/// writers for longer than they are to wait, or so that it cannot end any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The server process on the coordinator.
    pub pid: i32,
    /// Its name in `pg_stat_activity`.
    pub application: String,
    /// How long there has been no progress, or writers have waited for it, in seconds.
    pub seconds: u64,
    /// All who write to its shard group wait for it.
    pub blocks_writers: bool,
    /// What kind of thing keeps it.
    pub kind: StallKind,
    /// What it waits for, and what to look at.
    pub cause: String,
    /// How it is to be ended now; `None` while it is given time to end after it was asked to.
    pub end: Option<End>,
}

impl Stall {
    /// The session that does not get on.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation { pid: self.pid, application: self.application.clone() }
    }
}

/// What keeps a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallKind {
    /// Somebody's lock or open transaction.
    Blocked,
    /// The subscription has no process that applies what comes.
    NoWorker,
    /// What comes cannot be applied.
    ReplicationFailed,
    /// The source has lost the replication slot that the target follows.
    SlotLost,
    /// A volume is full.
    DiskFull,
    /// A volume will soon be full, and is not yet.
    DiskFilling,
    /// A server that takes part does not answer, or does not reach another.
    Unreachable,
    /// A statement that asks for it fails.
    NotDiagnosed,
    /// Nothing that is known.
    Unknown,
}

impl StallKind {
    /// The reason, for programs.
    #[must_use]
    fn reason(self) -> &'static str {
        match self {
            Self::Blocked => "MoveBlocked",
            Self::NoWorker => "NoReplicationWorker",
            Self::ReplicationFailed => "ReplicationFailed",
            Self::SlotLost => "ReplicationSlotLost",
            Self::DiskFull | Self::DiskFilling => "DiskFull",
            Self::Unreachable => "NodeUnreachable",
            Self::NotDiagnosed => "DiagnosisFailed",
            Self::Unknown => "Stalled",
        }
    }
}

/// How somebody else's session is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Its statement is cancelled.
    Cancel,
    /// It is terminated, because a cancellation had no effect.
    Terminate,
}

/// A table of the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// It is an ordinary table; Citus distributes nothing else here.
    pub ordinary: bool,
    /// The type of the column that the policy names; `None` if the table has no such column.
    pub column_type: Option<String>,
    /// It has a primary key, or another replica identity that logical replication can use.
    pub replica_identity: bool,
    /// How Citus spreads it.
    pub spread: Spread,
}

/// How Citus spreads a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// Not at all; and whether it holds rows.
    #[default]
    PlainEmpty,
    /// Not at all, and it holds rows.
    PlainWithRows,
    /// By the hash of a column.
    Hash {
        /// The column.
        column: String,
        /// The colocation group.
        colocation_id: i32,
    },
    /// Whole, to every node.
    Reference,
    /// In a way that the policy has no word for.
    Other,
}
