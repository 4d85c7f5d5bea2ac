//! `initdb-atomic` of the image: what it makes is whole, whenever it is killed.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use testbed::postgres::{Installation, Owner};

/// A slow machine makes a database in this time.
const LIMIT: Duration = Duration::from_mins(1);

/// A volume, and the program beside it, where the servers' user can read it.
struct Volume {
    directory: TempDir,
    owner: Owner,
    installation: Installation,
}

impl Volume {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let owner = Owner::of_servers()?;
        owner.give(directory.path())?;
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/postgres/initdb-atomic");
        fs::copy(program, directory.path().join("initdb-atomic"))?;
        Ok(Self { directory, owner, installation: Installation::find()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// As Patroni calls it.
    fn initdb(&self) -> Result<Command> {
        let initdb = self.installation.binary("initdb");
        let programs = initdb.parent().context("no directory")?.display().to_string();
        let mut command = self.owner.command(Path::new("sh"), self.directory.path());
        command
            .env("PATH", format!("{programs}:{}", env::var("PATH")?))
            .arg(self.path("initdb-atomic"))
            .args(["--encoding=UTF8", "--locale=C.UTF-8", "--username=two words", "--auth=reject"])
            .arg(self.path("pgdata"));
        Ok(command)
    }

    fn control_data(&self) -> Result<String> {
        let program = self.installation.binary("pg_controldata");
        let output = self.owner.command(&program, self.directory.path()).arg(self.path("pgdata")).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

#[test]
fn a_database_is_there_whole_or_not_at_all() -> Result<()> {
    let volume = Volume::new()?;
    let mut killed = volume.initdb()?.process_group(0).spawn()?;
    let started = Instant::now();
    while !volume.path("pgdata.new/global/pg_control").exists() {
        ensure!(started.elapsed() < LIMIT && killed.try_wait()?.is_none(), "it does not begin");
        thread::sleep(Duration::from_millis(2));
    }
    let group = format!("-{}", killed.id());
    ensure!(Command::new("sh").args(["-c", "kill -s KILL -- \"$1\"", "sh", &group]).status()?.success());
    ensure!(!killed.wait()?.success());
    ensure!(!volume.path("pgdata").exists(), "half a database is in its place");

    let again = volume.initdb()?.output()?;
    ensure!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let whole = volume.control_data()?;
    ensure!(whole.contains("shut down"), "{whole}");
    ensure!(!volume.path("pgdata.new").exists());

    ensure!(!volume.initdb()?.output()?.status.success(), "it took the place of a database");
    ensure!(volume.control_data()? == whole, "it changed a database");
    Ok(())
}
