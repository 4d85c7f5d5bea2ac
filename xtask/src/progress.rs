//! Long steps: what runs now, for how long, and a breakdown at the end.
//!
//! Everything here goes to standard error, so that a command's result may go to standard output.

use std::cell::RefCell;
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::command::{self, Log};

/// How many runs keep their logs.
const KEPT_RUNS: usize = 20;
/// How often a step that is still running says so where no line can be rewritten.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// The steps of one run of a command.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    logs: PathBuf,
    done: RefCell<Vec<Done>>,
}

/// A step that has ended.
#[derive(Debug)]
struct Done {
    name: String,
    took: Duration,
    succeeded: bool,
}

impl Progress {
    /// Starts a run whose logs go to a folder of their own in the cache; the oldest runs' logs go.
    pub(crate) fn start(cache: &Cache) -> Result<Self> {
        let all = cache.folder("logs")?;
        let mut runs: Vec<_> = fs::read_dir(&all)
            .with_context(|| format!("cannot read {}", all.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        runs.sort();
        for old in runs.iter().take((runs.len() + 1).saturating_sub(KEPT_RUNS)) {
            cache::remove(old)?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let logs = all.join(format!("{now}-{}", std::process::id()));
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self { started: Instant::now(), logs, done: RefCell::default() })
    }

    /// Runs `work` as a step called `name`. Its log is `work`'s to write; a failure names the step and shows the log's
    /// end.
    pub(crate) fn step<T>(&self, name: &str, work: impl FnOnce(&Log) -> Result<T>) -> Result<T> {
        let number = self.done.borrow().len() + 1;
        let file = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let log = Log::create(self.logs.join(format!("{number:02}-{file}.log")))?;
        let started = Instant::now();
        let outcome = thread::scope(|scope| {
            let (stop, stopped) = mpsc::channel::<()>();
            let log = &log;
            scope.spawn(move || show(name, started, log, &stopped));
            let outcome = work(log);
            drop(stop);
            outcome
        });
        let took = started.elapsed();
        let done = Done { name: name.to_owned(), took, succeeded: outcome.is_ok() };
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K");
        }
        eprintln!("{:>9}  {name}: {}", seconds(took), if done.succeeded { "done" } else { "FAILED" });
        self.done.borrow_mut().push(done);
        outcome
            .map_err(|error| command::with_log(error, &log))
            .with_context(|| format!("{name} failed after {}", seconds(took).trim_start()))
    }

    /// Prints what each step took and their total.
    pub(crate) fn finish(&self) {
        let done = self.done.borrow();
        if done.len() > 1 {
            eprintln!("\nWhat took how long:\n{}", breakdown(&done, self.started.elapsed()));
        }
    }
}

/// A line per step, and what the whole run took; what passed outside of steps has a line, too, if it is worth one.
fn breakdown(done: &[Done], total: Duration) -> String {
    let mut rows: Vec<_> = done
        .iter()
        .map(|step| (step.took, format!("{}{}", step.name, if step.succeeded { "" } else { ": FAILED" })))
        .collect();
    let between = total.saturating_sub(done.iter().map(|step| step.took).sum());
    if between >= Duration::from_secs(1) {
        rows.push((between, "between the steps".to_owned()));
    }
    rows.push((total, "in total".to_owned()));
    let lines: Vec<_> = rows.iter().map(|(took, what)| format!("{:>9}  {what}", seconds(*took))).collect();
    lines.join("\n")
}

/// Shows that a step is running until `stopped` closes: a line that is rewritten every second on a
/// terminal, elsewhere one line now and then.
fn show(name: &str, started: Instant, log: &Log, stopped: &mpsc::Receiver<()>) {
    let terminal = std::io::stderr().is_terminal();
    if !terminal {
        eprintln!("           {name} ...");
    }
    let every = if terminal { Duration::from_secs(1) } else { HEARTBEAT };
    while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let elapsed = seconds(started.elapsed());
        let last = log.tail(1).pop().unwrap_or_default();
        let last: String = last.chars().filter(|letter| !letter.is_control()).take(60).collect();
        if terminal {
            eprint!("\r\x1b[2K{elapsed:>9}  {name} ... \x1b[2m{last}\x1b[0m");
            // A terminal that went away is no reason to fail the step.
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{elapsed:>9}  {name} ... {last}");
        }
    }
}

fn seconds(time: Duration) -> String {
    let total = time.as_secs();
    if total < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} m {:02} s", total / 60, total % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(754)), "12 m 34 s");
        assert_eq!(seconds(Duration::from_millis(59_960)), "60.0 s");
    }

    #[test]
    fn a_step_that_fails_without_a_command_shows_its_log_all_the_same() {
        let logs = tempfile::tempdir().unwrap();
        let progress =
            Progress { started: Instant::now(), logs: logs.path().to_path_buf(), done: RefCell::default() };
        let fail = |name: &str, lines: &[&str]| {
            let failed = progress.step(name, |log| -> Result<()> {
                lines.iter().try_for_each(|line| log.note(line))?;
                anyhow::bail!("containerd does not answer")
            });
            format!("{:#}", failed.unwrap_err())
        };
        let error = fail("Node image", &["one", "two"]);
        assert!(error.starts_with("Node image failed after 0.0 s: containerd does not answer;"), "{error}");
        let end =
            format!("    one\n    two\n\nthe whole log: {}", logs.path().join("01-Node-image.log").display());
        assert!(error.ends_with(&end), "{error}");
        // Where nothing was written there is nothing to look into.
        assert!(fail("Engine", &[]).ends_with(": containerd does not answer"));
    }

    #[test]
    fn a_breakdown_accounts_for_all_of_the_time_and_names_the_step_that_failed() {
        let step = |name: &str, seconds, succeeded| Done {
            name: name.to_owned(),
            took: Duration::from_secs(seconds),
            succeeded,
        };
        let done = [step("Go programs (21)", 754, true), step("Kubernetes", 12, false)];
        assert_eq!(
            breakdown(&done, Duration::from_secs(770)),
            "12 m 34 s  Go programs (21)\n   12.0 s  Kubernetes: FAILED\n    4.0 s  between the steps\n12 m 50 s  in total"
        );
        assert!(!breakdown(&done, Duration::from_millis(766_500)).contains("between"));
    }
}
