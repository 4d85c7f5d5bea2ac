//! PostgreSQL servers, one process and one data directory each, stopped when dropped.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use testbed::{certificates::Authority, postgres::Server};
//!
//! let authority = Authority::new()?;
//! let server = Server::builder("coordinator").citus().tls(&authority).start()?;
//! let client = server.connect("postgres").await?; // superuser, over the Unix socket
//! client.batch_execute("CREATE DATABASE dialog").await?;
//! # Ok(()) }
//! ```

mod builder;
mod configuration;
mod installation;
mod volume;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    future::poll_fn,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, NoTls, Notification, Socket, tls::NoTlsStream,
};

pub use self::builder::{Builder, durable};
pub use self::configuration::Access;
use self::configuration::free_port;
pub use self::installation::{Installation, Owner, citus_available, citus_or_skip};
use self::volume::Volume;
pub use self::volume::volumes_available;
use crate::certificates::IdentityFiles;

/// Longest wait for a server to accept connections, crash recovery included.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Longest wait for a server to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often `postmaster.pid` is looked at while a server starts; the file is the server's own signal.
const POLL: Duration = Duration::from_millis(20);

/// How a server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are disconnected, then a clean end.
    Fast,
    /// As in a crash: the next start recovers from the log.
    Immediate,
}

/// A running, or stopped, PostgreSQL server.
pub struct Server {
    name: String,
    binaries: PathBuf,
    owner: Owner,
    /// Goes before the directory it is mounted in.
    volume: Option<Volume>,
    directory: TempDir,
    port: u16,
    parameters: BTreeMap<String, String>,
    tls: Option<IdentityFiles>,
    process: Option<Child>,
}

impl Server {
    /// Begins the description of a server; the name appears in messages and in the server's process titles.
    pub fn builder<'a>(name: &str) -> Builder<'a> {
        Builder::new(name)
    }

    /// The name its certificate is for.
    #[must_use]
    #[allow(clippy::unused_self, reason = "a server is asked for its host and port together")]
    pub fn host(&self) -> &'static str {
        "localhost"
    }

    /// The TCP port, which stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// The node's certificate, if it speaks TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&IdentityFiles> {
        self.tls.as_ref()
    }

    /// The server's own process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Connects as the superuser `postgres` over the Unix socket.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let (client, connection) = self.session(database).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn session(&self, database: &str) -> Result<(Client, Connection<Socket, NoTlsStream>)> {
        Config::new()
            .host_path(self.directory.path())
            .port(self.port)
            .user("postgres")
            .dbname(database)
            .application_name("testbed")
            .connect(NoTls)
            .await
            .with_context(|| format!("connect to {} as its superuser, database {database}", self.name))
    }

    /// Connects like [`Server::connect`] and listens on a channel, as long as the client lives. What is received are the
    /// notifications.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn listen(
        &self,
        database: &str,
        channel: &str,
    ) -> Result<(Client, UnboundedReceiver<Notification>)> {
        let (client, mut connection) = self.session(database).await?;
        let (sender, receiver) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message
                    && sender.send(notification).is_err()
                {
                    break;
                }
            }
        });
        client.batch_execute(&format!("LISTEN {channel}")).await.context("listen")?;
        Ok((client, receiver))
    }

    /// Changes a parameter and has the server read its configuration again. Parameters that need a restart
    /// take effect with [`Server::restart`].
    ///
    /// # Errors
    /// When the file cannot be written or the signal not be sent.
    pub fn set_parameter(&mut self, name: &str, value: &str) -> Result<()> {
        self.parameters.insert(name.into(), value.into());
        self.write_parameters()?;
        self.signal("HUP")
    }

    /// Starts a stopped server on its old port. Blocks until it accepts connections.
    ///
    /// # Errors
    /// When it runs already or does not start.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("{} is running", self.name);
        }
        self.write_parameters()?;
        let data = self.directory.path().join("data");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .with_context(|| format!("open the log of {}", self.name))?;
        let errors = log.try_clone().context("clone the log's handle")?;
        let process = self
            .owner
            .command(&self.binaries.join("postgres"), self.directory.path())
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        self.process = Some(process);
        self.wait_until_ready(&data.join("postmaster.pid"))
    }

    /// Fills the server's volume up to `free` bytes.
    ///
    /// # Errors
    /// When it has no volume of its own, or that cannot be filled.
    pub fn leave_free(&mut self, free: u64) -> Result<()> {
        let volume = self.volume.as_ref().ok_or_else(|| anyhow!("{} has no volume of its own", self.name))?;
        volume.leave(free)
    }

    /// Stops the server. Blocks until its process has ended.
    ///
    /// # Errors
    /// When it is not running or does not end within 30 s.
    pub fn stop(&mut self, how: Shutdown) -> Result<()> {
        self.signal(match how {
            Shutdown::Fast => "INT",
            Shutdown::Immediate => "QUIT",
        })?;
        let mut process = self.process.take().ok_or_else(|| anyhow!("{} is not running", self.name))?;
        let deadline = Instant::now() + STOP_LIMIT;
        while process.try_wait().context("wait for the server")?.is_none() {
            if Instant::now() > deadline {
                self.process = Some(process);
                bail!("{} did not end within {STOP_LIMIT:?}; its log ends:\n{}", self.name, self.log_tail());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Stops and starts the server. Blocks.
    ///
    /// # Errors
    /// As [`Server::stop`] and [`Server::start`].
    pub fn restart(&mut self, how: Shutdown) -> Result<()> {
        self.stop(how)?;
        self.start()
    }

    /// The last lines of the server's log, for messages about failures.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    fn write_parameters(&self) -> Result<()> {
        let mut text = format!("port = {}\n", self.port);
        for (name, value) in &self.parameters {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        fs::write(self.directory.path().join("data/testbed.conf"), text).context("write testbed.conf")
    }

    /// A port that was free a moment ago may be taken by the time the server binds it: try another.
    fn start_on_a_free_port(&mut self) -> Result<()> {
        let mut attempts = 5;
        loop {
            self.port = free_port()?;
            match self.start() {
                Ok(()) => return Ok(()),
                Err(error) => {
                    attempts -= 1;
                    if attempts == 0 || !self.log_tail().contains("Address already in use") {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The server writes its state on the eighth line of `postmaster.pid`; `pg_ctl` reads it there as well.
    fn wait_until_ready(&mut self, pid_file: &Path) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let Some(mut process) = self.process.take() else { bail!("{} is not running", self.name) };
        let pid = process.id().to_string();
        loop {
            let state = fs::read_to_string(pid_file).unwrap_or_default();
            let mut lines = state.lines();
            if lines.next() == Some(pid.as_str()) && lines.nth(6).is_some_and(|line| line.trim() == "ready") {
                self.process = Some(process);
                return Ok(());
            }
            if let Some(status) = process.try_wait().context("wait for the server")? {
                bail!("{} ended with {status} while starting; its log ends:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                self.process = Some(process);
                bail!("{} not ready within {START_LIMIT:?}; its log ends:\n{}", self.name, self.log_tail());
            }
            thread::sleep(POLL);
        }
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.pid().ok_or_else(|| anyhow!("{} is not running", self.name))?;
        let output = self
            .owner
            .command(&self.binaries.join("pg_ctl"), self.directory.path())
            .args(["kill", signal, &pid.to_string()])
            .output()
            .context("run pg_ctl kill")?;
        if output.status.success() {
            Ok(())
        } else {
            bail!("signal {signal} to {}: {}", self.name, String::from_utf8_lossy(&output.stderr))
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some()
            && self.stop(Shutdown::Immediate).is_err()
            && let Some(process) = &mut self.process
        {
            // Nothing more can be done about a process that does not even take SIGKILL.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
