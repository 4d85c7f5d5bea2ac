//! A mixed load while shards move to and fro and one is split, with the ledger.

use std::cell::Cell;

use anyhow::{Context as _, Result};
use tokio_postgres::Client;

use super::{
    measure::{Bench, Load, MIXED, Measured, NO_CITUS},
    mixed::ledger_row,
    service::Service,
};
use crate::{
    report::Report,
    run::audit_file,
    table::{Limit, Row},
};

/// Share of first attempts that may fail.
const FAILED: Limit = Limit::AtMost(0.0001);
/// How often a request that failed is sent again, with the same `client_msg_id`.
const RETRIES: u8 = 5;
/// The load, as a share of peak: moving takes processors, too.
const SHARE: f64 = 0.4;

/// What is moved.
struct Shard {
    id: i64,
    first: i32,
    last: i32,
    from: i32,
    to: i32,
}

/// What the clients notice, and what the ledger says.
#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
pub(super) async fn rows(bench: &Bench<'_>, api: &Service) -> Result<Vec<Row>> {
    let whats = [
        "share of requests that failed at first, while shards move and split",
        "requests that failed after retries with the same key",
        "longest wait of a shard group's sends for an acknowledgement, in ms",
    ];
    if !bench.stand.is_citus() {
        return Ok(whats.map(|what| Row::not_measured(what, NO_CITUS)).into());
    }
    let peak = bench.measure(api, MIXED).await?.per_second;
    let rate = peak * SHARE;
    let load = load(Some(rate));
    let (measured, changes) = under_load(bench, api, load).await?;
    let Measured { report, .. } = &measured;
    let Report { sends, lists, dropped, .. } = report;
    let requests = sends.requests + lists.requests;
    let retried = sends.after_retry + lists.after_retry;
    let failed = measured.failed() - dropped;
    let figures = format!(
        "{} of {requests} in {} s at {rate:.0} arrivals/s with {changes} moves and a split, {dropped} dropped",
        retried + failed,
        bench.size.moves.as_secs()
    );
    let gap = report
        .shard_groups
        .iter()
        .max_by(|one, other| one.gap.longest_wait_ms.total_cmp(&other.gap.longest_wait_ms))
        .context("no shard group")?;
    let [at_first, after_retries, longest] = whats;
    let waited = format!(
        "shard {} on {}; over all groups, asked for or not, {:.0} ms without one",
        gap.shard,
        gap.node,
        report.worst_group().map_or(0.0, |group| group.gap.longest_gap_ms)
    );
    Ok(vec![
        Row::ratio(at_first, figures, (retried + failed + dropped) as f64 / requests as f64, FAILED),
        Row::ratio(after_retries, format!("{failed} of {requests}"), failed as f64, Limit::AtMost(0.0)),
        Row::ratio(longest, waited, gap.gap.longest_wait_ms, Limit::None),
        ledger_row("while shards move and split", [&measured]),
    ])
}

/// The load, at so many arrivals per second.
pub(super) fn load(rate: Option<f64>) -> Load {
    Load { rate, retries: Some(RETRIES), ..MIXED }
}

/// Moves one shard after the other until the load ends, and splits one of them after the first. The shards are read
/// when nothing moves any more.
async fn under_load(bench: &Bench<'_>, api: &Service, load: Load) -> Result<(Measured, u64)> {
    let sql = bench.stand.coordinator().connect("dialog").await?;
    let ended = Cell::new(false);
    let measured = async {
        let measured = bench.measure_for(api, load, bench.size.moves).await;
        ended.set(true);
        measured
    };
    let changes = async {
        let mut moves = 0;
        while !ended.get() {
            move_shard(&sql, &shard(&sql, moves).await?).await?;
            if moves == 0 {
                split(&sql).await?;
            }
            moves += 1;
        }
        anyhow::Ok(moves)
    };
    let (measured, moves) = futures::join!(measured, changes);
    let (mut measured, moves) = (measured?, moves?);
    let (audit, places) = audit_file(&bench.stand.database()?, &bench.ledger()).await?;
    let report = &mut measured.report;
    (report.audit, report.shard_groups, report.nodes) = (Some(audit), places.shard_groups, places.nodes);
    Ok((measured, moves))
}

/// A shard of the messages, another one each time, and where it can go.
async fn shard(sql: &Client, number: u64) -> Result<Shard> {
    let query = "SELECT shardid, shardminvalue::int, shardmaxvalue::int, here.nodeid, there.nodeid
                 FROM pg_dist_shard
                 JOIN pg_dist_placement USING (shardid)
                 JOIN pg_dist_node here USING (groupid)
                 JOIN pg_dist_node there ON there.groupid > 0 AND there.nodeid <> here.nodeid
                 WHERE logicalrelid = 'messages'::regclass
                 ORDER BY shardid
                 OFFSET $1 % (SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = 'messages'::regclass)
                 LIMIT 1";
    let row = sql.query_one(query, &[&i64::try_from(number)?]).await.context("read where the shards are")?;
    Ok(Shard { id: row.get(0), first: row.get(1), last: row.get(2), from: row.get(3), to: row.get(4) })
}

async fn move_shard(sql: &Client, shard: &Shard) -> Result<()> {
    let query = "SELECT citus_move_shard_placement($1, $2, $3, 'force_logical')";
    sql.query(query, &[&shard.id, &shard.from, &shard.to])
        .await
        .with_context(|| format!("move shard {}", shard.id))?;
    Ok(())
}

/// In two halves, both on the other worker: with a child on the node that is cut from, Citus hangs under writes.
async fn split(sql: &Client) -> Result<()> {
    let Shard { id, first, last, to, .. } = shard(sql, 1).await?;
    let query =
        "SELECT citus_split_shard_by_split_points($1, ARRAY[$2], ARRAY[$3, $3]::int[], 'force_logical')";
    sql.query(query, &[&id, &i32::midpoint(first, last).to_string(), &to])
        .await
        .with_context(|| format!("split shard {id}"))?;
    Ok(())
}
