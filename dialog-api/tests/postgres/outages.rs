//! The database goes away, comes back, hangs. Nothing acknowledged is lost, and nobody has to help.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use testbed::postgres::Shutdown;
use tokio::time::sleep;

use crate::support::{
    Client, Load, Service, database, eventually,
    proxy::{Proxy, Way},
    service::attempts,
};

/// Statements that have waited for a connection to the only server, up to now.
async fn waits(client: &Client) -> Result<f64> {
    let metrics = client.get("/metrics").await?.text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("dialog_api_node_waits_total{"));
    let count = line.and_then(|line| line.split_once("} ")).context("node_waits_total")?.1;
    Ok(count.parse()?)
}

async fn stop_and_start_under_load(how: Shutdown) -> Result<()> {
    let mut server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "1s"]).await?;
    let load = Load::start(&service, 8).await?;
    load.acknowledge(200).await?;

    server.stop(how)?;
    service.wait_for_ready(503).await?;
    let client = service.client();
    assert_eq!(client.get("/health").await?.status, 200, "the process itself is well");
    let ada = crate::support::User::unknown();
    client.post("/login", &serde_json::json!({"id": ada.id, "password": "x"})).await?.assert_error(503);

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

/// As a switchover of the only server: whoever asks meanwhile waits, and load balancers do not turn away.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_interruption_costs_a_wait_and_no_answer() -> Result<()> {
    /// As long a switchover takes.
    const INTERRUPTION: Duration = Duration::from_millis(2500);
    let server = database().await?;
    let way = Proxy::to(server.port()).await?;
    let port = way.port().to_string();
    // On a busy machine it takes its time to be there again.
    let flags = ["--database-host", "localhost", "--database-port", &port, "--database-timeout", "20s"];
    let service = Service::spawn_with(&flags)?;
    service.wait_until_ready().await?;
    let load = Load::start(&service, 8).await?;
    load.acknowledge(200).await?;
    for interruption in [Way::Closed, Way::Silent] {
        let before = waits(&service.client()).await?;
        way.set(interruption);
        let over = sleep(INTERRUPTION);
        tokio::pin!(over);
        let mut asked = 0;
        while !over.is_elapsed() {
            let answer = service.client().get("/ready").await?;
            assert_eq!(answer.status, 200, "{interruption:?}: {}", answer.text());
            asked += 1;
            tokio::select! {
                () = &mut over => {}
                () = sleep(INTERRUPTION / 50) => {}
            }
        }
        assert!(asked > 1);
        way.set(Way::Open);
        load.acknowledge(200).await?;
        let waited = waits(&service.client()).await? - before;
        assert!(waited >= 1.0, "{interruption:?}: nobody has waited: nothing is tested");
    }
    let ledger = load.stop().await?;
    assert!(ledger.refused.is_empty(), "{:?}\n{}", ledger.refused, attempts(&service));
    ledger.check(&server.connect("dialog").await?).await
}

#[tokio::test]
async fn after_a_while_without_a_database_the_answer_comes_at_once() -> Result<()> {
    let mut server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "2s"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    server.stop(Shutdown::Immediate)?;
    client.list(&ada, &ada).await?.assert_error(503);
    service.wait_for_ready(503).await?;
    let before = waits(&client).await?;
    assert!(before > 0.0, "the first has waited");
    for _ in 0..20 {
        client.list(&ada, &ada).await?.assert_error(503);
    }
    assert!(waits(&client).await? - before < 1.0, "others have waited as well\n{}", service.log_text());
    Ok(())
}

#[tokio::test]
async fn a_statement_that_hangs_ends_in_time_and_loses_nobody_elses() -> Result<()> {
    /// Well below the time limit of a request, which is 20 s; well above that of a statement.
    const IN_TIME: Duration = Duration::from_secs(12);
    let server = database().await?;
    let service = Service::start(&server, &["--database-timeout", "1s"]).await?;
    let client = service.client();
    let ada = client.user("Ada").await?;
    client.send(&ada, &ada, "before").await?;
    let locker = server.connect("dialog").await?;
    locker.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await?;
    let started = Instant::now();
    client.send(&ada, &ada, "meanwhile").await?.assert_error(503);
    assert!(started.elapsed() < IN_TIME, "{:?}", started.elapsed());
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
