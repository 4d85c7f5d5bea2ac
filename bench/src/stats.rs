//! Latencies and outcomes, in total and for each second.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{ledger::Code, workload::Kind};

/// Longest latency that is told apart from longer ones, in microseconds.
const LONGEST: u64 = 120_000_000;
const SECOND: u64 = 1_000_000;

/// How one request went. Times are microseconds after the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was asked.
    pub kind: Kind,
    /// When it was due.
    pub intended: u64,
    /// When it ended.
    pub finished: u64,
    /// How it ended.
    pub code: Code,
    /// How often it was tried.
    pub attempts: u8,
}

/// Percentiles of the latencies of successful requests, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half were answered within this.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// All.
    pub max: f64,
}

impl Latency {
    /// Of these, in microseconds.
    ///
    /// # Errors
    /// When a histogram cannot be made, which takes a broken program.
    pub fn of(latencies: impl Iterator<Item = u64>) -> Result<Self> {
        let mut histogram = histogram::<u64>(3)?;
        latencies.for_each(|latency| histogram.note(latency));
        Ok(latency(&histogram))
    }
}

/// One kind of request over a whole run, without its warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests that ended.
    pub requests: u64,
    /// Those that succeeded.
    pub succeeded: u64,
    /// Those per second.
    pub per_second: f64,
    /// Those that took more than one attempt.
    pub after_retry: u64,
    /// The others, by how their last attempt ended.
    pub failed: BTreeMap<String, u64>,
    /// Latencies, from when a request was due.
    pub latency_ms: Latency,
}

/// One second of a run, by when requests ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Which, from 0.
    pub second: u64,
    /// Sends acknowledged.
    pub sends: u64,
    /// Lists answered.
    pub lists: u64,
    /// Requests failed.
    pub failed: u64,
    /// Arrivals that found the queue full and were not made.
    pub dropped: u64,
    /// Latencies of sends.
    pub send_ms: Latency,
    /// Latencies of lists.
    pub list_ms: Latency,
}

/// Collects outcomes.
pub struct Stats {
    warmup: u64,
    kinds: BTreeMap<Kind, Total>,
    seconds: Vec<Bucket>,
    left: u64,
}

struct Total {
    latencies: Histogram<u64>,
    requests: u64,
    after_retry: u64,
    failed: BTreeMap<Code, u64>,
}

struct Bucket {
    sends: Histogram<u32>,
    lists: Histogram<u32>,
    failed: u64,
    dropped: u64,
}

impl Stats {
    /// Requests that were due before `warmup`, in microseconds, count only in their second.
    #[must_use]
    pub fn new(warmup: u64) -> Self {
        Self { warmup, kinds: BTreeMap::new(), seconds: Vec::new(), left: 0 }
    }

    /// Takes in the end of a request.
    ///
    /// # Errors
    /// When a histogram cannot be made, which takes a broken program.
    pub fn add(&mut self, outcome: Outcome) -> Result<()> {
        let Outcome { kind, intended, finished, code, attempts } = outcome;
        let latency = crate::schedule::latency(intended, finished);
        let second = self.second(finished)?;
        match (code.is_success(), kind) {
            (true, Kind::Send) => second.sends.note(latency),
            (true, Kind::List) => second.lists.note(latency),
            (false, _) => second.failed += 1,
        }
        if intended < self.warmup {
            return Ok(());
        }
        let total = match self.kinds.entry(kind) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Total::new()?),
        };
        total.requests += 1;
        if code.is_success() {
            total.latencies.note(latency);
            total.after_retry += u64::from(attempts > 1);
        } else {
            *total.failed.entry(code).or_default() += 1;
        }
        Ok(())
    }

    /// Takes in an arrival that was not made because the queue was full.
    ///
    /// # Errors
    /// As [`Stats::add`].
    pub fn drop_arrival(&mut self, intended: u64) -> Result<()> {
        self.second(intended)?.dropped += 1;
        Ok(())
    }

    /// Takes in an arrival that was not made because the load was stopped while it waited: nobody kept it waiting for long.
    pub fn leave_arrival(&mut self) {
        self.left += 1;
    }

    /// Arrivals that still waited when the load was stopped.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// One kind of request; `seconds` is how long the run was without its warm-up.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    pub fn summary(&self, kind: Kind, seconds: f64) -> Summary {
        self.kinds.get(&kind).map_or_else(Summary::default, |total| Summary {
            requests: total.requests,
            succeeded: total.latencies.len(),
            per_second: total.latencies.len() as f64 / seconds,
            after_retry: total.after_retry,
            failed: total.failed.iter().map(|(code, count)| (code.to_string(), *count)).collect(),
            latency_ms: latency(&total.latencies),
        })
    }

    /// Every second of the run.
    #[must_use]
    pub fn seconds(&self) -> Vec<Second> {
        let second = |(number, bucket): (u64, &Bucket)| Second {
            second: number,
            sends: bucket.sends.len(),
            lists: bucket.lists.len(),
            failed: bucket.failed,
            dropped: bucket.dropped,
            send_ms: latency(&bucket.sends),
            list_ms: latency(&bucket.lists),
        };
        (0..).zip(&self.seconds).map(second).collect()
    }

    fn second(&mut self, time: u64) -> Result<&mut Bucket> {
        let number = usize::try_from(time / SECOND).context("a second of the run")?;
        while self.seconds.len() <= number {
            self.seconds.push(Bucket { sends: histogram(2)?, lists: histogram(2)?, failed: 0, dropped: 0 });
        }
        Ok(&mut self.seconds[number])
    }
}

impl Total {
    fn new() -> Result<Self> {
        Ok(Self { latencies: histogram(3)?, requests: 0, after_retry: 0, failed: BTreeMap::new() })
    }
}

/// Starts small and grows to what is recorded.
fn histogram<T: hdrhistogram::Counter>(digits: u8) -> Result<Histogram<T>> {
    let mut histogram = Histogram::new_with_bounds(1, 2_000, digits).context("make a histogram")?;
    histogram.auto(true);
    Ok(histogram)
}

trait Note {
    fn note(&mut self, latency: u64);
}

impl<T: hdrhistogram::Counter> Note for Histogram<T> {
    fn note(&mut self, latency: u64) {
        // It resizes itself, and no value is above the bound.
        let _ = self.record(latency.min(LONGEST));
    }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds far below 2^53")]
fn latency<T: hdrhistogram::Counter>(histogram: &Histogram<T>) -> Latency {
    if histogram.is_empty() {
        return Latency::default();
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
    Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: histogram.max() as f64 / 1_000.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(kind: Kind, intended: u64, latency: u64, code: Code) -> Outcome {
        Outcome { kind, intended, finished: intended + latency, code, attempts: 1 }
    }

    #[test]
    fn totals_leave_the_warm_up_out_and_seconds_do_not() {
        let mut stats = Stats::new(SECOND);
        for request in 0..200 {
            let code = if request % 10 == 0 { Code::Status(503) } else { Code::Status(200) };
            stats.add(outcome(Kind::Send, request * 10_000, 2_000, code)).unwrap();
        }
        let summary = stats.summary(Kind::Send, 1.0);
        assert_eq!((summary.requests, summary.succeeded), (100, 90));
        assert!((summary.per_second - 90.0).abs() < f64::EPSILON);
        assert_eq!(summary.failed, BTreeMap::from([("503".to_owned(), 10)]));
        assert!((summary.latency_ms.p99 - 2.0).abs() < 0.01, "{:?}", summary.latency_ms);
        let seconds = stats.seconds();
        assert_eq!(seconds.iter().map(|second| second.sends).collect::<Vec<_>>(), [90, 90]);
        assert_eq!(stats.summary(Kind::List, 1.0), Summary::default());
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut stats = Stats::new(0);
        for latency in 1..=1_000 {
            stats.add(outcome(Kind::List, 0, latency * 1_000, Code::Status(200))).unwrap();
        }
        let found = stats.summary(Kind::List, 1.0).latency_ms;
        for (found, value) in
            [(found.p50, 500.0), (found.p99, 990.0), (found.p999, 999.0), (found.max, 1_000.0)]
        {
            assert!((found - value).abs() <= 0.001 * value + 0.5, "{found} for {value}");
        }
    }

    #[test]
    fn what_takes_for_ever_is_counted_all_the_same() {
        let mut stats = Stats::new(0);
        stats.add(outcome(Kind::Send, 0, 10 * LONGEST, Code::Status(200))).unwrap();
        stats.drop_arrival(3 * SECOND).unwrap();
        assert_eq!(stats.summary(Kind::Send, 1.0).succeeded, 1);
        assert_eq!(stats.seconds()[3].dropped, 1);
    }
}
