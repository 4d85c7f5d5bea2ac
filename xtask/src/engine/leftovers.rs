//! What an engine leaves on the machine, above all one that was killed: processes, mounts, interfaces, control groups,
//! folders.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cache;
use crate::command::{self, Log, wait_until};

/// How long what has just ended may keep a mount or a control group busy.
const PATIENCE: Duration = Duration::from_mins(1);
/// The programs that an engine runs outside of containers.
const PROGRAMS: &[&str] = &["dockerd", "containerd", "containerd-shim-runc-v2"];
/// Folders that every engine shares; another one's files keep them.
const SHARED: &[&str] = &["/run/docker/plugins", "/run/docker", "/run/containerd/s", "/run/containerd"];

/// An engine that does not run, by what its leftovers are known by.
#[derive(Debug)]
pub(super) struct Leftovers<'a> {
    /// Its configuration and data, which stay.
    pub(super) home: &'a Path,
    /// Its sockets, pid files and mounts, which go.
    pub(super) run: &'a Path,
    /// The parent of its containers' control groups.
    pub(super) cgroup: &'a str,
}

impl Leftovers<'_> {
    /// Takes all of them away, and fails if any is still there then.
    pub(super) fn remove(&self, log: &Log) -> Result<()> {
        self.end_processes(log)?;
        for bridge in self.bridges()? {
            command::run(Command::new("ip").args(["link", "delete", &bridge]), log)?;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
        for mount in mounts_below(&mounts, &[self.home, self.run]) {
            let unmount = || command::run(Command::new("umount").arg(mount), log).is_ok();
            if !wait_until(PATIENCE, unmount) {
                return Err(command::failure(&format!("umount {mount}"), "keeps failing", log));
            }
        }
        cache::remove(self.run)?;
        for group in self.groups()? {
            if !wait_until(PATIENCE, || remove_group(&group).is_ok()) {
                remove_group(&group)?;
            }
        }
        for shared in SHARED {
            if fs::remove_dir(shared).is_ok() {
                log.note(&format!("removed {shared}"))?;
            }
        }
        let left = self.left()?;
        ensure!(left.is_empty(), "still on the machine: {}", left.join(", "));
        Ok(())
    }

    /// What is there of it, in words.
    fn left(&self) -> Result<Vec<String>> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
        let mounts =
            mounts_below(&mounts, &[self.home, self.run]).into_iter().map(|at| format!("the mount {at}"));
        let processes = self.processes()?.into_iter().map(|pid| format!("the process {pid}"));
        let bridges = self.bridges()?.into_iter().map(|name| format!("the interface {name}"));
        let groups = self.groups()?.into_iter().map(|group| format!("the control group {}", group.display()));
        let folder = self.run.exists().then(|| format!("the folder {}", self.run.display()));
        Ok(processes.chain(bridges).chain(mounts).chain(groups).chain(folder).collect())
    }

    fn end_processes(&self, log: &Log) -> Result<()> {
        let mut left = self.processes()?;
        let ended = wait_until(PATIENCE, || {
            if !left.is_empty() {
                // One that ended meanwhile makes this fail; who is left decides.
                let _ = command::run(
                    Command::new("kill").arg("-KILL").args(left.iter().map(u32::to_string)),
                    log,
                );
                left = self.processes().unwrap_or_default();
            }
            left.is_empty()
        });
        if ended {
            return Ok(());
        }
        Err(command::failure(&format!("kill -KILL {left:?}"), "does not end them", log))
    }

    /// The engine's own programs, and everything in its containers' control groups.
    fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").context("cannot read /proc")?.filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if is_program(&arguments, &[self.home, self.run]) {
                found.insert(pid);
            }
        }
        for group in self.groups()? {
            add_members(&group, &mut found);
        }
        Ok(found)
    }

    /// The bridges of its networks. An engine names a bridge by the first digits of its network's identifier, and keeps
    /// the identifiers in its data.
    fn bridges(&self) -> Result<Vec<String>> {
        let networks = fs::read(self.home.join("data/network/files/local-kv.db")).unwrap_or_default();
        let interfaces = fs::read_to_string("/proc/net/dev").context("cannot read /proc/net/dev")?;
        let names = interfaces.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
        Ok(names.filter(|name| is_bridge(name, &networks)).map(str::to_owned).collect())
    }

    /// Its control group in each hierarchy: one in the second version of control groups, several in the first.
    fn groups(&self) -> Result<Vec<PathBuf>> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).context("cannot read /sys/fs/cgroup")?;
        let parents = hierarchies.filter_map(|entry| Some(entry.ok()?.path()));
        let groups =
            std::iter::once(root.to_path_buf()).chain(parents).map(|parent| parent.join(self.cgroup));
        Ok(groups.filter(|group| group.is_dir()).collect())
    }
}

/// Whether a command line is one of an engine's programs with a file below one of `folders` among its arguments.
fn is_program(arguments: &[u8], folders: &[&Path]) -> bool {
    let mut words = arguments.split(|byte| *byte == 0).map(|word| Path::new(OsStr::from_bytes(word)));
    let name = words.next().and_then(Path::file_name).and_then(OsStr::to_str);
    name.is_some_and(|name| PROGRAMS.contains(&name))
        && words.any(|word| folders.iter().any(|folder| word.starts_with(folder)))
}

fn is_bridge(name: &str, networks: &[u8]) -> bool {
    name.strip_prefix("br-")
        .is_some_and(|id| id.len() == 12 && networks.windows(id.len()).any(|window| window == id.as_bytes()))
}

fn add_members(group: &Path, found: &mut BTreeSet<u32>) {
    // A group that vanishes while it is read has no members any more.
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(members.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for child in children(group) {
        add_members(&child, found);
    }
}

/// Mount points below any of `folders`, the innermost first.
fn mounts_below<'a>(mounts: &'a str, folders: &[&Path]) -> Vec<&'a str> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut found: Vec<_> =
        points.filter(|point| folders.iter().any(|folder| Path::new(point).starts_with(folder))).collect();
    found.reverse();
    found
}

/// Removes a control group with all below it; only empty ones can be removed.
fn remove_group(group: &Path) -> Result<()> {
    for child in children(group) {
        remove_group(&child)?;
    }
    fs::remove_dir(group).with_context(|| format!("cannot remove the control group {}", group.display()))
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_innermost_first_and_by_whole_names() {
        let mounts =
            "overlay /run/x/a overlay rw 0 0\nnsfs /run/x/a/b nsfs rw 0 0\next4 /run/xy ext4 rw 0 0\n";
        assert_eq!(mounts_below(mounts, &[Path::new("/run/x")]), ["/run/x/a/b", "/run/x/a"]);
    }

    #[test]
    fn only_an_engines_programs_with_its_own_files_are_its_processes() {
        let is_ours = |line: &str| {
            let arguments = line.replace(' ', "\0");
            is_program(arguments.as_bytes(), &[Path::new("/cache/engine"), Path::new("/run/x")])
        };
        assert!(is_ours("dockerd --config-file /cache/engine/daemon.json"));
        assert!(is_ours("/usr/bin/containerd-shim-runc-v2 -namespace moby -address /run/x/containerd.sock"));
        assert!(!is_ours("containerd --config /run/xy/containerd.toml"), "another engine's");
        assert!(!is_ours("tail --follow /cache/engine/dockerd.log"), "somebody who looks");
        assert!(!is_ours("dockerd"), "the machine's");
        assert!(!is_ours(""), "a thread of the kernel");
    }

    #[test]
    fn only_bridges_of_known_networks_are_its_own() {
        let networks = b"\x00{\"id\":\"8be54949cdaf0123\",...";
        assert!(is_bridge("br-8be54949cdaf", networks));
        assert!(!is_bridge("br-000000000000", networks), "another engine's");
        assert!(
            !is_bridge("br-8be5", networks) && !is_bridge("br-", networks) && !is_bridge("eth0", networks)
        );
    }

    #[test]
    fn what_is_left_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (home, run) = (folder.path().join("home"), folder.path().join("run"));
        let leftovers = Leftovers { home: &home, run: &run, cgroup: "no-such-group" };
        assert!(leftovers.left().unwrap().is_empty());
        fs::create_dir(&run).unwrap();
        assert_eq!(leftovers.left().unwrap(), [format!("the folder {}", run.display())]);

        // A program of the engine's name, with a file of its own.
        let program = folder.path().join("dockerd");
        std::os::unix::fs::symlink("/usr/bin/tail", &program).unwrap();
        let mut child =
            Command::new(&program).args(["--follow=name", "--retry"]).arg(home.join("x")).spawn().unwrap();
        let named = format!("the process {}", child.id());
        let seen = wait_until(PATIENCE, || leftovers.left().unwrap().contains(&named));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen, "{named} is not named");
    }

    #[test]
    fn members_of_groups_at_every_depth_are_found() {
        let group = tempfile::tempdir().unwrap();
        fs::create_dir_all(group.path().join("a/b")).unwrap();
        fs::write(group.path().join("cgroup.procs"), "").unwrap();
        fs::write(group.path().join("a/cgroup.procs"), "7\n8\n").unwrap();
        fs::write(group.path().join("a/b/cgroup.procs"), "9\n").unwrap();
        let mut found = BTreeSet::new();
        add_members(group.path(), &mut found);
        assert_eq!(found, BTreeSet::from([7, 8, 9]));
    }
}
