//! The inbox follows the messages, whatever happens in between.

use anyhow::{Context as _, Result};
use dialog_api::{database::statements::Sql, dialogs::pair::Pair};
use serde_json::{Value, json};

use crate::support::{Client, Service, User, client::Response, database, eventually};

async fn inbox(client: &Client, reader: &User, query: &str) -> Result<Response> {
    client.get_as(reader, &format!("/dialogs{query}")).await
}

/// Who is in an inbox, with the last text.
fn entries(response: &Response) -> Result<Vec<(String, String)>> {
    let dialogs = response.json()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |dialog: &Value| (text(&dialog["user_id"]), text(&dialog["last_message"]["text"]));
    Ok(dialogs.as_array().context("a bare array")?.iter().map(entry).collect())
}

/// Waits until the inbox is this.
async fn wait_for(client: &Client, reader: &User, expected: &[(&User, &str)]) -> Result<()> {
    let expected: Vec<_> =
        expected.iter().map(|(user, text)| (user.id.clone(), (*text).to_owned())).collect();
    let mut found = Vec::new();
    eventually("an inbox", async || {
        found = entries(&inbox(client, reader, "").await?)?;
        Ok((found == expected).then_some(()))
    })
    .await
    .with_context(|| format!("it is {found:?}, not {expected:?}"))
}

#[tokio::test]
async fn an_inbox_has_the_newest_dialog_first_with_its_last_message_and_what_is_unread() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob, carol) =
        (client.user("Ada").await?, client.user("Bob").await?, client.user("Carol").await?);
    assert_eq!(inbox(&client, &ada, "").await?.text(), "[]");
    client.send(&bob, &ada, "from Bob").await?;
    client.send(&carol, &ada, "from Carol").await?;
    client.send(&ada, &ada, "note").await?;
    client.send(&bob, &ada, "from Bob again").await?;
    wait_for(&client, &ada, &[(&bob, "from Bob again"), (&ada, "note"), (&carol, "from Carol")]).await?;
    wait_for(&client, &carol, &[(&ada, "from Carol")]).await?;
    let dialogs = inbox(&client, &ada, "").await?.json()?;
    let unread: Vec<_> = (0..3).map(|index| dialogs[index]["unread"].as_u64()).collect();
    assert_eq!(unread, [Some(2), Some(0), Some(1)]);

    // What was changed is shown at once: it is read where it is written.
    let id = dialogs[0]["last_message"]["id"].as_str().context("id")?;
    let path = format!("/dialog/{}/messages/{id}", ada.id);
    client.call_as(&bob, http::Method::PATCH, &path, Some(&json!({"text": "changed"}))).await?;
    client.post_as(&ada, &format!("/dialog/{}/read", carol.id), &json!({})).await?;
    let dialogs = inbox(&client, &ada, "").await?;
    assert_eq!(entries(&dialogs)?[0].1, "changed");
    assert_eq!(dialogs.json()?[2]["unread"], 0);
    Ok(())
}

#[tokio::test]
async fn an_inbox_comes_in_pages() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let mut peers = Vec::new();
    for number in 0..5 {
        let peer = client.user("Peer").await?;
        client.send(&peer, &ada, &number.to_string()).await?;
        peers.insert(0, peer);
    }
    let all: Vec<_> = peers.iter().zip(["4", "3", "2", "1", "0"]).collect();
    wait_for(&client, &ada, &all).await?;
    let (mut seen, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let page = inbox(&client, &ada, &query).await?;
        seen.extend(entries(&page)?.into_iter().map(|(_, text)| text));
        let Some(next) = page.header("x-next-cursor") else { break };
        query = format!("?limit=2&cursor={next}");
    }
    assert_eq!(seen, ["4", "3", "2", "1", "0"]);
    for query in ["?limit=0", "?limit=101", "?limit=x", "?cursor=x", "?cursor=%00"] {
        inbox(&client, &ada, query).await?.assert_error(400);
    }
    client.get("/dialogs").await?.assert_error(401);
    Ok(())
}

/// Waits until the inboxes have followed the last message of every dialog: an entry shows a message's text as soon as the
/// entry is there, this is written last.
async fn all_followed(sql: &tokio_postgres::Client) -> Result<()> {
    let behind = "SELECT 1 FROM dialogs WHERE inbox_id IS DISTINCT FROM (
                      SELECT message_id FROM messages WHERE messages.dialog_id = dialogs.dialog_id
                      ORDER BY message_id DESC LIMIT 1)";
    eventually("inboxes that have followed", async || {
        Ok(sql.query(behind, &[]).await?.is_empty().then_some(()))
    })
    .await
}

/// The message is written, the inboxes are not, and the process that should write them is killed.
#[tokio::test]
async fn a_replica_that_is_killed_before_the_inboxes_followed_loses_nothing() -> Result<()> {
    let server = database().await?;
    let victim = Service::start(&server, &["--jobs-interval", "1h"]).await?;
    let client = victim.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &bob, "before").await?;
    let locker = server.connect("dialog").await?;
    all_followed(&locker).await?;
    // Of the dialog with Carol no inbox knows at all.
    let carol = client.user("Carol").await?;
    locker.batch_execute("BEGIN; LOCK TABLE user_dialogs IN ACCESS EXCLUSIVE MODE").await?;
    assert_eq!(client.send(&carol, &bob, "from Carol").await?.status, 200);
    assert_eq!(client.send(&ada, &bob, "after").await?.status, 200);
    victim.signal("KILL")?;
    drop(victim);
    // What it had asked already waits for the lock, and would be done although nobody is there to hear of it.
    let sql = server.connect("dialog").await?;
    let sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dialog_api'";
    eventually("the end of the sessions of who was killed", async || {
        Ok(sql.query(sessions, &[]).await?.is_empty().then_some(()))
    })
    .await?;
    locker.batch_execute("COMMIT").await?;
    let known: i64 = sql.query_one("SELECT count(*) FROM user_dialogs", &[]).await?.get(0);
    assert_eq!(known, 2, "the inboxes have followed before the process was killed: nothing is tested");

    let survivor = Service::start(&server, &["--jobs-interval", "100ms"]).await?;
    wait_for(&survivor.client(), &bob, &[(&ada, "after"), (&carol, "from Carol")]).await?;
    survivor.wait_for_log("inboxes that were behind are up to date")?;
    Ok(())
}

#[tokio::test]
async fn a_late_update_takes_nothing_back() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &bob, "old").await?;
    let old: uuid::Uuid = client.list(&ada, &bob).await?.json()?[0]["id"].as_str().context("id")?.parse()?;
    client.send(&ada, &bob, "new").await?;
    let sql = server.connect("dialog").await?;
    all_followed(&sql).await?;
    let rows = "SELECT user_id, last_message_id FROM user_dialogs ORDER BY user_id";
    let before: Vec<(uuid::Uuid, uuid::Uuid)> =
        sql.query(rows, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(before.len(), 2);
    let (ada, bob): (uuid::Uuid, uuid::Uuid) = (ada.id.parse()?, bob.id.parse()?);
    let dialog = Pair::new(ada, bob).dialog_id();
    for (user, peer) in [(ada, bob), (bob, ada)] {
        sql.execute(Sql::MergeUserDialog.text(), &[&user, &dialog, &peer, &old]).await?;
    }
    sql.execute(Sql::MarkInboxes.text(), &[&dialog, &old]).await?;
    let after: Vec<(uuid::Uuid, uuid::Uuid)> =
        sql.query(rows, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(after, before);
    let mark: uuid::Uuid = sql.query_one("SELECT inbox_id FROM dialogs", &[]).await?.get(0);
    assert!(mark > old);
    Ok(())
}

/// Under load the inboxes of many dialogs follow together; what they show is the same.
#[tokio::test]
async fn many_dialogs_at_once_follow_together() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    crate::support::crowd::inboxes_of_many_dialogs_follow_together(&service, &server.connect("dialog").await?)
        .await
}
