//! What people notice while one hot dialog after the other gets a shard of its own, on servers of this machine: they write as
//! dialog-api does, straight to the owners of the shards, with a ledger of every acknowledged message.
//!
//! ```sh
//! cargo bench -p dialog-operator --bench isolations
//! ```
//!
//! Prints a table. The operator's part is its own code but for what it asks of Kubernetes.

#![allow(clippy::unwrap_used, reason = "what cannot go on ends the measurement")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use dialog_bench::machine;
use dialog_bench::table::{self, Limit, Page, Row};
use dialog_operator::heat::Mode;
use dialog_operator::names::Group;
use dialog_operator::shards::wanted::Wanted;
use testbed::postgres::durable;

use crate::in_a_row::{Isolation, LIMIT, Stretch, Wait, Waits, Way, isolate};
use crate::isolation::{left_over, with_mode};
use crate::sends::{Ledger, Load, Sends};
use crate::world::{World, wanted};

#[path = "../tests/citus/in_a_row.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod in_a_row;
#[path = "../tests/citus/isolation.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod isolation;
#[path = "../tests/citus/operator.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod operator;
#[path = "../tests/citus/sends.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod sends;
#[path = "../tests/citus/world.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod world;

const WORKERS: u32 = 3;
/// In microseconds.
const SECOND: u64 = 1_000_000;
/// Writes per second that the product has to bear meanwhile.
const WRITES: f64 = 2000.0;
/// Messages in each dialog before anybody writes.
const MESSAGES: u64 = 10;
/// Of so many messages one goes to the dialog that is isolated.
const ONE_IN: u64 = 5;
/// Before the first isolation: what people wait for anyway.
const BEFORE: Duration = Duration::from_secs(20);

/// Measures isolations in a row under writes.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Isolations
    #[arg(long, default_value_t = 50)]
    count: u64,
    /// Messages a second, one in five of them to the dialog that is isolated
    #[arg(long, default_value_t = 2100.0)]
    rate: f64,
    /// Dialogs, with ten messages each before anybody writes
    #[arg(long, default_value_t = 20_000)]
    dialogs: u64,
    /// Shards of each table
    #[arg(long, default_value_t = 48)]
    shards: i32,
    /// The folder that RESULTS-isolations.md is written to
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
        println!("SKIPPED isolations: {reason}");
        return Ok(());
    }
    Box::pin(measure(&arguments)).await
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let busy = machine::load_average()?;
    let mut world = World::empty()?;
    for group in (0..WORKERS).map(Group::Worker).chain([Group::Coordinator]) {
        world.add_with(group, durable)?;
    }
    let wanted = with_mode(Wanted { shard_count: arguments.shards, ..wanted(WORKERS) }, Mode::Isolate);
    world.serve(&wanted).await?;
    let load = Load { dialogs: arguments.dialogs, messages: MESSAGES, rate: arguments.rate, one_in: ONE_IN };
    let sends = Sends::start(&world, load).await?;
    let hot = sends.heat(0)?;
    let before = Stretch::begin(&world, &sends, hot).await?;
    tokio::time::sleep(BEFORE).await;
    let before = before.end(&sends);
    let isolations = isolate(&world, &wanted, &sends, arguments.count).await?;
    let busy = format!("{busy}; after it {}", machine::load_average()?);
    let ledger = sends.end().await?;
    let left = left_over(&world, WORKERS).await?;
    let rows = rows(&isolations, &Waits::during(&before, &ledger), &ledger, &left);
    publish(&world, arguments, &busy, &rows).await
}

#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
fn rows(isolations: &[Isolation], before: &Waits, ledger: &Ledger, left: &[String]) -> Vec<Row> {
    let mut lengths: Vec<f64> =
        isolations.iter().map(|one| (one.stretch.ended - one.stretch.began) as f64 / 1e6).collect();
    lengths.sort_unstable_by(f64::total_cmp);
    let slowest = lengths.last().copied().unwrap_or(f64::NAN);
    let hung: Vec<&str> = isolations.iter().filter_map(|one| one.hung.as_deref()).collect();
    for hung in &hung {
        eprintln!("{hung}");
    }
    let again = isolations.iter().filter(|one| one.attempts > 1).count();
    let began = isolations.first().map_or(0, |one| one.stretch.began);
    let ended = isolations.last().map_or(0, |one| one.stretch.ended);
    let seconds = (began..ended.saturating_sub(SECOND)).step_by(1_000_000);
    let fewest = seconds.map(|began| rate(ledger, began, began + SECOND)).fold(f64::INFINITY, f64::min);
    let audit = &ledger.audit;
    let mut rows = vec![
        Row::ratio(
            "isolations that hung",
            format!(
                "{} begun, every other one by logical replication; {again} needed more than one attempt; hung: not done within {} s",
                isolations.len(),
                LIMIT.as_secs()
            ),
            hung.len() as f64,
            Limit::AtMost(0.0),
        ),
        Row::ratio(
            "slots, subscriptions, publications, roles, notes and shards left over",
            if left.is_empty() { "on no server".to_owned() } else { left.join(", ") },
            left.len() as f64,
            Limit::AtMost(0.0),
        ),
        Row::ratio(
            "writes acknowledged per second, from the first decision to the last shard in its place",
            format!("in {:.0} s; {fewest:.0} in the second with the fewest", (ended - began) as f64 / 1e6),
            rate(ledger, began, ended),
            Limit::AtLeast(WRITES),
        ),
        Row::ratio(
            "messages not as acknowledged",
            format!(
                "{} acknowledged, {} lost, {} doubled, {} out of order",
                audit.acknowledged, audit.lost, audit.doubled, audit.out_of_order
            ),
            (audit.lost + audit.doubled + audit.strange + audit.out_of_order) as f64,
            Limit::AtMost(0.0),
        ),
        Row::ratio(
            "share of messages that were refused",
            format!("{} of {}", ledger.failed(), audit.sends),
            ledger.failed() as f64 / audit.sends as f64,
            Limit::AtMost(0.0001),
        ),
    ];
    for (whose, of, limit) in [
        ("the dialog that is isolated", (|waits: &Waits| waits.own) as fn(&Waits) -> Wait, 2000.0),
        ("the others of its shard", |waits| waits.beside, 2000.0),
        ("any other shard group", |waits| waits.others, 500.0),
    ] {
        rows.extend(longest_waits(whose, of, Limit::AtMost(limit), isolations, before, ledger));
    }
    rows.push(Row::ratio(
        "an isolation, from the decision until the shards are spread again, in seconds",
        format!("slowest {slowest:.1} s"),
        table::median(lengths),
        Limit::None,
    ));
    rows
}

/// How long somebody waited: in all isolations, and in what was cut and moved in each way, with what the longest was in.
fn longest_waits(
    whose: &str,
    of: fn(&Waits) -> Wait,
    limit: Limit,
    isolations: &[Isolation],
    before: &Waits,
    ledger: &Ledger,
) -> Vec<Row> {
    let milliseconds = |wait: Wait| wait.lasted.as_secs_f64() * 1e3;
    let row = |when: &str, waits: &[(&Isolation, Wait)], more: &str| {
        let what = format!("longest wait for an acknowledgement, {whose}{when}, in ms");
        let Some((longest, wait)) = waits.iter().max_by_key(|(_, wait)| *wait) else {
            return Row::not_measured(what, "there was none");
        };
        let median = table::median(waits.iter().map(|(_, wait)| milliseconds(*wait)));
        let figures =
            format!("the longest {}; median of {} {median:.0} ms{more}", longest.amid(*wait), waits.len());
        Row::ratio(what, figures, milliseconds(*wait), limit)
    };
    let all: Vec<(&Isolation, Wait)> =
        isolations.iter().map(|one| (one, of(&Waits::during(&one.stretch, ledger)))).collect();
    let calm = format!("; {:.0} ms in the {} s before", milliseconds(of(before)), BEFORE.as_secs());
    let mut rows = vec![row("", &all, &calm)];
    for way in [Way::Quick, Way::Online, Way::Move] {
        let mut waits = Vec::new();
        for one in isolations {
            let of_way = one.long.iter().filter(|long| long.way == way);
            waits.extend(of_way.map(|long| (one, of(&Waits::amid(&one.stretch, long, ledger)))));
        }
        rows.push(row(&format!(", during {way}"), &waits, ""));
    }
    rows
}

/// How many were acknowledged between two moments, a second.
#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
fn rate(ledger: &Ledger, began: u64, ended: u64) -> f64 {
    let acknowledged = ledger
        .between(began, ended)
        .filter(|entry| entry.code.is_success() && (began..ended).contains(&entry.finished));
    acknowledged.count() as f64 / ((ended - began) as f64 / 1e6)
}

/// Prints the table, and writes it where that was asked for.
async fn publish(world: &World, arguments: &Arguments, busy: &str, rows: &[Row]) -> Result<()> {
    let Arguments { count, rate, dialogs, shards, .. } = arguments;
    let machine = machine::describe(&world.ask_client(Group::Coordinator).await?, busy).await?;
    let command = format!(
        "cargo bench -p dialog-operator --bench isolations -- --count {count} --rate {rate} --dialogs {dialogs} --shards {shards} \
         --results bench"
    );
    let note = format!(
        "A coordinator and {WORKERS} workers with {shards} shards on this machine, with fsync and TLS, and {dialogs} dialogs with \
         {MESSAGES} messages each. Messages come {rate} times a second whatever becomes of them, by dialog-api's own database client \
         and statement, without its HTTP; one in {ONE_IN} goes to the dialog that is isolated next. \
         A wait is that of one shard group's sends; phases are those that the operator's looks saw in it, or last before. \
         [What is done](../docs/hot-tenants.md#what-is-done). Servers, client and operator share the processors."
    );
    let page =
        Page { title: "Isolations under writes", command: &command, machine: &machine, note: &note, rows };
    page.publish(arguments.results.as_deref(), "RESULTS-isolations.md")
}
