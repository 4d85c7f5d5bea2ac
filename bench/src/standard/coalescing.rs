//! Many readers of one dialog: how many of their requests become queries, as the servers count them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::postgres::Server;

use super::{
    measure::{Bench, LISTS, Load, failures},
    service::Service,
};
use crate::{
    table::{Limit, Row},
    workload::Skew,
};

const READERS: usize = 200;
pub(super) const LOAD: Load = Load { skew: Skew::HotPair(1.0), connections: READERS, ..LISTS };
const LIMIT: Limit = Limit::AtMost(0.05);
/// A session hands in what it counted at the latest when it has been idle for ten seconds (PostgreSQL's
/// `PGSTAT_IDLE_INTERVAL`), and nothing tells when it has.
const COUNTED: Duration = Duration::from_secs(11);

/// Queries for each list.
#[allow(clippy::cast_precision_loss, reason = "counts of a few seconds")]
pub(super) async fn row(bench: &Bench<'_>, api: &Service) -> Result<Row> {
    let before = scans(bench).await?;
    let measured = bench.measure(api, LOAD).await?;
    // The servers count the warm-up's queries, too.
    let lists = measured.before + measured.report.lists.succeeded;
    let queries = scans(bench).await?.saturating_sub(before);
    ensure!(queries > 0, "the servers have counted no query for {lists} lists");
    let figures =
        format!("{queries} queries for {lists} lists, {:.0}/s{}", measured.per_second, failures([&measured]));
    let what = format!("queries per list, {READERS} readers of one dialog");
    Ok(Row::ratio(what, figures, queries as f64 / lists as f64, LIMIT))
}

/// Scans of the messages on all nodes so far.
async fn scans(bench: &Bench<'_>) -> Result<u64> {
    tokio::time::sleep(COUNTED).await;
    let mut all = 0;
    for node in bench.stand.nodes() {
        all += scans_of(node).await?;
    }
    Ok(all)
}

async fn scans_of(node: &Server) -> Result<u64> {
    let sql = node.connect("dialog").await?;
    // Citus hides shards from who looks into the catalogs. Without Citus this is a setting that nobody reads.
    sql.batch_execute("SET citus.override_table_visibility = off").await.context("see the shards")?;
    let count: i64 = sql
        .query_one(
            "SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint FROM pg_stat_all_tables
             WHERE schemaname = 'public' AND relname ~ '^messages(_[0-9]+)?$'",
            &[],
        )
        .await
        .context("read how often tables were scanned")?
        .get(0);
    Ok(u64::try_from(count)?)
}
