//! What deciding about load costs, up to a million tenants that are all listed, and how fast days of it are simulated.
//!
//! ```sh
//! cargo bench -p dialog-operator --bench decide -- --results bench
//! ```
//!
//! Prints a table. Measured is the whole decision: who is hot, who is quiet, which nodes are busy, what is done, what is refused,
//! and what is remembered. Each node does as much as its tenants together, and as much again of other things. Few tenants do
//! most: one in a thousand asks for fifty times as much as the others, one for two fifths of a node, and has for so long that
//! something is decided. There are as many pins as the policy allows but one, tenants that somebody has decided about, and shard
//! groups that are too large and cannot be divided.

#![allow(clippy::unwrap_used, reason = "what cannot go on ends the measurement")]

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use dialog_bench::machine;
use dialog_bench::process::{peak_kib, peak_mb_of};
use dialog_bench::table::{Limit, Page, Row, milliseconds};
use dialog_operator::heat::{
    Decision, History, LargeShard, Mode, NodeLoad, Period, Policy, Relief, Tenant, TenantLoad, decide,
};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::Role;
use dialog_operator::simulate::{Scenario, simulate};
use jiff::{SignedDuration, Timestamp};

/// Nodes and tenants, of the largest cluster at last.
const SIZES: [(u32, u32); 2] = [(20, 100_000), (200, 1_000_000)];
/// Decisions of which the time is the median.
const RUNS: usize = 50;
/// The longest time, in milliseconds.
const TIME: f64 = 200.0;
/// The most memory of a process that decides about the largest cluster, in MB.
const MEMORY: f64 = 512.0;
/// Simulations of which the time is the median.
const SIMULATIONS: usize = 3;
/// The longest time of one, in seconds: days of traffic in seconds.
const SIMULATION: f64 = 10.0;
/// What is simulated: a day of the most workers, and the most days.
const SCENARIOS: [&str; 2] = ["large", "slow-growth"];

/// Measures deciding.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// The folder that RESULTS-deciding.md is written to
    #[arg(long)]
    results: Option<PathBuf>,
    /// Makes one decision about the largest cluster, and prints the most memory that this process has occupied, in KiB
    #[arg(long, hide = true)]
    memory_of: Option<Case>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// A tenant is isolated
    Isolating,
    /// The period after one where that was only imagined: it is decided as if the tenant were elsewhere
    Observing,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(case) = arguments.memory_of {
        black_box(Scene::new(case, SIZES[1]).decide());
        println!("{}", peak_kib(process::id())?);
        return Ok(());
    }
    let machine = machine::describe_alone(&machine::load_average()?)?;
    let mut rows = Vec::new();
    for case in Case::value_variants() {
        rows.extend(SIZES.map(|size| time(*case, size)));
    }
    for case in Case::value_variants() {
        rows.push(memory(*case)?);
    }
    for name in SCENARIOS {
        rows.push(simulation(name)?);
    }
    let note = format!(
        "Times of decisions are the median of {RUNS}, each the whole of what follows from one period in which all tenants are listed \
         and no node is idle; those of simulations the median of {SIMULATIONS}, with what would be if nothing were done, and the \
         picture. Memory is what a process of its own occupies at most, with what is decided about. \
         [What is decided](../docs/hot-tenants.md#what-is-decided), [what is simulated](../docs/simulation.md)."
    );
    let page = Page {
        title: "Deciding",
        command: "cargo bench -p dialog-operator --bench decide -- --results bench",
        machine: &machine,
        note: &note,
        rows: &rows,
    };
    page.publish(arguments.results.as_deref(), "RESULTS-deciding.md")
}

impl Case {
    /// In words.
    fn describe(self) -> &'static str {
        match self {
            Self::Isolating => "`Isolate`, one is isolated",
            Self::Observing => "`Observe`, as if one had been",
        }
    }
}

/// How long a decision takes.
fn time(case: Case, (nodes, tenants): (u32, u32)) -> Row {
    let scene = Scene::new(case, (nodes, tenants));
    let (time, slowest) = milliseconds(RUNS, || {
        black_box(black_box(&scene).decide());
    });
    Row::ratio(
        format!("time for a decision, in ms, {nodes} nodes: {}", case.describe()),
        format!("{tenants} tenants; the slowest {slowest:.1} ms"),
        time,
        Limit::AtMost(TIME),
    )
}

/// How much memory a process occupies that does nothing else.
fn memory(case: Case) -> Result<Row> {
    let name = case.to_possible_value().context("it has no name")?;
    let (nodes, tenants) = SIZES[1];
    Ok(Row::ratio(
        format!("memory of a process that decides, in MB, {nodes} nodes: {}", case.describe()),
        format!("{tenants} tenants; with all that is decided about"),
        peak_mb_of(&["--memory-of", name.get_name()])?,
        Limit::AtMost(MEMORY),
    ))
}

/// How long a scenario takes.
fn simulation(name: &str) -> Result<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/{name}.yaml"));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let scenario = Scenario::read(&text).with_context(|| path.display().to_string())?;
    let outcome = simulate(&scenario);
    let (time, slowest) = milliseconds(SIMULATIONS, || {
        black_box(simulate(black_box(&scenario)).svg());
    });
    let hours = outcome.seconds / 3600;
    Ok(Row::ratio(
        format!("time for {hours} simulated hours, in seconds: `{name}.yaml`"),
        format!(
            "{} workers, {} shards, {} tenants, {} actions; the slowest {:.2} s",
            outcome.workers,
            outcome.shards.unwrap_or_default(),
            outcome.tenants.unwrap_or_default(),
            outcome.actions.len(),
            slowest / 1e3
        ),
        time / 1e3,
        Limit::AtMost(SIMULATION),
    ))
}

/// Eight cores for a minute, in microseconds.
const CPU_LIMIT: u64 = 8 * 60_000_000;
/// The one that is to be isolated.
const HOT: u32 = 1;
/// Shard groups that are too large.
const LARGE: u32 = 100;

/// `tenants` tenants on `nodes` nodes, in a minute.
fn period(policy: &Policy, nodes: u32, tenants: u32, minute: i64) -> Period {
    let tenant = |number: u32| Tenant {
        colocation_id: 1,
        // Scattered, as hashes are.
        hash: number.wrapping_mul(2_654_435_769).cast_signed(),
    };
    let mut period = Period {
        end: Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minute),
        length: SignedDuration::from_mins(1),
        nodes: (0..nodes)
            .map(|number| {
                (
                    Group::Worker(number),
                    idle(if number + 1 == nodes { Role::Dedicated } else { Role::Shared }),
                )
            })
            .collect(),
        tenants: Vec::new(),
        pins: (2..)
            .map(|number| tenant(number).pin(Group::Worker(number % nodes)))
            .take(policy.max_isolated - 1)
            .collect(),
        held: (1_000..1_008).map(tenant).collect(),
        empty: Vec::new(),
        uses: Vec::new(),
        large: (0..LARGE)
            .map(|number| LargeShard {
                colocation_id: 1,
                shard_id: 100_000 + i64::from(number),
                node: Group::Worker(number % nodes),
                bytes: (30 << 30) + u64::from(number),
                median: None,
                heaviest: None,
            })
            .collect(),
        shard_groups: 8_000,
        underway: false,
        relief: Relief::Ready,
        splits_held: false,
    };
    let pinned: Vec<Tenant> = period.pins.iter().map(Tenant::from).collect();
    for number in 0..tenants {
        let cpu = if number == HOT {
            CPU_LIMIT * 2 / 5
        } else if number % 1000 == 0 {
            400_000
        } else {
            8_000
        };
        let load = TenantLoad {
            tenant: tenant(number),
            node: Group::Worker(number % nodes),
            queries: cpu / 100,
            writes: cpu / 200,
            cpu,
            shard_bytes: 1 << 30,
            alone: pinned.contains(&tenant(number)),
        };
        if let Some(node) = period.nodes.get_mut(&load.node) {
            node.queries += load.queries;
            node.writes += load.writes;
            node.cpu += load.cpu;
        }
        period.tenants.push(load);
    }
    period
}

fn idle(role: Role) -> NodeLoad {
    NodeLoad {
        role,
        queries: 0,
        writes: 0,
        // So much that none counts as idle: then every tenant is looked at.
        cpu: CPU_LIMIT / 4,
        cpu_limit: CPU_LIMIT,
        free_bytes: Some(1 << 40),
        unseen: 0,
        unlisted: 0,
    }
}

/// What is decided from.
struct Scene {
    policy: Policy,
    history: History,
    last: Period,
}

impl Scene {
    /// So many periods after the first that something follows from the last; every tenant has enough queries to count.
    fn new(case: Case, (nodes, tenants): (u32, u32)) -> Self {
        let (mode, periods) = match case {
            Case::Isolating => (Mode::Isolate, 3),
            Case::Observing => (Mode::Observe, 4),
        };
        let policy = Policy { mode, min_queries: 10, ..Policy::default() };
        let mut history = History::default();
        for minute in 1..periods {
            history = decide(&policy, &history, &period(&policy, nodes, tenants, minute)).1;
        }
        let last = period(&policy, nodes, tenants, periods);
        let scene = Self { policy, history, last };
        let answer = scene.decide().0;
        let expected = match case {
            Case::Isolating => answer.action.is_some(),
            Case::Observing => !scene.history.imagined.pins.is_empty(),
        };
        assert!(expected, "this is another case: {answer:?}");
        scene
    }

    fn decide(&self) -> (Decision, History) {
        decide(&self.policy, &self.history, &self.last)
    }
}
