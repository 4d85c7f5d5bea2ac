//! What the service does for itself from time to time, one replica at a time.
//!
//! Jobs look at whole tables, through the coordinator, on a connection of their own. They are rare, they can be
//! stopped anywhere, and each finds by itself what was left undone.

mod archive;
mod erasure;
mod inbox;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    database::{
        Database,
        connect::{Connector, Purpose},
    },
    inbox::Inbox,
    migrations::TOPOLOGY_LOCK,
};

/// Who holds this advisory lock does the jobs; the first key is that of the topology lock.
const JOBS_LOCK: (i32, i32) = (TOPOLOGY_LOCK.0, 2);

/// What jobs work with.
pub struct Jobs {
    /// Statements that touch one shard.
    pub database: Arc<Database>,
    /// All inboxes.
    pub inbox: Arc<Inbox>,
    /// Kept at the database's time by every replica in every round.
    pub clock: Arc<Clock>,
    /// Time between two rounds.
    pub interval: Duration,
    /// How old a message becomes before it is archived, if ever.
    pub archive_after: Option<Duration>,
    /// How long a token is valid.
    pub token_lifetime: Duration,
}

impl Jobs {
    /// Does all jobs again and again, until told to stop.
    pub async fn run(&self, stop: &CancellationToken) {
        let rounds = async {
            loop {
                // Replicas that started together should not all ask at the same moment.
                tokio::time::sleep(self.interval.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
                if let Err(error) = self.round(self.database.connector()).await {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the service's own jobs did not finish, they will be tried again"
                    );
                }
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    async fn round(&self, connector: &Connector) -> Result<()> {
        let (mut client, traffic) = connector.connect(Purpose::Jobs).await?;
        let work = async {
            self.clock.follow(&client).await?;
            let (first, second) = JOBS_LOCK;
            let mine: bool = client
                .query_one("SELECT pg_try_advisory_lock($1, $2)", &[&first, &second])
                .await
                .context("ask for the lock of the jobs")?
                .get(0);
            // Closing the connection gives the lock back.
            if mine { self.all(&mut client).await } else { Ok(()) }
        };
        tokio::select! {
            done = work => done,
            end = traffic => end.context("the connection was lost"),
        }
    }

    async fn all(&self, client: &mut Client) -> Result<()> {
        inbox::sweep(client, &self.database, &self.inbox).await.context("sweep the inboxes")?;
        // Behind the sweep: an erasure needs complete inboxes.
        erasure::erase(client, &self.database, self.token_lifetime).await?;
        match self.archive_after {
            Some(age) => archive::archive(client, age).await,
            None => Ok(()),
        }
    }
}
