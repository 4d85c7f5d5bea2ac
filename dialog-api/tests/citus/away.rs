//! Workers that are away for long, that hang, and that only others reach: whom that concerns, and how they are answered.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join, join_all};
use testbed::postgres::{Server, Shutdown, citus_or_skip};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    cluster::{Cluster, metric, pairs_on, serving, wait_for_metric},
    support::{Client, Service, User, eventually, service::attempts},
};

/// Sends until the answer is this status.
async fn send_until(client: &Client, (from, to): &(User, User), status: u16) -> Result<()> {
    eventually(&format!("a send that is answered {status}"), async || {
        let answer = client.send(from, to, "meanwhile").await?;
        ensure!([200, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
        Ok((answer.status == status).then_some(()))
    })
    .await
}

/// How many statements have waited for a worker up to now.
async fn waits(cluster: &Cluster, worker: usize, service: &Service) -> Result<f64> {
    metric(service, &format!("node_waits_total{{node=\"localhost:{}\"}}", cluster.worker_port(worker))).await
}

/// Asks for these dialogs of a worker again and again. They are refused at once: no statement waits for it.
async fn refused_at_once(
    cluster: &Cluster,
    worker: usize,
    service: &Service,
    dialogs: &[(User, User)],
) -> Result<()> {
    let (client, before) = (service.client(), waits(cluster, worker, service).await?);
    for _ in 0..8 {
        for (one, other) in dialogs {
            client.send(one, other, "refused").await?.assert_error(503);
            client.list(one, other).await?.assert_error(503);
        }
    }
    let waited = waits(cluster, worker, service).await? - before;
    ensure!(waited < 1.0, "{waited} statements have waited\n{}", service.log_text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_away_costs_its_own_dialogs_only() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &["--database-timeout", "10s"]).await?;
    let client = service.client();
    let lost = pairs_on(&cluster, 0, &client, 4).await?;
    let kept = pairs_on(&cluster, 1, &client, 4).await?;

    cluster.workers[0].stop(Shutdown::Immediate)?;
    // Those who wait for the lost worker, all at once, are in nobody's way.
    let waiting = join_all((0..400).map(|number| send_until(&client, &lost[number % 4], 503)));
    let others = async {
        for number in 0..200 {
            let (one, other) = &kept[number % 4];
            assert_eq!(client.send(one, other, "unaffected").await?.status, 200, "{}", service.log_text());
            assert_eq!(client.list(one, other).await?.status, 200);
        }
        anyhow::Ok(())
    };
    let (waiting, others) = join(waiting, others).await;
    others?;
    for waited in waiting {
        waited?;
    }
    assert!(waits(&cluster, 0, &service).await? > 0.0, "nobody has waited: nothing is tested");
    assert!(waits(&cluster, 1, &service).await? < 1.0, "others have waited with them");
    refused_at_once(&cluster, 0, &service, &lost).await?;

    cluster.workers[0].start()?;
    for pair in &lost {
        send_until(&client, pair, 200).await?;
    }
    Ok(())
}

/// With the limits that everybody has: what is away for longer than a switchover takes is waited for once, for 4 s at most,
/// and whoever comes later is told at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stays_away_is_waited_for_once() -> Result<()> {
    const SENDS: usize = 40;
    /// They come in four moments.
    const BETWEEN: Duration = Duration::from_secs(1);
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &[]).await?;
    let client = service.client();
    let lost = pairs_on(&cluster, 0, &client, 2).await?;
    let kept = pairs_on(&cluster, 1, &client, 2).await?;
    cluster.workers[0].stop(Shutdown::Immediate)?;
    // All wait for the same moment, whenever they came.
    let refused = join_all((0..SENDS).map(|number| {
        let ((one, other), client) = (&lost[number % 2], &client);
        async move {
            sleep(BETWEEN * u32::try_from(number % 4)?).await;
            client.send(one, other, &format!("in vain {number}")).await?.assert_error(503);
            anyhow::Ok(Instant::now())
        }
    }));
    let others = async {
        for (one, other) in kept.iter().cycle().take(40) {
            ensure!(client.send(one, other, "unaffected").await?.status == 200, "{}", service.log_text());
        }
        Ok(())
    };
    let (refused, others) = join(refused, others).await;
    others?;
    let ends: Vec<Instant> = refused.into_iter().collect::<Result<_>>()?;
    // Those of a wait of each one's own would be as far apart as they came, which was three times that.
    let (earliest, latest) = (ends.iter().min().context("sends")?, ends.iter().max().context("sends")?);
    ensure!(*latest - *earliest < 2 * BETWEEN, "{:?} lie between the ends of the wait", *latest - *earliest);
    let waited = waits(&cluster, 0, &service).await?;
    ensure!(waited >= 20.0, "{waited} of {SENDS} have waited: nothing is tested");
    refused_at_once(&cluster, 0, &service, &lost).await
}

/// Who would rather be told than wait can have it so.
#[tokio::test(flavor = "multi_thread")]
async fn without_grace_nobody_waits_for_a_worker() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let (mut cluster, service) = serving(2, &["--database-grace", "0s"]).await?;
    let client = service.client();
    let lost = pairs_on(&cluster, 0, &client, 2).await?;
    let kept = pairs_on(&cluster, 1, &client, 2).await?;
    cluster.workers[0].stop(Shutdown::Immediate)?;
    refused_at_once(&cluster, 0, &service, &lost).await?;
    assert!(waits(&cluster, 0, &service).await? < 1.0, "{}", service.log_text());
    for (one, other) in &kept {
        assert_eq!(client.send(one, other, "unaffected").await?.status, 200, "{}", service.log_text());
    }
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
    let owner = "SELECT nodeport FROM citus_shards
                 WHERE shardid = get_shard_id_for_distribution_column('users', $1::uuid)";
    let sql = cluster.coordinator.connect("dialog").await?;
    // Dialogs that are kept, until there is somebody in them whose own worker is lost.
    let (mut kept, mut lost) = (Vec::new(), 0);
    while lost == 0 {
        let pairs = pairs_on(&cluster, 1, &service.client(), 2).await?;
        for user in pairs.iter().flat_map(|(one, other)| [one, other]) {
            let port: i32 = sql.query_one(owner, &[&user.id.parse::<Uuid>()?]).await?.get(0);
            lost += usize::from(port == cluster.worker_port(0));
        }
        kept.extend(pairs);
    }

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
    if !citus_or_skip() {
        return Ok(());
    }
    let (cluster, service) = serving(2, &["--database-timeout", "10s"]).await?;
    let client = service.client();
    let lost = pairs_on(&cluster, 0, &client, 2).await?;
    let kept = pairs_on(&cluster, 1, &client, 2).await?;
    // Attempts that have waited in vain, but for what the service asks all shards by itself now and then.
    let in_vain = || {
        let log = service.log_text();
        let waited = log.lines().filter(|line| line.contains(r#""failure":"no answer in time""#));
        waited.filter(|line| !line.contains(r#""statement":"list_erasures""#)).count()
    };
    assert_eq!(in_vain(), 0, "{}", attempts(&service));

    let frozen = Frozen::new(&cluster.workers[0])?;
    send_until(&client, &lost[0], 503).await?;
    let waited = in_vain();
    assert!(waited > 0, "nothing has hung: nothing is tested");
    // More requests than there are connections, any of which might still be thought to work.
    refused_at_once(&cluster, 0, &service, &lost).await?;
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
