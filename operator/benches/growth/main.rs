//! What people notice while a cluster grows and shrinks, and how long that takes: 2 -> 4 -> 2 workers on servers of this
//! machine, with dialog-api, a load at 60 % and then at 30 % of its peak, and a ledger of every acknowledged message.
//!
//! ```sh
//! cargo build --release --package dialog-api
//! cargo bench -p dialog-operator --bench growth -- --dialog-api target/release/dialog-api
//! ```
//!
//! Prints a table. The operator's part is its own code but for what it asks of Kubernetes: rounds at the controller's pace,
//! and long steps between them.

#![allow(clippy::unwrap_used, reason = "what cannot go on ends the measurement")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use dialog_bench::table::{Limit, Page, Row};
use dialog_bench::workload::Skew;
use dialog_bench::{beside, machine};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::MovePlan;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use testbed::postgres::durable;

use crate::load::{Loaded, Requests, Service};
use crate::operator::Operator;
use crate::world::{World, closed, eventually, wanted};

mod load;
#[path = "../../tests/citus/operator.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod operator;
mod spread;
#[path = "../../tests/citus/world.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod world;

/// How often the controller looks while shards move.
const ROUND: Duration = Duration::from_secs(5);
/// Longest time that a change of the count may take.
const LIMIT: Duration = Duration::from_hours(1);
/// Shares of the peak that the load has, one after the other: what is asked for, and half of it. Servers, service and load
/// share the processors, which the first leaves little of for moves.
const SHARES: [f64; 2] = [0.6, 0.3];
/// Both kinds, as fast as the answers come.
const MIXED: Requests = Requests { lists: 0.8, skew: Skew::Uniform, rate: None, warmup: Duration::ZERO };
/// Bytes of a message of a hundred characters in its table and indexes.
const MESSAGE: u64 = 288;
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
    Box::pin(measure(&arguments, program)).await
}

#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
async fn measure(arguments: &Arguments, program: &Path) -> Result<()> {
    let busy = machine::load_average()?;
    let mut world = World::empty()?;
    for group in [Group::Coordinator, Group::Worker(0), Group::Worker(1)] {
        world.add_with(group, durable)?;
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
    let peak = service.load(MIXED, length, &Arc::default()).await?.report;
    let peak = peak.sends.per_second + peak.lists.per_second;
    let mut first = None;
    for share in SHARES {
        let before =
            Box::pin(under_load(&mut world, &service, arguments, (share, peak), alone, &mut rows)).await?;
        first.get_or_insert(before);
    }
    let before = first.context("no share")?;
    spread::two_five(&mut world, arguments, &mut rows).await?;
    // More servers on the same processors: what of the latency is theirs, and not that of moves.
    say("the load on 5 workers at rest");
    let spread_out = service.load(at(SHARES[0] * peak), length, &Arc::default()).await?;
    let at_rest = of_peak("on 5 workers at rest", SHARES[0]);
    rows.extend(load::compare(&before, &spread_out, Limit::None).map(|row| row.of(&at_rest)));
    publish(&world, arguments, &busy, &rows).await
}

/// Grows and shrinks under a load of this share of the peak, and returns what the load had met with before.
#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
async fn under_load(
    world: &mut World,
    service: &Service,
    arguments: &Arguments,
    (share, peak): (f64, f64),
    alone: Duration,
    rows: &mut Vec<Row>,
) -> Result<Loaded> {
    let rate = share * peak;
    say(&of_peak("before", share));
    let before = service.load(at(rate), Duration::from_secs(arguments.seconds), &Arc::default()).await?;
    say(&of_peak("2 -> 4 -> 2", share));
    for number in [2, 3] {
        world.add_with(Group::Worker(number), durable)?;
    }
    let ended = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let changes = async {
        let mut changes = Vec::new();
        for count in [4, 2] {
            let change = change(world, &with(count, arguments)).await;
            changes.push(match change {
                Ok(change) => anyhow::Ok((count, change, spread::of(world).await?)),
                Err(error) => Err(error),
            });
        }
        ended.store(true, Ordering::Relaxed);
        let changes = changes.into_iter().collect::<Result<Vec<_>>>()?;
        anyhow::Ok((changes, began.elapsed()))
    };
    let (during, changes) = futures::join!(service.load(at(rate), LIMIT, &ended), changes);
    let (mut during, (changes, took)) = (during?, changes?);
    let moves: usize = changes.iter().map(|(_, change, _)| change.made.len()).sum();
    let failures: usize = changes.iter().map(|(_, change, _)| change.failed).sum();
    rows.push(Row::ratio(
        of_peak("2 -> 4 -> 2, in seconds", share),
        format!(
            "{moves} moves, {failures} failed and were made again; {:.1} x of the same without a load",
            took.as_secs_f64() / alone.as_secs_f64()
        ),
        took.as_secs_f64(),
        Limit::None,
    ));
    for (count, change, spread) in &changes {
        rows.push(change.as_planned(&of_peak(&format!("to {count} workers"), share)));
        rows.push(spread.row(&of_peak(&format!("after the change to {count} workers"), share)));
    }
    service.audit(&mut during.report).await?;
    let latency = load::compare(&before, &during, beside::P99);
    let load = of_peak("with moves", share);
    rows.extend(beside::met(&during.report)?.into_iter().chain(latency).map(|row| row.of(&load)));
    two_less(world, arguments).await?;
    Ok(before)
}

/// Both kinds, so many a second.
fn at(rate: f64) -> Requests {
    Requests { rate: Some(rate), ..MIXED }
}

/// What is measured under a load of this share of the peak.
fn of_peak(what: &str, share: f64) -> String {
    format!("{what}, load at {:.0} % of the peak", share * 100.0)
}

/// Prints the table, and writes it where that was asked for.
async fn publish(world: &World, arguments: &Arguments, busy: &str, rows: &[Row]) -> Result<()> {
    let Arguments { megabytes, parallel, shards, seconds, .. } = arguments;
    let machine = machine::describe(&world.ask_client(Group::Coordinator).await?, busy).await?;
    let command = format!(
        "cargo bench -p dialog-operator --bench growth -- --dialog-api target/release/dialog-api --megabytes {megabytes} \
         --shards {shards} --parallel {parallel} --seconds {seconds} --results bench"
    );
    let note = format!(
        "{megabytes} MB of messages in {shards} shards, {parallel} moves at a time, and a load of 80 % lists. \
         [What is measured](../docs/rebalancing.md#measured). Servers, service and load share the processors.",
    );
    let page =
        Page { title: "Growing and shrinking", command: &command, machine: &machine, note: &note, rows };
    page.publish(arguments.results.as_deref(), "RESULTS-growth.md")
}

/// Grows and shrinks without a load, by the operator and by Citus, on the same data: how long the operator takes.
#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
async fn alone(world: &mut World, arguments: &Arguments, rows: &mut Vec<Row>, data: i64) -> Result<Duration> {
    say("2 -> 4 -> 2 by the operator, nobody else at work");
    two_more(world, arguments).await?;
    let mut ours = Vec::new();
    for count in [4, 2] {
        let change = change(world, &with(count, arguments)).await?;
        rows.push(change.as_planned(&format!("to {count} workers, nobody else at work")));
        ours.push(change);
    }
    two_less(world, arguments).await?;
    say("2 -> 4 -> 2 by citus_rebalance_start()");
    two_more(world, arguments).await?;
    for statement in [
        format!("ALTER SYSTEM SET citus.max_background_task_executors = {}", arguments.parallel),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        world.ask_client(Group::Coordinator).await?.batch_execute(&statement).await?;
    }
    let leave = "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', false) FROM pg_dist_node \
                 WHERE groupid IN (SELECT groupid FROM pg_dist_node WHERE groupid > 0 ORDER BY groupid DESC LIMIT 2)";
    let mut theirs = Vec::new();
    for (before, start) in [
        ("SELECT 1", "SELECT citus_rebalance_start(shard_transfer_mode => 'force_logical')"),
        (leave, "SELECT citus_rebalance_start(drain_only => true, shard_transfer_mode => 'force_logical')"),
    ] {
        let done = "SELECT count(*) FROM pg_dist_background_task WHERE status = 'done'";
        let earlier = world.number(Group::Coordinator, done).await?;
        world.ask(Group::Coordinator, before).await?;
        let began = Instant::now();
        world.ask(Group::Coordinator, start).await?;
        world.ask(Group::Coordinator, "SELECT citus_rebalance_wait()").await?;
        theirs.push((began.elapsed(), world.number(Group::Coordinator, done).await? - earlier));
    }
    two_less(world, arguments).await?;
    let mut totals = [Duration::ZERO; 2];
    for ((what, one), (took, moves)) in ["2 -> 4", "4 -> 2"].into_iter().zip(&ours).zip(&theirs) {
        totals[0] += one.took;
        totals[1] += *took;
        rows.push(Row::ratio(
            format!("{what} against citus_rebalance_start alone"),
            format!(
                "{:.1} s for {} moves against {:.1} s for {moves}, {} at a time, {} MB of messages",
                one.took.as_secs_f64(),
                one.made.len(),
                took.as_secs_f64(),
                arguments.parallel,
                data >> 20
            ),
            one.took.as_secs_f64() / took.as_secs_f64(),
            Limit::None,
        ));
    }
    let [ours, theirs] = totals;
    rows.push(Row::ratio(
        "2 -> 4 -> 2 against citus_rebalance_start alone",
        format!("{:.1} s against {:.1} s", ours.as_secs_f64(), theirs.as_secs_f64()),
        ours.as_secs_f64() / theirs.as_secs_f64(),
        Limit::AtMost(1.1),
    ));
    Ok(ours)
}

/// Adds the servers of two more workers, registered and empty.
async fn two_more(world: &mut World, arguments: &Arguments) -> Result<()> {
    for number in [2, 3] {
        world.add_with(Group::Worker(number), durable)?;
    }
    world.settle(&gated(4, arguments)).await?;
    Ok(())
}

/// Takes the servers of the workers away that hold nothing any more.
async fn two_less(world: &mut World, arguments: &Arguments) -> Result<()> {
    world.settle(&with(2, arguments)).await?;
    for number in [2, 3] {
        world.remove(Group::Worker(number));
    }
    world.settle(&with(2, arguments)).await?;
    Ok(())
}

/// A change of the count that came true.
struct Change {
    /// What was planned, in order; a plan follows another one when that has been carried out and the sizes have changed.
    plans: Vec<MovePlan>,
    made: Vec<Step>,
    failed: usize,
    /// From the first look to the end of the last move.
    took: Duration,
}

impl Change {
    /// Whether what was made is what the plans list, one plan after the other.
    fn as_planned(&self, what: &str) -> Row {
        let mut planned: Vec<Step> = Vec::new();
        for plan in &self.plans {
            let moves = plan.moves.iter();
            planned.extend(moves.map(|next| Step::MoveShard {
                shard_id: next.shard_id,
                from: next.from,
                to: next.to,
            }));
        }
        let plans = self.plans.iter().map(|plan| format!("{} of {} moves", plan.hash, plan.moves.len()));
        Row::ratio(
            format!("moves made other than the plan lists, {what}"),
            format!("plan {}", plans.collect::<Vec<_>>().join(", ")),
            f64::from(u8::from(planned != self.made)),
            Limit::AtMost(0.0),
        )
    }
}

/// Works as the controller does until `wanted` has come true.
async fn change(world: &World, wanted: &Wanted) -> Result<Change> {
    let mut operator = Operator::default();
    let (began, mut took, mut plans) = (Instant::now(), Duration::ZERO, Vec::<MovePlan>::new());
    loop {
        let round = operator.round(world, wanted).await?;
        if let Some(plan) = round.held_plan()
            && plans.last().is_none_or(|last| last.hash != plan.hash)
        {
            plans.push(plan);
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
    ensure!(!plans.is_empty(), "there was nothing to move");
    Ok(Change { plans, made: moves(&operator), failed: operator.failed.len(), took })
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

/// Bytes of all messages.
async fn messages(world: &World) -> Result<i64> {
    world.number(Group::Coordinator, "SELECT citus_total_relation_size('public.messages')").await
}

fn say(what: &str) {
    eprintln!("-- {what}");
}
