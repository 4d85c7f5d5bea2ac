//! The load itself: an open loop that keeps its rate whatever happens, or a closed one that goes as fast as the
//! answers come.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use async_channel::{Receiver, Sender, TrySendError};
use tokio::task::JoinSet;

use crate::{
    client::{Connection, Requests, Target},
    ledger::{Code, Entry},
    schedule::Schedule,
    stats::Outcome,
    workload::{Kind, Operation, Workload},
};

/// First pause before a failed request is sent again; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a failed request is sent again.
const RETRY_PAUSE_LIMIT: Duration = Duration::from_secs(1);

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// At a fixed rate; arrivals for which no connection is free wait in a queue of this length, and are
    /// dropped and counted when it is full.
    Open {
        /// When they come.
        schedule: Schedule,
        /// How many may wait.
        queue: usize,
    },
    /// Each connection asks again as soon as it has its answer.
    Closed,
}

/// How the load is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How requests follow each other.
    pub pace: Pace,
    /// For how long new requests are made.
    pub duration: Duration,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// How often a request that failed is sent again, with the same id.
    pub retries: u8,
}

/// What happened, as it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A send ended.
    Send(Entry),
    /// A list ended.
    List(Outcome),
    /// An arrival found the queue full; it was due then, in microseconds after the start.
    Dropped(u64),
    /// An arrival still waited in the queue when the load was stopped.
    Left,
}

/// A request that is to be made.
#[derive(Clone, Copy, Debug)]
struct Job {
    operation: Operation,
    /// When it is due, in microseconds after the start.
    intended: u64,
}

/// Where connections get their jobs.
enum Jobs {
    Queue(Receiver<Job>),
    Loop { workload: Mutex<Workload>, end: Instant },
}

/// Makes the load and tells `events` about every request, until its time is over or `stop` is set, which leaves what waits in
/// the queue. Returns when the last one has ended.
///
/// # Errors
/// When a request cannot be made, or nobody listens to the events.
pub async fn drive(
    settings: Settings,
    targets: &[Target],
    requests: &Arc<Requests>,
    workload: Workload,
    start: Instant,
    events: Sender<Event>,
    stop: &Arc<AtomicBool>,
) -> Result<()> {
    // Nobody is left to take what arrives.
    let ended = Arc::new(AtomicBool::new(false));
    let (jobs, dispatcher) = match settings.pace {
        Pace::Closed => {
            let end = start + settings.duration;
            (Jobs::Loop { workload: Mutex::new(workload), end }, None)
        }
        Pace::Open { schedule, queue } => {
            let (sender, receiver) = async_channel::bounded(queue.max(1));
            let events = events.clone();
            let ends = [Arc::clone(stop), Arc::clone(&ended)];
            let arrivals = Arrivals { schedule, start, duration: settings.duration, ends };
            // A thread of its own: the runtime's timer is good to a millisecond, which is a latency here.
            let dispatcher = thread::Builder::new()
                .name("arrivals".into())
                .spawn(move || arrivals.dispatch(workload, &sender, &events))
                .context("start the thread of arrivals")?;
            (Jobs::Queue(receiver), Some(dispatcher))
        }
    };
    let jobs = Arc::new(jobs);
    let sends = Arc::new(AtomicU64::new(0));
    let mut connections = JoinSet::new();
    for number in 0..settings.connections.max(1) {
        let target = targets.get(number % targets.len().max(1)).context("no target")?;
        let worker = Worker {
            connection: Connection::new(target.clone(), settings.timeout),
            jobs: Arc::clone(&jobs),
            requests: Arc::clone(requests),
            events: events.clone(),
            retries: settings.retries,
            start,
            stop: Arc::clone(stop),
            sends: Arc::clone(&sends),
        };
        connections.spawn(worker.run());
    }
    let mut outcome = Ok(());
    while let Some(connection) = connections.join_next().await {
        let outcome_of_one = connection.context("a connection's task").and_then(|outcome| outcome);
        if outcome_of_one.is_err() && outcome.is_ok() {
            ended.store(true, Ordering::Relaxed);
            outcome = outcome_of_one;
        }
    }
    if let Some(dispatcher) = dispatcher {
        ended.store(true, Ordering::Relaxed);
        dispatcher.join().map_err(|_| anyhow!("the thread of arrivals panicked"))??;
    }
    outcome
}

struct Arrivals {
    schedule: Schedule,
    start: Instant,
    duration: Duration,
    /// Each of them ends the arrivals before their time.
    ends: [Arc<AtomicBool>; 2],
}

impl Arrivals {
    fn dispatch(&self, mut workload: Workload, jobs: &Sender<Job>, events: &Sender<Event>) -> Result<()> {
        for arrival in 0.. {
            let due = self.schedule.due(arrival);
            if due >= self.duration || self.ends.iter().any(|end| end.load(Ordering::Relaxed)) {
                break;
            }
            if let Some(early) = due.checked_sub(self.start.elapsed()) {
                thread::sleep(early);
            }
            let intended = micros(due);
            let Some(operation) = workload.next() else { break };
            match jobs.try_send(Job { operation, intended }) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    events.send_blocking(Event::Dropped(intended)).context("report a dropped arrival")?;
                }
                Err(TrySendError::Closed(_)) => break,
            }
        }
        Ok(())
    }
}

impl Jobs {
    async fn next(&self, start: Instant) -> Option<Job> {
        match self {
            Self::Queue(queue) => queue.recv().await.ok(),
            Self::Loop { workload, end } => {
                if Instant::now() >= *end {
                    return None;
                }
                let mut workload = workload.lock().unwrap_or_else(PoisonError::into_inner);
                Some(Job { operation: workload.next()?, intended: micros(start.elapsed()) })
            }
        }
    }
}

/// One connection and the task that uses it.
struct Worker {
    connection: Connection,
    jobs: Arc<Jobs>,
    requests: Arc<Requests>,
    events: Sender<Event>,
    retries: u8,
    start: Instant,
    stop: Arc<AtomicBool>,
    /// Sends so far: only what is really asked takes a number.
    sends: Arc<AtomicU64>,
}

impl Worker {
    async fn run(mut self) -> Result<()> {
        while let Some(Job { operation, intended }) = self.jobs.next(self.start).await {
            if self.stop.load(Ordering::Relaxed) {
                match *self.jobs {
                    // A service that hardly answers would have whoever stopped the load wait for the whole queue.
                    Jobs::Queue(_) => {
                        self.events.send(Event::Left).await.context("report an arrival that is left")?;
                        continue;
                    }
                    Jobs::Loop { .. } => break,
                }
            }
            let Operation { kind, from, to } = operation;
            let sequence = match kind {
                Kind::Send => self.sends.fetch_add(1, Ordering::Relaxed),
                Kind::List => self.sends.load(Ordering::Relaxed),
            };
            let started = micros(self.start.elapsed());
            let (code, attempts) = self.ask(operation, sequence).await?;
            let finished = micros(self.start.elapsed());
            let event = match kind {
                Kind::Send => {
                    Event::Send(Entry { sequence, from, to, intended, started, finished, code, attempts })
                }
                Kind::List => Event::List(Outcome { kind, intended, finished, code, attempts }),
            };
            self.events.send(event).await.context("report a request")?;
        }
        Ok(())
    }

    async fn ask(&mut self, operation: Operation, sequence: u64) -> Result<(Code, u8)> {
        let (mut attempts, mut pause) = (0_u8, RETRY_PAUSE);
        loop {
            let request = self.requests.request(operation, sequence)?;
            let code = self.connection.ask(request).await;
            attempts = attempts.saturating_add(1);
            if !code.may_pass() || attempts > self.retries {
                return Ok((code, attempts));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_LIMIT);
        }
    }
}

impl From<Entry> for Outcome {
    fn from(entry: Entry) -> Self {
        let Entry { intended, finished, code, attempts, .. } = entry;
        Self { kind: Kind::Send, intended, finished, code, attempts }
    }
}

/// Whole microseconds.
#[must_use]
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use super::*;
    use crate::{population::Population, workload::Skew};

    /// One connection to a service that takes requests and does not answer: the first arrival is asked, as many as there is
    /// room for wait, and all others find no room until the load is stopped.
    #[tokio::test]
    async fn who_finds_the_queue_full_is_told_from_who_waits_when_the_load_is_stopped() {
        const ROOM: usize = 3;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let targets = [format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()];
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
        let population = Population::new(10, 10, 1).unwrap();
        let requests = Arc::new(Requests::new(population, &key, Uuid::from_u128(5), 100, true).unwrap());
        let workload = Workload::new(population, Skew::Uniform, 0.0, 1).unwrap();
        let settings = Settings {
            pace: Pace::Open { schedule: Schedule::new(1_000.0).unwrap(), queue: ROOM },
            duration: Duration::from_hours(1),
            connections: 1,
            timeout: Duration::from_mins(1),
            retries: 0,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, events) = async_channel::unbounded();
        let load = drive(settings, &targets, &requests, workload, Instant::now(), sender, &stop);
        let end = async {
            let (service, _) = listener.accept().await.unwrap();
            // One that was dropped before the connection took its first is no sign that the queue is full now.
            while events.try_recv().is_ok() {}
            let full = events.recv().await.unwrap();
            assert!(matches!(full, Event::Dropped(_)), "{full:?}");
            stop.store(true, Ordering::Relaxed);
            drop(service);
        };
        let (driven, ()) = tokio::join!(load, end);
        driven.unwrap();
        let mut rest = Vec::new();
        while let Ok(event) = events.recv().await {
            rest.push(event);
        }
        let count = |of: fn(&Event) -> bool| rest.iter().filter(|event| of(event)).count();
        // One more may have been due just then.
        let left = count(|event| matches!(event, Event::Left));
        assert!((ROOM..=ROOM + 1).contains(&left), "{rest:?}");
        assert_eq!(count(|event| matches!(event, Event::Send(_))), 1, "{rest:?}");
    }
}
