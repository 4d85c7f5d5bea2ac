//! Messages as dialog-api stores them: by its own statement and its own sessions, each straight to the worker that owns its
//! shard and many under way at a time. What was acknowledged, and when, is in a ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dialog_api::clock::Clock;
use dialog_api::config::WaitingLimits;
use dialog_api::database::Database;
use dialog_api::database::connect::Connector;
use dialog_api::database::routing::hash::hash_uuid;
use dialog_api::database::statements::Sql;
use dialog_api::dialogs::pair::Pair;
use dialog_api::metrics::Metrics;
use dialog_bench::audit::{Audit, audit};
use dialog_bench::database::Database as Audited;
use dialog_bench::drive::micros;
use dialog_bench::ledger::{Code, Entry, Head, mark};
use dialog_bench::load::{LoadPlan, load as fill};
use dialog_bench::population::Population;
use dialog_bench::schedule::Schedule;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::world::{World, eventually};

/// No dialog has this number.
const NONE: u64 = u64::MAX;
/// Length of a text, in characters.
const TEXT: usize = 100;
/// Statements that wait at a time for servers that are away: none are.
const WAITING: WaitingLimits = WaitingLimits { all: 1024, one_server: 1024, readers: 1024 };

/// How much is sent to whom.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Dialogs, which take turns.
    pub dialogs: u64,
    /// Messages that are in each of them before.
    pub messages: u64,
    /// Messages a second, whatever becomes of them.
    pub rate: f64,
    /// Of so many one is of the dialog that is hot, and missing if none is.
    pub one_in: u64,
}

/// Messages on their way.
pub struct Sends {
    sender: Arc<Sender>,
    stop: CancellationToken,
    entries: JoinHandle<Vec<Entry>>,
    audited: Audited,
    /// Its certificate.
    _folder: TempDir,
    /// Ends the sessions.
    _sessions: DropGuard,
}

impl Sends {
    /// Begins to send; no dialog is hot yet.
    pub async fn start(world: &World, load: Load) -> Result<Self> {
        let Load { dialogs, messages, rate, one_in } = load;
        let population = Population::new(dialogs, dialogs, 1)?;
        let folder = tempfile::tempdir().context("temporary directory")?;
        let audited = Audited::from_arguments(&world.database(folder.path())?)?.context("no host")?;
        if messages > 0 {
            let newest = Timestamp::now();
            fill(&audited, &LoadPlan { population, messages, text: TEXT, newest, progress: false }).await?;
        }
        let config = audited.config();
        let metrics = Metrics::new(config.connections);
        let database = Arc::new(Database::new(Connector::new(config)?, config, WAITING, metrics));
        let sessions = CancellationToken::new();
        database.open(&sessions);
        // Before it knows where the shards are, everything goes through the coordinator.
        let all = usize::from(config.connections) * world.existing().len();
        eventually("sessions on all servers", async || Ok(database.live_connections() == all)).await?;

        let pairs = (0..dialogs).map(|dialog| Correspondents::new(population, dialog)).collect();
        let (start, started_at) = (Instant::now(), Timestamp::now());
        let sender = Arc::new(Sender {
            database,
            clock: Clock::new(started_at),
            pairs,
            head: Head::new(Uuid::now_v7(), started_at, population),
            hot: AtomicU64::new(NONE),
            one_in,
            start,
        });
        let stop = CancellationToken::new();
        let schedule = Schedule::new(rate).map_err(anyhow::Error::msg)?;
        let entries = tokio::spawn(Arc::clone(&sender).send_all(schedule, stop.clone()));
        let sessions = sessions.drop_guard();
        Ok(Self { sender, stop, entries, audited, _folder: folder, _sessions: sessions })
    }

    /// Makes a dialog the one that is hot, by its number; its hash.
    pub fn heat(&self, dialog: u64) -> Result<i32> {
        let hash = self.pair(dialog)?.hash;
        self.sender.hot.store(dialog, Ordering::Relaxed);
        Ok(hash)
    }

    /// No dialog is hot any more.
    pub fn cool(&self) {
        self.sender.hot.store(NONE, Ordering::Relaxed);
    }

    /// The id of a dialog, by its number.
    pub fn dialog(&self, number: u64) -> Result<Uuid> {
        Ok(self.pair(number)?.dialog)
    }

    fn pair(&self, dialog: u64) -> Result<&Correspondents> {
        self.sender.pairs.get(usize::try_from(dialog)?).context("no such dialog")
    }

    /// Microseconds since the first message was due, as they are in the ledger.
    pub fn now(&self) -> u64 {
        micros(self.sender.start.elapsed())
    }

    /// Ends it, and compares what was acknowledged with what every shard holds.
    pub async fn end(self) -> Result<Ledger> {
        self.stop.cancel();
        let mut entries = self.entries.await?;
        entries.sort_unstable_by_key(|entry| entry.sequence);
        let (audit, _) = audit(&self.audited, &self.sender.head, &entries).await?;
        let hashes = self.sender.pairs.iter().map(|pair| ((pair.from, pair.to), pair.hash)).collect();
        Ok(Ledger { entries, audit, hashes })
    }
}

/// What became of all messages.
pub struct Ledger {
    /// In the order in which they were due.
    entries: Vec<Entry>,
    pub audit: Audit,
    /// The hash of the dialog of two.
    hashes: HashMap<(u64, u64), i32>,
}

impl Ledger {
    /// What was under way between two moments, in microseconds.
    pub fn between(&self, began: u64, ended: u64) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.finished >= began && entry.intended <= ended)
    }

    /// How many were not acknowledged.
    pub fn failed(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.code.is_success()).count()
    }

    /// The hash of the dialog that a message was for.
    pub fn hash(&self, entry: &Entry) -> i32 {
        self.hashes[&(entry.from, entry.to)]
    }
}

/// Two of the population, and their dialog.
struct Correspondents {
    /// Their numbers.
    from: u64,
    to: u64,
    sender: Uuid,
    recipient: Uuid,
    dialog: Uuid,
    hash: i32,
}

impl Correspondents {
    fn new(population: Population, dialog: u64) -> Self {
        let (from, to) = population.members(dialog);
        let (sender, recipient) = (population.user(from), population.user(to));
        let dialog = Pair::new(sender, recipient).dialog_id();
        Self { from, to, sender, recipient, dialog, hash: hash_uuid(dialog) }
    }
}

struct Sender {
    database: Arc<Database>,
    clock: Clock,
    /// By the numbers of their dialogs.
    pairs: Vec<Correspondents>,
    head: Head,
    /// The number of the dialog that is hot.
    hot: AtomicU64,
    one_in: u64,
    start: Instant,
}

impl Sender {
    /// Sends each when it is due until `stop`, and waits for all answers.
    async fn send_all(self: Arc<Self>, schedule: Schedule, stop: CancellationToken) -> Vec<Entry> {
        let (ended, mut entries) = mpsc::unbounded_channel();
        let (mut sequence, mut turn) = (0, 0);
        for arrival in 0.. {
            let due = schedule.due(arrival);
            if let Some(early) = due.checked_sub(self.start.elapsed()).filter(|early| !early.is_zero()) {
                tokio::time::sleep(early).await;
            } else {
                tokio::task::yield_now().await;
            }
            if stop.is_cancelled() {
                break;
            }
            let dialog = if arrival % self.one_in == 0 {
                self.hot.load(Ordering::Relaxed)
            } else {
                turn += 1;
                turn % self.pairs.len() as u64
            };
            if dialog == NONE {
                continue;
            }
            let (sender, ended) = (Arc::clone(&self), ended.clone());
            tokio::spawn(async move { ended.send(sender.send(sequence, dialog, due).await) });
            sequence += 1;
        }
        drop(ended);
        let mut all = Vec::new();
        while let Some(entry) = entries.recv().await {
            all.push(entry);
        }
        all
    }

    async fn send(&self, sequence: u64, dialog: u64, due: Duration) -> Entry {
        let place = usize::try_from(dialog).unwrap();
        let Correspondents { from, to, sender, recipient, dialog, .. } = &self.pairs[place];
        // Before its id, which has to be greater than that of any message that was acknowledged by then.
        let started = micros(self.start.elapsed());
        let (message, created) = self.clock.next_id();
        let text = format!("{:x<TEXT$}", mark(self.head.run, sequence));
        let stored = self
            .database
            .query(Sql::InsertMessage, &[dialog, &message, sender, recipient, &text, &created])
            .await;
        let finished = micros(self.start.elapsed());
        let code = match stored {
            Ok(_) => Code::Status(200),
            Err(error) => {
                println!("message {sequence} was not acknowledged: {error}");
                Code::Status(503)
            }
        };
        let intended = micros(due);
        Entry { sequence, from: *from, to: *to, intended, started, finished, code, attempts: 1 }
    }
}
