//! Statements go straight to the worker that owns their shard, need no coordinator for it, and share what they ask.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_api::dialogs::pair::Pair;
use testbed::postgres::{Server, Shutdown, citus_or_skip};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client as Sql;

use crate::{
    cluster::{Cluster, metric, pairs_on, serving, wait_for_metric},
    support::{Service, eventually},
};

/// Sessions that other nodes have on this server for statements that they passed on.
async fn sessions_of_other_nodes(server: &Server) -> Result<i64> {
    let count = "SELECT count(*) FROM pg_stat_activity
                 WHERE application_name LIKE 'citus_internal%' AND usename = 'dialog_api'";
    Ok(server.connect("dialog").await?.query_one(count, &[]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_go_straight_to_the_owner_and_need_no_coordinator() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);

    cluster.coordinator.stop(Shutdown::Fast)?;
    wait_for_metric(
        &service,
        &format!("node_connections_live{{node=\"localhost:{}\"}}", cluster.coordinator.port()),
        |live| live < 1.0,
    )
    .await?;
    let before = metric(&service, r#"routing_statements_total{route="owner"}"#).await?;
    // Users and dialogs on both workers, old and new.
    for number in 0..20 {
        let peer = client.user(&format!("peer {number}")).await?;
        for (from, to) in [(&ada, &peer), (&peer, &bob)] {
            assert_eq!(
                client.send(from, to, "without a coordinator").await?.status,
                200,
                "{}",
                service.log_text()
            );
            assert_eq!(client.texts(to, from).await?, ["without a coordinator"]);
        }
    }
    let sent = metric(&service, r#"routing_statements_total{route="owner"}"#).await? - before;
    assert!(sent >= 100.0, "{sent} statements went to their owners");
    for worker in &cluster.workers {
        assert_eq!(sessions_of_other_nodes(worker).await?, 0, "statements were passed on between workers");
    }
    assert_eq!(client.get("/ready").await?.status, 200, "nearly all requests can be handled");

    cluster.coordinator.start()?;
    wait_for_metric(&service, r#"routing_map_refreshes_total{reason="start"}"#, |count| count > 1.0).await?;
    assert_eq!(client.send(&ada, &bob, "with one again").await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_moved_is_found_at_its_new_place() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &[]).await?;
    let client = service.client();
    let pairs = pairs_on(&cluster, 0, &client, 3).await?;
    let sql = cluster.coordinator.connect("dialog").await?;
    let reads = metric(&service, r#"routing_map_refreshes_total{reason="change"}"#).await?;
    sql.batch_execute(
        "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', false) FROM pg_dist_node WHERE groupid = 1",
    )
    .await?;
    sql.query("SELECT citus_drain_node('localhost', $1)", &[&i32::from(cluster.workers[0].port())]).await?;
    wait_for_metric(&service, r#"routing_map_refreshes_total{reason="change"}"#, |count| count > reads)
        .await?;
    // The old place is no longer connected to.
    let gone = format!("localhost:{}", cluster.workers[0].port());
    eventually("the end of the connections to the old place", async || {
        Ok((!client.get("/metrics").await?.text().contains(&gone)).then_some(()))
    })
    .await?;
    cluster.workers[0].stop(Shutdown::Immediate)?;
    // The coordinator keeps sessions for the statements that went through it at the start.
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'citus_internal%'";
    cluster.workers[1].connect("dialog").await?.query(end, &[]).await?;
    for (one, other) in &pairs {
        assert_eq!(client.send(one, other, "second").await?.status, 200);
        assert_eq!(client.texts(other, one).await?, ["second", "first"]);
    }
    assert_eq!(sessions_of_other_nodes(&cluster.workers[1]).await?, 0);
    Ok(())
}

/// How often the map was read because somebody said that it has changed.
const NOTICED: &str = r#"routing_map_refreshes_total{reason="notice"}"#;

/// Moves one shard after the other, and says so as the operator does, until a reading of the map is owed to that. (The service
/// also looks by itself, every second, and may have seen a move in the moment before it is told of it.) None goes back to
/// where its old table may still be.
async fn move_until_noticed(sql: &Sql, service: &Service) -> Result<()> {
    const MOVES: usize = 5;
    let before = metric(service, NOTICED).await?;
    for _ in 0..MOVES {
        let moved = "SELECT citus_move_shard_placement(shardid, source.nodeid, target.nodeid, 'block_writes')
                     FROM pg_dist_placement JOIN pg_dist_node AS source USING (groupid), pg_dist_node AS target
                     WHERE shardid = (SELECT min(shardid) FROM pg_dist_shard WHERE logicalrelid = 'messages'::regclass
                                        AND NOT EXISTS (SELECT FROM pg_dist_cleanup
                                                        WHERE object_name = 'public.messages_' || shardid))
                       AND target.groupid NOT IN (0, source.groupid)";
        ensure!(sql.query(moved, &[]).await?.len() == 1);
        sql.batch_execute("NOTIFY dialog_map").await?;
        // Well before the look that comes without a notice.
        let until = Instant::now() + Duration::from_millis(900);
        let noticed = wait_for_metric(service, NOTICED, |count| count > before);
        if let Ok(noticed) = timeout_at(until, noticed).await {
            return noticed;
        }
    }
    anyhow::bail!("{MOVES} notices, and none led to a reading of the map\n{}", service.log_text())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_of_change_is_enough_to_read_the_map() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &[]).await?;
    let sql = cluster.coordinator.connect("dialog").await?;
    move_until_noticed(&sql, &service).await?;
    // A coordinator that comes back knows nothing of those who listened before.
    cluster.coordinator.restart(Shutdown::Fast)?;
    wait_for_metric(&service, r#"routing_map_refreshes_total{reason="start"}"#, |count| count > 1.0).await?;
    let sql = cluster.coordinator.connect("dialog").await?;
    move_until_noticed(&sql, &service).await
}

/// What Citus has counted of a dialog on this server: all queries, and those of them that only read. The other servers count
/// nothing of it.
async fn counted(server: &Server, dialog: &str) -> Result<[i64; 2]> {
    let listed = "SELECT coalesce(sum(query_count_in_this_period + query_count_in_last_period), 0)::int8,
                         coalesce(sum(read_count_in_this_period + read_count_in_last_period), 0)::int8
                  FROM citus_stat_tenants_local(true) WHERE tenant_attribute = $1";
    let row = server.connect("dialog").await?.query_one(listed, &[&dialog]).await?;
    Ok([row.get(0), row.get(1)])
}

/// Prepared statements whose shard is on the server itself were not always counted by Citus. If they were not, nobody would
/// ever see that a dialog is hot.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_straight_to_the_owner_is_counted_there_for_its_dialog() -> Result<()> {
    const MESSAGES: i64 = 40;
    const LISTS: i64 = 60;
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::new(2).await?;
    for node in std::iter::once(&cluster.coordinator).chain(&cluster.workers) {
        let postgres = node.connect("postgres").await?;
        // Nothing leaves the list while the test lasts.
        for statement in [
            "ALTER SYSTEM SET citus.stat_tenants_track = 'all'",
            "ALTER SYSTEM SET citus.stat_tenants_period = 86400",
            "SELECT pg_reload_conf()",
        ] {
            postgres.batch_execute(statement).await?;
        }
        eventually("a server that counts", async || {
            let track = "SELECT current_setting('citus.stat_tenants_track') = 'all'";
            let sql = node.connect("dialog").await?;
            Ok(sql.query_one(track, &[]).await?.get::<_, bool>(0).then_some(()))
        })
        .await?;
    }
    let service = cluster.serving(&[]).await?;
    wait_for_metric(&service, r#"routing_mode{mode="owner"}"#, |value| value > 0.0).await?;
    let client = service.client();
    for worker in 0..cluster.workers.len() {
        let (one, other) = pairs_on(&cluster, worker, &client, 1).await?.pop().context("a pair")?;
        let dialog = Pair::new(one.id.parse()?, other.id.parse()?).dialog_id().to_string();
        let before = counted(&cluster.workers[worker], &dialog).await?;
        let [hits_before, all_before] = hits(&service).await?;
        for number in 0..MESSAGES {
            assert_eq!(client.send(&one, &other, &number.to_string()).await?.status, 200);
        }
        for _ in 0..LISTS {
            assert_eq!(client.list(&other, &one).await?.status, 200);
        }
        let [hits, all] = hits(&service).await?;
        assert!((hits - hits_before - (all - all_before)).abs() < 0.5, "all went to their owners");
        let after = counted(&cluster.workers[worker], &dialog).await?;
        let [queries, reads] = [after[0] - before[0], after[1] - before[1]];
        println!("{queries} queries, {reads} of them reads, for {MESSAGES} messages and {LISTS} lists");
        assert!(queries - reads >= MESSAGES, "{} writes of {MESSAGES} messages", queries - reads);
        assert!(reads >= LISTS, "{reads} reads of {LISTS} lists");
        for elsewhere in cluster.workers.iter().enumerate().filter(|(other, _)| *other != worker) {
            assert_eq!(counted(elsewhere.1, &dialog).await?, [0, 0], "it is another's");
        }
    }
    Ok(())
}

/// Statements that went to their owners, and all that have one, as `docs/shard-routing.md` counts them.
async fn hits(service: &Service) -> Result<[f64; 2]> {
    const SERIES: &str = "dialog_api_routing_statements_total";
    const HIT: &str = r#"route="owner""#;
    const WITHOUT_OWNER: &str = "all_shards";
    let rate = |selector: &str| format!("sum(rate({SERIES}{{{selector}}}[5m]))");
    let documented = format!("{} / {}", rate(HIT), rate(&format!(r#"route!="{WITHOUT_OWNER}""#)));
    ensure!(include_str!("../../../docs/shard-routing.md").contains(&documented), "{documented}");
    let (mut hits, mut counted) = (0.0, 0.0);
    for line in service.client().get("/metrics").await?.text().lines() {
        let Some(line) = line.strip_prefix(SERIES) else { continue };
        let (labels, count) = line.split_once(' ').context("a number")?;
        let count: f64 = count.parse()?;
        if labels.contains(HIT) {
            hits += count;
        }
        if !labels.contains(WITHOUT_OWNER) {
            counted += count;
        }
    }
    Ok([hits, counted])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_an_owner_hits_it_once_the_map_is_known() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (_cluster, service) = serving(2, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let all_shards = r#"routing_statements_total{route="all_shards"}"#;
    let (before, searches) = (hits(&service).await?, metric(&service, all_shards).await?);
    for number in 0..20 {
        assert_eq!(client.send(&ada, &bob, &number.to_string()).await?.status, 200);
        assert_eq!(client.list(&bob, &ada).await?.status, 200);
        assert_eq!(client.get("/user/search?first_name=A&last_name=T").await?.status, 200);
    }
    assert!(metric(&service, all_shards).await? - searches >= 20.0);
    let after = hits(&service).await?;
    let [hits, counted] = [after[0] - before[0], after[1] - before[1]];
    assert!(hits >= 40.0, "{hits} hits");
    assert!((hits - counted).abs() < 0.5, "{hits} of {counted}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn switched_off_everything_goes_through_the_coordinator() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::new(1).await?;
    let service = cluster.serving(&["--routing", "off"]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    assert_eq!(client.send(&ada, &bob, "slowly").await?.status, 200);
    assert!(metric(&service, r#"routing_mode{mode="off"}"#).await? > 0.0);
    assert!(metric(&service, r#"routing_statements_total{route="owner"}"#).await? < 1.0);
    let [hits, counted] = hits(&service).await?;
    assert!(hits < 1.0 && counted > 0.0, "{hits} of {counted}");
    Ok(())
}

/// Many readers of one dialog, and a writer whose every acknowledged message the next reader has to see.
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_dialog_share_queries_and_see_what_was_acknowledged() -> Result<()> {
    const READERS: usize = 200;
    const READS: usize = 20;
    if !citus_or_skip() {
        return Ok(());
    }
    let (_cluster, service) = serving(2, &[]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    assert_eq!(client.send(&ada, &bob, "0").await?.status, 200);
    let queries = r#"database_statement_duration_seconds_count{statement="list_messages",outcome="ok"}"#;
    // The metric is there from the first list on.
    client.texts(&bob, &ada).await?;
    let before = metric(&service, queries).await?;
    let read = |number: usize| {
        let (client, ada, bob) = (&client, &ada, &bob);
        async move {
            for _ in 0..READS {
                let (reader, peer) = if number.is_multiple_of(2) { (bob, ada) } else { (ada, bob) };
                ensure!(client.list(reader, peer).await?.status == 200);
            }
            Ok(())
        }
    };
    let write = async {
        for number in 1..=20 {
            let text = number.to_string();
            ensure!(client.send(&ada, &bob, &text).await?.status == 200);
            let newest = client.texts(&bob, &ada).await?.into_iter().next().context("a message")?;
            ensure!(newest == text, "after {text} was acknowledged the newest is {newest}");
        }
        Ok(())
    };
    let (readers, writer) =
        futures::future::join(futures::future::join_all((0..READERS).map(read)), write).await;
    writer?;
    for reader in readers {
        reader?;
    }
    let queries = metric(&service, queries).await? - before;
    let shared = metric(&service, "database_reads_shared_total").await?;
    println!("{queries} queries for {} lists, {shared} shared", READERS * READS + 20);
    assert!(queries <= 200.0 + 20.0, "{queries} queries for 4020 lists");
    Ok(())
}
