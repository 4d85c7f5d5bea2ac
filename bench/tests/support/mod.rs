//! The service in this process, over real HTTP, and a bench against it.

use std::{fs, net::TcpListener, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use dialog_api::config::Config;
use dialog_bench::{
    client::Target,
    database::Database,
    drive::{Pace, Settings},
    load::{self, LoadPlan},
    population::Population,
    run::Plan,
    schedule::Schedule,
    stand::Stand,
    workload::Skew,
};
use jiff::Timestamp;
use tempfile::TempDir;
use testbed::wait::eventually;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_postgres::Client;

/// Longest wait for anything that should happen soon.
const SOON: Duration = Duration::from_mins(1);

/// A running service; it ends with the test.
pub(crate) struct Service {
    address: String,
    directory: TempDir,
    database: Database,
    task: JoinHandle<Result<()>>,
}

impl Service {
    /// Starts it for the database on these servers.
    pub(crate) fn start(stand: &Stand, more: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir().context("temporary directory")?;
        let key = directory.path().join("key");
        fs::write(&key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")?;
        // Taken by the service a moment later.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let server = stand.coordinator();
        let (port, key) = (server.port().to_string(), key.display().to_string());
        let flags = ["dialog-api", "--listen", &address, "--token-key-file", &key, "--database-port", &port];
        let config =
            Config::try_parse_from([&flags[..], &["--database-host", server.host()], more].concat())?;
        let task = tokio::spawn(dialog_api::server::run(config));
        let database = stand.database()?;
        Ok(Self { address, directory, database, task })
    }

    /// Waits until `/ready` contains this.
    pub(crate) async fn wait_for(&self, text: &str) -> Result<()> {
        eventually(format!("/ready says {text}"), SOON, async || {
            ensure!(!self.task.is_finished(), "the service has ended");
            let answer = self.get("/ready").await.unwrap_or_default();
            Ok(answer.contains(text).then_some(()))
        })
        .await
    }

    async fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The database, as the bench reaches it.
    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Loads a small population.
    pub(crate) async fn load(&self) -> Result<Population> {
        let population = Population::new(400, 600, 1)?;
        let plan = LoadPlan { population, messages: 3, text: 100, newest: Timestamp::now(), progress: false };
        load::load(&self.database, &plan).await?;
        Ok(population)
    }

    /// An open loop against this service, half sends and half lists.
    pub(crate) fn plan(&self, population: Population, rate: f64, seconds: u64) -> Result<Plan> {
        let target: Target = format!("http://{}", self.address).parse().map_err(anyhow::Error::msg)?;
        let schedule = Schedule::new(rate).map_err(anyhow::Error::msg)?;
        Ok(Plan {
            population,
            targets: vec![target],
            token_key: self.directory.path().join("key"),
            settings: Settings {
                pace: Pace::Open { schedule, queue: 10_000 },
                duration: Duration::from_secs(seconds),
                connections: 8,
                timeout: Duration::from_secs(10),
                retries: 0,
            },
            warmup: Duration::ZERO,
            skew: Skew::Uniform,
            lists: 0.5,
            text: 100,
            client_ids: true,
            seed: 1,
            ledger: self.directory.path().join("ledger"),
            database: Some(self.database.clone()),
            progress: false,
            stop: Arc::default(),
        })
    }
}

/// Waits until the tables hold so many messages of the load.
pub(crate) async fn wait_for_messages(sql: &Client, count: i64) -> Result<()> {
    eventually(format!("{count} messages of the load are stored"), SOON, async || {
        let stored = sql.query_one("SELECT count(*) FROM messages WHERE text LIKE 'bench %'", &[]).await?;
        Ok((stored.get::<_, i64>(0) >= count).then_some(()))
    })
    .await
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}
