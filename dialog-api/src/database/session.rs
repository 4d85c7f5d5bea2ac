//! One established connection with all statements prepared.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    task::Poll,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Row, Statement, types::Type};
use tokio_util::sync::CancellationToken;

use super::{
    Parameters,
    connect::{Connector, Purpose, Traffic},
    statements::Sql,
};

/// Longest time to prepare all statements.
const PREPARE_LIMIT: Duration = Duration::from_secs(5);

/// An established connection, shared by many statements at a time.
pub(super) struct Session {
    client: Client,
    statements: Vec<Statement>,
    under_way: AtomicUsize,
    /// Whether a read was asked for since the traffic was last driven: it leaves in a moment.
    gathers: AtomicBool,
    made: Instant,
    /// When the server last answered, in microseconds after the connection was made.
    heard: AtomicU64,
    /// Set when nobody trusts the connection any more; whoever drives its traffic closes it.
    pub(super) abandoned: CancellationToken,
}

impl Session {
    /// Connects and prepares all statements in one round trip; the server ends any of them after `limit`. The
    /// returned traffic has to be driven for the session to work.
    pub(super) async fn establish(connector: &Connector, limit: Duration) -> Result<(Self, Traffic)> {
        let (client, mut traffic) = connector.connect(Purpose::Requests(limit)).await?;
        let prepare = timeout(PREPARE_LIMIT, try_join_all(Sql::ALL.map(|sql| client.prepare(sql.text()))));
        let statements = tokio::select! {
            prepared = prepare => prepared
                .context("the statements were not prepared in time")?
                .context("prepare the statements")?,
            end = &mut traffic => {
                end.context("the connection broke while statements were prepared")?;
                anyhow::bail!("the connection ended while statements were prepared");
            }
        };
        let session = Self {
            client,
            statements,
            under_way: AtomicUsize::new(0),
            gathers: AtomicBool::new(false),
            made: Instant::now(),
            heard: AtomicU64::new(0),
            abandoned: CancellationToken::new(),
        };
        Ok((session, traffic))
    }

    /// Drives the traffic of this connection so that reads which are asked for in the same moment travel together.
    ///
    /// The first of them wakes the traffic. It lets everything go first that is ready to run, and then finds the
    /// others. Of lists under load, two and more share a packet, which spares the service 13 % of its processor time
    /// and the server 16 % (`cargo xtask bench -- --section plain`). Writes gain nothing by it, and do not wait.
    pub(super) async fn gathered(&self, mut traffic: Traffic) -> <Traffic as Future>::Output {
        let mut waited = false;
        poll_fn(|context| {
            // Once only: those that come meanwhile are among the others.
            if self.gathers() && !waited {
                waited = true;
                // Puts this task behind all others in the queue.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            waited = false;
            self.gathers.store(false, Ordering::Relaxed);
            traffic.as_mut().poll(context)
        })
        .await
    }

    /// Runs a statement.
    pub(super) async fn query(
        &self,
        sql: Sql,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        if sql.is_read() {
            self.gathers.store(true, Ordering::Relaxed);
        }
        let answer = self.client.query(&self.statements[sql as usize], parameters).await;
        if answer.as_ref().map_or_else(|error| error.as_db_error().is_some(), |_| true) {
            let heard = u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.heard.fetch_max(heard, Ordering::Relaxed);
        }
        answer
    }

    /// Whether a read is about to leave, and others can travel with it.
    pub(super) fn gathers(&self) -> bool {
        self.gathers.load(Ordering::Relaxed)
    }

    /// Whether the server has said anything on this connection since then.
    pub(super) fn heard_since(&self, moment: Instant) -> bool {
        self.made + Duration::from_micros(self.heard.load(Ordering::Relaxed)) >= moment
    }

    /// Statements that were sent and not answered yet.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Types of the statement's parameters, as the server has them.
    pub(super) fn parameter_types(&self, sql: Sql) -> &[Type] {
        self.statements[sql as usize].params()
    }
}

/// One statement under way; gone as well when nobody waits for its answer any more.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
