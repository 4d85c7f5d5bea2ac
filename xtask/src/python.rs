//! Programs written in Python, each in an environment of its own in the cache, at the versions and with the hashes that
//! `local/<program>/requirements.txt` pins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache, Key};
use crate::command::{self, Log};
use crate::progress::Progress;
use crate::{debian, repository};

/// Where `program` is, installed first if it is not there.
pub(crate) fn program(cache: &Cache, progress: &Progress, program: &str) -> Result<PathBuf> {
    let python = "import ensurepip, sys, venv; assert sys.version_info >= (3, 11); print(sys.version)";
    let version = || command::output(Command::new("python3").args(["-c", python]));
    if version().is_err() {
        debian::install(progress, &["python3", "python3-venv"])?;
    }
    let version = version().with_context(|| format!("{program} needs Python 3.11 or newer"))?;
    let requirements = repository().join("local").join(program).join("requirements.txt");
    // An environment knows its own path and its Python, so it is made in its final place.
    let key = Key::of().tree(&requirements)?.text(&version).finish();
    let environment = cache.entry(program, &key);
    let complete = environment.join("complete");
    if !complete.is_file() {
        let _lock = cache.lock(program)?;
        if !complete.is_file() {
            progress.step(program, |log| install(&environment, &requirements, log))?;
            fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
        }
    }
    Ok(environment.join("bin").join(program))
}

fn install(environment: &Path, requirements: &Path, log: &Log) -> Result<()> {
    // What a run that was interrupted left.
    cache::remove(environment)?;
    command::run(Command::new("python3").args(["-m", "venv"]).arg(environment), log)?;
    command::run(
        Command::new(environment.join("bin/pip"))
            // Wheels only: nothing that comes runs while it is installed.
            .args(["install", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:"])
            .args(["--require-hashes", "--requirement"])
            .arg(requirements),
        log,
    )
}
