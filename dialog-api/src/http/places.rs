//! Places for connections: how many may be open, and which one gives way when all are taken.
//!
//! An idle connection costs little and is kept long, for the sake of proxies. But clients that hold many must
//! not keep out everybody else, the probes of `/health` before all: a process that does not answer them is
//! killed. So when a client comes and no place is free, the connection that has been idle longest ends.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::guard::Phase;

/// A connection idle for less is about to be used, as far as anybody knows. Short enough for a probe that
/// waits a second.
const IDLE: Duration = Duration::from_millis(500);
/// How often, while a client waits for a place, a connection is looked for that can give way.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// All places, and who has one.
pub(super) struct Places {
    free: Arc<Semaphore>,
    taken: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

/// An open connection that has not been asked to give way.
struct Open {
    phase: Phase,
    give_way: CancellationToken,
}

/// A connection's entry among the open ones; ends with this value.
pub(super) struct Entry {
    places: Arc<Places>,
    number: u64,
    give_way: CancellationToken,
}

impl Places {
    /// So many places.
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(count)),
            taken: Mutex::default(),
            next: AtomicU64::default(),
        })
    }

    /// A place, if one is free.
    pub(super) fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// Waits for a place. Meanwhile idle connections are asked to give way, one after the other. Nothing when
    /// there are no places any more, which does not happen.
    pub(super) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Some(place) = self.try_take() {
            return Some(place);
        }
        let mut place = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            self.ask_one_to_give_way();
            if let Ok(place) = timeout(LOOK_INTERVAL, place.as_mut()).await {
                return place.ok();
            }
        }
    }

    /// Enters a connection, so that it can be asked to give way.
    pub(super) fn enter(self: &Arc<Self>, phase: Phase) -> Entry {
        let (number, give_way) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        self.lock().insert(number, Open { phase, give_way: give_way.clone() });
        Entry { places: Arc::clone(self), number, give_way }
    }

    /// Asks the connection that has been idle longest; each is asked once.
    fn ask_one_to_give_way(&self) {
        let mut taken = self.lock();
        let longest = taken
            .iter()
            .filter_map(|(number, open)| Some((open.phase.idle()?, *number)))
            .filter(|(idle, _)| *idle >= IDLE)
            .max();
        if let Some(open) = longest.and_then(|(_, number)| taken.remove(&number)) {
            open.give_way.cancel();
        }
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Waits until the connection is asked to give way.
    pub(super) async fn asked_to_give_way(&self) {
        self.give_way.cancelled().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.places.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_was_idle_longest_gives_way_and_no_busy_one() {
        let places = Places::new(3);
        let mut open = Vec::new();
        for _ in 0..3 {
            let phase = Phase::default();
            let place = places.take().await.unwrap();
            open.push((phase.clone(), places.enter(phase), Some(place)));
            sleep(Duration::from_millis(10)).await;
        }
        // The first handles a request, such as a stream, the second has just answered one.
        let _handling = open[0].0.begin();
        sleep(IDLE).await;
        drop(open[1].0.begin());
        let (started, waiting) = (Instant::now(), places.take());
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_millis(10), waiting.as_mut()).await.is_err());
        let asked = |open: &[(Phase, Entry, _)]| {
            open.iter().map(|(_, entry, _)| entry.give_way.is_cancelled()).collect::<Vec<_>>()
        };
        assert_eq!(asked(&open), [false, false, true]);
        open[2].2.take();
        let place = waiting.await;
        assert!(place.is_some());
        assert!(started.elapsed() < IDLE);
        assert_eq!(asked(&open), [false, false, true]);

        // Later, nothing having changed, it is the second's turn; the first is never asked.
        assert!(timeout(10 * IDLE, places.take()).await.is_err());
        assert_eq!(asked(&open), [false, true, true]);
    }
}
