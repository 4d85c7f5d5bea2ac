//! One server and the connections to it, made again whenever they are lost.

use std::{
    mem,
    pin::pin,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::bail;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_postgres::types::Type;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    connect::Connector,
    contact::{Contact, Way},
    queue::{Places, Queue, Turn},
    session::Session,
    statements::Sql,
    wire::Company,
};
use crate::metrics::{Metrics, NodeMetrics};

/// First pause before connecting again; doubled each time.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before connecting again.
const RECONNECT_PAUSE_LIMIT: Duration = Duration::from_secs(2);
/// The same while statements wait for the server: no longer than they notice.
const SCOUT_PAUSE_LIMIT: Duration = Duration::from_millis(200);
/// Longest time for an address to take a connection meanwhile. That of a server that has just gone often answers nothing,
/// and by the time that an ordinary attempt notices, its successor has served for long.
const ADDRESS_LIMIT: Duration = Duration::from_millis(500);
/// Longest time for such an attempt as a whole. A successor that has only just started may need longer: for every other
/// connection the time is doubled whenever it is over, up to half of that for which statements wait. For the others it
/// stays, since an address that takes connections and says nothing would use up all of a longer one.
const HURRIED_LIMIT: Duration = Duration::from_secs(1);
/// Connections that try more often than the others while statements wait: one that is quick to give up, and one that is
/// patient.
const SCOUTS: u16 = 2;

/// A server.
pub(super) struct Node {
    connector: Connector,
    settings: Settings,
    sessions: RwLock<Vec<Arc<Session>>>,
    /// Types of each statement's parameters, known from the first connection on.
    types: OnceLock<[Vec<Type>; Sql::ALL.len()]>,
    next: AtomicUsize,
    contact: watch::Sender<Contact>,
    /// Whether there are connections, for each statement, which takes no lock for it.
    connected: AtomicBool,
    queue: Queue,
    closed: CancellationToken,
    metrics: Arc<Metrics>,
    numbers: NodeMetrics,
}

/// How a server is treated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Number of connections.
    pub(super) connections: u16,
    /// The server ends a statement after this time.
    pub(super) statement_limit: Duration,
    /// How long statements wait for a server that was lost: a failover need not be noticed. After that the answer
    /// is immediate.
    pub(super) grace: Duration,
}

/// A connection that a statement may take.
pub(super) struct Passage {
    pub(super) session: Arc<Session>,
    /// Of a statement that has waited: to be kept until it is answered.
    pub(super) turn: Option<Turn>,
}

/// Why there is no session.
#[derive(Debug)]
pub(super) enum NoSession {
    /// The server is away; the text is for the log.
    Away(String),
    /// Meanwhile it is known that the coordinator gets there. The turn is to be kept until the statement is answered.
    ThroughCoordinator(Turn),
    /// The server has left the cluster, or has another address now.
    Left,
}

impl Node {
    /// Describes a server without connecting; [`Node::open`] does that. Statements that wait for it need one of these
    /// places.
    pub(super) fn new(
        connector: Connector,
        settings: Settings,
        places: Places,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let numbers = metrics.routing.node(connector.address());
        let queue = Queue::new(settings.connections, places, numbers.queue());
        let contact = Contact::never();
        Self {
            connector,
            settings,
            sessions: RwLock::default(),
            types: OnceLock::new(),
            next: AtomicUsize::new(0),
            contact: watch::Sender::new(contact),
            connected: AtomicBool::new(false),
            queue,
            closed: CancellationToken::new(),
            metrics: Arc::clone(metrics),
            numbers,
        }
    }

    /// How connections to this server are made.
    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Starts to connect, and keeps connecting again whenever a connection is lost, until `stop` or
    /// [`Node::close`].
    pub(super) fn open(self: &Arc<Self>, stop: &CancellationToken) {
        for number in 0..self.settings.connections {
            let (node, stop) = (Arc::clone(self), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = node.closed.cancelled() => {}
                    () = Box::pin(node.keep_connected(number)) => {}
                }
            });
        }
    }

    /// Closes all connections; statements under way on them end with an error, and whoever waits for one looks elsewhere.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// Types of a statement's parameters, if there ever was a connection.
    pub(super) fn parameter_types(&self, sql: Sql) -> Option<&[Type]> {
        self.types.get().map(|types| types[sql as usize].as_slice())
    }

    /// Connections that work now.
    pub(super) fn live(&self) -> usize {
        self.contact.borrow().live
    }

    /// For how long there has been no connection, if there is none.
    pub(super) fn away_for(&self) -> Option<Duration> {
        let contact = self.contact.borrow();
        (contact.live == 0).then(|| contact.since.elapsed())
    }

    /// Whether a statement would be run: there is a connection, or there was one so short a time ago that it is
    /// waited for.
    pub(super) fn is_available(&self) -> bool {
        let contact = self.contact.borrow();
        contact.live > 0 || contact.met && contact.is_awaited(self.settings.grace)
    }

    /// How to get a statement there.
    pub(super) fn way(&self) -> Way {
        if self.connected.load(Ordering::Relaxed) { Way::Direct } else { self.contact.borrow().way() }
    }

    /// Takes note whether the coordinator reaches the server, which this process does not.
    pub(super) fn note_coordinator_reaches(&self, reached: bool) {
        self.contact.send_if_modified(|contact| {
            let news = contact.live == 0 && contact.through_coordinator != Some(reached);
            if news {
                contact.through_coordinator = Some(reached);
            }
            news
        });
    }

    /// A working connection. Reads that may share a transaction fill one after the other, where they travel together;
    /// all else is spread, so that writes commit together. Waits for one if the server was lost only a moment ago. If it
    /// has been away for longer, or many wait already, says so at once instead of gathering requests that wait.
    pub(super) async fn session(&self, sql: Sql, deadline: Instant) -> Result<Passage, NoSession> {
        // Who comes when there is a connection again does not overtake those who have waited for it.
        if self.queue.is_empty()
            && let Some(session) = self.pick(sql)
        {
            return Ok(Passage { session, turn: None });
        }
        // Boxed, since what is rare need not make room for itself in all others.
        Box::pin(self.wait_for_session(sql, deadline)).await
    }

    async fn wait_for_session(&self, sql: Sql, deadline: Instant) -> Result<Passage, NoSession> {
        let node = self.connector.address();
        let away = |why: &str| NoSession::Away(format!("{why} {node}"));
        let Some(_place) = self.queue.enter() else {
            // A server that is there refuses nobody because of those who have waited for it.
            let session = self.pick(sql).map(|session| Passage { session, turn: None });
            return session.ok_or_else(|| away("too many statements wait already, this one for"));
        };
        let mut next = pin!(self.queue.turn());
        let mut turn = None;
        let mut changes = self.contact.subscribe();
        let (mut waiting, mut waits) = (None, false);
        loop {
            let contact = *changes.borrow_and_update();
            let (is_away, reached) = (contact.live == 0, contact.through_coordinator == Some(true));
            if !is_away
                && turn.is_some()
                && let Some(session) = self.pick(sql)
            {
                return Ok(Passage { session, turn });
            }
            let mut patience = deadline;
            if is_away {
                waiting.get_or_insert_with(|| self.queue.wait());
                if !reached {
                    patience = patience.min(contact.since + self.settings.grace);
                    if Instant::now() < patience && !mem::replace(&mut waits, true) {
                        self.numbers.wait();
                    }
                } else if let Some(turn) = turn.take() {
                    return Err(NoSession::ThroughCoordinator(turn));
                }
            }
            tokio::select! {
                biased;
                () = self.closed.cancelled() => return Err(NoSession::Left),
                () = sleep_until(patience) => {
                    let since = contact.since.elapsed();
                    return Err(if is_away && !reached {
                        away(&format!("for {since:?} there has been no connection to"))
                    } else {
                        away("others who have waited are served first by")
                    });
                }
                mine = &mut next, if turn.is_none() => turn = mine,
                _ = changes.changed() => {}
            }
        }
    }

    /// Has a connection closed and made again. Statements still under way on it fail and are tried elsewhere.
    pub(super) fn abandon(&self, session: &Arc<Session>) {
        self.lose(session);
        session.abandoned.cancel();
    }

    /// A statement that was sent at this moment has waited long enough for its answer. All connections that have been
    /// silent since then are closed and made again: where a server, or the way to it, died without a word, each of
    /// them would cost somebody else as long a wait.
    pub(super) fn unanswered(&self, sent: Instant) {
        let mut silent = Vec::new();
        self.change(sent, |sessions| {
            silent = sessions.extract_if(.., |session| !session.heard_since(sent)).collect();
        });
        for session in silent {
            session.abandoned.cancel();
        }
    }

    fn pick(&self, sql: Sql) -> Option<Arc<Session>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let shares = sql.company() == Company::Shared;
        if shares && let Some(session) = sessions.iter().find(|session| session.takes_along()) {
            return Some(Arc::clone(session));
        }
        // Begins with another one each time, so that equally busy ones take turns.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % sessions.len().max(1);
        let (after, before) = (&sessions[first..], &sessions[..first]);
        after.iter().chain(before).min_by_key(|session| session.under_way()).map(Arc::clone)
    }

    /// Connects, waits until the connection is lost, and so on for ever. While statements wait for the server no attempt
    /// may take long. The first two, the scouts, try more often than the others, which follow when one is through: a
    /// server that has just started is not asked by all of them all the time.
    async fn keep_connected(&self, number: u16) {
        let is_patient = number % 2 == 1 || self.settings.connections == 1;
        let node = self.connector.address();
        let Settings { statement_limit, grace, .. } = self.settings;
        let is_awaited = || self.contact.borrow().is_awaited(grace);
        let hurried = self.connector.answered_within(ADDRESS_LIMIT);
        let first_limit = HURRIED_LIMIT.min(grace / 2);
        let (mut pause, mut limit) = (RECONNECT_PAUSE, first_limit);
        loop {
            let established = if is_awaited() {
                timeout(limit, Session::establish(&hurried, statement_limit)).await.unwrap_or_else(|_| {
                    let over = limit;
                    if is_patient {
                        limit = (2 * limit).min(grace / 2);
                    }
                    bail!("no session within {over:?}")
                })
            } else {
                Session::establish(&self.connector, statement_limit).await
            };
            match established {
                Ok((session, traffic)) => {
                    (pause, limit) = (RECONNECT_PAUSE, first_limit);
                    let session = Arc::new(session);
                    self.gain(&session);
                    // In a task of its own: what else ends the connection is not looked at whenever anything travels.
                    let driven = tokio::spawn(traffic);
                    let end = session.abandoned.run_until_cancelled(AbortOnDropHandle::new(driven)).await;
                    self.lose(&session);
                    match end {
                        Some(Ok(error)) => {
                            tracing::warn!(
                                node,
                                error = format!("{:#}", anyhow::Error::from(error)),
                                "connection to the database lost"
                            );
                        }
                        Some(Err(error)) => {
                            tracing::error!(node, %error, "connection to the database lost by a panic");
                        }
                        None => tracing::warn!(
                            node,
                            "connection to the database given up: it no longer answers as it should"
                        ),
                    }
                }
                Err(error) => {
                    self.metrics.connection_failures.inc();
                    tracing::warn!(node, error = format!("{error:#}"), "no connection to the database");
                }
            }
            self.pause(pause).await;
            let longest =
                if number < SCOUTS && is_awaited() { SCOUT_PAUSE_LIMIT } else { RECONNECT_PAUSE_LIMIT };
            pause = (pause * 2).min(longest);
        }
    }

    /// Pauses before connecting again; while there is no connection at all, until there is one at most.
    async fn pause(&self, pause: Duration) {
        // Connections that were lost together should not all come back in the same moment.
        let jittered = |pause: Duration| pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        let mut contact = self.contact.subscribe();
        if contact.borrow_and_update().live > 0 {
            return sleep(jittered(pause)).await;
        }
        if timeout(jittered(pause), contact.wait_for(|contact| contact.live > 0)).await.is_ok() {
            sleep(jittered(pause.min(RECONNECT_PAUSE))).await;
        }
    }

    fn gain(&self, session: &Arc<Session>) {
        self.types.get_or_init(|| Sql::ALL.map(|sql| session.parameter_types(sql).to_vec()));
        self.change(Instant::now(), |sessions| sessions.push(Arc::clone(session)));
    }

    /// Does nothing when it is lost already.
    fn lose(&self, session: &Arc<Session>) {
        self.change(Instant::now(), |sessions| sessions.retain(|other| !Arc::ptr_eq(other, session)));
    }

    /// Changes the connections; if there is none any more, the server is taken to be away since `moment`.
    fn change(&self, moment: Instant, change: impl FnOnce(&mut Vec<Arc<Session>>)) {
        // Under the lock, so that two changes are told in the order in which they were made.
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        let served = sessions.iter().any(|session| session.has_served(self.settings.grace));
        change(&mut sessions);
        let live = sessions.len();
        self.numbers.live(live);
        self.connected.store(live > 0, Ordering::Relaxed);
        self.contact.send_modify(|contact| contact.change(live, served, moment));
    }
}

#[cfg(test)]
mod tests;
