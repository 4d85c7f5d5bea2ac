//! What an operator has begun goes on without it, and the next one wakes it up as its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::writers::{change, dialogs, next_move};
use crate::held_up::{HeldUp, TO_COPY, shard_of_messages};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, condition, eventually, few_shards, store_messages, with_an_empty_worker};

const ROWS: i64 = 1_000;
/// Looks of Citus that are timed.
const LOOKS: u32 = 4;
/// How much sooner they come where Citus is woken up.
const TIMES: u32 = 2;

/// Citus sleeps for a second between its looks whether the target has caught up; here it does not while somebody has its table.
#[test]
fn a_move_of_an_operator_that_died_is_woken_up_by_the_next() -> Result<()> {
    needs_citus!();
    let outside = Runtime::new()?;
    let wanted = few_shards(2);
    let (world, held_up, step) = outside.block_on(async {
        let world = with_an_empty_worker().await?;
        store_messages(&world, ROWS, "'text'").await?;
        let (step, _) = next_move(&world, &wanted).await?;
        let held_up = HeldUp::while_others_write(&world).await?;
        anyhow::Ok((world, held_up, step))
    })?;
    let Step::MoveShard { shard_id, to, .. } = step else { bail!("{step} is no move") };

    // Its tasks end with it, and its connections.
    let process = Runtime::new()?;
    process.block_on(async {
        let mut operator = Operator::default();
        while !operator.jobs.has(&step) {
            operator.round(&world, &wanted).await?;
        }
        held_up.copied(&world, to, || operator.jobs.is_idle()).await
    })?;
    drop(process);

    outside.block_on(async {
        let target = world.ask_client(to).await?;
        let shard = shard_of_messages(&world, shard_id).await?.context("it moves no messages")?;
        let lock = format!(
            "BEGIN; SET LOCAL citus.enable_manual_changes_to_shards = on;
             LOCK TABLE public.messages_{shard} IN SHARE MODE"
        );
        target.batch_execute(&lock).await?;
        let [dialog, _] = dialogs(&world, shard_id).await?;
        world.ask(Group::Coordinator, &change(&dialog)).await?;
        held_up.end().await?;
        let watcher = world.ask_client(to).await?;
        let alone = time_of_looks(&watcher).await?;
        // Only one round: if there were more, the move would be cancelled, as those who write wait for it by now.
        let mut next = Operator::default();
        next.round(&world, &wanted).await?;
        let woken = time_of_looks(&watcher).await?;
        println!("{LOOKS} looks took {alone:?} where nobody woke Citus up, and {woken:?} where the next operator did");
        ensure!(woken * TIMES < alone, "it is not woken up: {woken:?}, and {alone:?} by itself");
        target.batch_execute("ROLLBACK").await?;

        next.settle(&world, &wanted, TO_COPY).await?;
        ensure!(condition(&world.round(&wanted).await?, BALANCED).0 == "True");
        ensure!(next.failed.is_empty() && !next.done.contains(&step), "{:?}, failed: {:?}", next.done, next.failed);
        let edited = "SELECT count(*) FROM public.messages WHERE edited_at IS NOT NULL";
        ensure!(world.number(Group::Coordinator, edited).await? == 1, "the change was lost");
        is_woken_no_more(&world).await
    })
}

/// How long Citus takes to look [`LOOKS`] times whether the target, whose server `watcher` asks, has caught up.
async fn time_of_looks(watcher: &Client) -> Result<Duration> {
    let looks = async {
        // Time counts from a look, and not from somewhere between two.
        let mut last = look_after(watcher, last_look(watcher).await?).await?;
        let begun = Instant::now();
        for _ in 0..LOOKS {
            last = look_after(watcher, last).await?;
        }
        Ok(begun.elapsed())
    };
    tokio::time::timeout(TO_COPY, looks).await.context("Citus does not look")?
}

/// When Citus looks for the first time after `before`.
async fn look_after(watcher: &Client, before: Option<String>) -> Result<Option<String>> {
    loop {
        let last = last_look(watcher).await?;
        if last != before {
            return Ok(last);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// When Citus has looked last.
async fn last_look(watcher: &Client) -> Result<Option<String>> {
    let last = "SELECT max(query_start)::text FROM pg_stat_activity
                WHERE application_name LIKE 'citus_%' AND query LIKE '%latest_end_lsn%'";
    Ok(watcher.query_one(last, &[]).await?.get(0))
}

/// Returns once nobody asks any more whether a session sleeps.
async fn is_woken_no_more(world: &World) -> Result<()> {
    let wakes =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_notify(%' AND pid <> pg_backend_pid()";
    eventually("nobody is woken up", async || Ok(world.number(Group::Coordinator, wakes).await? == 0)).await
}
