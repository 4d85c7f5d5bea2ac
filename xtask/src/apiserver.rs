//! A Kubernetes API server without a cluster: etcd and kube-apiserver as two processes on loopback, for as long as the
//! value lives.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{self, Log};
use crate::tools::{Tool, Tools};

/// What [`ApiServer::start`] runs.
pub(crate) const TOOLS: &[Tool] = &[Tool::Etcd, Tool::KubeApiserver, Tool::Kubectl];
/// How long it may take until it answers.
const PATIENCE: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(100);
/// The bearer token of its only user. It listens on loopback, holds nothing, and lives for seconds.
const TOKEN: &str = "administrator";

/// A server that answers.
#[derive(Debug)]
pub(crate) struct ApiServer {
    tools: Tools,
    address: String,
    folder: TempDir,
    processes: [Process; 2],
}

impl ApiServer {
    /// Starts both processes and waits until the server is ready.
    pub(crate) fn start(tools: &Tools, log: &Log) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let path = |name: &str| folder.path().join(name);
        let tokens = path("tokens.csv");
        fs::write(&tokens, format!("{TOKEN},administrator,administrator,system:masters\n"))
            .with_context(|| format!("cannot write {}", tokens.display()))?;
        let [clients, peers, secure] = free_ports()?;
        let etcd_address = format!("http://127.0.0.1:{clients}");
        let peers = format!("http://127.0.0.1:{peers}");
        let etcd = Process::start(
            tools
                .command(Tool::Etcd)
                .args(["--listen-client-urls", &etcd_address, "--advertise-client-urls", &etcd_address])
                .args(["--listen-peer-urls", &peers, "--log-level", "warn", "--unsafe-no-fsync"])
                .arg("--data-dir")
                .arg(path("etcd")),
            log,
        )?;
        let certificates = path("certificates");
        // The server makes this key before it looks for the one that signs tokens of service accounts.
        let key = certificates.join("apiserver.key");
        let mut apiserver = tools.command(Tool::KubeApiserver);
        apiserver
            .args(["--etcd-servers", &etcd_address, "--bind-address", "127.0.0.1"])
            .args(["--secure-port", &secure.to_string(), "--service-cluster-ip-range", "10.0.0.0/24"])
            .args(["--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        for (flag, file) in [
            ("--cert-dir", certificates.as_path()),
            ("--token-auth-file", &tokens),
            ("--service-account-key-file", &key),
            ("--service-account-signing-key-file", &key),
        ] {
            apiserver.arg(flag).arg(file);
        }
        let mut server = Self {
            tools: tools.clone(),
            address: format!("https://127.0.0.1:{secure}"),
            folder,
            processes: [etcd, Process::start(&mut apiserver, log)?],
        };
        server.wait(log)?;
        Ok(server)
    }

    /// A `kubectl` that speaks to it as its administrator.
    pub(crate) fn kubectl(&self) -> Command {
        let mut kubectl = self.tools.command(Tool::Kubectl);
        kubectl
            .args(["--server", &self.address, "--token", TOKEN, "--kubeconfig", "/dev/null", "--cache-dir"])
            .arg(self.folder.path().join("discovery"))
            .arg("--certificate-authority")
            .arg(self.folder.path().join("certificates/apiserver.crt"));
        kubectl
    }

    /// The JSON at `path` of the server.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let text = command::output(self.kubectl().args(["get", "--raw", path]))?;
        serde_json::from_str(&text).with_context(|| format!("the API server's {path} is no JSON"))
    }

    fn wait(&mut self, log: &Log) -> Result<()> {
        let started = Instant::now();
        while !command::succeeds(self.kubectl().args(["get", "--raw", "/readyz"])) {
            if started.elapsed() > PATIENCE {
                return Err(command::failure("kube-apiserver", "is not ready", log));
            }
            for process in &mut self.processes {
                process.check(log)?;
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }
}

/// A process that ends with the value.
#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
}

impl Process {
    fn start(command: &mut Command, log: &Log) -> Result<Self> {
        let name =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.append()?)
            .stderr(log.append()?)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Self { name, child })
    }

    /// Fails if it has ended.
    fn check(&mut self, log: &Log) -> Result<()> {
        if let Some(status) =
            self.child.try_wait().with_context(|| format!("cannot look after {}", self.name))?
        {
            return Err(command::failure(&self.name, &format!("ended by itself ({status})"), log));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that nobody listens on now.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All are held until all are known, so that none is given twice.
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind("127.0.0.1:0").context("no port is free on 127.0.0.1")?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr().context("a listener has no address")?.port();
    }
    if ports.contains(&0) {
        bail!("the system gave no port");
    }
    Ok(ports)
}
