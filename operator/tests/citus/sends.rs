//! Messages as dialog-api stores them: by its own statement and its own sessions, each straight to the worker that owns its
//! shard and many under way at a time. What was acknowledged, and when, is in a ledger.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dialog_api::clock::Clock;
use dialog_api::config::WaitingLimits;
use dialog_api::database::connect::Connector;
use dialog_api::database::routing::hash::hash_uuid;
use dialog_api::database::statements::Sql;
use dialog_api::database::{Database, Parameters};
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

/// dialog-api's own sessions on all servers, and who looks into the shards afterwards.
pub struct Service {
    pub database: Arc<Database>,
    pub metrics: Arc<Metrics>,
    audited: Audited,
    /// Its certificate.
    _folder: TempDir,
    /// Ends the sessions.
    _sessions: DropGuard,
}

impl Service {
    /// Connects.
    pub async fn start(world: &World) -> Result<Self> {
        let folder = tempfile::tempdir().context("temporary directory")?;
        let audited = Audited::from_arguments(&world.database(folder.path())?)?.context("no host")?;
        let config = audited.config();
        let metrics = Metrics::new(config.connections);
        let connector = Connector::new(config)?;
        let database = Arc::new(Database::new(connector, config, WAITING, Arc::clone(&metrics)));
        let sessions = CancellationToken::new();
        database.open(&sessions);
        // Before it knows where the shards are, everything goes through the coordinator.
        let all = usize::from(config.connections) * world.existing().len();
        eventually("sessions on all servers", async || Ok(database.live_connections() == all)).await?;
        let sessions = sessions.drop_guard();
        Ok(Self { database, metrics, audited, _folder: folder, _sessions: sessions })
    }
}

/// Who stores messages that are told from all others by their texts.
pub struct Writer {
    pub service: Service,
    pub clock: Clock,
    head: Head,
    start: Instant,
}

impl Writer {
    /// For messages among this population.
    pub fn new(service: Service, population: Population) -> Self {
        let (start, started_at) = (Instant::now(), Timestamp::now());
        let head = Head::new(Uuid::now_v7(), started_at, population);
        Self { service, clock: Clock::new(started_at), head, start }
    }

    /// How long ago the first message was due.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Stores a message, the one of this number, that was due then. What became of it, and its id.
    pub async fn write(&self, sequence: u64, of: &Correspondents, due: Duration) -> (Entry, Uuid) {
        let Correspondents { from, to, sender, recipient, dialog, .. } = of;
        // Before its id, which has to be greater than that of any message that was acknowledged by then.
        let started = micros(self.elapsed());
        let (message, created) = self.clock.next_id();
        let text = format!("{:x<TEXT$}", mark(self.head.run, sequence));
        let values: Parameters<'_> = &[dialog, &message, sender, recipient, &text, &created];
        let stored = self.service.database.query(Sql::InsertMessage, values).await;
        let finished = micros(self.elapsed());
        let code = match stored {
            Ok(_) => Code::Status(200),
            Err(error) => {
                println!("message {sequence} was not acknowledged: {error}");
                Code::Status(503)
            }
        };
        let intended = micros(due);
        (Entry { sequence, from: *from, to: *to, intended, started, finished, code, attempts: 1 }, message)
    }

    /// Compares what was acknowledged, in the order of the numbers, with what every shard holds.
    pub async fn audit(&self, entries: &[Entry]) -> Result<Audit> {
        Ok(audit(&self.service.audited, &self.head, entries).await?.0)
    }
}

/// Messages on their way.
pub struct Sends {
    sender: Arc<Sender>,
    stop: CancellationToken,
    entries: JoinHandle<Vec<Entry>>,
}

impl Sends {
    /// Begins to send; no dialog is hot yet.
    pub async fn start(world: &World, load: Load) -> Result<Self> {
        let Load { dialogs, messages, rate, one_in } = load;
        let population = Population::new(dialogs, dialogs, 1)?;
        let service = Service::start(world).await?;
        if messages > 0 {
            let newest = Timestamp::now();
            let plan = LoadPlan { population, messages, text: TEXT, newest, progress: false };
            fill(&service.audited, &plan).await?;
        }
        let of = |dialog| {
            let (from, to) = population.members(dialog);
            Correspondents::new(population, from, to)
        };
        let writer = Writer::new(service, population);
        let sender = Arc::new(Sender {
            writer,
            pairs: (0..dialogs).map(of).collect(),
            hot: AtomicU64::new(NONE),
            one_in,
        });
        let stop = CancellationToken::new();
        let schedule = Schedule::new(rate).map_err(anyhow::Error::msg)?;
        let entries = tokio::spawn(Arc::clone(&sender).send_all(schedule, stop.clone()));
        Ok(Self { sender, stop, entries })
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
        micros(self.sender.writer.elapsed())
    }

    /// Ends it, and compares what was acknowledged with what every shard holds.
    pub async fn end(self) -> Result<Ledger> {
        self.stop.cancel();
        let mut entries = self.entries.await?;
        entries.sort_unstable_by_key(|entry| entry.sequence);
        let audit = self.sender.writer.audit(&entries).await?;
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
pub struct Correspondents {
    /// Their numbers.
    from: u64,
    to: u64,
    pub sender: Uuid,
    pub recipient: Uuid,
    pub dialog: Uuid,
    hash: i32,
}

impl Correspondents {
    pub fn new(population: Population, from: u64, to: u64) -> Self {
        let (sender, recipient) = (population.user(from), population.user(to));
        let dialog = Pair::new(sender, recipient).dialog_id();
        Self { from, to, sender, recipient, dialog, hash: hash_uuid(dialog) }
    }
}

struct Sender {
    writer: Writer,
    /// By the numbers of their dialogs.
    pairs: Vec<Correspondents>,
    /// The number of the dialog that is hot.
    hot: AtomicU64,
    one_in: u64,
}

impl Sender {
    /// Sends each when it is due until `stop`, and waits for all answers.
    async fn send_all(self: Arc<Self>, schedule: Schedule, stop: CancellationToken) -> Vec<Entry> {
        let (ended, mut entries) = mpsc::unbounded_channel();
        let (mut sequence, mut turn) = (0, 0);
        for arrival in 0.. {
            let due = schedule.due(arrival);
            if let Some(early) = due.checked_sub(self.writer.elapsed()).filter(|early| !early.is_zero()) {
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
        self.writer.write(sequence, &self.pairs[usize::try_from(dialog).unwrap()], due).await.0
    }
}
