//! Statements go straight to the worker that owns their shard, and what happens when it, or the coordinator, is
//! away.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dialog_api::dialogs::pair::Pair;
use testbed::postgres::{Server, Shutdown, citus_or_skip};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, metric, serving, wait_for_metric},
    support::{Client, User, eventually, service::attempts},
};

/// Sessions that other nodes have on this server for statements that they passed on.
async fn sessions_of_other_nodes(server: &Server) -> Result<i64> {
    let count = "SELECT count(*) FROM pg_stat_activity
                 WHERE application_name LIKE 'citus_internal%' AND usename = 'dialog_api'";
    Ok(server.connect("dialog").await?.query_one(count, &[]).await?.get(0))
}

/// Pairs of users whose dialogs are on this worker; they have exchanged a message.
async fn pairs_on(
    cluster: &Cluster,
    worker: usize,
    client: &Client,
    wanted: usize,
) -> Result<Vec<(User, User)>> {
    let sql = cluster.coordinator.connect("dialog").await?;
    let owner = "SELECT nodeport FROM citus_shards
                 WHERE shardid = get_shard_id_for_distribution_column('messages', $1::uuid)";
    let mut pairs = Vec::new();
    for number in 0..100 {
        let (one, other) =
            (client.user(&format!("one {number}")).await?, client.user(&format!("other {number}")).await?);
        let dialog = Pair::new(one.id.parse()?, other.id.parse()?).dialog_id();
        let port: i32 = sql.query_one(owner, &[&dialog]).await?.get(0);
        if port == i32::from(cluster.workers[worker].port()) {
            assert_eq!(client.send(&one, &other, "first").await?.status, 200);
            pairs.push((one, other));
        }
        if pairs.len() == wanted {
            return Ok(pairs);
        }
    }
    anyhow::bail!("too few dialogs of worker {worker}")
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

/// Sends until the answer is this status. Returns how long the last of them took.
async fn send_until(client: &Client, (from, to): &(User, User), status: u16) -> Result<Duration> {
    eventually(&format!("a send that is answered {status}"), async || {
        let started = Instant::now();
        let answer = client.send(from, to, "meanwhile").await?;
        ensure!([200, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
        Ok((answer.status == status).then(|| started.elapsed()))
    })
    .await
}

/// Asks for these dialogs again and again. They are refused at once: most answers come in less time than anything could
/// be waited for. (Most, because a busy machine may make any one of them wait.)
async fn refused_at_once(client: &Client, dialogs: &[(User, User)]) -> Result<()> {
    /// The shortest of what could be waited for is whether the coordinator reaches the worker: 1 s.
    const AT_ONCE: Duration = Duration::from_millis(500);
    let mut times = Vec::new();
    for _ in 0..8 {
        for (one, other) in dialogs {
            let started = Instant::now();
            client.send(one, other, "refused").await?.assert_error(503);
            times.push(started.elapsed());
            let started = Instant::now();
            client.list(one, other).await?.assert_error(503);
            times.push(started.elapsed());
        }
    }
    times.sort_unstable();
    ensure!(times[times.len() * 3 / 4] < AT_ONCE, "{times:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_away_costs_its_own_dialogs_only() -> Result<()> {
    /// As long a worker that was lost is waited for.
    const GRACE: Duration = Duration::from_secs(3);
    /// As long a statement may take.
    const LIMIT: Duration = Duration::from_secs(10);
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &["--database-timeout", "10s"]).await?;
    let client = service.client();
    let lost = pairs_on(&cluster, 0, &client, 4).await?;
    let kept = pairs_on(&cluster, 1, &client, 4).await?;

    cluster.workers[0].stop(Shutdown::Immediate)?;
    // Those who wait for the lost worker, all at once, are in nobody's way.
    let waiting =
        futures::future::join_all((0..400).map(|number| send_until(&client, &lost[number % 4], 503)));
    let others = async {
        let mut slowest = Duration::ZERO;
        for number in 0..200 {
            let ((one, other), started) = (&kept[number % 4], Instant::now());
            assert_eq!(client.send(one, other, "unaffected").await?.status, 200, "{}", service.log_text());
            assert_eq!(client.list(one, other).await?.status, 200);
            slowest = slowest.max(started.elapsed());
        }
        anyhow::Ok(slowest)
    };
    let (waited, slowest) = futures::future::join(waiting, others).await;
    let slowest = slowest?;
    assert!(slowest < GRACE, "a send and a list took {slowest:?}: they have waited with the others");
    for waited in waited {
        let waited = waited?;
        assert!(waited < LIMIT, "the first 503 took {waited:?}");
    }
    refused_at_once(&client, &lost).await?;

    cluster.workers[0].start()?;
    for pair in &lost {
        send_until(&client, pair, 200).await?;
    }
    Ok(())
}

/// A replica that has only just started knows nobody: whether it can send in a dialog depends on the dialog's worker, and
/// not on the one that holds the recipient.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_away_is_in_the_way_of_no_dialog_elsewhere() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &[]).await?;
    let kept = pairs_on(&cluster, 1, &service.client(), 4).await?;
    let owner = "SELECT nodeport FROM citus_shards
                 WHERE shardid = get_shard_id_for_distribution_column('users', $1::uuid)";
    let sql = cluster.coordinator.connect("dialog").await?;
    let mut lost = 0;
    for (one, other) in &kept {
        for user in [one, other] {
            let port: i32 = sql.query_one(owner, &[&user.id.parse::<Uuid>()?]).await?.get(0);
            lost += usize::from(port == i32::from(cluster.workers[0].port()));
        }
    }
    ensure!(lost > 0, "by chance nobody is on the worker that will be away");

    cluster.workers[0].stop(Shutdown::Immediate)?;
    let replica = cluster.service(&[])?;
    replica.wait_until_ready().await?;
    let client = replica.client();
    for (one, other) in &kept {
        assert_eq!(client.send(one, other, "to").await?.status, 200, "{}", replica.log_text());
        assert_eq!(client.send(other, one, "fro").await?.status, 200, "{}", replica.log_text());
        assert_eq!(client.texts(one, other).await?, ["fro", "to", "first"]);
    }
    Ok(())
}

/// All processes of a server, stopped where they are, as a machine is that hangs or that nothing reaches any more: its
/// connections stay open and nobody answers. They go on when this is dropped.
struct Frozen(Vec<String>);

impl Frozen {
    fn new(server: &Server) -> Result<Self> {
        let postmaster = server.pid().context("it does not run")?.to_string();
        // The postmaster first: from then on there are no new ones.
        let mut frozen = Self(vec![postmaster.clone()]);
        frozen.signal("STOP")?;
        for process in fs::read_dir("/proc")? {
            // It may have ended meanwhile.
            let Ok(stat) = fs::read_to_string(process?.path().join("stat")) else { continue };
            let (pid, rest) = stat.split_once(' ').context("a process id")?;
            let parent = rest.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1));
            if parent == Some(&postmaster) {
                frozen.0.push(pid.to_owned());
            }
        }
        frozen.signal("STOP")?;
        Ok(frozen)
    }

    fn signal(&self, signal: &str) -> Result<()> {
        ensure!(Command::new("kill").args(["-s", signal]).args(&self.0).status()?.success());
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.signal("CONT");
    }
}

/// No connection breaks, only the answers stay away. It takes one time limit to notice, for all connections together:
/// from then on no statement waits for that worker again.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_given_up_after_one_time_limit() -> Result<()> {
    /// As long a statement may take. An attempt has half of it.
    const LIMIT: Duration = Duration::from_secs(10);
    if !citus_or_skip() {
        return Ok(());
    }
    let (cluster, service) = serving(2, &["--database-timeout", "10s"]).await?;
    let client = service.client();
    let lost = pairs_on(&cluster, 0, &client, 2).await?;
    let kept = pairs_on(&cluster, 1, &client, 2).await?;
    // Attempts that have waited in vain, whoever made them.
    let in_vain = || service.log_text().matches(r#""failure":"no answer in time""#).count();
    assert_eq!(in_vain(), 0, "{}", attempts(&service));

    let frozen = Frozen::new(&cluster.workers[0])?;
    let noticed = send_until(&client, &lost[0], 503).await?;
    assert!(noticed < LIMIT, "{noticed:?}");
    let waited = in_vain();
    assert!(waited > 0, "nothing has hung: nothing is tested");
    // More requests than there are connections, any of which might still be thought to work.
    refused_at_once(&client, &lost).await?;
    for (one, other) in kept.iter().cycle().take(16) {
        assert_eq!(client.send(one, other, "unaffected").await?.status, 200, "{}", service.log_text());
    }
    assert_eq!(in_vain(), waited, "somebody else has waited in vain\n{}", attempts(&service));
    drop(frozen);
    for pair in &lost {
        send_until(&client, pair, 200).await?;
    }
    Ok(())
}

/// Where the service is shut out of a worker that the coordinator reaches, statements take the way through the
/// coordinator.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_out_of_reach_is_reached_through_the_coordinator() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (cluster, service) = serving(2, &[]).await?;
    let client = service.client();
    let pairs = pairs_on(&cluster, 0, &client, 2).await?;
    // The worker no longer takes the service's certificate for its role, only those of other nodes.
    let postgres = cluster.workers[0].connect("postgres").await?;
    let file: String = postgres.query_one("SHOW ident_file", &[]).await?.get(0);
    let rules = std::fs::read_to_string(&file)?;
    let ours = |line: &&str| line.split_whitespace().nth(1) == Some("dialog-api");
    let without: Vec<&str> = rules.lines().filter(|line| !ours(line)).collect();
    ensure!(without.len() + 1 == rules.lines().count(), "{rules}");
    std::fs::write(&file, without.join("\n") + "\n")?;
    postgres.batch_execute("SELECT pg_reload_conf()").await?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dialog-api'";
    postgres.query(end, &[]).await?;

    wait_for_metric(
        &service,
        &format!("node_connections_live{{node=\"localhost:{}\"}}", cluster.workers[0].port()),
        |live| live < 1.0,
    )
    .await?;
    for (one, other) in &pairs {
        assert_eq!(client.send(one, other, "second").await?.status, 200, "{}", service.log_text());
        assert_eq!(client.texts(other, one).await?, ["second", "first"]);
    }
    let detours = metric(&service, r#"routing_statements_total{route="detour"}"#).await?;
    assert!(detours > 0.0);

    std::fs::write(&file, rules)?;
    postgres.batch_execute("SELECT pg_reload_conf()").await?;
    wait_for_metric(
        &service,
        &format!("node_connections_live{{node=\"localhost:{}\"}}", cluster.workers[0].port()),
        |live| live >= 1.0,
    )
    .await
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
