//! Metrics of the operator. Every label has a few known values, so the number of series is bounded.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::error::Class;
use crate::shards;

/// How a reconciliation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Nothing is left to do.
    Done,
    /// It waits for something outside.
    Waiting,
    /// It failed and will be tried again.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByController {
    controller: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    controller: &'static str,
    class: &'static str,
}

/// The operator's metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciliations: Family<ByResult, Counter>,
    errors: Family<ByClass, Counter>,
    duration: Family<ByController, Histogram>,
    status_writes: Family<ByController, Counter>,
    leader: Gauge,
    /// Of the databases.
    pub shards: shards::metrics::Metrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics, all at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("dialog_operator");
        let reconciliations = Family::default();
        registry.register("reconciliations", "Reconciliations by how they ended", reconciliations.clone());
        let errors = Family::default();
        registry.register(
            "reconciliation_errors",
            "Failed reconciliations by class of error",
            errors.clone(),
        );
        let duration = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.01, 4.0, 7))) as fn() -> Histogram,
        );
        registry.register_with_unit(
            "reconciliation_duration",
            "Time one reconciliation took",
            Unit::Seconds,
            duration.clone(),
        );
        let status_writes = Family::default();
        registry.register("status_writes", "Changes of a DialogCluster's status", status_writes.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 while this process holds the lease", leader.clone());
        let shards = shards::metrics::Metrics::register(&mut registry);
        registry.register_collector(Box::new(Process));
        Self {
            registry: Arc::new(registry),
            reconciliations,
            errors,
            duration,
            status_writes,
            leader,
            shards,
        }
    }

    /// Counts one reconciliation.
    pub fn reconciled(&self, controller: &'static str, ended: Ended, took: Duration) {
        let result = match ended {
            Ended::Done => "done",
            Ended::Waiting => "waiting",
            Ended::Failed => "failed",
        };
        self.reconciliations.get_or_create(&ByResult { controller, result }).inc();
        self.duration.get_or_create(&ByController { controller }).observe(took.as_secs_f64());
    }

    /// Counts one error.
    pub fn failed(&self, controller: &'static str, class: Class) {
        self.errors.get_or_create(&ByClass { controller, class: class.as_str() }).inc();
    }

    /// Counts one write of a status.
    pub fn status_written(&self, controller: &'static str) {
        self.status_writes.get_or_create(&ByController { controller }).inc();
    }

    /// Says whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Everything in the text format of `OpenMetrics`.
    ///
    /// # Errors
    /// If a metric cannot be written; that does not happen with a `String`.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The memory of this process, read when it is asked for.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(bytes) = resident_bytes() else { return Ok(()) };
        let gauge = ConstGauge::new(bytes);
        let metric = encoder.encode_descriptor(
            "process_resident_memory",
            "Resident memory of the operator",
            Some(&Unit::Bytes),
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        gauge.encode(metric)
    }
}

/// Resident bytes of this process; `None` where the kernel does not tell.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    mod alerts;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.reconciled("cluster", Ended::Waiting, Duration::from_millis(20));
        metrics.failed("cluster", Class::Patroni);
        metrics.leads(true);
        let text = metrics.encode().unwrap();
        for line in [
            "dialog_operator_reconciliations_total{controller=\"cluster\",result=\"waiting\"} 1",
            "dialog_operator_reconciliation_errors_total{controller=\"cluster\",class=\"patroni\"} 1",
            "dialog_operator_reconciliation_duration_seconds_count{controller=\"cluster\"} 1",
            "dialog_operator_leader 1",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn the_memory_of_this_process_is_more_than_nothing() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
