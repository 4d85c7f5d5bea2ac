//! A container runtime in front of runc, for machines that withhold `CAP_SYS_RESOURCE`.
//!
//! A privileged container asks for every capability there is, and runc fails when one of them is
//! outside the bounding set it runs in itself. kind's nodes are privileged containers. Where the
//! machine withholds that one capability, the Docker engine is told to call this instead of runc: it
//! takes what needs the capability out of the container's or the new process' description, then
//! becomes runc. Everywhere else runc is called directly.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The capability, by its name in the runtime specification.
const CAPABILITY: &str = "CAP_SYS_RESOURCE";
/// Its bit in the kernel's sets.
const CAPABILITY_BIT: u32 = 24;

/// Whether this machine withholds the capability from its own root.
pub(crate) fn is_needed() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let bounding = bounding_set(&status).context("no CapBnd in /proc/self/status")?;
    Ok(bounding & (1 << CAPABILITY_BIT) == 0)
}

/// Does what runc would do with these arguments, less what needs the capability. Returns only if it
/// could not.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    match description(arguments) {
        Some(Description::Bundle(bundle)) => rewrite(&bundle.join("config.json"), |config| {
            if let Some(process) = config.get_mut("process") {
                reduce(process);
            }
        })?,
        Some(Description::Process(file)) => rewrite(&file, reduce)?,
        None => {}
    }
    Err(Command::new("runc").args(arguments).exec()).context("cannot run runc")
}

/// The file that describes what a call of runc is about to start.
#[derive(Debug, PartialEq, Eq)]
enum Description {
    /// A folder with a container's `config.json`.
    Bundle(PathBuf),
    /// A file with a process to start in a container that runs.
    Process(PathBuf),
}

fn description(arguments: &[OsString]) -> Option<Description> {
    let command =
        arguments.iter().position(|word| ["create", "run", "exec"].iter().any(|name| word == name))?;
    let after = arguments.get(command + 1..)?;
    let value = |long: &str, short: &str| {
        let found = after.iter().position(|word| word == long || word == short)?;
        after.get(found + 1).map(PathBuf::from)
    };
    if arguments.get(command)? == "exec" {
        value("--process", "-p").map(Description::Process)
    } else {
        value("--bundle", "-b").map(Description::Bundle)
    }
}

/// Takes the capability out of a process' description, and what the kernel refuses without it:
/// raising resource limits, and asking to be spared when memory runs out.
fn reduce(process: &mut Value) {
    let Some(process) = process.as_object_mut() else { return };
    if let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.retain(|name| name != CAPABILITY);
        }
    }
    process.remove("rlimits");
    if process.get("oomScoreAdj").and_then(Value::as_i64).is_some_and(|score| score < 0) {
        process.remove("oomScoreAdj");
    }
}

fn rewrite(file: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let name = || file.display().to_string();
    let text = fs::read(file).with_context(|| format!("cannot read {}", name()))?;
    let mut value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", name()))?;
    change(&mut value);
    let text = serde_json::to_vec(&value).with_context(|| format!("cannot encode {}", name()))?;
    fs::write(file, text).with_context(|| format!("cannot write {}", name()))
}

fn bounding_set(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn finds_what_is_about_to_start() {
        let create = words("--root /r --log /l --log-format json create --bundle /b --pid-file /p id");
        assert_eq!(description(&create), Some(Description::Bundle("/b".into())));
        let exec = words("--root /r exec --process /tmp/p --detach id");
        assert_eq!(description(&exec), Some(Description::Process("/tmp/p".into())));
        assert_eq!(description(&words("--root /r start id")), None);
        assert_eq!(description(&words("--version")), None);
    }

    #[test]
    fn takes_out_only_what_needs_the_capability() {
        let mut process = json!({
            "args": ["/sbin/init"],
            "capabilities": {"bounding": ["CAP_SYS_RESOURCE", "CAP_CHOWN"], "effective": ["CAP_SYS_RESOURCE"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}],
            "oomScoreAdj": -500,
        });
        reduce(&mut process);
        let expected = json!({
            "args": ["/sbin/init"],
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": []},
        });
        assert_eq!(process, expected);
        let mut easier = json!({"oomScoreAdj": 500});
        reduce(&mut easier);
        assert_eq!(easier, json!({"oomScoreAdj": 500}));
    }

    #[test]
    fn reads_the_bounding_set() {
        assert_eq!(bounding_set("Name:\tx\nCapBnd:\t000001fffeffffff\n"), Some(0x01ff_feff_ffff));
        assert_eq!(bounding_set("Name:\tx\n"), None);
    }
}
