//! Shards move and are cut below the load. Nothing is lost, nothing is doubled, and nobody notices.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use testbed::postgres::citus_or_skip;
use tokio_postgres::Client as Sql;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    cluster::{Cluster, metric, serving, wait_for_metric},
    support::{Client, Load, Response, Service, service::attempts},
};

/// A statement that meets the end of a move waits for a lock, for 2 s at most, and is tried again. None has to do so a
/// second time. (It would be refused after 5 s.)
const SLOWEST: Duration = Duration::from_secs(4);

/// Workers, as Citus numbers them.
struct Workers(Vec<i32>);

impl Workers {
    async fn read(sql: &Sql) -> Result<Self> {
        let rows =
            sql.query("SELECT nodeid FROM pg_dist_node WHERE groupid > 0 ORDER BY nodeid", &[]).await?;
        Ok(Self(rows.iter().map(|row| row.get(0)).collect()))
    }

    fn others(&self, than: i32) -> impl Iterator<Item = i32> {
        self.0.iter().copied().filter(move |node| *node != than)
    }
}

/// The shard of messages that a dialog is in now, its hashes, and the number of its node.
async fn shard_of(sql: &Sql, dialog: Uuid) -> Result<(i64, (i32, i32), i32)> {
    let shard = "SELECT shardid, shardminvalue::int, shardmaxvalue::int, nodeid FROM pg_dist_shard
                 JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
                 WHERE shardid = get_shard_id_for_distribution_column('messages', $1::uuid)";
    let row = sql.query_one(shard, &[&dialog]).await?;
    Ok((row.get(0), (row.get(1), row.get(2)), row.get(3)))
}

/// Sends, each message with a key of its own, and after each acknowledgement lists: the message has to be there, first
/// and once. Every other message is sent again with its key, as by a client that did not hear the answer: that has to
/// be answered with the same message, wherever its shard is by then.
async fn converse(service: &Service, number: usize, stop: &CancellationToken) -> Result<usize> {
    let client: Client = service.client();
    let (one, other) =
        (client.user(&format!("one {number}")).await?, client.user(&format!("other {number}")).await?);
    let mut sent = 0_usize;
    while !stop.is_cancelled() {
        let text = format!("talk {number}, {sent}");
        let (key, body) = (format!("key {number}, {sent}"), json!({"text": text}));
        let attempt = async || client.send_with(&one, &other, &[("idempotency-key", &key)], &body).await;
        let answer = attempt().await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        if sent.is_multiple_of(2) {
            let again = attempt().await?;
            ensure!(again.status == 200, "{} {}", again.status, again.text());
            let id = |answer: &Response| answer.header("x-message-id").map(str::to_owned);
            ensure!(id(&again) == id(&answer) && id(&answer).is_some(), "{answer:?} and {again:?}");
            ensure!(again.header("idempotent-replayed") == Some("true"), "{again:?}");
        }
        sent += 1;
        let texts = client.texts(&other, &one).await?;
        ensure!(texts.first() == Some(&text), "after {text:?} the newest is {:?}", texts.first());
        let distinct: BTreeSet<_> = texts.iter().collect();
        ensure!(texts.len() == distinct.len() && texts.len() == sent.min(100), "{} of {sent}", texts.len());
    }
    Ok(sent)
}

/// Every message of the load, read from the shards themselves.
async fn messages_by_shard(cluster: &Cluster) -> Result<i64> {
    let sql = cluster.coordinator.connect("dialog").await?;
    let rows = sql
        .query(
            "SELECT success, result FROM run_command_on_shards('messages', 'SELECT count(*) FROM %s')",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let (success, result): (bool, String) = (row.get(0), row.get(1));
            ensure!(success, "{result}");
            Ok(result.parse::<i64>()?)
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_is_lost_or_doubled_while_shards_move_and_split() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (cluster, service) = serving(3, &[]).await?;
    let load = Load::start(&service, 6).await?;
    let stop = CancellationToken::new();
    let talks = futures::future::join_all((0..3).map(|number| converse(&service, number, &stop)));
    let reshape = async {
        let reshaped = reshape(&cluster, &service, &load).await;
        stop.cancel();
        reshaped
    };
    let (talks, reshaped) = futures::future::join(talks, reshape).await;
    let reshaped = reshaped.with_context(|| service.log_text())?;
    let mut sent = 0;
    for talk in talks {
        sent += talk.with_context(|| attempts(&service))?;
    }
    let ledger = load.stop().await?;
    println!(
        "{} moves and splits; {} sent by load, {sent} by talks; slowest {:?}",
        reshaped,
        ledger.acknowledged.len(),
        ledger.latency(1.0)
    );
    assert!(ledger.refused.is_empty(), "{:?}\n{}", ledger.refused, attempts(&service));
    assert!(ledger.latency(1.0) < SLOWEST, "{:?}\n{}", ledger.latency(1.0), attempts(&service));
    ledger.check(&cluster.coordinator.connect("dialog").await?).await?;
    // Nothing but what was acknowledged: a message that was written twice would be one too many.
    let expected = i64::try_from(ledger.acknowledged.len() + sent)?;
    assert_eq!(messages_by_shard(&cluster).await?, expected);
    Ok(())
}

/// Moves the shards of the load's dialogs from worker to worker and back, then cuts them in two.
async fn reshape(cluster: &Cluster, service: &Service, load: &Load) -> Result<usize> {
    let sql = cluster.coordinator.connect("dialog").await?;
    let workers = Workers::read(&sql).await?;
    load.acknowledge(100).await?;
    let dialogs: Vec<Uuid> = sql
        .query("SELECT DISTINCT dialog_id FROM messages LIMIT 3", &[])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let mut done = 0;
    for _ in 0..3 {
        for dialog in &dialogs {
            let (shard, _, from) = shard_of(&sql, *dialog).await?;
            let to = workers.others(from).next().context("another worker")?;
            sql.query(
                "SELECT citus_move_shard_placement($1, $2, $3, 'force_logical')",
                &[&shard, &from, &to],
            )
            .await
            .with_context(|| format!("move {shard}"))?;
            load.acknowledge(20).await?;
            done += 1;
        }
    }
    let changes = metric(service, r#"routing_map_refreshes_total{reason="change"}"#).await?;
    for dialog in &dialogs {
        let (shard, (first, last), from) = shard_of(&sql, *dialog).await?;
        let middle = i32::midpoint(first, last).to_string();
        // No child may stay on the node that is cut from: under writes that hangs.
        let to: Vec<i32> = workers.others(from).collect();
        sql.query(
            "SELECT citus_split_shard_by_split_points($1, ARRAY[$2], $3::int[], 'force_logical')",
            &[&shard, &middle, &to],
        )
        .await
        .with_context(|| format!("split {shard}"))?;
        load.acknowledge(20).await?;
        done += 1;
    }
    wait_for_metric(service, r#"routing_map_refreshes_total{reason="change"}"#, |count| count > changes)
        .await?;
    load.acknowledge(100).await?;
    Ok(done)
}
