//! Many dialogs' inboxes brought up to date by a few statements, whichever shards they are on.
//!
//! One dialog by itself takes three small statements, each to one shard. That is quick for one and dear for a
//! thousand: a service under load would spend more on inboxes than on messages. These go through the coordinator, over
//! a connection of their own, so that nobody waits behind them: one for inboxes, one for marks, and one for each of the few whose
//! inboxes have a large part of the rows.
//! Citus counts what a statement does for a tenant if it is about that one alone, and who writes to everybody is found by that.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::{try_join, try_join_all};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::Behind;
use crate::database::connect::{Connector, Purpose};

/// Longest time for all statements. On a timeout the connection is closed, and whatever they had done stays.
const LIMIT: Duration = Duration::from_secs(10);

/// Whose inbox has so many of the rows, and this part of all, gets a statement: each is a transaction of its own, and who has fewer is
/// no hot one. Who floods as fast as one user may unless it is allowed more, 100 messages a second, has five in the time that is
/// gathered for.
const OWN: usize = 4;
const PART: usize = 8;

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
            // One behind the other without waiting for the answers, and each a transaction: what locks rows does not wait for
            // others. Inboxes only go forward, so it does no harm if some of them have and others have not.
            try_join_all(divide(&merges).iter().map(|rows| self.client.batch_execute(rows))).await?;
            self.client.execute(&self.mark, &[&marked, &read]).await
        };
        timeout(LIMIT, both).await.context("no answer in time")??;
        Ok(())
    }
}

/// The statements that merge these rows, which are in the order of their users: one for each who has a large part of them, and one for
/// all others.
fn divide(rows: &[[Uuid; 4]]) -> Vec<String> {
    let is_large = |own: &&[[Uuid; 4]]| own.len() >= OWN && own.len() * PART >= rows.len();
    let (own, others): (Vec<_>, Vec<_>) =
        rows.chunk_by(|[one, ..], [other, ..]| one == other).partition(is_large);
    let others = others.concat();
    let others = (!others.is_empty()).then(|| merge(&others));
    own.into_iter().map(merge).chain(others).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// So many rows of each user.
    fn rows(users: &[usize]) -> Vec<[Uuid; 4]> {
        let of = |(user, count): (u128, &usize)| {
            (0..*count as u128).map(move |peer| [user, 100 * user + peer, peer, 7].map(Uuid::from_u128))
        };
        (1..).zip(users).flat_map(of).collect()
    }

    #[test]
    fn who_has_a_large_part_has_a_statement_and_all_others_share_one() {
        let rows = rows(&[1, OWN, OWN - 1, OWN + 1, 2]);
        let own =
            |user: u128| rows.iter().filter(|row| row[0].as_u128() == user).copied().collect::<Vec<_>>();
        let others = [own(1), own(3), own(5)].concat();
        assert_eq!(divide(&rows), [merge(&own(2)), merge(&own(4)), merge(&others)]);
    }

    #[test]
    fn a_batch_in_which_everybody_has_many_is_one_statement_and_none_is_more_than_a_few() {
        let many = rows(&[OWN; 250]);
        assert_eq!(divide(&many), [merge(&many)]);
        assert_eq!(divide(&rows(&[100; PART])).len(), PART);
        assert_eq!(divide(&rows(&[100; PART + 1])).len(), 1);
    }

    #[test]
    fn the_usual_mix_is_one_statement_and_one_inbox_alone_as_well() {
        let usual = rows(&[1, 2, 1, OWN - 1]);
        assert_eq!(divide(&usual), [merge(&usual)]);
        let alone = rows(&[OWN]);
        assert_eq!(divide(&alone), [merge(&alone)]);
        assert!(divide(&[]).is_empty());
    }
}
