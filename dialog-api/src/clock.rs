//! What time it is: the database's, whatever the clock of this machine says.
//!
//! Replicas have to agree on the time: ids of messages are their order, a stream looks only so far back for what was
//! written late, jobs look only so far back for what was left undone, and a token that one replica issues ends at all
//! others. So each replica asks the database from time to time, and counts on from its answer by a clock that nobody
//! sets. That the clock of a machine jumps, forward or back, changes nothing.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio_postgres::Client;
use uuid::{ContextV7, Uuid};

/// An answer that took longer says too little about the time, and is believed only if there was none before.
const ROUND_TRIP_LIMIT: Duration = Duration::from_secs(2);
const MICROSECONDS: i64 = 1_000_000;

/// A clock, and the ids that are made by it.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// The time at `start`, in microseconds since 1970.
    origin: AtomicI64,
    /// Whether that is the database's.
    followed: AtomicBool,
    ids: Mutex<ContextV7>,
}

impl Clock {
    /// Goes by this time until the database has been asked.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            start: Instant::now(),
            origin: AtomicI64::new(now.as_microsecond()),
            followed: AtomicBool::new(false),
            ids: Mutex::new(ContextV7::new()),
        }
    }

    /// The time, to the microsecond as in the database.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    /// A new id and its time. Ids of one clock ascend whatever happens to it: while it is behind the last id, they are
    /// of the last id's time.
    #[must_use]
    pub fn next_id(&self) -> (Uuid, Timestamp) {
        let now = self.now();
        (self.id_at(now), now)
    }

    /// Takes over the database's time.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn follow(&self, database: &Client) -> Result<()> {
        let asked = Instant::now();
        let row = database.query_one("SELECT clock_timestamp()", &[]).await.context("ask for the time")?;
        self.set(row.get(0), asked, Instant::now());
        Ok(())
    }

    /// It was this time at some moment between these two; most likely in the middle.
    fn set(&self, time: Timestamp, asked: Instant, answered: Instant) {
        let took = answered.duration_since(asked);
        if took <= ROUND_TRIP_LIMIT || !self.followed.load(Ordering::Relaxed) {
            let origin = time.as_microsecond() - self.since_start(asked + took / 2);
            self.origin.store(origin, Ordering::Relaxed);
            self.followed.store(true, Ordering::Relaxed);
        } else {
            tracing::debug!(?took, "the database's time came too late to be of use");
        }
    }

    fn at(&self, moment: Instant) -> Timestamp {
        let microsecond = self.origin.load(Ordering::Relaxed).saturating_add(self.since_start(moment));
        // Of times that far away no clock that works can tell.
        Timestamp::from_microsecond(microsecond).unwrap_or(Timestamp::MAX)
    }

    fn since_start(&self, moment: Instant) -> i64 {
        let since = moment.saturating_duration_since(self.start).as_micros();
        i64::try_from(since).unwrap_or(i64::MAX)
    }

    fn id_at(&self, time: Timestamp) -> Uuid {
        let microsecond = time.as_microsecond().max(0);
        let seconds = u64::try_from(microsecond / MICROSECONDS).unwrap_or_default();
        let nanoseconds = u32::try_from(microsecond % MICROSECONDS).unwrap_or_default() * 1000;
        Uuid::new_v7(uuid::Timestamp::from_unix(&self.ids, seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn seconds_of(id: Uuid) -> u64 {
        id.get_timestamp().unwrap().to_unix().0
    }

    #[test]
    fn it_counts_on_from_what_the_database_said() {
        let clock = Clock::new(time(5_000_000_000));
        let (asked, answered) =
            (clock.start + Duration::from_secs(10), clock.start + Duration::from_secs(12));
        clock.set(time(1_800_000_000), asked, answered);
        assert_eq!(clock.at(clock.start + Duration::from_secs(11)), time(1_800_000_000));
        assert_eq!(clock.at(clock.start + Duration::from_mins(2)), time(1_800_000_109));
        // Asked again, by when it has jumped: back, and far ahead.
        for jumped in [time(1_700_000_000), time(1_900_000_000)] {
            clock.set(jumped, clock.start, clock.start);
            assert_eq!(clock.at(clock.start + Duration::from_secs(1)), jumped + SignedDuration::from_secs(1));
        }
    }

    #[test]
    fn an_answer_that_came_late_is_better_than_none_and_not_as_good_as_one_before() {
        let clock = Clock::new(time(5_000_000_000));
        let late = clock.start + Duration::from_secs(4);
        clock.set(time(1_800_000_000), clock.start, late);
        assert_eq!(clock.at(clock.start + Duration::from_secs(2)), time(1_800_000_000));
        clock.set(time(1_900_000_000), clock.start, late);
        assert_eq!(clock.at(late), time(1_800_000_002));
    }

    #[test]
    fn nobody_sets_the_clock_it_counts_by() {
        let clock = Clock::new(time(1_800_000_000));
        let (first, second) = (clock.now(), clock.now());
        assert!(time(1_800_000_000) <= first && first <= second && second < time(1_800_003_600));
    }

    #[test]
    fn an_id_is_of_its_time() {
        let clock = Clock::new(time(1_800_000_000));
        let (id, now) = clock.next_id();
        let (seconds, nanoseconds) = id.get_timestamp().unwrap().to_unix();
        let milliseconds = seconds * 1000 + u64::from(nanoseconds / 1_000_000);
        assert_eq!(i64::try_from(milliseconds).unwrap(), now.as_millisecond());
        assert_eq!(id.get_version_num(), 7);
    }

    #[test]
    fn when_the_clock_is_set_back_ids_ascend_and_when_it_has_caught_up_they_follow_it() {
        let clock = Clock::new(time(0));
        let before = clock.id_at(time(1_800_000_000));
        let hour: Vec<Uuid> = (0..3600).map(|second| clock.id_at(time(1_799_996_400 + second))).collect();
        assert!(before < hour[0] && hour.is_sorted(), "an id that is out of order");
        assert_eq!(seconds_of(hour[3599]), 1_800_000_000, "the last id's time is kept, and not gone beyond");
        assert_eq!(seconds_of(clock.id_at(time(1_800_000_001))), 1_800_000_001);
    }

    #[test]
    fn times_that_cannot_be_are_no_panic() {
        let clock = Clock::new(Timestamp::MAX);
        assert!(clock.id_at(Timestamp::MIN) < clock.id_at(Timestamp::MAX));
        assert_eq!(clock.at(clock.start + Duration::from_hours(1)), Timestamp::MAX);
    }

    proptest! {
        #[test]
        fn ids_ascend_however_the_clock_jumps(jumps in prop::collection::vec(-1_000_i64..5_000_000_000, 1..300)) {
            let clock = Clock::new(time(0));
            let ids: Vec<Uuid> = jumps.into_iter().map(|second| clock.id_at(time(second))).collect();
            prop_assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
