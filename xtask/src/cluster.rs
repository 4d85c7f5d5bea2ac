//! The local Kubernetes: one kind node, an ingress controller, and the way to speak to them.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::command::{self, Log};
use crate::debian::Release;
use crate::engine::{Engine, Own};
use crate::progress::Progress;
use crate::repository;
use crate::tools::{self, Tool, Tools};
use crate::{disk, node_image};

mod files;
mod removal;

use files::Files;

/// The kind cluster's name.
const NAME: &str = "dialog";
/// The network that kind makes for its nodes, all clusters' together, and never removes.
const NETWORK: &str = "kind";
/// The container that is its node.
const NODE: &str = "dialog-control-plane";
/// The node image where a registry is in reach: one of those built for the kind release that
/// `local/tools/go.mod` pins, and of the same Kubernetes minor as the node built here.
const PUBLISHED_NODE: &str =
    "kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed";
/// Where `kind-config.yaml` publishes the ingress on this machine.
pub(crate) const INGRESS: &str = "127.0.0.1:8080";
/// How long each part of it may take to be ready.
const PATIENCE: Duration = Duration::from_mins(2);
/// What has to be up before the cluster is, as namespace and Deployment.
const DEPLOYMENTS: &[(&str, &str)] =
    &[("kube-system", "coredns"), ("local-path-storage", "local-path-provisioner"), ("traefik", "traefik")];

/// A cluster that runs.
#[derive(Debug)]
pub(crate) struct Cluster {
    engine: Engine,
    tools: Tools,
    files: Files,
}

impl Cluster {
    /// Brings the cluster up, or finds that it is.
    pub(crate) fn up(cache: &Cache, progress: &Progress) -> Result<Self> {
        let _lock = cache.lock("cluster")?;
        let outcome = Self::bring_up(cache, progress);
        if outcome.is_err() && Own::of(cache)?.has_traces() {
            eprintln!("\nWhat was started goes on, for the next try; `cargo xtask cluster down` ends it.");
        }
        outcome
    }

    fn bring_up(cache: &Cache, progress: &Progress) -> Result<Self> {
        let files = Files::of(cache)?;
        // Before the quarter of an hour that follows, not after it.
        Tools::check(cache, tools::CLUSTER)?;
        if files.engine(cache)?.is_none() {
            need_ingress()?;
        }
        let engine = choose(cache, &files, progress)?;
        let exists = command::succeeds(engine.docker().args(["container", "inspect", NODE]));
        if !exists {
            need_ingress()?;
        }
        let is_made = exists && files.recall("created").is_some();
        if !is_made && let Engine::Own(_) = engine {
            need_room(cache, &engine)?;
        }
        let tools = Tools::ensure(cache, progress, tools::CLUSTER)?;
        files.remember("tools", &tools.folder().to_string_lossy())?;
        let cluster = Self { engine, tools, files };
        if is_made {
            cluster.wake(progress)?;
            cluster.note_age();
        } else {
            let image = match &cluster.engine {
                Engine::Machine => PUBLISHED_NODE.to_owned(),
                Engine::Own(_) => node_image::ensure(cache, &cluster.engine, progress)?,
            };
            cluster.create(&image, progress)?;
        }
        progress.step("Ingress and storage", |log| cluster.complete(log))?;
        Ok(cluster)
    }

    /// The cluster, if it is up; never changes anything.
    pub(crate) fn find(cache: &Cache) -> Result<Option<Self>> {
        let files = Files::of(cache)?;
        let Some(engine) = files.engine(cache)?.filter(Engine::answers) else { return Ok(None) };
        let Some(folder) = files.recall("tools") else { return Ok(None) };
        let cluster = Self { engine, tools: Tools::in_folder(folder.into()), files };
        Ok(cluster.is_ready().then_some(cluster))
    }

    /// Takes the cluster down, and with it the engine if it was started here. Images stay in the cache.
    pub(crate) fn down(cache: &Cache, progress: &Progress) -> Result<()> {
        let _lock = cache.lock("cluster")?;
        let files = Files::of(cache)?;
        match files.engine(cache)? {
            Some(Engine::Own(own)) => {
                own.need_root()?;
                // An engine that was killed left containers and networks that it knows best how to remove.
                let engine = own.start(progress);
                progress.step("Cluster down", |log| {
                    match engine {
                        Ok(engine) => removal::everything(&engine, log)?,
                        Err(error) => eprintln!(
                            "the Docker engine does not start; what is left of it is taken away all the same: {error:#}"
                        ),
                    }
                    own.stop(log)
                })?;
            }
            Some(engine @ Engine::Machine) => {
                let tools = Tools::ensure(cache, progress, &[Tool::Kind])?;
                progress.step("Cluster down", |log| {
                    let mut kind = tools.command(Tool::Kind);
                    engine.point(&mut kind);
                    kind.args(["delete", "cluster", "--name", NAME])
                        .arg("--kubeconfig")
                        .arg(files.kubeconfig());
                    command::run(&mut kind, log)?;
                    removal::network(&engine, &files, log)
                })?;
            }
            None => eprintln!("no cluster is up"),
        }
        files.clear()
    }

    /// What runs, as text for people.
    pub(crate) fn status(cache: &Cache) -> Result<String> {
        let Some(cluster) = Self::find(cache)? else {
            return Ok("no cluster is up: `cargo xtask cluster up` starts one".to_owned());
        };
        let server =
            command::output(cluster.engine.docker().args(["version", "--format", "{{.Server.Version}}"]))?;
        let (engine, host) = match &cluster.engine {
            Engine::Machine => ("this machine's", String::new()),
            Engine::Own(own) => ("started here", format!("export DOCKER_HOST={}\n", own.host())),
        };
        let nodes = command::output(cluster.kubectl().args(["get", "nodes", "--no-headers"]))?;
        let pods =
            command::output(cluster.kubectl().args(["get", "pods", "--all-namespaces", "--no-headers"]))?;
        // At the end of PATH: one's own programs of the same names go first.
        Ok(format!(
            "engine    Docker {server}, {engine}\nnode      {nodes}\npods      {}\ningress   http://{INGRESS}\n\n\
             export KUBECONFIG={}\n{host}export PATH=\"$PATH:{}\"  # kubectl, helm",
            pods.lines().count(),
            cluster.files.kubeconfig().display(),
            cluster.tools.folder().display(),
        ))
    }

    /// The engine its node runs on, which is the one to build images with.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The file by which other programs reach it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.files.kubeconfig()
    }

    /// Where a program is that speaks to this cluster.
    pub(crate) fn tool(&self, tool: Tool) -> PathBuf {
        self.tools.path(tool)
    }

    /// A program that speaks to this cluster: kubectl or helm.
    pub(crate) fn client(&self, tool: Tool) -> Command {
        let mut command = self.tools.command(tool);
        command.env("KUBECONFIG", self.files.kubeconfig());
        command
    }

    /// Which of `names`, as tags that always mean the same content, the node does not have yet.
    pub(crate) fn missing_images<'a>(&self, names: &[&'a str]) -> Result<Vec<&'a str>> {
        let list = ["exec", NODE, "ctr", "--namespace", "k8s.io", "images", "list", "--quiet"];
        let there = command::output(self.engine.docker().args(list))?;
        let is_missing =
            |name: &&str| !there.lines().any(|line| line.strip_prefix("docker.io/") == Some(*name));
        Ok(names.iter().copied().filter(is_missing).collect())
    }

    /// Brings images of the engine into the node.
    pub(crate) fn load_images<T: AsRef<str>>(&self, names: &[T], log: &Log) -> Result<()> {
        command::run(
            self.kind().args(["load", "docker-image", "--name", NAME]).args(names.iter().map(AsRef::as_ref)),
            log,
        )
    }

    /// What the kubelet measured of every pod on the node: its summary of statistics.
    pub(crate) fn statistics(&self) -> Result<serde_json::Value> {
        let path = format!("/api/v1/nodes/{NODE}/proxy/stats/summary");
        let summary = command::output(self.kubectl().args(["get", "--raw", &path]))?;
        serde_json::from_str(&summary).context("the kubelet's summary is no JSON")
    }

    fn kubectl(&self) -> Command {
        self.client(Tool::Kubectl)
    }

    fn kind(&self) -> Command {
        let mut kind = self.tools.command(Tool::Kind);
        self.engine.point(&mut kind);
        kind
    }

    fn is_ready(&self) -> bool {
        command::succeeds(self.kubectl().args(["get", "--raw", "/readyz", "--request-timeout", "5s"]))
    }

    /// Makes a node that exists serve again, which it already does unless the machine was restarted.
    fn wake(&self, progress: &Progress) -> Result<()> {
        if self.is_ready() {
            return Ok(());
        }
        progress.step("Kubernetes", |log| {
            command::run(self.engine.docker().args(["start", NODE]), log)?;
            if command::wait_until(PATIENCE, || self.is_ready()) {
                let ready = ["wait", "--for=condition=Ready", "node", NODE, &timeout()];
                return command::run(self.kubectl().args(ready), log);
            }
            for question in
                [&["logs", "--tail", "40", NODE][..], &["exec", NODE, "journalctl", "--lines", "40"]]
            {
                // Whatever cannot be found out must not hide the failure itself.
                let _ = command::run(self.engine.docker().args(question), log);
            }
            let ended = format!(
                "does not serve again after {} s (`cargo xtask cluster down`, then `up`, makes a new one)",
                PATIENCE.as_secs()
            );
            Err(command::failure(NODE, &ended, log))
        })
    }

    fn create(&self, image: &str, progress: &Progress) -> Result<()> {
        progress.step("Kubernetes", |log| {
            // What an interrupted run may have left.
            command::run(self.kind().args(["delete", "cluster", "--name", NAME]), log)?;
            if !command::succeeds(self.engine.docker().args(["network", "inspect", NETWORK])) {
                self.files.remember("network", NETWORK)?;
            }
            command::run(
                self.kind()
                    .args([
                        "create",
                        "cluster",
                        "--name",
                        NAME,
                        "--image",
                        image,
                        "--wait",
                        &format!("{}s", PATIENCE.as_secs()),
                    ])
                    .arg("--config")
                    .arg(repository().join("kind-config.yaml"))
                    .arg("--kubeconfig")
                    .arg(self.files.kubeconfig()),
                log,
            )?;
            self.files.remember("created", image)
        })
    }

    /// Says so if the node is not the one that would be built now.
    fn note_age(&self) {
        let wanted = match self.engine {
            Engine::Machine => Ok(PUBLISHED_NODE.to_owned()),
            Engine::Own(_) => node_image::name(),
        };
        if let (Ok(wanted), Some(is)) = (wanted, self.files.recall("created"))
            && wanted != is
        {
            eprintln!(
                "the node was made from other sources than these; `cluster down`, then `up`, renews it"
            );
        }
    }

    fn complete(&self, log: &Log) -> Result<()> {
        let manifest = repository().join("local/manifests/traefik.yaml");
        command::run(self.kubectl().args(["apply", "--filename"]).arg(manifest), log)?;
        for (namespace, deployment) in DEPLOYMENTS {
            let wait = ["wait", "--for=condition=Available", "deployment", deployment, &timeout()];
            if command::run(self.kubectl().args(wait).args(["--namespace", namespace]), log).is_err() {
                self.look_into(namespace, deployment, log);
                return Err(command::failure(deployment, "is not available", log));
            }
        }
        Ok(())
    }

    /// Notes what one would look at next when a Deployment is waited for in vain: its pods, Events and log.
    pub(crate) fn look_into(&self, namespace: &str, deployment: &str, log: &Log) {
        let deployment = format!("deployment/{deployment}");
        for question in [&["describe", "pods"][..], &["logs", &deployment, "--tail", "20"]] {
            // Whatever cannot be found out must not hide the failure itself.
            let _ = command::run(self.kubectl().args(["--namespace", namespace]).args(question), log);
        }
    }
}

/// The engine to use: the one that already runs the cluster; else the machine's own, if it has the
/// published node image or can get it; else one that is started here.
///
/// Of these, only the last has been tested: on Debian 12, without a registry in reach.
fn choose(cache: &Cache, files: &Files, progress: &Progress) -> Result<Engine> {
    let engine = if let Some(known) = files.engine(cache)? {
        known
    } else {
        let machine = Engine::Machine;
        let pull = |log: &Log| Ok(command::run(machine.docker().args(["pull", PUBLISHED_NODE]), log).is_ok());
        let is_usable = machine.answers()
            && (machine.has_image(PUBLISHED_NODE) || progress.step("Published node image", pull)?);
        if !is_usable {
            eprintln!(
                "No Docker engine here has kind's published node image or can get it: one is built from sources."
            );
        }
        if is_usable { machine } else { Engine::Own(Own::of(cache)?) }
    };
    files.remember("engine", if matches!(engine, Engine::Machine) { "machine" } else { "own" })?;
    match engine {
        Engine::Own(own) => {
            // Fails on anything but Debian, whose packages all of it is built from.
            Release::here()?;
            own.start(progress)
        }
        machine @ Engine::Machine => Ok(machine),
    }
}

/// Fails if the disk has no room for what a node image is built from.
fn need_room(cache: &Cache, engine: &Engine) -> Result<()> {
    if engine.has_image(&node_image::name()?) {
        return Ok(());
    }
    if Tools::are_built(cache, tools::NODE)? {
        return disk::need_room(&[(cache.root(), 5 << 30)]);
    }
    let (compiled, modules) = tools::caches()?;
    disk::need_room(&[(cache.root(), 6 << 30), (&compiled, 5 << 30), (&modules, 3 << 30)])
}

/// Fails if another program holds the place of the ingress.
fn need_ingress() -> Result<()> {
    match TcpListener::bind(INGRESS) {
        Ok(_) => Ok(()),
        Err(error) => {
            bail!(
                "the ingress needs {INGRESS}, which another program holds ({error}): end that program first"
            )
        }
    }
}

fn timeout() -> String {
    format!("--timeout={}s", PATIENCE.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_ingress_is_where_kind_publishes_it() {
        let configuration = fs::read_to_string(repository().join("kind-config.yaml")).unwrap();
        let (address, port) = INGRESS.split_once(':').unwrap();
        assert!(configuration.contains(&format!("hostPort: {port}, listenAddress: {address}")));
    }

    #[test]
    fn the_manifest_names_the_traefik_that_is_built() {
        let module = fs::read_to_string(repository().join("local/tools/go.mod")).unwrap();
        let version = module
            .lines()
            .find_map(|line| line.trim().strip_prefix("github.com/traefik/traefik/v3 "))
            .unwrap();
        let version = version.split(' ').next().unwrap();
        let manifest = fs::read_to_string(repository().join("local/manifests/traefik.yaml")).unwrap();
        assert!(manifest.contains(&format!("image: traefik:{version}\n")));
    }
}
