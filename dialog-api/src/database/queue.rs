//! Those who wait for a server that is away, and how they are let through once it is back.
//!
//! The first connection comes back before the others, and many may wait. Were they all let through at once, it would
//! have to work them off one by one, each with a flush of the log of its own, while the others come about and idle. So
//! only as many have a turn at a time as keep all connections busy, and the next ones take whatever connections there
//! are by then, in the order in which they came.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Turns for each connection. With a few more statements than the one under way a connection does not stand still while
/// an answer and the next statement travel.
const TURNS: u16 = 4;

/// Who waits for one server.
pub(super) struct Queue {
    /// Places of all who wait, for whichever server: each holds memory and a client's connection.
    places: Arc<Semaphore>,
    /// How many wait for this one.
    waiting: AtomicUsize,
    turns: Semaphore,
}

/// A place among those who wait.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    count: &'a AtomicUsize,
    _place: OwnedSemaphorePermit,
}

/// The turn of somebody who has waited, until the statement is answered.
pub(super) type Turn<'a> = SemaphorePermit<'a>;

impl Queue {
    /// A queue for a server with so many connections, whose members need one of these places.
    pub(super) fn new(connections: u16, places: Arc<Semaphore>) -> Self {
        let turns = Semaphore::new(usize::from(TURNS) * usize::from(connections));
        Self { places, waiting: AtomicUsize::new(0), turns }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(&self) -> Option<Waiting<'_>> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Some(Waiting { count: &self.waiting, _place: place })
    }

    /// Waits for a turn; first come, first served. Nothing if there are no turns any more, which does not happen.
    pub(super) async fn turn(&self) -> Option<Turn<'_>> {
        self.turns.acquire().await.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn only_so_many_wait_whichever_server_for() {
        let places = Arc::new(Semaphore::new(5));
        let queues = [Queue::new(8, Arc::clone(&places)), Queue::new(8, Arc::clone(&places))];
        let first: Vec<_> = std::iter::from_fn(|| queues[0].enter()).take(3).collect();
        let second: Vec<_> = std::iter::from_fn(|| queues[1].enter()).collect();
        assert_eq!((first.len(), second.len()), (3, 2));
        assert!(queues[0].enter().is_none());
        drop(first);
        assert!(queues[0].is_empty() && !queues[1].is_empty());
        assert!(queues[1].enter().is_some(), "a place is free again");
        drop(second);
        assert_eq!(places.available_permits(), 5);
    }

    #[test]
    fn turns_are_taken_in_the_order_in_which_they_were_asked_for() {
        let queue = Queue::new(2, Arc::new(Semaphore::new(1)));
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
