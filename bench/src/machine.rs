//! The machine that something was measured on.

use std::{fs, process::Command, thread};

use anyhow::{Context as _, Result, bail};
use tokio_postgres::Client;

/// Asks a server for its version, and for that of the extension.
pub const VERSIONS: &str = "SELECT current_setting('server_version'),
    (SELECT extversion FROM pg_extension WHERE extname = 'citus')";

/// How busy it is, on average of 1, 5 and 15 minutes: measured beside something else, figures are worth little.
///
/// # Errors
/// When the system does not say.
pub fn load_average() -> Result<String> {
    let text = first_line("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(", "))
}

/// What the processors have done since the machine was started.
#[derive(Clone, Copy, Debug)]
pub struct Processors {
    /// In ticks of the clock, all processors together.
    all: u64,
    idle: u64,
}

impl Processors {
    /// As it is now.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn now() -> Result<Self> {
        let text = first_line("/proc/stat")?;
        let ticks: Vec<u64> = text
            .split_whitespace()
            .skip(1)
            .take(8)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .context("/proc/stat")?;
        // user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5).
        let [_, _, _, idle, waiting, ..] = ticks[..] else {
            bail!("/proc/stat has no times of the processors")
        };
        Ok(Self { all: ticks.iter().sum(), idle: idle + waiting })
    }

    /// The share of the time since then in which the processors were busy, from 0 to 1.
    ///
    /// # Errors
    /// When the system does not say.
    #[allow(clippy::cast_precision_loss, reason = "ticks of some minutes")]
    pub fn busy_since(self) -> Result<f64> {
        let now = Self::now()?;
        let (all, idle) = (now.all.saturating_sub(self.all), now.idle.saturating_sub(self.idle));
        Ok(if all == 0 { 0.0 } else { 1.0 - idle as f64 / all as f64 })
    }
}

/// Hardware and versions as rows of a Markdown table with two columns. `sql` is a session on a server that is measured, `busy`
/// the load average before anything was started.
///
/// # Errors
/// When the system or the server does not say.
pub async fn describe(sql: &Client, busy: &str) -> Result<String> {
    let row = sql.query_one(VERSIONS, &[]).await.context("ask for versions")?;
    describe_with(row.get(0), row.get(1), busy)
}

/// The same, by versions that were read already: of PostgreSQL, and of the extension if there is one.
///
/// # Errors
/// When the system does not say.
pub fn describe_with(postgresql: &str, citus: Option<&str>, busy: &str) -> Result<String> {
    let servers = [
        ("PostgreSQL", postgresql.to_owned()),
        ("Citus extension", citus.unwrap_or("not installed").to_owned()),
    ];
    Ok(rows(&[&hardware()?[..], &servers, &busy_and_rust(busy), &[("Go", version("go"))]].concat()))
}

/// The same of what is measured without servers.
///
/// # Errors
/// When the system does not say.
pub fn describe_alone(busy: &str) -> Result<String> {
    Ok(rows(&[hardware()?, busy_and_rust(busy)].concat()))
}

fn hardware() -> Result<[(&'static str, String); 2]> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1));
    let processors = thread::available_parallelism().map_or(0, usize::from);
    Ok([
        ("processors", format!("{processors} x {}", model.unwrap_or("unknown"))),
        ("system", format!("Linux {}", first_line("/proc/sys/kernel/osrelease")?)),
    ])
}

fn busy_and_rust(busy: &str) -> [(&'static str, String); 2] {
    [("load average before the run (1, 5, 15 minutes)", busy.to_owned()), ("Rust", version("rustc"))]
}

fn rows(lines: &[(&str, String)]) -> String {
    lines.iter().map(|(name, value)| format!("| {name} | {value} |")).collect::<Vec<_>>().join("\n")
}

fn first_line(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What a compiler says it is.
fn version(program: &str) -> String {
    let argument = if program == "go" { "version" } else { "--version" };
    Command::new(program).arg(argument).output().map_or_else(
        |_| "not installed".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
