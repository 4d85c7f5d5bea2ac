//! The database alone: pgbench with prepared statements, as a yardstick.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use dialog_api::database::statements::Sql;
use testbed::postgres::{Installation, Server};
use uuid::Uuid;

use super::measure::Bench;
use crate::workload::Kind;

/// Dialogs that pgbench draws from: a script each, as its own variables can be numbers only.
const DIALOGS: usize = 32;
/// Clients, each with one statement at a time.
const CLIENTS: &str = "16";
/// What comes before a measurement, in seconds: each client prepares each script's statement, and the servers make
/// plans for its first five executions.
const WARMUP: u64 = 3;
/// How often it is tried to measure something, each time for twice as long.
const ATTEMPTS: usize = 3;
/// The newest messages are older than this one.
const NEWEST: Uuid = Uuid::max();
/// Messages of a list, as the service has it.
const PAGE: &str = "100";

/// pgbench on the servers of the stand.
pub(super) struct Pgbench<'a> {
    bench: &'a Bench<'a>,
    /// Dialogs that nobody else writes to, so that all lists are as long as the service's; and others to write to.
    read: Vec<Names>,
    written: Vec<Names>,
    /// A worker and the same for it, with dialogs of its own only.
    owner: Option<(&'a Server, Vec<Names>, Vec<Names>)>,
}

/// A dialog and its users.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) dialog: Uuid,
    one: Uuid,
    other: Uuid,
}

/// What pgbench found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) per_second: f64,
    /// Latency, in milliseconds.
    pub(super) p99: f64,
}

impl<'a> Pgbench<'a> {
    /// Finds dialogs for it: at the end of the population, where people seldom write.
    pub(super) async fn new(bench: &'a Bench<'a>) -> Result<Self> {
        let population = bench.size.population;
        let all: Vec<Names> = (0..population.dialogs())
            .rev()
            .take(32 * DIALOGS)
            .map(|dialog| {
                let (one, other) = population.members(dialog);
                let dialog = population.dialog_id(one, other);
                Names { dialog, one: population.user(one), other: population.user(other) }
            })
            .collect();
        let (read, written) = all.split_at(all.len() / 2);
        let owner = match bench.stand.workers().first() {
            None => None,
            Some(worker) => {
                Some((worker, owned(bench, worker, read).await?, owned(bench, worker, written).await?))
            }
        };
        let some = |dialogs: &[Names]| dialogs.iter().copied().take(DIALOGS).collect();
        Ok(Self { bench, read: some(read), written: some(written), owner })
    }

    /// A dialog that nobody writes to.
    pub(super) fn example(&self) -> Result<Names> {
        self.read.first().copied().context("no dialog for pgbench")
    }

    /// Whether a worker can be asked straight.
    pub(super) fn has_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// Requests per second by the service's own statement, through the coordinator.
    pub(super) fn by_coordinator(&self, kind: Kind) -> Result<f64> {
        Ok(match kind {
            Kind::Send => self.writes(&[&own_send()])?,
            Kind::List => self.lists(&own_list())?,
        }
        .per_second)
    }

    /// The same on a worker that owns the dialogs; `None` where there is none.
    pub(super) fn by_owner(&self, kind: Kind) -> Result<Option<f64>> {
        let Some((worker, read, written)) = &self.owner else { return Ok(None) };
        let found = match kind {
            Kind::Send => self.run(worker, written, &[&own_send()])?,
            Kind::List => self.run(worker, read, &[&own_list()])?,
        };
        Ok(Some(found.per_second))
    }

    /// Has a statement read dialogs that nobody writes to.
    pub(super) fn lists(&self, statement: &str) -> Result<Found> {
        self.run(self.bench.stand.coordinator(), &self.read, &[statement])
    }

    /// Has statements, one after the other, write to dialogs.
    pub(super) fn writes(&self, statements: &[&str]) -> Result<Found> {
        self.run(self.bench.stand.coordinator(), &self.written, statements)
    }

    fn run(&self, server: &Server, dialogs: &[Names], statements: &[&str]) -> Result<Found> {
        let mut seconds = WARMUP + self.bench.size.seconds;
        // On a busy machine clients may begin so late that the time is over with the warm-up.
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.run_for(seconds, server, dialogs, statements)? {
                return Ok(found);
            }
            seconds *= 2;
        }
        bail!("pgbench has logged nothing to measure in {ATTEMPTS} attempts: is the machine too busy?")
    }

    fn run_for(
        &self,
        seconds: u64,
        server: &Server,
        dialogs: &[Names],
        statements: &[&str],
    ) -> Result<Option<Found>> {
        let logs = tempfile::tempdir_in(self.bench.folder).context("a folder for pgbench")?;
        let mut command = Command::new(Installation::find()?.binary("pgbench"));
        command
            .args(["--no-vacuum", "--protocol=prepared", "--jobs=1", "--client", CLIENTS, "--log"])
            .arg(format!("--log-prefix={}", logs.path().join("log").display()))
            .args(["--host", server.host(), "--port", &server.port().to_string()])
            .args(["--username=dialog_api", "--time", &seconds.to_string()])
            .arg(format!("--define=top={NEWEST}"))
            .arg(format!("--define=text={}", "x".repeat(100)));
        for (number, names) in dialogs.iter().enumerate() {
            let mut script = String::new();
            for statement in statements {
                writeln!(script, "{};", names.variables(statement, &number.to_string()))?;
            }
            for (name, value) in names.values() {
                command.arg(format!("--define={name}{number}={value}"));
            }
            let file = logs.path().join(format!("{number}.sql"));
            fs::write(&file, script).with_context(|| format!("write {}", file.display()))?;
            command.arg("--file").arg(file);
        }
        let output = command.arg("dialog").output().context("run pgbench")?;
        ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        found(logs.path())
    }
}

impl Names {
    fn values(&self) -> [(&'static str, Uuid); 3] {
        [("dialog", self.dialog), ("one", self.one), ("other", self.other)]
    }

    /// One line with variables of this dialog: `:one` becomes `:one7`.
    fn variables(&self, statement: &str, suffix: &str) -> String {
        let line = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        self.values()
            .iter()
            .fold(line, |line, (name, _)| line.replace(&format!(":{name}"), &format!(":{name}{suffix}")))
    }

    /// With values in the place of variables.
    pub(super) fn literally(&self, statement: &str) -> String {
        let line = statement.replace(":top", &format!("'{NEWEST}'"));
        self.values()
            .iter()
            .fold(line, |line, (name, value)| line.replace(&format!(":{name}"), &format!("'{value}'")))
    }
}

/// The service's list, with pgbench's variables for its parameters.
pub(super) fn own_list() -> String {
    Sql::ListMessages.text().replace("$1", ":dialog").replace("$2", ":top").replace("$3", PAGE)
}

/// The service's send, with the message's id and time made by the server: pgbench can make neither.
pub(super) fn own_send() -> String {
    let values = [
        ("$1", ":dialog"),
        ("$2", "gen_random_uuid()"),
        ("$3", ":one"),
        ("$4", ":other"),
        ("$5", ":text"),
        ("$6", "now()"),
    ];
    values
        .iter()
        .fold(Sql::InsertMessage.text().to_owned(), |text, (parameter, value)| text.replace(parameter, value))
}

/// Some whose shard is on this worker.
async fn owned(bench: &Bench<'_>, worker: &Server, dialogs: &[Names]) -> Result<Vec<Names>> {
    let database = bench.stand.database()?;
    let client = database.connect().await?;
    let shards = database.shards(&client).await?;
    let ids: Vec<Uuid> = dialogs.iter().map(|names| names.dialog).collect();
    let hashes = database.hashes(&client, &ids).await?;
    let here = |hash: i32| {
        shards
            .iter()
            .any(|shard| (shard.hashes.0..=shard.hashes.1).contains(&hash) && shard.port == worker.port())
    };
    let owned = dialogs.iter().zip(hashes).filter(|(_, hash)| here(*hash)).map(|(names, _)| *names);
    Ok(owned.take(DIALOGS).collect())
}

/// What the logs say of the time after the warm-up; nothing if there was none.
#[allow(clippy::cast_precision_loss, reason = "microseconds and counts of some seconds")]
fn found(folder: &Path) -> Result<Option<Found>> {
    let mut transactions = Vec::new();
    for file in fs::read_dir(folder).context("read the folder of pgbench")? {
        let path = file.context("read the folder of pgbench")?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        transactions.extend(text.lines().filter_map(ended));
    }
    let (first, last) =
        transactions.iter().fold((u64::MAX, 0), |(first, last), (end, _)| (first.min(*end), last.max(*end)));
    let begin = first.saturating_add(WARMUP * 1_000_000);
    let mut latencies: Vec<u64> =
        transactions.iter().filter(|(end, _)| *end > begin).map(|(_, latency)| *latency).collect();
    latencies.sort_unstable();
    let Some(p99) = latencies.get(latencies.len() * 99 / 100) else { return Ok(None) };
    let seconds = (last - begin) as f64 / 1e6;
    Ok(Some(Found { per_second: latencies.len() as f64 / seconds, p99: *p99 as f64 / 1e3 }))
}

/// When a transaction ended and how long it took, in microseconds: of client, number, latency, script, second of the
/// end and microsecond.
fn ended(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(' ').skip(2).map(str::parse::<u64>);
    let (latency, _script) = (fields.next()?.ok()?, fields.next()?);
    Some((fields.next()?.ok()? * 1_000_000 + fields.next()?.ok()?, latency))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_get_variables_of_their_dialog() {
        let names = Names { dialog: Uuid::from_u128(1), one: Uuid::from_u128(2), other: Uuid::from_u128(3) };
        assert_eq!(names.variables("SELECT :one,\n   :other, :text", "7"), "SELECT :one7, :other7, :text");
        let list = own_list();
        assert!(!list.contains('$') && list.contains("dialog_id = :dialog"), "{list}");
        let literally = names.literally(&list);
        assert!(literally.contains("'00000000-0000-0000-0000-000000000001'") && !literally.contains(':'));
        assert!(!own_send().contains('$'), "{}", own_send());
    }

    #[test]
    fn what_all_logs_say_after_the_warm_up() {
        let folder = tempfile::tempdir().unwrap();
        // The warm-up's transactions take 900 ms and are not counted; then 100 in half a second, of 0 to 99 ms.
        for (file, first) in [("log.1", 0), ("log.2", 50)] {
            let line = |latency, end: u64| {
                format!("0 7 {latency} 3 {} {}\n", 1_700_000_000 + end / 1_000, end % 1_000 * 1_000)
            };
            let warmup = line(900_000, 0);
            let rest = (first..first + 50).map(|ms| line(ms * 1_000, WARMUP * 1_000 + (ms + 1) * 5));
            fs::write(folder.path().join(file), warmup + &rest.collect::<String>()).unwrap();
        }
        fs::write(folder.path().join("0.sql"), "SELECT 1 999000000 1 1 1").unwrap();
        let found = found(folder.path()).unwrap().unwrap();
        assert!((found.p99 - 99.0).abs() < f64::EPSILON, "{found:?}");
        assert!((found.per_second - 200.0).abs() < 1e-6, "{found:?}");
        assert!(super::found(tempfile::tempdir().unwrap().path()).unwrap().is_none());
    }
}
