//! What has to be so before a shard moves: a pure function, with a reason and a remedy for each thing that is not.

use crate::names::Group;
use crate::shards::observed::{Change, Facts, Transaction};
use crate::shards::rebalance::Move;
use crate::shards::settings;
use crate::shards::world::World;

/// Owners of tables that one colocation group may have: a move needs a slot, a sender and an apply worker for each.
const OWNERS: i64 = 2;
/// A transaction that has written is waited for by the move, up to this age in seconds; an older one is waited for
/// before, where nothing else is held up.
const OLD_TRANSACTION: i64 = 60;

/// Something that is not as a move needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// For programs.
    pub reason: &'static str,
    /// For people: what, where, and what to do.
    pub message: String,
}

/// What stands in the way of `next` now; disks aside, which the planner looks at.
#[must_use]
pub fn checks(world: &World<'_>, next: &Move) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut fail = |reason, message| checks.push(Check { reason, message });
    let unfollowable = world.catalog().and_then(|catalog| catalog.unfollowable.get(&next.colocation_id));
    if let Some(tables) = unfollowable {
        let tables = tables.join(", ");
        fail(
            "NoReplicaIdentity",
            format!(
                "logical replication cannot follow {tables}: give each a primary key or a REPLICA IDENTITY, and none may be \
                 UNLOGGED; until then no shard of its colocation group can be moved"
            ),
        );
    }
    let changes = world.catalog().into_iter().flat_map(|catalog| &catalog.changes);
    if let Some(change) = changes.into_iter().find(|change| change.colocation_id == next.colocation_id) {
        let Change { table, pid, application, .. } = change;
        let message = format!(
            "{application} (pid {pid} on the coordinator) is changing {table}: let its transaction end, or SELECT \
             pg_terminate_backend({pid})"
        );
        fail("TableChanging", message);
    }
    match world.server(next.from) {
        Ok(facts) => source(world, next.from, facts, &mut fail),
        Err(why) => fail("NodeUnreachable", why),
    }
    match world.server(next.to) {
        Ok(facts) => target(next.to, facts, &mut fail),
        Err(why) => fail("NodeUnreachable", why),
    }
    checks
}

fn source(world: &World<'_>, group: Group, facts: &Facts, fail: &mut impl FnMut(&'static str, String)) {
    if !settings::is_met(&facts.settings, settings::WAL_LEVEL) {
        let message = format!(
            "wal_level is not logical on {group}: the operator declares it in Patroni's dynamic configuration and restarts \
             the server; if that does not come, see the conditions Ready and Progressing"
        );
        fail("WalLevel", message);
    }
    let Some(resources) = &facts.resources else { return };
    if resources.free_slots < OWNERS {
        let message = format!(
            "{group} has {} replication slots free and a move needs {OWNERS}: look for slots nobody uses in \
             pg_replication_slots, or raise max_replication_slots",
            resources.free_slots
        );
        fail("NoReplicationSlot", message);
    }
    if resources.free_senders < OWNERS {
        let message = format!(
            "{group} has {} WAL senders free and a move needs {OWNERS}: look at pg_stat_replication, or raise \
             max_wal_senders",
            resources.free_senders
        );
        fail("NoWalSender", message);
    }
    if let Some(writer) = &resources.oldest_writer
        && writer.seconds > OLD_TRANSACTION
        && !is_of_a_move(world, writer)
    {
        let Transaction { pid, name, seconds } = writer;
        let (who, remedy) = match pid {
            0 => (format!("the prepared transaction {name}"), "COMMIT or ROLLBACK PREPARED it".to_owned()),
            pid => {
                let who = format!("a transaction of {name} (pid {pid})");
                (who, format!("let it end, or SELECT pg_terminate_backend({pid}) there"))
            }
        };
        let message = format!(
            "{who} on {group} has written and is open for {seconds} s, and a move waits for it: {remedy}"
        );
        fail("LongTransaction", message);
    }
}

/// Whether a transaction belongs to a move that is under way: its name holds the process on the coordinator.
fn is_of_a_move(world: &World<'_>, writer: &Transaction) -> bool {
    // `citus_internal gpid=` and a number of the node, ten digits of which are the process.
    const PROCESSES: i64 = 10_000_000_000;
    let pid = writer.name.strip_prefix("citus_internal gpid=").and_then(|gpid| gpid.parse::<i64>().ok());
    let operations = || world.catalog().into_iter().flat_map(|catalog| &catalog.operations);
    pid.is_some_and(|gpid| operations().any(|operation| i64::from(operation.pid) == gpid % PROCESSES))
}

fn target(group: Group, facts: &Facts, fail: &mut impl FnMut(&'static str, String)) {
    let Some(resources) = &facts.resources else { return };
    if resources.free_appliers < OWNERS {
        let message = format!(
            "{group} has {} logical replication workers free and a move needs {OWNERS}: look at pg_stat_subscription, or \
             raise max_logical_replication_workers",
            resources.free_appliers
        );
        fail("NoReplicationWorker", message);
    }
    if resources.free_workers < OWNERS {
        let message = format!(
            "{group} has {} background workers free and a move needs {OWNERS}: look at pg_stat_activity for who has them, \
             or raise max_worker_processes",
            resources.free_workers
        );
        fail("NoBackgroundWorker", message);
    }
}
