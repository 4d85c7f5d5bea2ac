//! Running programs: their output goes to a log or into a value, and a failure shows what ran, how it
//! ended, its last lines and where the rest is.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How often [`wait_until`] looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// How many lines of a log a failure shows.
const TAIL_LINES: usize = 20;

/// A file that collects the output of one step.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    path: PathBuf,
}

impl Log {
    /// An empty log at `path`.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        File::create(&path).with_context(|| format!("cannot create the log {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, opened to write at its end.
    pub(crate) fn append(&self) -> Result<File> {
        OpenOptions::new()
            .append(true)
            .open(&self.path)
            .with_context(|| format!("cannot open the log {}", self.path.display()))
    }

    /// Adds a line of our own.
    pub(crate) fn note(&self, line: &str) -> Result<()> {
        writeln!(self.append()?, "{line}")
            .with_context(|| format!("cannot write the log {}", self.path.display()))
    }

    /// The last non-empty lines of output, at most `count`.
    pub(crate) fn tail(&self, count: usize) -> Vec<String> {
        let text = fs::read(&self.path).unwrap_or_default();
        tail(&String::from_utf8_lossy(&text), count)
    }
}

/// Runs `command` with its output in `log` and fails unless it exits with 0.
pub(crate) fn run(command: &mut Command, log: &Log) -> Result<()> {
    log.note(&format!("$ {}", line(command)))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log.append()?)
        .stderr(log.append()?)
        .status()
        .with_context(|| missing(command))?;
    check(command, status, log)
}

/// Runs `command` with `input` on its standard input, otherwise as [`run`].
pub(crate) fn run_with_input(command: &mut Command, input: &[u8], log: &Log) -> Result<()> {
    log.note(&format!("$ {}", line(command)))?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(log.append()?)
        .stderr(log.append()?)
        .spawn()
        .with_context(|| missing(command))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input));
    let status = child.wait().with_context(|| missing(command))?;
    check(command, status, log)?;
    written.with_context(|| format!("cannot write the input of `{}`", line(command)))
}

/// Runs `producer | consumer` and fails unless both exit with 0.
pub(crate) fn pipe(producer: &mut Command, mut consumer: Command, log: &Log) -> Result<()> {
    let last = line(&consumer);
    log.note(&format!("$ {} | {last}", line(producer)))?;
    let mut first = producer
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.append()?)
        .spawn()
        .with_context(|| missing(producer))?;
    let output = first.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let second = consumer.stdin(output).stdout(log.append()?).stderr(log.append()?).status();
    // It holds this process' copy of the reading end: with that gone, a producer whose consumer
    // failed ends too.
    drop(consumer);
    let first = first.wait().with_context(|| missing(producer))?;
    check_named(&last, second.with_context(|| format!("cannot run `{last}`"))?, log)?;
    check(producer, first, log)
}

/// The standard output of `command`, trimmed; a failure carries its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| missing(command))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` {}\n{}", line(command), outcome(output.status), tail(&error, TAIL_LINES).join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether `command` runs and exits with 0; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether a program of this name is in one of the folders of `PATH`.
pub(crate) fn is_found(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Looks until `condition` holds, for at most `patience`; says whether it came to hold.
pub(crate) fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(INTERVAL);
    }
}

/// The command as one would type it, without its environment.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program()];
    words.extend(command.get_args());
    words.into_iter().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// A failure in the words every failed step uses: what, how it ended, the last lines, the whole log.
pub(crate) fn failure(what: &str, ended: &str, log: &Log) -> anyhow::Error {
    anyhow::anyhow!("`{what}` {ended}; {}", end_of(log))
}

/// `error` with the last lines of `log` and where it is, unless it says so already or there is nothing in it.
pub(crate) fn with_log(error: anyhow::Error, log: &Log) -> anyhow::Error {
    let what = format!("{error:#}");
    if log.tail(1).is_empty() || what.contains(&log.path().display().to_string()) {
        return error;
    }
    anyhow::anyhow!("{what}; {}", end_of(log))
}

fn end_of(log: &Log) -> String {
    let lines = log.tail(TAIL_LINES).join("\n    ");
    format!("the last lines:\n\n    {lines}\n\nthe whole log: {}", log.path().display())
}

fn check(command: &Command, status: ExitStatus, log: &Log) -> Result<()> {
    check_named(&line(command), status, log)
}

fn check_named(what: &str, status: ExitStatus, log: &Log) -> Result<()> {
    if status.success() { Ok(()) } else { Err(failure(what, &outcome(status), log)) }
}

fn outcome(status: ExitStatus) -> String {
    status.code().map_or_else(|| format!("was ended by {status}"), |code| format!("exited with {code}"))
}

fn missing(command: &Command) -> String {
    format!("cannot run `{}`: is it installed?", command.get_program().to_string_lossy())
}

fn tail(text: &str, count: usize) -> Vec<String> {
    // A failure names its command already.
    let is_output = |line: &&str| !line.trim().is_empty() && !line.starts_with("$ ");
    let lines: Vec<_> = text.lines().filter(is_output).collect();
    lines.iter().skip(lines.len().saturating_sub(count)).map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, Log) {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::create(folder.path().join("step.log")).unwrap();
        (folder, log)
    }

    #[test]
    fn a_failure_shows_the_command_its_last_lines_and_the_log() {
        let (_folder, log) = log();
        let error = run(Command::new("sh").args(["-c", "seq 1 30; exit 3"]), &log).unwrap_err().to_string();
        assert!(error.contains("`sh -c seq 1 30; exit 3` exited with 3"), "{error}");
        assert!(error.contains("    30\n") && !error.contains("    10\n"), "{error}");
        assert!(error.contains(&log.path().display().to_string()), "{error}");
    }

    #[test]
    fn a_pipe_fails_with_either_end() {
        let (_folder, log) = log();
        let ends = |first: &str, second: &str| {
            let mut consumer = Command::new("sh");
            consumer.args(["-c", second]);
            pipe(Command::new("sh").args(["-c", first]), consumer, &log)
        };
        ends("echo hello", "grep hello").unwrap();
        assert!(ends("echo hello; exit 4", "cat").unwrap_err().to_string().contains("exited with 4"));
        assert!(ends("yes", "exit 5").unwrap_err().to_string().contains("exited with 5"));
    }

    #[test]
    fn input_reaches_the_program() {
        let (_folder, log) = log();
        run_with_input(&mut Command::new("cat"), b"a line", &log).unwrap();
        assert_eq!(log.tail(1), ["a line"]);
    }

    #[test]
    fn a_program_that_is_absent_is_named() {
        let error = output(&mut Command::new("no-such-program")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot run `no-such-program`"), "{error:#}");
    }
}
