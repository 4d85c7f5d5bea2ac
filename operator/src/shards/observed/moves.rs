//! What the servers say about moving shards: what runs, how far it is, and what it needs.

use std::fmt;

use jiff::Timestamp;

use crate::names::Group;
use crate::pg::{APPLICATION, identifier, literal};
use crate::shards::step::{Split, Step};

/// A session of the operator that moves data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The server process.
    pub pid: i32,
    /// Its name in `pg_stat_activity`.
    pub application: String,
}

impl Operation {
    /// The name of the session that moves a shard group.
    #[must_use]
    pub fn name_of(shard_id: i64, from: Group, to: Group) -> String {
        format!("{APPLICATION}: {}", RunningMove::purpose(shard_id, from, to))
    }

    /// The lowest shard id of what it splits, and where that is; `None` if it does something else.
    #[must_use]
    pub fn split(&self) -> Option<(i64, Group)> {
        let purpose = self.application.strip_prefix(APPLICATION)?.strip_prefix(": ")?;
        let (shard_id, from) = purpose.strip_prefix(Split::PURPOSE)?.split_once(' ')?;
        Some((shard_id.parse().ok()?, Group::parse(from)?))
    }

    /// Whether it spreads a table, or copies the reference tables: all that takes long and neither moves nor splits shards does.
    #[must_use]
    pub fn spreads(&self) -> bool {
        RunningMove::of(self).is_none() && self.split().is_none()
    }
}

/// A step that spreads a table, or copies the reference tables, and is running. Citus itself shows nothing of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningSpread {
    /// Its session on the coordinator.
    pub operation: Operation,
    /// When its statement began.
    pub since: Timestamp,
    /// The nodes that may have a part in it.
    pub nodes: Vec<Group>,
    /// What each of these shows of it: any change is progress.
    pub progress: Vec<String>,
    /// One of its sessions waits for a lock. What is copied or followed meanwhile is by others.
    pub waits: bool,
}

/// A split that is running, and how far it is. Citus itself shows nothing of splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningSplit {
    /// The server process on the coordinator.
    pub pid: i32,
    /// Its name in `pg_stat_activity`.
    pub application: String,
    /// The lowest shard id of what it splits.
    pub shard_id: i64,
    /// Where that is.
    pub from: Group,
    /// When its statement began.
    pub since: Timestamp,
    /// What it is doing, in the words that Citus has for moves, for example `Copying Data`.
    pub phase: &'static str,
    /// The nodes that may have a part in it.
    pub nodes: Vec<Group>,
    /// What each of these shows of it: any change is progress.
    pub progress: Vec<String>,
    /// How often a change that it follows could not be made. In a split that will come to its end there is none.
    pub errors: i64,
    /// One of its sessions waits for a lock. What its targets are sent meanwhile is what others write, and no progress.
    pub waits: bool,
    /// It copies while writers wait: the time that its statement may take is limited, however far it gets.
    pub blocking: bool,
}

/// A move that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningMove {
    /// The server process on the coordinator.
    pub pid: i32,
    /// The lowest shard id of what moves.
    pub shard_id: i64,
    /// Where it comes from.
    pub from: Group,
    /// Where it goes.
    pub to: Group,
}

impl RunningMove {
    /// What a session that moves a shard group is for, as it is written into its name. The server cuts names after 63
    /// bytes, so this is short.
    #[must_use]
    pub fn purpose(shard_id: i64, from: Group, to: Group) -> String {
        format!("move {shard_id} {from}>{to}")
    }

    /// The step that makes it.
    #[must_use]
    pub fn step(&self) -> Step {
        let Self { shard_id, from, to, .. } = *self;
        Step::MoveShard { shard_id, from, to }
    }

    /// The move that `operation` carries out, if it is one.
    #[must_use]
    pub fn of(operation: &Operation) -> Option<Self> {
        let purpose = operation.application.strip_prefix(APPLICATION)?.strip_prefix(": move ")?;
        let (shard_id, route) = purpose.split_once(' ')?;
        let (from, to) = route.split_once('>')?;
        Some(Self {
            pid: operation.pid,
            shard_id: shard_id.parse().ok()?,
            from: Group::parse(from)?,
            to: Group::parse(to)?,
        })
    }
}

/// A change of the topology that somebody else has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A job in `pg_dist_background_job` that has not ended.
    Job {
        /// Its number, for `citus_job_cancel`.
        id: i64,
        /// What it says it does.
        description: String,
    },
    /// A statement that somebody runs by hand.
    Statement {
        /// The server process on the coordinator.
        pid: i32,
        /// The session's name.
        application: String,
    },
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job { id, description } => {
                write!(
                    f,
                    "Citus' background job {id} ({description}) is running; SELECT citus_job_cancel({id}) ends it"
                )
            }
            Self::Statement { pid, application } => {
                write!(
                    f,
                    "{application} (pid {pid} on the coordinator) is moving or splitting shards by hand; SELECT \
                     pg_terminate_backend({pid}) there ends it"
                )
            }
        }
    }
}

/// A session that changes a distributed table, or a shard: a move would wait for it, or each for the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table's colocation group.
    pub colocation_id: i32,
    /// The lowest id among the shards that move together with the one that is changed; `None` where it is the table.
    pub shard_id: Option<i64>,
    /// The table, or the shard.
    pub table: String,
    /// The server process.
    pub pid: i32,
    /// The session's name.
    pub application: String,
}

/// What Citus has still to take away on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleanup {
    /// Citus' number of the node's group.
    pub group_id: i32,
    /// Rows of `pg_dist_cleanup`, those of operations under way included.
    pub records: i64,
}

/// How far one shard's move is, by `get_rebalance_progress()`. A move of colocated shards has one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The session of the move, on the coordinator.
    pub pid: i32,
    /// The shard.
    pub shard_id: i64,
    /// Bytes on the source.
    pub source_bytes: i64,
    /// Bytes on the target so far.
    pub target_bytes: i64,
    /// Where the source's log is.
    pub source_lsn: Option<String>,
    /// Where the target is in it.
    pub target_lsn: Option<String>,
    /// What Citus calls the phase, for example `Copying Data`.
    pub phase: String,
}

/// What is free on the volume of a server that takes part in a move: the source keeps its log for it, the target takes the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The session of the move, on the coordinator.
    pub pid: i32,
    /// The server.
    pub group: Group,
    /// Bytes free on the volume.
    pub free_bytes: i64,
    /// Its size in bytes.
    pub total_bytes: i64,
}

impl Room {
    /// Whether so little is free that a server could stop for it before anybody has done anything: less than a twentieth, and
    /// less than 2 GiB.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.free_bytes < (self.total_bytes / 20).min(2 << 30)
    }
}

/// A move whose target follows a replication slot that its source does not have: changes on the source since the copy will
/// never arrive, and the move waits for them for ever. A source that was switched over or restored has no such slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSlot {
    /// The session of the move, on the coordinator.
    pub pid: i32,
    /// The slot.
    pub slot: String,
}

/// Something that a move or a split has left on a server and that Citus does not know of: nobody takes it away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Orphan {
    /// What it is.
    pub kind: OrphanKind,
    /// Its name; of a table with its schema, as it is written in SQL.
    pub name: String,
}

/// What an orphan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrphanKind {
    /// A replication slot: the server keeps its log for it.
    Slot,
    /// A subscription.
    Subscription,
    /// A publication.
    Publication,
    /// The role of a subscription.
    Role,
    /// A table with the name of a shard that is not placed there.
    Shard,
}

impl fmt::Display for Orphan {
    /// What it is, and what takes it away.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.kind {
            OrphanKind::Slot => {
                let quoted = literal(name);
                write!(f, "the replication slot {name} (SELECT pg_drop_replication_slot({quoted}))")
            }
            OrphanKind::Subscription => {
                let quoted = identifier(name);
                write!(
                    f,
                    "the subscription {name} (ALTER SUBSCRIPTION {quoted} DISABLE; ALTER SUBSCRIPTION {quoted} SET (slot_name = \
                     NONE); DROP SUBSCRIPTION {quoted})"
                )
            }
            OrphanKind::Publication => {
                write!(f, "the publication {name} (DROP PUBLICATION {})", identifier(name))
            }
            OrphanKind::Role => write!(f, "the role {name} (DROP ROLE {})", identifier(name)),
            OrphanKind::Shard => write!(
                f,
                "the table {name}, which has the name of a shard and is none (look at it first, then DROP TABLE {name})"
            ),
        }
    }
}

/// What moves need on one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes free on the volume of the data directory.
    pub free_bytes: i64,
    /// Size of that volume.
    pub total_bytes: i64,
    /// Replication slots that nobody has.
    pub free_slots: i64,
    /// WAL senders that nobody has.
    pub free_senders: i64,
    /// Logical replication workers that nobody has.
    pub free_appliers: i64,
    /// Background workers that nobody has, of which logical replication workers are some.
    pub free_workers: i64,
    /// The oldest transactions that have written, oldest first: a move waits for them to end before it begins to copy.
    pub writers: Vec<Transaction>,
    /// Changes of distributed tables and of shards that are under way in sessions that began on this server.
    pub changes: Vec<Change>,
    /// Shards of distributed tables that are physically here; asked of nodes that are to leave only.
    pub stored_shards: Option<StoredShards>,
}

/// Tables on a server that are named like shards of distributed tables, whatever the catalogs place there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredShards {
    /// How many there are.
    pub count: i64,
    /// The first of them with their schemas, as they are written in SQL: no more than [`StoredShards::NAMED`].
    pub first: Vec<String>,
}

impl StoredShards {
    /// Tables that are named.
    pub const NAMED: i64 = 3;
}

impl fmt::Display for StoredShards {
    /// What is said of a server that stores them where the catalogs place nothing on it, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, first } = self;
        let listed = first.join("; ");
        write!(
            f,
            "its server stores tables that are named like shards and that Citus has no note of there ({count}): {listed}"
        )?;
        let named = i64::try_from(first.len()).unwrap_or(i64::MAX);
        if let more @ 1.. = count.saturating_sub(named) {
            write!(f, "; and {more} more")?;
        }
        f.write_str(
            ". Look at them: what they hold may be nowhere else. Whoever needs none of it runs on that server SET \
             citus.enable_manual_changes_to_shards = on, and DROP TABLE for each: then it leaves",
        )
    }
}

/// A transaction of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The server process; of a prepared transaction 0.
    pub pid: i32,
    /// The session's name, or the identifier of a prepared transaction.
    pub name: String,
    /// Its age in seconds.
    pub seconds: i64,
}

/// How the prepared transaction with the identifier `gid` is ended without loss.
#[must_use]
pub fn end_of_prepared(gid: &str) -> String {
    // Citus' own may be committed already where it began: whoever ends one by hand loses a part of it.
    if gid.starts_with("citus_") {
        return "Citus ends it as it began; SELECT recover_prepared_transactions() on the node that began it has it done now. \
                Never COMMIT or ROLLBACK PREPARED it by hand"
            .to_owned();
    }
    let quoted = gid.replace('\'', "''");
    format!(
        "COMMIT PREPARED '{quoted}' or ROLLBACK PREPARED '{quoted}' there, in its database and as its owner"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_read_from_the_name_that_it_was_given() {
        let (from, to) = (Group::Coordinator, Group::Worker(98));
        let name = |purpose: &str| Operation { pid: 7, application: format!("{APPLICATION}: {purpose}") };
        let operation = name(&RunningMove::purpose(9_999_999_999, from, to));
        assert!(operation.application.len() <= 63, "the server would cut {}", operation.application);
        let expected = RunningMove { pid: 7, shard_id: 9_999_999_999, from, to };
        assert_eq!(RunningMove::of(&operation), Some(expected));
        for other in
            ["move", "move x worker-0>worker-1", "move 1 worker-0", "distribute messages by dialog_id"]
        {
            assert_eq!(RunningMove::of(&name(other)), None, "{other}");
        }
        let hand = Operation { pid: 7, application: "psql".to_owned() };
        assert_eq!((RunningMove::of(&hand), hand.split()), (None, None));
        assert_eq!(operation.split(), None);
        let split = Split {
            action: 5,
            shard_id: 9_999_999_999,
            from: Group::Worker(98),
            points: vec![7],
            nodes: vec![from, to],
            blocking: false,
        };
        let split = name(&Step::SplitShard(split).purpose());
        assert!(split.application.len() <= 63, "the server would cut {}", split.application);
        assert_eq!(
            (split.split(), RunningMove::of(&split)),
            (Some((9_999_999_999, Group::Worker(98))), None)
        );
    }
}
