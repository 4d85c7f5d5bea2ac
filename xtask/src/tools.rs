//! The Go programs, built from the modules that `local/tools/go.mod` pins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{Cache, Key};
use crate::command::{self, Log};
use crate::debian::Release;
use crate::progress::Progress;
use crate::repository;

/// A program that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs, reason = "each is the program of that name")]
pub(crate) enum Tool {
    Containerd,
    ContainerdShimRuncV2,
    Coredns,
    Ctr,
    Etcd,
    Helm,
    HostLocal,
    Kind,
    KubeApiserver,
    KubeControllerManager,
    KubeProxy,
    KubeScheduler,
    Kubeadm,
    Kubeconform,
    Kubectl,
    Kubelet,
    LocalPathProvisioner,
    Loopback,
    Portmap,
    Ptp,
    Traefik,
}

/// What a cluster whose node image is published still needs on this machine.
pub(crate) const CLUSTER: &[Tool] = &[Tool::Kind, Tool::Kubectl, Tool::Helm];

/// What goes into a node image that is built here.
pub(crate) const NODE: &[Tool] = &[
    Tool::Containerd,
    Tool::ContainerdShimRuncV2,
    Tool::Coredns,
    Tool::Ctr,
    Tool::Etcd,
    Tool::HostLocal,
    Tool::KubeApiserver,
    Tool::KubeControllerManager,
    Tool::KubeProxy,
    Tool::KubeScheduler,
    Tool::Kubeadm,
    Tool::Kubectl,
    Tool::Kubelet,
    Tool::LocalPathProvisioner,
    Tool::Loopback,
    Tool::Portmap,
    Tool::Ptp,
    Tool::Traefik,
];

impl Tool {
    /// The program's file name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::ContainerdShimRuncV2 => "containerd-shim-runc-v2",
            Self::Coredns => "coredns",
            Self::Ctr => "ctr",
            Self::Etcd => "etcd",
            Self::Helm => "helm",
            Self::HostLocal => "host-local",
            Self::Kind => "kind",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeProxy => "kube-proxy",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubeadm => "kubeadm",
            Self::Kubeconform => "kubeconform",
            Self::Kubectl => "kubectl",
            Self::Kubelet => "kubelet",
            Self::LocalPathProvisioner => "local-path-provisioner",
            Self::Loopback => "loopback",
            Self::Portmap => "portmap",
            Self::Ptp => "ptp",
            Self::Traefik => "traefik",
        }
    }

    /// The Go package it is the `main` of, as seen from `local/tools`.
    fn package(self) -> String {
        let name = self.name();
        match self {
            Self::Containerd | Self::ContainerdShimRuncV2 | Self::Ctr => {
                format!("github.com/containerd/containerd/v2/cmd/{name}")
            }
            Self::Coredns => format!("./{name}"),
            Self::Etcd => "go.etcd.io/etcd/server/v3".to_owned(),
            Self::Helm => format!("helm.sh/helm/v4/cmd/{name}"),
            Self::HostLocal => format!("github.com/containernetworking/plugins/plugins/ipam/{name}"),
            Self::Loopback | Self::Ptp => {
                format!("github.com/containernetworking/plugins/plugins/main/{name}")
            }
            Self::Portmap => format!("github.com/containernetworking/plugins/plugins/meta/{name}"),
            Self::Kind => "sigs.k8s.io/kind".to_owned(),
            Self::KubeApiserver
            | Self::KubeControllerManager
            | Self::KubeProxy
            | Self::KubeScheduler
            | Self::Kubeadm
            | Self::Kubectl
            | Self::Kubelet => format!("k8s.io/kubernetes/cmd/{name}"),
            Self::Kubeconform => format!("github.com/yannh/kubeconform/cmd/{name}"),
            Self::LocalPathProvisioner => format!("github.com/rancher/{name}"),
            Self::Traefik => format!("github.com/traefik/traefik/v3/cmd/{name}"),
        }
    }
}

/// The oldest Go that serves, as major and minor version: from this one on Go fetches by itself the newer one that
/// `go.mod` asks for.
const OLDEST_GO: (u32, u32) = (1, 21);

/// Optional snapshotters of containerd that nothing here uses.
const TAGS: &str = "no_btrfs,no_devmapper,no_zfs";

/// The programs in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// The cache's folder for the current sources, with every one of `wanted` in it: the missing are
    /// built, in one run of Go so that they share what they have in common.
    pub(crate) fn ensure(cache: &Cache, progress: &Progress, wanted: &[Tool]) -> Result<Self> {
        let tools = Self { folder: cache.entry("tools", &Self::key()?) };
        if tools.missing(wanted).is_empty() {
            return Ok(tools);
        }
        need_go()?;
        let _lock = cache.lock("tools")?;
        let missing = tools.missing(wanted);
        if missing.is_empty() {
            return Ok(tools);
        }
        progress.step(&format!("Go programs ({})", missing.len()), |log| tools.build(&missing, log))?;
        Ok(tools)
    }

    /// Fails if [`Tools::ensure`] would for want of Go, so that this is said before anything long begins.
    pub(crate) fn check(cache: &Cache, wanted: &[Tool]) -> Result<()> {
        if Self::are_built(cache, wanted)? { Ok(()) } else { need_go() }
    }

    /// Whether [`Tools::ensure`] would find all of them.
    pub(crate) fn are_built(cache: &Cache, wanted: &[Tool]) -> Result<bool> {
        let tools = Self { folder: cache.entry("tools", &Self::key()?) };
        Ok(tools.missing(wanted).is_empty())
    }

    /// The programs of a run that may have been of other sources.
    pub(crate) fn in_folder(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder they are in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where `tool` is. Only those that [`Tools::ensure`] was asked for are sure to exist.
    pub(crate) fn path(&self, tool: Tool) -> PathBuf {
        self.folder.join(tool.name())
    }

    /// A command that runs `tool`.
    pub(crate) fn command(&self, tool: Tool) -> Command {
        Command::new(self.path(tool))
    }

    /// What the programs are built from. Which Go builds them is left out: it does not change what
    /// they do, and updating Go should not cost a quarter of an hour.
    pub(crate) fn key() -> Result<Key> {
        Ok(Key::of()
            .tree(&sources())?
            .text(TAGS)
            .text(&flags("VERSION"))
            .text(std::env::consts::ARCH)
            .finish())
    }

    fn missing(&self, wanted: &[Tool]) -> Vec<Tool> {
        wanted.iter().copied().filter(|tool| !self.path(*tool).is_file()).collect()
    }

    fn build(&self, tools: &[Tool], log: &Log) -> Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        // Beside the final place, so that a rename puts each program there whole.
        let output = tempfile::Builder::new()
            .prefix("build-")
            .tempdir_in(&self.folder)
            .with_context(|| format!("cannot create a folder in {}", self.folder.display()))?;
        let flags = flags(&module("k8s.io/kubernetes", "{{.Version}}")?);
        // It imports a package under a name that differs from everybody else's in case only, which Go
        // refuses within one build.
        let (alone, together): (Vec<Tool>, Vec<Tool>) =
            tools.iter().partition(|tool| **tool == Tool::LocalPathProvisioner);
        for group in [together, alone].iter().filter(|group| !group.is_empty()) {
            command::run(
                go().args(["build", "-v", "-trimpath", "-buildvcs=false", "-mod=readonly"])
                    .args(["-tags", TAGS, "-ldflags", &flags, "-o"])
                    .arg(output.path())
                    .args(group.iter().map(|tool| tool.package())),
                log,
            )?;
        }
        for tool in tools {
            let package = tool.package();
            let built = output.path().join(binary(&package));
            fs::rename(&built, self.path(*tool))
                .with_context(|| format!("Go built no {} for {package}", built.display()))?;
        }
        Ok(())
    }
}

/// Where Go keeps what it has compiled, and the modules it has downloaded.
pub(crate) fn caches() -> Result<(PathBuf, PathBuf)> {
    let folder = |name| command::output(go().args(["env", name])).map(PathBuf::from);
    Ok((folder("GOCACHE")?, folder("GOMODCACHE")?))
}

/// The folder of the pinned module `path` in Go's module cache, downloaded if it is not there.
pub(crate) fn module_folder(path: &str, log: &Log) -> Result<PathBuf> {
    command::run(go().args(["mod", "download", path]), log)?;
    module(path, "{{.Dir}}").map(PathBuf::from)
}

/// One property of the pinned module `path`, as a `go list` template.
pub(crate) fn module(path: &str, template: &str) -> Result<String> {
    command::output(go().args(["list", "-mod=readonly", "-m", "-f", template, path]))
}

/// Go in the module of the tools, with nothing taken over from the user's settings that would change
/// what is built.
fn go() -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(sources())
        .envs([("CGO_ENABLED", "0"), ("GOWORK", "off"), ("GOFLAGS", "")])
        // Some distributions keep Go from fetching the version that the module asks for.
        .env("GOTOOLCHAIN", "auto");
    if std::env::var_os("GOGC").is_none() {
        // The compiler's own garbage collection: a tenth less work for some memory more.
        command.env("GOGC", "400");
    }
    command
}

/// Fails unless a Go that serves is installed, with the line that installs one.
fn need_go() -> Result<()> {
    let (major, minor) = OLDEST_GO;
    let found = match command::output(Command::new("go").arg("version")) {
        Ok(version) if go_version(&version).is_some_and(|version| version >= OLDEST_GO) => return Ok(()),
        Ok(version) => format!("this machine has `{version}`"),
        Err(error) => format!("{error:#}"),
    };
    let release = Release::here().ok();
    let remedy = installation(release.as_ref().map(|release| (release.codename.as_str(), release.mirror())));
    bail!("the local tools are built with Go {major}.{minor} or newer, and {found}; {remedy}")
}

/// How to install Go on Debian of this codename, with packages from this mirror; on another system if `None`.
fn installation(debian: Option<(&str, &str)>) -> String {
    let root = "run this as root, then repeat the command:\n\n    ";
    match debian {
        // Its own is older, its backports' is not.
        Some(("bookworm", mirror)) => format!(
            "{root}echo 'deb {mirror} bookworm-backports main' > /etc/apt/sources.list.d/backports.list && apt-get \
             update && apt-get install --yes --no-install-recommends --target-release bookworm-backports golang-go\n"
        ),
        Some(_) => {
            format!("{root}apt-get update && apt-get install --yes --no-install-recommends golang-go\n")
        }
        None => "install it from your distribution, or as https://go.dev/doc/install says".to_owned(),
    }
}

/// Major and minor of `go version go1.26.8 linux/amd64`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok()
    };
    text.split_whitespace().filter_map(|word| word.strip_prefix("go")).find_map(|version| {
        let (major, minor) = version.split_once('.')?;
        Some((number(major)?, number(minor)?))
    })
}

/// Linker flags: no debug information, and the version that Kubernetes' programs report, which its
/// own build scripts set in the same way.
fn flags(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let variable = "k8s.io/component-base/version.git";
    format!(
        "-s -w -X {variable}Version={version} -X {variable}Major={major} -X {variable}Minor={minor} \
         -X {variable}TreeState=clean"
    )
}

/// What `go build` calls the program of `package`: the last element that is not a major version.
fn binary(package: &str) -> &str {
    let is_version = |part: &&str| {
        part.strip_prefix('v').is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    package.rsplit('/').find(|part| !is_version(part)).unwrap_or(package)
}

fn sources() -> PathBuf {
    repository().join("local/tools")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn programs_are_named_as_go_names_them() {
        assert_eq!(binary("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(binary("github.com/traefik/traefik/v3/cmd/traefik"), "traefik");
        assert_eq!(binary("./coredns"), "coredns");
    }

    #[test]
    fn every_tool_but_our_own_is_a_tool_of_the_module() {
        let module = fs::read_to_string(sources().join("go.mod")).unwrap();
        for tool in Tool::value_variants() {
            let package = tool.package();
            assert!(
                package.starts_with("./") || module.contains(&format!("\t{package}\n")),
                "{package} is not among the tools of go.mod: `go mod tidy` would drop it"
            );
        }
    }

    #[test]
    fn versions_of_go_are_compared_as_numbers() {
        assert_eq!(go_version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(go_version("go version go1.27rc1 linux/amd64"), Some((1, 27)));
        assert_eq!(go_version("go version devel go1.28-0123abc Mon linux/amd64"), Some((1, 28)));
        assert!(go_version("go version go1.9 linux/amd64").unwrap() < OLDEST_GO);
        assert_eq!(go_version("gccgo (Debian 12.2.0)"), None);
    }

    #[test]
    fn what_to_do_without_go_is_a_line_to_run_on_debian() {
        let bookworm = installation(Some(("bookworm", "http://mirror/debian/")));
        assert!(bookworm.contains("'deb http://mirror/debian/ bookworm-backports main'"), "{bookworm}");
        let newer = installation(Some(("trixie", "http://mirror/debian/")));
        assert!(
            newer
                .ends_with("    apt-get update && apt-get install --yes --no-install-recommends golang-go\n")
        );
        assert!(installation(None).contains("go.dev"));
    }

    #[test]
    fn kubernetes_reports_the_version_of_its_module() {
        let flags = flags("v1.36.3");
        assert!(flags.contains("gitVersion=v1.36.3") && flags.contains("gitMinor=36"), "{flags}");
    }
}
