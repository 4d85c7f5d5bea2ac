//! What a client finds that knows the public specification and nothing else.

use anyhow::Result;
use http::Method;
use serde_json::json;

use crate::support::{Service, database};

#[tokio::test]
async fn two_users_write_to_each_other() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);

    let empty = client.list(&ada, &bob).await?;
    assert_eq!((empty.status, empty.text().as_str()), (200, "[]"));

    let sent = client.send(&ada, &bob, "first").await?;
    assert_eq!((sent.status, sent.body.len()), (200, 0), "{}", sent.text());
    client.send(&bob, &ada, "second ✓").await?;

    let list = client.list(&ada, &bob).await?.json()?;
    let seen = |index: usize| {
        let message = &list[index];
        [&message["from"], &message["to"], &message["text"]].map(|field| field.as_str().unwrap().to_owned())
    };
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(seen(0), [bob.id.clone(), ada.id.clone(), "second ✓".to_owned()]);
    assert_eq!(seen(1), [ada.id.clone(), bob.id.clone(), "first".to_owned()]);
    assert_eq!(client.list(&bob, &ada).await?.json()?, list, "both see the same dialog");
    Ok(())
}

#[tokio::test]
async fn the_newest_come_first_and_at_most_a_hundred() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    for number in 0..120 {
        let (from, to) = if number % 3 == 0 { (&bob, &ada) } else { (&ada, &bob) };
        assert_eq!(client.send(from, to, &number.to_string()).await?.status, 200);
    }
    let expected: Vec<String> = (20..120).rev().map(|number| number.to_string()).collect();
    assert_eq!(client.texts(&bob, &ada).await?, expected);
    Ok(())
}

#[tokio::test]
async fn a_dialog_with_oneself_is_a_dialog() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &ada, "note to self").await?;
    assert_eq!(client.texts(&ada, &ada).await?, ["note to self"]);
    assert_eq!(client.texts(&ada, &bob).await?, [""; 0]);
    assert_eq!(client.texts(&bob, &bob).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn another_replica_knows_the_token_and_the_message() -> Result<()> {
    let server = database().await?;
    let (one, other) = (Service::start(&server, &[]).await?, Service::start(&server, &[]).await?);
    let (ada, bob) = (one.client().user("Ada").await?, other.client().user("Bob").await?);
    assert_eq!(other.client().send(&ada, &bob, "hello").await?.status, 200);
    assert_eq!(one.client().texts(&bob, &ada).await?, ["hello"]);
    Ok(())
}

#[tokio::test]
async fn what_generated_clients_send_is_understood() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    let path = format!("/dialog/{}/send", ada.id);
    let authorization = format!("bearer {}", ada.token);
    for kind in ["application/json-patch+json", "application/anything+json", "application/json;charset=UTF-8"]
    {
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", kind),
            ("accept", "application/xml"),
        ];
        let body = json!({"text": kind, "unknown": {"field": 1}}).to_string();
        let response = client.send_raw(Method::POST, &path, &headers, body).await?;
        assert_eq!(response.status, 200, "{kind}: {}", response.text());
    }
    let registered = client
        .post("/user/register", &json!({"first_name": "A", "second_name": "B", "password": "c"}))
        .await?;
    assert_eq!(registered.status, 200, "{}", registered.text());
    Ok(())
}

#[tokio::test]
async fn logins_fail_as_specified() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    client.post("/login", &json!({"id": ada.id, "password": "wrong"})).await?.assert_error(400);
    let stranger = uuid::Uuid::now_v7().to_string();
    client.post("/login", &json!({"id": stranger, "password": "any"})).await?.assert_error(404);
    client.post("/login", &json!({"id": "nobody", "password": "any"})).await?.assert_error(400);
    Ok(())
}

#[tokio::test]
async fn tokens_end() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--token-lifetime", "0s"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    client.list(&ada, &ada).await?.assert_error(401);
    Ok(())
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let response = client.send_raw(Method::GET, "/health", &[("x-request-id", "trace-7")], "").await?;
    assert_eq!(response.header("x-request-id"), Some("trace-7"));
    let response = client.get("/nowhere").await?;
    response.assert_error(404);
    assert!(uuid::Uuid::try_parse(response.header("x-request-id").unwrap()).is_ok());

    client
        .send_raw(Method::GET, "/dialog/x/list", &[("x-request-id", "trace-8")], "")
        .await?
        .assert_error(401);
    let line = service.wait_for_log("trace-8")?;
    assert!(line.contains("/dialog/{user_id}/list") && line.contains("401"), "{line}");
    Ok(())
}

#[tokio::test]
async fn metrics_name_routes_and_never_paths() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &bob, "counted").await?;
    client.get("/invented/path").await?;
    let metrics = client.get("/metrics").await?;
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = metrics.text();
    for line in [
        r#"dialog_api_http_request_duration_seconds_count{route="/dialog/{user_id}/send",method="POST",status="2xx"} 1"#,
        r#"dialog_api_http_request_duration_seconds_count{route="unmatched",method="GET",status="4xx"} 1"#,
        r#"dialog_api_database_statement_duration_seconds_count{statement="insert_message",outcome="ok"} 1"#,
        "dialog_api_database_connections_configured 8",
        "dialog_api_ready 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains(&bob.id) && !text.contains("invented"), "{text}");
    Ok(())
}
