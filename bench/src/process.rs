//! What the operating system says about a process.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

/// The unit of processor times in `/proc`, which is the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that a process with all its threads has used so far, in user and kernel mode.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} is not as expected: {text}"))?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// Memory that a process occupies, in KiB.
///
/// # Errors
/// When there is no such process.
pub fn resident_kib(pid: u32) -> Result<u64> {
    kib(pid, "VmRSS:")
}

/// The most memory that a process has occupied since its start, in KiB.
///
/// # Errors
/// When there is no such process.
pub fn peak_kib(pid: u32) -> Result<u64> {
    kib(pid, "VmHWM:")
}

/// The most memory, in MB, that this program occupies when it is started once more with these arguments, by which it has to print
/// its own [`peak_kib`] and nothing else. In a process that has done other things an allocator gives what was freed before, so
/// what comes last would be said to be too little.
///
/// # Errors
/// When it cannot be started, fails, or prints something else.
pub fn peak_mb_of(arguments: &[&str]) -> Result<f64> {
    let program = std::env::current_exe().context("this program")?;
    let output = Command::new(program).args(arguments).output().context("run this program again")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("what it printed")?;
    let kib: u32 = text.trim().parse().with_context(|| format!("{text:?} is no number"))?;
    Ok(f64::from(kib) / 1024.0)
}

/// A field of what the system says about a process's memory.
fn kib(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no {field}"))
}

/// Fields 14 and 15; the name in field 2 may hold anything, parentheses too.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 17 5 0 0 20 0 3 0 12345 1000 200";
        assert_eq!(ticks(stat), Some(22));
        assert_eq!(ticks("42 (a) S 1"), None);
    }

    #[test]
    fn this_process_uses_processors_and_memory() {
        let before = cpu(std::process::id()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while cpu(std::process::id()).unwrap() == before {
            assert!(std::time::Instant::now() < deadline, "no time is counted");
        }
        assert!(resident_kib(std::process::id()).unwrap() > 100);
        assert!(cpu(u32::MAX).is_err());
    }

    #[test]
    fn a_program_that_prints_something_else_has_no_peak() {
        let refused = peak_mb_of(&["--list"]).unwrap_err().to_string();
        assert!(
            refused.contains("a_program_that_prints_something_else") && refused.ends_with("is no number")
        );
        assert!(peak_mb_of(&["--no-such-flag"]).is_err());
    }

    #[test]
    fn what_was_given_back_counts_for_the_peak() {
        let pid = std::process::id();
        let before = resident_kib(pid).unwrap();
        // Written to, so that it is occupied, and large enough to be given back at once.
        drop(std::hint::black_box(vec![1_u8; 64 << 20]));
        let peak = peak_kib(pid).unwrap();
        assert!(peak >= before + (60 << 10), "{peak} KiB after {before}");
    }
}
