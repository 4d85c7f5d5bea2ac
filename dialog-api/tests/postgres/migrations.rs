//! Migrations by several replicas, beside whoever changes the topology.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use dialog_api::migrations;
use serde_json::Value;
use testbed::postgres::Server;

use crate::support::{Service, create_database, database, eventually};

/// Every version of the schema.
const VERSIONS: [i64; 2] = [1, 2];

const LOCK: &str = "SELECT pg_advisory_lock(1684631916, 1)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(1684631916, 1)";

async fn wait_for_reason(service: &Service, part: &str) -> Result<()> {
    eventually(&format!("a service that waits for {part}"), async || {
        let response = service.client().get("/ready").await?;
        let body: Value = response.json()?;
        let waits = body["waiting_for"].as_str().is_some_and(|what| what.contains(part));
        Ok((response.status == 503 && waits).then_some(()))
    })
    .await
    .with_context(|| service.log_text())
}

async fn versions(server: &Server) -> Result<Vec<i64>> {
    let all = "SELECT version FROM schema_migrations ORDER BY version";
    let rows = server.connect("dialog").await?.query(all, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test]
async fn replicas_that_start_at_once_migrate_once() -> Result<()> {
    let server = database().await?;
    let replicas = (0..4).map(|_| Service::spawn(&server, &[])).collect::<Result<Vec<_>>>()?;
    for replica in &replicas {
        replica.wait_until_ready().await?;
    }
    assert_eq!(versions(&server).await?, VERSIONS);
    let applied = replicas.iter().filter(|replica| replica.log_text().contains("migration applied")).count();
    assert_eq!(applied, 1);
    Ok(())
}

#[tokio::test]
async fn nothing_is_migrated_while_the_topology_changes() -> Result<()> {
    let server = database().await?;
    let operator = server.connect("dialog").await?;
    operator.execute(LOCK, &[]).await?;
    let service = Service::spawn(&server, &[])?;
    wait_for_reason(&service, "topology lock").await?;
    service.client().post("/login", &Value::Null).await?.assert_error(503);
    let tables = operator.query("SELECT FROM pg_tables WHERE schemaname = 'public'", &[]).await?;
    assert_eq!(tables.len(), 0);

    operator.execute(UNLOCK, &[]).await?;
    service.wait_until_ready().await?;
    assert_eq!(versions(&server).await?, VERSIONS);

    operator.execute(LOCK, &[]).await?;
    Service::start(&server, &[]).await?;
    Ok(())
}

/// Moves follow each other at once, for as long as there are any: who waits would never find the lock free.
#[tokio::test]
async fn no_move_begins_before_migrations_that_wait() -> Result<()> {
    const SHARE: &str = "SELECT pg_try_advisory_xact_lock_shared(1684631916, 1)";
    let server = database().await?;
    let (operator, next) = (server.connect("dialog").await?, server.connect("dialog").await?);
    operator.execute("SELECT pg_advisory_lock_shared(1684631916, 1)", &[]).await?;
    let service = Service::spawn(&server, &[])?;
    wait_for_reason(&service, "topology lock").await?;
    let waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    eventually("who waits is next", async || {
        Ok((!operator.query(waits, &[]).await?.is_empty()
            && !next.query_one(SHARE, &[]).await?.get::<_, bool>(0))
        .then_some(()))
    })
    .await?;

    // It waits for a while at a time, and the log of a server in which nothing is wrong says nothing of that.
    let since = "SELECT waitstart::text FROM pg_locks WHERE locktype = 'advisory' AND waitstart IS NOT NULL";
    let mut waits = BTreeSet::new();
    eventually("another wait", async || {
        waits.extend(operator.query(since, &[]).await?.iter().map(|row| row.get::<_, String>(0)));
        Ok((waits.len() > 2).then_some(()))
    })
    .await?;
    let log = server.log_tail();
    assert!(!log.contains("ERROR") && !log.contains("STATEMENT"), "{log}");

    operator.execute("SELECT pg_advisory_unlock_shared(1684631916, 1)", &[]).await?;
    service.wait_until_ready().await?;
    assert_eq!(versions(&server).await?, VERSIONS);
    Ok(())
}

/// A wait that is ended in the moment in which the lock is granted can leave it with the session; nobody waits for a
/// session that waits for others.
#[tokio::test]
async fn a_session_that_has_migrated_holds_no_lock_however_often_it_took_it() -> Result<()> {
    let server = database().await?;
    let (mut client, observer) = (server.connect("dialog").await?, server.connect("dialog").await?);
    client.execute(LOCK, &[]).await?;
    migrations::run(&mut client, || panic!("it waits for itself")).await?;
    assert_eq!(versions(&server).await?, VERSIONS);
    let held = observer.query("SELECT FROM pg_locks WHERE locktype = 'advisory'", &[]).await?;
    assert_eq!(held.len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_changed_migration_ends_the_program_with_a_reason() -> Result<()> {
    let server = database().await?;
    Service::start(&server, &[]).await?;
    let postgres = server.connect("dialog").await?;
    postgres.execute("UPDATE schema_migrations SET checksum = 'other'", &[]).await?;
    let mut service = Service::spawn(&server, &[])?;
    assert_eq!(service.wait().await?.code(), Some(1));
    service.wait_for_log("an applied migration must never change")?;
    Ok(())
}

#[tokio::test]
async fn a_schema_of_a_newer_program_is_served() -> Result<()> {
    let server = database().await?;
    Service::start(&server, &[]).await?;
    let postgres = server.connect("dialog").await?;
    postgres.execute("INSERT INTO schema_migrations VALUES (999, 'newer', 'sum')", &[]).await?;
    Service::start(&server, &[]).await?;
    Ok(())
}

#[tokio::test]
async fn it_waits_for_a_database_that_is_not_there_yet() -> Result<()> {
    let server = Server::builder("late").start()?;
    let service = Service::spawn(&server, &[])?;
    wait_for_reason(&service, "a database that takes requests").await?;
    assert!(service.log_text().contains("dialog_api"), "{}", service.log_text());
    create_database(&server).await?;
    service.wait_until_ready().await
}

#[tokio::test]
async fn it_waits_for_citus_when_told_that_there_will_be() -> Result<()> {
    let server = database().await?;
    let service = Service::spawn(&server, &["--distribution", "required"])?;
    wait_for_reason(&service, "citus extension").await?;
    assert_eq!(versions(&server).await?, VERSIONS, "migrated all the same, so that it can be distributed");
    Ok(())
}
