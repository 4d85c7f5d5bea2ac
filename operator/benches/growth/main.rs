//! What people notice while a cluster grows and shrinks, and how long that takes: 2 -> 4 -> 2 workers on servers of this
//! machine, with dialog-api, a load at 60 % of its peak, and a ledger of every acknowledged message.
//!
//! ```sh
//! cargo build --release --package dialog-api
//! cargo bench -p dialog-operator --bench growth -- --dialog-api target/release/dialog-api
//! ```
//!
//! Prints a table. The operator's part is its own code but for what it asks of Kubernetes: rounds at the controller's pace,
//! and long steps between them.

#![allow(clippy::unwrap_used, reason = "what cannot go on ends the measurement")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use dialog_bench::machine;
use dialog_bench::table::{self, Limit, Row};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::MovePlan;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;

use crate::load::Service;
use crate::operator::Operator;
use crate::world::{World, closed, eventually, wanted};

mod load;
#[path = "../../tests/citus/operator.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod operator;
#[path = "../../tests/citus/world.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod world;

/// How often the controller looks while shards move.
const ROUND: Duration = Duration::from_secs(5);
/// Longest time that a change of the count may take.
const LIMIT: Duration = Duration::from_hours(1);
/// Share of the peak that the load has.
const SHARE: f64 = 0.6;
/// Bytes of a message of a hundred characters in its table and indexes.
const MESSAGE: u64 = 330;
/// Messages in each dialog before the load.
const MESSAGES: u64 = 10;

/// Measures growing and shrinking under a load.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// The service, built for release; nothing is measured without
    #[arg(long)]
    dialog_api: Option<PathBuf>,
    /// Megabytes of messages
    #[arg(long, default_value_t = 1024)]
    megabytes: u64,
    /// Moves at the same time
    #[arg(long, default_value_t = 1)]
    parallel: u32,
    /// Shards of each table
    #[arg(long, default_value_t = 48)]
    shards: i32,
    /// Seconds of the load before anything moves, and of the one that finds the peak
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// The folder that RESULTS-growth.md is written to
    #[arg(long)]
    results: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Err(reason) = testbed::postgres::citus_available() {
        println!("SKIPPED growth: {reason}");
        return Ok(());
    }
    // `cargo bench` without more runs this beside the others.
    let Some(program) = &arguments.dialog_api else {
        println!("SKIPPED growth: --dialog-api is missing");
        return Ok(());
    };
    Box::pin(measure(&arguments, &in_repository(program))).await
}

#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
async fn measure(arguments: &Arguments, program: &Path) -> Result<()> {
    let busy = machine::load_average()?;
    let mut world = World::empty()?;
    for group in [Group::Coordinator, Group::Worker(0), Group::Worker(1)] {
        add(&mut world, group)?;
    }
    world.round(&with(2, arguments)).await?;
    say("the service");
    let mut service = Service::start(&world, program)?;
    service.wait_for("/ready", &[200, 503]).await?;
    eventually("the service makes its tables", async || {
        let round = world.round_of(&with(2, arguments), 0).await?;
        Ok(wanted(2).tables.iter().all(|table| round.observed.tables.contains_key(&table.name)))
    })
    .await?;
    world.settle(&with(2, arguments)).await?;
    service.wait_for("/ready", &[200]).await?;
    say("the data");
    let dialogs = arguments.megabytes * (1 << 20) / MESSAGE / MESSAGES;
    service.fill(dialogs, MESSAGES).await?;
    let data = messages(&world).await?;

    let mut rows = Vec::new();
    let alone = alone(&mut world, arguments, &mut rows, data).await?;

    say("the peak");
    let length = Duration::from_secs(arguments.seconds);
    let peak = service.load(None, length).await?;
    let rate = (peak.sends.per_second + peak.lists.per_second) * SHARE;
    say("the load before");
    let before = service.load(Some(rate), length).await?;
    say("the load while 2 -> 4 -> 2");
    for number in [2, 3] {
        add(&mut world, Group::Worker(number))?;
    }
    // About as long as both ways take beside it; what moves afterwards is waited for.
    let lasts = alone.mul_f64(4.0) + Duration::from_secs(20);
    let began = Instant::now();
    let changes = async {
        let mut changes = Vec::new();
        for count in [4, 2] {
            changes.push(change(&world, &with(count, arguments)).await?);
        }
        anyhow::Ok((changes, began.elapsed()))
    };
    let (during, changes) = futures::join!(service.load(Some(rate), lasts), changes);
    let (during, (changes, took)) = (during?, changes?);
    let covered = if took <= lasts { "the load lasted longer" } else { "the load ended before" };
    let (moves, failures) = changes
        .iter()
        .fold((0, 0), |(moves, failures), change| (moves + change.made.len(), failures + change.failed));
    rows.push(Row::ratio(
        "2 -> 4 -> 2 under load, in seconds",
        format!("{moves} moves, {failures} failed and were made again; {covered} ({} s)", lasts.as_secs()),
        took.as_secs_f64(),
        Limit::None,
    ));
    let planned = changes.iter().all(Change::is_as_planned);
    let hashes: Vec<&str> = changes.iter().map(|change| change.plan.hash.as_str()).collect();
    rows.push(Row::ratio(
        "moves made other than by the plan's list",
        format!("plans {}", hashes.join(", ")),
        f64::from(u8::from(!planned)),
        Limit::AtMost(0.0),
    ));
    service.audit(&before, &during, &mut rows).await?;
    write(&world, arguments, &busy, &table::markdown(&rows)).await
}

/// Where a path is: cargo runs this in the folder of the package, and who calls it is in the one above.
fn in_repository(path: &Path) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Prints the table, and writes it where that was asked for.
async fn write(world: &World, arguments: &Arguments, busy: &str, table: &str) -> Result<()> {
    let Arguments { megabytes, parallel, shards, seconds, .. } = arguments;
    let machine = machine::describe(&world.ask_client(Group::Coordinator).await?, busy).await?;
    let text = format!(
        "# Growing and shrinking

`cargo bench -p dialog-operator --bench growth -- --dialog-api target/release/dialog-api --megabytes {megabytes} --shards {shards} \
--parallel {parallel} --seconds {seconds} --results bench` measures this table and writes this file. Last: {date}.

| | |
|---|---|
{machine}

{megabytes} MB of messages in {shards} shards, {parallel} moves at a time, and a load of 80 % lists at {share:.0} % of its peak. \
[What is measured](../docs/rebalancing.md#measured). Servers, service and load share the processors.

{table}",
        date = jiff::Timestamp::now().strftime("%Y-%m-%d"),
        share = SHARE * 100.0,
    );
    println!("\n{text}");
    let Some(folder) = &arguments.results else { return Ok(()) };
    let path = in_repository(folder).join("RESULTS-growth.md");
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// Grows without a load, by the operator and by Citus, on the same data: how long the operator takes.
#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
async fn alone(world: &mut World, arguments: &Arguments, rows: &mut Vec<Row>, data: i64) -> Result<Duration> {
    say("2 -> 4 by the operator, nobody else at work");
    for number in [2, 3] {
        add(world, Group::Worker(number))?;
    }
    world.settle(&gated(4, arguments)).await?;
    let ours = change(world, &with(4, arguments)).await?;
    back(world, arguments).await?;
    say("2 -> 4 by citus_rebalance_start()");
    for number in [2, 3] {
        add(world, Group::Worker(number))?;
    }
    world.settle(&gated(4, arguments)).await?;
    for statement in [
        format!("ALTER SYSTEM SET citus.max_background_task_executors = {}", arguments.parallel),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        world.ask_client(Group::Coordinator).await?.batch_execute(&statement).await?;
    }
    let began = Instant::now();
    let start = "SELECT citus_rebalance_start(shard_transfer_mode => 'force_logical')";
    world.ask(Group::Coordinator, start).await?;
    world.ask(Group::Coordinator, "SELECT citus_rebalance_wait()").await?;
    let theirs = began.elapsed();
    let count = "SELECT count(*) FROM pg_dist_background_task WHERE status = 'done'";
    let moves = world.number(Group::Coordinator, count).await?;
    back(world, arguments).await?;
    let Change { made, took, .. } = &ours;
    rows.push(Row::ratio(
        "2 -> 4 against citus_rebalance_start alone",
        format!(
            "{:.1} s for {} moves against {:.1} s for {moves}, {} at a time, {} MB of messages",
            took.as_secs_f64(),
            made.len(),
            theirs.as_secs_f64(),
            arguments.parallel,
            data >> 20
        ),
        took.as_secs_f64() / theirs.as_secs_f64(),
        Limit::AtMost(1.1),
    ));
    rows.push(Row::ratio(
        "the same for each move",
        "seconds by the operator against seconds by Citus",
        (took.as_secs_f64() / made.len() as f64) / (theirs.as_secs_f64() / moves as f64),
        Limit::None,
    ));
    Ok(*took)
}

/// Shrinks to two workers again, and takes the servers of the others away.
async fn back(world: &mut World, arguments: &Arguments) -> Result<()> {
    change(world, &with(2, arguments)).await?;
    for number in [2, 3] {
        world.remove(Group::Worker(number));
    }
    world.settle(&with(2, arguments)).await?;
    Ok(())
}

/// A change of the count that came true.
struct Change {
    plan: MovePlan,
    made: Vec<Step>,
    failed: usize,
    /// From the first look to the end of the last move.
    took: Duration,
}

impl Change {
    /// Whether what was made is the list that the first plan named.
    fn is_as_planned(&self) -> bool {
        let planned = self.plan.moves.iter();
        let mut planned: Vec<Step> = planned
            .map(|next| Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to })
            .collect();
        let mut made = self.made.clone();
        // Of those at the same time, any may end first.
        planned.sort_unstable();
        made.sort_unstable();
        planned == made
    }
}

/// Works as the controller does until `wanted` has come true.
async fn change(world: &World, wanted: &Wanted) -> Result<Change> {
    let mut operator = Operator::default();
    let (began, mut took, mut plan) = (Instant::now(), Duration::ZERO, None);
    loop {
        let round = operator.round(world, wanted).await?;
        if plan.is_none() {
            plan = round.held_plan();
        }
        if round.is_settled() && round.long.is_empty() {
            break;
        }
        ensure!(began.elapsed() < LIMIT, "not at rest: {:?}", round.plan.waits);
        // A round is due after some time, or when no move is under way any more.
        let looked = Instant::now();
        while looked.elapsed() < ROUND && !(round.long.is_empty() && operator.jobs.is_idle()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let before = moves(&operator).len();
            operator.take_results();
            if moves(&operator).len() > before {
                took = began.elapsed();
            }
            if operator.jobs.is_idle() {
                break;
            }
        }
    }
    let plan = plan.context("there was nothing to move")?;
    Ok(Change { plan, made: moves(&operator), failed: operator.failed.len(), took })
}

fn moves(operator: &Operator) -> Vec<Step> {
    operator.done.iter().filter(|step| matches!(step, Step::MoveShard { .. })).cloned().collect()
}

/// What is asked for, with all moves allowed.
fn with(workers: u32, arguments: &Arguments) -> Wanted {
    let mut wanted = wanted(workers);
    wanted.rebalance.policy.max_parallel_moves = arguments.parallel;
    wanted.shard_count = arguments.shards;
    wanted
}

/// The same, and nothing moves that only makes the spread more even.
fn gated(workers: u32, arguments: &Arguments) -> Wanted {
    let mut wanted = with(workers, arguments);
    wanted.rebalance.gate = closed();
    wanted
}

/// Starts a server that writes as it would in production.
fn add(world: &mut World, group: Group) -> Result<()> {
    world.add_with(group, |builder| {
        builder
            .parameter("fsync", "on")
            .parameter("shared_buffers", "256MB")
            .parameter("max_connections", "300")
            .parameter("max_wal_size", "4GB")
    })
}

/// Bytes of all messages.
async fn messages(world: &World) -> Result<i64> {
    world.number(Group::Coordinator, "SELECT citus_total_relation_size('public.messages')").await
}

fn say(what: &str) {
    eprintln!("-- {what}");
}
