//! Finds dialogs whose inboxes have not followed, because the replica that should have told them is gone.
//!
//! Only recent messages are looked at: those that came since the last sweep, and some before it, because a message's
//! time is taken before it is written. The comparison happens on the shards; what comes back is what is behind.

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::{
    database::{Database, statements::Sql},
    dialogs::pair::Pair,
    inbox::Inbox,
};

/// How far a sweep looks back before the one before it: longer than writing a message can take, with the difference
/// between the clocks of two machines.
const OVERLAP: jiff::SignedDuration = jiff::SignedDuration::from_mins(2);
/// Dialogs brought up to date at a time.
const CONCURRENCY: usize = 8;

/// Brings up to date all inboxes that are behind.
pub(super) async fn sweep(client: &Client, database: &Database, inbox: &Inbox) -> Result<()> {
    let row = client
        .query_one("SELECT now(), (SELECT swept_to FROM sweeps WHERE name = 'inbox')", &[])
        .await
        .context("read sweeps")?;
    let (now, swept_to): (Timestamp, Option<Timestamp>) = (row.get(0), row.get(1));
    let since = swept_to.map_or(Ok(Timestamp::UNIX_EPOCH), |swept_to| swept_to.checked_sub(OVERLAP))?;
    let behind = client
        .query_raw(
            "SELECT DISTINCT dialogs.dialog_id, user_lo, user_hi
             FROM messages JOIN dialogs ON dialogs.dialog_id = messages.dialog_id
             WHERE messages.created_at >= $1 AND (inbox_id IS NULL OR message_id > inbox_id)",
            [since],
        )
        .await
        .context("look for dialogs whose inboxes are behind")?;
    let count = behind
        .map_err(anyhow::Error::from)
        .map(async |row| {
            let row = row?;
            let (dialog, pair) = (row.get(0), Pair { low: row.get(1), high: row.get(2) });
            let newest = database.query(Sql::ListMessages, &[&dialog, &Uuid::max(), &1_i64]).await?;
            if let Some(newest) = newest.first() {
                inbox.update(dialog, pair, newest.get(0)).await?;
            }
            anyhow::Ok(1_u64)
        })
        .buffer_unordered(CONCURRENCY)
        .try_fold(0, async |sum, one| Ok(sum + one))
        .await?;
    client
        .execute(
            "INSERT INTO sweeps (name, swept_to) VALUES ('inbox', $1)
             ON CONFLICT (name) DO UPDATE SET swept_to = excluded.swept_to",
            &[&now],
        )
        .await
        .context("write sweeps")?;
    if count > 0 {
        tracing::info!(dialogs = count, "inboxes that were behind are up to date");
    }
    Ok(())
}
