//! Splits that do not get on, and what becomes of the actions that ask for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::names::Group;
use dialog_operator::shards::act::perform;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::observe::{Sizes, splits};
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::supervise::Splits;
use jiff::Timestamp;

use crate::acting::{
    DIALOG, assert_nothing_is_left, covering, decide, hash, isolating, isolation, make_large, outcome,
    planned, settle,
};
use crate::needs_citus;
use crate::operator::Operator;
use crate::traffic::Traffic;
use crate::world::{World, condition, eventually};

/// A split that leaves a part on its source hangs as soon as a row is changed: what the operator never asks for is asked
/// for by hand here, to have one that hangs.
#[tokio::test]
async fn a_split_that_hangs_is_ended_and_leaves_nothing() -> Result<()> {
    needs_citus!();
    let world = Arc::new(World::start(2)?);
    let wanted = isolating(2);
    world.serve(&wanted).await?;
    let traffic = Traffic::start(&world).await?;
    let shard = covering(&world, 0).await?;
    let split = dialog_operator::shards::step::Split {
        action: 0,
        shard_id: shard.shard_id,
        from: shard.node,
        points: vec![-1, 0],
        nodes: vec![shard.node; 3],
        blocking: false,
    };
    let step = Step::SplitShard(split);
    let task = tokio::spawn({
        let (sessions, step) = (world.long_sessions(&step)?, step.clone());
        async move { perform(&step, &sessions).await }
    });
    let mut watch = Splits::default();
    let sessions = world.sessions()?;
    let stall = loop {
        ensure!(!task.is_finished(), "it did not hang");
        let round = world.look(&wanted, Sizes::Skip).await?;
        watch.look(round.observed.catalog.as_ref(), Instant::now());
        if let Some(stalled) = watch.stalled(Duration::from_mins(10)).first() {
            break splits::diagnose(&sessions, stalled).await.context("it is at work")?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(stall.cause.contains("failed"), "{}", stall.cause);
    let cancel = Step::CancelMove {
        pid: stall.pid,
        application: stall.application,
        end: stall.end.context("it was ended before")?,
    };
    perform(&cancel, &sessions).await?;
    let error = task.await?.unwrap_err();
    assert!(error.to_string().contains("cancel"), "{error}");
    world.settle(&wanted).await?;
    traffic.verify(&world).await?;
    assert_eq!(covering(&world, 0).await?.shard_id, shard.shard_id);
    assert_nothing_is_left(&world, 2).await
}

/// What copies shards waits on their source for whoever has written there and not ended, and the coordinator knows nothing
/// of that lock.
#[tokio::test]
async fn a_split_that_waits_for_somebody_on_a_worker_is_ended_and_made_when_that_has_gone() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let mut wanted = isolating(3);
    world.serve(&wanted).await?;
    make_large(&world, DIALOG).await?;
    let large = hash(&world, DIALOG).await?;
    let source = covering(&world, large).await?.node;
    let mut writer = world.ask_client(source).await?;
    let open = writer.transaction().await?;
    let pid: i32 = open.query_one("SELECT pg_backend_pid(), pg_current_xact_id()::text", &[]).await?.get(0);

    let id = decide(&world, isolation(&world, large).await?).await?;
    let mut operator = Operator::default();
    operator.until_held(&world, &wanted, source).await?;
    let round = operator.round(&world, &wanted).await?;
    let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now()).split;
    let shown = shown.context("the status shows no split")?;
    assert_eq!((shown.from, shown.to.len(), shown.phase.as_str()), (source.to_string(), 2, "Setting Up"));
    assert!(shown.since.0 <= Timestamp::now(), "{:?}", shown.since);
    assert_eq!(condition(&round, HOT_TENANT).1, "Acting");

    wanted.rebalance.stall_timeout = Duration::from_secs(2);
    let started = Instant::now();
    let (status, reason, message) = loop {
        let round = operator.round(&world, &wanted).await?;
        let condition = condition(&round, HOT_TENANT);
        if condition.1 == "SplitStalled" {
            break condition;
        }
        ensure!(operator.failed.is_empty(), "it failed by itself: {condition:?}");
        ensure!(started.elapsed() < Duration::from_mins(2), "nobody has noticed: {condition:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!((status, reason), ("True", "SplitStalled"), "{message}");
    let who = format!("(pid {pid}, open for");
    assert!(message.contains(&format!("on {source} ")) && message.contains(&who), "{message}");
    // The watchdog has cancelled it by now, or is about to.
    while operator.failed.is_empty() {
        operator.round(&world, &wanted).await?;
        ensure!(started.elapsed() < Duration::from_mins(3), "it was not ended");
        operator.take_results();
    }
    open.rollback().await?;
    // A busy machine does nothing for longer than that.
    operator.settle(&world, &isolating(3), Duration::from_mins(5)).await?;
    let cancelled = |step: &&Step| matches!(step, Step::CancelMove { .. });
    assert_eq!(operator.done.iter().filter(cancelled).count(), 1, "{:?}", operator.done);
    assert_eq!(covering(&world, large).await?.range, HashRange { min: large, max: large });
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 2), "{:?}", act.note);
    assert_nothing_is_left(&world, 3).await
}

/// Who carries out a split is killed with its session each time: nobody is left to note what became of it.
#[tokio::test]
async fn an_attempt_that_nobody_sees_the_end_of_counts() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let wanted = isolating(3);
    world.serve(&wanted).await?;
    make_large(&world, DIALOG).await?;
    let large = hash(&world, DIALOG).await?;
    let before = covering(&world, large).await?;
    let mut writer = world.ask_client(before.node).await?;
    let open = writer.transaction().await?;
    open.execute("SELECT pg_current_xact_id()::text", &[]).await?;
    let id = decide(&world, isolation(&world, large).await?).await?;
    for attempt in 1..=3 {
        let Step::SplitShard(split) = planned(&world, &wanted).await? else { panic!("nothing is split") };
        let step = Step::SplitShard(split);
        let task = tokio::spawn({
            let (sessions, step) = (world.long_sessions(&step)?, step.clone());
            async move { perform(&step, &sessions).await }
        });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("the split waits for the writer", async || {
            ensure!(!task.is_finished(), "it has ended by itself");
            Ok(world.number(before.node, waits).await? > 0)
        })
        .await?;
        task.abort();
        let of_it = "FROM pg_stat_activity WHERE application_name LIKE 'dialog-operator: split %'";
        eventually("its session has ended", async || {
            world.ask(Group::Coordinator, &format!("SELECT pg_terminate_backend(pid) {of_it}")).await?;
            Ok(world.number(Group::Coordinator, &format!("SELECT count(*) {of_it}")).await? == 0)
        })
        .await?;
        let act = outcome(&world.round_of(&wanted, 0).await?, id).await?;
        assert_eq!((act.attempts, act.outcome, act.note), (attempt, None, None));
    }
    open.rollback().await?;
    let kinds = settle(&world, &wanted).await?;
    assert!(kinds.contains(&"EndAction") && !kinds.contains(&"SplitShard"), "{kinds:?}");
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Failed), 3));
    assert!(act.note.as_ref().is_some_and(|note| note.contains("begun 3 times")), "{:?}", act.note);
    assert_eq!(covering(&world, large).await?.range, before.range);
    assert_nothing_is_left(&world, 3).await
}
