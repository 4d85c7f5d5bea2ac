//! Changing, deleting and reading messages.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Value, json};

use crate::support::{Client, Response, Service, User, database};

async fn send(client: &Client, from: &User, to: &User, text: &str) -> Result<String> {
    let response = client.send(from, to, text).await?;
    Ok(response.header("x-message-id").context("x-message-id")?.to_owned())
}

async fn unread(client: &Client, reader: &User, peer: &User) -> Result<Value> {
    client.get_as(reader, &format!("/dialog/{}/unread", peer.id)).await?.json()
}

#[tokio::test]
async fn only_its_author_changes_a_message() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let id = send(&client, &ada, &bob, "frist").await?;
    let mine = format!("/dialog/{}/messages/{id}", bob.id);
    let edited = client.call_as(&ada, Method::PATCH, &mine, Some(&json!({"text": "first"}))).await?;
    assert_eq!(edited.status, 200, "{}", edited.text());
    let listed = client.list(&bob, &ada).await?.json()?;
    assert_eq!(listed[0], edited.json()?);
    assert_eq!((&listed[0]["text"], &listed[0]["id"]), (&json!("first"), &json!(id)));
    assert!(listed[0]["edited_at"].is_string() && listed[0]["deleted_at"].is_null());

    let theirs = format!("/dialog/{}/messages/{id}", ada.id);
    let change = json!({"text": "forged"});
    client.call_as(&bob, Method::PATCH, &theirs, Some(&change)).await?.assert_error(403);
    client.call_as(&bob, Method::DELETE, &theirs, None).await?.assert_error(403);
    let carol = client.user("Carol").await?;
    client.call_as(&carol, Method::DELETE, &theirs, None).await?.assert_error(404);
    client.call_as(&ada, Method::PATCH, &mine, Some(&json!({"text": ""}))).await?.assert_error(400);
    let absent = format!("/dialog/{}/messages/{}", bob.id, uuid::Uuid::now_v7());
    client.call_as(&ada, Method::PATCH, &absent, Some(&change)).await?.assert_error(404);
    let nonsense = format!("/dialog/{}/messages/last", bob.id);
    client.call_as(&ada, Method::DELETE, &nonsense, None).await?.assert_error(400);
    assert_eq!(client.texts(&ada, &bob).await?, ["first"]);
    Ok(())
}

/// The replica that changed it last had a clock that was ahead, or the clock was set back meanwhile.
#[tokio::test]
async fn a_change_is_taken_whatever_the_clock_of_the_last_one_said() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let id = send(&client, &ada, &bob, "frist").await?;
    let path = format!("/dialog/{}/messages/{id}", bob.id);
    for text in ["first", "1st"] {
        let sql = server.connect("dialog").await?;
        sql.batch_execute("UPDATE messages SET edited_at = now() + interval '1 day'").await?;
        let edited = client.call_as(&ada, Method::PATCH, &path, Some(&json!({"text": text}))).await?;
        assert_eq!((edited.status, &edited.json()?["text"]), (200, &json!(text)));
        assert_eq!(client.texts(&bob, &ada).await?, [text]);
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_message_leaves_a_tombstone() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let id = send(&client, &ada, &bob, "regretted").await?;
    let path = format!("/dialog/{}/messages/{id}", bob.id);
    for _ in 0..2 {
        let response = client.call_as(&ada, Method::DELETE, &path, None).await?;
        assert_eq!((response.status, response.body.len()), (204, 0));
    }
    let listed = client.list(&bob, &ada).await?.json()?;
    assert_eq!((&listed[0]["text"], &listed[0]["id"]), (&json!(""), &json!(id)));
    assert!(listed[0]["deleted_at"].is_string());
    client.call_as(&ada, Method::PATCH, &path, Some(&json!({"text": "back"}))).await?.assert_error(410);
    assert_eq!(unread(&client, &bob, &ada).await?["unread"], 0);
    let row = server.connect("dialog").await?.query_one("SELECT text FROM messages", &[]).await?;
    assert_eq!(row.get::<_, &str>(0), "", "the text is gone, not hidden");
    Ok(())
}

#[tokio::test]
async fn marks_go_forward_and_count_what_others_wrote() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    assert_eq!(unread(&client, &bob, &ada).await?, json!({"unread": 0}));
    let first = send(&client, &ada, &bob, "1").await?;
    let second = send(&client, &ada, &bob, "2").await?;
    send(&client, &bob, &ada, "mine").await?;
    assert_eq!(unread(&client, &bob, &ada).await?, json!({"unread": 2}));
    assert_eq!(unread(&client, &ada, &bob).await?, json!({"unread": 1}));

    let path = format!("/dialog/{}/read", ada.id);
    let read = client.call_as(&bob, Method::POST, &path, Some(&json!({"message_id": first}))).await?;
    assert_eq!(read.json()?, json!({"unread": 1, "last_read_id": first}));
    let all = client.call_as(&bob, Method::POST, &path, None).await?.json()?;
    assert_eq!(all["unread"], 0);
    let back =
        client.call_as(&bob, Method::POST, &path, Some(&json!({"message_id": second}))).await?.json()?;
    assert_eq!(back, all, "a mark does not go back");
    // A mark beyond the newest message would make everything to come read.
    let future = json!({"message_id": uuid::Uuid::max()});
    assert_eq!(client.call_as(&bob, Method::POST, &path, Some(&future)).await?.json()?, all);
    send(&client, &ada, &bob, "3").await?;
    assert_eq!(unread(&client, &bob, &ada).await?["unread"], 1);
    assert_eq!(unread(&client, &ada, &bob).await?["peer_last_read_id"], all["last_read_id"]);

    for number in 0..120 {
        send(&client, &ada, &bob, &number.to_string()).await?;
    }
    assert_eq!(unread(&client, &bob, &ada).await?["unread"], 100, "as many or more");
    send(&client, &ada, &ada, "note to self").await?;
    assert_eq!(unread(&client, &ada, &ada).await?, json!({"unread": 0}));
    for body in [json!({"message_id": "x"}), json!([]), json!(7)] {
        client.call_as(&bob, Method::POST, &path, Some(&body)).await?.assert_error(400);
    }
    let stranger = format!("/dialog/{}/read", uuid::Uuid::now_v7());
    client.call_as(&bob, Method::POST, &stranger, None).await?.assert_error(400);
    Ok(())
}

/// Sending and listing have a way of their own past the router, which takes the other forms of an id.
#[tokio::test]
async fn an_id_in_another_form_is_answered_alike() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let other_form = User { id: bob.id.parse::<uuid::Uuid>()?.simple().to_string(), ..bob.clone() };
    // All but what differs from one request to the next.
    let shape = |response: &Response| {
        let headers: BTreeMap<String, String> = response
            .headers
            .iter()
            .map(|(name, value)| {
                let fixed = !["date", "x-request-id", "x-message-id"].contains(&name.as_str());
                (name.to_string(), if fixed { format!("{value:?}") } else { String::new() })
            })
            .collect();
        (response.status, headers, response.text())
    };
    let body = json!({"text": "hello", "client_msg_id": "one"});
    for headers in [&[][..], &[("idempotency-key", "two")]] {
        let sent = client.send_with(&ada, &bob, headers, &json!({"text": "hello"})).await?;
        let again = client.send_with(&ada, &other_form, headers, &json!({"text": "hello"})).await?;
        assert_eq!(sent.status, 200);
        let replayed = |response: &Response| response.header("idempotent-replayed").is_some();
        assert_eq!((replayed(&sent), replayed(&again)), (false, !headers.is_empty()));
    }
    let sent = client.send_with(&ada, &bob, &[], &body).await?;
    let sent_otherwise =
        client.send_with(&bob, &User { id: ada.id.replace('-', ""), ..ada.clone() }, &[], &body).await?;
    assert_eq!(shape(&sent), shape(&sent_otherwise));
    for query in ["", "?limit=2", "?before=ffffffff-ffff-7fff-bfff-ffffffffffff"] {
        let list = |peer: &User| format!("/dialog/{}/list{query}", peer.id);
        let answer = client.get_as(&ada, &list(&bob)).await?;
        assert_eq!(answer.status, 200, "{query}");
        assert!(answer.text().contains("hello"), "{query}");
        assert_eq!(shape(&answer), shape(&client.get_as(&ada, &list(&other_form)).await?), "{query}");
    }
    Ok(())
}
