//! What is done about load and size, on real servers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::{Action, Mode, Tenant};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::round::Carried;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use futures::future::try_join_all;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio_postgres::Client;

use crate::heat::Operator;
use crate::isolation::{
    assert_nothing_is_left, colocation, covering, decide, hash, isolating, isolation, outcome, serving,
    with_mode,
};
use crate::needs_citus;
use crate::traffic::Traffic;
use crate::world::{World, condition};

/// Begins to isolate a hash while somebody who has written on the shard's server does not end: what copies the shard waits
/// for him. The number of the action, and who it is.
pub async fn decide_while_written(world: &World, hash: i32) -> Result<(i64, Client)> {
    let writer = world.ask_client(covering(world, hash).await?.node).await?;
    writer.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    Ok((decide(world, isolation(world, hash).await?).await?, writer))
}

/// Has everything done that is to be done, and says what that was.
pub async fn settle(world: &World, wanted: &Wanted) -> Result<Vec<&'static str>> {
    Ok(world.settle(wanted).await?.iter().map(Step::kind).collect())
}

#[tokio::test]
async fn every_hash_of_a_shard_gets_its_own_under_writes_and_stays_where_it_is_pinned() -> Result<()> {
    needs_citus!();
    let (world, wanted) = serving().await?;
    let traffic = Traffic::start(&world).await?;
    let shards = covering(&world, 0).await?.shards;
    // The lowest of all, the highest of all, both ends of one range, and one between.
    let inner = covering(&world, 0).await?.range;
    for hash in [i32::MIN, i32::MAX, inner.min, inner.max, inner.min + 1000] {
        let action = isolation(&world, hash).await?;
        let Action::Isolate { tenant, to, .. } = action else { panic!("{action:?}") };
        let before = covering(&world, hash).await?;
        let id = decide(&world, action).await?;
        let kinds = settle(&world, &wanted).await?;
        for kind in ["SplitShard", "SetPin", "EndAction"] {
            assert_eq!(kinds.iter().filter(|other| **other == kind).count(), 1, "{hash}: {kinds:?}");
        }
        let placed = covering(&world, hash).await?;
        assert_eq!(placed.range, HashRange { min: hash, max: hash });
        assert_eq!((placed.node, placed.shards), (to, shards), "all tables of the group go together");
        for (neighbour, there) in
            [(hash.checked_sub(1), before.range.min < hash), (hash.checked_add(1), hash < before.range.max)]
        {
            if let Some(neighbour) = neighbour.filter(|_| there) {
                assert_eq!(covering(&world, neighbour).await?.shards, shards);
            }
        }
        let round = world.round(&wanted).await?;
        let act = outcome(&round, id).await?;
        assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{:?}", act.note);
        assert!(round.observed.kept.pins.iter().any(|pin| pin.tenant == tenant));
        assert!(round.is_settled() && round.performed.is_empty(), "{:?}", round.plan);

        // Once more: nothing is cut twice.
        let again = decide(&world, action).await?;
        let kinds = settle(&world, &wanted).await?;
        assert_eq!(kinds, ["EndAction"], "{hash}");
        assert_eq!(outcome(&world.round(&wanted).await?, again).await?.outcome, Some(Outcome::Done));
        assert_eq!(covering(&world, hash).await?, placed);
    }
    traffic.verify(&world).await?;
    assert_nothing_is_left(&world, 3).await?;

    // A worker that leaves: who is pinned there is pinned elsewhere first, and goes there.
    let fewer = isolating(2);
    let kinds = settle(&world, &fewer).await?;
    let position = |kind: &str| kinds.iter().position(|other| *other == kind).context("not done");
    if covering(&world, i32::MIN).await?.node != Group::Worker(2) {
        assert!(kinds.contains(&"MoveShard") && kinds.contains(&"RemoveNode"), "{kinds:?}");
    }
    if kinds.contains(&"Retarget") {
        assert!(position("Retarget")? < position("MoveShard")?, "{kinds:?}");
    }
    let round = world.round(&fewer).await?;
    for pin in &round.observed.kept.pins {
        let placed = covering(&world, pin.tenant.hash).await?;
        assert_eq!(world.topology().endpoint(placed.node), Some(&pin.endpoint), "{pin:?}");
        assert_ne!(placed.node, Group::Worker(2));
    }
    Ok(())
}

/// Fills one shard group with so many bytes that the quick way is not for it.
pub async fn make_large(world: &World, dialog: &str) -> Result<()> {
    let rows = format!(
        "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
         SELECT '{dialog}', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(),
                (SELECT string_agg(md5(row || ' ' || part), '') FROM generate_series(1, 60) AS part), now()
         FROM generate_series(1, 9000) AS row"
    );
    world.api(Group::Coordinator).await?.run(&rows).await?;
    Ok(())
}

pub const DIALOG: &str = "00000000-0000-4000-8000-000000000007";

/// As [`serving`], with the dialog [`DIALOG`] in a shard that the quick way is not for, and its hash.
pub async fn with_a_large_shard() -> Result<(World, Wanted, i32)> {
    let (world, wanted) = serving().await?;
    make_large(&world, DIALOG).await?;
    let large = hash(&world, DIALOG).await?;
    Ok((world, wanted, large))
}

/// The only step of a round that does nothing.
pub async fn planned(world: &World, wanted: &Wanted) -> Result<Step> {
    let round = world.round_of(wanted, 0).await?;
    let step = round.plan.steps.first().cloned();
    step.with_context(|| format!("nothing is planned: {:?}", round.plan.waits))
}

#[tokio::test]
async fn a_large_shard_is_cut_while_its_dialog_is_written_to_and_a_small_one_where_writers_do_not_let_go()
-> Result<()> {
    needs_citus!();
    let (world, wanted, large) = with_a_large_shard().await?;
    let traffic = Traffic::start(&world).await?;
    let id = decide(&world, isolation(&world, large).await?).await?;
    let Step::SplitShard(split) = planned(&world, &wanted).await? else { panic!("nothing is split") };
    assert!(!split.blocking && !split.nodes.contains(&split.from), "{split:?}");
    settle(&world, &wanted).await?;
    let placed = covering(&world, large).await?;
    assert_eq!(placed.range.min, placed.range.max);
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{:?}", act.note);

    // A transaction that has written to a small shard, and does not end: the quick way gives up soon.
    let other = "00000000-0000-4000-8000-000000000001";
    let small = hash(&world, other).await?;
    assert_ne!(covering(&world, small).await?.shard_id, placed.shard_id);
    let id = decide(&world, isolation(&world, small).await?).await?;
    let step = planned(&world, &wanted).await?;
    assert!(matches!(&step, Step::SplitShard(split) if split.blocking), "{step}");
    let mut writer = world.ask_client(Group::Coordinator).await?;
    let open = writer.transaction().await?;
    open.batch_execute(&message(other, "open")).await?;
    let started = Instant::now();
    assert!(world.try_carry_out(&wanted, &step).await.is_err(), "it did not wait for the writer");
    assert!(started.elapsed() < Duration::from_secs(8), "writers waited for {:?}", started.elapsed());
    let act = outcome(&world.round_of(&wanted, 0).await?, id).await?;
    assert!(act.attempts == 1 && act.note.is_some_and(|note| note.contains("lock timeout")));
    // The other way waits for it, and then goes through.
    let patient = planned(&world, &wanted).await?;
    assert!(matches!(&patient, Step::SplitShard(split) if !split.blocking), "{patient}");
    open.commit().await?;
    settle(&world, &wanted).await?;
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 2), "{:?}", act.note);
    traffic.verify(&world).await?;
    assert_nothing_is_left(&world, 3).await
}

/// A message for `dialog`.
fn message(dialog: &str, text: &str) -> String {
    format!(
        "INSERT INTO public.messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
         VALUES ('{dialog}', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '{text}', now())"
    )
}

/// What became of a step while somebody wrote on the shard's own server.
struct Tried {
    carried: Result<Carried>,
    lasted: Duration,
    /// The longest time that a write took.
    longest: Duration,
    written: i64,
}

/// Tries to carry out a step while somebody writes to the dialog, on the server that owns it.
async fn try_while_written(world: &World, wanted: &Wanted, step: &Step, dialog: &str) -> Result<Tried> {
    let owner = covering(world, hash(world, dialog).await?).await?.node;
    let other = world.ask_client(owner).await?;
    let ended = AtomicBool::new(false);
    let write = async {
        let (mut longest, mut written) = (Duration::ZERO, 0);
        while !ended.load(Ordering::Relaxed) {
            let begun = Instant::now();
            other.batch_execute(&message(dialog, "other")).await?;
            longest = longest.max(begun.elapsed());
            written += 1;
        }
        anyhow::Ok((longest, written))
    };
    let split = async {
        let started = Instant::now();
        let carried = world.try_carry_out(wanted, step).await;
        let lasted = started.elapsed();
        ended.store(true, Ordering::Relaxed);
        (carried, lasted)
    };
    let ((carried, lasted), others) = tokio::join!(split, write);
    let (longest, written) = others?;
    Ok(Tried { carried, lasted, longest, written })
}

/// dialog-api writes on the worker that owns the shard, where Citus locks it by sessions of its own.
#[tokio::test]
async fn a_writer_on_the_owner_who_does_not_let_go_keeps_others_waiting_no_longer_than_one_on_the_coordinator()
-> Result<()> {
    needs_citus!();
    let (world, wanted) = serving().await?;
    let dialog = "00000000-0000-4000-8000-000000000001";
    let own = hash(&world, dialog).await?;
    let owner = covering(&world, own).await?.node;
    let id = decide(&world, isolation(&world, own).await?).await?;
    let step = planned(&world, &wanted).await?;
    assert!(matches!(&step, Step::SplitShard(split) if split.blocking), "{step}");
    let mut writer = world.ask_client(owner).await?;
    let open = writer.transaction().await?;
    open.batch_execute(&message(dialog, "open")).await?;
    let Tried { carried, lasted, longest, written } =
        try_while_written(&world, &wanted, &step, dialog).await?;
    println!("given up after {lasted:.1?}; the longest wait of {written} other writes was {longest:.1?}");
    assert!(carried.is_err(), "it did not wait for the writer");
    assert!(longest < Duration::from_secs(4), "others waited for {longest:?}");
    let act = outcome(&world.round_of(&wanted, 0).await?, id).await?;
    let note = act.note.context("it is not said why")?;
    assert!(act.attempts == 0 && note.contains("lock timeout"), "{note}");
    open.commit().await?;
    settle(&world, &wanted).await?;
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{:?}", act.note);
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    assert_eq!(rows, written + 1);
    assert_nothing_is_left(&world, 3).await
}

/// The statements of dialog-api end after two seconds.
#[tokio::test]
async fn a_copy_that_takes_long_keeps_nobody_waiting_as_long_as_there_is_another_way() -> Result<()> {
    needs_citus!();
    let (world, wanted) = serving().await?;
    let own = hash(&world, DIALOG).await?;
    let id = decide(&world, isolation(&world, own).await?).await?;
    let step = planned(&world, &wanted).await?;
    let Step::SplitShard(split) = &step else { panic!("{step}") };
    assert!(split.blocking && !split.nodes.contains(&split.from), "{split:?}");
    // The workers that are to have the parts make each table in a second.
    let clients = try_join_all(split.nodes.iter().map(|node| world.ask_client(*node))).await?;
    for client in &clients {
        client
            .batch_execute(
                "SET citus.enable_ddl_propagation = off;
                 CREATE OR REPLACE FUNCTION public.slowly() RETURNS event_trigger LANGUAGE plpgsql AS $$
                 BEGIN PERFORM pg_sleep(1); END $$;
                 DROP EVENT TRIGGER IF EXISTS slowly;
                 CREATE EVENT TRIGGER slowly ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.slowly()",
            )
            .await?;
    }
    let Tried { carried, lasted, longest, written } =
        try_while_written(&world, &wanted, &step, DIALOG).await?;
    println!("given up after {lasted:.1?}; the longest wait of {written} other writes was {longest:.1?}");
    assert!(carried.is_err(), "it took as long as it takes");
    assert!(longest < Duration::from_secs(4), "others waited for {longest:?}");
    let act = outcome(&world.round_of(&wanted, 0).await?, id).await?;
    assert!(act.attempts == 1 && act.note.is_some_and(|note| note.contains("statement timeout")));
    // The other way takes its time.
    let patient = planned(&world, &wanted).await?;
    assert!(matches!(&patient, Step::SplitShard(split) if !split.blocking), "{patient}");
    settle(&world, &wanted).await?;
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 2), "{:?}", act.note);
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    assert_eq!(rows, written);
    assert_nothing_is_left(&world, 3).await
}

#[tokio::test]
async fn what_is_not_to_be_done_any_more_is_not_begun() -> Result<()> {
    needs_citus!();
    let (world, wanted) = serving().await?;
    let shards = "SELECT count(*) FROM pg_dist_shard";
    let before = world.number(Group::Coordinator, shards).await?;
    let dropped = async |wanted: &Wanted, action: Action, why: &str| -> Result<()> {
        let id = decide(&world, action).await?;
        let mut kinds = settle(&world, wanted).await?;
        // Where nothing is isolated Citus' rebalancer need not know.
        kinds.retain(|kind| !kind.ends_with("Strategy"));
        ensure!(kinds == ["EndAction"], "{why}: {kinds:?}");
        let act = outcome(&world.round(wanted).await?, id).await?;
        ensure!(act.outcome == Some(Outcome::Dropped), "{why}: {act:?}");
        ensure!(act.begun == act.ended, "it never began: {act:?}");
        ensure!(act.note.as_deref().is_some_and(|note| note.contains(why)), "{why}: {act:?}");
        Ok(())
    };
    // The policy was edited meanwhile.
    let action = isolation(&world, 7).await?;
    dropped(&with_mode(wanted.clone(), Mode::Observe), action, "not Isolate any more").await?;
    let Action::Isolate { tenant, from, to, rest } = action else { panic!("{action:?}") };
    // Its tables are gone, or the worker that it was to go to.
    let nowhere = Tenant { colocation_id: 4711, ..tenant };
    dropped(&wanted, Action::Isolate { tenant: nowhere, from, to, rest }, "tables are gone").await?;
    let left = Action::Isolate { tenant, from, to: Group::Worker(7), rest };
    dropped(&wanted, left, "worker-7 leaves, or has left").await?;
    let shard = covering(&world, 7).await?;
    let colocation_id = tenant.colocation_id;
    let gone = Action::Split { colocation_id, shard_id: 1, from, at: shard.range.min + 10, to: [to, to] };
    dropped(&wanted, gone, "the shard is gone").await?;
    let (shard_id, at) = (shard.shard_id, shard.range.max);
    let beyond = Action::Split { colocation_id, shard_id, from, at, to: [to, to] };
    dropped(&wanted, beyond, "does not cover both halves").await?;
    assert_eq!(world.number(Group::Coordinator, shards).await?, before);

    // One thing at a time, whoever decides.
    decide(&world, action).await?;
    assert!(decide(&world, action).await.is_err(), "two things at the same time");
    let (status, reason, message) = condition(&world.round_of(&wanted, 0).await?, HOT_TENANT);
    assert_eq!((status, reason), ("True", "Acting"), "{message}");
    // Two operators: one of them does it.
    let step = planned(&world, &wanted).await?;
    let (one, other) = tokio::join!(world.try_carry_out(&wanted, &step), world.try_carry_out(&wanted, &step));
    let carried = [one?, other?];
    assert_eq!(carried.iter().filter(|carried| **carried == Carried::Out).count(), 1, "{carried:?}");
    settle(&world, &wanted).await?;
    assert_eq!(covering(&world, 7).await?.node, to);

    // A shard that is too large, in the middle.
    let shard = covering(&world, 1 << 20).await?;
    let mut others = (0..3).map(Group::Worker).filter(|group| *group != shard.node);
    let to = [others.next().unwrap(), others.next().unwrap()];
    let at = shard.range.min + 100;
    let (shard_id, from) = (shard.shard_id, shard.node);
    let id = decide(&world, Action::Split { colocation_id, shard_id, from, at, to }).await?;
    world.settle(&wanted).await?;
    assert_eq!(outcome(&world.round(&wanted).await?, id).await?.outcome, Some(Outcome::Done));
    assert_eq!(covering(&world, at).await?.range, HashRange { min: shard.range.min, max: at });
    assert_eq!(covering(&world, at + 1).await?.range, HashRange { min: at + 1, max: shard.range.max });
    assert_nothing_is_left(&world, 3).await
}

#[tokio::test]
async fn what_could_not_be_done_for_an_hour_is_given_up() -> Result<()> {
    needs_citus!();
    let world = World::start(1)?;
    let mut wanted = isolating(1);
    wanted.watch.as_mut().context("nobody is to look")?.period = SignedDuration::from_secs(1);
    world.serve(&wanted).await?;
    // What another version wrote, and this one cannot read, is in the way like everything that is open.
    let open = "INSERT INTO dialog_operator.actions (decided, action, asked_by, why)
                VALUES (now() - interval '59 minutes', '{\"Unheard\": 1}', 'test', 'a test says so')";
    world.ask(Group::Coordinator, open).await?;
    let outcome = async || -> Result<Option<String>> {
        let rows = world.ask(Group::Coordinator, "SELECT outcome FROM dialog_operator.actions").await?;
        Ok(rows[0].get(0))
    };
    let operator = Operator::new(&world, &wanted).await?;
    operator.look(None).await?;
    assert_eq!(outcome().await?, None);
    // A clock that is a day ahead for a moment is no day that has passed.
    operator.look_at(Timestamp::now() + SignedDuration::from_hours(24)).await?;
    assert_eq!(outcome().await?, None);
    let later = "UPDATE dialog_operator.actions SET decided = decided - interval '2 minutes'";
    world.ask(Group::Coordinator, later).await?;
    // Nor does one that is two hours behind have it wait for these.
    operator.look_at(Timestamp::now() - SignedDuration::from_hours(2)).await?;
    assert_eq!(outcome().await?.as_deref(), Some("Failed"));

    // Who looks ends nothing that has attempts left: it may be at work by now, and its end is noted when nothing is left of it.
    let tenant = Tenant { colocation_id: colocation(&world).await?, hash: 7 };
    let (from, to) = (Group::Worker(0), Group::Worker(1));
    let tried = decide(&world, Action::Isolate { tenant, from, to, rest: None }).await?;
    let ago = "UPDATE dialog_operator.actions SET attempts = 1, note = 'it failed', decided = now() - interval '2 hours'
               WHERE ended IS NULL";
    world.ask(Group::Coordinator, ago).await?;
    operator.look_at(Timestamp::now() + SignedDuration::from_hours(1)).await?;
    let open = format!("SELECT count(*) FROM dialog_operator.actions WHERE id = {tried} AND outcome IS NULL");
    assert_eq!(world.number(Group::Coordinator, &open).await?, 1);
    Ok(())
}
