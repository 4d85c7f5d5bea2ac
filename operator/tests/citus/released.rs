//! A dialog that has been quiet for as long as the policy says is one like the others again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::heat::{Action, Mode};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use jiff::{SignedDuration, Timestamp};

use crate::heat::{Crowd, MANY, Operator, millicores_of_the_spammer, spammer, start, uuid, watched};
use crate::isolation::{assert_nothing_is_left, covering, decide, hash, isolation, with_mode};
use crate::needs_citus;
use crate::world::World;

/// How long a dialog is to be quiet here: more than two periods, so that one that is quiet for less is seen to stay.
const QUIET: SignedDuration = SignedDuration::from_secs(20);

/// Its first worker is dedicated: what is not pinned does not stay there.
fn dedicated(millicores: u64) -> Wanted {
    Wanted { dedicated: 1, ..watched(3, millicores) }
}

async fn pinned(world: &World, wanted: &Wanted) -> Result<usize> {
    Ok(world.round_of(wanted, 0).await?.observed.kept.pins.len())
}

#[tokio::test]
async fn a_dialog_that_is_quiet_for_long_enough_is_released_and_its_shard_moves_like_others() -> Result<()> {
    needs_citus!();
    let calm = dedicated(MANY);
    let world = start(3, &calm, 100).await?;
    let millicores = millicores_of_the_spammer(&world, &calm).await? * 2;
    let mut wanted = with_mode(dedicated(millicores), Mode::Isolate);
    let policy = &mut wanted.watch.as_mut().context("nobody is to look")?.policy;
    (policy.cooldown, policy.release_after) = (SignedDuration::ZERO, QUIET);
    world.settle(&wanted).await?;
    let hot = hash(&world, &uuid(0)).await?;

    // It floods, and is isolated and pinned.
    let operator = Operator::new(&world, &wanted).await?;
    let spammer = spammer(&world).await?;
    let mut heat = operator.look(None).await?;
    let mut periods = 0;
    let mut became = Vec::new();
    while heat.last.is_none() {
        heat = operator.look(Some(&heat)).await?;
        became.extend(heat.turned.iter().map(|turn| (turn.hot, turn.message.clone())));
        periods += 1;
        ensure!(periods <= 5, "not found: {heat:?}");
    }
    let Some((true, message)) = became.first() else { panic!("{became:?}") };
    assert!(message.starts_with(&format!("dialog {} takes ", uuid(0))), "{message}");
    world.settle(&wanted).await?;
    let own = covering(&world, hot).await?;
    assert_eq!((own.node, own.range), (Group::Worker(0), HashRange { min: hot, max: hot }));
    // It stays pinned as long as it does as much as before.
    let operator = Operator::new(&world, &wanted).await?;
    for _ in 0..4 {
        heat = operator.look(Some(&heat)).await?;
        assert_eq!(pinned(&world, &wanted).await?, 1, "{heat:?}");
    }
    assert!(world.settle(&wanted).await?.is_empty());

    // It is quiet. An operator that is started anew meanwhile has not forgotten since when.
    let written = spammer.end().await?;
    let ended = Timestamp::now();
    let mut turned = Vec::new();
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
        turned.extend(heat.turned.iter().map(|turn| (turn.hot, turn.message.clone())));
    }
    assert_eq!(pinned(&world, &wanted).await?, 1, "too soon: {heat:?}");
    let next = Operator::new(&world, &wanted).await?;
    while pinned(&world, &wanted).await? > 0 {
        heat = next.look(Some(&heat)).await?;
        turned.extend(heat.turned.iter().map(|turn| (turn.hot, turn.message.clone())));
        ensure!(Timestamp::now().duration_since(ended) < QUIET * 4, "never released: {heat:?}");
    }
    // That it has cooled down is told once.
    let [(false, message)] = &turned[..] else { panic!("{turned:?}") };
    let said = format!("dialog {} does not take a large part of worker-0 any more", uuid(0));
    assert!(message.starts_with(&said), "{message}");
    let quiet = heat.end.context("no period was seen")?.duration_since(ended);
    assert!(quiet >= QUIET, "released after {quiet:?}");
    let decided = heat.last.clone().context("nothing is said")?;
    assert_eq!(decided.kind, "Release");
    let said = format!("dialog {} has been quiet for long and is one like the others again", uuid(0));
    assert_eq!(decided.message, said);

    // The status says so, and the table.
    let round = next.round(&heat).await;
    let story =
        status(&wanted, &world.topology(), &round, None, Timestamp::now()).heat.context("no story")?;
    let kinds: Vec<&str> = story.actions.iter().map(|act| act.kind.as_str()).collect();
    assert!(kinds.contains(&"Isolate") && kinds.contains(&"Release"), "{kinds:?}");
    let shown = story.actions.iter().find(|act| act.kind == "Release").context("it is not shown")?;
    assert_eq!((shown.tenant.as_deref(), &shown.why), (Some(uuid(0).as_str()), &decided.message));
    assert_eq!(shown.outcome.as_deref(), Some(Outcome::Done.name()));
    let last = round.observed.kept.acts.last().context("nothing was written down")?;
    let Action::Release { tenant } = last.action else { panic!("{last:?}") };
    assert_eq!((tenant.hash, last.asked_by.as_str()), (hot, "policy"));

    // Its shard keeps its range, and goes where others go: this worker is for what is pinned.
    let steps = world.settle(&wanted).await?;
    let moved = |step: &Step| matches!(step, Step::MoveShard { shard_id, from, .. } if (*shard_id, *from) == (own.shard_id, own.node));
    assert!(steps.iter().any(moved), "{steps:?}");
    let placed = covering(&world, hot).await?;
    assert_eq!((placed.shard_id, placed.range, placed.shards), (own.shard_id, own.range, own.shards));
    assert_ne!(placed.node, Group::Worker(0));
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    assert_eq!(rows, written);
    assert_nothing_is_left(&world, 3).await
}

#[tokio::test]
async fn a_dialog_is_known_to_be_quiet_though_its_worker_lists_only_those_who_are_busy() -> Result<()> {
    needs_citus!();
    // A place for each of six, where hundreds are busy.
    let mut wanted = with_mode(watched(3, MANY), Mode::Isolate);
    let world = start(3, &wanted, 2).await?;
    let policy = &mut wanted.watch.as_mut().context("nobody is to look")?.policy;
    (policy.cooldown, policy.release_after) = (SignedDuration::ZERO, QUIET);
    let enough = policy.min_queries;
    world.settle(&wanted).await?;
    let own = hash(&world, &uuid(0)).await?;
    decide(&world, isolation(&world, own).await?).await?;
    world.settle(&wanted).await?;
    let placed = covering(&world, own).await?;
    assert_eq!((pinned(&world, &wanted).await?, placed.range), (1, HashRange { min: own, max: own }));

    let crowd = Crowd::start(&world, 2, (1..400).map(uuid).collect(), Duration::from_millis(2)).await?;
    // While it does something it stays, listed or not.
    let few = Crowd::start(&world, 1, vec![uuid(0)], Duration::from_millis(10)).await?;
    let operator = Operator::new(&world, &wanted).await?;
    let mut heat = operator.look(None).await?;
    let busy_since = Timestamp::now();
    while Timestamp::now().duration_since(busy_since) < QUIET * 2 {
        heat = operator.look(Some(&heat)).await?;
        assert_eq!(pinned(&world, &wanted).await?, 1, "{heat:?}");
    }
    few.end().await?;
    let ended = Timestamp::now();
    let mut full = 0;
    while pinned(&world, &wanted).await? > 0 {
        heat = operator.look(Some(&heat)).await?;
        full += i32::from(heat.nodes[&placed.node].unlisted >= enough);
        ensure!(Timestamp::now().duration_since(ended) < QUIET * 4, "never released: {heat:?}");
    }
    assert!(full >= 3, "its worker's list told of all: this shows nothing");
    let quiet = heat.end.context("no period was seen")?.duration_since(ended);
    assert!(quiet >= QUIET, "released after {quiet:?}");
    crowd.end().await?;
    Ok(())
}
