//! The database goes away, comes back, hangs. Nothing acknowledged is lost, and nobody has to help.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use testbed::postgres::Shutdown;

use crate::support::{Load, Service, database, eventually};

async fn stop_and_start_under_load(how: Shutdown) -> Result<()> {
    let mut server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "1s"]).await?;
    let load = Load::start(&service, 8).await?;
    load.acknowledge(200).await?;

    server.stop(how)?;
    service.wait_for_ready(503).await?;
    let client = service.client();
    assert_eq!(client.get("/health").await?.status, 200, "the process itself is well");
    let (ada, started) = (crate::support::User::unknown(), Instant::now());
    client.post("/login", &serde_json::json!({"id": ada.id, "password": "x"})).await?.assert_error(503);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());

    server.start()?;
    service.wait_until_ready().await?;
    load.acknowledge(200).await?;
    let ledger = load.stop().await?;
    ensure!(ledger.refused.keys().all(|status| *status == 503), "{:?}", ledger.refused);
    ledger.check(&server.connect("dialog").await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_stopped_and_started_again() -> Result<()> {
    stop_and_start_under_load(Shutdown::Fast).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_and_recovers() -> Result<()> {
    stop_and_start_under_load(Shutdown::Immediate).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_restart_goes_unnoticed() -> Result<()> {
    let mut server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "20s"]).await?;
    let load = Load::start(&service, 8).await?;
    load.acknowledge(200).await?;
    server.restart(Shutdown::Fast)?;
    load.acknowledge(200).await?;
    let ledger = load.stop().await?;
    assert!(ledger.refused.is_empty(), "{:?}", ledger.refused);
    ledger.check(&server.connect("dialog").await?).await
}

#[tokio::test]
async fn after_a_while_without_a_database_the_answer_comes_at_once() -> Result<()> {
    /// As long a request may wait.
    const LIMIT: Duration = Duration::from_secs(2);
    let mut server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "2s"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    server.stop(Shutdown::Immediate)?;
    service.wait_for_ready(503).await?;
    // The first requests wait for the database, each as long as it may; from some moment on none does.
    let answer = async || -> Result<Duration> {
        let started = Instant::now();
        client.list(&ada, &ada).await?.assert_error(503);
        Ok(started.elapsed())
    };
    eventually("an answer that does not wait", async || Ok((answer().await? < LIMIT / 2).then_some(())))
        .await?;
    for _ in 0..20 {
        let took = answer().await?;
        assert!(took < LIMIT / 2, "an answer took {took:?}: it has waited");
    }
    Ok(())
}

#[tokio::test]
async fn a_statement_that_hangs_ends_in_time_and_loses_nobody_elses() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "1s"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    client.send(&ada, &ada, "before").await?;
    let locker = server.connect("dialog").await?;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await?;
    let started = Instant::now();
    client.send(&ada, &ada, "meanwhile").await?.assert_error(503);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(client.user("Bob").await?.id.len(), 36, "other tables are not concerned");
    locker.batch_execute("COMMIT").await?;
    assert_eq!(client.send(&ada, &ada, "after").await?.status, 200);
    Ok(())
}

/// The peers of all connections fall silent, as when a machine dies without a word.
#[tokio::test]
async fn connections_that_fall_silent_are_replaced() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "1s"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    client.send(&ada, &ada, "before").await?;
    let postgres = server.connect("dialog").await?;
    // A session that is stopped while it works would keep what others need as well.
    let followed = "SELECT true FROM dialogs WHERE inbox_id IS NOT NULL";
    eventually("inboxes that follow", async || Ok(postgres.query_opt(followed, &[]).await?)).await?;
    let sessions =
        postgres.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'dialog-api'", &[]).await?;
    let pids: Vec<String> = sessions.iter().map(|row| row.get::<_, i32>(0).to_string()).collect();
    assert_eq!(pids.len(), 8);
    assert!(Command::new("kill").args(["-s", "STOP"]).args(&pids).status()?.success());

    eventually("a message that is sent again", async || {
        Ok((client.send(&ada, &ada, "after").await?.status == 200).then_some(()))
    })
    .await?;
    assert!(client.texts(&ada, &ada).await?.contains(&"after".to_owned()));
    assert!(Command::new("kill").args(["-s", "CONT"]).args(&pids).status()?.success());
    Ok(())
}
