//! The database: how connections are made ([`connect`]), which statements there are ([`statements`]), which
//! server a statement goes to ([`routing`]), and how it is run ([`Database`]) on a few connections shared by all
//! requests.
//!
//! Only ordinary single statements run here, each its own transaction (or, if it only reads, one with others that do) and
//! each harmless when it is repeated within the time limit of a statement. That is what allows sharing connections and
//! retrying.

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
pub mod wire;

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::{BufMut as _, BytesMut};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::types::{IsNull, ToSql, Type};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    connect::Connector,
    error::{DatabaseError, Verdict},
    flights::{Answer, Flights},
    node::{NoSession, Node, Passage, Settings},
    queue::Places,
    routing::Routing,
    statements::{Scope, Sql},
    wire::{error::StatementError, rows},
};
use crate::{
    config::{DatabaseConfig, RoutingChoice, WaitingLimits},
    metrics::{Metrics, Route},
};

/// First pause before a statement is tried again; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause before a statement is tried again.
const RETRY_PAUSE_LIMIT: Duration = Duration::from_millis(250);

/// Parameters of a statement.
pub type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Rows of an answer, perhaps shared with others who asked the same.
pub type Rows = Arc<rows::Rows>;

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
    /// Describes the database without connecting; [`Database::open`] does that. No more statements than these limits
    /// allow wait at a time for servers that are away.
    #[must_use]
    pub fn new(
        connector: Connector,
        config: &DatabaseConfig,
        limits: WaitingLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let DatabaseConfig { connections, timeout, .. } = *config;
        let places = Places::new(limits);
        // Somewhat less than an attempt has: a server that lives says that the time is over before it is given up.
        let settings = Settings { connections, statement_limit: timeout * 2 / 5, grace: timeout };
        let coordinator = Arc::new(Node::new(connector, settings, places.clone(), &metrics));
        let worker_settings = Settings { grace: config.grace(), ..settings };
        let enabled = config.routing == RoutingChoice::Auto;
        let routing = Arc::new(Routing::new(&coordinator, worker_settings, places, enabled, &metrics));
        let flights = Arc::new(Flights::new(limits.readers));
        Self { coordinator, routing, flights, timeout, metrics }
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
        let types = match self.coordinator.parameter_types(sql) {
            Some(types) => types,
            // Boxed, since what is rare need not make room for itself in all others.
            None => Box::pin(self.first_types(sql, deadline)).await?,
        };
        let values = encode(parameters, types).map_err(|error| DatabaseError::Refused(Arc::new(error)))?;
        if !sql.is_read() {
            return self.execute(sql, &values, deadline).await;
        }
        let values: Arc<[u8]> = values.as_ref().into();
        let question = Question { sql, values: Arc::clone(&values) };
        match self.flights.fly(question, deadline, || self.execute(sql, &values, deadline)).await {
            Some(Answer::Own(answer)) => answer,
            Some(Answer::Shared(answer)) => {
                self.metrics.reads_shared.inc();
                answer
            }
            None => {
                let why = "no answer to the same read in time, or too many wait for one already";
                Err(DatabaseError::Unavailable(why.into()))
            }
        }
    }

    /// The types of a statement's parameters, which are known from the first connection on.
    async fn first_types(&self, sql: Sql, deadline: Instant) -> Result<&[Type], DatabaseError> {
        if let Err(NoSession::Away(reason)) = self.coordinator.session(sql, deadline).await {
            return Err(DatabaseError::Unavailable(reason));
        }
        let unknown = || DatabaseError::Unavailable("the database has never been reached".into());
        self.coordinator.parameter_types(sql).ok_or_else(unknown)
    }

    /// Runs a statement until it is decided.
    async fn execute(&self, sql: Sql, values: &[u8], deadline: Instant) -> Result<Rows, DatabaseError> {
        let started = Instant::now();
        let outcome = self.execute_until(sql, values, deadline).await;
        self.metrics.statement(sql, outcome.is_ok(), started.elapsed());
        outcome
    }

    async fn execute_until(&self, sql: Sql, values: &[u8], deadline: Instant) -> Result<Rows, DatabaseError> {
        let key = key(values).filter(|_| sql.scope() == Scope::OneShard);
        let mut owner_answered_with_an_error = false;
        // Of the queue of an owner that only the coordinator reaches.
        let mut detour = None;
        let mut pause = RETRY_PAUSE;
        loop {
            let (node, route) = if detour.is_some() {
                self.routing.coordinator(Route::Detour)
            } else if owner_answered_with_an_error && self.coordinator.live() > 0 {
                self.routing.coordinator(Route::Retry)
            } else {
                self.routing.route(sql.table(), key)
            };
            let Passage { session, turn } = match node.session(sql, deadline).await {
                Ok(passage) => passage,
                Err(NoSession::ThroughCoordinator(turn)) => {
                    detour = Some(turn);
                    continue;
                }
                Err(NoSession::Left) => continue,
                Err(NoSession::Away(reason)) => return Err(DatabaseError::Unavailable(reason)),
            };
            self.metrics.routing.statement(route);
            let sent = Instant::now();
            // Half of the time for one attempt leaves the other half for a connection that answers.
            let attempt_deadline = deadline.min(sent + self.timeout / 2);
            // Pinned here, as it would be copied on its way into what waits for it.
            let attempt = pin!(session.query(sql, values));
            let failure = match timeout_at(attempt_deadline, attempt).await {
                Ok(Ok(rows)) => return Ok(Arc::new(rows)),
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
                            matches!(error, StatementError::Server(_)) && verdict != Verdict::TryElsewhere;
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
            drop((turn, detour.take()));
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

/// The values of parameters as they are sent, each with its length before it: no two lists of values look alike.
fn encode(parameters: Parameters<'_>, types: &[Type]) -> Result<BytesMut, StatementError> {
    if parameters.len() != types.len() {
        let missing = parameters.len().min(types.len()) + 1;
        return Err(StatementError::Parameter(missing, format!("there have to be {}", types.len())));
    }
    let mut values = BytesMut::with_capacity(VALUES);
    for (number, (value, kind)) in parameters.iter().zip(types).enumerate() {
        let refused = |reason: String| StatementError::Parameter(number + 1, reason);
        let start = values.len();
        values.put_i32(-1);
        let is_null = value.to_sql_checked(kind, &mut values).map_err(|error| refused(error.to_string()))?;
        if matches!(is_null, IsNull::No) {
            let length =
                i32::try_from(values.len() - start - 4).map_err(|error| refused(error.to_string()))?;
            values[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
    Ok(values)
}

/// The first value, if it can be a uuid: the key by which a table is distributed.
fn key(values: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(values.strip_prefix(&UUID_LENGTH)?.first_chunk::<16>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_first_value_if_it_can_be_a_uuid() {
        let id = Uuid::from_u128(7);
        let encoded = |parameters: Parameters<'_>, types: &[Type]| encode(parameters, types).unwrap();
        assert_eq!(key(&encoded(&[&id, &"text"], &[Type::UUID, Type::TEXT])), Some(id));
        assert_eq!(key(&encoded(&[&"text", &id], &[Type::TEXT, Type::UUID])), None);
        assert_eq!(key(&encoded(&[&None::<Uuid>], &[Type::UUID])), None);
        assert_eq!(key(&encoded(&[], &[])), None);
    }

    #[test]
    fn values_have_their_lengths_before_them() {
        let values = encode(&[&"abc", &None::<i64>, &7_i64], &[Type::TEXT, Type::INT8, Type::INT8]).unwrap();
        let expected =
            [&[0, 0, 0, 3], b"abc".as_slice(), &[0xff; 4], &[0, 0, 0, 8], &[0, 0, 0, 0, 0, 0, 0, 7]].concat();
        assert_eq!(values, expected);
    }

    #[test]
    fn values_of_other_types_or_in_other_numbers_are_refused() {
        let refused = |parameters: Parameters<'_>, types: &[Type]| match encode(parameters, types) {
            Err(StatementError::Parameter(number, _)) => Some(number),
            _ => None,
        };
        assert_eq!(refused(&[&7_i64, &"text"], &[Type::INT8, Type::INT8]), Some(2));
        assert_eq!(refused(&[&7_i64], &[Type::INT8, Type::INT8]), Some(2));
        assert_eq!(refused(&[&7_i64], &[]), Some(1));
    }
}
