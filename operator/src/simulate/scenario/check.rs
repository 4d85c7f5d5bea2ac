//! Reads a scenario, and says what is wrong with one: what, where, and what to do about it.

use jiff::SignedDuration;

use super::{Incident, IncidentKind, Scenario, Surge, Synthetic, Tables, Workers};
use crate::api::Amount;
use crate::heat::Period;

/// Tenants of a scenario that fit into memory with ease.
const MOST_TENANTS: u32 = 20_000_000;
/// Periods that a chart can still show, and a run computes in a minute.
const MOST_PERIODS: i128 = 100_000;

/// What is wrong with a scenario.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct Invalid {
    /// The field, from the top of the file; empty if it is the file.
    pub path: String,
    /// What is wrong with it, and what would not be.
    pub problem: String,
}

fn refuse<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { path: path.into(), problem: problem.into() })
}

impl Scenario {
    /// Reads YAML or JSON, and checks that it makes sense.
    ///
    /// # Errors
    /// If it is neither, if a field is missing, unknown or of another type, or if the values do not go together.
    pub fn read(text: &str) -> Result<Self, Invalid> {
        // A recording can be large, and JSON is read many times faster as what it is.
        let scenario: Self = if text.trim_start().starts_with('{') {
            located(serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text)))?
        } else {
            located(serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text)))?
        };
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), Invalid> {
        let policy = &self.policy;
        if !(1..=100).contains(&policy.share_percent) {
            return refuse("policy.sharePercent", "is not between 1 and 100");
        }
        if policy.min_cpu_percent > 100 {
            return refuse("policy.minCpuPercent", "is not between 0 and 100");
        }
        if policy.cooldown.is_negative() || policy.release_after.is_negative() {
            return refuse("policy", "a duration is negative: cooldown and releaseAfter are lengths of time");
        }
        match (&self.synthetic, &self.recorded) {
            (Some(synthetic), None) => synthetic.check(),
            (None, Some(periods)) => recorded(periods),
            (Some(_), Some(_)) => {
                refuse("", "has both `synthetic` and `recorded` load: leave one of them out")
            }
            (None, None) => refuse("", "has no load: give `synthetic` or `recorded`"),
        }
    }
}

/// The error of a field with its path.
fn located<T, E: std::fmt::Display>(read: Result<T, serde_path_to_error::Error<E>>) -> Result<T, Invalid> {
    read.or_else(|error| {
        let path = error.path().to_string();
        let problem = error.inner().to_string();
        // The parser of YAML begins its messages with the path, or with that of what is around it.
        let problem = match problem.split_once(": ") {
            Some((around, problem)) if path.starts_with(around) => problem,
            _ => &problem,
        };
        refuse(if path == "." { "" } else { &path }, problem)
    })
}

fn recorded(periods: &[Period]) -> Result<(), Invalid> {
    if periods.is_empty() {
        return refuse("recorded", "has no periods: record for longer");
    }
    let bad = periods.iter().position(|period| period.nodes.is_empty() || !period.length.is_positive());
    bad.map_or(Ok(()), |index| {
        refuse(format!("recorded[{index}]"), "has no nodes or no length: leave it out")
    })
}

impl Synthetic {
    /// How many periods there are.
    pub(in crate::simulate) fn periods(&self) -> usize {
        usize::try_from(self.duration.as_nanos() / self.period.as_nanos().max(1)).unwrap_or(0)
    }

    fn check(&self) -> Result<(), Invalid> {
        positive("synthetic.period", self.period)?;
        let periods = self.duration.as_nanos() / self.period.as_nanos().max(1);
        if !(1..=MOST_PERIODS).contains(&periods) {
            return refuse(
                "synthetic.duration",
                format!("makes {periods} periods: 1 to {MOST_PERIODS} can be simulated"),
            );
        }
        self.workers.check()?;
        if self.tables.is_empty() {
            return refuse("synthetic.tables", "is empty: name at least one colocation group");
        }
        for (index, tables) in self.tables.iter().enumerate() {
            tables.check(&format!("synthetic.tables[{index}]"))?;
        }
        let tenants: u64 = self.tables.iter().map(|tables| u64::from(tables.tenants)).sum();
        if tenants > u64::from(MOST_TENANTS) {
            return refuse("synthetic.tables", format!("{tenants} tenants are more than {MOST_TENANTS}"));
        }
        if let Some(wave) = self.wave.as_ref().filter(|wave| wave.percent > 100) {
            return refuse(
                "synthetic.wave.percent",
                format!("{} percent below average are less than nothing: at most 100", wave.percent),
            );
        }
        for (index, surge) in self.surges.iter().enumerate() {
            self.check_surge(surge, &format!("synthetic.surges[{index}]"))?;
        }
        for (index, incident) in self.incidents.iter().enumerate() {
            self.check_incident(incident, &format!("synthetic.incidents[{index}]"))?;
        }
        Ok(())
    }

    fn check_worker(&self, worker: Option<u32>, path: &str) -> Result<(), Invalid> {
        let count = self.workers.count;
        match worker.filter(|worker| *worker >= count) {
            Some(worker) => refuse(
                format!("{path}.worker"),
                format!("there is no worker {worker}: they are 0 to {}", count - 1),
            ),
            None => Ok(()),
        }
    }

    fn check_surge(&self, surge: &Surge, path: &str) -> Result<(), Invalid> {
        let Some(tables) = self.tables.iter().find(|tables| tables.name == surge.tables) else {
            let names: Vec<&str> = self.tables.iter().map(|tables| tables.name.as_str()).collect();
            return refuse(
                format!("{path}.tables"),
                format!("{:?} is none of the tables: name one of {}", surge.tables, names.join(", ")),
            );
        };
        if surge.tenants == 0 || u64::from(surge.first) + u64::from(surge.tenants) > u64::from(tables.tenants)
        {
            let problem = format!("{} has {} tenants: take some of these", tables.name, tables.tenants);
            return refuse(format!("{path}.tenants"), problem);
        }
        self.check_worker(surge.worker, path)?;
        number(&format!("{path}.queriesPerSecond"), surge.queries_per_second, f64::MAX)?;
        number(&format!("{path}.writesPercent"), surge.writes_percent.unwrap_or(0.0), 100.0)?;
        if let Some(every) = surge.every {
            positive(&format!("{path}.every"), every)?;
            if surge.lasting.is_none_or(|lasting| lasting > every) {
                return refuse(format!("{path}.lasting"), "has to be there and no longer than `every`");
            }
        }
        for (name, length) in [("cpuPerQuery", surge.cpu_per_query), ("lasting", surge.lasting)] {
            length.map_or(Ok(()), |length| positive(&format!("{path}.{name}"), length))?;
        }
        if surge.from.is_negative() || surge.ramp.is_negative() {
            return refuse(path, "`from` and `ramp` are lengths of time from the start: not negative");
        }
        Ok(())
    }

    fn check_incident(&self, incident: &Incident, path: &str) -> Result<(), Invalid> {
        self.check_worker(incident.worker, path)?;
        let (needed, present) = match incident.kind {
            IncidentKind::StatisticsReset | IncidentKind::Drain => ("worker", incident.worker.is_some()),
            IncidentKind::Unreachable if incident.worker.is_none() => ("worker", false),
            IncidentKind::Unreachable => ("lasting", incident.lasting.is_some()),
            IncidentKind::ClockJump => ("by", incident.by.is_some()),
            IncidentKind::PolicyEdited => ("policy", incident.policy.is_some()),
        };
        if !present {
            return refuse(format!("{path}.{needed}"), format!("is missing: {:?} needs it", incident.kind));
        }
        if incident.at.is_negative() || incident.at >= self.duration {
            return refuse(format!("{path}.at"), "is not within the duration of the scenario");
        }
        Ok(())
    }
}

impl Workers {
    fn check(&self) -> Result<(), Invalid> {
        if self.count == 0 || self.count > 10_000 {
            return refuse("synthetic.workers.count", "is not between 1 and 10000");
        }
        if self.dedicated >= self.count {
            return refuse("synthetic.workers.dedicated", "leaves no worker for the other shards");
        }
        if self.noise_percent > 50 {
            return refuse("synthetic.workers.noisePercent", "is above 50: nothing could be told from it");
        }
        if self.cpu.thousandths().is_none_or(|cpu| cpu == 0) {
            return refuse(
                "synthetic.workers.cpu",
                format!("{:?} is no number of CPUs: write 8, or 500m", self.cpu.to_string()),
            );
        }
        for (name, size) in [("storage", &self.storage), ("copyRate", &self.copy_rate)] {
            if size.units().is_none_or(|bytes| bytes == 0) {
                return refuse(format!("synthetic.workers.{name}"), no_size(size));
            }
        }
        Ok(())
    }
}

impl Tables {
    fn check(&self, path: &str) -> Result<(), Invalid> {
        for (name, value) in
            [("count", self.count), ("shardGroups", self.shard_groups), ("tenants", self.tenants)]
        {
            if value == 0 {
                return refuse(format!("{path}.{name}"), "is 0: there is at least one");
            }
        }
        if self.shard_groups > 1 << 20 {
            return refuse(format!("{path}.shardGroups"), "is more than a million");
        }
        number(&format!("{path}.skew"), self.skew, 3.0)?;
        number(&format!("{path}.queriesPerSecond"), self.queries_per_second, f64::MAX)?;
        number(&format!("{path}.writesPercent"), self.writes_percent, 100.0)?;
        positive(&format!("{path}.cpuPerQuery"), self.cpu_per_query)?;
        for (name, size) in [("size", &self.size), ("bytesPerWrite", &self.bytes_per_write)] {
            if size.units().is_none() {
                return refuse(format!("{path}.{name}"), no_size(size));
            }
        }
        Ok(())
    }
}

fn no_size(size: &Amount) -> String {
    format!("{:?} is no size: write 500Gi", size.to_string())
}

fn positive(path: &str, length: SignedDuration) -> Result<(), Invalid> {
    if length.is_positive() {
        Ok(())
    } else {
        refuse(path, "is not a length of time: write 90s, 24h or 150us")
    }
}

fn number(path: &str, value: f64, most: f64) -> Result<(), Invalid> {
    if (0.0..=most).contains(&value) {
        return Ok(());
    }
    let bound = if most < 1e9 { format!(" up to {most}") } else { String::new() };
    refuse(path, format!("{value} is no number from 0{bound}"))
}
