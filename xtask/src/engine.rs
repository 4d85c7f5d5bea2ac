//! The Docker engine that runs the local cluster: the machine's own, or one started here.
//!
//! The engine started here is Debian's, as an ordinary process with folders, socket and configuration
//! of its own. It writes no firewall rules, makes no default bridge and forwards nothing: ports are
//! published by its proxy process, and images are built in the machine's network (`--network host`).
//! So stopping it takes everything away that it brought.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::cache::{self, Cache, Key};
use crate::command::{self, Log, wait_until};
use crate::progress::Progress;
use crate::{debian, runtime};

mod leftovers;

use leftovers::Leftovers;

/// The programs the engine needs, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("kill", "procps"),
    ("umount", "mount"),
];
/// How long it may take to answer after its start, and to end after it was told to.
const PATIENCE: Duration = Duration::from_mins(1);

/// A Docker engine.
#[derive(Debug, Clone)]
pub(crate) enum Engine {
    /// The one that `docker` reaches by itself, with a registry in reach. Never started or stopped
    /// here.
    Machine,
    /// The one started here.
    Own(Own),
}

impl Engine {
    /// A `docker` command that speaks to this engine.
    pub(crate) fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        self.point(&mut command);
        command
    }

    /// Makes `command` speak to this engine, if it speaks to Docker at all.
    pub(crate) fn point(&self, command: &mut Command) {
        if let Self::Own(own) = self {
            // Debian has the classic builder only.
            command.env("DOCKER_HOST", own.host()).env("DOCKER_BUILDKIT", "0").env_remove("DOCKER_CONTEXT");
        }
    }

    /// Whether the engine holds the image `name`.
    pub(crate) fn has_image(&self, name: &str) -> bool {
        command::succeeds(self.docker().args(["image", "inspect", name]))
    }

    /// Removes images that no container uses; the layers that others share stay.
    pub(crate) fn remove_images<T: AsRef<str>>(&self, names: &[T], log: &Log) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        command::run(self.docker().arg("rmi").args(names.iter().map(AsRef::as_ref)), log)
    }

    /// Removes what other tags than that of `name` call images of the same repository: those built from
    /// older sources. One that a container still uses stays.
    pub(crate) fn remove_other_tags(&self, name: &str, log: &Log) -> Result<()> {
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        let format = "{{.Repository}}:{{.Tag}}";
        let all = command::output(self.docker().args(["images", "--format", format, repository]))?;
        for old in all.lines().filter(|old| *old != name) {
            let used = command::output(
                self.docker().args(["ps", "--all", "--quiet", "--filter"]).arg(format!("ancestor={old}")),
            )?;
            if used.is_empty() {
                self.remove_images(&[old], log)?;
            }
        }
        Ok(())
    }

    /// Whether the engine answers.
    pub(crate) fn answers(&self) -> bool {
        command::succeeds(self.docker().args(["version", "--format", "{{.Server.Version}}"]))
    }
}

/// The engine started here: where it keeps what, and how it is found again.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// Images and containers, and its configuration and log.
    home: PathBuf,
    /// Sockets, pid files and mounts; short, because a socket's path has at most 107 bytes.
    run: PathBuf,
    /// The parent of its containers' control groups.
    cgroup: String,
}

impl Own {
    /// The engine of this cache, running or not.
    pub(crate) fn of(cache: &Cache) -> Result<Self> {
        let key = Key::of().text(&cache.root().to_string_lossy()).finish();
        let name = format!("dialog-operator-{}", &key.as_str()[..8]);
        Ok(Self { home: cache.folder("engine")?, run: Path::new("/run").join(&name), cgroup: name })
    }

    /// Its address, as `DOCKER_HOST` wants it.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.run.join("docker.sock").display())
    }

    /// Whether anything of it is left on the machine: a process, or what one left behind.
    pub(crate) fn has_traces(&self) -> bool {
        self.run.exists()
    }

    /// The engine's process, if it runs. A pid file that outlived its process, or whose number now
    /// belongs to another program, counts for nothing.
    pub(crate) fn pid(&self) -> Option<u32> {
        live(&self.pid_file(), &self.daemon_configuration())
    }

    /// Starts it, unless it runs already, and waits until it answers.
    pub(crate) fn start(&self, progress: &Progress) -> Result<Engine> {
        let engine = Engine::Own(self.clone());
        if self.pid().is_some() && engine.answers() {
            return Ok(engine);
        }
        debian::install_programs(progress, PROGRAMS)?;
        self.need_root()?;
        progress.step("Docker engine", |_| self.launch(&engine))?;
        Ok(engine)
    }

    /// Fails unless this process may start it, stop it and take away what it leaves.
    pub(crate) fn need_root(&self) -> Result<()> {
        ensure!(
            debian::is_root()?,
            "the local Docker engine, in {}, is root's to start and stop: repeat the command as root",
            self.home.display()
        );
        Ok(())
    }

    /// Ends it, with its containers, and takes away what it leaves on the machine; its images stay. A container or a network
    /// that was not removed before is there again when it starts.
    pub(crate) fn stop(&self, log: &Log) -> Result<()> {
        if let Some(pid) = self.pid() {
            command::run(Command::new("kill").args(["-TERM", &pid.to_string()]), log)?;
            if !wait_until(PATIENCE, || self.pid().is_none()) {
                bail!("the Docker engine (process {pid}) has not ended after {} s", PATIENCE.as_secs());
            }
        }
        Leftovers { home: &self.home, run: &self.run, cgroup: &self.cgroup }.remove(log)
    }

    fn launch(&self, engine: &Engine) -> Result<()> {
        fs::create_dir_all(&self.run).with_context(|| format!("cannot create {}", self.run.display()))?;
        // Of an engine that was killed. A daemon takes the number in a pid file for the process it means
        // as long as any process has that number, even one that is dead and was not collected yet.
        let containerd = self.run.join("exec/containerd");
        for (file, configuration) in [
            (self.pid_file(), self.daemon_configuration()),
            (containerd.join("containerd.pid"), containerd.join("containerd.toml")),
        ] {
            if live(&file, &configuration).is_none() {
                cache::remove(&file)?;
            }
        }
        let configuration = self.daemon_configuration();
        fs::write(&configuration, self.configuration()?.to_string())
            .with_context(|| format!("cannot write {}", configuration.display()))?;
        let log = Log::create(self.home.join("dockerd.log"))?;
        let mut child = Command::new("dockerd")
            .arg("--config-file")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.append()?)
            .stderr(log.append()?)
            // So that an interrupt at the terminal ends the command and not the engine.
            .process_group(0)
            .spawn()
            .context("cannot run dockerd")?;
        let answered = wait_until(PATIENCE, || has_ended(&mut child) || engine.answers());
        if has_ended(&mut child) {
            return Err(command::failure("dockerd", "ended at once", &log));
        }
        if !answered {
            return Err(command::failure("dockerd", "does not answer", &log));
        }
        Ok(())
    }

    fn configuration(&self) -> Result<serde_json::Value> {
        let mut configuration = json!({
            "hosts": [self.host()],
            "data-root": self.home.join("data"),
            "exec-root": self.run.join("exec"),
            "pidfile": self.run.join("docker.pid"),
            "cgroup-parent": format!("/{}", self.cgroup),
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "storage-driver": "overlay2",
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "ip-masq": false,
        });
        if runtime::is_needed()? {
            // A copy, because the program in the clone may be rebuilt or deleted while the engine runs.
            let front = self.home.join("runtime");
            let program = std::env::current_exe().context("cannot find this program's file")?;
            cache::remove(&front)?;
            fs::copy(&program, &front).with_context(|| format!("cannot write {}", front.display()))?;
            configuration["runtimes"] = json!({"reduced": {"path": front, "runtimeArgs": ["runtime"]}});
            configuration["default-runtime"] = json!("reduced");
        }
        Ok(configuration)
    }

    fn pid_file(&self) -> PathBuf {
        self.run.join("docker.pid")
    }

    fn daemon_configuration(&self) -> PathBuf {
        self.home.join("daemon.json")
    }
}

/// The process in `pid_file`, if it lives and is the one that was meant: its command line names
/// `configuration`. One that has ended has no command line, whether or not it was collected.
fn live(pid_file: &Path, configuration: &Path) -> Option<u32> {
    let pid = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = arguments.split(|byte| *byte == 0);
    words.any(|word| word == configuration.as_os_str().as_encoded_bytes()).then_some(pid)
}

fn has_ended(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_was_meant_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (pid_file, configuration) = (folder.path().join("pid"), folder.path().join("configuration"));
        assert_eq!(live(&pid_file, &configuration), None);
        fs::write(&pid_file, std::process::id().to_string()).unwrap();
        assert_eq!(live(&pid_file, &configuration), None, "this test's process knows no such file");

        let mut command = Command::new("tail");
        command.args(["--follow=name", "--retry"]).arg(&configuration).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        fs::write(&pid_file, format!("{}\n", child.id())).unwrap();
        let counted = wait_until(PATIENCE, || live(&pid_file, &configuration) == Some(child.id()));
        child.kill().unwrap();
        // Dead, and still with a number until it is waited for.
        let uncounted = wait_until(PATIENCE, || live(&pid_file, &configuration).is_none());
        child.wait().unwrap();
        assert!(counted && uncounted, "counted: {counted}, no longer counted: {uncounted}");
    }
}
