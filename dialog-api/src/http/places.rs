//! Places for connections: how many may be open, and which one gives way when all are taken.
//!
//! An idle connection costs little and is kept long, for the sake of proxies. But clients that hold many must
//! not keep out everybody else, the probes of `/health` before all: a process that does not answer them is
//! killed. So when a client comes and no place is free, the connection that has been idle longest ends.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{interval, timeout},
};

use super::guard::Phase;

/// A connection idle for less is about to be used, as far as anybody knows. Short enough for a probe that
/// waits a second.
const IDLE: Duration = Duration::from_millis(500);
/// How often, while a client waits for a place, a connection is looked for that can give way.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often, and how often at least in the time that a connection may be idle, all are looked at.
const IDLE_LOOK_INTERVAL: Duration = Duration::from_secs(1);
const IDLE_LOOKS: u32 = 8;

/// All places, and who has one.
pub(super) struct Places {
    free: Arc<Semaphore>,
    taken: Mutex<Taken>,
    next: AtomicU64,
}

#[derive(Default)]
struct Taken {
    open: HashMap<u64, Open>,
    /// Whether all have been told to end.
    stopped: bool,
}

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The server ends.
    Stop,
    /// Somebody else needs its place, or it has been idle for too long.
    GiveWay,
}

/// Tells one connection to end. It looks at this whenever anything happens on it, which therefore takes no lock: two
/// cancellation tokens in its place cost 2 % of a list's processor time.
#[derive(Default)]
struct Bell {
    stop: AtomicBool,
    give_way: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    fn ring(&self, ending: Ending) {
        let told = match ending {
            Ending::Stop => &self.stop,
            Ending::GiveWay => &self.give_way,
        };
        told.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn rung(&self) -> Option<Ending> {
        if self.stop.load(Ordering::Acquire) {
            Some(Ending::Stop)
        } else {
            self.give_way.load(Ordering::Acquire).then_some(Ending::GiveWay)
        }
    }
}

/// An open connection that has not been asked to give way.
struct Open {
    phase: Phase,
    bell: Arc<Bell>,
}

/// A connection's entry among the open ones; ends with this value.
pub(super) struct Entry {
    places: Arc<Places>,
    number: u64,
    bell: Arc<Bell>,
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

    /// Enters a connection, so that it can be told to end.
    pub(super) fn enter(self: &Arc<Self>, phase: Phase) -> Entry {
        let (number, bell) = (self.next.fetch_add(1, Ordering::Relaxed), Arc::<Bell>::default());
        let mut taken = self.lock();
        if taken.stopped {
            bell.ring(Ending::Stop);
        }
        taken.open.insert(number, Open { phase, bell: Arc::clone(&bell) });
        Entry { places: Arc::clone(self), number, bell }
    }

    /// Tells all connections, and those that are still entered, that the server ends.
    pub(super) fn stop(&self) {
        let mut taken = self.lock();
        taken.stopped = true;
        for open in taken.open.values() {
            open.bell.ring(Ending::Stop);
        }
    }

    /// Ends connections that have been idle for so long, for ever. One look at all of them costs less than a timer at
    /// each request.
    pub(super) async fn end_idle(&self, limit: Duration) {
        let pause = (limit / IDLE_LOOKS).clamp(Duration::from_millis(1), IDLE_LOOK_INTERVAL);
        let mut looks = interval(pause);
        loop {
            looks.tick().await;
            let is_over = |open: &Open| open.phase.idle().is_some_and(|idle| idle >= limit);
            for (_, open) in self.lock().open.extract_if(|_, open| is_over(open)) {
                open.bell.ring(Ending::GiveWay);
            }
        }
    }

    /// Asks the connection that has been idle longest; each is asked once.
    fn ask_one_to_give_way(&self) {
        let mut taken = self.lock();
        let longest = taken
            .open
            .iter()
            .filter_map(|(number, open)| Some((open.phase.idle()?, *number)))
            .filter(|(idle, _)| *idle >= IDLE)
            .max();
        if let Some(open) = longest.and_then(|(_, number)| taken.open.remove(&number)) {
            open.bell.ring(Ending::GiveWay);
        }
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Waits until the connection has to end.
    pub(super) async fn told_to_end(&self) -> Ending {
        poll_fn(|context| {
            // In this order: who rings in between is heard.
            self.bell.waker.register(context.waker());
            self.bell.rung().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.places.lock().open.remove(&self.number);
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
            open.iter().map(|(_, entry, _)| entry.bell.rung().is_some()).collect::<Vec<_>>()
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

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_for_too_long_ends_and_what_is_handled_does_not() {
        let places = Places::new(3);
        let limit = Duration::from_mins(1);
        let phases: [Phase; 3] = std::array::from_fn(|_| Phase::default());
        let entries = phases.clone().map(|phase| places.enter(phase));
        let _handling = phases[0].begin();
        let looking = Arc::clone(&places);
        let looks = tokio::spawn(async move { looking.end_idle(limit).await });
        let ended = || entries.iter().map(|entry| entry.bell.rung()).collect::<Vec<_>>();
        sleep(limit / 2).await;
        drop(phases[1].begin());
        sleep(Duration::from_secs(29)).await;
        assert_eq!(ended(), [None; 3]);
        // The look that is due at the very end of the limit may come before or after this task.
        sleep(2 * IDLE_LOOK_INTERVAL).await;
        assert_eq!(ended(), [None, None, Some(Ending::GiveWay)]);
        sleep(limit).await;
        assert_eq!(ended(), [None, Some(Ending::GiveWay), Some(Ending::GiveWay)]);
        looks.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_server_ends_all_are_told_and_those_who_come_late() {
        let places = Places::new(2);
        let early = places.enter(Phase::default());
        let told = tokio::spawn(async move { early.told_to_end().await });
        sleep(IDLE).await;
        assert!(!told.is_finished());
        places.stop();
        assert_eq!(told.await.unwrap(), Ending::Stop);
        assert_eq!(places.enter(Phase::default()).told_to_end().await, Ending::Stop);
    }
}
