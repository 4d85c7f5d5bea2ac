//! Sending again what may have been sent already, and who may say who they are.

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::json;

use crate::support::{Service, client::Response, database};

fn id(response: &Response) -> Result<String> {
    assert_eq!((response.status, response.body.len()), (200, 0), "{}", response.text());
    Ok(response.header("x-message-id").context("x-message-id")?.to_owned())
}

#[tokio::test]
async fn a_key_sends_one_message_however_often_it_comes() -> Result<()> {
    let server = database().await?;
    let (one, other) = (Service::start(&server, &[]).await?, Service::start(&server, &[]).await?);
    let client = one.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let body = json!({"text": "once"});
    for key in ["order 7", "01920000-0000-7000-8000-000000000001"] {
        let header = [("idempotency-key", key)];
        let first = client.send_with(&ada, &bob, &header, &body).await?;
        assert_eq!(first.header("idempotent-replayed"), None);
        for service in [&one, &other] {
            let again = service.client().send_with(&ada, &bob, &header, &body).await?;
            assert_eq!(id(&again)?, id(&first)?);
            assert_eq!(again.header("idempotent-replayed"), Some("true"));
        }
        let in_body = json!({"text": "once", "client_msg_id": key});
        assert_eq!(id(&client.send_with(&ada, &bob, &[], &in_body).await?)?, id(&first)?);
        client.send_with(&ada, &bob, &header, &json!({"text": "another"})).await?.assert_error(422);
        // Of somebody else, or to somebody else, it is another key.
        assert_ne!(id(&client.send_with(&bob, &ada, &header, &body).await?)?, id(&first)?);
        assert_ne!(id(&client.send_with(&ada, &ada, &header, &body).await?)?, id(&first)?);
    }
    assert_eq!(client.texts(&ada, &bob).await?.len(), 4);
    assert_ne!(id(&client.send(&ada, &bob, "x").await?)?, id(&client.send(&ada, &bob, "x").await?)?);
    for (header, body) in [
        (vec![("idempotency-key", "")], json!({"text": "x"})),
        (vec![("idempotency-key", "a")], json!({"text": "x", "client_msg_id": "b"})),
        (vec![("idempotency-key", "\u{e9}")], json!({"text": "x"})),
        (vec![], json!({"text": "x", "client_msg_id": "k".repeat(256)})),
        (vec![], json!({"text": "x", "client_msg_id": 7})),
    ] {
        client.send_with(&ada, &bob, &header, &body).await?.assert_error(400);
    }
    Ok(())
}

/// The answer was lost, and before the client sends again its user changes or deletes the message elsewhere.
#[tokio::test]
async fn a_message_that_was_changed_or_deleted_since_is_still_the_one_that_was_sent() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let (key, body) = ([("idempotency-key", "lost")], json!({"text": "frist"}));
    let first = id(&client.send_with(&ada, &bob, &key, &body).await?)?;
    let path = format!("/dialog/{}/messages/{first}", bob.id);
    for (method, change, text) in
        [(Method::PATCH, Some(json!({"text": "first"})), "first"), (Method::DELETE, None, "")]
    {
        client.call_as(&ada, method, &path, change.as_ref()).await?;
        let again = client.send_with(&ada, &bob, &key, &body).await?;
        assert_eq!((id(&again)?, again.header("idempotent-replayed")), (first.clone(), Some("true")));
        assert_eq!(client.texts(&bob, &ada).await?, [text], "nothing is sent, and nothing undone");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_at_many_replicas_at_once_is_one_message() -> Result<()> {
    let server = database().await?;
    let replicas = [Service::start(&server, &[]).await?, Service::start(&server, &[]).await?];
    let client = replicas[0].client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    for round in 0..20 {
        let key = format!("round {round}");
        let sends = (0..8).map(|number| {
            let (client, ada, bob, key) =
                (replicas[number % 2].client(), ada.clone(), bob.clone(), key.clone());
            let text = json!({"text": key});
            async move { id(&client.send_with(&ada, &bob, &[("idempotency-key", &key)], &text).await?) }
        });
        let ids = futures::future::try_join_all(sends).await?;
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
    assert_eq!(client.texts(&ada, &bob).await?.len(), 20);
    Ok(())
}

#[tokio::test]
async fn the_user_header_is_believed_only_where_development_says_so() -> Result<()> {
    let server = database().await?;
    let careful = Service::start(&server, &[]).await?;
    let ada = careful.client().user("Ada").await?;
    let path = format!("/dialog/{}/list", ada.id);
    let header = [("x-user-id", ada.id.as_str())];
    careful.client().send_raw(Method::GET, &path, &header, "").await?.assert_error(401);

    let trusting = Service::start(&server, &["--insecure-user-header"]).await?;
    trusting.wait_for_log("anybody can be anybody")?;
    let client = trusting.client();
    assert_eq!(client.send_raw(Method::GET, &path, &header, "").await?.status, 200);
    client.send_raw(Method::GET, &path, &[("x-user-id", "me")], "").await?.assert_error(400);
    client.send_raw(Method::GET, &path, &[], "").await?.assert_error(401);
    let both = [header[0], ("authorization", "Bearer forged")];
    client.send_raw(Method::GET, &path, &both, "").await?.assert_error(401);
    Ok(())
}
