//! One shared connection, made again whenever it is lost.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use tokio::time::timeout;
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use super::{
    Database,
    connect::{Purpose, Traffic},
    statements::Sql,
};

/// First pause before connecting again; doubled each time.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before connecting again.
const RECONNECT_PAUSE_LIMIT: Duration = Duration::from_secs(2);
/// Longest time to prepare all statements.
const PREPARE_LIMIT: Duration = Duration::from_secs(5);

/// A place for one connection.
#[derive(Default)]
pub(super) struct Lane {
    current: Mutex<Option<Arc<Session>>>,
}

/// An established connection with all statements prepared.
pub(super) struct Session {
    pub(super) client: Client,
    statements: Vec<Statement>,
    abandoned: CancellationToken,
}

impl Session {
    pub(super) fn statement(&self, sql: Sql) -> &Statement {
        &self.statements[sql as usize]
    }

    /// Has the connection closed and made again. Statements still under way on it fail and are tried
    /// elsewhere.
    pub(super) fn abandon(&self) {
        self.abandoned.cancel();
    }
}

impl Lane {
    /// The connection, if there is one that works as far as is known.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        self.lock().as_ref().filter(|session| !session.abandoned.is_cancelled()).map(Arc::clone)
    }

    /// Connects, waits until the connection is lost, and so on for ever.
    pub(super) async fn keep_connected(&self, database: &Database) {
        let mut pause = RECONNECT_PAUSE;
        loop {
            match establish(database).await {
                Ok((session, traffic)) => {
                    pause = RECONNECT_PAUSE;
                    let abandoned = session.abandoned.clone();
                    *self.lock() = Some(Arc::new(session));
                    database.gained();
                    let end = abandoned.run_until_cancelled(traffic).await;
                    self.lock().take();
                    database.lost();
                    match end {
                        Some(Ok(())) => tracing::warn!("connection to the database ended"),
                        Some(Err(error)) => tracing::warn!(%error, "connection to the database lost"),
                        None => tracing::warn!(
                            "connection to the database given up: it no longer answers as it should"
                        ),
                    }
                }
                Err(error) => {
                    database.metrics.connection_failures.inc();
                    tracing::warn!(error = format!("{error:#}"), "no connection to the database");
                }
            }
            // Connections that were lost together should not all come back in the same moment.
            tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            pause = (pause * 2).min(RECONNECT_PAUSE_LIMIT);
        }
    }

    /// Nothing is left half done under this lock, so a panic elsewhere is no reason to stop.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Session>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects and prepares all statements in one round trip. The traffic is driven here meanwhile.
async fn establish(database: &Database) -> Result<(Session, Traffic)> {
    let purpose = Purpose::Requests(database.timeout / 2);
    let (client, mut traffic) = database.connector.connect(purpose).await?;
    let prepare = timeout(PREPARE_LIMIT, try_join_all(Sql::ALL.map(|sql| client.prepare(sql.text()))));
    let statements = tokio::select! {
        prepared = prepare => prepared.context("the statements were not prepared in time")?.context("prepare the statements")?,
        end = &mut traffic => {
            end.context("the connection broke while statements were prepared")?;
            anyhow::bail!("the connection ended while statements were prepared");
        }
    };
    Ok((Session { client, statements, abandoned: CancellationToken::new() }, traffic))
}
