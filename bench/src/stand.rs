//! Servers to measure on: PostgreSQL, or a Citus coordinator and its workers, on this machine.
//!
//! They write as they would in production: fsync and synchronous commits are on.

use anyhow::{Context as _, Result};
use dialog_api::database::tables::Table;
use testbed::postgres::{Server, citus_available};
use tokio_postgres::Client;

use crate::database::{Database, DatabaseArguments};

/// Shards of each table, as the operator makes them.
pub const SHARDS: i32 = 48;

/// Running servers with the role and the database of the service; stopped when dropped.
pub struct Stand {
    coordinator: Server,
    workers: Vec<Server>,
}

impl Stand {
    /// A coordinator and so many workers where the citus extension is installed and workers are wanted, else one
    /// PostgreSQL.
    ///
    /// # Errors
    /// When a server does not start.
    pub async fn start(workers: usize) -> Result<Self> {
        let workers = if citus_available().is_ok() { workers } else { 0 };
        let start = |name: &str| {
            let builder = Server::builder(name)
                .parameter("shared_buffers", "256MB")
                .parameter("max_connections", "400")
                .parameter("fsync", "on")
                .parameter("synchronous_commit", "on")
                .parameter("max_wal_size", "4GB");
            if workers > 0 { builder.citus().start() } else { builder.start() }
        };
        let coordinator = start("coordinator")?;
        let workers =
            (0..workers).map(|number| start(&format!("worker-{number}"))).collect::<Result<Vec<_>>>()?;
        let stand = Self { coordinator, workers };
        for node in stand.nodes() {
            let postgres = node.connect("postgres").await?;
            postgres.batch_execute("CREATE ROLE dialog_api LOGIN").await?;
            postgres.batch_execute("CREATE DATABASE dialog OWNER dialog_api").await?;
            if stand.is_citus() {
                node.connect("dialog").await?.batch_execute("CREATE EXTENSION citus").await?;
                allow_splits(&postgres).await?;
            }
        }
        if stand.is_citus() {
            let sql = stand.coordinator.connect("dialog").await?;
            let port = |node: &Server| i32::from(node.port());
            sql.execute("SELECT citus_set_coordinator_host('localhost', $1)", &[&port(&stand.coordinator)])
                .await?;
            for worker in &stand.workers {
                sql.execute("SELECT citus_add_node('localhost', $1)", &[&port(worker)]).await?;
            }
        }
        Ok(stand)
    }

    /// What the operator does once the service has made its tables. Nothing on a plain PostgreSQL.
    ///
    /// # Errors
    /// When Citus refuses.
    pub async fn distribute(&self) -> Result<()> {
        if !self.is_citus() {
            return Ok(());
        }
        let sql = self.coordinator.connect("dialog").await?;
        for table in Table::ALL {
            // Tables with the same key lie together, with the first of them.
            let first = Table::ALL.into_iter().find(|other| other.key() == table.key()).unwrap_or(table);
            let how = if first == table {
                format!("colocate_with := 'none', shard_count := {SHARDS}")
            } else {
                format!("colocate_with := '{}'", first.name())
            };
            let (name, key) = (table.name(), table.key());
            sql.batch_execute(&format!("SELECT create_distributed_table('{name}', '{key}', {how})"))
                .await
                .with_context(|| format!("distribute {name}"))?;
        }
        Ok(())
    }

    /// Whether there are workers.
    #[must_use]
    pub fn is_citus(&self) -> bool {
        !self.workers.is_empty()
    }

    /// PostgreSQL, or the coordinator.
    #[must_use]
    pub fn coordinator(&self) -> &Server {
        &self.coordinator
    }

    /// PostgreSQL, or the coordinator, to be stopped and started.
    pub fn coordinator_mut(&mut self) -> &mut Server {
        &mut self.coordinator
    }

    /// The workers.
    #[must_use]
    pub fn workers(&self) -> &[Server] {
        &self.workers
    }

    /// The coordinator and the workers.
    pub fn nodes(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.coordinator).chain(&self.workers)
    }

    /// The database as the bench reaches it: as the service's role, over TCP.
    ///
    /// # Errors
    /// When the service would not accept its address.
    pub fn database(&self) -> Result<Database> {
        Database::from_arguments(&DatabaseArguments {
            host: Some(self.coordinator.host().into()),
            port: self.coordinator.port(),
            name: "dialog".into(),
            user: "dialog_api".into(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        })?
        .context("no host")
    }
}

/// Servers since August 2026 have a list of plugins that replication may use. Splitting a shard needs Citus' own.
async fn allow_splits(postgres: &Client) -> Result<()> {
    let listed = "SELECT FROM pg_settings WHERE name = 'output_plugin_libraries'";
    if postgres.query_opt(listed, &[]).await?.is_some() {
        for statement in [
            "ALTER SYSTEM SET output_plugin_libraries = 'pgoutput', 'test_decoding', 'citus'",
            "SELECT pg_reload_conf()",
        ] {
            postgres.batch_execute(statement).await.context("allow the plugin that splits need")?;
        }
    }
    Ok(())
}
