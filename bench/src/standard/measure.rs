//! One measurement: a load, and what its service used meanwhile.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use testbed::wait::eventually;

use super::{
    Size,
    service::{Programs, Service},
};
use crate::{
    drive::{Pace, Settings},
    process,
    report::Report,
    run::{Plan, run},
    schedule::Schedule,
    stand::Stand,
    table::{Limit, Row, median},
    workload::{Kind, Skew},
};

/// Connections of a load, unless a section says otherwise.
pub(super) const CONNECTIONS: usize = 32;
/// Connections of the plain services to the database.
pub(super) const POOL: usize = 16;
/// Load before a measurement: plans are cached, connections made and caches filled after it.
const WARMUP: Duration = Duration::from_secs(1);
/// A service is idle when it uses no more processor time than `SETTLED` in this time, and the database does nothing for
/// any service.
const SETTLE: Duration = Duration::from_millis(300);
const SETTLED: Duration = Duration::from_millis(10);
const SETTLE_LIMIT: Duration = Duration::from_mins(2);
/// Length of a text, in characters.
const TEXT: usize = 100;
/// Any key that is long enough: 32 bytes in base64.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";

/// Where measurements are made.
pub(super) struct Bench<'a> {
    pub(super) size: Size,
    pub(super) stand: &'a Stand,
    pub(super) programs: &'a Programs,
    /// For keys, logs and ledgers.
    pub(super) folder: &'a Path,
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) lists: f64,
    pub(super) skew: Skew,
    /// Arrivals per second; as fast as the answers come if absent.
    pub(super) rate: Option<f64>,
    pub(super) connections: usize,
    /// Whether a send carries a `client_msg_id`, and is sent again with it when it fails.
    pub(super) retries: Option<u8>,
    /// Whether the shards are read afterwards.
    pub(super) audit: bool,
}

/// Sends, one after the other on each connection, without what the plain services do not know. They go to dialogs as
/// people write.
pub(super) const SENDS: Load = Load {
    lists: 0.0,
    skew: Skew::Zipf(1.0),
    rate: None,
    connections: CONNECTIONS,
    retries: None,
    audit: false,
};
/// Lists of any dialog: so that a list is as long in the last round as in the first.
pub(super) const LISTS: Load = Load { lists: 1.0, skew: Skew::Uniform, ..SENDS };
/// What is compared, each by itself.
pub(super) const KINDS: [(Kind, Load); 2] = [(Kind::Send, SENDS), (Kind::List, LISTS)];
/// Both, as a messenger has them.
pub(super) const MIXED: Load =
    Load { lists: 0.8, skew: Skew::Zipf(1.0), connections: 2 * CONNECTIONS, retries: Some(0), ..SENDS };

/// As it is asked for on the command line.
impl fmt::Display for Load {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lists, skew, rate, connections, retries, audit: _ } = self;
        write!(formatter, "--lists {lists} --skew {skew} --connections {connections}")?;
        match retries {
            None => write!(formatter, " --no-client-ids")?,
            Some(0) => {}
            Some(retries) => write!(formatter, " --retries {retries}")?,
        }
        rate.map_or(Ok(()), |rate| write!(formatter, " --rate {rate:.0}"))
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) report: Report,
    /// Requests per second.
    pub(super) per_second: f64,
    /// Processor time of the service per request, in microseconds.
    pub(super) cpu: f64,
    /// Requests of the warm-up before it.
    pub(super) before: u64,
}

impl Measured {
    /// Requests that failed or were dropped.
    pub(super) fn failed(&self) -> u64 {
        let Report { sends, lists, dropped, .. } = &self.report;
        sends.requests - sends.succeeded + lists.requests - lists.succeeded + dropped
    }
}

impl Bench<'_> {
    /// The key that tokens are signed with.
    pub(super) fn key(&self) -> PathBuf {
        self.folder.join("key")
    }

    /// The ledger of the last load.
    pub(super) fn ledger(&self) -> PathBuf {
        self.folder.join("ledger")
    }

    pub(super) fn write_key(&self) -> Result<()> {
        fs::write(self.key(), KEY).context("write a key for tokens")
    }

    /// Starts dialog-api. Limits of rates are off: a load is above them. The sweep of inboxes is put off, as it would
    /// follow the messages of other services in the middle of a measurement; inboxes of its own are kept up as ever.
    pub(super) fn api(&self, name: &str, more: &[&str]) -> Result<Service> {
        let server = self.stand.coordinator();
        let mut flags = vec![
            format!("--database-host={}", server.host()),
            format!("--database-port={}", server.port()),
            format!("--token-key-file={}", self.key().display()),
            "--log-level=warn".into(),
            "--jobs-interval=24h".into(),
            "--sender-rate=0".into(),
            "--pair-rate=0".into(),
        ];
        flags.extend(self.programs.api_flags.iter().cloned());
        flags.extend(more.iter().map(ToString::to_string));
        Service::start(name, &self.programs.dialog_api, &flags, self.folder)
    }

    /// Starts a plain service, ready to answer.
    pub(super) async fn plain(&self, name: &str, program: &Path, more: &[&str]) -> Result<Service> {
        let server = self.stand.coordinator();
        let (host, port) = (server.host(), server.port());
        let mut flags = vec![
            format!("--database=host={host} port={port} user=dialog_api dbname=dialog sslmode=disable"),
            format!("--token-key-file={}", self.key().display()),
            format!("--connections={POOL}"),
        ];
        flags.extend(more.iter().map(ToString::to_string));
        let mut service = Service::start(name, program, &flags, self.folder)?;
        service.wait_for("/", &[404]).await?;
        Ok(service)
    }

    /// Has a load made on a service.
    pub(super) async fn measure(&self, service: &Service, load: Load) -> Result<Measured> {
        self.measure_for(service, load, Duration::from_secs(self.size.seconds)).await
    }

    /// Has a load made on a service for some time.
    #[allow(clippy::cast_precision_loss, reason = "requests of some minutes")]
    pub(super) async fn measure_for(
        &self,
        service: &Service,
        load: Load,
        duration: Duration,
    ) -> Result<Measured> {
        let mut plan = self.plan(service, load)?;
        let warmup = run(&plan).await.with_context(|| service.log_tail())?;
        self.settle(service).await?;
        plan.settings.duration = duration;
        plan.seed = 2;
        plan.database = load.audit.then(|| self.stand.database()).transpose()?;
        let before = process::cpu(service.pid())?;
        let report = run(&plan).await.with_context(|| service.log_tail())?;
        self.settle(service).await?;
        let cpu = process::cpu(service.pid())?.saturating_sub(before);
        let requests = report.sends.requests + report.lists.requests;
        Ok(Measured {
            per_second: report.sends.per_second + report.lists.per_second,
            cpu: cpu.as_secs_f64() * 1e6 / requests as f64,
            before: warmup.sends.requests + warmup.lists.requests,
            report,
        })
    }

    /// Two services in turn. Each comes first now and then: what is measured first in a round finds a quieter disk.
    pub(super) async fn by_turns(
        &self,
        one: &Service,
        other: &Service,
        load: Load,
    ) -> Result<(Vec<Measured>, Vec<Measured>)> {
        let (mut of_one, mut of_other) = (Vec::new(), Vec::new());
        for round in 0..self.size.rounds {
            if round % 2 == 0 {
                of_one.push(self.measure(one, load).await?);
                of_other.push(self.measure(other, load).await?);
            } else {
                of_other.push(self.measure(other, load).await?);
                of_one.push(self.measure(one, load).await?);
            }
        }
        Ok((of_one, of_other))
    }

    /// Waits until a service has done what it does after its answers, such as keeping inboxes, and the database what it
    /// was asked for: that is part of what a request costs, and must not fall into the next measurement, where it would
    /// also lock what others want to write.
    async fn settle(&self, service: &Service) -> Result<()> {
        let busy =
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'dialog_api' AND state <> 'idle')";
        let nodes = try_join_all(self.stand.nodes().map(|node| node.connect("postgres"))).await?;
        let (mut since, mut before) = (Instant::now(), process::cpu(service.pid())?);
        eventually("the service and the database are idle after the load", SETTLE_LIMIT, async || {
            let now = process::cpu(service.pid())?;
            let rows = try_join_all(nodes.iter().map(|node| node.query_one(busy, &[]))).await?;
            if now.saturating_sub(before) > SETTLED || rows.iter().any(|row| row.get(0)) {
                (since, before) = (Instant::now(), now);
            }
            Ok((since.elapsed() >= SETTLE).then_some(()))
        })
        .await
    }

    /// The warm-up of a load.
    fn plan(&self, service: &Service, load: Load) -> Result<Plan> {
        let pace = match load.rate {
            None => Pace::Closed,
            Some(rate) => {
                let schedule = Schedule::new(rate).map_err(anyhow::Error::msg)?;
                Pace::Open { schedule, queue: schedule.arrivals_within(Duration::from_secs(5)) }
            }
        };
        Ok(Plan {
            population: self.size.population,
            targets: vec![service.target().clone()],
            token_key: self.key(),
            settings: Settings {
                pace,
                duration: WARMUP,
                connections: load.connections,
                timeout: Duration::from_secs(10),
                retries: load.retries.unwrap_or_default(),
            },
            warmup: Duration::ZERO,
            skew: load.skew,
            lists: load.lists,
            text: TEXT,
            client_ids: load.retries.is_some(),
            seed: 1,
            ledger: self.ledger(),
            database: None,
            progress: false,
            stop: Arc::default(),
        })
    }
}

/// What a kind of request is called.
pub(super) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Send => "send",
        Kind::List => "list",
    }
}

pub(super) fn cpu(rounds: &[Measured]) -> f64 {
    median(rounds.iter().map(|round| round.cpu))
}

pub(super) fn speed(rounds: &[Measured]) -> f64 {
    median(rounds.iter().map(|round| round.per_second))
}

pub(super) fn p99(kind: Kind, rounds: &[Measured]) -> f64 {
    median(rounds.iter().map(|Measured { report, .. }| match kind {
        Kind::Send => report.sends.latency_ms.p99,
        Kind::List => report.lists.latency_ms.p99,
    }))
}

/// What failed, and how, is said beside every figure, as it would flatter them.
pub(super) fn failures<'a>(rounds: impl IntoIterator<Item = &'a Measured>) -> String {
    let mut by_code = BTreeMap::<&str, u64>::new();
    for Measured { report: Report { sends, lists, dropped, .. }, .. } in rounds {
        for (code, count) in sends.failed.iter().chain(&lists.failed) {
            *by_code.entry(code).or_default() += count;
        }
        *by_code.entry("dropped").or_default() += dropped;
    }
    let by_code = by_code.iter().filter(|(_, count)| **count > 0);
    let failed: Vec<_> = by_code.map(|(code, count)| format!("{code}: {count}")).collect();
    if failed.is_empty() { String::new() } else { format!(", **failed: {}**", failed.join(", ")) }
}

/// A row of p99s in an open loop.
pub(super) fn latency_row(
    what: String,
    kind: Kind,
    ours: &[Measured],
    theirs: &[Measured],
    limit: Limit,
) -> Row {
    let (one, other) = (p99(kind, ours), p99(kind, theirs));
    let rate = ours.first().and_then(|round| round.report.load.rate).unwrap_or_default();
    let failed = failures(ours.iter().chain(theirs));
    let figures = format!("{one:.2} ms against {other:.2} ms at {rate:.0} arrivals/s{failed}");
    Row::ratio(what, figures, one / other, limit)
}

/// Why there is nothing to compare with the coordinator's path.
pub(super) const NO_CITUS: &str = "there is one server, without the citus extension";
