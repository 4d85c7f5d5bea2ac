//! Archives messages that are older than a configured age: into a table of their own, where they still list.
//!
//! A dialog's messages stay on its shard, so moving some is a transaction on one node. It sees one state of them all
//! the time: a message that is changed meanwhile makes it fail, and the next round takes it as it is then. At least
//! the newest message stays where it is, and the oldest that stays is marked ([`crate::dialogs`] reads the mark).

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::{Client, IsolationLevel};
use uuid::Uuid;

/// How far a pass looks back before the one before it.
const OVERLAP: SignedDuration = SignedDuration::from_mins(2);
/// Dialogs in one round; the rest waits for the next, so that other jobs have their turn.
const DIALOGS: usize = 1_000;
/// Messages in one transaction.
const BATCH: i64 = 1_000;

/// Archives what has become older than this since the last pass.
pub(super) async fn archive(client: &mut Client, age: Duration) -> Result<()> {
    let row = client
        .query_one("SELECT now(), (SELECT swept_to FROM sweeps WHERE name = 'archive')", &[])
        .await
        .context("read sweeps")?;
    let (now, swept_to): (Timestamp, Option<Timestamp>) = (row.get(0), row.get(1));
    let end = now.checked_sub(SignedDuration::try_from(age)?)?;
    let start = swept_to.map_or(Ok(Timestamp::UNIX_EPOCH), |swept_to| swept_to.checked_sub(OVERLAP))?;
    // A dialog's newest message, as its inboxes know it, is not looked for: it stays.
    let dialogs = client
        .query(
            "SELECT DISTINCT messages.dialog_id
             FROM messages JOIN dialogs ON dialogs.dialog_id = messages.dialog_id
             WHERE messages.created_at >= $1 AND messages.created_at < $2 AND message_id < inbox_id
             LIMIT $3",
            &[&start, &end, &i64::try_from(DIALOGS)?],
        )
        .await
        .context("look for messages to archive")?;
    let (mut moved, mut failed) = (0, Ok(()));
    for row in &dialogs {
        let dialog: Uuid = row.get(0);
        match archive_dialog(client, dialog, first_id(end)).await {
            Ok(messages) => moved += messages,
            // Such as for a message that was changed meanwhile. It keeps nobody else's from being archived.
            Err(error) => failed = Err(error.context(format!("archive messages of dialog {dialog}"))),
        }
        if client.is_closed() {
            break;
        }
    }
    if failed.is_ok() && dialogs.len() < DIALOGS {
        client
            .execute(
                "INSERT INTO sweeps (name, swept_to) VALUES ('archive', $1)
                 ON CONFLICT (name) DO UPDATE SET swept_to = excluded.swept_to",
                &[&end],
            )
            .await
            .context("write sweeps")?;
    }
    if moved > 0 {
        tracing::info!(messages = moved, dialogs = dialogs.len(), "archived");
    }
    failed
}

/// Archives the messages of a dialog before this id, and returns how many.
async fn archive_dialog(client: &mut Client, dialog: Uuid, end: Uuid) -> Result<u64> {
    let mut moved = 0;
    loop {
        let transaction =
            client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await?;
        let newest = transaction
            .query_opt(
                "SELECT message_id FROM messages WHERE dialog_id = $1 ORDER BY message_id DESC LIMIT 1",
                &[&dialog],
            )
            .await?;
        let Some(newest) = newest else { return Ok(moved) };
        let end = end.min(newest.get(0));
        let more = transaction
            .query_opt(
                "SELECT message_id FROM messages WHERE dialog_id = $1 AND message_id < $2
                 ORDER BY message_id OFFSET $3 LIMIT 1",
                &[&dialog, &end, &BATCH],
            )
            .await?;
        let end: Uuid = more.as_ref().map_or(end, |row| row.get(0));
        let copied = transaction
            .execute(
                "INSERT INTO messages_archive (dialog_id, message_id, from_user_id, to_user_id, text, client_msg_id,
                     created_at, edited_at, deleted_at)
                 SELECT dialog_id, message_id, from_user_id, to_user_id, text, client_msg_id,
                     created_at, edited_at, deleted_at
                 FROM messages WHERE dialog_id = $1 AND message_id < $2",
                &[&dialog, &end],
            )
            .await?;
        if copied == 0 {
            return Ok(moved);
        }
        transaction
            .execute("DELETE FROM messages WHERE dialog_id = $1 AND message_id < $2", &[&dialog, &end])
            .await?;
        let oldest = transaction
            .query_one(
                "SELECT message_id FROM messages WHERE dialog_id = $1 ORDER BY message_id LIMIT 1",
                &[&dialog],
            )
            .await?;
        transaction
            .execute(
                "UPDATE messages SET older_archived = true WHERE dialog_id = $1 AND message_id = $2",
                &[&dialog, &oldest.get::<_, Uuid>(0)],
            )
            .await?;
        transaction.commit().await?;
        moved += copied;
        if more.is_none() {
            return Ok(moved);
        }
    }
}

/// The smallest id that a message of this moment can have: UUIDv7 begin with the milliseconds since 1970.
fn first_id(moment: Timestamp) -> Uuid {
    let milliseconds = u128::try_from(moment.as_millisecond()).unwrap_or_default();
    Uuid::from_u128(milliseconds << 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_moment_are_not_before_its_first() {
        let seconds = 1_700_000_000;
        let moment = Timestamp::from_second(seconds).unwrap();
        let id = |seconds, nanos| Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos));
        assert!(first_id(moment) <= id(1_700_000_000, 0));
        assert!(first_id(moment) > id(1_699_999_999, 999_000_000));
        assert_eq!(first_id(Timestamp::from_second(-1).unwrap()), Uuid::nil());
    }
}
