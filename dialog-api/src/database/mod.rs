//! The database: how connections are made ([`connect`]), which statements there are ([`statements`]), which
//! server a statement goes to ([`routing`]), and how it is run ([`Database`]) on a few connections shared by all
//! requests.
//!
//! Only ordinary single statements run here, each its own transaction and each harmless when run twice.
//! That is what allows sharing connections and retrying.

pub mod connect;
mod contact;
pub mod error;
mod flights;
mod node;
mod queue;
pub mod routing;
mod session;
pub mod statements;
pub mod tables;

use std::{ops::Deref, pin::pin, sync::Arc, time::Duration};

use bytes::{BufMut as _, BytesMut};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    connect::Connector,
    error::{DatabaseError, Verdict},
    flights::{Answer, Flights},
    node::{NoSession, Node, Passage, Settings},
    routing::Routing,
    statements::{Scope, Sql},
};
use crate::{
    config::{DatabaseConfig, RoutingChoice},
    metrics::{Metrics, Route},
};

/// First pause before a statement is tried again; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause before a statement is tried again.
const RETRY_PAUSE_LIMIT: Duration = Duration::from_millis(250);

/// Parameters of a statement.
pub type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Rows of an answer, perhaps shared with others who asked the same.
#[derive(Clone, Debug)]
pub struct Rows(Arc<Vec<Row>>);

impl Deref for Rows {
    type Target = [Row];

    fn deref(&self) -> &[Row] {
        &self.0
    }
}

/// Runs prepared statements on a few shared, pipelined connections to each server.
pub struct Database {
    coordinator: Arc<Node>,
    routing: Arc<Routing>,
    flights: Arc<Flights<Question, Result<Rows, DatabaseError>>>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

/// A read and the values of its parameters as they are sent.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    sql: Sql,
    values: Arc<[u8]>,
}

/// Room for the values of most reads: two ids and a number, each with its length.
const VALUES: usize = 64;
/// Length of a uuid, as it goes before its value.
const UUID_LENGTH: [u8; 4] = 16_u32.to_be_bytes();

impl Database {
    /// Describes the database without connecting; [`Database::open`] does that. No more than `waiting_limit` statements
    /// wait at a time for servers that are away.
    #[must_use]
    pub fn new(
        connector: Connector,
        config: &DatabaseConfig,
        waiting_limit: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let DatabaseConfig { connections, timeout, .. } = *config;
        let places = Arc::new(Semaphore::new(waiting_limit));
        // Somewhat less than an attempt has: a server that lives says that the time is over before it is given up.
        let settings = Settings { connections, statement_limit: timeout * 2 / 5, grace: timeout };
        let coordinator = Arc::new(Node::new(connector, settings, &places, &metrics));
        let worker_settings = Settings { grace: config.grace(), ..settings };
        let enabled = config.routing == RoutingChoice::Auto;
        let routing = Arc::new(Routing::new(&coordinator, worker_settings, places, enabled, &metrics));
        Self { coordinator, routing, flights: Arc::default(), timeout, metrics }
    }

    /// How connections to this database are made.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        self.coordinator.connector()
    }

    /// Starts to connect, and keeps connecting again whenever a connection is lost, until `stop`.
    /// The tables must exist: every connection prepares the service's statements.
    pub fn open(&self, stop: &CancellationToken) {
        self.coordinator.open(stop);
        let (routing, stop) = (Arc::clone(&self.routing), stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(routing.keep_up_to_date(&stop)).await });
    }

    /// Whether requests can be handled: at least one server is connected, or was lost so short a time ago that
    /// statements wait for it. (A switchover of the only server must not have load balancers turn away: what they
    /// would answer meanwhile is worse than the wait.)
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.routing.nodes().iter().any(|node| node.is_available())
    }

    /// Connections that work now, to all servers.
    #[must_use]
    pub fn live_connections(&self) -> usize {
        self.routing.nodes().iter().map(|node| node.live()).sum()
    }

    /// Longest time for a statement, all attempts and waits together.
    #[must_use]
    pub fn statement_limit(&self) -> Duration {
        self.timeout
    }

    /// Runs a statement and returns its rows.
    ///
    /// It may be run more than once: whatever a lost connection, a failover or a moved shard leaves undecided
    /// is tried again until it is decided or the time is over. A read may be answered by somebody else's of the
    /// same, provided that this was issued later than asked here.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] when the time is over or the server that owns the shard is away,
    /// [`DatabaseError::Refused`] when the database understood the statement and refused it.
    pub async fn query(&self, sql: Sql, parameters: Parameters<'_>) -> Result<Rows, DatabaseError> {
        let deadline = Instant::now() + self.timeout;
        let Some(question) = self.question(sql, parameters) else {
            return self.execute(sql, key(parameters), parameters, deadline).await;
        };
        let key = question.key();
        match self.flights.fly(question, deadline, || self.execute(sql, key, parameters, deadline)).await {
            Some(Answer::Own(answer)) => answer,
            Some(Answer::Shared(answer)) => {
                self.metrics.reads_shared.inc();
                answer
            }
            None => Err(DatabaseError::Unavailable("no answer to the same read in time".into())),
        }
    }

    /// What is asked, if it is a read and can be compared with others.
    fn question(&self, sql: Sql, parameters: Parameters<'_>) -> Option<Question> {
        if !sql.is_read() {
            return None;
        }
        let types = self.coordinator.parameter_types(sql)?;
        let mut values = BytesMut::with_capacity(VALUES);
        for (value, kind) in parameters.iter().zip(types) {
            // Its length goes first: no two lists of values look alike.
            let start = values.len();
            values.put_u32(0);
            let is_null = value.to_sql_checked(kind, &mut values).ok()?;
            let length = match is_null {
                tokio_postgres::types::IsNull::Yes => u32::MAX,
                tokio_postgres::types::IsNull::No => u32::try_from(values.len() - start - 4).ok()?,
            };
            values[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
        Some(Question { sql, values: values.as_ref().into() })
    }

    /// Runs a statement until it is decided.
    async fn execute(
        &self,
        sql: Sql,
        key: Option<Uuid>,
        parameters: Parameters<'_>,
        deadline: Instant,
    ) -> Result<Rows, DatabaseError> {
        let started = Instant::now();
        let outcome = self.execute_until(sql, key, parameters, deadline).await;
        self.metrics.statement(sql, outcome.is_ok(), started.elapsed());
        outcome
    }

    async fn execute_until(
        &self,
        sql: Sql,
        key: Option<Uuid>,
        parameters: Parameters<'_>,
        deadline: Instant,
    ) -> Result<Rows, DatabaseError> {
        let key = key.filter(|_| sql.scope() == Scope::OneShard);
        let mut owner_answered_with_an_error = false;
        let mut pause = RETRY_PAUSE;
        loop {
            let (node, route) = if owner_answered_with_an_error && self.coordinator.live() > 0 {
                self.routing.coordinator(Route::Retry)
            } else {
                self.routing.route(sql.table(), key)
            };
            let Passage { session, turn } = match node.session(sql, deadline).await {
                Ok(passage) => passage,
                Err(NoSession::ThroughCoordinator) => continue,
                Err(NoSession::Away(reason)) => return Err(DatabaseError::Unavailable(reason)),
            };
            self.metrics.routing.statement(route);
            let sent = Instant::now();
            // Half of the time for one attempt leaves the other half for a connection that answers.
            let attempt_deadline = deadline.min(sent + self.timeout / 2);
            // Pinned here, as it would be copied on its way into what waits for it.
            let attempt = pin!(session.query(sql, parameters));
            let failure = match timeout_at(attempt_deadline, attempt).await {
                Ok(Ok(rows)) => return Ok(Rows(Arc::new(rows))),
                Ok(Err(error)) => {
                    let straight = route == Route::Owner && !Arc::ptr_eq(&node, &self.coordinator);
                    let verdict = error::verdict(&error);
                    if verdict == Verdict::Refused && (!straight || error::is_about_values(&error)) {
                        return Err(DatabaseError::Refused(Arc::new(error)));
                    }
                    if straight {
                        self.routing.doubt();
                        // The coordinator decides. But where a server has gone, it gets no further either.
                        owner_answered_with_an_error =
                            error.as_db_error().is_some() && verdict != Verdict::TryElsewhere;
                    }
                    if verdict == Verdict::TryElsewhere {
                        node.abandon(&session);
                    }
                    error.to_string()
                }
                Err(_elapsed) => {
                    // A shorter wait would prove nothing.
                    if sent.elapsed() >= self.timeout / 4 {
                        node.unanswered(sent);
                    }
                    "no answer in time".to_owned()
                }
            };
            drop(turn);
            self.metrics.retried(sql);
            tracing::debug!(
                statement = sql.name(),
                node = node.connector().address(),
                failure,
                "statement will be tried again"
            );
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            if Instant::now() + jittered >= deadline {
                return Err(DatabaseError::Unavailable(failure));
            }
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(RETRY_PAUSE_LIMIT);
        }
    }
}

impl Question {
    /// As [`key`], from the values.
    fn key(&self) -> Option<Uuid> {
        Uuid::from_slice(self.values.strip_prefix(&UUID_LENGTH)?.first_chunk::<16>()?).ok()
    }
}

/// The first parameter, if it is a uuid: the key by which a table is distributed.
fn key(parameters: Parameters<'_>) -> Option<Uuid> {
    let mut value = BytesMut::with_capacity(16);
    parameters.first()?.to_sql_checked(&Type::UUID, &mut value).ok()?;
    Uuid::from_slice(&value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_first_parameter_if_it_is_a_uuid() {
        let id = Uuid::from_u128(7);
        assert_eq!(key(&[&id, &"text"]), Some(id));
        assert_eq!(key(&[&"text", &id]), None);
        assert_eq!(key(&[&None::<Uuid>]), None);
        assert_eq!(key(&[]), None);
    }

    #[test]
    fn the_key_is_found_in_the_values_as_well() {
        let id = Uuid::from_u128(7);
        let question = |values: &[&[u8]]| Question { sql: Sql::ListMessages, values: values.concat().into() };
        assert_eq!(question(&[&UUID_LENGTH, id.as_bytes(), &UUID_LENGTH, &[9; 16]]).key(), Some(id));
        assert_eq!(question(&[&[0, 0, 0, 4], b"text", &UUID_LENGTH, id.as_bytes()]).key(), None);
        assert_eq!(question(&[&u32::MAX.to_be_bytes()]).key(), None);
        assert_eq!(question(&[]).key(), None);
    }
}
