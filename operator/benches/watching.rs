//! What it costs to watch load: the throughput of dialog-api while the servers count what tenants do and the operator looks at
//! it, against the same without either.
//!
//! ```sh
//! cargo build --release --package dialog-api
//! cargo bench -p dialog-operator --bench watching -- --dialog-api target/release/dialog-api
//! ```
//!
//! Prints a table. The operator's part is its own code but for what it asks of Kubernetes, at the pace that it has in a cluster. Its
//! periods are a quarter of the default, so that there are some in a measurement; `--period 5 --by-load` is the most that a
//! resource may ask for.

#![allow(clippy::unwrap_used, reason = "what cannot go on ends the measurement")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use dialog_bench::machine;
use dialog_bench::table::{Limit, Page, Row, median};
use dialog_bench::workload::Skew;
use dialog_operator::api::DialogClusterSpec;
use dialog_operator::cluster::patroni::config::statistics;
use dialog_operator::names::Group;
use dialog_operator::reconcile::Reconciler as _;
use dialog_operator::shards::Controller;
use dialog_operator::shards::heat::{look, until_next};
use dialog_operator::shards::observed::Observed;
use dialog_operator::shards::wanted::Wanted;
use dialog_operator::shards::world::World as Sight;
use jiff::Timestamp;
use serde_json::json;
use testbed::postgres::durable;
use tokio_util::sync::CancellationToken;

use crate::load::{Requests, Service};
use crate::operator::Operator;
use crate::world::{World, closed, eventually};

#[path = "growth/load.rs"]
#[allow(dead_code, reason = "growth uses more of it")]
mod load;
#[path = "../tests/citus/operator.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod operator;
#[path = "../tests/citus/world.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod world;

const WORKERS: u32 = 2;
/// Periods that are to be written down in each measurement. The first one of which servers tell says nothing: they had just begun to
/// count.
const PERIODS: i64 = 2;
/// Before what counts: sessions have taken over what was set, plans are cached, and what was asked for before has ended.
const WARMUP: Duration = Duration::from_secs(3);
/// Messages in each dialog before anybody writes.
const MESSAGES: u64 = 10;
/// What throughput with watching has to be of that without.
const LIMIT: Limit = Limit::AtLeast(0.95);
/// Sends go to dialogs as people write, and lists to any: so that a list is as long in the last round as in the first.
const SENDS: Requests = Requests { lists: 0.0, skew: Skew::Zipf(1.0), rate: None, warmup: WARMUP };
const LISTS: Requests = Requests { lists: 1.0, skew: Skew::Uniform, ..SENDS };

/// Measures what watching costs.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// The service, built for release; nothing is measured without
    #[arg(long)]
    dialog_api: Option<PathBuf>,
    /// Dialogs, with ten messages each before anybody writes
    #[arg(long, default_value_t = 20_000)]
    dialogs: u64,
    /// Shards of each table
    #[arg(long, default_value_t = 48)]
    shards: i32,
    /// Measurements of which the median is taken, of each kind of request with watching and without
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a period; each measurement lasts for three of them and a quarter
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(5..=600))]
    period: u64,
    /// Rebalance by load, not by size: the operator also asks what is done for each shard
    #[arg(long)]
    by_load: bool,
    /// The folder that RESULTS-watching.md is written to
    #[arg(long)]
    results: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// `spec.sharding.rebalance.strategy`.
    fn strategy(&self) -> &'static str {
        if self.by_load { "ByLoad" } else { "BySize" }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Err(reason) = testbed::postgres::citus_available() {
        println!("SKIPPED watching: {reason}");
        return Ok(());
    }
    // `cargo bench` without more runs this beside the others.
    let Some(program) = &arguments.dialog_api else {
        println!("SKIPPED watching: --dialog-api is missing");
        return Ok(());
    };
    Box::pin(measure(&arguments, program)).await
}

async fn measure(arguments: &Arguments, program: &Path) -> Result<()> {
    let busy = machine::load_average()?;
    let [on, off] = ["Observe", "Off"].map(|mode| Asked::new(mode, arguments));
    let duration = Duration::from_secs(arguments.period) * 13 / 4;
    let mut world = World::empty()?;
    for group in groups() {
        world.add_with(group, durable)?;
    }
    world.serve(&on.wanted).await?;
    let mut service = Service::start(&world, program)?;
    service.wait_for("/ready", &[200]).await?;
    service.fill(arguments.dialogs, MESSAGES).await?;
    let mut stand = Stand { world, service, operator: Operator::default(), observed: None };
    stand.operator.measures_rarely = true;
    let mut rows = Vec::new();
    for (name, requests) in [("sends", SENDS), ("lists", LISTS)] {
        let (mut watched, mut unwatched) = (Vec::new(), Vec::new());
        for round in 0..arguments.rounds {
            // Each comes first in turn: what has been written before makes the next a little slower.
            let first = round % 2 == 0;
            for watching in [first, !first] {
                eprintln!("-- {name}, round {round}, {}", if watching { "watched" } else { "not watched" });
                let asked = if watching { &on } else { &off };
                let met = Box::pin(stand.measure(asked, requests, duration)).await?;
                if watching { &mut watched } else { &mut unwatched }.push(met);
            }
        }
        rows.push(row(name, &watched, &unwatched));
    }
    publish(&stand.world, arguments, &busy, &rows).await
}

/// All servers.
fn groups() -> impl Iterator<Item = Group> {
    (0..WORKERS).map(Group::Worker).chain([Group::Coordinator])
}

/// What a resource asks for.
struct Asked {
    spec: DialogClusterSpec,
    wanted: Wanted,
}

impl Asked {
    /// With hot tenants in this mode; nothing moves.
    fn new(mode: &str, arguments: &Arguments) -> Self {
        let spec = json!({
            "workers": {"count": WORKERS},
            "sharding": {
                "shardCount": arguments.shards,
                "rebalance": {"strategy": arguments.strategy()},
                "hotTenants": {"mode": mode, "statistics": {"period": format!("{}s", arguments.period)}},
            },
        });
        let spec: DialogClusterSpec = serde_json::from_value(spec).unwrap();
        let mut wanted = Wanted::from(&spec);
        wanted.rebalance.gate = closed();
        Self { spec, wanted }
    }

    /// Has all servers count as it says, as by Patroni, and forget what they have counted before. Sessions take it over before
    /// their next statement.
    async fn apply(&self, world: &mut World) -> Result<()> {
        for group in groups() {
            for (name, value) in statistics(&self.spec.sharding.hot_tenants) {
                world.server(group).set_parameter(name, &value)?;
                let told =
                    format!("SELECT count(*) FROM pg_settings WHERE name = '{name}' AND setting = '{value}'");
                eventually("the server takes it over", async || Ok(world.number(group, &told).await? == 1))
                    .await?;
            }
            world.ask(group, "SELECT citus_stat_tenants_local_reset()").await?;
        }
        Ok(())
    }
}

/// What a load has met with, and what was seen of it.
struct Met {
    per_second: f64,
    failed: u64,
    /// Periods that the operator has written down, with tenants in them.
    periods: i64,
    /// Tenants that the workers list in the end.
    tenants: i64,
}

/// Servers, the service, and the operator.
struct Stand {
    world: World,
    service: Service,
    operator: Operator,
    /// What its last round has seen.
    observed: Option<Observed>,
}

impl Stand {
    /// Has a load made while the operator does what is asked of it.
    async fn measure(&mut self, asked: &Asked, requests: Requests, duration: Duration) -> Result<Met> {
        asked.apply(&mut self.world).await?;
        let before = periods(&self.world).await?;
        let stop = CancellationToken::new();
        let load = async {
            let loaded = self.service.load(requests, duration, &Arc::default()).await;
            stop.cancel();
            loaded
        };
        let rounds = rounds(&self.world, &mut self.operator, &mut self.observed, &asked.wanted, &stop);
        let (loaded, worked) = futures::join!(load, rounds);
        worked?;
        let report = loaded?.report;
        let mut tenants = 0;
        for worker in (0..WORKERS).map(Group::Worker) {
            let listed = "SELECT count(*) FROM citus_stat_tenants_local(true)";
            tenants += self.world.number(worker, listed).await?;
        }
        let met = Met {
            per_second: report.sends.per_second + report.lists.per_second,
            failed: report.sends.requests - report.sends.succeeded + report.lists.requests
                - report.lists.succeeded,
            periods: periods(&self.world).await? - before,
            tenants,
        };
        let is_asked = asked.wanted.watch.is_some();
        let is_met =
            if is_asked { met.periods >= PERIODS && tenants > 0 } else { met.periods == 0 && tenants == 0 };
        ensure!(
            is_met,
            "{} periods were written down and {tenants} tenants are listed after a load that was {} watched: nothing would be \
             compared",
            met.periods,
            if is_asked { "to be" } else { "not to be" }
        );
        Ok(met)
    }
}

/// Rounds of the operator as its controller makes them, until `stop`: at the end of each period where load is watched, which it
/// looks at before, and at its own pace otherwise.
async fn rounds(
    world: &World,
    operator: &mut Operator,
    observed: &mut Option<Observed>,
    wanted: &Wanted,
    stop: &CancellationToken,
) -> Result<()> {
    let topology = world.topology();
    loop {
        let now = Timestamp::now();
        if wanted.watch.is_none() {
            operator.heat = None;
        }
        if let (Some(watch), Some(observed)) = (&wanted.watch, &*observed)
            && operator.heat.as_ref().is_none_or(|heat| heat.is_due(watch, now))
        {
            let sight = Sight { wanted, topology: &topology, observed };
            operator.heat = look(&world.sessions()?, &sight, watch, now).await?;
        }
        let round = operator.round(world, wanted).await?;
        ensure!(round.failed.is_empty() && round.long.is_empty(), "{:?}, {:?}", round.failed, round.long);
        *observed = Some(round.observed);
        let due = wanted.watch.as_ref().map(|watch| until_next(watch, now, Timestamp::now()));
        let rest = due.map_or(Controller::REST, |due| due.min(Controller::REST));
        if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
            return Ok(());
        }
    }
}

/// The periods that the operator has written down so far, with tenants in them.
async fn periods(world: &World) -> Result<i64> {
    let recorded =
        "SELECT count(*) FROM dialog_operator.periods WHERE jsonb_array_length(period -> 'tenants') > 0";
    world.number(Group::Coordinator, recorded).await
}

fn row(name: &str, watched: &[Met], unwatched: &[Met]) -> Row {
    let speeds = |met: &[Met]| met.iter().map(|one| one.per_second).collect::<Vec<_>>();
    let (on, off) = (speeds(watched), speeds(unwatched));
    let by_round = on.iter().zip(&off).map(|(on, off)| on / off);
    let lowest = by_round.clone().fold(f64::INFINITY, f64::min);
    let highest = by_round.fold(f64::NEG_INFINITY, f64::max);
    let (on, off) = (median(on), median(off));
    let failed: u64 = watched.iter().chain(unwatched).map(|one| one.failed).sum();
    let failed = if failed == 0 { String::new() } else { format!(", **failed: {failed}**") };
    let looked: i64 = watched.iter().map(|one| one.periods).sum();
    #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
    let tenants = median(watched.iter().map(|one| one.tenants as f64));
    Row::ratio(
        format!("{name} per second, watched against not"),
        format!(
            "{on:.0}/s against {off:.0}/s, by rounds {lowest:.2} to {highest:.2}; {looked} periods written down, {tenants:.0} \
             tenants listed by the workers in the end{failed}"
        ),
        on / off,
        LIMIT,
    )
}

/// Prints the table, and writes it where that was asked for.
async fn publish(world: &World, arguments: &Arguments, busy: &str, rows: &[Row]) -> Result<()> {
    let Arguments { dialogs, shards, rounds, period, .. } = arguments;
    let by_load = if arguments.by_load { " --by-load" } else { "" };
    let machine = machine::describe(&world.ask_client(Group::Coordinator).await?, busy).await?;
    let command = format!(
        "cargo bench -p dialog-operator --bench watching -- --dialog-api target/release/dialog-api --dialogs {dialogs} \
         --shards {shards} --rounds {rounds} --period {period}{by_load} --results bench"
    );
    let note = format!(
        "A coordinator and {WORKERS} workers with {shards} shards on this machine, with fsync and TLS, {dialogs} dialogs with \
         {MESSAGES} messages each, and dialog-api, which is asked as fast as it answers. Medians of {rounds} rounds, in which both \
         take turns for three periods and a quarter, each after {} s of the same load. Watched: `hotTenants.mode` is `Observe`, all \
         servers count, and the operator looks at each period of {period} s (`rebalance.strategy: {}`). Not watched: \
         `Off`; it makes its rounds as it does then. [What is counted](../docs/hot-tenants.md#what-is-counted). Servers, service, \
         load and operator share the processors.",
        WARMUP.as_secs(),
        arguments.strategy()
    );
    let page = Page { title: "Watching load", command: &command, machine: &machine, note: &note, rows };
    page.publish(arguments.results.as_deref(), "RESULTS-watching.md")
}
