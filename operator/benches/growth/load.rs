//! dialog-api, and the load that is made on it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dialog_bench::beside;
use dialog_bench::client::{Connection, Target};
use dialog_bench::database::Database;
use dialog_bench::drive::{Pace, Settings};
use dialog_bench::ledger::Code;
use dialog_bench::load::{LoadPlan, load};
use dialog_bench::machine::Processors;
use dialog_bench::population::Population;
use dialog_bench::report::Report;
use dialog_bench::run::{Plan, run};
use dialog_bench::schedule::Schedule;
use dialog_bench::table::{Limit, Row};
use dialog_bench::workload::Skew;
use jiff::Timestamp;
use tempfile::TempDir;
use testbed::wait::eventually;

use crate::world::World;

/// Longest wait for the service to answer for the first time.
const START: Duration = Duration::from_mins(1);
/// Connections of a load.
const CONNECTIONS: usize = 64;
/// How often a request that failed is sent again, with the same `client_msg_id`.
const RETRIES: u8 = 5;
/// Length of a text, in characters.
const TEXT: usize = 100;
/// Any key that is long enough: 32 bytes in base64.
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";

/// What is asked for in a load.
#[derive(Clone, Copy, Debug)]
pub struct Requests {
    /// The share of lists, from 0 to 1; the others are sends.
    pub lists: f64,
    /// How they are spread over the dialogs.
    pub skew: Skew,
    /// Arrivals per second; as fast as the answers come if absent.
    pub rate: Option<f64>,
    /// The part at the begin that counts in no total.
    pub warmup: Duration,
}

/// What a load has met with.
pub struct Loaded {
    pub report: Report,
    /// The share of the time in which the processors were busy, from 0 to 1.
    pub busy: f64,
}

/// A running service and its population; killed when dropped.
pub struct Service {
    process: Child,
    target: Target,
    database: Database,
    population: Option<Population>,
    folder: TempDir,
}

impl Service {
    /// Starts `program` as in a cluster: with the certificate of dialog-api. Its path is one in the repository if it is not
    /// absolute: cargo runs benches in the folder of their package, and who calls them is in the one above.
    pub fn start(world: &World, program: &Path) -> Result<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(program);
        let folder = tempfile::tempdir().context("temporary directory")?;
        fs::write(folder.path().join("key"), KEY).context("write a key for tokens")?;
        let arguments = world.database(folder.path())?;
        let database = Database::from_arguments(&arguments)?.context("no host")?;
        // Taken by the service a moment later.
        let address =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?.local_addr()?;
        let log = File::create(folder.path().join("log")).context("make a log")?;
        let process = Command::new(&program)
            .arg(format!("--listen={address}"))
            .args(arguments.flags())
            .arg(format!("--token-key-file={}", folder.path().join("key").display()))
            // A load is above limits of rates.
            .args(["--sender-rate=0", "--pair-rate=0", "--log-level=warn"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("clone the log's handle")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let target = format!("http://{address}").parse().map_err(anyhow::Error::msg)?;
        Ok(Self { process, target, database, population: None, folder })
    }

    /// Waits until a path answers with one of these statuses.
    pub async fn wait_for(&mut self, path: &str, statuses: &[u16]) -> Result<()> {
        let mut connection = Connection::new(self.target.clone(), Duration::from_secs(5));
        let answered = eventually(format!("{path} answers {statuses:?}"), START, async || {
            let request =
                http::Request::get(path).body(http_body_util::Full::default()).context("a request")?;
            let code = connection.ask(request).await;
            if let Some(status) = self.process.try_wait().context("wait for the service")? {
                bail!("it ended with {status}");
            }
            Ok(matches!(code, Code::Status(status) if statuses.contains(&status)).then_some(()))
        });
        let answered = answered.await;
        answered.with_context(|| {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            format!("its log ends with: {}", log.lines().next_back().unwrap_or_default())
        })
    }

    /// Writes as many dialogs with as many messages each.
    pub async fn fill(&mut self, dialogs: u64, messages: u64) -> Result<()> {
        let population = Population::new(dialogs, dialogs, 1)?;
        let plan = LoadPlan { population, messages, text: TEXT, newest: Timestamp::now(), progress: false };
        load(&self.database, &plan).await?;
        self.population = Some(population);
        Ok(())
    }

    /// Sends and lists for some time after the warm-up, or until `ended`; with the ledger.
    pub async fn load(
        &self,
        requests: Requests,
        duration: Duration,
        ended: &Arc<AtomicBool>,
    ) -> Result<Loaded> {
        let Requests { lists, skew, rate, warmup } = requests;
        let pace = match rate {
            None => Pace::Closed,
            Some(rate) => {
                let schedule = Schedule::new(rate).map_err(anyhow::Error::msg)?;
                Pace::Open { schedule, queue: schedule.arrivals_within(Duration::from_secs(5)) }
            }
        };
        let plan = Plan {
            population: self.population.context("nobody is there")?,
            targets: vec![self.target.clone()],
            token_key: self.folder.path().join("key"),
            settings: Settings {
                pace,
                duration: warmup + duration,
                connections: CONNECTIONS,
                timeout: Duration::from_secs(10),
                retries: RETRIES,
            },
            warmup,
            skew,
            lists,
            text: TEXT,
            client_ids: true,
            seed: 1,
            ledger: self.folder.path().join("ledger"),
            database: None,
            progress: false,
            stop: Arc::clone(ended),
        };
        let processors = Processors::now()?;
        let report = run(&plan).await?;
        Ok(Loaded { report, busy: processors.busy_since()? })
    }

    /// Compares what was acknowledged in a load with what the shards hold.
    pub async fn audit(&self, report: &mut Report) -> Result<()> {
        let ledger = self.folder.path().join("ledger");
        let (audit, places) = dialog_bench::run::audit_file(&self.database, &ledger).await?;
        (report.audit, report.shard_groups, report.nodes) = (Some(audit), places.shard_groups, places.nodes);
        Ok(())
    }
}

/// How the latency is, held against that `before`.
pub fn compare(before: &Loaded, then: &Loaded, limit: Limit) -> [Row; 2] {
    beside::latency(&before.report, &then.report, limit, &beside::busy(before.busy, then.busy))
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
