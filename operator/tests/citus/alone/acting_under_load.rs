//! From a flood to a worker of its own, and many times in a row, while people write.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::api::{HotTenant, IsolatedTenant};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::Mode;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use jiff::Timestamp;

use crate::heat::{MANY, Operator, PERIOD, start, watched};
use crate::in_a_row::{Stretch, Waits, Way, isolate};
use crate::isolation::{assert_nothing_is_left, covering, serving, with_mode};
use crate::needs_citus;
use crate::sends::{Ledger, Load, Sends};
use crate::world::condition;

/// Longest time that the dialog that is moved may stand still, and any other.
const OWN_GAP: Duration = Duration::from_secs(2);
const OTHER_GAP: Duration = Duration::from_millis(500);

/// A machine that others use as well keeps people waiting without anybody moving anything: what it does by itself counts.
fn allowed(limit: Duration, by_itself: Duration) -> Duration {
    limit.max(by_itself * 3)
}

/// The dialog that is hot is half of it.
const FLOOD: Load = Load { dialogs: 150, messages: 0, rate: 600.0, one_in: 2 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialog_that_takes_its_worker_gets_its_own_and_nobody_loses_a_message() -> Result<()> {
    needs_citus!();
    let calm = watched(3, MANY);
    let world = start(3, &calm, 100).await?;
    let sends = Sends::start(&world, FLOOD).await?;
    let name = sends.dialog(0)?.to_string();
    // What its worker spends with it and without it: how fast a machine is, nobody knows before.
    let operator = Operator::new(&world, &calm).await?;
    let hot = sends.heat(0)?;
    let source = covering(&world, hot).await?;
    let mut heat = operator.look(None).await?;
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
    }
    sends.cool();
    let spent = heat.nodes[&source.node].cpu / 1000 / u64::try_from(PERIOD)?;
    let wanted = with_mode(watched(3, spent * 2), Mode::Isolate);
    let operator = Operator::new(&world, &wanted).await?;
    // What is left of a period does not count, here and below.
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert_eq!((&heat.last, &heat.hot[..]), (&None, &[][..]), "nobody does much any more");
    sends.heat(0)?;
    let before = Stretch::begin(&world, &sends, hot).await?;
    heat = operator.look(Some(&heat)).await?;
    let mut periods = 0;
    while heat.last.is_none() {
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
        ensure!(periods <= 3, "not found within consecutivePeriods + 1 periods: {heat:?}");
    }
    let decided = heat.last.clone().context("nothing was decided")?;
    assert!(decided.message.contains(" gets a shard of its own on worker-"), "{}", decided.message);
    let (status, reason, message) = condition(&world.round_of(&wanted, 0).await?, HOT_TENANT);
    assert_eq!((status, reason, &message), ("True", "Acting", &decided.message));

    let before = before.end(&sends);
    let acting = Stretch::begin(&world, &sends, hot).await?;
    let steps = world.settle(&wanted).await?;
    let acting = acting.end(&sends);
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
    assert_eq!((act.outcome, act.tenant.as_deref()), (Some(Outcome::Done), Some(name.as_str())));
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
    assert_eq!((tenant.clone(), node.clone()), (name.clone(), placed.node.to_string()));
    let (status, reason, message) = condition(&round, HOT_TENANT);
    assert_eq!((status, reason), ("False", "Isolated"), "{message}");
    assert!(message.contains(&format!("dialog {name}")), "{message}");
    let topology = world.topology();
    let shown = dialog_operator::shards::status::status(&wanted, &topology, &round, None, Timestamp::now());
    let [IsolatedTenant { tenant, group, worker, asked_by, .. }] = &shown.isolated[..] else {
        panic!("{:?}", shown.isolated)
    };
    assert_eq!((tenant, group.as_str(), asked_by.as_str()), (&name, "dialog", "policy"));
    assert_eq!((worker.clone(), shown.isolated_count), (placed.node.to_string(), Some(1)));
    let said: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert!(said.contains(&format!("pin dialog {name} to {}", placed.node)), "{said:?}");

    let ledger = sends.end().await?;
    let (by_itself, waits) = assert_whole(&ledger, &before, &[acting])?;
    ensure!(ledger.failed() == 0, "{} messages were not acknowledged", ledger.failed());
    let own = waits.own.max(waits.beside).lasted;
    ensure!(own <= allowed(OWN_GAP, by_itself.own.lasted), "its own shard group stood still for {own:?}");
    let others = waits.others.lasted;
    ensure!(others <= allowed(OTHER_GAP, by_itself.others.lasted), "others stood still for {others:?}");
    assert_nothing_is_left(&world, 3).await
}

/// Every acknowledged message is there once; who waited for how long, before and while something was done.
fn assert_whole(ledger: &Ledger, before: &Stretch, acting: &[Stretch]) -> Result<(Waits, Waits)> {
    let by_itself = Waits::during(before, ledger);
    let waits = acting.iter().map(|acting| Waits::during(acting, ledger)).fold(Waits::default(), Waits::max);
    println!("{}; {waits:?}, before: {by_itself:?}", ledger.audit.text());
    ensure!(ledger.audit.is_whole() && ledger.audit.acknowledged > 0, "{}", ledger.audit.text());
    Ok((by_itself, waits))
}

/// Many more, under many more writes and with limits for who waits, are in the bench `isolations`.
const ISOLATIONS: u64 = 6;
/// Writes before them.
const BEFORE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolations_in_a_row_under_writes_never_hang_and_leave_nothing() -> Result<()> {
    needs_citus!();
    let (world, wanted) = serving().await?;
    let sends = Sends::start(&world, Load { dialogs: 400, messages: 0, rate: 200.0, one_in: 5 }).await?;
    let hot = sends.heat(0)?;
    let before = Stretch::begin(&world, &sends, hot).await?;
    tokio::time::sleep(BEFORE).await;
    let before = before.end(&sends);
    let isolations = isolate(&world, &wanted, &sends, ISOLATIONS).await?;
    for (one, way) in isolations.iter().zip([Way::Quick, Way::Online].into_iter().cycle()) {
        ensure!(one.hung.is_none(), "after {} attempts: {:?}", one.attempts, one.hung);
        ensure!(one.long.first().is_some_and(|long| long.way == way), "not by {way} first: {:?}", one.long);
    }
    let acting: Vec<Stretch> = isolations.iter().map(|one| one.stretch.clone()).collect();
    let ledger = sends.end().await?;
    for one in &isolations {
        let others = Waits::during(&one.stretch, &ledger).others;
        println!("others waited for {:?} {}", others.lasted, one.amid(others));
        let by_step = one.long.iter().map(|long| Waits::amid(&one.stretch, long, &ledger).others);
        ensure!(by_step.max() <= Some(others), "a part had a longer wait than all of it");
    }
    assert_whole(&ledger, &before, &acting)?;
    ensure!(ledger.failed() == 0, "{} messages were not acknowledged", ledger.failed());
    assert_nothing_is_left(&world, 3).await
}
