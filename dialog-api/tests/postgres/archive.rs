//! Messages that are old are archived, and one does not notice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dialog_api::dialogs::pair::Pair;
use http::Method;
use serde_json::json;
use tokio_postgres::Client as Sql;
use uuid::Uuid;

use crate::support::{Client, Service, User, database, service::SOON};

/// With an age that only what [`write_long_ago`] writes has. Such a service starts when that is there: later it looks only
/// at what has become old since.
const ARCHIVING: [&str; 4] = ["--archive-after", "48h", "--jobs-interval", "100ms"];

/// Writes messages `0`, `1`, ... to a dialog, of a time before this one by so many hours; as the service did then.
async fn write_long_ago(sql: &Sql, from: &User, to: &User, count: u64, hours: u64) -> Result<()> {
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
        "INSERT INTO dialogs (dialog_id, user_lo, user_hi, created_at, inbox_id) VALUES ($1, $2, $3, now(), $4)",
        &[&dialog, &pair.low, &pair.high, &last],
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
async fn wait_for(sql: &Sql, archived: i64, recent: i64) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let row = sql
            .query_one("SELECT (SELECT count(*) FROM messages_archive), (SELECT count(*) FROM messages)", &[])
            .await?;
        let found: (i64, i64) = (row.get(0), row.get(1));
        if found == (archived, recent) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{found:?} archived and not");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All texts of a dialog, read in pages: backwards from the newest, or forwards from the oldest.
async fn read(
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

#[tokio::test]
async fn a_dialog_reads_the_same_across_the_border() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let sql = server.connect("dialog").await?;
    // More than one transaction of the job moves.
    write_long_ago(&sql, &ada, &bob, 1500, 72).await?;
    for text in ["new 0", "new 1", "new 2"] {
        assert_eq!(client.send(&ada, &bob, text).await?.status, 200);
    }
    let mut expected: Vec<String> = (0..1500).map(|number| number.to_string()).collect();
    expected.extend(["new 0", "new 1", "new 2"].map(str::to_owned));
    let _archiver = Service::start(&server, &ARCHIVING).await?;
    wait_for(&sql, 1500, 3).await?;
    for limit in [100, 7, 3] {
        assert_eq!(read(&client, &bob, &ada, limit, true).await?, expected, "forwards, {limit} at a time");
        let mut backwards = read(&client, &ada, &bob, limit, false).await?;
        backwards.reverse();
        assert_eq!(backwards, expected, "backwards, {limit} at a time");
    }
    let inbox = client.get_as(&bob, "/dialogs").await?.json()?;
    assert_eq!(inbox[0]["last_message"]["text"], "new 2");
    Ok(())
}

#[tokio::test]
async fn the_newest_message_is_never_archived_and_the_young_are_not() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob, carol) =
        (client.user("Ada").await?, client.user("Bob").await?, client.user("Carol").await?);
    let sql = server.connect("dialog").await?;
    write_long_ago(&sql, &carol, &ada, 5, 47).await?;
    write_long_ago(&sql, &ada, &bob, 5, 49).await?;
    let _archiver = Service::start(&server, &ARCHIVING).await?;
    wait_for(&sql, 4, 6).await?;
    assert_eq!(client.texts(&ada, &bob).await?, ["4", "3", "2", "1", "0"]);
    assert_eq!(client.texts(&ada, &carol).await?.len(), 5);
    Ok(())
}

#[tokio::test]
async fn an_archived_message_can_be_changed_and_deleted() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let sql = server.connect("dialog").await?;
    write_long_ago(&sql, &ada, &bob, 4, 72).await?;
    let _archiver = Service::start(&server, &ARCHIVING).await?;
    wait_for(&sql, 3, 1).await?;
    let list = client.list(&ada, &bob).await?.json()?;
    let id = |index: usize| list[index]["id"].as_str().unwrap_or_default().to_owned();
    let path = |id: &str| format!("/dialog/{}/messages/{id}", bob.id);
    let edit = json!({"text": "changed"});
    let changed = client.call_as(&ada, Method::PATCH, &path(&id(3)), Some(&edit)).await?;
    assert_eq!((changed.status, changed.json()?["text"].as_str()), (200, Some("changed")));
    assert_eq!(client.call_as(&ada, Method::DELETE, &path(&id(2)), None).await?.status, 204);
    assert_eq!(client.call_as(&ada, Method::DELETE, &path(&id(2)), None).await?.status, 204, "again");
    client.call_as(&ada, Method::PATCH, &path(&id(2)), Some(&edit)).await?.assert_error(410);
    let others = format!("/dialog/{}/messages/{}", ada.id, id(3));
    client.call_as(&bob, Method::PATCH, &others, Some(&edit)).await?.assert_error(403);
    assert_eq!(client.texts(&bob, &ada).await?, ["3", "2", "", "changed"]);
    wait_for(&sql, 3, 1).await
}

#[tokio::test]
async fn without_an_age_nothing_is_archived() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--jobs-interval", "50ms"]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let sql = server.connect("dialog").await?;
    write_long_ago(&sql, &ada, &bob, 3, 100_000).await?;
    // Two rounds of the jobs, of which the second began after the messages were there.
    let swept = "SELECT swept_to FROM sweeps WHERE name = 'inbox'";
    for _ in 0..2 {
        let before: Option<jiff::Timestamp> = sql.query_opt(swept, &[]).await?.map(|row| row.get(0));
        let deadline = Instant::now() + SOON;
        while sql.query_opt(swept, &[]).await?.map(|row| row.get(0)) == before {
            ensure!(Instant::now() < deadline, "the jobs do not run");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    wait_for(&sql, 0, 3).await
}
