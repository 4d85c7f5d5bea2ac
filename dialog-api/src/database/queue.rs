//! Those who wait for a server that is away, and how they are let through once it is back.
//!
//! The first connection comes back before the others, and many may wait. Were they all let through at once, it would
//! have to work them off one by one, each with a flush of the log of its own, while the others come about and idle. So
//! only as many have a turn at a time as keep all connections busy, and the next ones take whatever connections there
//! are by then, in the order in which they came. The same holds for those who turn to the coordinator, when that is
//! first to reach the server.
//!
//! Who comes while others wait, but when the server is there again, takes a turn as they do and keeps nobody: the queue
//! ends with the last who came while the server was away, however many ask meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::config::WaitingLimits;

/// Turns for each connection. With a few more statements than the one under way a connection does not stand still while
/// an answer and the next statement travel.
const TURNS: u16 = 4;

/// Places of all who wait, for whichever server: each holds memory, and most hold a client's connection.
#[derive(Clone, Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    for_one_server: usize,
}

/// Who waits for one server.
pub(super) struct Queue {
    places: Places,
    /// How many of the places are left to those who wait for this one.
    here: Semaphore,
    /// How many wait for the server, and not only for their turn.
    waiting: AtomicUsize,
    turns: Arc<Semaphore>,
    /// How many have a place here.
    length: Gauge,
}

/// A place in a queue.
#[derive(Debug)]
pub(super) struct Place<'a> {
    length: &'a Gauge,
    _permits: [SemaphorePermit<'a>; 2],
}

/// Somebody who came, or is still there, while the server is away.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a AtomicUsize);

/// The turn of somebody who has waited, until the statement is answered.
pub(super) type Turn = OwnedSemaphorePermit;

impl Places {
    /// So many places.
    pub(super) fn new(limits: WaitingLimits) -> Self {
        Self { all: Arc::new(Semaphore::new(limits.all)), for_one_server: limits.one_server }
    }
}

impl Queue {
    /// A queue for a server with so many connections, whose members need one of these places. Its length is told there.
    pub(super) fn new(connections: u16, places: Places, length: Gauge) -> Self {
        let turns = Arc::new(Semaphore::new(usize::from(TURNS) * usize::from(connections)));
        let here = Semaphore::new(places.for_one_server);
        Self { places, here, waiting: AtomicUsize::new(0), turns, length }
    }

    /// Whether nobody waits for the server.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(&self) -> Option<Place<'_>> {
        let permits = [self.here.try_acquire().ok()?, self.places.all.try_acquire().ok()?];
        self.length.inc();
        Some(Place { length: &self.length, _permits: permits })
    }

    /// Waits for the server itself, until this is dropped. Nobody who comes meanwhile overtakes.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Waits for a turn; first come, first served. Nothing if there are no turns any more, which does not happen.
    pub(super) async fn turn(&self) -> Option<Turn> {
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.length.dec();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn queue(connections: u16, places: &Places) -> Queue {
        Queue::new(connections, places.clone(), Gauge::default())
    }

    #[test]
    fn one_server_does_not_take_the_places_of_all() {
        let places = Places::new(WaitingLimits { all: 5, one_server: 3, readers: 1 });
        let queues = [queue(8, &places), queue(8, &places), queue(8, &places)];
        let first: Vec<_> = std::iter::from_fn(|| queues[0].enter()).collect();
        let second: Vec<_> = std::iter::from_fn(|| queues[1].enter()).collect();
        assert_eq!((first.len(), second.len()), (3, 2));
        assert_eq!((queues[0].length.get(), queues[1].length.get()), (3, 2));
        assert!(queues[2].enter().is_none(), "all are taken");
        drop(first);
        assert_eq!(std::iter::from_fn(|| queues[2].enter()).take(2).count(), 2, "places are free again");
        drop(second);
        assert_eq!((places.all.available_permits(), queues[0].length.get()), (5, 0));
    }

    #[test]
    fn only_those_who_wait_for_the_server_keep_others_behind_them() {
        let queue = queue(8, &Places::new(WaitingLimits { all: 5, one_server: 5, readers: 1 }));
        let (waits, _turn_only) = ((queue.enter(), queue.wait()), queue.enter());
        assert!(!queue.is_empty());
        drop(waits);
        assert!(queue.is_empty());
    }

    #[test]
    fn turns_are_taken_in_the_order_in_which_they_were_asked_for() {
        let queue = queue(2, &Places::new(WaitingLimits { all: 1, one_server: 1, readers: 1 }));
        let mut held: Vec<_> =
            (0..2 * TURNS).map(|_| queue.turn().now_or_never().flatten().unwrap()).collect();
        let (mut first, mut second) = (Box::pin(queue.turn()), Box::pin(queue.turn()));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        held.pop();
        assert!(second.as_mut().now_or_never().is_none(), "it overtakes");
        assert!(first.as_mut().now_or_never().flatten().is_some());
    }
}
