//! What is installed on this machine, and whom servers run as.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Where this machine's PostgreSQL is installed, as `pg_config` says.
#[derive(Clone, Debug)]
pub struct Installation {
    pub(super) binaries: PathBuf,
    libraries: PathBuf,
    share: PathBuf,
}

impl Installation {
    /// Asks the `pg_config` in the PATH.
    ///
    /// # Errors
    /// When there is no `pg_config` or it fails.
    pub fn find() -> Result<Self> {
        Ok(Self {
            binaries: pg_config("--bindir")?,
            libraries: pg_config("--pkglibdir")?,
            share: pg_config("--sharedir")?,
        })
    }

    /// The named program of the installation.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// Whether the named extension is installed: its control file, and the library of the same name.
    #[must_use]
    pub fn has_extension(&self, name: &str) -> bool {
        self.share.join("extension").join(format!("{name}.control")).is_file()
            && self.libraries.join(format!("{name}.so")).is_file()
    }
}

fn pg_config(what: &str) -> Result<PathBuf> {
    let output = Command::new("pg_config")
        .arg(what)
        .output()
        .context("run pg_config: install PostgreSQL's server and development packages")?;
    if !output.status.success() {
        bail!("pg_config {what} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout).context("pg_config's answer")?.trim()))
}

/// Whether tests against Citus can run on this machine. If not, prints `SKIPPED citus: REASON`, in a way that
/// the test harness does not swallow as it does the output of tests that pass.
#[must_use]
pub fn citus_or_skip() -> bool {
    use std::io::Write as _;
    match citus_available() {
        Ok(()) => true,
        Err(reason) => {
            // Nobody is left to read it if this fails.
            let _ = writeln!(std::io::stdout(), "SKIPPED citus: {reason}");
            false
        }
    }
}

/// Says why tests against Citus cannot run on this machine; `Ok` when they can.
///
/// # Errors
/// The reason, ready to be printed: `SKIPPED citus: <reason>`.
pub fn citus_available() -> Result<(), String> {
    let installation = Installation::find().map_err(|error| format!("{error:#}"))?;
    if installation.has_extension("citus") {
        Ok(())
    } else {
        Err(format!(
            "the citus extension is not installed for this machine's PostgreSQL (no citus.control in {}, or no citus.so \
             in {})",
            installation.share.join("extension").display(),
            installation.libraries.display()
        ))
    }
}

/// The operating system's user that servers run as: PostgreSQL refuses to run as root.
pub struct Owner {
    other_user: Option<(u32, u32)>,
}

impl Owner {
    /// The user of this process, or `postgres` if that is root.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn of_servers() -> Result<Self> {
        let me = fs::metadata("/proc/self").context("read /proc/self")?.uid();
        if me != 0 {
            return Ok(Self { other_user: None });
        }
        let id = |flag: &str| -> Result<u32> {
            let output = Command::new("id").args([flag, "postgres"]).output().context("run id")?;
            String::from_utf8_lossy(&output.stdout)
                .trim()
                .parse()
                .context("PostgreSQL refuses to run as root and there is no user postgres to run it as")
        };
        Ok(Self { other_user: Some((id("-u")?, id("-g")?)) })
    }

    /// A program that is to run as this user in a directory.
    #[must_use]
    pub fn command(&self, program: &Path, directory: &Path) -> Command {
        let mut command = Command::new(program);
        // The caller's directory may be closed to the server's user.
        command.current_dir(directory);
        if let Some((user, group)) = self.other_user {
            command.uid(user).gid(group);
        }
        command
    }

    /// Makes this user the owner of a file.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn give(&self, path: &Path) -> Result<()> {
        match self.other_user {
            Some((user, group)) => {
                chown(path, Some(user), Some(group)).with_context(|| format!("chown {}", path.display()))
            }
            None => Ok(()),
        }
    }
}

pub(super) fn effective_user() -> Result<String> {
    let output = Command::new("id").arg("-un").output().context("run id")?;
    Ok(String::from_utf8(output.stdout).context("the user's name")?.trim().to_owned())
}
