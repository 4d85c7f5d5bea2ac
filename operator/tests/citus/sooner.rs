//! A tenant that becomes hot in the middle of a series of moves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::heat::{Action, Mode};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::round::Round;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use jiff::Timestamp;

use crate::growth::groups;
use crate::heat::{
    Crowd, MANY, Operator as Watcher, add, millicores_of_the_spammer, spammer, start, uuid, watched,
};
use crate::isolation::{assert_nothing_is_left, covering, hash, outcome, with_mode};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, condition};

/// Shards of each colocation group: enough for moves that last for many periods.
const SHARDS: i32 = 48;
/// Longest time until all has been moved.
const LIMIT: Duration = Duration::from_mins(8);

/// A round, after a look at the last period if nobody has.
async fn go_on(world: &World, wanted: &Wanted, operator: &mut Operator, last: &Round) -> Result<Round> {
    let watch = wanted.watch.as_ref().context("nobody is to look")?;
    if operator.heat.as_ref().is_none_or(|heat| heat.is_due(watch, Timestamp::now())) {
        let watcher = Watcher { world, wanted, observed: last.observed.clone() };
        operator.heat = Some(watcher.look_at(Timestamp::now()).await?);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    operator.round(world, wanted).await
}

/// The shards that these steps move.
fn moved(steps: &[Step]) -> Vec<i64> {
    let shard = |step: &Step| match step {
        Step::MoveShard { shard_id, .. } => Some(*shard_id),
        _ => None,
    };
    steps.iter().filter_map(shard).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialog_that_becomes_hot_while_a_cluster_grows_is_isolated_between_two_moves() -> Result<()> {
    needs_citus!();
    let of = |workers, millicores| Wanted { shard_count: SHARDS, ..watched(workers, millicores) };
    let calm = of(2, MANY);
    let mut world = start(2, &calm, 100).await?;
    // However much the moves and the machine's other work add to it, there is always a worker that can bear the dialog: it is hot for
    // its share alone.
    let millicores = millicores_of_the_spammer(&world, &calm).await? * 8;
    let mut wanted = with_mode(of(3, millicores), Mode::Isolate);
    wanted.watch.as_mut().context("nobody is to look")?.policy.min_cpu_percent = 1;
    add(&mut world, Group::Worker(2), 100)?;
    let crowd = Crowd::start(&world, 1, (1..200).map(uuid).collect(), Duration::from_millis(20)).await?;

    let started = Instant::now();
    let mut operator = Operator::default();
    let mut round = operator.round(&world, &wanted).await?;
    let mut planned = BTreeSet::new();
    while moved(&operator.done).is_empty() {
        ensure!(started.elapsed() < LIMIT, "nothing moves: {:?}", round.plan.waits);
        round = go_on(&world, &wanted, &mut operator, &round).await?;
        planned.extend(round.held_plan().iter().flat_map(|plan| &plan.moves).map(|next| next.shard_id));
    }
    let spammer = spammer(&world).await?;
    while round.observed.kept.acts.is_empty() {
        ensure!(started.elapsed() < LIMIT, "nothing is decided: {:?}", operator.heat);
        ensure!(!round.is_settled(), "everything was moved before: {:?}", operator.heat);
        round = go_on(&world, &wanted, &mut operator, &round).await?;
    }
    let act = round.observed.kept.acts[0].clone();
    let Action::Isolate { tenant, to, .. } = act.action else { panic!("{act:?}") };
    assert_eq!((act.tenant.as_deref(), tenant.hash), (Some(uuid(0).as_str()), hash(&world, &uuid(0)).await?));

    while !round.is_settled()
        || !round.long.is_empty()
        || operator.heat.as_ref().is_some_and(|heat| heat.urgent)
    {
        ensure!(started.elapsed() < LIMIT, "not at rest: {:?}, {:?}", round.plan.steps, round.plan.waits);
        round = go_on(&world, &wanted, &mut operator, &round).await?;
    }
    operator.take_results();
    let steps = &operator.done;
    let split =
        steps.iter().position(|step| matches!(step, Step::SplitShard(_))).context("nothing was split")?;
    let [before, after] = [&steps[..split], &steps[split..]].map(moved);
    let left = after.iter().filter(|shard| planned.contains(shard)).count();
    println!(
        "of {} moves {} were made before the dialog was isolated, {left} of them and {} others after",
        planned.len(),
        before.len(),
        after.len() - left
    );
    ensure!(!before.is_empty() && left > 0, "not between two moves: {steps:?}");
    let act = outcome(&round, act.id).await?;
    assert_eq!(act.outcome, Some(Outcome::Done), "{:?}", act.note);

    // It is where it was put, and the others are spread over all.
    let placed = covering(&world, tenant.hash).await?;
    assert_eq!((placed.range, placed.node), (HashRange { min: tenant.hash, max: tenant.hash }, to));
    assert_eq!(round.observed.kept.pins.iter().map(|pin| pin.tenant).collect::<Vec<_>>(), [tenant]);
    let (holds, reason, message) = condition(&round, BALANCED);
    assert_eq!((holds, reason), ("True", "Balanced"), "{message}");
    let counts = groups(&world).await?;
    let total: i64 = counts.iter().map(|(_, count)| count).sum();
    assert!(total > 2 * i64::from(SHARDS), "{counts:?}");
    for (group, count) in counts.iter().filter(|(group, _)| *group != Group::Coordinator) {
        assert!((3 * count - total).abs() * 7 <= total, "{group}: {counts:?}");
    }
    let written = spammer.end().await? + crowd.end().await?;
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, written);
    assert_nothing_is_left(&world, 3).await
}
