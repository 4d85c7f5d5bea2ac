//! What it costs that the servers count what tenants do, which the operator has them do to find hot ones.

use anyhow::{Context as _, Result, ensure};

use super::{
    measure::{Bench, KINDS, NO_CITUS, failures, name, speed},
    service::Service,
};
use crate::table::{Limit, Row};

const LIMIT: Limit = Limit::AtLeast(0.95);

/// Throughput with tenants counted on all nodes against without, for both kinds of request.
pub(super) async fn rows(bench: &Bench<'_>, api: &Service) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (kind, load) in KINDS {
        let what = format!("{}s per second, with tenants counted against without", name(kind));
        if !bench.stand.is_citus() {
            rows.push(Row::not_measured(what, NO_CITUS));
            continue;
        }
        let (mut counted, mut uncounted) = (Vec::new(), Vec::new());
        for round in 0..bench.size.rounds {
            // Each comes first in turn: what has been written before makes the next a little slower.
            let first = round % 2 == 0;
            for count in [first, !first] {
                set(bench, count).await?;
                let measured = bench.measure(api, load).await?;
                ensure!(
                    !count || tenants(bench).await? > 0,
                    "no worker lists a tenant after a load that was to be counted: nothing would be compared"
                );
                if count { &mut counted } else { &mut uncounted }.push(measured);
            }
        }
        set(bench, false).await?;
        let (one, other) = (speed(&counted), speed(&uncounted));
        let failed = failures(counted.iter().chain(&uncounted));
        let figures = format!("{one:.0}/s against {other:.0}/s{failed}");
        rows.push(Row::ratio(what, figures, one / other, LIMIT));
    }
    Ok(rows)
}

/// Has tenants counted, or not, by all nodes. Sessions take it over before their next statement, and that is before the
/// warm-up of a load has ended.
async fn set(bench: &Bench<'_>, count: bool) -> Result<()> {
    let track = if count { "all" } else { "none" };
    for node in bench.stand.nodes() {
        let sql = node.connect("dialog").await?;
        for statement in
            [&format!("ALTER SYSTEM SET citus.stat_tenants_track = '{track}'"), "SELECT pg_reload_conf()"]
        {
            sql.batch_execute(statement).await.context("have tenants counted, or not")?;
        }
        // What was counted before would look as if it had been counted now.
        sql.batch_execute("SELECT citus_stat_tenants_local_reset()").await.context("forget tenants")?;
    }
    Ok(())
}

/// Tenants that the workers have counted.
async fn tenants(bench: &Bench<'_>) -> Result<i64> {
    let mut tenants = 0;
    for worker in bench.stand.workers() {
        let sql = worker.connect("dialog").await?;
        let listed = "SELECT count(*) FROM citus_stat_tenants_local(true)";
        tenants += sql.query_one(listed, &[]).await.context("list tenants")?.get::<_, i64>(0);
    }
    Ok(tenants)
}
