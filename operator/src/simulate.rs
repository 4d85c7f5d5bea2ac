//! What `dialog-operator simulate` does: the decision function of the operator over hours and days of load, made up or
//! recorded, with what it decides carried out on a simulated cluster.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, bail};
use jiff::SignedDuration;

use crate::cli::{Output, Simulate};
use crate::heat::{History, Mode, Period, Policy, Tenant, decide};
use crate::names::Group;

mod number;
mod outcome;
mod scenario;
mod shards;
mod surges;
mod svg;
mod work;
mod world;

pub use outcome::{Acted, Outcome, Peak, Retargeted, Spell};
pub use scenario::{Incident, IncidentKind, Invalid, Scenario, Surge, Synthetic, Tables, Wave, Workers};

use outcome::Log;
use work::Cost;
use world::World;

/// Runs the scenario of a file; what to print.
///
/// # Errors
/// If the file cannot be read or is no scenario, or the chart cannot be written.
pub fn run(arguments: &Simulate) -> anyhow::Result<String> {
    let path = &arguments.file;
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let scenario = match Scenario::read(&text) {
        Ok(scenario) => scenario,
        Err(invalid) => bail!("{}: {invalid}", path.display()),
    };
    let outcome = simulate(&scenario);
    if let Some(svg) = &arguments.svg {
        fs::write(svg, outcome.svg())
            .with_context(|| format!("cannot write the chart to {}", svg.display()))?;
    }
    Ok(match arguments.output {
        Output::Table => outcome.to_string(),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&outcome)?),
    })
}

/// Runs a scenario. The same scenario has the same outcome.
#[must_use]
pub fn simulate(scenario: &Scenario) -> Outcome {
    match (&scenario.synthetic, &scenario.recorded) {
        (Some(synthetic), _) => made_up(scenario, synthetic),
        (None, recorded) => replayed(scenario, recorded.as_deref().unwrap_or_default()),
    }
}

fn made_up(scenario: &Scenario, synthetic: &Synthetic) -> Outcome {
    let log = drive(synthetic, scenario.policy, true);
    let without = drive(synthetic, scenario.policy, false);
    let period_seconds = whole(synthetic.period);
    let groups = synthetic.tables.iter().map(|tables| u64::from(tables.shard_groups));
    let shards =
        synthetic.tables.iter().map(|tables| u64::from(tables.shard_groups) * u64::from(tables.count));
    Outcome {
        description: scenario.description.clone(),
        mode: scenario.policy.mode,
        seconds: whole(synthetic.duration),
        period_seconds,
        workers: usize::try_from(synthetic.workers.count).unwrap_or(usize::MAX),
        shard_groups: [usize::try_from(groups.sum::<u64>()).unwrap_or(usize::MAX), log.1],
        shards: Some(shards.sum()),
        tenants: Some(synthetic.tables.iter().map(|tables| u64::from(tables.tenants)).sum()),
        refused: log.0.refused(),
        hot_tenants: log.0.hot.len(),
        busy_minutes: log.0.busy_minutes(period_seconds),
        busy_minutes_without: Some(without.0.busy_minutes(period_seconds)),
        busiest: log.0.busiest(period_seconds),
        actions: log.0.actions,
        retargeted: log.0.retargeted,
        demand: log.0.demand,
    }
}

/// Lets the made-up hours pass; what was decided, if anything is to be, and the shard groups at the end.
fn drive(synthetic: &Synthetic, mut policy: Policy, deciding: bool) -> (Log, usize) {
    let mut world = World::new(synthetic, &policy);
    let mut history = History::default();
    let mut log = Log::default();
    let mut incidents: Vec<&Incident> = synthetic.incidents.iter().collect();
    incidents.sort_by_key(|incident| std::cmp::Reverse(incident.at));
    for _ in 0..synthetic.periods() {
        while let Some(incident) = incidents.pop_if(|incident| incident.at.as_secs_f64() <= world.time) {
            happen(incident, &mut world, &mut policy);
        }
        let (demand, noticed) = world.pass();
        log.load(&demand);
        world.progress();
        if !deciding {
            continue;
        }
        let period = world.see(&demand, &noticed, &policy);
        let (decision, next) = decide(&policy, &history, &period);
        history = next;
        world.retarget(&decision.retargeted);
        let cost = match decision.action {
            Some(action) if policy.mode == Mode::Isolate => world.begin(action),
            Some(_) | None => Cost::default(),
        };
        log.decision(number::count(world.time), &decision, cost, |tenant| world.name(tenant));
    }
    (log, world.shards.all.len())
}

fn happen(incident: &Incident, world: &mut World, policy: &mut Policy) {
    let worker = Group::Worker(incident.worker.unwrap_or(0));
    match incident.kind {
        IncidentKind::StatisticsReset => world.reset(worker),
        IncidentKind::Unreachable => {
            world.silence(worker, incident.lasting.unwrap_or_default().as_secs_f64());
        }
        IncidentKind::Drain => world.drain(worker),
        IncidentKind::ClockJump => world.jump(incident.by.unwrap_or_default()),
        IncidentKind::PolicyEdited => *policy = incident.policy.unwrap_or(*policy),
    }
}

/// Observes the recorded periods: what is decided of them is the same as if it were carried out.
fn replayed(scenario: &Scenario, periods: &[Period]) -> Outcome {
    let policy = Policy { mode: Mode::Observe, ..scenario.policy };
    let mut history = History::default();
    let mut log = Log::default();
    let (first, last) = (periods.first(), periods.last());
    let period_seconds = first.map_or(0, |period| whole(period.length));
    let mut groups = 0;
    for period in periods {
        let seen = history.imagined.apply(period);
        groups = seen.shard_groups;
        let asked = seen.nodes.iter().map(|(group, node)| {
            let limit = number::fraction(node.cpu_limit);
            (*group, if limit > 0.0 { number::fraction(node.cpu) / limit } else { 0.0 })
        });
        log.load(&asked.collect::<BTreeMap<_, _>>());
        let (decision, next) = decide(&policy, &history, period);
        history = next;
        let since = first.map_or(SignedDuration::ZERO, |first| period.end.duration_since(first.end));
        let name = |tenant: Tenant| {
            let place = format!("{}/{}", tenant.colocation_id, tenant.hash);
            let named = scenario.names.iter().find(|(named, _)| *named == tenant);
            named.map_or_else(|| place.clone(), |(_, name)| format!("{name} ({place})"))
        };
        log.decision(whole(since), &decision, Cost::default(), name);
    }
    Outcome {
        description: scenario.description.clone(),
        mode: scenario.policy.mode,
        seconds: first.zip(last).map_or(0, |(first, last)| whole(last.end.duration_since(first.end)))
            + period_seconds,
        period_seconds,
        workers: first.map_or(0, |period| period.nodes.len()),
        shard_groups: [first.map_or(0, |period| period.shard_groups), groups],
        shards: None,
        tenants: None,
        refused: log.refused(),
        hot_tenants: log.hot.len(),
        busy_minutes: log.busy_minutes(period_seconds),
        busy_minutes_without: None,
        busiest: log.busiest(period_seconds),
        actions: log.actions,
        retargeted: log.retargeted,
        demand: log.demand,
    }
}

/// Whole seconds; what lies before the start is at the start.
fn whole(length: SignedDuration) -> u64 {
    u64::try_from(length.as_secs()).unwrap_or(0)
}
