//! How moves follow each other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::api::{DialogCluster, RebalanceMode, RebalanceSpec};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::observed::RunningMove;
use dialog_operator::shards::status::{self, status};
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::{APPROVE_ANNOTATION, Gate};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use kube::ResourceExt as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::held_up::HeldUp;
use crate::needs_citus;
use crate::operator::Operator;
use crate::resource::Resource;
use crate::world::{
    World, closed, condition, eventually, few_shards, gated, store_messages, with_an_empty_worker,
};

/// How long the moves of a test may take.
pub const LIMIT: Duration = Duration::from_mins(5);
/// How long a window stays open: a round has to begin a move in it.
const OPEN: Duration = Duration::from_secs(15);

pub fn moves_of(steps: &[Step]) -> Vec<Step> {
    steps.iter().filter(|step| matches!(step, Step::MoveShard { .. })).cloned().collect()
}

/// Citus shows nothing of it.
#[tokio::test]
async fn a_move_that_builds_an_index_for_long_gets_on() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    store_messages(&world, 100, "'text'").await?;
    let workers = [Group::Worker(0), Group::Worker(1)];
    for group in [Group::Coordinator, workers[0], workers[1]] {
        let function = "SET citus.enable_ddl_propagation = off;
            CREATE FUNCTION public.slowly(id uuid) RETURNS uuid LANGUAGE sql IMMUTABLE AS 'SELECT id'";
        world.ask_client(group).await?.batch_execute(function).await?;
    }
    let index = "CREATE INDEX ON public.messages (public.slowly(message_id))";
    world.ask_client(Group::Coordinator).await?.batch_execute(index).await?;
    let slow = "SET citus.enable_ddl_propagation = off;
        CREATE OR REPLACE FUNCTION public.slowly(id uuid) RETURNS uuid LANGUAGE plpgsql IMMUTABLE AS
        'BEGIN PERFORM pg_sleep(4); RETURN id; END'";
    world.ask_client(workers[1]).await?.batch_execute(slow).await?;

    // For as long as one row takes nothing but an index that is built could have got on.
    let mut wanted = few_shards(2);
    wanted.rebalance.stall_timeout = Duration::from_secs(10);
    let mut operator = Operator::default();
    let mut building = 0;
    eventually("every index was seen to be built", async || {
        let round = operator.round(&world, &wanted).await?;
        let catalog = round.observed.catalog.as_ref().context("there are no catalogs")?;
        building += catalog.building.len();
        let said = condition(&round, BALANCED);
        ensure!(operator.failed.is_empty() && round.observed.stalls.is_empty(), "{said:?}");
        Ok(round.is_settled() && round.long.is_empty() && operator.jobs.is_idle())
    })
    .await?;
    ensure!(building > 0, "no index was built for long enough to be seen");
    Ok(())
}

#[tokio::test]
async fn one_move_follows_the_other_without_a_round_between_them_in_the_order_of_the_plan() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let open = few_shards(2);
    let mut operator = Operator::default();
    let first = operator.round(&world, &open).await?;
    let plan = first.held_plan().unwrap();
    ensure!(plan.moves.len() > 2, "{plan:?}");
    // The move that begins is shown at once, and counted once.
    let shown = status(&open, &world.topology(), &first, None, Timestamp::now()).rebalance;
    let shown = shown.context("no moves are shown")?;
    let now = shown.current.iter().map(|one| (one.shard_id, one.from.clone(), one.to.clone()));
    let next = plan.moves.iter().map(|next| (next.shard_id, next.from.to_string(), next.to.to_string()));
    assert_eq!(now.collect::<Vec<_>>(), next.take(1).collect::<Vec<_>>());
    assert_eq!(usize::try_from(shown.moves_total)?, plan.moves.len());
    assert_eq!(u64::try_from(shown.bytes_left)?, plan.bytes);
    assert!(shown.started_at.is_some() && shown.last_progress_at.is_some(), "{shown:?}");
    let started = Instant::now();
    while moves_of(&operator.done).len() < plan.moves.len() {
        ensure!(started.elapsed() < LIMIT, "made: {:?}, failed: {:?}", operator.done, operator.failed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        operator.take_results();
    }
    let planned: Vec<Step> = plan
        .moves
        .iter()
        .map(|next| Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to })
        .collect();
    let done = moves_of(&operator.done);
    assert_eq!(done, planned);
    // The hash that was shown is that of the list of what was done, as anybody makes it of the log.
    let list = done.iter().map(|step| match step {
        Step::MoveShard { shard_id, from, to } => format!("{shard_id} {from} {to}\n"),
        other => panic!("{other}"),
    });
    let digest = Sha256::digest(list.collect::<String>());
    let hash = digest.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(plan.hash, hash);
    let numbers: Vec<_> = done.iter().map(|step| step.number_in(&plan)).collect();
    assert_eq!(numbers, (1..).map(Some).take(done.len()).collect::<Vec<_>>());
    assert_eq!(operator.failed, []);
    assert_eq!(condition(&world.round(&open).await?, BALANCED).0, "True");
    Ok(())
}

#[tokio::test]
async fn a_move_under_way_is_told_of_with_its_phase_its_bytes_and_its_end() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    store_messages(&world, 5000, "'text'").await?;
    let open = few_shards(2);
    let held_up = HeldUp::while_others_write(&world).await?;
    let (mut operator, mut pace, mut before) = (Operator::default(), status::Pace::default(), None);
    let (mut told, mut plan) = (None, None);
    eventually("a move is held up at its end, and its end is foreseen", async || {
        let copied = held_up.is_waited_for().await?;
        let round = operator.round(&world, &open).await?;
        ensure!(operator.failed.is_empty(), "it failed by itself");
        let now = Timestamp::now();
        let mut facts = status(&open, &world.topology(), &round, before.as_ref(), now);
        let shown = facts.rebalance.as_mut().context("no moves are shown")?;
        shown.eta = pace.look(Some(shown), now);
        told = Some(shown.clone());
        plan = plan.take().or_else(|| round.held_plan());
        let is_foreseen = shown.eta.is_some();
        before = Some(facts);
        Ok(copied && is_foreseen)
    })
    .await?;
    let (told, plan) = told.zip(plan).context("nothing was told")?;
    let [now] = &told.current[..] else { panic!("{told:?}") };
    let first = &plan.moves[0];
    assert_eq!(
        (now.shard_id, &now.from, &now.to),
        (first.shard_id, &first.from.to_string(), &first.to.to_string())
    );
    assert_eq!(now.phase, "Final Catchup");
    assert!(now.bytes_done > 0 && now.bytes_total > 0, "{told:?}");
    let total = i64::try_from(plan.moves.len())?;
    assert_eq!((told.moves_done, told.moves_total, told.bytes_done), (0, total, 0), "{told:?}");
    let times = [&told.started_at, &told.last_progress_at, &told.eta];
    let [started, last, end] = times.map(|time| time.as_ref().map(|at| at.0.as_second()));
    assert!(started.is_some() && started <= last && last <= end, "{told:?}");
    Ok(())
}

#[tokio::test]
async fn nothing_follows_once_nobody_asks_for_it_any_more() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let mut operator = Operator::default();
    operator.round(&world, &few_shards(2)).await?;
    // The window closes while the first move is made.
    operator.round(&world, &gated(2, closed())).await?;
    let started = Instant::now();
    while moves_of(&operator.done).is_empty() {
        ensure!(started.elapsed() < LIMIT, "failed: {:?}", operator.failed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        operator.take_results();
    }
    let round = operator.round(&world, &gated(2, closed())).await?;
    assert!(round.plan.moves.as_ref().unwrap().running.is_empty(), "{:?}", round.plan.moves);
    assert_eq!(condition(&round, BALANCED).1, "OutsideWindow");
    Ok(())
}

#[tokio::test]
async fn nothing_follows_once_the_window_has_closed_between_two_rounds() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let mut operator = Operator::default();
    let resource = Resource::new();
    let window = open_until_soon()?;
    resource.change(|cluster| cluster.spec.sharding.rebalance = window);
    operator.present = Some(resource.present());
    let held_up = HeldUp::every(&world).await?;
    // The last round for as long as this lasts: the window is open, and so it is when the first move begins.
    let first = operator.round(&world, &resource.wanted()).await?;
    let begun = (resource.wanted().rebalance.gate, first.long.len());
    assert_eq!(begun, (Gate::Open, 1), "{:?}", first.plan.steps);
    eventually("the window has closed while the first move was made", async || {
        let closed = matches!(resource.wanted().rebalance.gate, Gate::Closed { reason: "OutsideWindow", .. });
        Ok(closed && held_up.is_waited_for().await?)
    })
    .await?;
    held_up.end().await?;
    // The next move begins before the one that it follows has ended.
    eventually("no move is under way any more", async || Ok(operator.jobs.is_idle())).await?;
    operator.take_results();
    assert_eq!((moves_of(&operator.done), operator.failed.as_slice()), (first.long, &[][..]));
    let round = operator.round(&world, &resource.wanted()).await?;
    let moves = round.plan.moves.as_ref().unwrap();
    assert!(moves.running.is_empty() && !moves.plan.moves.is_empty(), "{moves:?}");
    assert_eq!(condition(&round, BALANCED).1, "OutsideWindow");
    Ok(())
}

#[tokio::test]
async fn nothing_follows_once_the_resource_asks_for_something_else_between_two_rounds() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let mut operator = Operator::default();
    let resource = Resource::new();
    operator.present = Some(resource.present());
    for (what, change) in [
        ("the count is another", (|cluster| cluster.spec.workers.count = 1) as fn(&mut DialogCluster)),
        ("the mode is Manual", |cluster| cluster.spec.sharding.rebalance.mode = RebalanceMode::Manual),
        ("it is paused", |cluster| cluster.spec.paused = true),
    ] {
        let made = one_move_and_no_other(&world, &mut operator, &resource, change).await;
        made.with_context(|| what.to_owned())?;
        resource.change(|cluster| *cluster = Resource::automatic());
    }
    resource.change(|cluster| cluster.spec.sharding.rebalance.mode = RebalanceMode::Approve);
    let shown = operator.round(&world, &resource.wanted()).await?;
    assert_eq!((shown.long.len(), condition(&shown, BALANCED).1), (0, "AwaitingApproval"));
    let hash = shown.held_plan().context("nothing is left to move")?.hash;
    resource.change(|cluster| {
        cluster.annotations_mut().insert(APPROVE_ANNOTATION.to_owned(), hash);
    });
    let removed: fn(&mut DialogCluster) = |cluster| cluster.annotations_mut().clear();
    let made = one_move_and_no_other(&world, &mut operator, &resource, removed).await;
    made.context("the approval is removed")
}

/// A move begins, and the resource is changed while it is made: none follows, before a round or with one.
async fn one_move_and_no_other(
    world: &World,
    operator: &mut Operator,
    resource: &Resource,
    change: fn(&mut DialogCluster),
) -> Result<()> {
    operator.take_results();
    let before = moves_of(&operator.done).len();
    let held_up = HeldUp::every(world).await?;
    let round = operator.round(world, &resource.wanted()).await?;
    ensure!(round.long.len() == 1, "{:?}, {:?}", round.plan.steps, round.plan.waits);
    eventually("the move is at its end", async || held_up.is_waited_for().await).await?;
    resource.change(change);
    held_up.end().await?;
    // The next move begins before the one that it follows has ended.
    eventually("no move is under way any more", async || Ok(operator.jobs.is_idle())).await?;
    operator.take_results();
    let made = moves_of(&operator.done).split_off(before);
    ensure!(made == round.long && operator.failed.is_empty(), "{made:?}, failed: {:?}", operator.failed);
    Ok(())
}

/// A window that opened with this minute and closes soon.
fn open_until_soon() -> Result<RebalanceSpec> {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    let seconds = i64::from(now.second()) + OPEN.as_secs().cast_signed();
    let window = json!({
        "schedule": format!("{} {} * * *", now.minute(), now.hour()),
        "duration": format!("{seconds}s"),
        "timeZone": "UTC",
    });
    Ok(serde_json::from_value(json!({"windows": [window]}))?)
}

#[tokio::test]
async fn two_at_a_time_are_two_and_share_no_node() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    for number in [2, 3] {
        world.add(Group::Worker(number))?;
    }
    world.settle(&gated(4, closed())).await?;
    let mut wanted = few_shards(4);
    wanted.rebalance.policy.max_parallel_moves = 2;
    let mut operator = Operator::default();
    let (mut most, started) = (0, Instant::now());
    loop {
        let round = operator.round(&world, &wanted).await?;
        let catalog = round.observed.catalog.as_ref().unwrap();
        let running: Vec<RunningMove> = catalog.moves().collect();
        let mut nodes: Vec<Group> = running.iter().flat_map(|one| [one.from, one.to]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        ensure!(running.len() <= 2 && nodes.len() == 2 * running.len(), "{running:?}");
        most = most.max(running.len());
        if round.is_settled() && round.long.is_empty() {
            break;
        }
        ensure!(started.elapsed() < LIMIT, "{:?}, failed: {:?}", round.plan.steps, operator.failed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(most, 2, "they were never made at the same time");
    assert_eq!(operator.failed, []);
    let spread = world
        .ask(
            Group::Coordinator,
            "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
             WHERE logicalrelid = 'public.messages'::regclass GROUP BY groupid ORDER BY 1",
        )
        .await?;
    assert_eq!(spread.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [3, 3, 3, 3]);
    Ok(())
}
