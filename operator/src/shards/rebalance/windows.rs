//! When shards may be moved: times that come again and again, in the time of some place.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::api::RebalanceWindow;

/// How far ahead is looked for the end of windows that open into each other.
const HORIZON: SignedDuration = SignedDuration::from_hours(8 * 24);

/// Whether shards may be moved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// They may, until then; `None` if for more than a week.
    Open {
        /// When the last of the windows that are open, or open into each other, closes.
        until: Option<Timestamp>,
    },
    /// They may not, until then; `None` if no window opens any more.
    Closed {
        /// When the next window opens.
        until: Option<Timestamp>,
    },
}

/// A window of the resource, understood.
#[derive(Clone, Debug)]
pub struct Window {
    schedule: Cron,
    zone: TimeZone,
    length: Duration,
}

/// What is wrong with a window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The schedule is none.
    #[error("sharding.rebalance.windows: the schedule {schedule:?} is none: {reason}")]
    Schedule {
        /// As it was given.
        schedule: String,
        /// What cron says.
        reason: String,
    },
    /// The schedule names a day that never comes.
    #[error("sharding.rebalance.windows: the schedule {schedule:?} never comes: name a day that exists")]
    Never {
        /// As it was given.
        schedule: String,
    },
    /// The time zone does not exist.
    #[error(
        "sharding.rebalance.windows: {zone:?} is no time zone: use a name of the IANA time zone database, for example \
         Europe/Berlin"
    )]
    Zone {
        /// As it was given.
        zone: String,
    },
    /// The duration is none.
    #[error("sharding.rebalance.windows: {duration:?} is no duration: write it as 2h or 1h30m")]
    Duration {
        /// As it was given.
        duration: String,
    },
}

impl Window {
    /// Understands a window of the resource.
    ///
    /// # Errors
    /// If the schedule, the zone or the duration means nothing.
    pub fn new(window: &RebalanceWindow) -> Result<Self, Error> {
        let schedule = window.schedule.clone();
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser
            .parse(&schedule)
            .map_err(|error| Error::Schedule { schedule: schedule.clone(), reason: error.to_string() })?;
        let zone =
            TimeZone::get(&window.time_zone).map_err(|_| Error::Zone { zone: window.time_zone.clone() })?;
        let length = window.length().ok_or_else(|| Error::Duration { duration: window.duration.clone() })?;
        let window = Self { schedule: cron, zone, length };
        // Whether a day ever comes does not depend on where one starts to look: a leap year is among any eight.
        window.next(Timestamp::UNIX_EPOCH).map(|_| window).ok_or(Error::Never { schedule })
    }

    /// The first opening after `time`.
    fn next(&self, time: Timestamp) -> Option<Timestamp> {
        let after = time.to_zoned(self.zone.clone());
        self.schedule.find_next_occurrence(&after, false).ok().as_ref().map(Zoned::timestamp)
    }

    /// When the window that is open at `time` closes, if one is: the last to open counts.
    fn closes(&self, time: Timestamp) -> Option<Timestamp> {
        let at = time.to_zoned(self.zone.clone());
        let opened = self.schedule.find_previous_occurrence(&at, true).ok()?.timestamp();
        let closes = opened.checked_add(self.length).ok()?;
        (closes > time).then_some(closes)
    }
}

/// Understands the windows of the resource.
///
/// # Errors
/// If one of them means nothing: then none counts, because to leave one out could open what should be closed.
pub fn windows(windows: &[RebalanceWindow]) -> Result<Vec<Window>, Error> {
    windows.iter().map(Window::new).collect()
}

/// Whether shards may be moved at `now`. Without windows they always may.
#[must_use]
pub fn open_at(windows: &[Window], now: Timestamp) -> Opening {
    if windows.is_empty() {
        return Opening::Open { until: None };
    }
    let closes = |time| windows.iter().filter_map(|window| window.closes(time)).max();
    let Some(mut until) = closes(now) else {
        return Opening::Closed { until: windows.iter().filter_map(|window| window.next(now)).min() };
    };
    // A window that opens while another is open, or at the moment it closes, carries on.
    while let Some(later) = closes(until) {
        if later.duration_since(now) > HORIZON {
            return Opening::Open { until: None };
        }
        until = later;
    }
    Opening::Open { until: Some(until) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(schedule: &str, duration: &str, time_zone: &str) -> RebalanceWindow {
        RebalanceWindow { schedule: schedule.into(), duration: duration.into(), time_zone: time_zone.into() }
    }

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    /// What is so at `now`, with the time until which it is.
    fn asked(given: &[RebalanceWindow], now: &str) -> (bool, Option<String>) {
        match open_at(&windows(given).unwrap(), at(now)) {
            Opening::Open { until } => (true, until.map(|time| time.to_string())),
            Opening::Closed { until } => (false, until.map(|time| time.to_string())),
        }
    }

    fn open(until: &str) -> (bool, Option<String>) {
        (true, Some(until.to_owned()))
    }

    fn closed(until: &str) -> (bool, Option<String>) {
        (false, Some(until.to_owned()))
    }

    #[test]
    fn a_window_opens_on_the_minute_and_closes_after_its_duration() {
        let nightly = [window("0 2 * * *", "2h", "UTC")];
        assert_eq!(asked(&nightly, "2026-11-21T01:59:59Z"), closed("2026-11-21T02:00:00Z"));
        assert_eq!(asked(&nightly, "2026-11-21T02:00:00Z"), open("2026-11-21T04:00:00Z"));
        assert_eq!(asked(&nightly, "2026-11-21T03:59:59.5Z"), open("2026-11-21T04:00:00Z"));
        assert_eq!(asked(&nightly, "2026-11-21T04:00:00Z"), closed("2026-11-22T02:00:00Z"));
        assert_eq!(asked(&[], "2026-11-21T04:00:00Z"), (true, None));
    }

    #[test]
    fn a_window_is_in_the_time_of_its_place() {
        let berlin = [window("0 2 * * 1-5", "1h", "Europe/Berlin")];
        // Friday, then Monday: winter there is an hour ahead of UTC, summer two.
        assert_eq!(asked(&berlin, "2026-01-09T01:30:00Z"), open("2026-01-09T02:00:00Z"));
        assert_eq!(asked(&berlin, "2026-01-09T02:00:00Z"), closed("2026-01-12T01:00:00Z"));
        assert_eq!(asked(&berlin, "2026-07-10T00:30:00Z"), open("2026-07-10T01:00:00Z"));
        let kolkata = [window("30 1 * * *", "30m", "Asia/Kolkata")];
        assert_eq!(asked(&kolkata, "2026-07-10T20:00:00Z"), open("2026-07-10T20:30:00Z"));
    }

    #[test]
    fn a_night_without_the_hour_has_its_window_all_the_same() {
        // On 2026-03-29 clocks in Berlin go from 02:00 to 03:00, which is 01:00 UTC.
        let berlin = [window("30 2 * * *", "1h", "Europe/Berlin")];
        assert_eq!(asked(&berlin, "2026-03-28T02:00:00Z"), open("2026-03-28T02:30:00Z"));
        // It opens when the clock has gone forward.
        assert_eq!(asked(&berlin, "2026-03-29T00:59:59Z"), closed("2026-03-29T01:00:00Z"));
        assert_eq!(asked(&berlin, "2026-03-29T01:00:00Z"), open("2026-03-29T02:00:00Z"));
        assert_eq!(asked(&berlin, "2026-03-29T01:59:59Z"), open("2026-03-29T02:00:00Z"));
        assert_eq!(asked(&berlin, "2026-03-29T02:00:00Z"), closed("2026-03-30T00:30:00Z"));
        // An hour of many openings is left out with its hour.
        let many = [window("*/30 2 * * *", "10m", "Europe/Berlin")];
        assert_eq!(asked(&many, "2026-03-29T01:00:00Z"), closed("2026-03-30T00:00:00Z"));
        assert_eq!(asked(&many, "2026-10-25T01:05:00Z"), open("2026-10-25T01:10:00Z"));
    }

    #[test]
    fn a_night_with_the_hour_twice_has_its_window_once() {
        // On 2026-10-25 clocks in Berlin go from 03:00 back to 02:00, which is 01:00 UTC.
        let berlin = [window("30 2 * * *", "30m", "Europe/Berlin")];
        assert_eq!(asked(&berlin, "2026-10-25T00:29:00Z"), closed("2026-10-25T00:30:00Z"));
        assert_eq!(asked(&berlin, "2026-10-25T00:45:00Z"), open("2026-10-25T01:00:00Z"));
        assert_eq!(asked(&berlin, "2026-10-25T01:45:00Z"), closed("2026-10-26T01:30:00Z"));
        // The duration is real time: an hour from 02:30 lasts until the second 02:30.
        let long = [window("30 2 * * *", "1h", "Europe/Berlin")];
        assert_eq!(asked(&long, "2026-10-25T00:45:00Z"), open("2026-10-25T01:30:00Z"));
        // A window across the change is neither cut nor lengthened.
        let evening = [window("0 22 * * 6", "8h", "Europe/Berlin")];
        assert_eq!(asked(&evening, "2026-10-25T01:00:00Z"), open("2026-10-25T04:00:00Z"));
        assert_eq!(asked(&evening, "2026-03-29T01:00:00Z"), open("2026-03-29T05:00:00Z"));
    }

    #[test]
    fn windows_that_open_into_each_other_are_one() {
        let two = [window("0 1 * * *", "1h", "UTC"), window("0 2 * * *", "30m", "UTC")];
        assert_eq!(asked(&two, "2026-11-21T01:10:00Z"), open("2026-11-21T02:30:00Z"));
        let overlapping = [window("0 1 * * *", "3h", "UTC"), window("0 2 * * *", "30m", "UTC")];
        assert_eq!(asked(&overlapping, "2026-11-21T02:10:00Z"), open("2026-11-21T04:00:00Z"));
        assert_eq!(asked(&overlapping, "2026-11-21T05:00:00Z"), closed("2026-11-22T01:00:00Z"));
        assert_eq!(asked(&[window("* * * * *", "1m", "UTC")], "2026-11-21T05:00:30Z"), (true, None));
        // Daily for longer than a day: always open.
        assert_eq!(asked(&[window("0 1 * * *", "48h", "UTC")], "2026-11-21T05:00:00Z"), (true, None));
    }

    #[test]
    fn a_leap_day_is_waited_for() {
        let leap = [window("0 0 29 2 *", "1h", "UTC")];
        assert_eq!(asked(&leap, "2026-11-21T05:00:00Z"), closed("2028-02-29T00:00:00Z"));
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        let refused = |given: RebalanceWindow| windows(&[given]).unwrap_err().to_string();
        for schedule in ["61 2 * * *", "0 25 * * *", "0 2 * *", "0 2 * * * *", "0 2 * * MOO", "a b c d e"] {
            let text = refused(window(schedule, "1h", "UTC"));
            assert!(text.contains(schedule) && text.contains("is none"), "{text}");
        }
        assert!(refused(window("0 2 30 2 *", "1h", "UTC")).contains("never comes"));
        assert!(refused(window("0 2 * * *", "1h", "Europe/Atlantis")).contains("no time zone"));
        assert!(refused(window("0 2 * * *", "1 hour or so", "UTC")).contains("no duration"));
        // One that means nothing closes all.
        let both = [window("* * * * *", "1h", "UTC"), window("0 2 30 2 *", "1h", "UTC")];
        assert!(windows(&both).is_err());
    }
}
