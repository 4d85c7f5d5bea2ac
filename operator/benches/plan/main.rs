//! What planning costs, up to the size of a very large cluster, and what it is worth beside Citus' own.
//!
//! ```sh
//! cargo bench -p dialog-operator --bench plan -- --results bench
//! ```
//!
//! Prints a table. Measured is the whole plan that each round of the operator makes, of which the moves of shards are one part;
//! the comparison, and what a cluster at rest costs, are those of the tests on real servers.

#![allow(clippy::unwrap_used, reason = "what cannot go on ends the measurement")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::process;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum as _};
use dialog_bench::machine;
use dialog_bench::process::{peak_kib, peak_mb_of};
use dialog_bench::table::{Limit, Page, Row, markdown, milliseconds};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::{
    Goal, HashRange, Layout, Node, Policy, Role, ShardGroup, Strategy, plan,
};

use crate::clusters::{Case, Cluster};
use crate::comparison::{LAYOUTS, PRECISION, Pair};
use crate::world::{World, wanted};

mod clusters;
#[path = "../../tests/citus/comparison.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod comparison;
#[path = "../../tests/citus/steady.rs"]
mod steady;
#[path = "../../tests/citus/world.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod world;

/// Workers and shard groups of the largest cluster.
const LARGE: (u32, u32) = (200, 8000);
/// Those of smaller ones.
const SMALLER: [(u32, u32); 2] = [(5, 96), (50, 2000)];
/// Plans of which the time is the median.
const RUNS: usize = 100;
/// The longest time, in milliseconds.
const TIME: f64 = 100.0;
/// The most memory of a process that makes a plan, in MB.
const MEMORY: f64 = 50.0;

/// Measures planning.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// The folder that RESULTS-planning.md is written to
    #[arg(long)]
    results: Option<PathBuf>,
    /// Makes one plan, and prints the most memory that this process has occupied, in KiB
    #[arg(long, hide = true)]
    memory_of: Option<Case>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(case) = arguments.memory_of {
        println!("{}", peak_of(case)?);
        return Ok(());
    }
    let busy = machine::load_average()?;
    let mut rows = Vec::new();
    for case in Case::value_variants() {
        rows.push(time(*case, LARGE));
    }
    rows.extend(SMALLER.map(|size| time(Case::Grown, size)));
    for case in Case::value_variants() {
        rows.push(memory(*case)?);
    }
    rows.push(two_five());
    if let Err(reason) = testbed::postgres::citus_available() {
        println!("{}\nSKIPPED the rest: {reason}. Nothing was written.", markdown(&rows));
        return Ok(());
    }
    let world = World::start(0)?;
    world.round(&wanted(0)).await?;
    let client = world.ask_client(Group::Coordinator).await?;
    rows.extend(beside_citus(
        &format!("{LAYOUTS} random layouts"),
        &comparison::random_layouts(&client).await?,
    ));
    rows.extend(beside_citus("real catalogs", &Box::pin(comparison::real_catalogs()).await?));
    rows.push(at_rest().await?);
    let machine = machine::describe(&client, &busy).await?;
    let note = format!(
        "Times are the median of {RUNS} plans, each the whole of what one round of the operator decides; memory is what a process \
         of its own occupies at most, with what the plan is made from. [What is planned](../docs/rebalancing.md#measured)."
    );
    let page = Page {
        title: "Planning",
        command: "cargo bench -p dialog-operator --bench plan -- --results bench",
        machine: &machine,
        note: &note,
        rows: &rows,
    };
    page.publish(arguments.results.as_deref(), "RESULTS-planning.md")
}

/// How long a plan takes.
fn time(case: Case, (workers, groups): (u32, u32)) -> Row {
    let cluster = Cluster::new(case, workers, groups);
    let moves = cluster.moves().plan.moves.len();
    let (time, slowest) = milliseconds(RUNS, || {
        black_box(black_box(&cluster).plan());
    });
    Row::ratio(
        format!("time for a plan, in ms, {workers} workers: {}", case.describe()),
        format!("{groups} shard groups, {moves} moves; the slowest {slowest:.1} ms"),
        time,
        Limit::AtMost(TIME),
    )
}

/// How much memory a process occupies that does nothing else.
fn memory(case: Case) -> Result<Row> {
    let name = case.to_possible_value().context("it has no name")?;
    let most = peak_mb_of(&["--memory-of", name.get_name()])?;
    let (workers, groups) = LARGE;
    Ok(Row::ratio(
        format!("memory of a process that makes a plan, in MB, {workers} workers: {}", case.describe()),
        format!("{groups} shard groups; with all that it is made from"),
        most,
        Limit::AtMost(MEMORY),
    ))
}

/// The most that this process has occupied once it has made a plan.
fn peak_of(case: Case) -> Result<u64> {
    let (workers, groups) = LARGE;
    black_box(Cluster::new(case, workers, groups).plan());
    peak_kib(process::id())
}

/// The shards of a table after growing from two workers to five.
fn two_five() -> Row {
    let node = |number| (Group::Worker(number), Node { role: Role::Shared, free_bytes: None });
    let group = |number: i32| ShardGroup {
        colocation_id: 1,
        shard_id: 100_000 + i64::from(number),
        range: HashRange { min: number, max: number },
        node: Group::Worker(u32::from(number % 2 == 1)),
        bytes: 20 << 20,
        load: 1000,
    };
    let layout =
        Layout { nodes: (0..5).map(node).collect(), groups: (0..48).map(group).collect(), pins: Vec::new() };
    let (mut figures, mut apart) = (Vec::new(), 0);
    for strategy in [Strategy::BySize, Strategy::ByCount, Strategy::ByLoad] {
        let goal = Goal::Balance;
        let policy = Policy { strategy, threshold: 100, max_parallel_moves: 1, moves_per_node: 1, goal };
        let planned = plan(&layout, &policy);
        let mut on: BTreeMap<i64, Group> =
            layout.groups.iter().map(|group| (group.shard_id, group.node)).collect();
        on.extend(planned.moves.iter().map(|next| (next.shard_id, next.to)));
        let held = |node: &Group| on.values().filter(|other| *other == node).count();
        let mut counts: Vec<usize> = layout.nodes.keys().map(held).collect();
        counts.sort_unstable_by(|one, other| other.cmp(one));
        apart = apart.max(counts[0] - counts[4]);
        let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
        figures.push(format!("`{strategy:?}` {} by {} moves", counts.join("/"), planned.moves.len()));
    }
    Row::ratio(
        "shards of the fullest of 5 workers above those of the emptiest, 48 shards of one size from 2",
        figures.join(", "),
        f64::from(u32::try_from(apart).unwrap_or(u32::MAX)),
        Limit::AtMost(1.0),
    )
}

/// How our plans stand beside Citus' own for the same layouts.
fn beside_citus(what: &str, pairs: &[Pair]) -> [Row; 3] {
    let count = |holds: &dyn Fn(&Pair) -> bool| pairs.iter().filter(|pair| holds(pair)).count();
    let worst = |of: &dyn Fn(&Pair) -> f64| pairs.iter().map(of).fold(0.0, f64::max);
    let (plans, mib) = (pairs.len(), |bytes: u64| bytes >> 20);
    let left = pairs.iter().map(|pair| pair.ours.misplaced.saturating_sub(pair.citus.misplaced)).max();
    let left = left.and_then(|left| u32::try_from(left).ok()).map_or(f64::NAN, f64::from);
    [
        Row::ratio(
            format!(
                "shard groups that have to leave a node and do not, beyond those of Citus' plan, worst of {what}"
            ),
            format!("{plans} plans, by size and by count"),
            left,
            Limit::AtMost(0.0),
        ),
        Row::ratio(
            format!("unevenness that a plan leaves against that of Citus' plan, worst of {what}"),
            format!(
                "less uneven in {} and as even in {} of {plans} plans",
                count(&|pair| pair.unevenness() < 1.0 / PRECISION),
                count(&|pair| (1.0 / PRECISION..=PRECISION).contains(&pair.unevenness()))
            ),
            worst(&Pair::unevenness),
            Limit::AtMost(PRECISION),
        ),
        Row::ratio(
            format!("bytes that a plan copies against Citus' plan, worst of {what}"),
            format!(
                "{} MiB against {} MiB together; fewer in {}, and fewer moves in {}, of {plans} plans",
                mib(pairs.iter().map(|pair| pair.ours.bytes).sum()),
                mib(pairs.iter().map(|pair| pair.citus.bytes).sum()),
                count(&|pair| pair.ours.bytes < pair.citus.bytes),
                count(&|pair| pair.ours.moves < pair.citus.moves)
            ),
            worst(&Pair::bytes),
            Limit::AtMost(1.0),
        ),
    ]
}

/// What a cluster with nothing to do costs its coordinator.
async fn at_rest() -> Result<Row> {
    let steady::Steady { look, measured, watching, per_second } = Box::pin(steady::measure()).await?;
    Ok(Row::ratio(
        "statements per second on the coordinator of a cluster at rest",
        format!("{look} per look, {measured} with sizes, {watching} per period of load"),
        per_second,
        Limit::AtMost(steady::MOST),
    ))
}
