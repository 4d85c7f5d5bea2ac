//! Limits on how often something may happen, for each of many keys, in bounded memory.

use std::{
    collections::HashMap,
    hash::Hash,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many times a second on average, and so many at once.
///
/// The generic cell rate algorithm: for each key one point in time, up to which its past use is paid for. Points that
/// nobody asked for are forgotten in two generations, as in [`crate::recent`].
#[derive(Debug)]
pub struct RateLimit<K> {
    /// What one use costs.
    cost: Duration,
    /// How far ahead a key may pay.
    credit: Duration,
    capacity: usize,
    paid: Mutex<Generations<K>>,
}

#[derive(Debug)]
struct Generations<K> {
    young: HashMap<K, Instant>,
    old: HashMap<K, Instant>,
}

impl<K: Eq + Hash + Copy> RateLimit<K> {
    /// `rate` uses a second, `burst` at once (at least 1); `capacity` keys are remembered at least. Nothing when the
    /// rate is 0, which means no limit.
    #[must_use]
    pub fn new(rate: u32, burst: u32, capacity: usize) -> Option<Self> {
        let cost = Duration::from_secs(1).checked_div(rate)?;
        let credit = cost * burst.max(1);
        let paid = Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() });
        Some(Self { cost, credit, capacity: capacity.max(1), paid })
    }

    /// Whether the key could be used now.
    ///
    /// # Errors
    /// When that would be too often: how long to wait.
    pub fn check(&self, key: K, now: Instant) -> Result<(), Duration> {
        self.next(&self.lock(), key, now).map(drop)
    }

    /// Uses the key once.
    ///
    /// # Errors
    /// When that is too often: how long to wait. Nothing was used then.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut paid = self.lock();
        let next = self.next(&paid, key, now)?;
        paid.young.insert(key, next);
        if paid.young.len() >= self.capacity {
            paid.old = mem::take(&mut paid.young);
        }
        Ok(())
    }

    /// Up to when the key is paid for with one use more.
    fn next(&self, paid: &Generations<K>, key: K, now: Instant) -> Result<Instant, Duration> {
        let until = paid.young.get(&key).or_else(|| paid.old.get(&key)).copied();
        let next = until.map_or(now, |until| until.max(now)) + self.cost;
        let beyond = next.duration_since(now).saturating_sub(self.credit);
        if beyond.is_zero() { Ok(next) } else { Err(beyond) }
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Generations<K>> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let limit = RateLimit::new(10, 3, 100).unwrap();
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(limit.take(1, now), Ok(()));
        }
        assert_eq!(limit.take(1, now), Err(Duration::from_millis(100)));
        assert_eq!(limit.take(2, now), Ok(()), "another key");
        let later = now + Duration::from_millis(100);
        assert_eq!((limit.take(1, later), limit.take(1, later)), (Ok(()), Err(Duration::from_millis(100))));
        assert!(RateLimit::<u8>::new(0, 3, 100).is_none());
    }

    proptest! {
        #[test]
        fn no_key_gets_more_than_its_rate_and_memory_is_bounded(
            rate in 1_u32..1000, burst in 1_u32..50,
            uses in prop::collection::vec((0_u8..5, 0_u64..50), 1..500),
        ) {
            let limit = RateLimit::new(rate, burst, 5).unwrap();
            let start = Instant::now();
            let (mut now, mut taken) = (start, [0_u32; 5]);
            for (key, pause) in uses {
                now += Duration::from_millis(pause);
                taken[usize::from(key)] += u32::from(limit.take(key, now).is_ok());
            }
            let allowed = f64::from(burst) + (now - start).as_secs_f64() * f64::from(rate) + 1.0;
            prop_assert!(taken.iter().all(|taken| f64::from(*taken) <= allowed));
            let paid = limit.paid.lock().unwrap();
            prop_assert!(paid.young.len() + paid.old.len() <= 10);
        }
    }
}
