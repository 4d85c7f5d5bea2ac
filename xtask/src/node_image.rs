//! The image of a kind node, built from Go modules and Debian packages.
//!
//! kind publishes one; this is for machines that no registry is in reach of. The files of kind's own
//! base image come from kind's Go module, the programs from [`crate::tools`], the rest from
//! `local/node`. The images that the control plane runs are put into the node by its own containerd.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::base_image;
use crate::cache::{Cache, Key};
use crate::command::{self, Log};
use crate::debian::{self, Release};
use crate::engine::Engine;
use crate::progress::Progress;
use crate::repository;
use crate::tools::{self, Tool, Tools};

/// The container that the node's images are imported in.
const BUILDER: &str = "dialog-node-builder";
/// The Debian packages of `nft`, which kube-proxy runs, with what they depend on.
const NFTABLES: &[&str] = &[
    "nftables",
    "libbsd0",
    "libedit2",
    "libgmp10",
    "libjansson4",
    "libmd0",
    "libmnl0",
    "libnftables1",
    "libnftnl11",
    "libtinfo6",
    "libxtables12",
];

/// What the node image is built from.
fn key() -> Result<Key> {
    Ok(Key::of()
        .text(Tools::key()?.as_str())
        .text(&Release::here()?.sources_list())
        .tree(&sources())?
        .text(include_str!("node_image.rs"))
        .text(include_str!("base_image.rs"))
        .finish())
}

/// The name of the node image for the current sources.
pub(crate) fn name() -> Result<String> {
    Ok(format!("dialog-operator/node:{}", key()?.as_str()))
}

/// The node image for the current sources, built if the engine does not have it.
pub(crate) fn ensure(cache: &Cache, engine: &Engine, progress: &Progress) -> Result<String> {
    let name = name()?;
    if engine.has_image(&name) {
        return Ok(name);
    }
    let tools = Tools::ensure(cache, progress, tools::NODE)?;
    let base = base_image::debian(cache, engine, progress)?;
    let builder = Builder { cache, engine, tools: &tools };
    let node = format!("dialog-operator/node-base:{}", key()?.as_str());
    progress.step("Node image: system", |log| builder.system(&base, &node, log))?;
    let images = progress.step("Node image: control plane", |log| builder.images(&node, log))?;
    progress.step("Node image: import", |log| {
        builder.import(&node, &images, &name, log)?;
        // They are in the node now.
        engine.remove_images(&images, log)?;
        engine.remove_other_tags(&name, log)?;
        engine.remove_other_tags(&node, log)
    })?;
    Ok(name)
}

struct Builder<'a> {
    cache: &'a Cache,
    engine: &'a Engine,
    tools: &'a Tools,
}

impl Builder<'_> {
    /// Debian with systemd, kubelet and containerd.
    fn system(&self, base: &str, node: &str, log: &Log) -> Result<()> {
        let context = self.cache.scratch()?;
        let at = |name: &str| context.path().join(name);
        copy_tree(&sources(), context.path(), &|_| 0o644)?;
        let kind = tools::module_folder("sigs.k8s.io/kind", log)?.join("images/base/files");
        // The module cache drops the permissions that the files have in kind's repository.
        let mode = |path: &Path| {
            if path.parent().is_some_and(|parent| parent.ends_with("bin")) { 0o755 } else { 0o644 }
        };
        for folder in ["etc", "kind", "usr"] {
            copy_tree(&kind.join(folder), &at("kind").join(folder), &mode)?;
        }
        let programs = [Tool::Kubeadm, Tool::Kubelet, Tool::Kubectl];
        let containerd = [Tool::Containerd, Tool::ContainerdShimRuncV2, Tool::Ctr];
        for tool in programs.into_iter().chain(containerd) {
            self.place(tool, &at("bin"))?;
        }
        for tool in [Tool::HostLocal, Tool::Loopback, Tool::Portmap, Tool::Ptp] {
            self.place(tool, &at("cni"))?;
        }
        let version = tools::module("k8s.io/kubernetes", "{{.Version}}")?;
        let file = at("files/kind/version");
        fs::write(&file, version).with_context(|| format!("cannot write {}", file.display()))?;
        command::run(
            self.engine
                .docker()
                .args(["build", "--network", "host", "--tag", node, "--build-arg", &format!("BASE={base}")])
                .arg(context.path()),
            log,
        )
    }

    /// The images of what runs in the cluster, in the engine, under the names it asks for.
    fn images(&self, node: &str, log: &Log) -> Result<Vec<String>> {
        let inside = |program: &str, arguments: &[&str]| {
            command::output(
                self.engine
                    .docker()
                    .args(["run", "--rm", "--network", "none", "--entrypoint", program, node])
                    .args(arguments),
            )
        };
        let version = tools::module("k8s.io/kubernetes", "{{.Version}}")?;
        let list = inside("kubeadm", &["config", "images", "list", "--kubernetes-version", &version])?;
        let named = |last: &str| -> Result<String> {
            image_named(&list, last).with_context(|| format!("kubeadm lists no image {last}:\n{list}"))
        };
        let configuration = inside("cat", &["/etc/containerd/config.toml"])?;
        let pause = sandbox_image(&configuration)
            .context("kind's containerd configuration names no sandbox image")?;
        let traefik = tools::module("github.com/traefik/traefik/v3", "{{.Version}}")?;

        let program = |tool: Tool, name: String| self.program(tool, name, log);
        Ok(vec![
            program(Tool::KubeApiserver, named("kube-apiserver")?)?,
            program(Tool::KubeControllerManager, named("kube-controller-manager")?)?,
            program(Tool::KubeScheduler, named("kube-scheduler")?)?,
            program(Tool::Etcd, named("etcd")?)?,
            program(Tool::Coredns, named("coredns")?)?,
            program(Tool::LocalPathProvisioner, "dialog-operator/local-path-provisioner:local".to_owned())?,
            program(Tool::Traefik, format!("traefik:{traefik}"))?,
            self.kube_proxy(named("kube-proxy")?, log)?,
            self.pause(pause, log)?,
            self.busybox("dialog-operator/busybox:local".to_owned(), log)?,
        ])
    }

    /// The node's image with the others in its containerd.
    fn import(&self, node: &str, images: &[String], name: &str, log: &Log) -> Result<()> {
        let docker = || self.engine.docker();
        command::run(docker().args(["rm", "--force", "--volumes", BUILDER]), log)?;
        command::run(
            docker()
                .args(["run", "--detach", "--network", "none", "--security-opt", "seccomp=unconfined"])
                .args(["--name", BUILDER, "--entrypoint", "containerd", node]),
            log,
        )?;
        let answers = || command::succeeds(docker().args(["exec", BUILDER, "ctr", "version"]));
        ensure!(
            command::wait_until(Duration::from_secs(30), answers),
            "containerd in the container {BUILDER} does not answer"
        );
        let mut import = docker();
        import
            .args(["exec", "--interactive", BUILDER, "ctr", "--namespace=k8s.io", "images", "import"])
            // Unpacking would put one overlay on another, which the kernel refuses; the label keeps
            // the kubelet from deleting what nothing could bring back.
            .args(["--no-unpack", "--label=io.cri-containerd.pinned=pinned", "-"]);
        command::pipe(docker().arg("save").args(images), import, log)?;
        command::run(docker().args(["stop", BUILDER]), log)?;
        command::run(
            docker()
                .args(["commit", "--change", "ENTRYPOINT [\"/usr/local/bin/entrypoint\", \"/sbin/init\"]"])
                .args([BUILDER, name]),
            log,
        )?;
        command::run(docker().args(["rm", "--volumes", BUILDER]), log)
    }

    /// An image of nothing but a static program.
    fn program(&self, tool: Tool, name: String, log: &Log) -> Result<String> {
        let root = self.cache.scratch()?;
        self.place(tool, &root.path().join("usr/local/bin"))?;
        base_image::temporary(root.path())?;
        self.finish(&root, name, &entrypoint(&[&format!("/usr/local/bin/{}", tool.name())]), log)
    }

    fn kube_proxy(&self, name: String, log: &Log) -> Result<String> {
        let root = self.cache.scratch()?;
        base_image::libc(self.cache, root.path(), NFTABLES, log)?;
        self.place(Tool::KubeProxy, &root.path().join("usr/local/bin"))?;
        self.finish(&root, name, &entrypoint(&["/usr/local/bin/kube-proxy"]), log)
    }

    /// The process that holds a pod's namespaces: it only has to wait and to reap.
    fn pause(&self, name: String, log: &Log) -> Result<String> {
        let root = self.cache.scratch()?;
        debian::unpack(self.cache, &["tini", "busybox-static"], root.path(), log)?;
        crate::cache::remove(&root.path().join("usr/share"))?;
        let wait = ["/usr/bin/tini-static", "--", "/bin/busybox", "sleep", "infinity"];
        self.finish(&root, name, &entrypoint(&wait), log)
    }

    fn busybox(&self, name: String, log: &Log) -> Result<String> {
        let root = self.cache.scratch()?;
        debian::unpack(self.cache, &["busybox-static"], root.path(), log)?;
        crate::cache::remove(&root.path().join("usr/share"))?;
        let folder = root.path().join("bin");
        let applets = command::output(std::process::Command::new(folder.join("busybox")).arg("--list"))?;
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", folder.join(applet)).with_context(|| format!("cannot link {applet}"))?;
        }
        self.finish(&root, name, "CMD [\"sh\"]", log)
    }

    fn finish(&self, root: &tempfile::TempDir, name: String, change: &str, log: &Log) -> Result<String> {
        base_image::import(self.engine, root.path(), &name, &[change, &format!("ENV PATH={PATH}")], log)?;
        Ok(name)
    }

    /// Puts a program into `folder`.
    fn place(&self, tool: Tool, folder: &Path) -> Result<()> {
        let target = folder.join(tool.name());
        fs::create_dir_all(folder)
            .and_then(|()| fs::copy(self.tools.path(tool), &target))
            .with_context(|| format!("cannot copy {} to {}", tool.name(), target.display()))?;
        Ok(())
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn entrypoint(words: &[&str]) -> String {
    format!("ENTRYPOINT {}", serde_json::json!(words))
}

/// The image in kubeadm's list whose last name is `wanted`.
fn image_named(list: &str, wanted: &str) -> Option<String> {
    let is_it = |image: &&str| {
        image.rsplit('/').next().and_then(|name| name.split(':').next()).is_some_and(|name| name == wanted)
    };
    list.lines().map(str::trim).find(is_it).map(str::to_owned)
}

/// The image that holds pods, from containerd's configuration.
fn sandbox_image(configuration: &str) -> Option<String> {
    let value = configuration.lines().find_map(|line| line.trim().strip_prefix("sandbox_image"))?;
    Some(value.trim_start_matches([' ', '=']).trim().trim_matches('"').to_owned())
}

/// Copies what is below `from`, giving each file the mode that `mode` says.
fn copy_tree(from: &Path, to: &Path, mode: &dyn Fn(&Path) -> u32) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let source = entry.with_context(|| format!("cannot read {}", from.display()))?.path();
        let target = to.join(source.file_name().unwrap_or_default());
        if source.is_dir() {
            copy_tree(&source, &target, mode)?;
            continue;
        }
        fs::read(&source)
            .and_then(|contents| fs::write(&target, contents))
            .and_then(|()| fs::set_permissions(&target, fs::Permissions::from_mode(mode(&source))))
            .with_context(|| format!("cannot copy {} to {}", source.display(), target.display()))?;
    }
    Ok(())
}

fn sources() -> PathBuf {
    repository().join("local/node")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_images_by_their_last_name() {
        let list = "example/kube-proxy:v1\nexample/coredns/coredns:v2\nexample/etcd:3";
        assert_eq!(image_named(list, "coredns").as_deref(), Some("example/coredns/coredns:v2"));
        assert_eq!(image_named(list, "kube-proxy").as_deref(), Some("example/kube-proxy:v1"));
        assert_eq!(image_named(list, "kube"), None);
    }

    #[test]
    fn finds_the_sandbox_image() {
        let configuration = "[plugins]\n  # comment\n  sandbox_image = \"example/pause:3.10\"\n";
        assert_eq!(sandbox_image(configuration).as_deref(), Some("example/pause:3.10"));
    }
}
