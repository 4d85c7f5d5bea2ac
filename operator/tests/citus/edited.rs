//! What changes in the middle of an action, or under what is watched: the policy, and the servers' statistics.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::heat::{Action, Mode};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::wanted::Wanted;
use tokio_postgres::Client;

use crate::acting::make_large;
use crate::heat::{
    Crowd, MANY, Operator as Watcher, millicores_of_the_spammer, spammer, start, uuid, watched,
};
use crate::isolation::{
    assert_nothing_is_left, covering, decide, hash, isolation, outcome, serving, with_mode,
};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, eventually};

const LIMIT: Duration = Duration::from_mins(3);

/// Begins to isolate the dialog, whose split then waits for the transaction that is returned.
async fn begun(
    world: &World,
    wanted: &Wanted,
    operator: &mut Operator,
    dialog: &str,
) -> Result<(i64, Action, Client)> {
    make_large(world, dialog).await?;
    let hash = hash(world, dialog).await?;
    let source = covering(world, hash).await?.node;
    let writer = world.ask_client(source).await?;
    writer.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let action = isolation(world, hash).await?;
    let id = decide(world, action).await?;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("the split waits for the writer", async || {
        operator.round(world, wanted).await?;
        ensure!(operator.failed.is_empty(), "it failed by itself");
        Ok(world.number(source, waits).await? > 0)
    })
    .await?;
    Ok((id, action, writer))
}

/// Shards of `messages`.
async fn shards(world: &World) -> Result<i64> {
    let count = "SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = 'public.messages'::regclass";
    world.number(Group::Coordinator, count).await
}

#[tokio::test]
async fn a_policy_that_is_edited_in_the_middle_of_a_split_leaves_nothing_half_done() -> Result<()> {
    needs_citus!();
    let (world, wanted) = serving().await?;
    let before = shards(&world).await?;
    let mut operator = Operator::default();

    // Nobody is to be isolated any more: what has begun is brought to its end, and nothing else follows.
    let (id, action, writer) = begun(&world, &wanted, &mut operator, &uuid(7)).await?;
    let observing = with_mode(wanted.clone(), Mode::Observe);
    let round = operator.round(&world, &observing).await?;
    ensure!(round.performed.is_empty() && !operator.jobs.is_idle(), "{:?}", round.performed);
    writer.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &observing, LIMIT).await?;
    let kept = world.round(&observing).await?.observed.kept;
    let act = kept.acts.iter().find(|act| act.id == id).context("it was not written down")?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{act:?}");
    assert_eq!((kept.pins.len(), shards(&world).await?), (1, before + 2));
    let tenant = action.tenant().context("nobody")?;
    assert_eq!(covering(&world, tenant.hash).await?.range, HashRange { min: tenant.hash, max: tenant.hash });

    // Who raises the threshold takes back nothing that was decided.
    let (id, action, writer) = begun(&world, &wanted, &mut operator, &uuid(1)).await?;
    let mut raised = wanted.clone();
    raised.watch.as_mut().context("nobody is to look")?.policy.share_percent = 95;
    operator.round(&world, &raised).await?;
    writer.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &raised, LIMIT).await?;
    let round = world.round(&raised).await?;
    let act = outcome(&round, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{act:?}");
    let Action::Isolate { tenant, to, .. } = action else { panic!("{action:?}") };
    let placed = covering(&world, tenant.hash).await?;
    assert_eq!((placed.node, placed.range.min, placed.range.max), (to, tenant.hash, tenant.hash));
    assert_eq!((round.observed.kept.pins.len(), shards(&world).await?), (2, before + 4));
    let splits = operator.done.iter().filter(|step| step.kind() == "SplitShard").count();
    assert_eq!(splits, 2, "nothing was cut twice: {:?}", operator.done);
    assert_nothing_is_left(&world, 3).await
}

/// Somebody resets what the servers count, of tenants and of all, while a dialog floods its worker and while it is moved.
#[tokio::test]
async fn statistics_that_are_reset_neither_accuse_nor_have_anything_done_twice() -> Result<()> {
    needs_citus!();
    let calm = watched(3, MANY);
    let world = start(3, &calm, 100).await?;
    let millicores = millicores_of_the_spammer(&world, &calm).await? * 2;
    let wanted = with_mode(watched(3, millicores), Mode::Isolate);
    let watcher = Watcher::new(&world, &wanted).await?;
    let reset = async || -> Result<()> {
        for group in (0..3).map(Group::Worker).chain([Group::Coordinator]) {
            world.ask(group, "SELECT citus_stat_tenants_reset(), pg_stat_reset()").await?;
        }
        Ok(())
    };
    let crowd = Crowd::start(&world, 2, (1..200).map(uuid).collect(), Duration::from_millis(20)).await?;
    let mut heat = watcher.look(None).await?;
    heat = watcher.look(Some(&heat)).await?;
    let spammer = spammer(&world).await?;
    heat = watcher.look(Some(&heat)).await?;
    reset().await?;
    heat = watcher.look(Some(&heat)).await?;
    ensure!(heat.last.is_none(), "what is left of a period after a reset says nothing: {heat:?}");
    let mut periods = 0;
    while heat.last.is_none() {
        heat = watcher.look(Some(&heat)).await?;
        periods += 1;
        ensure!(periods <= 5, "it was not found any more after the reset: {heat:?}");
    }
    let decided = heat.last.clone().context("nothing was decided")?;
    reset().await?;
    let steps = world.settle(&wanted).await?;
    let splits = steps.iter().filter(|step| step.kind() == "SplitShard").count();
    assert_eq!(splits, 1, "{steps:?}");
    reset().await?;
    let watcher = Watcher::new(&world, &wanted).await?;
    for _ in 0..4 {
        heat = watcher.look(Some(&heat)).await?;
        let steps = world.settle(&wanted).await?;
        assert!(steps.is_empty(), "{steps:?}");
    }
    assert_eq!(heat.last.as_ref().map(|last| last.at.clone()), Some(decided.at), "nothing more was decided");
    let acts = watcher.round(&heat).await.observed.kept.acts;
    let [act] = &acts[..] else { panic!("{acts:?}") };
    let story = (act.outcome, act.tenant.as_deref(), act.attempts);
    assert_eq!(story, (Some(Outcome::Done), Some(uuid(0).as_str()), 1), "{act:?}");
    // The first whole period after it is compared with the one before, though there was a reset in between.
    let shown = act.status();
    assert!(shown.before.is_some() && shown.after.is_some(), "{shown:?}");
    let written = spammer.end().await? + crowd.end().await?;
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, written);
    assert_nothing_is_left(&world, 3).await
}
