//! A cluster's life, by operators that are killed in the middle of every kind of step, or at any moment.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use dialog_operator::api::PinSpec;
use dialog_operator::condition::BALANCED;
use dialog_operator::heat::{Action, Mode};
use dialog_operator::names::Group;
use dialog_operator::shards::act::perform;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::observe::stall::diagnose;
use dialog_operator::shards::observed::End;
use dialog_operator::shards::step::{KINDS, Step};
use dialog_operator::shards::supervise::Stalled;
use dialog_operator::shards::wanted::{Gate, Wanted};

use crate::isolation::{covering, decide, isolation, with_mode};
use crate::killer::Killer;
use crate::needs_citus;
use crate::world::{World, condition, few_shards, placements, reference, wanted};

/// Each kind of step is begun here by operators that are killed after none, one, two … of its statements: a step that is
/// added to the plan and not to this journey fails the test.
#[tokio::test]
async fn an_operator_that_is_killed_at_any_step_is_continued_by_the_next() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    // Nobody else is to take away what moves leave behind, so that the operator has to.
    world.server(Group::Coordinator).set_parameter("citus.defer_shard_delete_interval", "-1")?;
    let mut wanted = few_shards(2);
    let mut killer = Killer::default();

    // Up to the migrations; dialog-api cannot get in before the database has the extension.
    let steps = killer.settle(&world, &wanted).await?;
    let position = |kind: &str| steps.iter().position(|step| step.kind() == kind).unwrap();
    assert!(position("CreateExtension") < position("AllowLogin"), "{steps:?}");
    assert!(!steps.iter().any(|step| matches!(step, Step::DistributeTable(_))));
    world.migrate().await?;
    killer.settle(&world, &wanted).await?;

    // A reference table, and a table with rows beside the others.
    let api = world.api(Group::Coordinator).await?;
    api.run("CREATE TABLE emoji (code text PRIMARY KEY); INSERT INTO emoji VALUES ('x'), ('y')").await?;
    api.run(
        "CREATE TABLE pins (dialog_id uuid, message_id uuid, PRIMARY KEY (dialog_id, message_id));
         INSERT INTO pins SELECT gen_random_uuid(), gen_random_uuid() FROM generate_series(1, 1000)",
    )
    .await?;
    wanted.tables.push(reference("emoji"));
    wanted.tables.push(crate::world::distributed("pins", "dialog_id", "dialog"));
    killer.settle(&world, &wanted).await?;

    // One more worker lacks the reference table's copy. It stays empty for now.
    world.add(Group::Worker(2))?;
    wanted.workers = 3;
    wanted.rebalance.gate = Gate::Closed { reason: "PlanAvailable", message: "later".to_owned() };
    settle_with_plan(&mut killer, &world, &wanted).await?;
    assert_eq!(world.number(Group::Worker(2), "SELECT count(*) FROM emoji").await?, 2);

    // Somebody changes everything by hand.
    let port = world.server(Group::Worker(2)).port();
    let by_hand = [
        "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', true) FROM pg_dist_node WHERE groupid = 0",
        "INSERT INTO pg_dist_cleanup VALUES (1000000, 1000000, 1, 'public.gone', 99, 0)",
    ];
    for statement in by_hand {
        world.ask(Group::Coordinator, statement).await?;
    }
    for statement in [
        "ALTER DATABASE dialog OWNER TO postgres",
        "ALTER SYSTEM SET wal_level = 'replica'",
        "ALTER SYSTEM SET max_wal_senders = 3",
    ] {
        world.server(Group::Worker(0)).connect("postgres").await?.batch_execute(statement).await?;
    }
    settle_with_plan(&mut killer, &world, &wanted).await?;
    // Its copies of reference tables go away with it, so it may be disabled; the others follow in their own time.
    for statement in [
        format!("SELECT citus_disable_node('localhost', {port}, true)"),
        format!("SELECT stop_metadata_sync_to_node('localhost', {port})"),
        format!(
            "SELECT citus_update_node(nodeid, '127.0.0.1', nodeport) FROM pg_dist_node WHERE nodeport = {port}"
        ),
        format!("DELETE FROM pg_dist_node WHERE nodeport = {port}"),
    ] {
        world.ask(Group::Coordinator, &statement).await?;
        settle_with_plan(&mut killer, &world, &wanted).await?;
    }

    wanted.rebalance.gate = Gate::Open;
    Box::pin(a_move_that_waits_is_cancelled_and_made_later(&mut killer, &world, &wanted)).await?;

    a_tenant_is_isolated_once(&mut killer, &world, &wanted).await?;

    wanted.workers = 2;
    killer.settle(&world, &wanted).await?;
    assert_eq!(api.query_one("SELECT count(*) FROM pins", &[]).await?.get::<_, i64>(0), 1000);

    // Somebody decides about one, and takes it back.
    let tenant = "00000000-0000-4000-8000-000000000007".to_owned();
    wanted.pins = vec![PinSpec { group: "dialog".to_owned(), tenant, worker: Some(0) }];
    killer.settle(&world, &wanted).await?;
    assert_eq!(killer.look(&world, &wanted).await?.observed.kept.pins.len(), 2);
    wanted.pins.clear();
    // Nobody looks any more, and nothing is left for Citus' rebalancer to know.
    wanted.watch = None;
    killer.settle(&world, &wanted).await?;

    assert_eq!(killer.kinds, KINDS.into_iter().collect::<BTreeSet<_>>());
    assert!(killer.killed > 2 * KINDS.len(), "only {} operators were killed", killer.killed);
    world.remove(Group::Worker(2));
    let at_rest = world.round(&wanted).await?;
    assert!(at_rest.performed.is_empty() && at_rest.is_settled(), "{:?}", at_rest.plan);
    Ok(())
}

/// An action that was decided is done once, whenever who does it is killed.
async fn a_tenant_is_isolated_once(killer: &mut Killer, world: &World, wanted: &Wanted) -> Result<()> {
    let wanted = with_mode(wanted.clone(), Mode::Isolate);
    let count = "SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = 'public.messages'::regclass";
    let before = world.number(Group::Coordinator, count).await?;
    // To the worker that leaves afterwards, so that its pin has to go elsewhere first.
    let leaves = Group::Worker(2);
    let mut at = 4711;
    while covering(world, at).await?.node == leaves {
        at += 1 << 27;
    }
    let hash = covering(world, at).await?.range.min + 7;
    let action = match isolation(world, hash).await? {
        Action::Isolate { tenant, from, to, rest: Some(rest) } if rest == leaves => {
            Action::Isolate { tenant, from, to: rest, rest: Some(to) }
        }
        action => action,
    };
    let id = decide(world, action).await?;
    let steps = killer.settle(world, &wanted).await?;
    let split = steps.iter().filter(|step| step.kind() == "SplitShard").count();
    assert_eq!(split, 1, "{steps:?}");
    let kept = world.round(&wanted).await?.observed.kept;
    let act = kept.acts.iter().find(|act| act.id == id).context("it was not written down")?;
    assert_eq!(world.number(Group::Coordinator, count).await?, before + 2, "{act:?} {steps:?}");
    let Action::Isolate { to, .. } = action else { panic!("{action:?}") };
    assert_eq!(covering(world, hash).await?.node, to);
    let kept = world.round(&wanted).await?.observed.kept;
    let act = kept.acts.iter().find(|act| act.id == id).context("it was not written down")?;
    assert_eq!((act.outcome, kept.pins.len()), (Some(Outcome::Done), 1), "{act:?}");
    Ok(())
}

/// A move waits for somebody's transaction, is found to, and is cancelled; it is made when that has ended.
async fn a_move_that_waits_is_cancelled_and_made_later(
    killer: &mut Killer,
    world: &World,
    wanted: &Wanted,
) -> Result<()> {
    let open = killer.look(world, wanted).await?;
    let Some(Step::MoveShard { shard_id, from, to }) = open.plan.steps.first().cloned() else {
        panic!("{:?}", open.plan.steps)
    };
    let mut writer = world.ask_client(from).await?;
    let writing = writer.transaction().await?;
    let pid: i32 =
        writing.query_one("SELECT pg_backend_pid(), pg_current_xact_id()::text", &[]).await?.get(0);
    let stuck = tokio::spawn({
        let sessions = world.long_sessions(&open.plan.steps[0])?;
        let step = open.plan.steps[0].clone();
        async move { perform(&step, &sessions).await }
    });
    let running = loop {
        let round = killer.look(world, wanted).await?;
        let catalog = round.observed.catalog.as_ref().unwrap();
        let phase = catalog.progress.first().map(|progress| progress.phase.clone());
        if let (Some(running), Some(_)) = (catalog.moves().next(), phase) {
            break running;
        }
    };
    let stalled = Stalled {
        running,
        phase: "Setting Up".to_owned(),
        idle: Duration::from_mins(10),
        blocking: None,
        filling: None,
        lost_slot: None,
        end: Some(End::Cancel),
    };
    let stall = loop {
        let stall = diagnose(&world.sessions()?, &stalled).await.context("it is at work")?;
        if stall.cause.contains(&format!("(pid {pid}")) {
            break stall;
        }
        assert!(!stuck.is_finished(), "it did not wait: {}", stall.cause);
    };
    killer.stalls = vec![stall];
    let round = killer.look(world, wanted).await?;
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "MoveBlocked"), "{message}");
    let cancel = round.plan.steps[0].clone();
    assert!(matches!(cancel, Step::CancelMove { .. }), "{cancel}");
    killer.carry_out(world, wanted, &cancel).await?;
    assert!(stuck.await?.is_err(), "it was cancelled");
    writing.rollback().await?;
    killer.stalls.clear();
    let steps = killer.settle(world, wanted).await?;
    assert!(steps.contains(&Step::MoveShard { shard_id, from, to }), "{steps:?}");
    Ok(())
}

/// Lets operators work until all that is left is what the gate keeps.
async fn settle_with_plan(killer: &mut Killer, world: &World, wanted: &Wanted) -> Result<()> {
    killer.settle(world, wanted).await?;
    let round = killer.look(world, wanted).await?;
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "PlanAvailable"), "{message}");
    Ok(())
}

#[tokio::test]
async fn an_operator_that_ends_in_the_middle_of_anything_is_continued_by_the_next() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let wanted = wanted(2);
    let mut cut_short = 0;
    let mut migrated = false;
    // Ever later moments, so that each statement is hit sooner or later and the last operator comes through.
    for moment in 0_u64.. {
        let attempt = world.round(&wanted);
        match tokio::time::timeout(Duration::from_millis(5 + moment * 15), attempt).await {
            Err(_) => cut_short += 1,
            Ok(Err(error)) => return Err(error),
            Ok(Ok(round)) if round.is_settled() && !migrated => {
                world.migrate().await?;
                migrated = true;
            }
            Ok(Ok(round)) if round.is_settled() => break,
            // What an operator began is finished by the server before the next one gets the lock.
            Ok(Ok(_)) => {}
        }
        assert!(moment < 300, "never at rest");
    }
    assert!(cut_short > 5, "only {cut_short} operators were cut short");
    let placements = placements(&world).await?;
    assert_eq!(placements.len(), 2 * wanted.tables.len(), "{placements:?}");
    assert!(placements.iter().all(|(_, group_id, shards)| *group_id > 0 && *shards == 24), "{placements:?}");
    assert!(world.round(&wanted).await?.performed.is_empty());
    Ok(())
}
