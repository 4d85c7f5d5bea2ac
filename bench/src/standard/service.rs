//! The services that are measured, each a process of its own.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use http::Request;
use http_body_util::Full;
use testbed::wait::eventually;

use crate::{
    client::{Connection, Target},
    ledger::Code,
};

/// Longest wait for a service to answer for the first time.
const START_LIMIT: Duration = Duration::from_mins(1);

/// What is measured.
#[derive(Clone, Debug, Args)]
pub(super) struct Programs {
    /// The service, built for release
    #[arg(long)]
    pub(super) dialog_api: PathBuf,
    /// A further flag for it; can be given several times
    #[arg(long = "api-flag", allow_hyphen_values = true)]
    pub(super) api_flags: Vec<String>,
    /// The plain service in Rust, built for release
    #[arg(long)]
    pub(super) plain_axum: PathBuf,
    /// The plain service in Go; not measured without
    #[arg(long)]
    pub(super) plain_go: Option<PathBuf>,
}

/// A running service; killed when dropped.
pub(super) struct Service {
    process: Child,
    target: Target,
    log: PathBuf,
}

impl Service {
    /// Starts a program with these flags and one more, `--listen`.
    pub(super) fn start(name: &str, program: &Path, flags: &[String], folder: &Path) -> Result<Self> {
        // Taken by the service a moment later.
        let address =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?.local_addr()?;
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let process = Command::new(program)
            .args(flags)
            .arg(format!("--listen={address}"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("clone the log's handle")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let target = format!("http://{address}").parse().map_err(anyhow::Error::msg)?;
        Ok(Self { process, target, log })
    }

    /// Waits until a path answers with one of these statuses.
    pub(super) async fn wait_for(&mut self, path: &str, statuses: &[u16]) -> Result<()> {
        let mut connection = Connection::new(self.target.clone(), Duration::from_secs(5));
        let answered = eventually(format!("{path} answers {statuses:?}"), START_LIMIT, async || {
            let request = Request::get(path).body(Full::<Bytes>::default()).context("a request")?;
            let code = connection.ask(request).await;
            if let Some(status) = self.process.try_wait().context("wait for a service")? {
                bail!("it ended with {status}");
            }
            Ok(matches!(code, Code::Status(status) if statuses.contains(&status)).then_some(()))
        });
        answered.await.with_context(|| self.log_tail())
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The last that it has said.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the end of the service's log is: {}", lines[lines.len().saturating_sub(5)..].join("\n"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
