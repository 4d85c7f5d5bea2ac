//! The table of what a pair's flood was measured to do.

use std::time::Duration;

use anyhow::{Context as _, Result};
use dialog_bench::report::Report;
use dialog_bench::stats::Latency;
use dialog_bench::table::{Limit, Row};

use super::super::flood::{PERIOD, PERIODS, SESSIONS};
use super::{Flooded, GAP, RELIEVED, SHARE, SUFFERING};
use crate::bed::Bed;
use crate::results::Table;

/// What is asked of the product, in milliseconds: how long sends to another shard group may wait.
pub(super) const WAIT: f64 = 500.0;

/// What was measured.
pub(super) struct Measured<'a> {
    /// The worker that was flooded.
    pub(super) node: &'a str,
    /// From the begin of the flood to the decision.
    pub(super) found: Duration,
    /// When the pair was isolated, and why.
    pub(super) isolation: String,
    /// Sends on that worker before.
    pub(super) was: &'a Latency,
    /// Their median during the flood, against before.
    pub(super) suffering: f64,
    /// Their p99 during the flood, against before.
    pub(super) most: f64,
    /// Their p99 in each minute after it, against before.
    pub(super) relieved: &'a [f64],
    /// What the others met with during the flood.
    pub(super) during: &'a Report,
    /// How long sends to another shard group waited at most, in milliseconds, and of how many.
    pub(super) waited: (f64, usize),
    /// What the pair has written.
    pub(super) flooded: &'a Flooded,
}

impl Measured<'_> {
    /// Prints the table, and writes it where that is asked for. `busy` is how busy the machine was before.
    pub(super) async fn publish(&self, bed: &Bed, busy: &str) -> Result<()> {
        let table = Table {
            title: "A pair that floods its worker, on Kubernetes",
            test: ("hot_pair", ""),
            note: &format!(
                "Three workers of 0.3 processors each, one of them dedicated, in a cluster of kind; periods of {} s, of which {PERIODS} \
                 count. {SESSIONS} sessions write into one dialog without a pause while people send and list at {:.0} % of the peak. All \
                 pods, the load's too, share the processors. [What is measured](../docs/hot-tenants.md#what-the-others-notice).",
                PERIOD.as_secs(),
                SHARE * 100.0
            ),
            file: "RESULTS-hot-pair.md",
            busy,
        };
        table.publish(bed, &self.rows()?).await
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
    fn rows(&self) -> Result<[Row; 7]> {
        let Self { was, suffering, most, relieved, during, waited, flooded, .. } = self;
        let audit = during.audit.as_ref().context("the ledger was not compared with the shards")?;
        let last = relieved.last().copied().context("nothing was measured after it")?;
        let astray =
            flooded.written.abs_diff(flooded.acknowledged) + audit.lost + audit.doubled + audit.strange;
        Ok([
            Row::ratio(
                "periods from the begin of the flood to the decision",
                self.isolation.as_str(),
                self.found.as_secs_f64() / PERIOD.as_secs_f64(),
                Limit::AtMost(f64::from(PERIODS + 1)),
            ),
            Row::ratio(
                "median of others' sends on that worker during the flood, against before",
                format!("{:.1} ms before, on {}", was.p50, self.node),
                *suffering,
                Limit::AtLeast(SUFFERING),
            ),
            Row::ratio(
                "p99 of others' sends on that worker while the flood goes on elsewhere, against before",
                format!(
                    "{:.1} ms before; minute by minute {relieved:.2?} x, during the flood {most:.2} x",
                    was.p99
                ),
                last,
                Limit::AtMost(RELIEVED),
            ),
            Row::ratio(
                "messages not as acknowledged",
                format!(
                    "{} of the pair, and {} of others, of which {} are lost and {} doubled",
                    flooded.written, audit.acknowledged, audit.lost, audit.doubled
                ),
                astray as f64,
                Limit::AtMost(0.0),
            ),
            Row::ratio(
                "share of the pair's messages that were refused for good",
                format!(
                    "{} attempts were refused, {} messages for good, of {}",
                    flooded.refused, flooded.failed, flooded.written
                ),
                flooded.failed as f64 / flooded.written as f64,
                Limit::AtMost(0.0001),
            ),
            Row::ratio(
                "longest time without a message of the pair, in s",
                "of whichever of its sessions",
                flooded.gap.as_secs_f64(),
                Limit::AtMost(GAP.as_secs_f64()),
            ),
            Row::ratio(
                "longest wait of sends to any other shard group, in ms",
                format!("of {} shard groups; no request failed or found no room", waited.1),
                waited.0,
                Limit::AtMost(WAIT),
            ),
        ])
    }
}
