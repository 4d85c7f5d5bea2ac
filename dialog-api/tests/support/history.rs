//! Messages of long ago, and how a dialog with such reads.

use anyhow::{Context as _, Result, ensure};
use dialog_api::dialogs::pair::Pair;
use tokio_postgres::Client as Sql;
use uuid::Uuid;

use super::{
    client::{Client, User},
    eventually,
};

/// With an age that only what [`write_long_ago`] writes has. Such a service starts when that is there: later it looks only
/// at what has become old since.
pub(crate) const ARCHIVING: [&str; 4] = ["--archive-after", "48h", "--jobs-interval", "100ms"];

/// Writes messages `0`, `1`, ... to a dialog, of a time before this one by so many hours; as the service did then.
pub(crate) async fn write_long_ago(sql: &Sql, from: &User, to: &User, count: u64, hours: u64) -> Result<()> {
    let (from, to): (Uuid, Uuid) = (from.id.parse()?, to.id.parse()?);
    let pair = Pair::new(from, to);
    let dialog = pair.dialog_id();
    let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() - hours * 3600;
    let id = |number| Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, start + number, 0));
    let ids: Vec<Uuid> = (0..count).map(id).collect();
    let last = ids.last().copied().unwrap_or_default();
    let written = sql
        .execute(
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT $1, id, $3, $4, (number - 1)::text, to_timestamp($5) + (number - 1) * interval '1 second'
             FROM unnest($2::uuid[]) WITH ORDINALITY AS written (id, number)",
            &[&dialog, &ids, &from, &to, &f64::from(u32::try_from(start)?)],
        )
        .await?;
    ensure!(written == count, "{written} messages");
    sql.execute(
        "INSERT INTO dialogs (dialog_id, user_lo, user_hi, created_at, inbox_id) VALUES ($1, $2, $3, to_timestamp($5), $4)",
        &[&dialog, &pair.low, &pair.high, &last, &f64::from(u32::try_from(start)?)],
    )
    .await?;
    for (user, peer) in [(from, to), (to, from)] {
        sql.execute(
            "INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING",
            &[&user, &dialog, &peer, &last],
        )
        .await?;
    }
    Ok(())
}

/// Waits until this many messages are archived, and this many are not.
pub(crate) async fn wait_for_archive(sql: &Sql, archived: i64, recent: i64) -> Result<()> {
    let counts = "SELECT (SELECT count(*) FROM messages_archive), (SELECT count(*) FROM messages)";
    let mut found = (0, 0);
    eventually("as many messages in the archive, and beside it", async || {
        let row = sql.query_one(counts, &[]).await?;
        found = (row.get(0), row.get(1));
        Ok((found == (archived, recent)).then_some(()))
    })
    .await
    .with_context(|| format!("{found:?} archived and not, instead of {:?}", (archived, recent)))
}

/// All texts of a dialog, read in pages: backwards from the newest, or forwards from the oldest.
pub(crate) async fn read(
    client: &Client,
    reader: &User,
    peer: &User,
    limit: usize,
    forward: bool,
) -> Result<Vec<String>> {
    let path = format!("/dialog/{}/list?limit={limit}", peer.id);
    let mut query = if forward { format!("&after={}", Uuid::nil()) } else { String::new() };
    let mut texts = Vec::new();
    loop {
        let response = client.get_as(reader, &format!("{path}{query}")).await?;
        let page = response.json()?;
        let page = page.as_array().context("array")?;
        let mut found: Vec<String> =
            page.iter().map(|message| message["text"].as_str().unwrap_or_default().to_owned()).collect();
        if forward {
            found.reverse();
        }
        texts.append(&mut found);
        match response.header("x-next-cursor") {
            Some(next) if !page.is_empty() => {
                query = format!("&{}={next}", if forward { "after" } else { "before" });
            }
            _ => return Ok(texts),
        }
    }
}
