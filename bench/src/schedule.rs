//! When requests are due in an open loop.
//!
//! Arrivals come at a fixed rate whatever the service does. Latency is counted from the moment a request was
//! due, not from the moment it could be sent: otherwise a service that stops for a second would be measured by
//! the one request that waited, and the others, which nobody could send, would be left out ("coordinated
//! omission").

use std::time::Duration;

/// Arrivals at a fixed rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    rate: f64,
}

impl Schedule {
    /// So many arrivals per second.
    ///
    /// # Errors
    /// When the rate is not a positive number, or above a million.
    pub fn new(rate: f64) -> Result<Self, String> {
        if rate.is_finite() && rate > 0.0 && rate <= 1e6 {
            Ok(Self { rate })
        } else {
            Err(format!("a rate is above 0 and at most 1000000 per second, not {rate}"))
        }
    }

    /// Arrivals per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// About how many arrivals come within a time, at least 1.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    pub fn arrivals_within(&self, time: Duration) -> usize {
        (self.rate * time.as_secs_f64()).ceil().max(1.0) as usize
    }

    /// When arrival `number`, counted from 0, is due after the start.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53 arrivals")]
    pub fn due(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate)
    }
}

/// Time from when a request was due to its end, in microseconds, at least 1.
#[must_use]
pub fn latency(intended: u64, finished: u64) -> u64 {
    finished.saturating_sub(intended).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_that_are_none_are_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 2e6] {
            assert!(Schedule::new(rate).is_err(), "{rate}");
        }
    }

    /// A service that answers each request in 1 ms but stops for one second, and a client with one connection:
    /// the requests that were due during the stop have waited for it, each for its own part.
    #[test]
    fn a_stop_is_seen_by_every_request_that_was_due() {
        let schedule = Schedule::new(100.0).unwrap();
        let (mut free, mut waited) = (0, Vec::new());
        for number in 0..200 {
            let intended = u64::try_from(schedule.due(number).as_micros()).unwrap();
            let started = free.max(intended);
            let took = if (500_000..510_000).contains(&started) { 1_000_000 } else { 1_000 };
            free = started + took;
            waited.push(latency(intended, free));
        }
        let above = |limit: u64| waited.iter().filter(|latency| **latency > limit).count();
        // 100 requests were due in that second; by their own sending times only one would have been slow.
        assert!((95..=115).contains(&above(10_000)), "{} requests saw the stop", above(10_000));
        assert!((45..=60).contains(&above(500_000)), "{} waited more than half of it", above(500_000));
    }

    proptest! {
        #[test]
        fn arrivals_are_evenly_spaced_and_never_drift(rate in 0.1_f64..100_000.0, number in 0_u64..10_000_000) {
            let schedule = Schedule::new(rate).unwrap();
            let gap = (schedule.due(number + 1).saturating_sub(schedule.due(number))).as_secs_f64();
            prop_assert!((gap - 1.0 / rate).abs() < 1e-6, "{} at rate {}", gap, rate);
            #[allow(clippy::cast_precision_loss, reason = "small numbers")]
            let exact = number as f64 / rate;
            prop_assert!((schedule.due(number).as_secs_f64() - exact).abs() < 1e-6 * exact.max(1.0));
        }
    }
}
