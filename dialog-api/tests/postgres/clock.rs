//! The clock of a machine is wrong, or jumps. What counts is the database's; and should that jump, order is kept.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio_postgres::Client as Sql;

use crate::support::{Service, database, eventually};

const HOUR: i64 = 3600;
/// What a test may take, in seconds.
const WHILE: i64 = 300;

/// Has the server's clock be ahead of this machine's by so many seconds, for who asks it for the time.
async fn set_ahead(sql: &Sql, seconds: i64) -> Result<()> {
    // Its own function would be called whatever its entry says; one in SQL takes its place when a query is planned.
    sql.batch_execute(&format!(
        "CREATE OR REPLACE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
         AS 'SELECT pg_catalog.now() + interval ''{seconds} seconds'''"
    ))
    .await?;
    let ahead = "SELECT extract(epoch FROM clock_timestamp() - now())::bigint";
    let ahead: i64 = sql.query_one(ahead, &[]).await?.get(0);
    ensure!(ahead == seconds, "{ahead} s ahead: nothing is tested");
    Ok(())
}

/// By how many seconds a message is ahead of this machine's clock, and the same of its id.
fn ahead(message: &Value) -> Result<(i64, i64)> {
    let now = jiff::Timestamp::now().as_second();
    let created: jiff::Timestamp = message["created_at"].as_str().context("created_at")?.parse()?;
    let id: uuid::Uuid = message["id"].as_str().context("id")?.parse()?;
    let (seconds, _) = id.get_timestamp().context("a UUIDv7")?.to_unix();
    Ok((created.as_second() - now, i64::try_from(seconds)? - now))
}

#[tokio::test]
async fn a_machine_whose_clock_is_wrong_goes_by_the_databases_and_keeps_order_when_that_is_set_back()
-> Result<()> {
    let server = database().await?;
    let sql = server.connect("dialog").await?;
    set_ahead(&sql, HOUR).await?;
    let service = Service::start(&server, &["--jobs-interval", "100ms"]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let mut stream = client.stream(&bob, &ada, None).await?;
    client.send(&ada, &bob, "first").await?;
    let (created, id) = ahead(&client.list(&bob, &ada).await?.json()?[0])?;
    assert!((HOUR - WHILE..=HOUR).contains(&created), "created {created} s ahead");
    assert!((HOUR - WHILE..=HOUR).contains(&id), "an id {id} s ahead");

    set_ahead(&sql, -HOUR).await?;
    let mut sent = vec!["first".to_owned()];
    let newest = eventually("messages of the time before", async || {
        let text = sent.len().to_string();
        // The token is from later, and as good as ever.
        assert_eq!(client.send(&ada, &bob, &text).await?.status, 200);
        sent.push(text.clone());
        let newest = client.list(&bob, &ada).await?.json()?[0].clone();
        ensure!(newest["text"] == text, "{newest} is newer than {text}");
        Ok((ahead(&newest)?.0 < 0).then_some(newest))
    })
    .await?;
    let (created, id) = ahead(&newest)?;
    assert!((-HOUR - WHILE..=-HOUR).contains(&created), "created {created} s ahead");
    assert!(id > HOUR - 2 * WHILE, "an id {id} s ahead, before those of the messages that it follows");

    // Whoever listens misses nothing, also over a reconnect.
    let mut last = String::new();
    for text in &sent {
        let event = stream.next().await?.context("the stream has ended")?;
        assert_eq!(event.data["text"], text.as_str());
        last = event.id;
    }
    drop(stream);
    let mut stream = client.stream(&bob, &ada, Some(&last)).await?;
    client.send(&ada, &bob, "after").await?;
    assert_eq!(stream.text().await?, "after");

    // New tokens are of the time that it is now, and good.
    let carol = client.user("Carol").await?;
    assert_eq!(client.send(&carol, &bob, "hello").await?.status, 200);
    Ok(())
}
