//! What has to be so before a shard moves, or reference tables are copied: a pure function, with a reason and a remedy for each thing that is not.

use std::collections::BTreeSet;

use crate::condition::first_of;
use crate::names::Group;
use crate::shards::observed::{Change, Facts, Member, Transaction, end_of_prepared};
use crate::shards::rebalance::Move;
use crate::shards::settings;
use crate::shards::world::World;

/// Owners of tables that one colocation group is taken to have at least: a move needs a slot, a sender and an apply worker for
/// each.
const OWNERS: i64 = 2;
/// A transaction that has written is waited for by the move, up to this age in seconds; an older one is waited for
/// before, where nothing else is held up.
const OLD_TRANSACTION: i64 = 60;

/// Something that is not as a move or a copy needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// For programs.
    pub reason: &'static str,
    /// For people: what, where, and what to do.
    pub message: String,
}

impl Check {
    /// Whether it stands in the way of copying while nobody writes, too, which needs no logical replication.
    #[must_use]
    pub fn keeps_everybody(&self) -> bool {
        ["NodeUnreachable", "TableChanging"].contains(&self.reason)
    }
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
    // On every node: what comes to a server without it could not leave that again, and its restart is near.
    let decodes = |group: &Group| {
        let facts = world.observed.facts(*group);
        facts.is_none_or(|facts| settings::is_met(&facts.settings, settings::WAL_LEVEL))
    };
    let nodes = world.catalog().into_iter().flat_map(|catalog| catalog.groups(world.topology));
    if let Some(group) = nodes.collect::<BTreeSet<_>>().into_iter().find(|group| !decodes(group)) {
        let message = format!(
            "wal_level is not logical on {group}: the operator declares it in Patroni's dynamic configuration and restarts \
             the server; if that does not come, see the conditions Ready and Progressing"
        );
        fail("WalLevel", message);
    }
    let owners = world.catalog().and_then(|catalog| catalog.owners.get(&next.colocation_id)).copied();
    let owners = owners.unwrap_or_default().max(OWNERS);
    for group in BTreeSet::from([Group::Coordinator, next.from, next.to]) {
        let resources = world.observed.facts(group).and_then(|facts| facts.resources.as_ref());
        let mut changes = resources.into_iter().flat_map(|resources| &resources.changes);
        if let Some(change) = changes.find(|change| stands_in_the_way(change, next)) {
            let Change { table, pid, application, .. } = change;
            let message = format!(
                "{application} (pid {pid} on {group}) is changing {table}: let its transaction end, or SELECT \
                 pg_terminate_backend({pid}) there"
            );
            fail("TableChanging", message);
        }
    }
    match world.server(next.from) {
        Ok(facts) => source(world, next.from, facts, Needs { what: MOVE, owners }, &mut fail),
        Err(why) => fail("NodeUnreachable", why),
    }
    match world.server(next.to) {
        Ok(facts) => target(next.to, facts, Needs { what: MOVE, owners }, &mut fail),
        Err(why) => fail("NodeUnreachable", why),
    }
    checks
}

/// What stands in the way of copying the reference tables to the active nodes that lack them.
#[must_use]
pub fn copies(world: &World<'_>) -> Vec<Check> {
    let Some(catalog) = world.catalog() else { return Vec::new() };
    let has_all = |member: &&Member| catalog.copies.values().all(|nodes| nodes.contains(&member.group_id));
    let (sources, targets): (Vec<&Member>, Vec<&Member>) =
        catalog.members.iter().filter(|member| member.active).partition(has_all);
    // As Citus chooses.
    let source_of_all = sources.into_iter().min_by_key(|member| &member.endpoint);
    let group = |member: &Member| world.topology.group(&member.endpoint);
    let targets: Vec<Group> = targets.into_iter().filter_map(group).collect();
    let mut checks = Vec::new();
    let mut fail = |reason, message| checks.push(Check { reason, message });
    if !catalog.uncopyable.is_empty() {
        let tables = catalog.uncopyable.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let nodes = targets.iter().map(Group::to_string).collect::<Vec<_>>();
        let message = format!(
            "logical replication cannot follow {tables}: give each a primary key or a REPLICA IDENTITY, and none may be \
             UNLOGGED; until then no reference table is copied to {}, and no shard moves",
            first_of(&nodes)
        );
        fail("NoReplicaIdentity", message);
    }
    let needs = Needs { what: "a copy of reference tables", owners: OWNERS };
    if let Some(group) = source_of_all.and_then(group)
        && let Some(facts) = world.observed.facts(group)
    {
        source(world, group, facts, needs, &mut fail);
    }
    for group in targets {
        if let Some(facts) = world.observed.facts(group) {
            target(group, facts, needs, &mut fail);
        }
    }
    checks
}

/// What a move is called.
const MOVE: &str = "a move";

/// What is to be done, and for how many owners of tables.
#[derive(Clone, Copy)]
struct Needs {
    what: &'static str,
    owners: i64,
}

/// Whether what is changed is part of what moves.
fn stands_in_the_way(change: &Change, next: &Move) -> bool {
    change.colocation_id == next.colocation_id && change.shard_id.is_none_or(|shard| shard == next.shard_id)
}

fn source(
    world: &World<'_>,
    group: Group,
    facts: &Facts,
    Needs { what, owners }: Needs,
    fail: &mut impl FnMut(&'static str, String),
) {
    let Some(resources) = &facts.resources else { return };
    if resources.free_slots < owners {
        let message = format!(
            "{group} has {} replication slots free and {what} needs {owners}: drop slots that nobody uses \
             (pg_replication_slots, pg_drop_replication_slot)",
            resources.free_slots
        );
        fail("NoReplicationSlot", message);
    }
    if resources.free_senders < owners {
        let message = format!(
            "{group} has {} WAL senders free and {what} needs {owners}: see pg_stat_replication for who has them, \
             and end what is not needed",
            resources.free_senders
        );
        fail("NoWalSender", message);
    }
    if let Some(Check { reason, message }) = old_writer(world, group, what) {
        fail(reason, message);
    }
}

/// A transaction on `group`'s server that has written and has been open for long: `what` copies from there waits for it.
#[must_use]
pub fn old_writer(world: &World<'_>, group: Group, what: &str) -> Option<Check> {
    let resources = world.observed.facts(group)?.resources.as_ref()?;
    let old = |writer: &&Transaction| writer.seconds > OLD_TRANSACTION && !is_of_a_move(world, writer);
    let writer = resources.writers.iter().find(old)?;
    let (who, remedy) = owner(world, writer);
    let seconds = writer.seconds;
    let message = format!(
        "{who} on {group} has written and is open for {seconds} s, and {what} waits for it: {remedy}"
    );
    Some(Check { reason: "LongTransaction", message })
}

/// Whose transaction it is, and how it is ended without loss.
fn owner(world: &World<'_>, writer: &Transaction) -> (String, String) {
    let Transaction { pid, name, .. } = writer;
    if *pid == 0 {
        let who = format!("the prepared transaction {name}");
        return (who, end_of_prepared(name));
    }
    let origin = gpid(name).and_then(|(node_id, pid)| {
        let mut members = world.catalog()?.members.iter();
        let member = members.find(|member| i64::from(member.node_id) == node_id)?;
        Some((world.topology.group(&member.endpoint)?, pid))
    });
    match origin {
        Some((node, pid)) => (
            format!("a transaction that came through {node} (pid {pid} there)"),
            format!("let it end, or SELECT pg_terminate_backend({pid}) on {node}"),
        ),
        None => (
            format!("a transaction of {name} (pid {pid})"),
            format!("let it end, or SELECT pg_terminate_backend({pid}) there"),
        ),
    }
}

/// The node and the process that a session works for, if another node's server has opened it: its name is
/// `citus_internal gpid=` and a number of the node, ten digits of which are the process.
fn gpid(name: &str) -> Option<(i64, i64)> {
    const PROCESSES: i64 = 10_000_000_000;
    let gpid: i64 = name.strip_prefix("citus_internal gpid=")?.parse().ok()?;
    Some((gpid / PROCESSES, gpid % PROCESSES))
}

/// Whether a transaction belongs to a move that is under way.
fn is_of_a_move(world: &World<'_>, writer: &Transaction) -> bool {
    let operations = || world.catalog().into_iter().flat_map(|catalog| &catalog.operations);
    let of = |(_, pid)| operations().any(|operation| i64::from(operation.pid) == pid);
    gpid(&writer.name).is_some_and(of)
}

fn target(
    group: Group,
    facts: &Facts,
    Needs { what, owners }: Needs,
    fail: &mut impl FnMut(&'static str, String),
) {
    let Some(resources) = &facts.resources else { return };
    if resources.free_appliers < owners {
        let message = format!(
            "{group} has {} logical replication workers free and {what} needs {owners}: see pg_stat_subscription for \
             who has them, and drop subscriptions that are not needed",
            resources.free_appliers
        );
        fail("NoReplicationWorker", message);
    }
    if resources.free_workers < owners {
        let message = format!(
            "{group} has {} background workers free and {what} needs {owners}: see pg_stat_activity for who has them, \
             and end what is not needed",
            resources.free_workers
        );
        fail("NoBackgroundWorker", message);
    }
}
