//! The command line.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use jiff::{SignedDuration, Timestamp};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    chart,
    client::Target,
    database::{Database, DatabaseArguments},
    drive::{Pace, Settings},
    load::{self, LoadPlan},
    population::Population,
    report::Report,
    run::{self, Plan},
    schedule::Schedule,
    standard::{self, StandardArguments},
    workload::Skew,
};

/// Load for dialog-api, with a ledger of every acknowledged message.
///
/// `load` writes users, dialogs and messages, `run` makes the load and compares its ledger with what the shards
/// hold, `audit` compares again. The same --users, --dialogs and --seed always mean the same population.
#[derive(Debug, Parser)]
#[command(name = "dialog-bench", version, max_term_width = 110)]
pub struct Arguments {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// Writes a population by COPY; all users have the password `dialog-bench`
    Load(LoadArguments),
    /// Makes the load, and reads every shard by SQL afterwards; fails if a message is lost, doubled or out of order. An
    /// interrupt (Ctrl-C, SIGTERM) ends the load before its time, and the rest is done as ever
    Run(Box<RunArguments>),
    /// Measures the standard table on servers of its own; `cargo xtask bench` calls it
    Standard(StandardArguments),
    /// Compares the ledger of an earlier run with what the shards hold now
    Audit {
        /// The ledger
        #[arg(long)]
        ledger: PathBuf,
        #[command(flatten)]
        database: DatabaseArguments,
    },
}

#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Population")]
struct PopulationArguments {
    /// Users
    #[arg(long, default_value_t = 1_000_000)]
    users: u64,
    /// Dialogs among them
    #[arg(long, default_value_t = 1_000_000)]
    dialogs: u64,
    /// Another seed is another population of the same size
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl PopulationArguments {
    fn population(self) -> Result<Population> {
        Ok(Population::new(self.users, self.dialogs, self.seed)?)
    }
}

#[derive(Debug, Args)]
struct LoadArguments {
    #[command(flatten)]
    population: PopulationArguments,
    /// Messages in each dialog
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=65_535))]
    messages: u64,
    /// Characters of a text
    #[arg(long, default_value_t = 100, value_parser = text_length)]
    text: usize,
    #[command(flatten)]
    database: DatabaseArguments,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// Where the service listens, http://HOST:PORT; several are used in turn
    #[arg(long = "target", required = true)]
    targets: Vec<Target>,
    /// Host to ask for, if an ingress goes by another name than the target's
    #[arg(long)]
    host: Option<String>,
    /// File with the key that the service signs tokens with
    #[arg(long, env = "DIALOG_API_TOKEN_KEY_FILE")]
    token_key_file: PathBuf,
    #[command(flatten)]
    population: PopulationArguments,

    /// Arrivals per second, kept up whatever the service does (open loop); without it each connection asks as
    /// soon as it has its answer (closed loop), which shows the peak
    #[arg(long, value_parser = schedule, help_heading = "Load")]
    rate: Option<Schedule>,
    /// Arrivals that may wait for a free connection; one more is dropped and counted [default: 5 seconds' worth]
    #[arg(long, requires = "rate", help_heading = "Load")]
    queue: Option<usize>,
    /// Length of the run
    #[arg(long, default_value = "30s", value_parser = duration, help_heading = "Load")]
    duration: Duration,
    /// The part at its begin that totals leave out
    #[arg(long, default_value = "2s", value_parser = duration, help_heading = "Load")]
    warmup: Duration,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 64, help_heading = "Load")]
    connections: usize,
    /// Longest wait for an answer
    #[arg(long, default_value = "10s", value_parser = duration, help_heading = "Load")]
    timeout: Duration,
    /// How often a request that failed is sent again, with the same `client_msg_id`
    #[arg(long, default_value_t = 0, help_heading = "Load")]
    retries: u8,
    /// Send without `client_msg_id`, as clients of the plain specification do
    #[arg(long, conflicts_with = "retries", help_heading = "Load")]
    no_client_ids: bool,
    /// Share of lists, 0 to 1; the others are sends
    #[arg(long, default_value_t = 0.8, help_heading = "Load")]
    lists: f64,
    /// Which dialogs are asked for: uniform, zipf:EXPONENT, heavy-sender:SHARE, hot-pair:SHARE, fan-in:SHARE
    #[arg(long, default_value = "uniform", help_heading = "Load")]
    skew: Skew,
    /// Characters of a text
    #[arg(long, default_value_t = 100, value_parser = text_length, help_heading = "Load")]
    text: usize,

    /// Where the ledger goes: one entry of 56 bytes for each send
    #[arg(long, default_value = "dialog-bench.ledger", help_heading = "Results")]
    ledger: PathBuf,
    /// Write the report there, as JSON; `-` is standard output, which then has nothing else
    #[arg(long, help_heading = "Results")]
    json: Option<PathBuf>,
    /// Write the chart of throughput and latency there, as SVG
    #[arg(long, help_heading = "Results")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    database: DatabaseArguments,
}

/// Does what the command line says.
///
/// # Errors
/// When it cannot be done, or the ledger has something against the service.
pub async fn execute(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Commands::Load(arguments) => load(arguments).await,
        Commands::Run(arguments) => run(*arguments).await,
        Commands::Standard(arguments) => standard::standard(arguments).await,
        Commands::Audit { ledger, database } => {
            let (audit, _) = run::audit_file(&required(&database)?, &ledger).await?;
            println!("{}", audit.text());
            ensure!(audit.is_whole(), "the shards do not hold what was acknowledged");
            Ok(())
        }
    }
}

async fn load(arguments: LoadArguments) -> Result<()> {
    let LoadArguments { population, messages, text, database } = arguments;
    let plan = LoadPlan {
        population: population.population()?,
        messages,
        text,
        newest: Timestamp::now(),
        progress: true,
    };
    let started = std::time::Instant::now();
    load::load(&required(&database)?, &plan).await?;
    println!(
        "{} users, {} dialogs, {messages} messages in each: loaded in {:.1} s",
        population.users,
        population.dialogs,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn run(arguments: RunArguments) -> Result<()> {
    let (json, svg) = (arguments.json.clone(), arguments.svg.clone());
    let plan = arguments.plan()?;
    let interrupted = interrupted().context("listen for interrupts")?;
    let stop = Arc::clone(&plan.stop);
    tokio::spawn(async move {
        interrupted.await;
        eprintln!("interrupted: the load ends, and the shards are read");
        stop.store(true, Ordering::Relaxed);
    });
    let report = run::run(&plan).await?;
    let as_json = || serde_json::to_string_pretty(&report).context("write the report as JSON");
    if let Some(path) = svg {
        write(&path, &chart::svg(&report))?;
    }
    match json {
        Some(path) if path.as_os_str() == "-" => println!("{}", as_json()?),
        Some(path) => {
            write(&path, &as_json()?)?;
            print!("{}", report.text());
        }
        None => print!("{}", report.text()),
    }
    let Report { audit, .. } = &report;
    ensure!(audit.is_none() || report.is_whole(), "the shards do not hold what was acknowledged");
    Ok(())
}

impl RunArguments {
    fn plan(self) -> Result<Plan> {
        let name = |target: Target| match &self.host {
            Some(host) => target.named(host).map_err(anyhow::Error::msg),
            None => Ok(target),
        };
        ensure!(self.warmup < self.duration, "the warm-up is as long as the run: nothing would be measured");
        let pace = self.rate.map_or(Pace::Closed, |schedule| Pace::Open {
            schedule,
            queue: self.queue.unwrap_or_else(|| schedule.arrivals_within(Duration::from_secs(5))),
        });
        Ok(Plan {
            population: self.population.population()?,
            targets: self.targets.into_iter().map(name).collect::<Result<_>>()?,
            token_key: self.token_key_file,
            settings: Settings {
                pace,
                duration: self.duration,
                connections: self.connections,
                timeout: self.timeout,
                retries: self.retries,
            },
            warmup: self.warmup,
            skew: self.skew,
            lists: self.lists,
            text: self.text,
            client_ids: !self.no_client_ids,
            seed: self.population.seed,
            ledger: self.ledger,
            database: Database::from_arguments(&self.database)?,
            progress: true,
            stop: Arc::default(),
        })
    }
}

/// The first interrupt from now on. A second one is as harmless: the shards are read to the end.
fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn required(arguments: &DatabaseArguments) -> Result<Database> {
    Database::from_arguments(arguments)?.context("give the database with --database-host")
}

fn write(path: &PathBuf, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn schedule(text: &str) -> Result<Schedule, String> {
    Schedule::new(text.parse().map_err(|_| format!("`{text}` is no number"))?)
}

/// What tells a message from all others takes up to 60 characters.
fn text_length(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(length @ 60..=4_096) => Ok(length),
        _ => Err("a text has 60 to 4096 characters".into()),
    }
}

/// Reads a duration with its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let signed: SignedDuration =
        text.parse().map_err(|error| format!("{error}; write it with its unit, such as 500ms, 5s or 10m"))?;
    Duration::try_from(signed).map_err(|_| "a duration cannot be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_help_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_run_is_what_its_flags_say() {
        let parse = |more: &[&str]| {
            let minimum = ["dialog-bench", "run", "--target", "http://a:1", "--token-key-file", "k"];
            let arguments = Arguments::try_parse_from(minimum.iter().chain(more))?;
            let Commands::Run(arguments) = arguments.command else { panic!("not a run") };
            arguments.plan()
        };
        assert_eq!(parse(&[]).unwrap().settings.pace, Pace::Closed);
        let Pace::Open { schedule, queue } = parse(&["--rate", "300"]).unwrap().settings.pace else {
            panic!("not open")
        };
        assert!((schedule.rate() - 300.0).abs() < f64::EPSILON && queue == 1_500);
        for wrong in [
            ["--rate", "0"],
            ["--duration", "5"],
            ["--duration", "1s"],
            ["--skew", "odd"],
            ["--queue", "7"],
            ["--text", "10"],
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
        assert!(parse(&["--retries", "2"]).unwrap().client_ids);
        assert!(!parse(&["--no-client-ids"]).unwrap().client_ids);
        assert!(parse(&["--no-client-ids", "--retries", "2"]).is_err(), "would double messages");
    }
}
