//! From a flood to a worker of its own, and many times in a row, while people write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::api::{HotTenant, IsolatedTenant};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::{Action, Mode};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use jiff::Timestamp;

use crate::acting::{
    assert_nothing_is_left, covering, decide, hash, isolating, isolation, outcome, with_mode,
};
use crate::heat::{Crowd, MANY, Operator, millicores_of_the_spammer, spammer, start, uuid, watched};
use crate::needs_citus;
use crate::world::{World, condition};

/// Longest time that the dialog that is moved may stand still, and any other.
const OWN_GAP: Duration = Duration::from_secs(2);
const OTHER_GAP: Duration = Duration::from_millis(500);

/// A machine that others use as well keeps people waiting without anybody moving anything: what it does by itself counts.
fn allowed(limit: Duration, by_itself: Duration) -> Duration {
    limit.max(by_itself * 3)
}

/// Dialogs whose shard groups are others than that of `hash`.
async fn elsewhere(world: &World, hash_of: i32) -> Result<Vec<String>> {
    let range = covering(world, hash_of).await?.range;
    let mut dialogs = Vec::new();
    for number in 1..150 {
        let dialog = uuid(number);
        if !range.contains(hash(world, &dialog).await?) {
            dialogs.push(dialog);
        }
    }
    Ok(dialogs)
}

#[tokio::test]
async fn a_dialog_that_takes_its_worker_gets_its_own_and_nobody_loses_a_message() -> Result<()> {
    needs_citus!();
    let calm = watched(3, MANY);
    let world = start(3, &calm, 100).await?;
    let millicores = millicores_of_the_spammer(&world, &calm).await? * 2;
    let wanted = with_mode(watched(3, millicores), Mode::Isolate);
    let operator = Operator::new(&world, &wanted).await?;
    let hot = hash(&world, &uuid(0)).await?;
    let source = covering(&world, hot).await?;
    let crowd = Crowd::start(&world, 2, elsewhere(&world, hot).await?, Duration::from_millis(20)).await?;
    let mut heat = operator.look(None).await?;
    heat = operator.look(Some(&heat)).await?;
    let spammer = spammer(&world).await?;
    // What is left of this period does not count.
    heat = operator.look(Some(&heat)).await?;
    let (mut own, mut others) = (spammer.longest(), crowd.longest());
    let mut periods = 0;
    while heat.last.is_none() {
        (own, others) = (own.max(spammer.longest()), others.max(crowd.longest()));
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
        ensure!(periods <= 3, "not found within consecutivePeriods + 1 periods: {heat:?}");
    }
    let decided = heat.last.clone().context("nothing was decided")?;
    assert!(decided.message.contains(" gets a shard of its own on worker-"), "{}", decided.message);
    let (status, reason, message) = condition(&world.round_of(&wanted, 0).await?, HOT_TENANT);
    assert_eq!((status, reason, &message), ("True", "Acting", &decided.message));

    let begun = Instant::now();
    let steps = world.settle(&wanted).await?;
    let lasted = begun.elapsed();
    let (own_gap, other_gap) = (spammer.longest(), crowd.longest());
    let kinds: Vec<&str> = steps.iter().map(dialog_operator::shards::step::Step::kind).collect();
    // There are two shard groups more, which are then spread like all others.
    let (first, later) = kinds.split_at(3.min(kinds.len()));
    assert_eq!(first, ["SplitShard", "SetPin", "EndAction"]);
    assert!(later.iter().all(|kind| ["MoveShard", "CleanUp"].contains(kind)), "{kinds:?}");
    let placed = covering(&world, hot).await?;
    assert_eq!(placed.range, HashRange { min: hot, max: hot });
    assert!(placed.node != source.node && placed.shards == source.shards, "{placed:?}");

    // The next periods show it where it is now, and it stays there.
    let operator = Operator::new(&world, &wanted).await?;
    for _ in 0..3 {
        heat = operator.look(Some(&heat)).await?;
        let steps = world.settle(&wanted).await?;
        assert!(steps.is_empty(), "{steps:?}");
    }
    assert_eq!(heat.last.as_ref().map(|last| last.at.clone()), Some(decided.at), "nothing more was decided");
    let round = operator.round(&heat).await;
    let [act] = &round.observed.kept.acts[..] else { panic!("{:?}", round.observed.kept.acts) };
    assert_eq!((act.outcome, act.tenant.as_deref()), (Some(Outcome::Done), Some(uuid(0).as_str())));
    let shown = act.status();
    let figures = (shown.before.context("before")?, shown.after.context("after")?);
    assert!(
        figures.0.tenant_writes_per_second > Some(0) && figures.0.source_cpu_percent > Some(30),
        "{figures:?}"
    );
    assert!(figures.1.source_cpu_percent < figures.0.source_cpu_percent, "{figures:?}");
    assert!(shown.milliseconds.is_some_and(|took| took > 0), "{shown:?}");

    // It is as hot as it was, and nothing is left to do about it.
    let [HotTenant { tenant, node, pinned: true, .. }] = &heat.hot[..] else { panic!("{:?}", heat.hot) };
    assert_eq!((tenant.clone(), node.clone()), (uuid(0), placed.node.to_string()));
    let (status, reason, message) = condition(&round, HOT_TENANT);
    assert_eq!((status, reason), ("False", "Isolated"), "{message}");
    assert!(message.contains(&format!("dialog {}", uuid(0))), "{message}");
    let topology = world.topology();
    let shown = dialog_operator::shards::status::status(&wanted, &topology, &round, None, Timestamp::now());
    let [IsolatedTenant { tenant, group, worker, asked_by, .. }] = &shown.isolated[..] else {
        panic!("{:?}", shown.isolated)
    };
    assert_eq!((tenant, group.as_str(), asked_by.as_str()), (&uuid(0), "dialog", "policy"));
    assert_eq!((worker.clone(), shown.isolated_count), (placed.node.to_string(), Some(1)));
    let said: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert!(said.contains(&format!("pin dialog {} to {}", uuid(0), placed.node)), "{said:?}");

    let written = spammer.end().await? + crowd.end().await?;
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    println!(
        "found after {periods} periods, done in {lasted:.1?}; {written} messages, {} lost; longest wait of its own dialog \
         {own_gap:?} (before: {own:?}), of the others {other_gap:?} (before: {others:?})",
        written - rows
    );
    assert_eq!(rows, written);
    ensure!(own_gap <= allowed(OWN_GAP, own), "its own dialog stood still for {own_gap:?}");
    ensure!(other_gap <= allowed(OTHER_GAP, others), "others stood still for {other_gap:?}");
    assert_nothing_is_left(&world, 3).await
}

/// How many, if not so many as the variable says: `DIALOG_ISOLATIONS=50` for the figure of the documentation.
const ISOLATIONS: i32 = 6;

#[tokio::test]
async fn isolations_in_a_row_under_writes_never_hang_and_leave_nothing() -> Result<()> {
    needs_citus!();
    let count = std::env::var("DIALOG_ISOLATIONS").ok().map_or(Ok(ISOLATIONS), |count| count.parse())?;
    let world = World::start(3)?;
    let wanted = isolating(3);
    world.serve(&wanted).await?;
    let crowd = Crowd::start(&world, 6, (1..400).map(uuid).collect(), Duration::ZERO).await?;
    let begun = Instant::now();
    let step = u32::MAX / u32::try_from(count + 1)?;
    for number in 1..=count {
        let hash = i32::MIN.wrapping_add_unsigned(step * u32::try_from(number)?);
        let action = isolation(&world, hash).await?;
        let id = decide(&world, action).await?;
        // Every other one by the way that large shards go.
        if number % 2 == 0 {
            let tried =
                format!("UPDATE dialog_operator.actions SET note = 'the quick way failed' WHERE id = {id}");
            world.ask(Group::Coordinator, &tried).await?;
        }
        world.settle(&wanted).await.with_context(|| format!("isolation {number}"))?;
        let act = outcome(&world.round_of(&wanted, 0).await?, id).await?;
        ensure!(act.outcome == Some(Outcome::Done), "isolation {number}: {act:?}");
        let Action::Isolate { to, .. } = action else { panic!("{action:?}") };
        let placed = covering(&world, hash).await?;
        ensure!(placed.node == to && placed.range.min == placed.range.max, "isolation {number}: {placed:?}");
    }
    let lasted = begun.elapsed();
    let (longest, rate) =
        (crowd.longest(), f64::from(i32::try_from(crowd.written())?) / lasted.as_secs_f64());
    let written = crowd.end().await?;
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    println!(
        "{count} isolations in {lasted:.0?} under {rate:.0} writes per second: 0 hung, {} messages lost, longest wait {longest:?}",
        written - rows
    );
    assert_eq!(rows, written);
    assert_nothing_is_left(&world, 3).await
}
