//! A file system of its own for one server, which can be full. It takes a user who may mount.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Why this user cannot give servers volumes of their own, if it cannot.
///
/// # Errors
/// What the operating system says.
pub fn volumes_available() -> Result<(), String> {
    let attempt = || {
        let directory = tempfile::tempdir().context("temporary directory")?;
        Volume::mount(directory.path(), 1 << 20).map(drop)
    };
    attempt().map_err(|error| format!("a volume cannot be mounted here: {error:#}"))
}

/// A file system in memory, unmounted when dropped.
pub(super) struct Volume {
    path: PathBuf,
}

impl Volume {
    /// Mounts a file system of `bytes` at the directory `path`.
    pub(super) fn mount(path: &Path, bytes: u64) -> Result<Self> {
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "testbed"])
            .arg(path)
            .output()
            .context("run mount")?;
        ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Self { path: path.to_owned() })
    }

    /// Bytes that are free.
    pub(super) fn free(&self) -> Result<u64> {
        let output = Command::new("df").args(["--block-size=1", "--output=avail"]).arg(&self.path).output();
        let output = output.context("run df")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().nth(1).and_then(|line| line.trim().parse().ok()).context("df says nothing")
    }

    /// Occupies all but `free` bytes; what was occupied before is given back first.
    pub(super) fn leave(&self, free: u64) -> Result<()> {
        let ballast = self.path.join("ballast");
        let before = fs::metadata(&ballast).map_or(0, |metadata| metadata.blocks() * 512);
        let bytes = (self.free()? + before).saturating_sub(free);
        if before > 0 {
            fs::remove_file(&ballast).context("remove the ballast")?;
        }
        if bytes == 0 {
            return Ok(());
        }
        let status = Command::new("fallocate").arg("-l").arg(bytes.to_string()).arg(&ballast).status();
        ensure!(status.context("run fallocate")?.success(), "fallocate failed");
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.path).status();
        if !status.is_ok_and(|status| status.success()) {
            println!("{} could not be unmounted", self.path.display());
        }
    }
}
