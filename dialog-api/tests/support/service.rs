//! The service as a process: started, watched, told to end.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use testbed::postgres::Server;

use super::{client::Client, eventually};

/// Longest wait for anything that should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A running service.
pub(crate) struct Service {
    process: Child,
    address: SocketAddr,
    log: Arc<Log>,
    _directory: TempDir,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Service {
    /// Starts a service for this database over the Unix socket and waits until it is ready.
    pub(crate) async fn start(server: &Server, more: &[&str]) -> Result<Self> {
        let service = Self::spawn(server, more)?;
        service.wait_until_ready().await?;
        Ok(service)
    }

    /// Starts a service for this database over the Unix socket and waits until it listens.
    pub(crate) fn spawn(server: &Server, more: &[&str]) -> Result<Self> {
        let socket = server.socket_directory().display().to_string();
        let port = server.port().to_string();
        let database = ["--database-host", &socket, "--database-port", &port];
        Self::spawn_with(&[&database, more].concat())
    }

    /// Starts a service with these flags, and those that every test wants unless given, and waits until it
    /// listens.
    pub(crate) fn spawn_with(flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir().context("temporary directory")?;
        let key = directory.path().join("key");
        fs::write(&key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")?;
        let defaults = [
            ("--listen", "127.0.0.1:0"),
            ("--token-key-file", &key.display().to_string()),
            ("--drain-delay", "0s"),
            ("--password-memory", "64"),
            // Tests send as fast as they can, each through one sender.
            ("--sender-rate", "0"),
            ("--pair-rate", "0"),
            ("--log-level", "info,dialog_api=debug"),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_dialog-api"));
        for (flag, value) in defaults {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        let mut process = command.args(flags).stderr(Stdio::piped()).spawn().context("start the service")?;
        let log = Arc::new(Log::default());
        let stderr = process.stderr.take().context("the service's log")?;
        let reader = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                reader.lines.lock().unwrap().push(line);
                reader.grown.notify_all();
            }
        });
        let listening = match log.wait_for("listening") {
            Ok(line) => line,
            Err(error) => {
                process.kill()?;
                process.wait()?;
                return Err(error);
            }
        };
        let line: serde_json::Value = serde_json::from_str(&listening).context("a line of the log")?;
        let address = line["address"].as_str().context("the address in the log")?.parse()?;
        Ok(Self { process, address, log, _directory: directory })
    }

    /// Waits until `/ready` answers 200.
    pub(crate) async fn wait_until_ready(&self) -> Result<()> {
        self.wait_for_ready(200).await
    }

    /// Waits until `/ready` answers this status.
    pub(crate) async fn wait_for_ready(&self, status: u16) -> Result<()> {
        let client = self.client();
        eventually(&format!("/ready with {status}"), async || {
            Ok((client.get("/ready").await?.status == status).then_some(()))
        })
        .await
        .with_context(|| self.log_text())
    }

    /// A client of this service.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Memory it occupies, in KiB.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    }

    /// Waits for a line of the log that contains the text.
    pub(crate) fn wait_for_log(&self, text: &str) -> Result<String> {
        self.log.wait_for(text)
    }

    /// What it has logged so far.
    pub(crate) fn log_text(&self) -> String {
        self.log.lines.lock().unwrap().join("\n")
    }

    /// Sends a signal, such as TERM.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", signal, &self.pid().to_string()]).status()?;
        if status.success() { Ok(()) } else { bail!("kill -s {signal} failed") }
    }

    /// Waits until the process has ended.
    pub(crate) async fn wait(&mut self) -> Result<ExitStatus> {
        let process = &mut self.process;
        let ended = eventually("the end of the service", async || Ok(process.try_wait()?)).await;
        ended.with_context(|| self.log_text())
    }
}

/// What the service says about attempts of statements that failed: the last of it.
pub(crate) fn attempts(service: &Service) -> String {
    let log = service.log_text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("tried again")).collect();
    lines[lines.len().saturating_sub(50)..].join("\n")
}

impl Log {
    fn wait_for(&self, text: &str) -> Result<String> {
        let deadline = Instant::now() + SOON;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("nothing in the log contains {text:?}:\n{}", lines.join("\n"));
            };
            lines = self.grown.wait_timeout(lines, left).unwrap().0;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
