//! The peak of a service as its users meet it: the highest rate of arrivals that it keeps up with.
//!
//! A closed loop shows more: who waits for answers comes when there is one, in step with the others, and what comes together is
//! served together. Arrivals at the rate that such a loop reaches find a queue that grows.

use anyhow::{Result, bail};

use crate::report::Report;
use crate::table::{Limit, Row};

/// Who keeps up with arrivals answers 99 of 100 in this time, in milliseconds: half of the longest wait that anybody may have
/// while shards move.
const P99_MS: f64 = 250.0;
/// By how much of the closed loop's rate the next one that is tried is lower, in hundredths.
const STEP: u8 = 10;

/// A peak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Requests a second that a closed loop has reached.
    pub closed: f64,
    /// Arrivals a second that were sustained.
    pub sustained: f64,
}

impl Peak {
    /// The highest rate that is sustained of those that are whole tenths of what a closed loop reaches, the highest first.
    /// `probe` has requests arrive at a rate, in requests a second, for some seconds.
    ///
    /// # Errors
    /// When `probe` fails, or nothing is sustained.
    pub async fn find(closed: &Report, mut probe: impl AsyncFnMut(f64) -> Result<Report>) -> Result<Self> {
        let closed = closed.sends.per_second + closed.lists.per_second;
        for hundredths in (STEP..=100).rev().step_by(STEP.into()) {
            let rate = closed * f64::from(hundredths) / 100.0;
            if is_sustained(&probe(rate).await?) {
                return Ok(Self { closed, sustained: rate });
            }
        }
        bail!(
            "not even {STEP} % of {closed:.0} requests a second, which a closed loop reaches, is sustained"
        );
    }

    /// It as a row.
    #[must_use]
    pub fn row(&self) -> Row {
        let figures = format!(
            "sends and lists a second that arrive, none is dropped or fails, and p99 is {P99_MS} ms at most; a closed loop \
             reaches {:.0}",
            self.closed
        );
        Row::ratio("peak", figures, self.sustained, Limit::None)
    }
}

/// Whether who is measured has kept up with what arrived.
fn is_sustained(report: &Report) -> bool {
    let kinds = [&report.sends, &report.lists];
    report.dropped == 0
        && kinds
            .iter()
            .all(|kind| kind.failed.is_empty() && kind.after_retry == 0 && kind.latency_ms.p99 <= P99_MS)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::report::Load;
    use crate::stats::{Latency, Summary};

    /// One in which requests came at `rate`, and took this long at p99, in milliseconds.
    fn answered(rate: f64, p99: f64) -> Report {
        let of = |share: f64| Summary {
            per_second: rate * share,
            latency_ms: Latency { p99, ..Latency::default() },
            ..Summary::default()
        };
        Report {
            run: Uuid::nil(),
            started_at: Timestamp::UNIX_EPOCH,
            load: Load {
                rate: Some(rate),
                duration_s: 1.0,
                warmup_s: 0.0,
                connections: 1,
                retries: 0,
                lists: 0.8,
                skew: "uniform".to_owned(),
                users: 2,
                dialogs: 1,
            },
            sends: of(0.2),
            lists: of(0.8),
            dropped: 0,
            left: 0,
            generator_cpu: 0.1,
            audit: None,
            shard_groups: Vec::new(),
            nodes: Vec::new(),
            seconds: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_highest_rate_that_is_kept_up_with_is_the_peak() {
        let mut tried = Vec::new();
        let closed = answered(1000.0, 40.0);
        let peak = Peak::find(&closed, async |rate| {
            tried.push(rate);
            Ok(answered(rate, if rate > 750.0 { 251.0 } else { 20.0 }))
        });
        assert_eq!(peak.await.unwrap(), Peak { closed: 1000.0, sustained: 700.0 });
        assert_eq!(tried, [1000.0, 900.0, 800.0, 700.0]);
    }

    #[tokio::test]
    async fn who_keeps_up_with_nothing_has_no_peak() {
        let slow = Peak::find(&answered(1000.0, 40.0), async |rate| Ok(answered(rate, 400.0))).await;
        let said = slow.unwrap_err().to_string();
        assert!(said.contains("not even 10 % of 1000 requests a second"), "{said}");
    }

    #[test]
    fn what_is_dropped_or_fails_is_not_kept_up_with() {
        let well = answered(100.0, 20.0);
        assert!(is_sustained(&well));
        assert!(!is_sustained(&Report { dropped: 1, ..well.clone() }));
        let mut again = well.clone();
        again.lists.after_retry = 1;
        assert!(!is_sustained(&again));
        let mut failed = well;
        failed.sends.failed.insert("timeout".to_owned(), 1);
        assert!(!is_sustained(&failed));
    }
}
