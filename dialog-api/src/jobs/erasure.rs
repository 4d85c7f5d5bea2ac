//! Erases users who asked for it: what they wrote, where they were in dialogs, and their inbox.
//!
//! Two passes over their dialogs: the first at once, the last when every replica has heard of it, for whatever was
//! written in between. The inbox, which says what dialogs there are, goes with the last; the sweep of the inboxes comes
//! before this in each round, so it has every dialog by then. The entry itself stays until no token of the user is
//! valid any more: it is what turns those away ([`crate::erased`]).
//!
//! A message keeps its place, without its text, as when its author deletes it. What others wrote to the user is
//! theirs and stays with them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::database::{Database, statements::Sql};

/// Time until every replica has heard of it and has ended what it had begun before.
const HEARD: SignedDuration = SignedDuration::from_mins(10);
/// Rows looked at at a time.
const BATCH: i64 = 1_000;

/// Goes on with the erasure of every user who asked for it.
pub(super) async fn erase(client: &Client, database: &Database, token_lifetime: Duration) -> Result<()> {
    let rows = client
        .query(
            "SELECT user_id, requested_at, swept_at IS NOT NULL, finished_at IS NOT NULL, now() FROM erasures",
            &[],
        )
        .await
        .context("look for users to erase")?;
    let tokens_end = HEARD + SignedDuration::try_from(token_lifetime)?;
    for row in &rows {
        let (user, requested_at, swept, finished): (Uuid, Timestamp, bool, bool) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let now: Timestamp = row.get(4);
        let age = now.duration_since(requested_at);
        let failed = || format!("erase user {user}");
        if !swept || (!finished && age > HEARD) {
            let messages = erase_user(client, database, user, now, swept).await.with_context(failed)?;
            tracing::info!(%user, messages, finished = swept, "erased");
        } else if finished && age > tokens_end {
            client.execute("DELETE FROM erasures WHERE user_id = $1", &[&user]).await.with_context(failed)?;
        }
    }
    Ok(())
}

/// One pass; returns how many messages lost their text.
async fn erase_user(
    client: &Client,
    database: &Database,
    user: Uuid,
    now: Timestamp,
    last: bool,
) -> Result<u64> {
    // Done already, unless the process that was asked ended in between.
    database.query(Sql::DeleteCredentials, &[&user]).await?;
    database.query(Sql::DeleteUser, &[&user]).await?;
    let (mut messages, mut dialog) = (0, Uuid::nil());
    loop {
        let dialogs = client
            .query(
                "SELECT dialog_id FROM user_dialogs WHERE user_id = $1 AND dialog_id > $2
                 ORDER BY dialog_id LIMIT $3",
                &[&user, &dialog, &BATCH],
            )
            .await?;
        let Some(end) = dialogs.last() else { break };
        for row in &dialogs {
            let dialog: Uuid = row.get(0);
            for table in ["messages", "messages_archive"] {
                messages += erase_messages(client, table, dialog, user, now).await?;
            }
            client.execute("UPDATE dialogs SET closed = true WHERE dialog_id = $1", &[&dialog]).await?;
            client
                .execute("DELETE FROM dialog_state WHERE dialog_id = $1 AND user_id = $2", &[&dialog, &user])
                .await?;
        }
        dialog = end.get(0);
    }
    let end = if last {
        client.execute("DELETE FROM user_dialogs WHERE user_id = $1", &[&user]).await?;
        client.execute("UPDATE erasures SET finished_at = $2 WHERE user_id = $1", &[&user, &now]).await
    } else {
        client.execute("UPDATE erasures SET swept_at = $2 WHERE user_id = $1", &[&user, &now]).await
    };
    end.context("note how far the erasure is")?;
    Ok(messages)
}

/// Takes the text from what the user wrote in a dialog, some at a time: a dialog can be long.
async fn erase_messages(
    client: &Client,
    table: &str,
    dialog: Uuid,
    user: Uuid,
    now: Timestamp,
) -> Result<u64> {
    let next = format!(
        "SELECT message_id FROM {table} WHERE dialog_id = $1 AND message_id > $2
         ORDER BY message_id OFFSET $3 LIMIT 1"
    );
    let update = format!(
        "UPDATE {table} SET text = '', client_msg_id = NULL, deleted_at = coalesce(deleted_at, $5)
         WHERE dialog_id = $1 AND message_id > $2 AND message_id <= $3 AND from_user_id = $4
         AND (text <> '' OR client_msg_id IS NOT NULL OR deleted_at IS NULL)"
    );
    let (mut count, mut start) = (0, Uuid::nil());
    loop {
        let end = client.query_opt(&next, &[&dialog, &start, &(BATCH - 1)]).await?;
        let end: Option<Uuid> = end.map(|row| row.get(0));
        let up_to = end.unwrap_or(Uuid::max());
        count += client.execute(&update, &[&dialog, &start, &up_to, &user, &now]).await?;
        let Some(end) = end else { return Ok(count) };
        start = end;
    }
}
