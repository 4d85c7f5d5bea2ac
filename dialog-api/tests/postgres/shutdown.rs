//! The service is told to end, and finishes what it accepted.

use anyhow::Result;
use http::Method;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Load, Service, database, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn no_accepted_request_is_lost_under_load() -> Result<()> {
    let server = database().await?;
    let mut service = Service::start(&server, &["--drain-delay", "3s"]).await?;
    let load = Load::start(&service, 16).await?;
    load.acknowledge(500).await?;
    service.signal("TERM")?;
    service.wait_for_log("ending")?;
    assert_eq!(service.client().get("/ready").await?.status, 503, "load balancers are told");
    load.acknowledge(50).await?;
    let ledger = load.stop().await?;
    assert_eq!(service.wait().await?.code(), Some(0), "{}", service.log_text());
    assert!(ledger.refused.is_empty(), "{:?}", ledger.refused);
    assert_eq!(ledger.not_accepted, 0, "it goes on accepting until load balancers have noticed");
    ledger.check(&server.connect("dialog").await?).await
}

/// The connection was accepted, so its request is answered, even if it comes after the port has closed.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_of_a_new_connection_is_answered() -> Result<()> {
    let server = database().await?;
    let mut service = Service::start(&server, &[]).await?;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(TcpStream::connect(service.address()).await?);
    }
    service.signal("TERM")?;
    service.wait_for_log("no longer accepting")?;
    assert!(TcpStream::connect(service.address()).await.is_err(), "the port is closed");
    for stream in &mut streams {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    }
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    }
    assert_eq!(service.wait().await?.code(), Some(0), "{}", service.log_text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_the_database_is_answered_before_the_end() -> Result<()> {
    let server = database().await?;
    let mut service = Service::start(&server, &[]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    client.send(&ada, &ada, "before").await?;
    let locker = server.connect("dialog").await?;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await?;
    let sending = {
        let (client, ada) = (client.clone(), ada.clone());
        tokio::spawn(async move { client.send(&ada, &ada, "last words").await })
    };
    let observer = server.connect("dialog").await?;
    let waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("a send that waits for the table", async || {
        Ok((!observer.query(waiting, &[]).await?.is_empty()).then_some(()))
    })
    .await?;
    service.signal("INT")?;
    service.wait_for_log("ending")?;
    locker.batch_execute("COMMIT").await?;

    assert_eq!(sending.await??.status, 200);
    assert_eq!(service.wait().await?.code(), Some(0), "{}", service.log_text());
    let kept = observer.query("SELECT FROM messages WHERE text = 'last words'", &[]).await?;
    assert_eq!(kept.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_told_that_they_end() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--drain-delay", "30s"]).await?;
    let client = service.client();
    assert_eq!(client.get("/health").await?.header("connection"), None);
    service.signal("TERM")?;
    service.wait_for_ready(503).await?;
    let response = client.send_raw(Method::GET, "/health", &[], "").await?;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_even_before_it_has_begun() -> Result<()> {
    let server = testbed::postgres::Server::builder("without roles").start()?;
    let mut service = Service::spawn(&server, &[])?;
    service.signal("TERM")?;
    assert_eq!(service.wait().await?.code(), Some(0), "{}", service.log_text());
    Ok(())
}
