//! The database: how connections are made ([`connect`]), which statements there are ([`statements`]),
//! and how they are run ([`Database`]) on a few connections shared by all requests ([`lane`]).
//!
//! Only ordinary single statements run here, each its own transaction and each harmless when run twice.
//! That is what allows sharing connections and retrying.

pub mod connect;
pub mod error;
mod lane;
pub mod statements;
pub mod tables;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_postgres::{Row, types::ToSql};
use tokio_util::sync::CancellationToken;

use self::{
    connect::Connector,
    error::{DatabaseError, Verdict},
    lane::{Lane, Session},
    statements::Sql,
};
use crate::metrics::Metrics;

/// First pause before a statement is tried again; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause before a statement is tried again.
const RETRY_PAUSE_LIMIT: Duration = Duration::from_millis(250);

/// Parameters of a statement.
pub type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Runs prepared statements on a few shared, pipelined connections.
pub struct Database {
    connector: Connector,
    lanes: Vec<Lane>,
    next: AtomicUsize,
    availability: watch::Sender<Availability>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

/// Whether there is any connection.
#[derive(Clone, Copy, Debug)]
struct Availability {
    /// Connections that work.
    live: usize,
    /// When the last of them was lost; the start of the process counts as a loss.
    since: Instant,
}

impl Database {
    /// Describes the database without connecting; [`Database::open`] does that. `connections` is at least 1,
    /// `timeout` bounds each statement with all its retries.
    #[must_use]
    pub fn new(connector: Connector, connections: u16, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            connector,
            lanes: (0..connections.max(1)).map(|_| Lane::default()).collect(),
            next: AtomicUsize::new(0),
            availability: watch::Sender::new(Availability { live: 0, since: Instant::now() }),
            timeout,
            metrics,
        }
    }

    /// How connections to this database are made.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Starts to connect, and keeps connecting again whenever a connection is lost, until `stop`.
    /// The tables must exist: every connection prepares the service's statements.
    pub fn open(self: &Arc<Self>, stop: &CancellationToken) {
        for index in 0..self.lanes.len() {
            let (database, stop) = (Arc::clone(self), stop.clone());
            tokio::spawn(async move {
                stop.run_until_cancelled(database.lanes[index].keep_connected(&database)).await;
            });
        }
    }

    /// Whether at least one connection works.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.availability.borrow().live > 0
    }

    /// Connections that work now.
    #[must_use]
    pub fn live_connections(&self) -> usize {
        self.availability.borrow().live
    }

    /// Runs a statement and returns its rows.
    ///
    /// It may be run more than once: whatever a lost connection, a failover or a moved shard leaves undecided
    /// is tried again until it is decided or the time is over.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] when the time is over, [`DatabaseError::Refused`] when the database
    /// understood the statement and refused it.
    pub async fn query(&self, sql: Sql, parameters: Parameters<'_>) -> Result<Vec<Row>, DatabaseError> {
        let started = Instant::now();
        let outcome = self.query_until(sql, parameters, started + self.timeout).await;
        self.metrics.statement(sql, outcome.is_ok(), started.elapsed());
        outcome
    }

    async fn query_until(
        &self,
        sql: Sql,
        parameters: Parameters<'_>,
        deadline: Instant,
    ) -> Result<Vec<Row>, DatabaseError> {
        let mut pause = RETRY_PAUSE;
        loop {
            let session = self.session(deadline).await?;
            // Half of the time for one attempt leaves the other half for a connection that answers.
            let attempt_deadline = deadline.min(Instant::now() + self.timeout / 2);
            let statement = session.statement(sql);
            let failure =
                match timeout_at(attempt_deadline, session.client.query(statement, parameters)).await {
                    Ok(Ok(rows)) => return Ok(rows),
                    Ok(Err(error)) => {
                        match error::verdict(&error) {
                            Verdict::Refused => return Err(DatabaseError::Refused(error)),
                            Verdict::TryAgain => {}
                            Verdict::TryElsewhere => session.abandon(),
                        }
                        error.to_string()
                    }
                    Err(_elapsed) => {
                        session.abandon();
                        "no answer in time".to_owned()
                    }
                };
            self.metrics.statement_retries.get_or_create(&sql.into()).inc();
            tracing::debug!(statement = sql.name(), failure, "statement will be tried again");
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            if Instant::now() + jittered >= deadline {
                return Err(DatabaseError::Unavailable(failure));
            }
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(RETRY_PAUSE_LIMIT);
        }
    }

    /// The next working connection in turn. Waits for one if the database was lost only a moment ago: a
    /// failover takes seconds and clients need not notice. If it has been away for longer than a statement
    /// may take, says so at once instead of gathering requests that wait.
    async fn session(&self, deadline: Instant) -> Result<Arc<Session>, DatabaseError> {
        let mut changes = self.availability.subscribe();
        loop {
            let availability = *changes.borrow_and_update();
            if availability.live > 0 {
                let first = self.next.fetch_add(1, Ordering::Relaxed);
                let count = self.lanes.len();
                let live =
                    (0..count).find_map(|step| self.lanes[(first.wrapping_add(step)) % count].session());
                if let Some(session) = live {
                    return Ok(session);
                }
            } else if availability.since.elapsed() > self.timeout {
                return Err(DatabaseError::Unavailable("no connection to the database".into()));
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(DatabaseError::Unavailable("no connection to the database in time".into()));
            }
        }
    }

    fn gained(&self) {
        self.availability.send_modify(|availability| availability.live += 1);
    }

    fn lost(&self) {
        self.availability.send_modify(|availability| {
            availability.live = availability.live.saturating_sub(1);
            availability.since = Instant::now();
        });
    }
}
