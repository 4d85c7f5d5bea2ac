//! Whole operators that die while shards move: with their rounds, and with all that they have begun.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::wanted::Wanted;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::crashes::assert_nothing_is_left;
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, condition, placements, store_messages, wanted};

const ROWS: i64 = 5_000;
/// Shards of each colocation group: half of them move when a second worker comes, and when it leaves.
const SHARDS: i32 = 8;
/// How long one operator may work.
const LIMIT: Duration = Duration::from_mins(2);
/// An operator that waits so often has come through, or never will.
const MOST: usize = 50_000;

/// Operators that died before one came through.
#[derive(Debug, Default)]
struct Deaths {
    /// All of them.
    all: usize,
    /// Those that died while one of their sessions moved a shard.
    moving: usize,
}

/// A cluster grows and shrinks by operators each of which is killed after it has waited more often than the one before, in
/// whatever of its tasks, until one finds nothing left to do.
#[test]
fn whole_operators_that_die_while_shards_move_are_continued_by_the_next() -> Result<()> {
    needs_citus!();
    let outside = Runtime::new()?;
    let mut world = World::start(1)?;
    outside.block_on(async {
        world.serve(&few(1)).await?;
        store_messages(&world, ROWS, "'text'").await
    })?;
    let before = outside.block_on(rows(&world))?;
    world.add(Group::Worker(1))?;
    for workers in [2, 1] {
        let wanted = few(workers);
        let deaths = die_until_at_rest(&outside, &world, &wanted)?;
        outside.block_on(assert_at_rest(&world, &wanted))?;
        ensure!(outside.block_on(rows(&world))? == before, "rows were lost or doubled");
        ensure!(deaths.moving >= 3, "too few died while a shard was moved: {deaths:?}");
    }
    Ok(())
}

fn few(workers: u32) -> Wanted {
    Wanted { shard_count: SHARDS, ..wanted(workers) }
}

/// Lets operators work that die ever later, until one of them finds nothing left to do.
fn die_until_at_rest(outside: &Runtime, world: &World, wanted: &Wanted) -> Result<Deaths> {
    let moving = "SELECT count(*) FROM pg_stat_activity
                  WHERE application_name LIKE 'dialog-operator: move %' AND state <> 'idle'";
    let (mut deaths, started) = (Deaths::default(), Instant::now());
    let mut most = 1;
    while most < MOST {
        let mut operator = Operator::default();
        let process = Process::new(most)?;
        if let Some(ended) = process.run(operator.settle(world, wanted, LIMIT)) {
            ended?;
            println!(
                "{} workers after {:?}, at last after {most} waits at most: {deaths:?}",
                wanted.workers,
                started.elapsed()
            );
            return Ok(deaths);
        }
        deaths.all += 1;
        deaths.moving += usize::from(outside.block_on(world.number(Group::Coordinator, moving))? > 0);
        drop(process);
        most += most / 8 + 1;
    }
    anyhow::bail!("never at rest: {deaths:?}")
}

/// Tasks that end where they are when this goes, and their connections with them, as those of a process that is killed.
struct Process {
    runtime: Runtime,
    death: Arc<Notify>,
}

impl Process {
    /// One that is to be killed when it has waited `most` times.
    fn new(most: usize) -> Result<Self> {
        let (waits, death) = (AtomicUsize::new(0), Arc::new(Notify::new()));
        let knell = Arc::clone(&death);
        // It is called whenever no task can go on.
        let count = move || {
            if waits.fetch_add(1, Ordering::Relaxed) == most {
                knell.notify_one();
            }
        };
        let runtime = Builder::new_current_thread().enable_all().on_thread_park(count).build()?;
        Ok(Self { runtime, death })
    }

    /// What comes of `life`; `None` if it was cut short. What it has begun stays as it is then, and does not go on.
    fn run<T>(&self, life: impl Future<Output = T>) -> Option<T> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.death.notified() => None,
                ended = life => Some(ended),
            }
        })
    }
}

/// What is stored, in whatever shard.
async fn rows(world: &World) -> Result<String> {
    let all = "SELECT count(*) || ' ' || md5(string_agg(message_id::text, ',' ORDER BY message_id)) FROM public.messages";
    Ok(world.ask(Group::Coordinator, all).await?[0].get(0))
}

/// The shards are where they belong, and nothing is left of what was begun.
async fn assert_at_rest(world: &World, wanted: &Wanted) -> Result<()> {
    let round = world.round(wanted).await?;
    ensure!(round.performed.is_empty() && round.is_settled(), "{:?}", round.plan);
    let (status, reason, message) = condition(&round, BALANCED);
    ensure!(status == "True", "{reason}: {message}");
    let placements = placements(world).await?;
    let nodes: BTreeSet<i32> = placements.iter().map(|(_, node, _)| *node).collect();
    let even = i64::from(SHARDS) / i64::from(wanted.workers);
    ensure!(nodes.len() == usize::try_from(wanted.workers)?, "{placements:?}");
    ensure!(placements.iter().all(|(_, _, shards)| *shards == even), "{placements:?}");
    assert_nothing_is_left(world).await?;
    // A node that was removed knows no placements any more, but may have the shards.
    for group in [Group::Worker(0), Group::Worker(1)] {
        let client = world.ask_client(group).await?;
        client.batch_execute("SET citus.override_table_visibility = off").await?;
        let stored = "SELECT count(*) FROM pg_class WHERE relname ~ '^messages_[0-9]+$' AND relkind = 'r'";
        let stored: i64 = client.query_one(stored, &[]).await?.get(0);
        let stays = group == Group::Worker(0) || wanted.workers == 2;
        ensure!(stored == if stays { even } else { 0 }, "{group} stores {stored} shards of messages");
    }
    Ok(())
}
