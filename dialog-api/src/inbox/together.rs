//! Many dialogs' inboxes brought up to date by two statements, whichever shards they are on.
//!
//! One dialog by itself takes three small statements, each to one shard. That is quick for one and dear for a
//! thousand: a service under load would spend more on inboxes than on messages. These two go through the coordinator,
//! over a connection of their own, so that nobody waits behind them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join;
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::Behind;
use crate::database::connect::{Connector, Purpose};

/// Longest time for both statements. On a timeout the connection is closed, and whatever they had done stays.
const LIMIT: Duration = Duration::from_secs(10);

/// One connection to each worker, which stays: with one for each shard, as is the default for statements on many shards,
/// more would go into connecting than into the inboxes.
const SETTING: &str = "SET citus.max_adaptive_executor_pool_size = 1";

const MARK: &str = "
    UPDATE dialogs SET inbox_id = news.message_id
    FROM unnest($1::uuid[], $2::uuid[]) AS news(dialog_id, message_id)
    WHERE dialogs.dialog_id = news.dialog_id AND (inbox_id IS NULL OR inbox_id < news.message_id)";

/// A connection with the statement that can be prepared.
pub(super) struct Together {
    client: Client,
    mark: Statement,
    traffic: JoinHandle<()>,
}

impl Together {
    /// Connects.
    pub(super) async fn connect(connector: &Connector) -> Result<Self> {
        let (client, traffic) = connector.connect(Purpose::Jobs).await?;
        let traffic = tokio::spawn(async move {
            if let Err(error) = traffic.await {
                tracing::debug!(%error, "the connection for inboxes was lost");
            }
        });
        let prepare = try_join(client.batch_execute(SETTING), client.prepare(MARK));
        let ((), mark) = timeout(LIMIT, prepare).await.context("no answer in time")??;
        Ok(Self { client, mark, traffic })
    }

    /// Tells both inboxes of each dialog. The dialogs note it last, so that a crash in between is noticed.
    pub(super) async fn update(&self, behind: &[Behind]) -> Result<()> {
        // All replicas in the same order, so that no two of them wait for each other.
        let mut merges: Vec<[Uuid; 4]> = Vec::with_capacity(2 * behind.len());
        for Behind { dialog, pair, message } in behind {
            merges.push([pair.low, *dialog, pair.high, *message]);
            if pair.low != pair.high {
                merges.push([pair.high, *dialog, pair.low, *message]);
            }
        }
        merges.sort_unstable();
        let mut marks: Vec<(Uuid, Uuid)> = behind.iter().map(|one| (one.dialog, one.message)).collect();
        marks.sort_unstable();
        let (marked, read): (Vec<_>, Vec<_>) = marks.into_iter().unzip();
        let both = async {
            self.client.batch_execute(&merge(&merges)).await?;
            self.client.execute(&self.mark, &[&marked, &read]).await
        };
        timeout(LIMIT, both).await.context("no answer in time")??;
        Ok(())
    }
}

/// The statement that merges these rows.
///
/// Written out row by row, as that is what Citus divides among the shards by itself. From an array it would be an
/// `INSERT ... SELECT`, for which it first copies the rows to files of each shard: 500 ms instead of 40 for 600 rows in 48
/// shards, in which whatever moves one of these shards waits, and all who write to it wait behind that.
fn merge(rows: &[[Uuid; 4]]) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|[user, dialog, peer, message]| format!("('{user}','{dialog}','{peer}','{message}')"))
        .collect();
    format!(
        "INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id) VALUES {} \
         ON CONFLICT (user_id, dialog_id) DO UPDATE SET last_message_id = excluded.last_message_id \
         WHERE user_dialogs.last_message_id < excluded.last_message_id",
        rows.join(",")
    )
}

impl Drop for Together {
    fn drop(&mut self) {
        self.traffic.abort();
    }
}
