//! The service on a real Citus: a coordinator and two workers on this machine, certificates between all.
//!
//! Where the citus extension is not installed this prints `SKIPPED citus: REASON` and checks nothing.

#![allow(clippy::unwrap_used, reason = "what cannot go on fails its test")]

#[path = "../support/mod.rs"]
mod support;

mod away;
mod cluster;
mod hash;
mod interruptions;
mod jobs;
mod moves;
mod routing;
mod sessions;

use std::{
    collections::BTreeSet,
    process::Command,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result};
use dialog_api::{
    database::statements::{Scope, Sql},
    dialogs::pair::Pair,
};
use futures::StreamExt as _;
use testbed::postgres::{Server, Shutdown, citus_or_skip};
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, SHARDS},
    support::{Load, User, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn one_dialog_is_one_shard_and_every_statement_touches_one() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::new(2).await?;
    let service = cluster.serving(&["--distribution", "required"]).await?;

    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    for text in ["one", "two", "three"] {
        assert_eq!(client.send(&ada, &bob, text).await?.status, 200);
    }
    assert_eq!(client.texts(&bob, &ada).await?, ["three", "two", "one"]);

    let sql = cluster.coordinator.connect("dialog").await?;
    shards_are_spread(&sql, &cluster).await?;
    let dialog = Pair::new(ada.id.parse()?, bob.id.parse()?).dialog_id();
    list_is_one_task(&sql, dialog).await?;
    every_statement_is_one_task(&cluster.coordinator).await?;
    messages_are_in_one_shard(&sql, dialog).await
}

#[tokio::test(flavor = "multi_thread")]
async fn inboxes_on_all_shards_follow_together() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (cluster, service) = cluster::serving(2, &[]).await?;
    let sql = cluster.coordinator.connect("dialog").await?;
    support::crowd::inboxes_of_many_dialogs_follow_together(&service, &sql).await
}

/// A database that was in use before it got Citus: the service serves it, and goes on while its tables are cut
/// into shards below it.
#[tokio::test(flavor = "multi_thread")]
async fn tables_with_rows_are_served_as_they_are_and_while_they_are_distributed() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::new(2).await?;
    let before = cluster.service(&["--distribution", "off"])?;
    before.wait_until_ready().await?;
    let client = before.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    assert_eq!(client.send(&ada, &bob, "before").await?.status, 200);
    drop(before);

    let service = cluster.service(&["--distribution", "auto"])?;
    service.wait_until_ready().await?;
    let load = Load::start(&service, 2).await?;
    load.acknowledge(100).await?;
    let sql = cluster.coordinator.connect("dialog").await?;
    sql.batch_execute("SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', false) FROM pg_dist_node WHERE groupid = 0")
        .await?;
    // As the operator does it: what holds rows is copied while it is written to.
    for (table, with_rows, column, more) in [
        ("messages", true, "dialog_id", "colocate_with := 'none', shard_count := 4"),
        ("messages_archive", false, "dialog_id", "colocate_with := 'messages'"),
        ("dialogs", true, "dialog_id", "colocate_with := 'messages'"),
        ("dialog_state", false, "dialog_id", "colocate_with := 'messages'"),
        ("users", true, "user_id", "colocate_with := 'none', shard_count := 4"),
        ("credentials", true, "user_id", "colocate_with := 'users'"),
        ("user_dialogs", false, "user_id", "colocate_with := 'users'"),
        ("erasures", false, "user_id", "colocate_with := 'users'"),
    ] {
        let how = if with_rows { "_concurrently" } else { "" };
        sql.batch_execute(&format!("SELECT create_distributed_table{how}('{table}', '{column}', {more})"))
            .await
            .with_context(|| format!("distribute {table}"))?;
        load.acknowledge(50).await?;
    }
    let ledger = load.stop().await?;
    assert!(ledger.refused.is_empty(), "{:?}\n{}", ledger.refused, service.log_text());
    ledger.check(&sql).await?;

    // Nothing was written to the coordinator's own, now hidden table, and every statement finds its rows.
    let left: i64 = sql.query_one("SELECT pg_relation_size('messages')", &[]).await?.get(0);
    assert_eq!(left, 0, "bytes left in the table that was distributed");
    let client = service.client();
    assert_eq!(client.texts(&bob, &ada).await?, ["before"]);
    let (carol, dan) = (client.user("Carol").await?, client.user("Dan").await?);
    assert_eq!(client.send(&carol, &dan, "after").await?.status, 200);
    assert_eq!(client.texts(&dan, &carol).await?, ["after"]);
    Ok(())
}

/// One worker of two is away: what it holds is answered 503, never 500, and comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_crashes_and_recovers() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let mut cluster = Cluster::new(2).await?;
    let service = cluster.serving(&["--database-timeout", "1s"]).await?;
    let load = Load::start(&service, 8).await?;
    load.acknowledge(200).await?;

    // A session of a worker dies without a word in the midst of a statement, and takes all others of the worker with it.
    let (holder, postgres) =
        (cluster.workers[0].connect("dialog").await?, cluster.workers[0].connect("postgres").await?);
    hold_all_messages(&holder).await?;
    let pid: i32 = eventually("a statement under way at the worker", async || {
        let waiting =
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'dialog-api' AND wait_event_type = 'Lock'";
        Ok(postgres.query(waiting, &[]).await?.first().map(|row| row.get(0)))
    })
    .await?;
    assert!(Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status()?.success());
    load.acknowledge(200).await?;
    // What was under way there failed, which is a reason to look whether the shards are still where they were.
    let read = r#"routing_map_refreshes_total{reason="error"}"#;
    cluster::wait_for_metric(&service, read, |count| count > 0.0).await?;

    cluster.workers[0].stop(Shutdown::Immediate)?;
    // Its shards are half of all: soon somebody asks for one.
    let client = service.client();
    let refused = eventually("a login that needs the worker that is away", async || {
        let login = serde_json::json!({"id": User::unknown().id, "password": "x"});
        let response = client.post("/login", &login).await?;
        Ok((response.status != 404).then_some(response))
    })
    .await?;
    refused.assert_error(503);

    cluster.workers[0].start()?;
    for pair in 0..8 {
        // Half of these live on the worker that was away.
        eventually("a user who can register again", async || {
            Ok(client.user(&format!("user {pair}")).await.ok())
        })
        .await
        .with_context(|| service.log_text())?;
    }
    load.acknowledge(200).await?;
    let ledger = load.stop().await?;
    let only_503 = ledger.refused.keys().all(|status| *status == 503);
    assert!(only_503 && !ledger.refused.is_empty(), "{:?}\n{}", ledger.refused, service.log_text());
    ledger.check(&cluster.coordinator.connect("dialog").await?).await
}

/// Keeps all writers of messages waiting at one worker, for as long as this session lives.
async fn hold_all_messages(worker: &Client) -> Result<()> {
    let shards =
        "SET citus.override_table_visibility TO off; SET citus.enable_manual_changes_to_shards TO on;
                  SELECT format('LOCK TABLE %s IN EXCLUSIVE MODE', string_agg(oid::regclass::text, ', '))
                  FROM pg_class WHERE relkind = 'r' AND relname ~ '^messages_[0-9]+$'";
    let answer = worker.simple_query(shards).await?;
    let lock = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    worker.batch_execute(&format!("BEGIN; {}", lock.context("no shard of messages here")?)).await?;
    Ok(())
}

async fn shards_are_spread(sql: &Client, cluster: &Cluster) -> Result<()> {
    let rows = sql
        .query(
            "SELECT nodeport, count(*) FROM citus_shards WHERE table_name = 'messages'::regclass
             GROUP BY nodeport ORDER BY nodeport",
            &[],
        )
        .await?;
    let ports: BTreeSet<i32> = rows.iter().map(|row| row.get(0)).collect();
    let workers: BTreeSet<i32> = cluster.workers.iter().map(|worker| i32::from(worker.port())).collect();
    assert_eq!(ports, workers);
    assert_eq!(rows.iter().map(|row| row.get::<_, i64>(1)).sum::<i64>(), i64::from(SHARDS));
    Ok(())
}

/// The very statement of the service, planned for a dialog that has messages.
async fn list_is_one_task(sql: &Client, dialog: Uuid) -> Result<()> {
    sql.batch_execute(&format!("PREPARE list AS {}", Sql::ListMessages.text())).await?;
    // The first executions are planned with the values; after that the plan is generic.
    for execution in 0..8 {
        let rows =
            sql.query(&format!("EXPLAIN EXECUTE list('{dialog}', '{}', 100)", Uuid::max()), &[]).await?;
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("Task Count: 1"), "execution {execution}:\n{plan}");
        assert!(plan.contains("Index Scan Backward using messages_pkey"), "execution {execution}:\n{plan}");
        assert!(!plan.contains("Sort"), "execution {execution}:\n{plan}");
    }
    Ok(())
}

/// Citus says in debug messages how many tasks there are and when a plan is made by the fast path. Prepared as the service does it, and for
/// each of its statements.
async fn every_statement_is_one_task(coordinator: &Server) -> Result<()> {
    let (sql, mut connection) = tokio_postgres::Config::new()
        .host_path(coordinator.socket_directory())
        .port(coordinator.port())
        .user("postgres")
        .dbname("dialog")
        .connect(NoTls)
        .await?;
    let notices = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&notices);
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notice(notice) = message {
                seen.lock().unwrap().push(notice.message().to_owned());
            }
        }
    });
    sql.batch_execute("SET client_min_messages TO debug4; SET search_path TO public").await?;
    let other = Uuid::from_u128(8);
    let (id, now, text, name) = (Uuid::from_u128(7), jiff::Timestamp::now(), "text", None::<String>);
    for statement in Sql::ALL {
        let prepared = sql.prepare(statement.text()).await?;
        notices.lock().unwrap().clear();
        let parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)] = match statement {
            Sql::InsertMessage => &[&id, &id, &id, &id, &text, &now],
            Sql::InsertKeyedMessage => &[&id, &other, &id, &id, &text, &now, &id],
            Sql::ListMessages | Sql::ListMessagesAfter | Sql::ListArchive | Sql::ListArchiveAfter => {
                &[&id, &id, &100_i64]
            }
            Sql::InsertUser => &[&id, &text, &text, &None::<jiff::civil::Date>, &name, &name, &now],
            Sql::InsertCredentials => &[&id, &text, &now],
            Sql::SelectDialog
            | Sql::SelectUserExists
            | Sql::SelectUser
            | Sql::SelectCredentials
            | Sql::DeleteCredentials
            | Sql::DeleteUser
            | Sql::SelectReadMarks => &[&id],
            Sql::InsertErasure => &[&id, &now],
            Sql::ListErasures => &[],
            Sql::SelectMessage | Sql::SelectArchived | Sql::MarkInboxes => &[&id, &id],
            Sql::EditMessage | Sql::EditArchived => &[&id, &id, &id, &text, &now],
            Sql::InsertDialog | Sql::DeleteMessage | Sql::DeleteArchived => &[&id, &id, &id, &now],
            Sql::ListAuthorsAfter | Sql::ListUserDialogs | Sql::ListPeers => &[&id, &id, &100_i64],
            Sql::MarkRead => &[&id, &id, &id],
            Sql::MergeUserDialog => &[&id, &id, &id, &id],
            Sql::SearchUsers => &[&"a%", &"b%", &1_i64],
        };
        // As the retry of a statement does, it runs twice.
        for run in 0..2 {
            sql.query(&prepared, parameters).await?;
            let said = std::mem::take(&mut *notices.lock().unwrap());
            let tasks = said.iter().filter(|line| line.starts_with("task execution (")).count();
            if statement.scope() == Scope::AllShards {
                assert_eq!(tasks, usize::try_from(SHARDS)?, "run {run} of {}: {said:#?}", statement.name());
                continue;
            }
            assert_eq!(tasks, 1, "run {run} of {}: {said:#?}", statement.name());
            // An INSERT of one row is planned by the fast path without saying so.
            let fast = said.iter().any(|line| line.contains("fast-path router query"));
            let insert = statement.text().starts_with("INSERT")
                && said.iter().any(|line| line.contains("router plan"));
            assert!(fast || insert, "run {run} of {}: {said:#?}", statement.name());
        }
    }
    Ok(())
}

async fn messages_are_in_one_shard(sql: &Client, dialog: Uuid) -> Result<()> {
    let rows = sql
        .query("SELECT result::bigint FROM run_command_on_shards('messages', 'SELECT count(*) FROM %s WHERE text IN (''one'', ''two'', ''three'')')", &[])
        .await?;
    let mut counts: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    counts.sort_unstable();
    assert_eq!(counts.len(), usize::try_from(SHARDS)?);
    assert_eq!((counts.pop(), counts.iter().sum::<i64>()), (Some(3), 0), "of dialog {dialog}");
    Ok(())
}
