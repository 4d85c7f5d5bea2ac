//! Messages that are old are archived, and one does not notice.

use anyhow::Result;
use http::Method;
use serde_json::json;

use crate::support::{
    Service, database, eventually,
    history::{ARCHIVING, read, wait_for_archive, write_long_ago},
};

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
    wait_for_archive(&sql, 1500, 3).await?;
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
    wait_for_archive(&sql, 4, 6).await?;
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
    wait_for_archive(&sql, 3, 1).await?;
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
    wait_for_archive(&sql, 3, 1).await
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
        eventually("another round of the jobs", async || {
            let now = sql.query_opt(swept, &[]).await?.map(|row| row.get(0));
            Ok((now != before).then_some(()))
        })
        .await?;
    }
    wait_for_archive(&sql, 0, 3).await
}
