//! A run from its first request to its report.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use async_channel::Receiver;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    audit::{Audit, Places, audit},
    client::{Requests, Target, preflight},
    database::Database,
    drive::{Event, Pace, Settings, drive, micros},
    ledger::{self, Head, Writer},
    population::Population,
    process,
    report::{Load, Report},
    stats::{Outcome, Stats},
    workload::{Kind, Skew, Workload},
};

/// Ends of requests that may wait to be written down; the load waits when there are more.
const EVENTS: usize = 65_536;

/// Everything a run needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who there is.
    pub population: Population,
    /// Where the service listens.
    pub targets: Vec<Target>,
    /// The key that the service signs tokens with.
    pub token_key: PathBuf,
    /// How the load is made.
    pub settings: Settings,
    /// The part at the begin that totals leave out.
    pub warmup: Duration,
    /// How requests are spread over dialogs.
    pub skew: Skew,
    /// Share of lists, 0 to 1.
    pub lists: f64,
    /// Length of a text, in characters.
    pub text: usize,
    /// Whether a send carries a `client_msg_id`; without one, a send that is tried again may be stored twice.
    pub client_ids: bool,
    /// What the sequence of operations is drawn from.
    pub seed: u64,
    /// Where the ledger is written.
    pub ledger: PathBuf,
    /// The database that the ledger is compared with.
    pub database: Option<Database>,
    /// Whether to show a progress bar.
    pub progress: bool,
    /// Set to end the load before its time.
    pub stop: Arc<AtomicBool>,
}

/// Runs it.
///
/// # Errors
/// When it was ended within its warm-up, the service does not know the population, the ledger cannot be written or the shards
/// not be read. What the service answers is never an error, it is in the report.
pub async fn run(plan: &Plan) -> Result<Report> {
    let Plan { population, settings, .. } = plan;
    // One of its own for each run: the shards may hold messages of others.
    let run = Uuid::now_v7();
    let requests = Arc::new(Requests::new(*population, &plan.token_key, run, plan.text, plan.client_ids)?);
    preflight(*population, &requests, plan.targets.first().context("no target was given")?).await?;
    let workload =
        Workload::new(*population, plan.skew, plan.lists, plan.seed).map_err(anyhow::Error::msg)?;

    let started_at = Timestamp::now();
    let head = Head::new(run, started_at, *population);
    let writer = Writer::create(&plan.ledger, &head)?;
    let (events, received) = async_channel::bounded(EVENTS);
    let bar = if plan.progress { bar(settings.duration) } else { ProgressBar::hidden() };
    let start = Instant::now();
    let stats = Stats::new(micros(plan.warmup));
    let collector = thread::Builder::new()
        .name("ledger".into())
        .spawn(move || collect(&received, stats, writer, &bar, start))
        .context("start the thread of the ledger")?;
    let cpu = process::cpu(std::process::id())?;
    let driven = drive(*settings, &plan.targets, &requests, workload, start, events, &plan.stop).await;
    let cpu = process::cpu(std::process::id())?.saturating_sub(cpu);
    let elapsed = start.elapsed();
    // It ends with the load: nobody else holds the other end of the channel.
    let stats = tokio::task::spawn_blocking(move || collector.join())
        .await
        .context("wait for the ledger")?
        .map_err(|_| anyhow!("the thread of the ledger panicked"))??;
    driven?;

    let was_ended = plan.stop.load(Ordering::Relaxed);
    let lasted = if was_ended { elapsed.min(settings.duration) } else { settings.duration };
    ensure!(
        lasted > plan.warmup,
        "the load was ended within its warm-up: nothing was measured; `dialog-bench audit` compares the ledger {} with the \
         shards",
        plan.ledger.display()
    );
    let measured = lasted.saturating_sub(plan.warmup).as_secs_f64();
    let (audit, places) = match &plan.database {
        None => (None, Places::default()),
        Some(database) => {
            let (audit, places) = audit_file(database, &plan.ledger).await?;
            (Some(audit), places)
        }
    };
    let seconds = stats.seconds();
    Ok(Report {
        run,
        started_at,
        load: plan.load(lasted),
        sends: stats.summary(Kind::Send, measured),
        lists: stats.summary(Kind::List, measured),
        dropped: seconds.iter().map(|second| second.dropped).sum(),
        left: stats.left(),
        generator_cpu: cpu.as_secs_f64() / elapsed.as_secs_f64(),
        audit,
        shard_groups: places.shard_groups,
        nodes: places.nodes,
        seconds,
    })
}

/// Compares a ledger with what the shards hold now.
///
/// # Errors
/// When the ledger or a shard cannot be read.
pub async fn audit_file(database: &Database, ledger: &Path) -> Result<(Audit, Places)> {
    let (head, entries) = ledger::read_all(ledger)?;
    audit(database, &head, &entries).await.context("compare the ledger with the shards")
}

impl Plan {
    /// How the load was made that lasted for so long.
    fn load(&self, lasted: Duration) -> Load {
        let rate = match self.settings.pace {
            Pace::Open { schedule, .. } => Some(schedule.rate()),
            Pace::Closed => None,
        };
        Load {
            rate,
            duration_s: lasted.as_secs_f64(),
            warmup_s: self.warmup.as_secs_f64(),
            connections: self.settings.connections,
            retries: self.settings.retries,
            lists: self.lists,
            skew: self.skew.to_string(),
            users: self.population.users(),
            dialogs: self.population.dialogs(),
        }
    }
}

/// Writes down every event until there are no more.
fn collect(
    events: &Receiver<Event>,
    mut stats: Stats,
    mut writer: Writer,
    bar: &ProgressBar,
    start: Instant,
) -> Result<Stats> {
    let (mut succeeded, mut failed, mut shown) = (0_u64, 0_u64, 0);
    while let Ok(event) = events.recv_blocking() {
        let outcome: Outcome = match event {
            Event::Send(entry) => {
                writer.append(entry)?;
                entry.into()
            }
            Event::List(outcome) => outcome,
            Event::Dropped(intended) => {
                stats.drop_arrival(intended)?;
                continue;
            }
            Event::Left => {
                stats.leave_arrival();
                continue;
            }
        };
        stats.add(outcome)?;
        if outcome.code.is_success() {
            succeeded += 1;
        } else {
            failed += 1;
        }
        let second = start.elapsed().as_secs();
        if second > shown {
            shown = second;
            bar.set_position(second);
            bar.set_message(format!("{succeeded} answered, {failed} failed"));
        }
    }
    bar.finish_and_clear();
    writer.finish()?;
    Ok(stats)
}

fn bar(duration: Duration) -> ProgressBar {
    let bar = ProgressBar::new(duration.as_secs());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} s  {msg}") {
        bar.set_style(style);
    }
    bar
}
