//! Reading a dialog in pages, both ways.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::support::{Client, Service, User, client::Response, database};

fn texts(page: &Response) -> Result<Vec<String>> {
    let page = page.json()?;
    let messages = page.as_array().context("a bare array")?;
    Ok(messages.iter().map(|message| message["text"].as_str().unwrap_or_default().to_owned()).collect())
}

async fn page(client: &Client, reader: &User, peer: &User, query: &str) -> Result<Response> {
    client.get_as(reader, &format!("/dialog/{}/list?{query}", peer.id)).await
}

fn next(page: &Response) -> Option<String> {
    page.header("x-next-cursor").map(ToOwned::to_owned)
}

/// Names for numbers.
fn named(numbers: impl DoubleEndedIterator<Item = u32>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn pages_backwards_are_the_whole_dialog_once_while_messages_arrive() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    for number in 0..25 {
        assert_eq!(client.send(&ada, &bob, &number.to_string()).await?.status, 200);
    }
    let (mut seen, mut query) = (Vec::new(), "limit=10".to_owned());
    loop {
        let page = page(&client, &bob, &ada, &query).await?;
        seen.extend(texts(&page)?);
        // Nothing that comes at the other end shifts a page.
        client.send(&bob, &ada, "meanwhile").await?;
        let Some(next) = next(&page) else { break };
        query = format!("limit=10&before={next}");
    }
    assert_eq!(seen, named((0..25).rev()));
    let fifth = message_id(&client, &ada, &bob, 5).await?;
    let exact = page(&client, &bob, &ada, &format!("limit=5&before={fifth}")).await?;
    assert_eq!(texts(&exact)?, named((0..5).rev()));
    let end =
        page(&client, &bob, &ada, &format!("limit=5&before={}", next(&exact).context("full page")?)).await?;
    assert_eq!((texts(&end)?, next(&end)), (vec![], None));
    Ok(())
}

async fn message_id(client: &Client, ada: &User, bob: &User, number: u32) -> Result<String> {
    let (all, text) = (client.list(ada, bob).await?.json()?, number.to_string());
    let found = all.as_array().and_then(|all| all.iter().find(|message| message["text"] == *text));
    Ok(found.and_then(|message| message["id"].as_str()).context("no such message")?.to_owned())
}

#[tokio::test]
async fn pages_forwards_go_on_for_ever() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    for number in 0..7 {
        client.send(&ada, &bob, &number.to_string()).await?;
    }
    let mut cursor = uuid::Uuid::nil().to_string();
    for expected in [vec!["2", "1", "0"], vec!["5", "4", "3"], vec!["6"], vec![]] {
        let page = page(&client, &bob, &ada, &format!("limit=3&after={cursor}")).await?;
        assert_eq!(texts(&page)?, expected);
        cursor = next(&page).context("a cursor to go on from")?;
    }
    client.send(&ada, &bob, "later").await?;
    let page = page(&client, &bob, &ada, &format!("after={cursor}")).await?;
    assert_eq!(texts(&page)?, ["later"]);
    Ok(())
}

#[tokio::test]
async fn absurd_cursors_and_limits() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.post_as(&ada, &format!("/dialog/{}/send", bob.id), &json!({"text": "one"})).await?;
    let id = uuid::Uuid::now_v7();
    for query in [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=65536",
        "limit=99999999999999999999",
        "limit=1e2",
        "limit=",
        "limit=%00",
        "limit=1&limit=2",
        "before=",
        "before=7",
        "before=zzzzzzzz-0000-0000-0000-000000000000",
        "after=%ff",
        "after=null",
        "before=%27%20OR%201=1",
        &format!("before={id}&after={id}"),
        &format!("before={}", "f".repeat(4000)),
    ] {
        page(&client, &ada, &bob, query).await?.assert_error(400);
    }
    for (query, expected) in [
        (format!("before={}", uuid::Uuid::nil()), vec![]),
        (format!("before={}", uuid::Uuid::max()), vec!["one"]),
        (format!("after={}", uuid::Uuid::nil()), vec!["one"]),
        (format!("after={}", uuid::Uuid::max()), vec![]),
        // A cursor of no message, of another version, in another spelling: only its place in the order counts.
        (format!("after={}", uuid::Uuid::from_u128(4 << 76).simple()), vec!["one"]),
        ("unknown=parameter&limit=1".to_owned(), vec!["one"]),
    ] {
        let page = page(&client, &ada, &bob, &query).await?;
        assert_eq!(
            (page.status, texts(&page)?),
            (200, expected.into_iter().map(str::to_owned).collect()),
            "{query}"
        );
    }
    Ok(())
}
