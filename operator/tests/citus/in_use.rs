//! What moves and splits leave and Citus has noted, and cannot take away: somebody uses it, or its node is away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::{BALANCED, SCALE_IN_BLOCKED};
use dialog_operator::names::Group;
use dialog_operator::shards::act::Error;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::observe::Sizes;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use k8s_openapi::jiff::SignedDuration;
use testbed::postgres::Shutdown;
use tokio_postgres::Client;

use crate::acting::DIALOG;
use crate::detour::{Cut, Detour};
use crate::heat::Operator as Watcher;
use crate::isolation::{decide, hash, isolating, isolation, outcome};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, condition, eventually, few_shards};

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
    operator.look(&world, &wanted).await?;
    world.server(Group::Worker(1)).stop(Shutdown::Immediate)?;
    let count = world.number(Group::Coordinator, NOTED).await?;
    ensure!(count > 0, "nothing is to be taken away there");
    let away = operator.round(&world, &wanted).await?;
    ensure!(away.failed.is_empty() && away.partly.is_empty(), "{:?}, {:?}", away.failed, away.partly);
    let (status, reason, message) = condition(&away, BALANCED);
    assert_eq!((status, reason), ("True", "CleanupBlocked"), "{message}");
    let said = format!("; {count} objects that moves or splits have left there");
    assert!(message.contains("worker-1 does not answer") && message.contains(&said), "{message}");
    world.server(Group::Worker(1)).start()?;
    operator.settle(&world, &wanted, Duration::from_mins(1)).await?;
    assert_eq!(condition(&operator.round(&world, &wanted).await?, BALANCED).1, "Balanced");
    assert_eq!(world.number(Group::Coordinator, NOTED).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_silent_for_the_coordinator_is_named_and_is_not_waited_for_long() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    let coordinator = world.server(Group::Coordinator);
    coordinator.set_parameter("citus.defer_shard_delete_interval", "-1")?;
    let process = coordinator.pid().context("the coordinator does not run")?;
    let detour = Detour::to(world.server(Group::Worker(1)).port()).await?;
    world.lead_by(Group::Worker(1), detour.port());
    let wanted = few_shards(2);
    world.serve(&wanted).await?;
    swap(&world).await?;
    let noted = u32::try_from(world.number(Group::Coordinator, NOTED).await?)?;
    ensure!(noted > 0, "nothing is to be taken away there");
    detour.set(Cut::Server(process));

    let (mut operator, begun) = (Operator::default(), Instant::now());
    let round = operator.round(&world, &wanted).await?;
    // Citus by itself waits for 30 s, for each object anew.
    ensure!(begun.elapsed() < Duration::from_secs(20) * noted, "{noted} objects: {:?}", begun.elapsed());
    ensure!(round.failed.is_empty(), "{:?}", round.failed);
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("True", "CleanupBlocked"), "{message}");
    for part in ["public.messages_", " on worker-1 (record ", "could not establish connection after 5000 ms"]
    {
        assert!(message.contains(part), "{message}");
    }
    // It has a time limit, or somebody ends it: that is no failure of another kind.
    let mut operator = Operator::default();
    let cancel = async {
        let active = "pg_stat_activity WHERE query LIKE 'CALL citus_cleanup%' AND state = 'active'";
        let cancel = format!("SELECT count(pg_cancel_backend(pid)) FROM {active}");
        eventually("it is cancelled", async || Ok(world.number(Group::Coordinator, &cancel).await? > 0)).await
    };
    let (round, cancelled) = tokio::join!(operator.round(&world, &wanted), cancel);
    let round = round?;
    cancelled?;
    ensure!(round.failed.is_empty(), "{:?}", round.failed);
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("True", "CleanupBlocked"), "{message}");
    assert!(message.contains("came to no end"), "{message}");

    detour.set(Cut::Nobody);
    operator.settle(&world, &wanted, Duration::from_mins(1)).await?;
    assert_eq!(condition(&operator.round(&world, &wanted).await?, BALANCED).1, "Balanced");
    assert_eq!(world.number(Group::Coordinator, NOTED).await?, 0);
    Ok(())
}

/// Citus itself is to try to take things away nearly all the time: it keeps what it tries for a second for each.
async fn with_busy_daemon(workers: u32, wanted: &Wanted) -> Result<World> {
    let mut world = World::start(workers)?;
    world.server(Group::Coordinator).set_parameter("citus.defer_shard_delete_interval", "1s")?;
    world.serve(wanted).await?;
    Ok(world)
}

#[tokio::test]
async fn what_citus_itself_is_about_is_not_taken_for_gone() -> Result<()> {
    needs_citus!();
    let wanted = few_shards(2);
    let world = with_busy_daemon(2, &wanted).await?;
    let mut readers = Vec::new();
    for group in [Group::Worker(0), Group::Worker(1)] {
        readers.push(reader(&world, group, shard_on(&world, group).await?).await?);
    }
    swap(&world).await?;
    let mut operator = Operator::default();
    eventually("it is known that Citus cannot", async || {
        Ok(condition(&operator.round(&world, &wanted).await?, BALANCED).1 == "CleanupBlocked")
    })
    .await?;
    let mut kept = 0;
    eventually("Citus itself was about it three times", async || {
        let round = operator.round(&world, &wanted).await?;
        ensure!(!round.performed.contains(&Step::CleanUp), "it is said to be gone");
        let (status, reason, message) = condition(&round, BALANCED);
        ensure!((status, reason) == ("True", "CleanupBlocked"), "{reason}: {message}");
        kept += round.partly.iter().filter(|(_, error)| matches!(error, Error::Kept(_))).count();
        Ok(kept >= 3)
    })
    .await?;
    for reader in readers {
        reader.batch_execute("ROLLBACK").await?;
    }
    operator.settle(&world, &wanted, Duration::from_mins(1)).await?;
    assert_eq!(condition(&operator.round(&world, &wanted).await?, BALANCED).1, "Balanced");
    assert_eq!(world.number(Group::Coordinator, NOTED).await?, 0);
    Ok(())
}

/// What a split leaves that cannot be dropped: Citus tries it again and again.
const FOLLOWERS: [&str; 3] = [
    "citus_shard_split_subscription_10_4711",
    "citus_shard_split_subscription_10_4712",
    "citus_shard_split_subscription_10_4713",
];

/// Leaves subscriptions of a split on a worker, and their notes; who uses them there.
async fn leave_in_use(world: &World, group: Group) -> Result<Client> {
    let client = world.ask_client(group).await?;
    for name in FOLLOWERS {
        let create = format!(
            "SET citus.enable_ddl_propagation = off; CREATE SUBSCRIPTION {name} CONNECTION 'dbname=nowhere' PUBLICATION nothing
             WITH (connect = false, slot_name = NONE, enabled = false, create_slot = false)"
        );
        client.batch_execute(&create).await?;
    }
    client.batch_execute("BEGIN").await?;
    for name in FOLLOWERS {
        client.batch_execute(&format!("COMMENT ON SUBSCRIPTION {name} IS 'in use'")).await?;
    }
    let port = world.topology().endpoint(group).map_or(0, |endpoint| endpoint.port);
    // Of one operation, so that all are kept until the last was tried.
    let note = format!(
        "INSERT INTO pg_dist_cleanup
         SELECT nextval('pg_dist_cleanup_recordid_seq'), operation_id, 2, name, groupid, 0
         FROM nextval('pg_dist_operationid_seq') AS operation_id, unnest('{{{}}}'::text[]) AS name, pg_dist_node
         WHERE nodeport = {port}",
        FOLLOWERS.join(",")
    );
    world.ask(Group::Coordinator, &note).await?;
    Ok(client)
}

#[tokio::test]
async fn an_action_that_is_done_is_not_given_up_while_its_end_waits() -> Result<()> {
    needs_citus!();
    let mut world = World::start(3)?;
    world.server(Group::Coordinator).set_parameter("citus.defer_shard_delete_interval", "-1")?;
    let mut wanted = isolating(3);
    wanted.watch.as_mut().context("nobody is to look")?.period = SignedDuration::from_secs(1);
    world.serve(&wanted).await?;
    let user = leave_in_use(&world, Group::Worker(1)).await?;
    let small = hash(&world, DIALOG).await?;
    let id = decide(&world, isolation(&world, small).await?).await?;
    let mut operator = Operator::default();
    eventually("its end waits", async || {
        let round = operator.round(&world, &wanted).await?;
        ensure!(round.failed.is_empty(), "{:?}", round.failed);
        Ok(round.partly.iter().any(|(step, _)| matches!(step, Step::EndAction { .. })))
    })
    .await?;
    let ago = "UPDATE dialog_operator.actions SET decided = decided - interval '2 hours'";
    world.ask(Group::Coordinator, ago).await?;
    let watcher = Watcher::new(&world, &wanted).await?;
    watcher.look(None).await?;
    let act = outcome(&world.look(&wanted, Sizes::Skip).await?, id).await?;
    assert_eq!((act.outcome, act.note.is_some()), (None, !operator.failed.is_empty()), "{:?}", act.note);

    user.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &wanted, Duration::from_mins(1)).await?;
    let act = outcome(&world.round(&wanted).await?, id).await?;
    // The quick way may take too long beside what is in use; then there is the other. Nothing else may fail.
    let quick = |step: &Step| matches!(step, Step::SplitShard(split) if split.blocking);
    let failed = &operator.failed[..];
    ensure!(failed.len() <= 1 && failed.iter().all(quick), "{failed:?}");
    let attempts = i32::try_from(1 + failed.len())?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), attempts), "{:?}", act.note);
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
        ensure!(message.contains(&format!("public.messages_{shard} on worker-1")), "{message}");
        let (_, reason, message) = condition(&round, BALANCED);
        ensure!(reason == "CleanupBlocked", "{reason}: {message}");
        ensure!(message.contains(&format!("public.messages_{shard} on worker-1")), "{message}");
        Ok(true)
    })
    .await?;
    let mut tried = 0;
    eventually("it was tried again three times", async || {
        let round = operator.round(&world, &fewer).await?;
        let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
        ensure!((status, reason) == ("True", "CleanupBlocked"), "{status} {reason}: {message}");
        tried += round.partly.len();
        Ok(tried >= 3)
    })
    .await?;
    reader.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &fewer, Duration::from_mins(1)).await?;
    let registered = "SELECT count(*) FROM pg_dist_node";
    assert_eq!(world.number(Group::Coordinator, registered).await?, 2);
    assert_eq!(world.number(Group::Coordinator, NOTED).await?, 0);
    Ok(())
}
