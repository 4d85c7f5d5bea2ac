//! The ledger on a real Citus: a coordinator and two workers on this machine.
//!
//! Where the citus extension is not installed this prints `SKIPPED citus: REASON` and checks nothing.

#[path = "support/mod.rs"]
mod support;

use anyhow::{Context as _, Result};
use dialog_bench::{
    ledger,
    run::{audit_file, run},
    stand::Stand,
};
use testbed::postgres::citus_or_skip;

use crate::support::Service;

/// Every shard is read on its node, before and after one of them has moved under the load; what is changed
/// behind the service's back on a worker is found.
#[tokio::test(flavor = "multi_thread")]
async fn every_shard_is_read_where_it_is() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let stand = Stand::start(2).await?;
    let service = Service::start(&stand, &["--distribution", "required"])?;
    service.wait_for("to be distributed").await?;
    stand.distribute().await?;
    service.wait_for("200 OK").await?;
    let population = service.load().await?;
    let mut plan = service.plan(population, 100.0, 5)?;
    plan.lists = 0.2;
    let sql = stand.coordinator().connect("dialog").await?;

    let path = plan.ledger.clone();
    let load = tokio::spawn(async move { run(&plan).await });
    support::wait_for_messages(&sql, 50).await?;
    let shard: i64 = sql
        .query_one("SELECT min(shardid) FROM pg_dist_shard WHERE logicalrelid = 'messages'::regclass", &[])
        .await?
        .get(0);
    let moved = "SELECT citus_move_shard_placement($1, p.nodename, p.nodeport, n.nodename, n.nodeport, 'force_logical')
         FROM pg_dist_shard_placement p, pg_dist_node n
         WHERE p.shardid = $1 AND n.groupid > 0 AND n.nodeport <> p.nodeport";
    sql.query_one(moved, &[&shard]).await.context("move a shard")?;
    let report = load.await??;
    let text = report.text();
    assert!(report.is_whole() && report.sends.failed.is_empty(), "{text}");
    let audit = report.audit.clone().unwrap();
    assert_eq!((audit.shards, report.shard_groups.len()), (48, 48), "{text}");
    assert_eq!(report.shard_groups.iter().map(|group| group.acknowledged).sum::<u64>(), audit.acknowledged);
    let node = |id: i64| report.shard_groups.iter().find(|group| group.shard == id).unwrap().node.clone();
    let now: i32 = sql
        .query_one("SELECT nodeport FROM pg_dist_shard_placement WHERE shardid = $1", &[&shard])
        .await?
        .get(0);
    assert_eq!(node(shard), format!("localhost:{now}"));
    let nodes: Vec<_> = report.nodes.iter().map(|node| node.node.clone()).collect();
    let workers: std::collections::BTreeSet<_> =
        report.shard_groups.iter().map(|group| group.node.clone()).collect();
    assert_eq!(nodes, Vec::from_iter(workers), "{text}");
    // Nobody was slower than the slowest of all.
    let slowest = report.nodes.iter().map(|node| node.latency_ms.max).fold(0.0, f64::max);
    assert!(slowest >= report.sends.latency_ms.max, "{:?}: {text}", report.nodes);

    // The groups are those that Citus itself puts the dialogs into.
    let (head, entries) = ledger::read_all(&path)?;
    let of_group = |id: i64| report.shard_groups.iter().find(|group| group.shard == id).unwrap().acknowledged;
    let mut by_citus = std::collections::BTreeMap::<i64, u64>::new();
    for entry in &entries {
        let dialog = head.population()?.dialog_id(entry.from, entry.to);
        let row = sql
            .query_one("SELECT get_shard_id_for_distribution_column('messages', $1::uuid)", &[&dialog])
            .await?;
        *by_citus.entry(row.get(0)).or_default() += 1;
    }
    assert!(by_citus.iter().all(|(shard, count)| of_group(*shard) == *count), "{by_citus:?}");

    // A row vanishes on one worker, another is there twice on the other.
    let groups: Vec<_> = by_citus.keys().copied().collect();
    for (worker, statement) in stand.workers().iter().zip([
        "DELETE FROM messages_ID WHERE message_id = (SELECT message_id FROM messages_ID WHERE text LIKE 'bench %' LIMIT 1)",
        "INSERT INTO messages_ID (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
         SELECT dialog_id, gen_random_uuid(), from_user_id, to_user_id, text, created_at
         FROM messages_ID WHERE text LIKE 'bench %' LIMIT 1",
    ]) {
        let here = format!("localhost:{}", worker.port());
        let shard = groups.iter().find(|shard| node(**shard) == here).context("a shard of this worker")?;
        let direct = worker.connect("dialog").await?;
        direct.batch_execute("SET citus.enable_manual_changes_to_shards = on").await?;
        let statement = statement.replace("messages_ID", &format!("messages_{shard}"));
        assert_eq!(direct.execute(&statement, &[]).await?, 1, "{statement}");
    }
    let (audit, _) = audit_file(service.database(), &path).await?;
    assert_eq!((audit.lost, audit.doubled), (1, 1), "{audit:?}");
    Ok(())
}
