//! What came of a scenario, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::work::Cost;
use crate::heat::{Action, Decision, Mode, Reason, Refused, Tenant};
use crate::names::Group;
use crate::shards::rebalance::Pin;

/// A worker that asks for more than this part of its CPU time is counted as busy.
const BUSY: f64 = 0.8;
/// Lines of one kind that the text shows.
const SHOWN: usize = 24;

/// What came of a scenario.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// What the scenario shows.
    pub description: String,
    /// Whether what was decided was carried out.
    pub mode: Mode,
    /// Seconds of it.
    pub seconds: u64,
    /// Seconds of one period.
    pub period_seconds: u64,
    /// Workers at the beginning.
    pub workers: usize,
    /// Shard groups at the beginning and at the end.
    pub shard_groups: [usize; 2],
    /// Shards at the beginning: each shard group has one of each of its tables. Not known of a recording.
    pub shards: Option<u64>,
    /// Tenants. Not known of a recording.
    pub tenants: Option<u64>,
    /// What was done, or would have been.
    pub actions: Vec<Acted>,
    /// Pins that followed when their nodes left.
    pub retargeted: Vec<Retargeted>,
    /// What was not done, each once.
    pub refused: Vec<Spell>,
    /// How many tenants were hot at some time.
    pub hot_tenants: usize,
    /// Minutes that workers asked for more than 80 percent of their CPU time, all workers together.
    pub busy_minutes: u64,
    /// The same if nothing had been done. Not known of a recording, which is that.
    pub busy_minutes_without: Option<u64>,
    /// When a worker asked for most.
    pub busiest: Peak,
    /// What each worker asked for in each period, as a part of its CPU time.
    #[serde(skip)]
    pub demand: BTreeMap<Group, Vec<f64>>,
}

/// Something that was done.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Acted {
    /// Seconds from the start.
    pub at: u64,
    /// What.
    pub action: Action,
    /// What people call its tenant.
    pub tenant: Option<String>,
    /// Its part of what its worker did, in percent, and for how many periods in a row it was hot.
    pub heat: Option<(u32, u32)>,
    /// Bytes that were copied.
    pub bytes: u64,
    /// Shard groups that were moved or split.
    pub shards: usize,
    /// Seconds that it took.
    pub took: u64,
}

/// A pin that followed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retargeted {
    /// Seconds from the start.
    pub at: u64,
    /// What people call its tenant.
    pub tenant: String,
    /// Where it belongs now.
    pub to: Group,
}

/// For how long something was refused.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spell {
    /// What people call the tenant, or the shard; or the worker.
    pub subject: String,
    /// Why.
    pub reason: Reason,
    /// Seconds from the start, of the first period and of the last.
    pub between: [u64; 2],
    /// In how many periods.
    pub periods: usize,
}

/// The highest load.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Peak {
    /// Of which worker.
    pub worker: Option<Group>,
    /// In percent of its CPU time.
    pub percent: u64,
    /// Seconds from the start.
    pub at: u64,
}

/// What was refused: the reason, and the tenant, the shard or the node that it is about.
type Subject = (Reason, Option<Tenant>, Option<i64>, Option<Group>);

/// Collects what is decided.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) actions: Vec<Acted>,
    pub(super) retargeted: Vec<Retargeted>,
    refused: BTreeMap<Subject, Spell>,
    pub(super) hot: BTreeSet<Tenant>,
    pub(super) demand: BTreeMap<Group, Vec<f64>>,
    periods: usize,
}

impl Log {
    /// A period and what it asked of the nodes. One that is not there asks for nothing.
    pub(super) fn load(&mut self, demand: &BTreeMap<Group, f64>) {
        for (group, asked) in demand {
            let line = self.demand.entry(*group).or_default();
            line.resize(self.periods, 0.0);
            line.push(*asked);
        }
        self.periods += 1;
    }

    /// A decision, `at` so many seconds from the start, and what it costs.
    pub(super) fn decision(
        &mut self,
        at: u64,
        decision: &Decision,
        cost: Cost,
        name: impl Fn(Tenant) -> String,
    ) {
        self.hot.extend(decision.hot.iter().map(|hot| hot.tenant));
        for pin in &decision.retargeted {
            let Pin { node: to, .. } = *pin;
            self.retargeted.push(Retargeted { at, tenant: name(pin.into()), to });
        }
        for Refused { tenant, shard_id, node, reason } in decision.refused.iter().copied() {
            let subject = || match (tenant, shard_id, node) {
                (Some(tenant), ..) => name(tenant),
                (_, Some(shard), _) => format!("shard {shard}"),
                (_, _, Some(node)) => node.to_string(),
                (None, None, None) => String::new(),
            };
            let spell = self.refused.entry((reason, tenant, shard_id, node)).or_insert_with(|| Spell {
                subject: subject(),
                reason,
                between: [at, at],
                periods: 0,
            });
            spell.between[1] = at;
            spell.periods += 1;
        }
        if let Some(action) = decision.action {
            let tenant = action.tenant();
            let hot = decision.hot.iter().find(|hot| Some(hot.tenant) == tenant);
            let heat = hot.map(|hot| (hot.share, hot.periods));
            let Cost { bytes, shards, seconds: took } = cost;
            self.actions.push(Acted { at, action, tenant: tenant.map(&name), heat, bytes, shards, took });
        }
    }

    /// What was refused, in the order in which it began.
    pub(super) fn refused(&self) -> Vec<Spell> {
        let mut refused: Vec<Spell> = self.refused.values().cloned().collect();
        refused.sort_by_key(|spell| spell.between[0]);
        refused
    }

    /// Minutes that workers were busy.
    pub(super) fn busy_minutes(&self, period_seconds: u64) -> u64 {
        let busy = self.demand.values().flatten().filter(|asked| **asked > BUSY).count();
        u64::try_from(busy).unwrap_or(u64::MAX).saturating_mul(period_seconds) / 60
    }

    /// The highest load.
    pub(super) fn busiest(&self, period_seconds: u64) -> Peak {
        let mut peak = Peak { worker: None, percent: 0, at: 0 };
        for (group, line) in &self.demand {
            for (period, asked) in (1..).zip(line) {
                let percent = super::number::count(asked * 100.0);
                if percent > peak.percent {
                    peak = Peak { worker: Some(*group), percent, at: period * period_seconds };
                }
            }
        }
        peak
    }
}

/// A time as days, hours and minutes from the start; with seconds where there are any.
pub(super) fn stamp(seconds: u64) -> String {
    let (minutes, rest) = (seconds / 60, seconds % 60);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let days = if hours >= 24 { format!("{}d ", hours / 24) } else { String::new() };
    let rest = if rest > 0 { format!(":{rest:02}") } else { String::new() };
    format!("{days}{:02}:{minutes:02}{rest}", hours % 24)
}

/// Bytes as people write them.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (super::number::fraction(bytes), 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 100.0);
    format!("{value:.digits$} {}", units[unit])
}

impl fmt::Display for Acted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.tenant.as_deref().unwrap_or_default();
        match self.action {
            Action::Isolate { from, to, rest, .. } => {
                write!(f, "isolate {tenant}: {from} -> {to}")?;
                if let Some(rest) = rest {
                    write!(f, ", the rest of its shard -> {rest}")?;
                }
                if let Some((share, periods)) = self.heat {
                    write!(f, "; {share} % of its worker in {periods} periods")?;
                }
            }
            Action::Split { shard_id, from, at, to: [first, second], .. } => {
                write!(f, "split shard {shard_id} after {at}: {from} -> {first} and {second}")?;
            }
            Action::Spread { from, to } if self.took > 0 => {
                write!(f, "spread {from} -> {to}: {} shard groups", self.shards)?;
            }
            Action::Spread { from, to } => write!(f, "spread {from} -> {to}")?,
            Action::Release { .. } => return write!(f, "release {tenant}"),
            Action::Retarget { to, .. } => return write!(f, "pin {tenant} to {to}"),
        }
        // What is only observed costs nothing.
        if self.took > 0 { write!(f, "; {} in {} s", size(self.bytes), self.took) } else { Ok(()) }
    }
}

impl Outcome {
    /// What was done, counted by kind.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for acted in &self.actions {
            let kind = match acted.action {
                Action::Isolate { .. } => "isolate",
                Action::Split { .. } => "split",
                Action::Spread { .. } => "spread",
                Action::Release { .. } => "release",
                Action::Retarget { .. } => "retarget",
            };
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.description.trim())?;
        write!(
            f,
            "{} in periods of {} s: {} workers, ",
            stamp(self.seconds),
            self.period_seconds,
            self.workers
        )?;
        if let (Some(shards), Some(tenants)) = (self.shards, self.tenants) {
            write!(f, "{shards} shards in {} groups, {tenants} tenants", self.shard_groups[0])?;
        } else {
            write!(f, "{} shard groups, recorded", self.shard_groups[0])?;
        }
        writeln!(f, ", mode {:?}", self.mode)?;

        let counts: Vec<String> =
            self.counts().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        writeln!(f, "\nactions: {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") })?;
        for acted in self.actions.iter().take(SHOWN) {
            writeln!(f, "  {}  {acted}", stamp(acted.at))?;
        }
        more(f, self.actions.len())?;
        for Retargeted { at, tenant, to } in self.retargeted.iter().take(SHOWN) {
            writeln!(f, "  {}  the pin of {tenant} is to {to} now, since its worker leaves", stamp(*at))?;
        }
        more(f, self.retargeted.len())?;
        if !self.refused.is_empty() {
            writeln!(f, "\nnot done:")?;
            for Spell { subject, reason, between: [first, last], periods } in self.refused.iter().take(SHOWN)
            {
                let times = if *periods == 1 { "once".to_owned() } else { format!("in {periods} periods") };
                writeln!(f, "  {} to {}, {times}: {subject}: {reason}", stamp(*first), stamp(*last))?;
            }
            more(f, self.refused.len())?;
        }
        writeln!(
            f,
            "\nhot tenants: {}; shard groups at the end: {}",
            self.hot_tenants, self.shard_groups[1]
        )?;
        if let Some(worker) = self.busiest.worker {
            writeln!(
                f,
                "highest load: {} % of {worker} at {}",
                self.busiest.percent,
                stamp(self.busiest.at)
            )?;
        }
        write!(f, "worker-minutes above 80 % CPU: {}", self.busy_minutes)?;
        match self.busy_minutes_without {
            Some(without) => writeln!(f, " (if nothing were done: {without})"),
            None => writeln!(f),
        }
    }
}

fn more(f: &mut fmt::Formatter<'_>, count: usize) -> fmt::Result {
    if count > SHOWN { writeln!(f, "  and {} more", count - SHOWN) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_written_as_people_do() {
        let times = [59, 3_600, 86_400 + 61].map(stamp);
        assert_eq!(times, ["00:00:59", "01:00", "1d 00:01:01"]);
        assert_eq!([0, 1_536, 250 << 20].map(size), ["0 B", "1.5 KiB", "250 MiB"]);
    }
}
