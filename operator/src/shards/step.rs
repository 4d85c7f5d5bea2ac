//! What the controller can do to the database: one change each, and safe to repeat.

use super::heat::actions::{Author, Called, Outcome};
use super::observed::{End, RunningMove};
use super::rebalance::{MovePlan, Pin};
use super::strategy::Strategy;
use crate::condition::{self, SCHEMA_DISTRIBUTED};
use crate::heat::Tenant;
use crate::names::Group;

mod words;

/// The operator's everyday role.
pub const OPERATOR_ROLE: &str = "dialog_operator";
/// The role of dialog-api, which owns the database and the tables.
pub const API_ROLE: &str = "dialog_api";

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Create `dialog_operator`, or give it back what it needs.
    CreateOperatorRole {
        /// Whose server.
        group: Group,
    },
    /// Create `dialog_api`. On the coordinator it may not log in yet, so that dialog-api cannot meet a database that is
    /// about to get Citus.
    CreateApiRole {
        /// Whose server.
        group: Group,
    },
    /// Create the database `dialog`, owned by `dialog_api`.
    CreateDatabase {
        /// Whose server.
        group: Group,
    },
    /// Make `dialog_api` the owner of the database again.
    SetDatabaseOwner {
        /// Whose server.
        group: Group,
    },
    /// Create the extension citus in the database `dialog`.
    CreateExtension {
        /// Whose server.
        group: Group,
    },
    /// Create the schema `dialog_operator` on the coordinator, with the tables in which the operator keeps what it has seen
    /// of load and sizes.
    CreateOwnTables,
    /// Take back an `ALTER SYSTEM` of a setting that is declared elsewhere.
    ResetSetting {
        /// Whose server.
        group: Group,
        /// The setting.
        name: String,
    },
    /// Let `dialog_api` log in.
    AllowLogin {
        /// Whose server.
        group: Group,
    },
    /// Register the coordinator under its address.
    SetCoordinatorHost,
    /// Register a worker under its address.
    AddNode {
        /// The worker.
        group: Group,
    },
    /// Activate a registered node that Citus does not use.
    ActivateNode {
        /// The node.
        group: Group,
    },
    /// Write a node's right address in the place of another that leads to the same server, or to none.
    UpdateNode {
        /// The node.
        group: Group,
        /// Its row in `pg_dist_node`.
        node_id: i32,
    },
    /// Give a node its row in `pg_dist_node` back: somebody deleted it, and the catalogs still place shards there, or it
    /// is the coordinator. A worker is activated next.
    RestoreNode {
        /// The node.
        group: Group,
        /// Citus' number of its group, under which the shards are placed.
        group_id: i32,
    },
    /// Send a copy of the catalogs to a node that has none.
    SyncMetadata {
        /// The node.
        group: Group,
    },
    /// Take a node that holds no shard out of the catalogs.
    RemoveNode {
        /// The node.
        group: Group,
    },
    /// Forget what is to be taken away on a node that is no longer registered: its records make moves fail.
    ForgetCleanup {
        /// Citus' number of the node's group.
        group_id: i32,
    },
    /// Take away what moves and splits have left behind.
    CleanUp,
    /// Say whether new shards may be placed on a node.
    SetShouldHaveShards {
        /// The node.
        group: Group,
        /// Whether they may.
        value: bool,
    },
    /// Copy a table whole to every node.
    CreateReferenceTable {
        /// The table.
        table: String,
        /// Whether it holds rows; copying them takes as long as there are many.
        holds_rows: bool,
    },
    /// Copy the reference tables to the nodes that lack them. Takes as long as the tables are large.
    ReplicateReferenceTables,
    /// Cut an empty table into shards.
    DistributeTable(Distribution),
    /// Cut a table that holds rows into shards while it is written to. Takes as long as the table is large.
    DistributeConcurrently(Distribution),
    /// Move the shards that cover one range of one colocation group. Takes as long as they are large.
    MoveShard {
        /// The lowest id among them.
        shard_id: i64,
        /// Where they are.
        from: Group,
        /// Where they go.
        to: Group,
    },
    /// Cut the shards of one range of one colocation group, and put each part on a node. Takes as long as they are large.
    SplitShard(Split),
    /// Write down that a tenant is to get a shard group of its own, because the resource says so: an action from then on.
    BeginIsolation {
        /// Whose.
        tenant: Tenant,
        /// What it is called.
        name: String,
        /// Where it is.
        from: Group,
        /// Where it is to be.
        to: Group,
        /// Where the rest of its shard group goes.
        rest: Option<Group>,
        /// Who says so.
        why: String,
    },
    /// Write down where a tenant's shard group belongs.
    SetPin {
        /// Whose, and where.
        pin: Pin,
        /// What the tenant is called.
        called: Called,
        /// Who has asked for it.
        author: Author,
    },
    /// Write down that a tenant's shard group belongs on another node, as its own leaves.
    Retarget {
        /// Whose, and where.
        pin: Pin,
        /// Where it was.
        from: Group,
        /// What the tenant is called.
        called: Called,
        /// Who has asked for its pin.
        author: Author,
    },
    /// Forget where a tenant's shard group belongs: it is one like the others again.
    RemovePin {
        /// Whose.
        tenant: Tenant,
        /// What it is called.
        called: Called,
        /// Who says so.
        why: String,
    },
    /// Tell Citus' own rebalancer where tenants are pinned.
    SetStrategy {
        /// What it is told.
        strategy: Strategy,
        /// Whether it goes by that where nobody says by what.
        default: bool,
    },
    /// Take that away.
    DropStrategy,
    /// Write down what became of an action.
    EndAction {
        /// Its number in `dialog_operator.actions`.
        id: i64,
        /// What became of it.
        outcome: Outcome,
        /// Why it was not done.
        note: Option<String>,
    },
    /// End what does not get on: a move, a split, or a step that spreads tables. All but a split are planned again.
    CancelMove {
        /// The server process on the coordinator.
        pid: i32,
        /// The session's name, so that nobody else is cancelled.
        application: String,
        /// Whether its statement or the session is ended.
        end: End,
    },
}

/// How a table is cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distribution {
    /// The table.
    pub table: String,
    /// The column whose hash decides the shard.
    pub column: String,
    /// Which tables it lies beside.
    pub beside: Beside,
}

/// How the shards of one range are cut.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Split {
    /// Number of the action that asks for it.
    pub action: i64,
    /// The lowest id among the shards.
    pub shard_id: i64,
    /// Where they are.
    pub from: Group,
    /// The last hash of each part but the last.
    pub points: Vec<i32>,
    /// Where the parts go, in order.
    pub nodes: Vec<Group>,
    /// Whether writers wait meanwhile: quick, and needs nothing. Otherwise they go on, and no part may stay on its node.
    pub blocking: bool,
}

impl Split {
    /// What begins the purpose of a session that splits.
    pub const PURPOSE: &str = "split ";
}

/// How the topology lock is held while a step is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Not at all.
    Nothing,
    /// Together with others that do not get in each other's way.
    Shared,
    /// By nobody else.
    Alone,
}

/// Which tables a table's shards lie beside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Beside {
    /// None yet: it begins a colocation group with this many shards.
    Nothing {
        /// Shards of the new group.
        shard_count: i32,
        /// Nodes that get none of them, although they may hold some. A table with rows cannot keep off them: what lands
        /// there is moved.
        apart: Vec<Group>,
    },
    /// Those of this table's colocation group.
    Table(String),
}

/// Makes the list of all kinds and what tells the kind of a step from one list of variants: one that is missing there does not
/// compile.
macro_rules! kinds {
    ($($variant:ident),* $(,)?) => {
        /// Every kind of step.
        pub const KINDS: [&str; [$(stringify!($variant)),*].len()] = [$(stringify!($variant)),*];

        impl Step {
            /// The kind, for metrics and Events: one of [`KINDS`].
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => stringify!($variant),)*
                }
            }
        }
    };
}

kinds! {
    CreateOperatorRole,
    CreateApiRole,
    CreateDatabase,
    SetDatabaseOwner,
    CreateExtension,
    CreateOwnTables,
    ResetSetting,
    AllowLogin,
    SetCoordinatorHost,
    AddNode,
    ActivateNode,
    UpdateNode,
    RestoreNode,
    SyncMetadata,
    RemoveNode,
    ForgetCleanup,
    CleanUp,
    SetShouldHaveShards,
    CreateReferenceTable,
    ReplicateReferenceTables,
    DistributeTable,
    DistributeConcurrently,
    MoveShard,
    SplitShard,
    BeginIsolation,
    SetPin,
    Retarget,
    RemovePin,
    SetStrategy,
    DropStrategy,
    EndAction,
    CancelMove,
}

impl Step {
    /// Whether it takes as long as the data is large.
    #[must_use]
    pub fn is_long(&self) -> bool {
        matches!(
            self,
            Self::DistributeConcurrently(_)
                | Self::ReplicateReferenceTables
                | Self::CreateReferenceTable { holds_rows: true, .. }
                | Self::MoveShard { .. }
                | Self::SplitShard(_)
        )
    }

    /// Whether there are shards after it that were not there before it.
    #[must_use]
    pub fn makes_shards(&self) -> bool {
        matches!(self, Self::DistributeTable(_) | Self::DistributeConcurrently(_) | Self::SplitShard(_))
    }

    /// Whether afterwards shards are on other nodes than before, or nodes are reached differently.
    #[must_use]
    pub fn changes_map(&self) -> bool {
        self.makes_shards()
            || matches!(
                self,
                Self::MoveShard { .. }
                    | Self::AddNode { .. }
                    | Self::ActivateNode { .. }
                    | Self::UpdateNode { .. }
                    | Self::RestoreNode { .. }
                    | Self::SyncMetadata { .. }
                    | Self::RemoveNode { .. }
            )
    }

    /// How the session that performs it holds the topology lock.
    #[must_use]
    pub fn hold(&self) -> Hold {
        match self {
            Self::MoveShard { .. } => Hold::Shared,
            // The lock is held by the very move; or there is no database yet to hold it in.
            Self::CancelMove { .. }
            | Self::CreateOperatorRole { group: Group::Coordinator }
            | Self::CreateApiRole { group: Group::Coordinator }
            | Self::CreateDatabase { group: Group::Coordinator } => Hold::Nothing,
            _ => Hold::Alone,
        }
    }

    /// What the session that performs it is for, as it is written into the session's name.
    #[must_use]
    pub fn purpose(&self) -> String {
        match self {
            Self::MoveShard { shard_id, from, to } => RunningMove::purpose(*shard_id, *from, *to),
            // The server cuts names after 63 bytes.
            Self::SplitShard(split) => format!("{}{} {}", Split::PURPOSE, split.shard_id, split.from),
            step => step.to_string(),
        }
    }

    /// Its number among the moves of `plan`, if it is one of them.
    #[must_use]
    pub fn number_in(&self, plan: &MovePlan) -> Option<u32> {
        let Self::MoveShard { shard_id, from, to } = self else { return None };
        plan.number_of(*shard_id, *from, *to)
    }

    /// The condition that is false because of it when it fails.
    #[must_use]
    pub fn condition(&self) -> &'static str {
        match self {
            Self::CreateOperatorRole { .. }
            | Self::CreateApiRole { .. }
            | Self::CreateDatabase { .. }
            | Self::SetDatabaseOwner { .. }
            | Self::CreateExtension { .. }
            | Self::ResetSetting { .. }
            | Self::AllowLogin { .. } => condition::CITUS_AVAILABLE,
            Self::SetCoordinatorHost
            | Self::AddNode { .. }
            | Self::ActivateNode { .. }
            | Self::UpdateNode { .. }
            | Self::RestoreNode { .. }
            | Self::SyncMetadata { .. }
            | Self::ForgetCleanup { .. }
            | Self::SetShouldHaveShards { .. } => condition::METADATA_SYNCED,
            Self::RemoveNode { .. } => condition::SCALE_IN_BLOCKED,
            Self::CreateOwnTables
            | Self::SplitShard(_)
            | Self::BeginIsolation { .. }
            | Self::SetPin { .. }
            | Self::Retarget { .. }
            | Self::RemovePin { .. }
            | Self::SetStrategy { .. }
            | Self::DropStrategy
            | Self::EndAction { .. } => condition::HOT_TENANT,
            Self::MoveShard { .. } | Self::CancelMove { .. } | Self::CleanUp => condition::BALANCED,
            Self::CreateReferenceTable { .. }
            | Self::ReplicateReferenceTables
            | Self::DistributeTable(_)
            | Self::DistributeConcurrently(_) => SCHEMA_DISTRIBUTED,
        }
    }
}
