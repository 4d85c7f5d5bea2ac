//! When one cluster may be looked at again. Pure but for the instants that it is given.

use std::time::{Duration, Instant};

use super::Outcome;

/// How long a cluster that needs nothing is left alone, where nothing else is said: watches can miss a change.
pub const RESYNC: Duration = Duration::from_secs(30);

/// On average, one cluster is looked at no more often than this.
const INTERVAL: Duration = Duration::from_secs(5);
/// But where somebody is kept waiting by what is under way, it is looked at again after this time: what ends that wait is found
/// by looking.
const URGENT: Duration = Duration::from_secs(1);
/// Reconciliations that may follow each other at once, after a time of quiet.
const BURST: u32 = 6;
/// The first delay after a failure.
const FIRST: Duration = Duration::from_secs(1);
/// No delay after a failure is longer: what fails is looked at as often as what needs nothing, so that another cause is
/// named as soon, and what was mended is noticed.
const LONGEST: Duration = RESYNC;

/// The pace of one cluster: a few reconciliations at once while things change, one in `INTERVAL` on average, one in
/// `URGENT` as long as somebody is kept waiting, and growing delays after failures.
#[derive(Debug, Default)]
pub struct Pace {
    /// The instant up to which the allowance is used up.
    spent: Option<Instant>,
    /// When one is due that is urgent: it uses up nothing of the allowance.
    urgent: Option<Instant>,
    failures: u32,
    /// No earlier than this, whatever wakes us: set by failures.
    not_before: Option<Instant>,
}

impl Pace {
    /// Starts a reconciliation at `now`; or says how long it has to be put off.
    pub fn begin(&mut self, now: Instant) -> Option<Duration> {
        if let Some(not_before) = self.not_before.filter(|instant| *instant > now) {
            return Some(not_before - now);
        }
        if self.urgent.take_if(|due| *due <= now).is_some() {
            return None;
        }
        let window = INTERVAL * (BURST - 1);
        let quiet = now.checked_sub(window).unwrap_or(now);
        let spent = self.spent.map_or(quiet, |spent| spent.max(quiet));
        if spent > now {
            return Some(self.urgent.map_or(spent, |due| due.min(spent)) - now);
        }
        self.spent = Some(spent + INTERVAL);
        None
    }

    /// Ends at `now` a reconciliation that did not fail, and says when the next one is due if nothing wakes us: after `rest`
    /// where nothing is left to do.
    pub fn end(&mut self, outcome: &Outcome, rest: Duration, now: Instant) -> Duration {
        self.failures = 0;
        self.not_before = None;
        self.urgent = None;
        match outcome {
            Outcome::Done => rest,
            Outcome::Rest(after) => (*after).min(rest),
            Outcome::Wait(after, _) => (*after).max(INTERVAL),
            Outcome::Urgent(_) => {
                self.urgent = now.checked_add(URGENT);
                URGENT
            }
        }
    }

    /// Counts a failure: how many in a row, and when to try again. `jitter` is from 0 to 1.
    pub fn failed(&mut self, jitter: f64) -> (u32, Duration) {
        self.failures = self.failures.saturating_add(1);
        let delay = backoff(self.failures, jitter);
        self.not_before = Instant::now().checked_add(delay);
        (self.failures, delay)
    }
}

/// Doubles with every failure up to [`LONGEST`], and spreads over the upper half so that many do not come together.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = (FIRST * 2_u32.pow(doublings)).min(LONGEST);
    full / 2 + (full / 2).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_limit() {
        assert_eq!(backoff(1, 1.0), FIRST);
        assert_eq!(backoff(3, 1.0), FIRST * 4);
        assert_eq!(backoff(u32::MAX, 1.0), LONGEST);
        assert_eq!(backoff(u32::MAX, 0.0), LONGEST / 2);
    }

    #[test]
    fn a_flood_of_wakes_becomes_one_reconciliation_in_an_interval() {
        let mut pace = Pace::default();
        let start = Instant::now() + Duration::from_hours(1);
        let begun = (0..6000_u32)
            .filter(|tick| pace.begin(start + Duration::from_millis(100) * *tick).is_none())
            .count();
        // Ten minutes: 120 intervals, and the burst at the start.
        assert!((120..=126).contains(&begun), "{begun}");
    }

    #[test]
    fn after_quiet_a_burst_is_allowed() {
        let mut pace = Pace::default();
        let start = Instant::now() + Duration::from_hours(1);
        let burst = (0..20).filter(|_| pace.begin(start).is_none()).count();
        assert_eq!(burst, 6);
        assert_eq!(pace.begin(start), Some(INTERVAL));
    }

    #[test]
    fn waiting_is_never_shorter_than_the_interval_and_success_forgets_failures() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.end(&Outcome::Wait(Duration::ZERO, String::new()), RESYNC, now), INTERVAL);
        pace.failed(0.5);
        assert_eq!(pace.failed(1.0).0, 2);
        assert!(pace.begin(Instant::now()).is_some());
        assert_eq!(pace.end(&Outcome::Rest(RESYNC * 2), RESYNC, now), RESYNC);
        assert_eq!(pace.failed(1.0).0, 1);
    }

    #[test]
    fn what_is_urgent_is_due_after_a_second_whatever_is_spent_and_spends_nothing() {
        let (mut pace, start) = (Pace::default(), Instant::now() + Duration::from_hours(1));
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        while pace.begin(start).is_none() {}
        let urgent = Outcome::Urgent("writers wait".to_owned());
        for second in 0..4 {
            assert_eq!(pace.end(&urgent, RESYNC, at(second * 1000)), URGENT);
            // Whoever wakes us does not have it sooner, nor later.
            assert_eq!(pace.begin(at(second * 1000 + 300)), Some(Duration::from_millis(700)));
            assert_eq!(pace.begin(at(second * 1000 + 1000)), None);
            assert!(pace.begin(at(second * 1000 + 1000)).is_some(), "one look, not any number");
        }
        pace.end(&Outcome::Done, RESYNC, at(4000));
        assert_eq!(pace.begin(at(4000)), INTERVAL.checked_sub(Duration::from_secs(4)), "as ever");
        assert_eq!(pace.begin(at(5000)), None);
    }
}
