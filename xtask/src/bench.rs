//! `cargo xtask bench`: builds what is measured, and has dialog-bench measure it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command;
use crate::crds::cargo;
use crate::progress::Progress;
use crate::repository;
use crate::tests::need_postgres;

/// Builds for release and measures. `flags` go to `dialog-bench standard` as they are.
pub(crate) fn run(progress: &Progress, quick: bool, flags: &[OsString]) -> Result<()> {
    need_postgres(progress)?;
    let go = build(progress)?;
    progress.finish();
    let release = target()?.join("release");
    let mut bench = Command::new(release.join("dialog-bench"));
    bench.arg("standard");
    bench.arg("--dialog-api").arg(release.join("dialog-api"));
    bench.arg("--plain-axum").arg(release.join("examples/plain-axum"));
    bench.arg("--results").arg(repository().join("bench"));
    if let Some(go) = go {
        bench.arg("--plain-go").arg(go);
    }
    if quick {
        bench.arg("--quick");
    }
    bench.args(flags);
    let status = bench.status().with_context(|| format!("cannot run {}", command::line(&bench)))?;
    ensure!(status.success(), "`{}` ended with {status}", command::line(&bench));
    Ok(())
}

/// Builds everything and returns the plain service in Go, unless there is no Go.
fn build(progress: &Progress) -> Result<Option<PathBuf>> {
    progress.step("dialog-api, dialog-bench and the plain service in Rust, for release", |log| {
        let packages = ["build", "--release", "--package=dialog-api", "--package=dialog-bench"];
        command::run(cargo(&packages).args(["--bins", "--example=plain-axum"]), log)
    })?;
    if Command::new("go").arg("version").output().is_err() {
        eprintln!("SKIPPED the plain service in Go: there is no `go` in the PATH");
        return Ok(None);
    }
    let program = target()?.join("release/examples/plain-go");
    progress.step("The plain service in Go", |log| {
        let mut build = Command::new("go");
        build.current_dir(repository().join("bench/plain-go")).args(["build", "-o"]).arg(&program).arg(".");
        command::run(&mut build, log)
    })?;
    Ok(Some(program))
}

/// Where cargo puts what it builds.
fn target() -> Result<PathBuf> {
    let text = command::output(&mut cargo(&["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata prints no JSON")?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target directory")
}
