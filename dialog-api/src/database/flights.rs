//! Identical reads at a time become one query.
//!
//! Of those who ask the same, one flies and the others wait for the next flight, never joining one that has
//! taken off: a reader sees all that was acknowledged before it asked. When a flight lands, all who came
//! meanwhile share the next. However many readers one dialog has, there is one query of them at a time.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout_at},
};

/// Flights take milliseconds. Who has waited for this long waits for a server that is away, or gone, and keeps a
/// client's connection all the while: not all clients may.
const LONG: Duration = Duration::from_secs(1);

/// All flights. Memory: one entry for each distinct read under way, one place for each reader.
pub(super) struct Flights<K: Eq + Hash + Clone, T> {
    /// Who waits for the next flight after the one under way.
    waiting: Mutex<HashMap<K, Passengers<K, T>>>,
    /// For passengers who wait for long.
    places: Semaphore,
}

type Passengers<K, T> = Vec<oneshot::Sender<Turn<K, T>>>;

/// What a passenger hears.
enum Turn<K: Eq + Hash + Clone, T> {
    /// Fly, and take these with you.
    Fly(Pilot<K, T>),
    /// The flight has landed with this.
    Landed(T),
}

/// Whoever flies. When it is dropped, landed or not, the next one's turn comes.
struct Pilot<K: Eq + Hash + Clone, T> {
    /// `None` when somebody else is the pilot now.
    flights: Option<Arc<Flights<K, T>>>,
    key: K,
    passengers: Passengers<K, T>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<T> {
    /// From a flight of one's own.
    Own(T),
    /// From a flight of somebody else's, begun after one asked.
    Shared(T),
}

impl<K: Eq + Hash + Clone, T> Flights<K, T> {
    /// No flights yet. No more than so many passengers wait for long at a time.
    pub(super) fn new(passengers: usize) -> Self {
        Self { waiting: Mutex::default(), places: Semaphore::new(passengers) }
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Flights<K, T> {
    /// Flies, or waits for somebody who does; nothing when it is still waiting at the deadline, or has waited for long
    /// and too many others have as well. May be dropped at any time. A flight of one's own has to see to its time
    /// itself.
    pub(super) async fn fly<F: Future<Output = T>>(
        self: &Arc<Self>,
        key: K,
        deadline: Instant,
        flight: impl FnOnce() -> F,
    ) -> Option<Answer<T>> {
        let turn = {
            match self.lock().entry(key.clone()) {
                Entry::Occupied(mut passengers) => {
                    let (sender, receiver) = oneshot::channel();
                    passengers.get_mut().push(sender);
                    Some(receiver)
                }
                Entry::Vacant(place) => {
                    place.insert(Vec::new());
                    None
                }
            }
        };
        let pilot = match turn {
            None => Pilot { flights: Some(Arc::clone(self)), key, passengers: Vec::new() },
            Some(turn) => match self.wait(turn, deadline).await? {
                Ok(Turn::Landed(answer)) => return Some(Answer::Shared(answer)),
                Ok(Turn::Fly(pilot)) => pilot,
                // A pilot always lands or hands over. Were it otherwise, flying alone harms nobody.
                Err(_) => return Some(Answer::Own(flight().await)),
            },
        };
        let answer = flight().await;
        pilot.land(&answer);
        Some(Answer::Own(answer))
    }

    /// Waits as a passenger.
    async fn wait(
        &self,
        mut turn: oneshot::Receiver<Turn<K, T>>,
        deadline: Instant,
    ) -> Option<Result<Turn<K, T>, oneshot::error::RecvError>> {
        let soon = deadline.min(Instant::now() + LONG);
        if let Ok(turn) = timeout_at(soon, &mut turn).await {
            return Some(turn);
        }
        let _place = self.places.try_acquire().ok()?;
        timeout_at(deadline, turn).await.ok()
    }
}

impl<K: Eq + Hash + Clone, T> Flights<K, T> {
    /// Finds the next pilot: among these passengers, or else among those who came meanwhile.
    fn pass_on(self: &Arc<Self>, key: &K, mut passengers: Passengers<K, T>) {
        loop {
            if passengers.is_empty() {
                let mut waiting = self.lock();
                let Entry::Occupied(mut next) = waiting.entry(key.clone()) else { return };
                if next.get().is_empty() {
                    next.remove();
                    return;
                }
                passengers = mem::take(next.get_mut());
            }
            // The last who came has the most time left.
            let Some(next) = passengers.pop() else { continue };
            let pilot = Pilot { flights: Some(Arc::clone(self)), key: key.clone(), passengers };
            match next.send(Turn::Fly(pilot)) {
                Err(Turn::Fly(mut refused)) => {
                    refused.flights = None;
                    passengers = mem::take(&mut refused.passengers);
                }
                Ok(()) | Err(Turn::Landed(_)) => return,
            }
        }
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Passengers<K, T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone, T: Clone> Pilot<K, T> {
    fn land(mut self, answer: &T) {
        for passenger in self.passengers.drain(..) {
            // Whoever does not listen any more needs no answer.
            let _ = passenger.send(Turn::Landed(answer.clone()));
        }
    }
}

impl<K: Eq + Hash + Clone, T> Drop for Pilot<K, T> {
    fn drop(&mut self) {
        if let Some(flights) = self.flights.take() {
            flights.pass_on(&self.key, mem::take(&mut self.passengers));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type Counters = Arc<Flights<&'static str, usize>>;

    fn flights() -> Counters {
        Arc::new(Flights::new(3))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    /// A query that takes 10 ms and answers with what the counter was when it was issued.
    async fn read(counter: &AtomicUsize) -> usize {
        let seen = counter.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn one_flies_and_all_others_share_the_next_flight() {
        let (flights, counter) = (flights(), AtomicUsize::new(0));
        let readers = (0..200).map(|_| flights.fly("key", soon(), || read(&counter)));
        let answers = futures::future::join_all(readers).await;
        assert_eq!(counter.load(Ordering::SeqCst), 2);
        assert_eq!(answers.iter().filter(|answer| **answer == Some(Answer::Own(0))).count(), 1);
        assert_eq!(answers.iter().filter(|answer| **answer == Some(Answer::Own(1))).count(), 1);
        assert_eq!(answers.iter().filter(|answer| **answer == Some(Answer::Shared(1))).count(), 198);
        assert!(flights.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_passengers_wait_for_long() {
        let flights = flights();
        let flight = async || tokio::time::sleep(4 * LONG).await;
        let flights_of = |_| {
            flights.fly("key", soon(), || async {
                flight().await;
                7
            })
        };
        let answers = futures::future::join_all((0..10).map(flights_of)).await;
        let count =
            |wanted: Option<Answer<usize>>| answers.iter().filter(|answer| **answer == wanted).count();
        assert_eq!((count(Some(Answer::Own(7))), count(Some(Answer::Shared(7))), count(None)), (2, 2, 6));
        assert_eq!(flights.places.available_permits(), 3);
        assert!(flights.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn different_questions_fly_apart() {
        let (flights, counter) = (flights(), AtomicUsize::new(0));
        let one = flights.fly("one", soon(), || read(&counter));
        let other = flights.fly("other", soon(), || read(&counter));
        assert_eq!(futures::join!(one, other), (Some(Answer::Own(0)), Some(Answer::Own(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_after_a_write_sees_it() {
        let (flights, counter) = (flights(), Arc::new(AtomicUsize::new(0)));
        let mut readers = tokio::task::JoinSet::new();
        for moment in 0..500_u64 {
            let (flights, counter) = (Arc::clone(&flights), Arc::clone(&counter));
            readers.spawn(async move {
                tokio::time::sleep(Duration::from_micros(moment * 100)).await;
                // Each flight counts: what is seen must be no flight that had begun before.
                let before = counter.load(Ordering::SeqCst);
                let answer = flights.fly("key", soon(), || read(&counter)).await;
                let Some(Answer::Own(seen) | Answer::Shared(seen)) = answer else {
                    panic!("no answer in time")
                };
                assert!(seen >= before, "asked after {before}, saw {seen}");
            });
        }
        readers.join_all().await;
        assert!(counter.load(Ordering::SeqCst) < 20, "{counter:?} flights");
    }

    /// Pilots and passengers leave at any moment; the others get their answers, and nothing stays behind.
    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_strands_nobody() {
        let (flights, counter) = (flights(), Arc::new(AtomicUsize::new(0)));
        let mut readers = tokio::task::JoinSet::new();
        for reader in 0..400_u64 {
            let (flights, counter) = (Arc::clone(&flights), Arc::clone(&counter));
            readers.spawn(async move {
                tokio::time::sleep(Duration::from_millis(reader % 7)).await;
                let patience = Duration::from_millis(if reader % 3 == 0 { 10_000 } else { reader % 40 });
                let flight = flights.fly("key", soon(), || read(&counter));
                (reader % 3 == 0, tokio::time::timeout(patience, flight).await.is_ok())
            });
        }
        for (patient, answered) in readers.join_all().await {
            assert!(answered || !patient, "somebody who waited was never answered");
        }
        assert!(flights.lock().is_empty());
    }
}
