//! Servers that end in the middle of a move.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::act::perform;
use dialog_operator::shards::round::{Carried, carry_out};
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use futures::future::BoxFuture;
use testbed::postgres::Shutdown;

use crate::held_up::{HeldUp, TO_COPY};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{
    World, brief, condition, eventually, few_shards, placements, store_messages, with_an_empty_worker,
};

const ROWS: i64 = 10_000;

/// One server after the other ends when everything is copied and the changes meanwhile are followed: subscriptions, slots,
/// publications and a second copy of the shards are there.
#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_a_move_loses_nothing() -> Result<()> {
    needs_citus!();
    let mut world = with_an_empty_worker().await?;
    store_messages(&world, ROWS, "'text'").await?;
    let open = few_shards(2);
    for (who, how) in [
        (Group::Coordinator, Shutdown::Immediate),
        (Group::Worker(0), Shutdown::Immediate),
        (Group::Worker(1), Shutdown::Immediate),
        (Group::Coordinator, Shutdown::Fast),
    ] {
        let step = dies_in_the_middle_of_a_move(&mut world, &open, who, how).await?;
        let down = world.round(&open).await?;
        assert!(down.long.is_empty() && down.performed.is_empty(), "{:?}", down.plan.steps);
        world.server(who).start()?;
        // It is made after all, as soon as what it left behind allows.
        eventually("the move is planned again", async || {
            world.round(&open).await?;
            Ok(world.round_of(&open, 0).await?.plan.steps.first() == Some(&step))
        })
        .await?;
        world.carry_out(&open, &step).await.with_context(|| format!("after {who} has come back"))?;
    }
    world.settle(&open).await?;
    assert_eq!(condition(&world.round(&open).await?, BALANCED).0, "True");
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, ROWS);
    assert_nothing_is_left(&world).await
}

/// Ends `who`'s server in the middle of the move that is next.
async fn dies_in_the_middle_of_a_move(
    world: &mut World,
    wanted: &Wanted,
    who: Group,
    how: Shutdown,
) -> Result<Step> {
    let planned = world.round_of(wanted, 0).await?.plan;
    let step = planned.steps.into_iter().find(|step| matches!(step, Step::MoveShard { .. }));
    let Some(Step::MoveShard { shard_id, from, to }) = step else { bail!("no move is planned") };
    let step = Step::MoveShard { shard_id, from, to };
    let held_up = HeldUp::new(world, shard_id).await?;
    let task = tokio::spawn({
        let (step, sessions) = (step.clone(), world.long_sessions(&step)?);
        async move { perform(&step, &sessions).await }
    });
    held_up.copied(world, to, || task.is_finished()).await?;
    world.server(who).stop(how)?;
    drop(held_up);
    ensure!(task.await?.is_err(), "{who} has gone, and the move was made");
    Ok(step)
}

/// As after a switchover of the source: slots do not survive that, and the target follows one for ever.
#[tokio::test]
async fn a_move_whose_slot_is_lost_is_made_anew_without_waiting_for_time_to_run_out() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    store_messages(&world, ROWS, "'text'").await?;
    let open = few_shards(2);
    let planned = world.round_of(&open, 0).await?.plan;
    let step = planned.steps.into_iter().find(|step| matches!(step, Step::MoveShard { .. }));
    let Some(Step::MoveShard { shard_id, from, to }) = step else { bail!("no move is planned") };
    let step = Step::MoveShard { shard_id, from, to };
    let held_up = HeldUp::new(&world, shard_id).await?;
    let mut operator = Operator::default();
    operator.round(&world, &open).await?;
    ensure!(operator.jobs.has(&step), "another move was begun");
    held_up.copied(&world, to, || false).await?;
    let round = operator.round(&world, &open).await?;
    let lost = &round.observed.catalog.as_ref().context("catalogs")?.lost_slots;
    ensure!(lost.is_empty(), "nothing is lost yet: {lost:?}");

    drop_slots(&world, from).await?;
    held_up.end().await?;
    let lost = Instant::now();
    let (status, reason, message) = loop {
        let round = operator.round(&world, &open).await?;
        let condition = condition(&round, BALANCED);
        if condition.1 == "ReplicationSlotLost" {
            break condition;
        }
        ensure!(operator.failed.is_empty(), "the move failed by itself");
        ensure!(lost.elapsed() < TO_COPY, "nobody has noticed: {condition:?}");
    };
    assert_eq!((status, reason), ("False", "ReplicationSlotLost"), "{message}");
    assert!(message.contains("slot lost, the source was switched over or restored"), "{message}");
    assert!(message.contains("citus_shard_move_slot_"), "{message}");
    operator.settle(&world, &open, open.rebalance.stall_timeout).await?;
    println!("found, cancelled and made anew with all the others in {:?}", lost.elapsed());
    assert_eq!(operator.failed.first(), Some(&step));
    assert!(operator.done.contains(&step), "{:?}", operator.done);
    assert!(operator.done.iter().any(|step| matches!(step, Step::CancelMove { .. })), "{:?}", operator.done);
    assert_eq!(condition(&world.round(&open).await?, BALANCED).0, "True");
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, ROWS);
    assert_nothing_is_left(&world).await
}

/// Drops the slots of moves on `group`'s server, whoever uses them.
async fn drop_slots(world: &World, group: Group) -> Result<()> {
    let slots = "pg_replication_slots WHERE slot_name LIKE 'citus_shard_move_slot_%'";
    let (terminate, drop) = (
        format!("SELECT pg_terminate_backend(active_pid) FROM {slots} AND active"),
        format!("SELECT pg_drop_replication_slot(slot_name) FROM {slots} AND NOT active"),
    );
    eventually("the slots are dropped", async || {
        world.ask(group, &terminate).await?;
        // Who used it may just be back.
        let dropped = world.ask(group, &drop).await;
        Ok(dropped.is_ok() && world.number(group, &format!("SELECT count(*) FROM {slots}")).await? == 0)
    })
    .await
}

/// No trace of a move is left on any server.
pub async fn assert_nothing_is_left(world: &World) -> Result<()> {
    for group in [Group::Coordinator, Group::Worker(0), Group::Worker(1)] {
        for (what, of) in [
            ("slots", "pg_replication_slots WHERE slot_name LIKE 'citus_%'"),
            ("subscriptions", "pg_subscription"),
            ("publications", "pg_publication WHERE pubname LIKE 'citus_shard_%'"),
            ("records", "pg_dist_cleanup"),
        ] {
            let left = world.number(group, &format!("SELECT count(*) FROM {of}")).await?;
            ensure!(left == 0, "{left} {what} are left on {group}");
        }
        let strays = "SELECT count(*) FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)
             JOIN pg_dist_partition USING (logicalrelid)
             WHERE partmethod = 'h' AND to_regclass('public.' || shard_name(logicalrelid, shardid)) IS NOT NULL
               AND groupid <> (SELECT groupid FROM pg_dist_local_group)";
        let strays = world.number(group, strays).await?;
        ensure!(strays == 0, "{group} stores {strays} shards that belong elsewhere");
    }
    Ok(())
}

#[tokio::test]
async fn a_move_whose_session_has_ended_is_not_made_without_the_lock_that_it_held() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let open = few_shards(2);
    let step = world.round_of(&open, 0).await?.plan.steps.first().cloned().context("no move is planned")?;
    ensure!(matches!(step, Step::MoveShard { .. }), "{step}");
    let before = placements(&world).await?;
    let groups = world.existing();
    let (coordinator, sessions) = (world.ask_client(Group::Coordinator).await?, world.long_sessions(&step)?);
    // Who has the lock is ended while it is asked what there is.
    let ask = || -> BoxFuture<'_, BTreeSet<Group>> {
        Box::pin(async {
            let holders = "pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted";
            let end = format!("SELECT count(pg_terminate_backend(pid, 10000)) FROM {holders}");
            let ended: i64 = coordinator.query_one(&end, &[]).await.unwrap().get(0);
            assert_eq!(ended, 1, "nobody has the lock");
            groups.clone()
        })
    };
    let carried = carry_out(&brief(&open, &ask), &sessions, &step, || {}).await;
    ensure!(carried.is_err(), "{carried:?}");
    assert_eq!(placements(&world).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_move_that_another_operator_has_made_is_not_counted_twice() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let open = few_shards(2);
    let step = world.round_of(&open, 0).await?.plan.steps.first().cloned().context("no move is planned")?;
    assert_eq!(world.try_carry_out(&open, &step).await?, Carried::Out);
    assert_eq!(world.try_carry_out(&open, &step).await?, Carried::Needless);
    Ok(())
}
