//! What somebody else's splits have left, and what a split leaves whose servers ended in the middle of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::{BALANCED, SCALE_IN_BLOCKED};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use testbed::postgres::Shutdown;
use tokio_postgres::Client;

use crate::acting::{
    DIALOG, assert_nothing_is_left, covering, decide, hash, isolating, isolation, make_large, outcome,
};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, condition, eventually, few_shards};

/// What a split needs, with the names that Citus gives, and no note of any of it.
const LEFT: [&str; 5] = [
    "SELECT pg_create_logical_replication_slot('citus_shard_split_slot_9_10_4711', 'pgoutput')",
    "CREATE PUBLICATION citus_shard_split_publication_9_10_4711",
    "CREATE ROLE citus_shard_split_subscription_role_10_4711 SUPERUSER",
    "CREATE SUBSCRIPTION citus_shard_split_subscription_10_4711 CONNECTION 'dbname=nowhere'
     PUBLICATION nothing WITH (connect = false, slot_name = NONE, enabled = false, create_slot = false)",
    "CREATE TABLE public.messages_999999 (LIKE public.messages)",
];

/// What takes that away, as the condition says.
const REMEDIES: [&str; 5] = [
    "SELECT pg_drop_replication_slot('citus_shard_split_slot_9_10_4711')",
    "DROP PUBLICATION \"citus_shard_split_publication_9_10_4711\"",
    "DROP ROLE \"citus_shard_split_subscription_role_10_4711\"",
    "ALTER SUBSCRIPTION \"citus_shard_split_subscription_10_4711\" DISABLE; ALTER SUBSCRIPTION \
     \"citus_shard_split_subscription_10_4711\" SET (slot_name = NONE); DROP SUBSCRIPTION \
     \"citus_shard_split_subscription_10_4711\"",
    "DROP TABLE public.messages_999999",
];

#[tokio::test]
async fn what_somebody_else_has_left_is_named_and_left_and_in_nobodys_way() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let wanted = isolating(3);
    world.serve(&wanted).await?;
    assert_eq!(condition(&world.round(&wanted).await?, BALANCED).1, "Balanced");
    let client = world.ask_client(Group::Worker(1)).await?;
    for statement in LEFT {
        client.batch_execute(&format!("SET citus.enable_ddl_propagation = off; {statement}")).await?;
    }
    let (status, reason, message) = condition(&world.round(&wanted).await?, BALANCED);
    assert_eq!((status, reason), ("True", "LeftBehind"), "{message}");
    assert!(message.contains("on worker-1 ") && message.contains("; and 2 more"), "{message}");

    // An action is not kept by it, neither its split nor its end.
    let small = hash(&world, DIALOG).await?;
    let id = decide(&world, isolation(&world, small).await?).await?;
    world.settle(&wanted).await?;
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{:?}", act.note);

    // Each is there until somebody does what is said; all are named sooner or later.
    for remedy in REMEDIES {
        let (_, reason, before) = condition(&world.round(&wanted).await?, BALANCED);
        assert_eq!(reason, "LeftBehind", "{before}");
        client.batch_execute(&format!("SET citus.enable_ddl_propagation = off; {remedy}")).await?;
    }
    let (_, reason, message) = condition(&world.round(&wanted).await?, BALANCED);
    assert_eq!(reason, "Balanced", "{message}");
    assert_nothing_is_left(&world, 3).await
}

/// The coordinator ends when parts of the shard are copied: parts, slots and publications are on the workers, and Citus has
/// noted all of them.
#[tokio::test]
async fn a_split_whose_coordinator_ends_is_made_anew_and_its_parts_are_nobodys_orphans() -> Result<()> {
    needs_citus!();
    let mut world = World::start(3)?;
    let wanted = isolating(3);
    world.serve(&wanted).await?;
    make_large(&world, DIALOG).await?;
    let large = hash(&world, DIALOG).await?;
    let source = covering(&world, large).await?.node;
    let writer = world.ask_client(source).await?;
    writer.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let id = decide(&world, isolation(&world, large).await?).await?;
    let mut operator = Operator::default();
    operator.until_held(&world, &wanted, source).await?;
    let noted = world.number(Group::Coordinator, "SELECT count(*) FROM pg_dist_cleanup").await?;
    ensure!(noted > 0, "nothing is there yet");
    let (_, reason, message) = condition(&operator.round(&world, &wanted).await?, BALANCED);
    assert_ne!(reason, "LeftBehind", "{message}");
    world.server(Group::Coordinator).stop(Shutdown::Immediate)?;
    world.server(Group::Coordinator).start()?;
    writer.batch_execute("ROLLBACK").await?;
    // Another operator goes on; what the first one has begun is gone.
    let mut next = Operator::default();
    next.settle(&world, &wanted, Duration::from_mins(3)).await?;
    let round = world.round(&wanted).await?;
    assert_eq!(condition(&round, BALANCED).1, "Balanced");
    let act = outcome(&round, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 2), "{:?}", act.note);
    assert_eq!(covering(&world, large).await?.range.min, large);
    assert_nothing_is_left(&world, 3).await
}

/// The coordinator's daemon is not to take anything away, so that the operator has to.
async fn without_daemon(workers: u32) -> Result<World> {
    let mut world = World::start(workers)?;
    world.server(Group::Coordinator).set_parameter("citus.defer_shard_delete_interval", "-1")?;
    world.serve(&few_shards(workers)).await?;
    Ok(world)
}

/// The lowest shard of `messages` that is placed on `group`.
async fn shard_on(world: &World, group: Group) -> Result<i64> {
    let port = world.topology().endpoint(group).map_or(0, |endpoint| endpoint.port);
    let statement = format!(
        "SELECT min(shardid) FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
         WHERE logicalrelid = 'public.messages'::regclass AND nodeport = {port}"
    );
    world.number(Group::Coordinator, &statement).await
}

/// Somebody who has read a shard where it is and does not end: nobody can take the table away meanwhile.
async fn reader(world: &World, group: Group, shard: i64) -> Result<Client> {
    let reader = world.ask_client(group).await?;
    reader.batch_execute(&format!("BEGIN; SELECT count(*) FROM public.messages_{shard}")).await?;
    Ok(reader)
}

/// Has two shards change places, so that nothing is to be moved afterwards. A move begins by taking away what earlier ones
/// have left, so that at least the second one leaves something.
async fn swap(world: &World) -> Result<[i64; 2]> {
    let shards = [shard_on(world, Group::Worker(0)).await?, shard_on(world, Group::Worker(1)).await?];
    for (shard, from, to) in [(shards[0], 0, 1), (shards[1], 1, 0)] {
        let node = |worker| {
            let port = world.topology().endpoint(Group::Worker(worker)).map_or(0, |endpoint| endpoint.port);
            format!("(SELECT nodeid FROM pg_dist_node WHERE nodeport = {port})")
        };
        let (from, to) = (node(from), node(to));
        let moved = format!("SELECT citus_move_shard_placement({shard}, {from}, {to}, 'block_writes')");
        world.ask(Group::Coordinator, &moved).await?;
    }
    Ok(shards)
}

const NOTED: &str = "SELECT count(*) FROM pg_dist_cleanup";

#[tokio::test]
async fn what_citus_cannot_take_away_is_named_until_it_can() -> Result<()> {
    needs_citus!();
    let mut world = without_daemon(2).await?;
    let wanted = few_shards(2);
    let reader = reader(&world, Group::Worker(0), shard_on(&world, Group::Worker(0)).await?).await?;
    let [read, renamed] = swap(&world).await?;
    let own = world.ask_client(Group::Worker(1)).await?;
    own.batch_execute(&format!(
        "SET citus.enable_ddl_propagation = off; SET citus.enable_manual_changes_to_shards = on;
         ALTER TABLE public.messages_{renamed} RENAME TO mine; CREATE VIEW public.messages_{renamed} AS SELECT 1"
    ))
    .await?;

    let mut operator = Operator::default();
    let round = operator.round(&world, &wanted).await?;
    ensure!(round.failed.is_empty(), "{:?}", round.failed);
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("True", "CleanupBlocked"), "{message}");
    let notes = "SELECT record_id FROM pg_dist_cleanup WHERE object_name LIKE '%messages_";
    let record = async |shard: i64| world.number(Group::Coordinator, &format!("{notes}{shard}'")).await;
    for (shard, node, why) in [
        (read, "worker-0", "canceling statement due to lock timeout"),
        (renamed, "worker-1", "is not a table"),
    ] {
        let named =
            format!("the table public.messages_{shard} on {node} (record {}): ", record(shard).await?);
        let (_, rest) = message.split_once(&named).with_context(|| message.clone())?;
        ensure!(rest.split(';').next().is_some_and(|said| said.contains(why)), "{named}: {rest}");
    }
    // Nothing else is kept by these.
    assert_eq!(world.number(Group::Coordinator, NOTED).await?, 2);
    // It is not tried again at once, and is named all the same.
    let round = operator.round(&world, &wanted).await?;
    assert!(round.partly.is_empty() && round.performed.is_empty(), "{:?}", round.partly);
    assert_eq!(condition(&round, BALANCED).1, "CleanupBlocked");

    // One does as the message says for each.
    reader.batch_execute("ROLLBACK").await?;
    let forget = format!("DELETE FROM pg_dist_cleanup WHERE record_id = {}", record(renamed).await?);
    assert!(message.contains("DELETE FROM pg_dist_cleanup WHERE record_id = "), "{message}");
    world.ask(Group::Coordinator, &forget).await?;
    operator.settle(&world, &wanted, Duration::from_mins(1)).await?;
    assert_eq!(condition(&operator.round(&world, &wanted).await?, BALANCED).1, "Balanced");
    let there = async |group: Group, table: &str| {
        world.number(group, &format!("SELECT (to_regclass('public.{table}') IS NOT NULL)::int::int8")).await
    };
    let shard = format!("messages_{read}");
    assert_eq!(there(Group::Worker(0), &shard).await?, 0, "nobody reads it any more");
    assert_eq!(there(Group::Worker(1), &shard).await?, 1, "it has moved here");
    assert_eq!(there(Group::Worker(1), "mine").await?, 1, "it is somebody's own");

    // A worker that is away keeps what is there until it is back.
    own.batch_execute(&format!("DROP VIEW public.messages_{renamed}; DROP TABLE mine")).await?;
    swap(&world).await?;
    world.server(Group::Worker(1)).stop(Shutdown::Immediate)?;
    let away = operator.round(&world, &wanted).await?;
    ensure!(away.failed.is_empty(), "{:?}", away.failed);
    assert_ne!(condition(&away, BALANCED).1, "Balanced");
    world.server(Group::Worker(1)).start()?;
    operator.settle(&world, &wanted, Duration::from_mins(1)).await?;
    assert_eq!(condition(&operator.round(&world, &wanted).await?, BALANCED).1, "Balanced");
    assert_eq!(world.number(Group::Coordinator, NOTED).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_worker_that_waits_for_what_is_in_use_there_says_so_and_leaves_afterwards() -> Result<()> {
    needs_citus!();
    let world = without_daemon(2).await?;
    let shard = shard_on(&world, Group::Worker(1)).await?;
    let reader = reader(&world, Group::Worker(1), shard).await?;
    let fewer = few_shards(1);
    let mut operator = Operator::default();
    eventually("the worker cannot leave", async || {
        let round = operator.round(&world, &fewer).await?;
        ensure!(round.failed.is_empty() && operator.failed.is_empty(), "{:?}", round.failed);
        let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
        if reason != "CleanupBlocked" {
            return Ok(false);
        }
        ensure!(status == "True" && message.contains("worker-1 has no shards any more"), "{message}");
        let (_, reason, message) = condition(&round, BALANCED);
        ensure!(reason == "CleanupBlocked", "{reason}: {message}");
        ensure!(message.contains(&format!("public.messages_{shard} on worker-1")), "{message}");
        Ok(true)
    })
    .await?;
    reader.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &fewer, Duration::from_mins(1)).await?;
    let registered = "SELECT count(*) FROM pg_dist_node";
    assert_eq!(world.number(Group::Coordinator, registered).await?, 2);
    assert_eq!(world.number(Group::Coordinator, NOTED).await?, 0);
    Ok(())
}
