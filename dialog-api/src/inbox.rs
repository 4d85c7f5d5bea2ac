//! Each user's inbox: the dialogs, the one with the newest message first.
//!
//! A message is written to its dialog's shard and nowhere else, so sending costs one statement on one node. The two
//! inboxes, which live on other shards, follow: a replica remembers which dialogs it has written to and brings their
//! inboxes up to date in the background, many messages of one dialog by one update and, under load, many dialogs
//! together. What a replica that dies had remembered is found by the sweep ([`crate::jobs`]), since each dialog notes how
//! far its inboxes have followed.
//! Updates only ever go forward, so their order does not matter.

mod together;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::try_join, stream};
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::together::Together;
use crate::{
    database::{Database, error::DatabaseError, statements::Sql},
    dialogs::pair::Pair,
    metrics::Metrics,
};

/// Dialogs remembered at a time, about 100 bytes each. More are left to the sweep.
const REMEMBERED_DIALOGS: usize = 100_000;
/// How long messages of a dialog are gathered for one update of its inboxes.
const GATHERING: Duration = Duration::from_millis(50);
/// Pause after the database failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Dialogs brought up to date at a time, each by itself.
const CONCURRENCY: usize = 16;
/// From so many dialogs on they are brought up to date together; fewer are done sooner each by itself.
const TOGETHER: usize = 32;
/// Most dialogs brought up to date together: what is locked meanwhile is not locked for long.
const TOGETHER_LIMIT: usize = 1_000;
/// After a failure dialogs are for so long brought up to date each by itself: a server that is away costs its own only.
const ALONE: Duration = Duration::from_secs(10);

/// A dialog in somebody's inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The other.
    pub peer: Uuid,
    /// The newest message, as far as the inbox has followed.
    pub last_message: Uuid,
}

/// A dialog whose inboxes have not followed yet.
#[derive(Clone, Copy, Debug)]
struct Behind {
    dialog: Uuid,
    pair: Pair,
    /// Its newest message.
    message: Uuid,
}

/// The way to bring many dialogs up to date together.
#[derive(Default)]
struct Shared {
    connection: Option<Together>,
    /// Not before this moment.
    not_before: Option<Instant>,
}

/// All inboxes.
pub struct Inbox {
    database: Arc<Database>,
    metrics: Arc<Metrics>,
    behind: Mutex<HashMap<Uuid, (Pair, Uuid)>>,
    work: Notify,
    shared: AsyncMutex<Shared>,
}

impl Inbox {
    /// Inboxes in this database.
    #[must_use]
    pub fn new(database: Arc<Database>, metrics: Arc<Metrics>) -> Self {
        Self {
            database,
            metrics,
            behind: Mutex::default(),
            work: Notify::new(),
            shared: AsyncMutex::default(),
        }
    }

    /// A user's dialogs whose newest message is older than this one, newest first.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn list(&self, user: Uuid, before: Uuid, limit: u16) -> Result<Vec<Entry>, DatabaseError> {
        let rows = self.database.query(Sql::ListUserDialogs, &[&user, &before, &i64::from(limit)]).await?;
        Ok(rows.iter().map(|row| Entry { peer: row.get(1), last_message: row.get(2) }).collect())
    }

    /// A user's dialogs behind this one, each with the other user, in an order in which none moves.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn all(&self, user: Uuid, after: Uuid, limit: u16) -> Result<Vec<(Uuid, Uuid)>, DatabaseError> {
        let rows = self.database.query(Sql::ListPeers, &[&user, &after, &i64::from(limit)]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// A message was written: both inboxes have to follow.
    pub fn follow(&self, dialog: Uuid, pair: Pair, message: Uuid) {
        let mut behind = self.lock();
        if behind.len() >= REMEMBERED_DIALOGS && !behind.contains_key(&dialog) {
            self.metrics.inbox_left_to_sweep.inc();
            return;
        }
        let (_, newest) = behind.entry(dialog).or_insert((pair, message));
        *newest = message.max(*newest);
        drop(behind);
        self.work.notify_one();
    }

    /// Brings inboxes up to date as messages are written, until told to stop.
    pub async fn keep_up(&self, stop: &CancellationToken) {
        let follow = async {
            loop {
                self.work.notified().await;
                tokio::time::sleep(GATHERING).await;
                if !self.catch_up().await {
                    tokio::time::sleep(FAILURE_PAUSE).await;
                    self.work.notify_one();
                }
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    /// Brings up to date what is remembered now. Returns whether all was done; the rest is remembered again.
    pub async fn catch_up(&self) -> bool {
        let behind: Vec<Behind> = std::mem::take(&mut *self.lock())
            .into_iter()
            .map(|(dialog, (pair, message))| Behind { dialog, pair, message })
            .collect();
        let mut left = Vec::new();
        for some in behind.chunks(TOGETHER_LIMIT) {
            if some.len() < TOGETHER || !self.update_together(some).await {
                left.extend_from_slice(some);
            }
        }
        let failures = stream::iter(left)
            .map(async |Behind { dialog, pair, message }| {
                let outcome = self.update(dialog, pair, message).await;
                (dialog, pair, message, outcome)
            })
            .buffer_unordered(CONCURRENCY)
            .filter_map(async |(dialog, pair, message, outcome)| {
                outcome.err().map(|error| (dialog, pair, message, error))
            });
        let failures: Vec<_> = failures.collect().await;
        for (dialog, pair, message, error) in &failures {
            tracing::debug!(%dialog, %error, "the inboxes of a dialog are not up to date yet");
            self.follow(*dialog, *pair, *message);
        }
        failures.is_empty()
    }

    /// Brings these up to date by a few statements. Returns whether that succeeded.
    async fn update_together(&self, behind: &[Behind]) -> bool {
        let mut shared = self.shared.lock().await;
        if shared.not_before.is_some_and(|moment| Instant::now() < moment) {
            return false;
        }
        // Away while it is used: one that failed, or was dropped in the middle, is not used again.
        let connection = shared.connection.take();
        let updated = async {
            let connection = match connection {
                Some(connection) => connection,
                None => Together::connect(self.database.connector()).await?,
            };
            connection.update(behind).await.map(|()| connection)
        };
        match updated.await {
            Ok(connection) => {
                shared.connection = Some(connection);
                self.metrics.inboxes_together.inc_by(behind.len() as u64);
                true
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::debug!(error, dialogs = behind.len(), "inboxes are not brought up to date together");
                shared.not_before = Some(Instant::now() + ALONE);
                false
            }
        }
    }

    /// Tells both inboxes of a message. The dialog notes it last, so that a crash in between is noticed.
    pub(crate) async fn update(&self, dialog: Uuid, pair: Pair, message: Uuid) -> Result<(), DatabaseError> {
        let Pair { low, high } = pair;
        try_join(self.merge(low, dialog, high, message), async {
            if low == high { Ok(()) } else { self.merge(high, dialog, low, message).await }
        })
        .await?;
        self.database.query(Sql::MarkInboxes, &[&dialog, &message]).await?;
        Ok(())
    }

    async fn merge(&self, user: Uuid, dialog: Uuid, peer: Uuid, message: Uuid) -> Result<(), DatabaseError> {
        self.database.query(Sql::MergeUserDialog, &[&user, &dialog, &peer, &message]).await?;
        Ok(())
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, (Pair, Uuid)>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
