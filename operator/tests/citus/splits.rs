//! Splits that do not get on, and what becomes of the actions that ask for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::names::Group;
use dialog_operator::shards::act::perform;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::observe::{Sizes, splits};
use dialog_operator::shards::observed::RunningSplit;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::{Split, Step};
use dialog_operator::shards::supervise::Splits;
use jiff::Timestamp;

use crate::acting::{decide_while_written, planned, settle, with_a_large_shard};
use crate::held_up::HeldUp;
use crate::isolation::{assert_nothing_is_left, covering, decide, isolating, isolation, outcome};
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
    let split = Split {
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
    let (world, mut wanted, large) = with_a_large_shard().await?;
    let source = covering(&world, large).await?.node;
    let (id, writer) = decide_while_written(&world, large).await?;
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);

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
    writer.batch_execute("ROLLBACK").await?;
    // A busy machine does nothing for longer than that.
    operator.settle(&world, &isolating(3), Duration::from_mins(5)).await?;
    let cancelled = |step: &&Step| matches!(step, Step::CancelMove { .. });
    assert_eq!(operator.done.iter().filter(cancelled).count(), 1, "{:?}", operator.done);
    assert_eq!(covering(&world, large).await?.range, HashRange { min: large, max: large });
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 2), "{:?}", act.note);
    assert_nothing_is_left(&world, 3).await
}

/// At its end a split takes the lock that all share who write to its shard, on the coordinator as well. So does the quick way, by
/// a statement that ends by itself.
#[tokio::test]
async fn a_split_that_keeps_writers_waiting_at_its_end_is_cancelled_and_the_quick_way_is_not() -> Result<()> {
    needs_citus!();
    let (world, wanted, large) = with_a_large_shard().await?;
    let id = decide(&world, isolation(&world, large).await?).await?;
    let writer = HeldUp::every(&world).await?;

    let Step::SplitShard(split) = planned(&world, &wanted).await? else { panic!("nothing is split") };
    let quick = Step::SplitShard(Split { action: 0, blocking: true, ..split });
    eventually("the quick way is seen to wait", async || {
        let sessions = world.long_sessions(&quick)?;
        let task = tokio::spawn({
            let step = quick.clone();
            async move { perform(&step, &sessions).await }
        });
        let mut seen = false;
        while !task.is_finished() {
            let catalog = world.look(&wanted, Sizes::Skip).await?.observed.catalog.context("no catalog")?;
            let waits = |split: &&RunningSplit| split.blocking && catalog.blocking.contains(&split.pid);
            seen |= catalog.splits.iter().find(waits).is_some();
        }
        ensure!(task.await?.is_err(), "nobody kept it");
        Ok(seen)
    })
    .await?;

    let mut operator = Operator::default();
    let started = Instant::now();
    let message = loop {
        let round = operator.round(&world, &wanted).await?;
        let (_, reason, message) = condition(&round, HOT_TENANT);
        if reason == "SplitStalled" {
            break message;
        }
        ensure!(operator.failed.is_empty(), "it failed by itself: {message}");
        ensure!(started.elapsed() < Duration::from_mins(3), "nobody has noticed: {message}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let who = format!("(pid {}, open for", writer.pid());
    assert!(message.contains("all who write to its shard") && message.contains(&who), "{message}");
    while operator.failed.is_empty() {
        operator.round(&world, &wanted).await?;
        ensure!(started.elapsed() < Duration::from_mins(4), "it was not ended");
        operator.take_results();
    }
    writer.end().await?;
    operator.settle(&world, &wanted, Duration::from_mins(5)).await?;
    assert_eq!(covering(&world, large).await?.range, HashRange { min: large, max: large });
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 2), "{:?}", act.note);
    assert_nothing_is_left(&world, 3).await
}

/// Failures of a subscription after which its own split would be given up.
const FAILURES: i64 = 3;

/// Leaves what a split may leave: a subscription that is enabled, and can never follow, as `subscriber` does not take the
/// row that `publisher` has.
async fn leave_failing(world: &mut World, publisher: Group, subscriber: Group) -> Result<()> {
    let port = world.server(publisher).port();
    world.server(subscriber).set_parameter("wal_retrieve_retry_interval", "100ms")?;
    let tls: String = world.ask(subscriber, "SHOW citus.node_conninfo").await?[0].get(0);
    let source = world.ask_client(publisher).await?;
    source
        .batch_execute(
            "SET citus.enable_ddl_propagation = off;
             CREATE TABLE elsewhere (id int PRIMARY KEY); CREATE PUBLICATION elsewhere FOR TABLE elsewhere",
        )
        .await?;
    // A slot cannot be made in a transaction that has written.
    let slot = "SELECT pg_create_logical_replication_slot('citus_shard_split_slot_9_10_4711', 'pgoutput')";
    source.batch_execute(slot).await?;
    let target = world.ask_client(subscriber).await?;
    target
        .batch_execute(
            "SET citus.enable_ddl_propagation = off; CREATE TABLE elsewhere (id int PRIMARY KEY CHECK (id < 0))",
        )
        .await?;
    let create = format!(
        "CREATE SUBSCRIPTION {LEFT} CONNECTION 'host=localhost port={port} user=postgres dbname=dialog {tls}'
         PUBLICATION elsewhere
         WITH (create_slot = false, slot_name = 'citus_shard_split_slot_9_10_4711', copy_data = false)"
    );
    target.batch_execute(&create).await?;
    source.batch_execute("INSERT INTO elsewhere VALUES (1)").await?;
    let failed = format!(
        "SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats WHERE subname = '{LEFT}'"
    );
    eventually("it has failed again and again", async || {
        Ok(world.number(subscriber, &failed).await? >= FAILURES)
    })
    .await
}

/// As Citus calls what a split follows by.
const LEFT: &str = "citus_shard_split_subscription_10_4711";

#[tokio::test]
async fn what_another_split_has_left_and_fails_does_not_end_one_that_gets_on() -> Result<()> {
    needs_citus!();
    let (mut world, wanted, large) = with_a_large_shard().await?;
    let source = covering(&world, large).await?.node;
    let other = (0..3).map(Group::Worker).find(|group| *group != source).context("there are three")?;
    leave_failing(&mut world, source, other).await?;

    let (id, writer) = decide_while_written(&world, large).await?;
    let mut operator = Operator::default();
    operator.until_held(&world, &wanted, source).await?;
    let catalog = operator.round(&world, &wanted).await?.observed.catalog.context("no catalog")?;
    let [running] = &catalog.splits[..] else { panic!("{:?}", catalog.splits) };
    assert_eq!(running.errors, 0, "{running:?}");
    let mut watch = Splits::default();
    watch.look(Some(&catalog), Instant::now());
    assert_eq!(watch.stalled(Duration::from_mins(10)), []);
    // Nor is it taken for progress.
    assert!(!running.progress.iter().any(|shown| shown.contains("4711")), "{running:?}");
    writer.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &wanted, Duration::from_mins(5)).await?;
    let cancelled = |step: &Step| matches!(step, Step::CancelMove { .. });
    assert!(!operator.done.iter().any(cancelled), "{:?}", operator.done);
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{:?}", act.note);
    world.ask_client(other).await?.batch_execute(&format!("DROP SUBSCRIPTION {LEFT}")).await?;
    assert_nothing_is_left(&world, 3).await
}

/// Who carries out a split is killed with its session each time: nobody is left to note what became of it.
#[tokio::test]
async fn an_attempt_that_nobody_sees_the_end_of_counts() -> Result<()> {
    needs_citus!();
    let (world, wanted, large) = with_a_large_shard().await?;
    let before = covering(&world, large).await?;
    let (id, writer) = decide_while_written(&world, large).await?;
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
    writer.batch_execute("ROLLBACK").await?;
    let kinds = settle(&world, &wanted).await?;
    assert!(kinds.contains(&"EndAction") && !kinds.contains(&"SplitShard"), "{kinds:?}");
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Failed), 3));
    assert!(act.note.as_ref().is_some_and(|note| note.contains("begun 3 times")), "{:?}", act.note);
    assert_eq!(covering(&world, large).await?.range, before.range);
    assert_nothing_is_left(&world, 3).await
}
