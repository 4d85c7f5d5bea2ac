//! A move takes the lock of its shard group's writers at its end. What it waits for then, they wait for, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::supervise::WRITERS_WAIT;
use dialog_operator::shards::wanted::Wanted;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::held_up::{HeldUp, shard_of_messages};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{
    SHARDS, World, closed, condition, eventually, few_shards, gated, store_messages, with_an_empty_worker,
};

const ROWS: i64 = 1_000;
/// Rounds that it takes until a move is seen to keep writers waiting, is seen to do so for too long, what keeps it is found out,
/// and it is cancelled and has ended.
const ROUNDS: u32 = 5;
/// The operator's pause between rounds while writers wait.
const PAUSE: Duration = Duration::from_secs(1);
/// Until a cause is named.
const LIMIT: Duration = Duration::from_mins(2);

#[tokio::test]
async fn writers_do_not_wait_for_a_move_that_waits_for_an_idle_transaction_of_the_coordinator() -> Result<()>
{
    Box::pin(held_up(|_| Group::Coordinator)).await
}

#[tokio::test]
async fn writers_do_not_wait_for_a_move_that_waits_for_an_idle_transaction_of_its_source() -> Result<()> {
    Box::pin(held_up(|from| from)).await
}

#[tokio::test]
async fn writers_do_not_wait_for_a_move_that_waits_for_an_idle_transaction_of_a_bystander() -> Result<()> {
    let other = |from| if from == Group::Worker(0) { Group::Worker(1) } else { Group::Worker(0) };
    Box::pin(held_up(other)).await
}

/// A move is held up by an idle transaction on `whose` server, by where the move comes from.
async fn held_up(whose: fn(Group) -> Group) -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    let wanted = Wanted { shard_count: 2 * SHARDS, ..few_shards(3) };
    world.serve(&Wanted { workers: 2, ..wanted.clone() }).await?;
    world.add(Group::Worker(2))?;
    world.settle(&gated(3, closed())).await?;
    store_messages(&world, ROWS, "'text'").await?;
    assert_eq!(wanted.rebalance.stall_timeout, Duration::from_mins(10), "what everybody has");
    let (step, from) = next_move(&world, &wanted).await?;
    let group = whose(from);
    let mut operator = Operator::default();
    writers_go_on(&world, &mut operator, &wanted, &step, group)
        .await
        .with_context(|| format!("{step}, held up on {group}"))?;
    operator.settle(&world, &wanted, Duration::from_mins(10)).await?;
    assert_eq!(condition(&world.round(&wanted).await?, BALANCED).0, "True");
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, ROWS);
    Ok(())
}

/// As long as nobody waits for it, a move may wait for as long as everybody has.
#[tokio::test]
async fn a_move_that_waits_without_keeping_writers_waiting_is_left_alone() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    store_messages(&world, ROWS, "'text'").await?;
    let wanted = few_shards(2);
    let (step, from) = next_move(&world, &wanted).await?;
    let Step::MoveShard { shard_id, to, .. } = step else { bail!("{step} is no move") };
    let held_up = HeldUp::while_others_write(&world).await?;
    let mut operator = Operator::default();
    while !operator.jobs.has(&step) {
        operator.round(&world, &wanted).await?;
    }
    let [dialog, _] = dialogs(&world, shard_id).await?;
    let writer = Writer::start(world.ask_client(from).await?, change(&dialog));
    held_up.copied(&world, to, || operator.jobs.is_idle()).await?;
    let copied = Instant::now();
    while copied.elapsed() < 2 * WRITERS_WAIT {
        let (_, reason, message) = condition(&operator.round(&world, &wanted).await?, BALANCED);
        ensure!(reason == "Moving", "{reason}: {message}");
        ensure!(operator.jobs.has(&step) && !operator.jobs.is_idle(), "it is not under way any more");
        tokio::time::sleep(PAUSE).await;
    }
    let (made, longest) = writer.end().await?;
    ensure!(longest < WRITERS_WAIT, "a writer waited for {longest:?}, of {made}");
    held_up.end().await?;
    eventually("the move is made", async || {
        operator.round(&world, &wanted).await?;
        Ok(operator.done.contains(&step))
    })
    .await?;
    ensure!(operator.failed.is_empty(), "{:?}", operator.failed);
    Ok(())
}

/// Somebody has changed a message of what moves by way of `group`'s server, and leaves the transaction open.
async fn writers_go_on(
    world: &World,
    operator: &mut Operator,
    wanted: &Wanted,
    step: &Step,
    group: Group,
) -> Result<()> {
    let Step::MoveShard { shard_id, from, to } = *step else { bail!("{step} is no move") };
    let [first, second] = dialogs(world, shard_id).await?;
    // What is open before a move has begun to copy keeps nobody waiting: this is about what comes later, while everybody may
    // still write by way of every node.
    let held_up = HeldUp::while_others_write(world).await?;
    while !operator.jobs.has(step) {
        operator.round(world, wanted).await?;
    }
    held_up.copied(world, to, || operator.jobs.is_idle()).await?;
    let idle = world.ask_client(group).await?;
    idle.batch_execute(&format!("BEGIN; {}", change(&first))).await?;
    let pid: i32 = idle.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    held_up.end().await?;
    let writer = Writer::start(world.ask_client(from).await?, change(&second));

    let (started, failed) = (Instant::now(), operator.failed.len());
    let mut slowest = Duration::ZERO;
    let message = loop {
        let begun = Instant::now();
        let round = operator.round(world, wanted).await?;
        slowest = slowest.max(begun.elapsed() + PAUSE);
        let (status, reason, message) = condition(&round, BALANCED);
        if reason == "MoveBlocked" {
            break message;
        }
        ensure!(started.elapsed() < LIMIT, "{status} {reason}: {message}");
        tokio::time::sleep(PAUSE).await;
    };
    println!("{message}");
    for part in [
        "has kept all who write to its shard group waiting for ",
        &format!("on {group} its process "),
        &format!("(pid {pid}, open for "),
        &format!("SELECT pg_terminate_backend({pid}) there"),
    ] {
        ensure!(message.contains(part), "{part:?} is not in {message}");
    }
    eventually("the move is cancelled", async || {
        operator.round(world, wanted).await?;
        Ok(operator.failed.len() > failed)
    })
    .await?;
    ensure!(operator.failed.last() == Some(step), "{:?}", operator.failed);
    let (made, longest) = writer.end().await?;
    println!(
        "{group}: {made} writes meanwhile, the longest waited for {longest:?}; the slowest round took {slowest:?}"
    );
    // The move waits for the coordinator's lock before it asks for any other.
    let allowed = if group == Group::Coordinator { WRITERS_WAIT } else { WRITERS_WAIT + ROUNDS * slowest };
    ensure!(longest < allowed, "a writer waited for {longest:?}, and not for {allowed:?} at most");
    idle.batch_execute("ROLLBACK").await?;
    eventually("the move is made", async || {
        operator.round(world, wanted).await?;
        Ok(operator.done.contains(step))
    })
    .await
}

/// The next move that takes messages along, and where it comes from; those before it are made.
pub(super) async fn next_move(world: &World, wanted: &Wanted) -> Result<(Step, Group)> {
    loop {
        let planned = world.round_of(wanted, 0).await?.plan.steps;
        let step = planned.into_iter().find(|step| matches!(step, Step::MoveShard { .. }));
        let Some(Step::MoveShard { shard_id, from, to }) = step else { bail!("no move is planned") };
        let step = Step::MoveShard { shard_id, from, to };
        if shard_of_messages(world, shard_id).await?.is_some() {
            return Ok((step, from));
        }
        world.carry_out(wanted, &step).await?;
    }
}

/// Two dialogs that move together with the shard `shard_id`.
pub(super) async fn dialogs(world: &World, shard_id: i64) -> Result<[String; 2]> {
    let shard = shard_of_messages(world, shard_id).await?.context("it moves no messages")?;
    let rows = format!(
        "SELECT dialog_id::text FROM public.messages
         WHERE get_shard_id_for_distribution_column('public.messages', dialog_id) = {shard} ORDER BY 1 LIMIT 2"
    );
    let rows = world.ask(Group::Coordinator, &rows).await?;
    ensure!(rows.len() == 2, "shard {shard} has {} dialogs", rows.len());
    Ok([rows[0].get(0), rows[1].get(0)])
}

/// Changes the messages of a dialog.
pub(super) fn change(dialog: &str) -> String {
    format!("UPDATE public.messages SET edited_at = now() WHERE dialog_id = '{dialog}'")
}

/// Somebody who writes one thing after the other, without any limit of his own.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(u64, Duration)>>,
}

impl Writer {
    fn start(client: Client, statement: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let (mut writes, mut longest) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    ensure!(client.execute(&statement, &[]).await? == 1, "there is no such message");
                    longest = longest.max(begun.elapsed());
                    writes += 1;
                }
                Ok((writes, longest))
            }
        });
        Self { stop, task }
    }

    /// How often he wrote, and how long he waited at most.
    async fn end(self) -> Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
