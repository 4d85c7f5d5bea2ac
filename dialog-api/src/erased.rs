//! Users who were erased lately: their tokens may still be valid, and other users may still be writing to them.
//!
//! Each replica reads the list of all from time to time and keeps it in memory, so that no request asks the database
//! who has been erased. The list is short: an entry goes when the last token of the user has ended. By then their
//! dialogs are closed.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::database::{Database, error::DatabaseError, statements::Sql};

/// Who was erased lately, as far as this replica knows.
pub struct Erased {
    database: Arc<Database>,
    users: RwLock<HashSet<Uuid>>,
}

impl Erased {
    /// Knows of nobody yet.
    #[must_use]
    pub fn new(database: Arc<Database>) -> Self {
        Self { database, users: RwLock::default() }
    }

    /// Whether the user was erased.
    pub fn contains(&self, user: Uuid) -> bool {
        self.users.read().unwrap_or_else(PoisonError::into_inner).contains(&user)
    }

    /// A user was erased through this replica.
    pub fn add(&self, user: Uuid) {
        self.users.write().unwrap_or_else(PoisonError::into_inner).insert(user);
    }

    /// Learns from time to time whom other replicas have erased, until told to stop.
    pub async fn keep_up(&self, interval: Duration, stop: &CancellationToken) {
        let follow = async {
            loop {
                if let Err(error) = self.refresh().await {
                    tracing::warn!(%error, "it is not known who was erased through other replicas");
                }
                tokio::time::sleep(interval.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    /// Who is no longer in the list is forgotten, unless they were erased here while it was read.
    async fn refresh(&self) -> Result<(), DatabaseError> {
        let before = self.users.read().unwrap_or_else(PoisonError::into_inner).clone();
        let rows = self.database.query(Sql::ListErasures, &[]).await?;
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        users.retain(|user| !before.contains(user));
        users.extend(rows.iter().map(|row| row.get::<Uuid>(0)));
        Ok(())
    }
}
