//! The machine that something was measured on.

use std::{fs, process::Command, thread};

use anyhow::{Context as _, Result};
use tokio_postgres::Client;

/// How busy it is, on average of 1, 5 and 15 minutes: measured beside something else, figures are worth little.
///
/// # Errors
/// When the system does not say.
pub fn load_average() -> Result<String> {
    let text = first_line("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(", "))
}

/// Hardware and versions as rows of a Markdown table with two columns. `sql` is a session on a server that is measured, `busy`
/// the load average before anything was started.
///
/// # Errors
/// When the system or the server does not say.
pub async fn describe(sql: &Client, busy: &str) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1));
    let processors = thread::available_parallelism().map_or(0, usize::from);
    let row = sql
        .query_one(
            "SELECT current_setting('server_version'),
                    (SELECT extversion FROM pg_extension WHERE extname = 'citus')",
            &[],
        )
        .await
        .context("ask for versions")?;
    let lines = [
        ("processors", format!("{processors} x {}", model.unwrap_or("unknown"))),
        ("system", format!("Linux {}", first_line("/proc/sys/kernel/osrelease")?)),
        ("PostgreSQL", row.get::<_, String>(0)),
        ("Citus extension", row.get::<_, Option<String>>(1).unwrap_or_else(|| "not installed".into())),
        ("load average before the run (1, 5, 15 minutes)", busy.to_owned()),
        ("Rust", version("rustc")),
        ("Go", version("go")),
    ];
    Ok(lines.map(|(name, value)| format!("| {name} | {value} |")).join("\n"))
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
