//! One established connection with all statements prepared.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::Result;
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::{
    connect::{Connector, Purpose},
    statements::Sql,
    wire::{Client, Company, Traffic, error::StatementError, rows::Rows},
};

/// A server that needs longer for an answer gets no reads that share a transaction. Eight of them are answered together: of
/// slow ones nothing would be heard for so long that the server would be taken for one that has gone.
const PROMPT: Duration = Duration::from_millis(100);

/// An established connection, shared by many statements at a time.
pub(super) struct Session {
    client: Client,
    under_way: AtomicUsize,
    /// How many of them share their transactions with nobody.
    alone: AtomicUsize,
    made: Instant,
    /// When the server last answered, in microseconds after the connection was made.
    heard: AtomicU64,
    /// Whether the last answer came within [`PROMPT`]. Not before the first one: a server that has just started reads
    /// everything from its disk.
    prompt: AtomicBool,
    /// Whether any statement has succeeded.
    served: AtomicBool,
    /// Set when nobody trusts the connection any more; whoever drives its traffic closes it.
    pub(super) abandoned: CancellationToken,
}

impl Session {
    /// Connects and prepares all statements in one round trip; the server ends any of them after `limit`. The
    /// returned traffic has to be driven for the session to work.
    pub(super) async fn establish(connector: &Connector, limit: Duration) -> Result<(Self, Traffic)> {
        let statements = Sql::ALL.map(Sql::text);
        let (client, traffic) = connector.connect_prepared(Purpose::Requests(limit), &statements).await?;
        let session = Self {
            client,
            under_way: AtomicUsize::new(0),
            alone: AtomicUsize::new(0),
            made: Instant::now(),
            heard: AtomicU64::new(0),
            prompt: AtomicBool::new(false),
            served: AtomicBool::new(false),
            abandoned: CancellationToken::new(),
        };
        Ok((session, traffic))
    }

    /// Runs a statement with these values, each with its length before it.
    pub(super) async fn query(&self, sql: Sql, values: &[u8]) -> Result<Rows, StatementError> {
        let company = if self.gathers() { sql.company() } else { Company::Alone };
        let _counted = Counted::new(&self.under_way);
        let _alone = (company == Company::Alone).then(|| Counted::new(&self.alone));
        let asked = self.made.elapsed();
        let answer = self.client.execute(sql as usize, values, company).await;
        // Read first, here and below: what all statements write is no processor's for long.
        if matches!(answer, Ok(_) | Err(StatementError::Server(_))) {
            let answered = self.made.elapsed();
            let heard = u64::try_from(answered.as_micros()).unwrap_or(u64::MAX);
            self.heard.fetch_max(heard, Ordering::Relaxed);
            let prompt = answered.saturating_sub(asked) < PROMPT;
            if self.prompt.load(Ordering::Relaxed) != prompt {
                self.prompt.store(prompt, Ordering::Relaxed);
            }
        }
        if answer.is_ok() && !self.served.load(Ordering::Relaxed) {
            self.served.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Whether a read had better come here than to an idle connection: it travels with others, which costs less than to
    /// wake one more session of the server. With more than one transaction of them the server would be busy without a
    /// pause, and another session could be of help.
    pub(super) fn takes_along(&self) -> bool {
        self.gathers() && self.under_way() < Client::TOGETHER
    }

    /// Whether reads share transactions: of a server that is prompt, and not behind a write, which waits for the log, or a
    /// read that does not share.
    fn gathers(&self) -> bool {
        self.prompt.load(Ordering::Relaxed) && self.alone.load(Ordering::Relaxed) == 0
    }

    /// Whether the server has said anything on this connection since then.
    pub(super) fn heard_since(&self, moment: Instant) -> bool {
        self.made + Duration::from_micros(self.heard.load(Ordering::Relaxed)) >= moment
    }

    /// Whether the connection was of use: a statement has succeeded on it, or it has lasted for this time.
    pub(super) fn has_served(&self, long: Duration) -> bool {
        self.served.load(Ordering::Relaxed) || self.made.elapsed() >= long
    }

    /// Statements that were sent and not answered yet.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Types of the statement's parameters, as the server has them.
    pub(super) fn parameter_types(&self, sql: Sql) -> &[Type] {
        self.client.parameter_types(sql as usize).unwrap_or_default()
    }
}

/// One statement under way; gone as well when nobody waits for its answer any more.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
