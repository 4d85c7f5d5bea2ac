//! One established connection with all statements prepared.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
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
            made: Instant::now(),
            heard: AtomicU64::new(0),
            abandoned: CancellationToken::new(),
        };
        Ok((session, traffic))
    }

    /// Runs a statement.
    pub(super) async fn query(
        &self,
        sql: Sql,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.under_way);
        let answer = self.client.query(&self.statements[sql as usize], parameters).await;
        if answer.as_ref().map_or_else(|error| error.as_db_error().is_some(), |_| true) {
            let heard = u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.heard.fetch_max(heard, Ordering::Relaxed);
        }
        answer
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
