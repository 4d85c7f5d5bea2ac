//! Debian: packages installed on this machine, and packages unpacked into a folder.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache::Cache;
use crate::command::{self, Log};
use crate::progress::Progress;

/// The release this machine runs, and where it gets its packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    /// Such as `bookworm`.
    pub(crate) codename: String,
    /// Debian's own package sources, security included.
    sources: Vec<Source>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    mirror: String,
    suite: String,
    component: String,
}

impl Release {
    /// Of this machine. Fails on anything but Debian, with what to do instead.
    pub(crate) fn here() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let codename = match (field(&text, "ID"), field(&text, "VERSION_CODENAME")) {
            (Some("debian"), Some(codename)) => codename.to_owned(),
            (id, _) => bail!(
                "without a container registry in reach the local cluster is built from Debian's packages, and \
                 this machine runs {}: start a Docker engine that can reach a registry",
                id.unwrap_or("an unknown system")
            ),
        };
        let format = "$(ORIGIN)|$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
        let targets = command::output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
        let sources = sources(&targets);
        ensure!(
            sources.iter().any(|source| source.suite == codename),
            "apt's package sources have none for Debian's suite `{codename}`: add one to /etc/apt/sources.list, or run \
             `apt-get update` if there is one"
        );
        Ok(Self { codename, sources })
    }

    /// Where the release itself is, without its updates.
    pub(crate) fn mirror(&self) -> &str {
        let main = self.sources.iter().find(|source| source.suite == self.codename);
        main.map_or("", |source| &source.mirror)
    }

    /// The content of a `sources.list` with this machine's sources, so that an image gets the same
    /// versions as the machine.
    pub(crate) fn sources_list(&self) -> String {
        let line = |source: &Source| format!("deb {} {} {}", source.mirror, source.suite, source.component);
        self.sources.iter().map(line).collect::<Vec<_>>().join("\n") + "\n"
    }
}

/// Whether this process is root's.
pub(crate) fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}

/// Makes sure that `packages` are installed; without being root, says what to run.
pub(crate) fn install(progress: &Progress, packages: &[&str]) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        bail!(
            "Debian packages are missing; run this as root, then repeat the command:\n\n    \
             apt-get update && apt-get install --yes --no-install-recommends {}\n",
            missing.join(" ")
        );
    }
    progress.step(&format!("Debian packages ({})", missing.join(", ")), |log| {
        command::run(Command::new("apt-get").args(["update", "--quiet"]), log)?;
        let _quiet = Services::stay_down(Path::new("/usr/sbin/policy-rc.d"))?;
        command::run(
            Command::new("apt-get")
                // What is there and does not go with them is somebody's, who is to decide.
                .args(["install", "--yes", "--quiet", "--no-install-recommends", "--no-remove"])
                .args(missing)
                .env("DEBIAN_FRONTEND", "noninteractive"),
            log,
        )
    })
}

/// A policy that forbids every service to start.
const POLICY: &str = "#!/bin/sh\n# Of `cargo xtask`, while it installs packages.\nexit 101\n";

/// Packages start their services when they are installed, a Docker engine or a database server with the machine's
/// usual ports, interfaces and firewall rules. For as long as this lives they do not, as Debian's policy layer provides.
#[derive(Debug)]
struct Services {
    /// The policy made here; none where the machine has its own.
    policy: Option<PathBuf>,
}

impl Services {
    fn stay_down(policy: &Path) -> Result<Self> {
        let failed = || format!("cannot write {}", policy.display());
        match fs::read(policy) {
            // What a run that was killed left is taken over.
            Ok(text) if text != POLICY.as_bytes() => return Ok(Self { policy: None }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(failed),
        }
        fs::write(policy, POLICY)
            .and_then(|()| fs::set_permissions(policy, fs::Permissions::from_mode(0o755)))
            .with_context(failed)?;
        Ok(Self { policy: Some(policy.to_path_buf()) })
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!(
                "cannot remove {}: {error}; until it is gone no package starts its services",
                policy.display()
            );
        }
    }
}

/// Makes sure that programs are there, each given with the package that has it: from wherever they come.
pub(crate) fn install_programs(progress: &Progress, programs: &[(&str, &'static str)]) -> Result<()> {
    let mut packages: Vec<_> = programs
        .iter()
        .filter(|(program, _)| !command::is_found(program))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    install(progress, &packages)
}

/// Downloads `packages`, without what they depend on, and unpacks them into `folder`.
pub(crate) fn unpack(cache: &Cache, packages: &[&str], folder: &Path, log: &Log) -> Result<()> {
    let downloads = cache.scratch()?;
    let download = || {
        let mut apt = Command::new("apt-get");
        // Root may write to this folder, apt's own user may not.
        apt.current_dir(downloads.path()).args(["download", "--quiet", "-o", "APT::Sandbox::User=root"]);
        command::run(apt.args(packages), log)
    };
    if download().is_err() {
        // There may be no lists of packages on this machine yet, or old ones that name files which are gone.
        command::run(Command::new("apt-get").args(["update", "--quiet"]), log)?;
        download()?;
    }
    let files = fs::read_dir(downloads.path()).context("cannot list the downloaded packages")?;
    for file in files {
        let file = file.context("cannot list the downloaded packages")?.path();
        command::run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(folder), log)?;
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    command::output(Command::new("dpkg-query").args([
        "--show",
        "--showformat",
        "${db:Status-Status}",
        package,
    ]))
    .is_ok_and(|status| status == "installed")
}

fn field<'a>(os_release: &'a str, name: &str) -> Option<&'a str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}

/// Debian's own package lists among apt's index targets.
fn sources(targets: &str) -> Vec<Source> {
    let parse = |line: &str| match line.split('|').collect::<Vec<_>>()[..] {
        ["Debian", "Packages", mirror, suite, component] => Some(Source {
            mirror: mirror.to_owned(),
            suite: suite.to_owned(),
            component: component.to_owned(),
        }),
        _ => None,
    };
    targets.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_debians_sources_and_no_others() {
        let targets = "Debian|Packages|http://mirror/debian/|bookworm|main\n\
                       Debian|Translations|http://mirror/debian/|bookworm|main\n\
                       Debian|Packages|http://mirror/debian-security/|bookworm-security|main\n\
                       . nodistro|Packages|https://other/|nodistro|main\n";
        let release = Release { codename: "bookworm".to_owned(), sources: sources(targets) };
        assert_eq!(release.mirror(), "http://mirror/debian/");
        assert_eq!(
            release.sources_list(),
            "deb http://mirror/debian/ bookworm main\ndeb http://mirror/debian-security/ bookworm-security main\n"
        );
    }

    #[test]
    fn services_stay_down_only_while_packages_are_installed() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy-rc.d");
        let quiet = Services::stay_down(&policy).unwrap();
        assert_eq!(Command::new(&policy).status().unwrap().code(), Some(101));
        // As if that run had been killed.
        std::mem::forget(quiet);
        drop(Services::stay_down(&policy).unwrap());
        assert!(!policy.exists());
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        drop(Services::stay_down(&policy).unwrap());
        assert!(policy.exists(), "the machine's own policy stays");
    }

    #[test]
    fn reads_quoted_and_plain_fields() {
        let text = "ID=debian\nVERSION_ID=\"12\"\n";
        assert_eq!(field(text, "ID"), Some("debian"));
        assert_eq!(field(text, "VERSION_ID"), Some("12"));
        assert_eq!(field(text, "VERSION"), None);
    }
}
