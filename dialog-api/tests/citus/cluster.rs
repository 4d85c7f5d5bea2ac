//! The cluster that the tests share: a coordinator and workers on this machine, certificates between all.

use anyhow::{Context as _, Result};
use dialog_api::{dialogs::pair::Pair, migrations::TABLES};
use tempfile::TempDir;
use testbed::{certificates::Authority, postgres::Server};
use tokio_postgres::Client as Sql;

use crate::support::{Client, Service, User, eventually, proxy::Proxy};

pub(crate) const SHARDS: i32 = 12;

/// A coordinator and its workers, with the role and the database on each and the extension in it.
pub(crate) struct Cluster {
    authority: Authority,
    /// Certificates of the service.
    identities: TempDir,
    pub(crate) coordinator: Server,
    pub(crate) workers: Vec<Server>,
    /// The ways to the workers, if everybody is to use one that can be interrupted.
    pub(crate) ways: Vec<Proxy>,
}

impl Cluster {
    /// With so many workers.
    pub(crate) async fn new(workers: usize) -> Result<Self> {
        let cluster = Self::start(workers).await?;
        cluster.register().await?;
        Ok(cluster)
    }

    /// With so many workers, which the service and the other nodes reach by ways that can be interrupted.
    pub(crate) async fn interruptible(workers: usize) -> Result<Self> {
        let mut cluster = Self::start(workers).await?;
        for worker in &cluster.workers {
            cluster.ways.push(Proxy::to(worker.port()).await?);
        }
        cluster.register().await?;
        Ok(cluster)
    }

    async fn start(workers: usize) -> Result<Self> {
        let authority = Authority::new()?;
        let start = |name: &str| Server::builder(name).citus().tls(&authority).start();
        let coordinator = start("coordinator")?;
        let workers =
            (0..workers).map(|number| start(&format!("worker-{number}"))).collect::<Result<Vec<_>>>()?;
        for node in std::iter::once(&coordinator).chain(&workers) {
            let postgres = node.connect("postgres").await?;
            postgres.batch_execute("CREATE ROLE dialog_api LOGIN").await?;
            postgres.batch_execute("CREATE DATABASE dialog OWNER dialog_api").await?;
            node.connect("dialog").await?.batch_execute("CREATE EXTENSION citus").await?;
            allow_output_plugin(&postgres).await?;
        }
        let ways = Vec::new();
        Ok(Self { authority, identities: tempfile::tempdir()?, coordinator, workers, ways })
    }

    async fn register(&self) -> Result<()> {
        let sql = self.coordinator.connect("dialog").await?;
        let port = i32::from(self.coordinator.port());
        sql.execute("SELECT citus_set_coordinator_host('localhost', $1)", &[&port]).await?;
        for worker in 0..self.workers.len() {
            sql.execute("SELECT citus_add_node('localhost', $1)", &[&self.worker_port(worker)]).await?;
        }
        Ok(())
    }

    /// The port by which Citus knows a worker.
    pub(crate) fn worker_port(&self, worker: usize) -> i32 {
        i32::from(self.ways.get(worker).map_or_else(|| self.workers[worker].port(), Proxy::port))
    }

    /// What the operator does once the tables exist.
    pub(crate) async fn distribute(&self) -> Result<()> {
        let sql = self.coordinator.connect("dialog").await?;
        for (column, tables) in [
            ("dialog_id", ["messages", "messages_archive", "dialogs", "dialog_state"]),
            ("user_id", ["users", "credentials", "user_dialogs", "erasures"]),
        ] {
            for table in tables {
                let first = table == tables[0];
                let colocate = if first { "none" } else { tables[0] };
                let shards = if first { format!(", shard_count := {SHARDS}") } else { String::new() };
                sql.batch_execute(&format!(
                    "SELECT create_distributed_table('{table}', '{column}', colocate_with := '{colocate}'{shards})"
                ))
                .await
                .with_context(|| format!("distribute {table}"))?;
            }
        }
        Ok(())
    }

    /// Starts the service for this cluster.
    pub(crate) fn service(&self, more: &[&str]) -> Result<Service> {
        let files = self.authority.write(&self.authority.client("dialog-api")?, self.identities.path())?;
        let [ca, certificate, key] =
            [&files.ca, &files.certificate, &files.key].map(|path| path.display().to_string());
        let port = self.coordinator.port().to_string();
        let flags = ["--database-host", "localhost", "--database-port", &port, "--tls-ca", &ca];
        let identity = ["--tls-cert", &certificate, "--tls-key", &key];
        Service::spawn_with(&[&flags[..], &identity[..], more].concat())
    }

    /// The service with its tables distributed, as the operator has it come up.
    pub(crate) async fn serving(&self, more: &[&str]) -> Result<Service> {
        let service = self.service(more)?;
        wait_for_undistributed_tables(&service).await?;
        self.distribute().await?;
        service.wait_until_ready().await?;
        Ok(service)
    }
}

/// A cluster with so many workers whose tables are distributed, and the service in front of it.
pub(crate) async fn serving(workers: usize, more: &[&str]) -> Result<(Cluster, Service)> {
    let cluster = Cluster::new(workers).await?;
    let service = cluster.serving(more).await?;
    wait_for_metric(&service, r#"routing_mode{mode="owner"}"#, |value| value > 0.0).await?;
    Ok((cluster, service))
}

/// Pairs of users whose dialogs are on this worker; they have exchanged a message.
pub(crate) async fn pairs_on(
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
        if port == cluster.worker_port(worker) {
            assert_eq!(client.send(&one, &other, "first").await?.status, 200);
            pairs.push((one, other));
        }
        if pairs.len() == wanted {
            return Ok(pairs);
        }
    }
    anyhow::bail!("too few dialogs of worker {worker}")
}

/// The present value of a metric of the service; without the prefix of all its metrics.
pub(crate) async fn metric(service: &Service, name: &str) -> Result<f64> {
    let text = service.client().get("/metrics").await?.text();
    let found =
        text.lines().find_map(|line| line.strip_prefix("dialog_api_")?.strip_prefix(name)?.strip_prefix(' '));
    found.with_context(|| format!("{name} is not in\n{text}"))?.parse().context("a number")
}

/// Waits until a metric is as wanted.
pub(crate) async fn wait_for_metric(
    service: &Service,
    name: &str,
    wanted: impl Fn(f64) -> bool,
) -> Result<()> {
    eventually(name, async || {
        // A metric of a server may come only with the server.
        Ok(metric(service, name).await.ok().filter(|value| wanted(*value)).map(|_| ()))
    })
    .await
    .with_context(|| service.log_text())
}

/// Waits until the service waits for its tables to be distributed.
async fn wait_for_undistributed_tables(service: &Service) -> Result<()> {
    eventually("a service that waits for its tables to be distributed", async || {
        let body = service.client().get("/ready").await?.text();
        let waits = TABLES.iter().all(|table| body.contains(table)) && body.contains("to be distributed");
        Ok(waits.then_some(()))
    })
    .await
    .with_context(|| service.log_text())
}

/// Has the server load Citus' output plugin, which cutting a table under load needs. Minors that do not know
/// the parameter load any.
async fn allow_output_plugin(postgres: &Sql) -> Result<()> {
    const LISTED: &str =
        "SELECT setting LIKE '%citus%' FROM pg_settings WHERE name = 'output_plugin_libraries'";
    if postgres.query_opt(LISTED, &[]).await?.is_none() {
        return Ok(());
    }
    postgres
        .batch_execute("ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, citus")
        .await?;
    postgres.batch_execute("SELECT pg_reload_conf()").await?;
    eventually("the new output_plugin_libraries", async || {
        Ok(postgres.query_one(LISTED, &[]).await?.get::<_, bool>(0).then_some(()))
    })
    .await
}
