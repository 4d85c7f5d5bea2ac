//! The standard table: what dialog-api costs and gives, in ratios of one run on one machine.
//!
//! Everything runs here: the servers, the services and the load share the processors. Where two things are
//! compared they take turns, and medians are compared. Each section is a module of its own.

mod coalescing;
mod designs;
mod inbox;
mod measure;
mod mixed;
mod moves;
mod notes;
mod paths;
mod pgbench;
mod plain;
mod service;
mod streams;

use std::{fs, path::Path, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use dialog_api::migrations::TABLES;
use jiff::Timestamp;
use testbed::wait::eventually;

use self::{
    measure::Bench,
    pgbench::Pgbench,
    service::{Programs, Service},
};
use crate::{
    chart,
    load::{self, LoadPlan},
    machine,
    population::Population,
    report::Report,
    stand::Stand,
    table::{self, Row},
};

/// Longest wait for the service to make its tables.
const TABLES_LIMIT: Duration = Duration::from_mins(1);

/// What is measured, and where the results go.
#[derive(Clone, Debug, Args)]
pub struct StandardArguments {
    #[command(flatten)]
    programs: Programs,
    /// The folder for RESULTS.md and its chart; on one plain PostgreSQL for RESULTS-postgresql.md and none
    #[arg(long, default_value = "bench")]
    results: PathBuf,
    /// A few seconds for each figure and little data: shows that it works, not how fast; writes no results
    #[arg(long)]
    quick: bool,
    /// Only this section; can be given several times; writes no results
    #[arg(long = "section", value_enum)]
    sections: Vec<Section>,
    /// On one plain PostgreSQL, as where the citus extension is missing; results go to RESULTS-postgresql.md
    #[arg(long)]
    without_citus: bool,
    /// How long shards are moved under a load; writes no results [default: 10m, 6s with --quick]
    #[arg(long, value_parser = crate::cli::duration)]
    moves: Option<Duration>,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Listing by other designs of the tables, on the same data
    Designs,
    /// dialog-api against services that anybody would write, and against pgbench
    Plain,
    /// Straight to the shard's owner against through the coordinator
    Paths,
    /// Many readers of one dialog
    Coalescing,
    /// Sends and lists together at 60 % of peak
    Mixed,
    /// The ledger while shards are moved and split
    Moves,
    /// Memory with many open streams
    Streams,
    /// Keeping inboxes in the message's transaction against after it
    Inbox,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Size {
    population: Population,
    /// Messages in each dialog.
    messages: u64,
    /// Length of a measurement, in seconds.
    seconds: u64,
    /// Measurements of which the median is taken.
    rounds: usize,
    /// Streams opened.
    streams: usize,
    /// How long shards are moved.
    moves: Duration,
}

impl Size {
    fn new(arguments: &StandardArguments) -> Result<Self> {
        let mut size = if arguments.quick {
            Self {
                population: Population::new(2_000, 2_000, 1)?,
                messages: 10,
                seconds: 2,
                rounds: 1,
                streams: 200,
                moves: Duration::from_secs(6),
            }
        } else {
            Self {
                population: Population::new(100_000, 100_000, 1)?,
                messages: 10,
                seconds: 6,
                rounds: 3,
                streams: 2_000,
                moves: Duration::from_mins(10),
            }
        };
        size.moves = arguments.moves.unwrap_or(size.moves);
        Ok(size)
    }
}

/// Measures, prints the table, and writes `RESULTS.md` unless a part was asked for, or something else than it says. What
/// was measured on one plain PostgreSQL goes to a file of its own: it is another table.
///
/// # Errors
/// When something cannot be measured at all. A limit that is missed is no error; the table says so.
pub async fn standard(arguments: StandardArguments) -> Result<()> {
    let size = Size::new(&arguments)?;
    let busy = machine::load_average()?;
    let folder = tempfile::tempdir().context("temporary directory")?;
    step("servers");
    let stand = Stand::start(if arguments.without_citus { 0 } else { 2 }).await?;
    let bench = Bench { size, stand: &stand, programs: &arguments.programs, folder: folder.path() };
    bench.write_key()?;
    let api = serve(&bench).await?;
    step("data");
    let Size { population, messages, .. } = size;
    let plan = LoadPlan { population, messages, text: 100, newest: Timestamp::now(), progress: true };
    load::load(&stand.database()?, &plan).await?;

    let (rows, mixed) = measure(&bench, &api, &arguments.sections).await?;
    let notes = notes::notes(&bench, arguments.quick, &busy).await?;
    let mut text = format!("{notes}\n{}", table::markdown(&rows));
    let is_whole = !arguments.quick && arguments.sections.is_empty();
    let is_standard = arguments.moves.is_none() && arguments.programs.api_flags.is_empty();
    if !is_whole || !is_standard {
        println!("{text}\nNothing was written: results are those of a whole run without other flags.");
        return Ok(());
    }
    let name = if stand.is_citus() { "RESULTS.md" } else { "RESULTS-postgresql.md" };
    if let Some(report) = mixed.filter(|_| stand.is_citus()) {
        text += "\n![A mixed load over time, straight to the owners](mixed.svg)\n";
        write(&arguments.results.join("mixed.svg"), &chart::svg(&report))?;
    }
    let path = arguments.results.join(name);
    write(&path, &text)?;
    println!("{text}\nWritten to {}", path.display());
    Ok(())
}

/// Starts dialog-api and has its tables distributed.
async fn serve(bench: &Bench<'_>) -> Result<Service> {
    let mut api = bench.api("dialog-api", &[])?;
    if bench.stand.is_citus() {
        // Not ready yet: it waits for its tables to be distributed.
        api.wait_for("/ready", &[200, 503]).await?;
        wait_for_tables(bench.stand).await?;
        bench.stand.distribute().await?;
    }
    api.wait_for("/ready", &[200]).await?;
    Ok(api)
}

async fn wait_for_tables(stand: &Stand) -> Result<()> {
    let sql = stand.coordinator().connect("dialog").await?;
    eventually("the service makes its tables", TABLES_LIMIT, async || {
        let made = "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS name";
        let made = sql.query_one(made, &[&TABLES.as_slice()]).await.context("look for tables")?;
        Ok(made.get::<_, bool>(0).then_some(()))
    })
    .await
}

/// All rows, or those of some sections, and the report of the last mixed load.
async fn measure(
    bench: &Bench<'_>,
    api: &Service,
    sections: &[Section],
) -> Result<(Vec<Row>, Option<Report>)> {
    let coordinator = if bench.stand.is_citus() {
        let mut service = bench.api("dialog-api-coordinator", &["--routing=off"])?;
        service.wait_for("/ready", &[200]).await?;
        Some(service)
    } else {
        None
    };
    let coordinator = coordinator.as_ref();
    let pgbench = Pgbench::new(bench).await?;
    let (mut rows, mut report) = (Vec::new(), None);
    for section in Section::value_variants() {
        if !sections.is_empty() && !sections.contains(section) {
            continue;
        }
        step(section.to_possible_value().as_ref().map_or("", |value| value.get_name()));
        match section {
            Section::Designs => rows.extend(designs::rows(bench, &pgbench).await?),
            Section::Plain => rows.extend(plain::rows(bench, api, &pgbench).await?),
            Section::Paths => rows.extend(paths::rows(bench, api, coordinator).await?),
            Section::Coalescing => rows.push(coalescing::row(bench, api).await?),
            Section::Mixed => {
                let (mixed, last) = mixed::rows(bench, api, coordinator).await?;
                rows.extend(mixed);
                report = Some(last);
            }
            Section::Moves => rows.extend(moves::rows(bench, api).await?),
            Section::Streams => rows.push(streams::row(bench).await?),
            Section::Inbox => rows.extend(inbox::rows(&pgbench)?),
        }
    }
    Ok((rows, report))
}

fn step(name: &str) {
    eprintln!("-- {name}");
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
