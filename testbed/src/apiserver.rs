//! The Kubernetes API: etcd and kube-apiserver as two processes on loopback, stopped when dropped.
//!
//! There is no controller, scheduler or kubelet: objects are checked, defaulted, stored and watched, and nothing else
//! happens to them. The programs are named by the environment variables `ETCD` and `KUBE_APISERVER`.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::certificates::Authority;

/// Longest wait for the API to be ready.
const START_LIMIT: Duration = Duration::from_mins(2);
/// How often it is asked whether it is.
const POLL: Duration = Duration::from_millis(100);
/// What an administrator shows; the server lives on loopback, for one test.
const TOKEN: &str = "testbed";

/// Says whether the programs are there, otherwise what is missing.
///
/// # Errors
/// If they are not.
pub fn available() -> Result<(), String> {
    program("ETCD").and(program("KUBE_APISERVER")).map(drop)
}

fn program(variable: &str) -> Result<PathBuf, String> {
    let path = env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("{variable} is not set"))?;
    path.is_file().then_some(path).ok_or_else(|| format!("{variable} names no file"))
}

/// A Kubernetes API.
pub struct ApiServer {
    kubeconfig: PathBuf,
    authority: Authority,
    port: u16,
    store: Store,
    // Dropped in this order: the API, its store, their files.
    api: Process,
    etcd: Process,
    directory: TempDir,
}

/// Where a store listens: for the API, and for the peers that it has none of.
struct Store {
    clients: String,
    peers: String,
}

/// What a store had at some time.
pub struct Backup(TempDir);

impl ApiServer {
    /// The server that tests share: started by the first that asks, stopped when the last lets go.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<ApiServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// Starts a server; ready when it returns.
    ///
    /// # Errors
    /// If a program is missing or does not come up; the message has the end of its log.
    pub fn start() -> Result<Self> {
        let directory = TempDir::with_prefix("apiserver-").context("make a directory")?;
        let store = Store::new()?;
        let etcd = start_etcd(directory.path(), &store)?;
        let authority = Authority::new()?;
        let port = free_port()?;
        let mut api = start_api(directory.path(), &authority, &store, port)?;
        await_ready(&mut api, &authority, port)?;
        let kubeconfig = directory.path().join("kubeconfig");
        fs::write(&kubeconfig, self::kubeconfig(directory.path(), port)).context("write the kubeconfig")?;
        Ok(Self { kubeconfig, authority, port, store, api, etcd, directory })
    }

    /// Copies everything that is stored, for which the store is stopped for a moment; the API is ready when it returns.
    ///
    /// # Errors
    /// If files cannot be copied, or the store does not come up again.
    pub fn back_up(&mut self) -> Result<Backup> {
        self.etcd.end();
        let backup = Backup(TempDir::with_prefix("etcd-").context("make a directory")?);
        copy(&data(self.directory.path()), &data(backup.0.path()))?;
        self.etcd = start_etcd(self.directory.path(), &self.store)?;
        await_ready(&mut self.api, &self.authority, self.port)?;
        Ok(backup)
    }

    /// Has the API begin again with what is in `backup`; it is ready when this returns. Nobody is told that time went back.
    ///
    /// # Errors
    /// If files cannot be copied, or a program does not come up.
    pub fn restore(&mut self, backup: &Backup) -> Result<()> {
        self.api.end();
        self.etcd.end();
        fs::remove_dir_all(data(self.directory.path())).context("remove what is stored")?;
        copy(&data(backup.0.path()), &data(self.directory.path()))?;
        self.etcd = start_etcd(self.directory.path(), &self.store)?;
        self.api = start_api(self.directory.path(), &self.authority, &self.store, self.port)?;
        await_ready(&mut self.api, &self.authority, self.port)
    }

    /// A kubeconfig for an administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

impl Store {
    fn new() -> Result<Self> {
        let url = || Ok::<_, anyhow::Error>(format!("http://127.0.0.1:{}", free_port()?));
        Ok(Self { clients: url()?, peers: url()? })
    }
}

/// Where a store keeps its data.
fn data(directory: &Path) -> PathBuf {
    directory.join("etcd")
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn start_etcd(directory: &Path, store: &Store) -> Result<Process> {
    let Store { clients, peers } = store;
    let mut command = Command::new(program("ETCD").map_err(|missing| anyhow!(missing))?);
    command
        .arg(format!("--data-dir={}", data(directory).display()))
        .args([format!("--listen-client-urls={clients}"), format!("--advertise-client-urls={clients}")])
        .args([format!("--listen-peer-urls={peers}"), format!("--initial-advertise-peer-urls={peers}")])
        .args([format!("--initial-cluster=default={peers}"), "--unsafe-no-fsync".to_owned()]);
    Process::start("etcd", command, directory)
}

fn start_api(directory: &Path, authority: &Authority, store: &Store, port: u16) -> Result<Process> {
    let names = ["localhost", "127.0.0.1"];
    let identity = authority.issue("kube-apiserver", &names, &[ExtendedKeyUsagePurpose::ServerAuth])?;
    let files = authority.write(&identity, directory)?;
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("write {name}")).map(|()| path)
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let (private, public) =
        (write("accounts.key", &key.serialize_pem())?, write("accounts.pub", &key.public_key_pem())?);
    let tokens = write("tokens.csv", &format!("{TOKEN},administrator,administrator,system:masters\n"))?;
    let mut command = Command::new(program("KUBE_APISERVER").map_err(|missing| anyhow!(missing))?);
    command
        .arg(format!("--etcd-servers={}", store.clients))
        .args(["--bind-address=127.0.0.1".to_owned(), format!("--secure-port={port}")])
        .arg(format!("--tls-cert-file={}", files.certificate.display()))
        .arg(format!("--tls-private-key-file={}", files.key.display()))
        .arg(format!("--token-auth-file={}", tokens.display()))
        .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16"])
        .args(["--service-account-issuer=https://testbed", "--endpoint-reconciler-type=none"])
        .arg(format!("--service-account-key-file={}", public.display()))
        .arg(format!("--service-account-signing-key-file={}", private.display()))
        // Nothing here makes the accounts that this one asks for.
        .arg("--disable-admission-plugins=ServiceAccount");
    Process::start("kube-apiserver", command, directory)
}

fn kubeconfig(directory: &Path, port: u16) -> String {
    let authority = directory.join("ca.crt");
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: testbed\n\
         clusters:\n- name: testbed\n  cluster:\n    server: https://127.0.0.1:{port}\n    \
         certificate-authority: {authority}\n\
         users:\n- name: testbed\n  user:\n    token: {TOKEN}\n\
         contexts:\n- name: testbed\n  context:\n    cluster: testbed\n    user: testbed\n",
        authority = authority.display()
    )
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

fn await_ready(api: &mut Process, authority: &Authority, port: u16) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = Arc::new(tls);
    let started = Instant::now();
    loop {
        api.check()?;
        match is_ready(&tls, port) {
            Ok(true) => return Ok(()),
            Ok(false) | Err(_) if started.elapsed() < START_LIMIT => thread::sleep(POLL),
            Ok(false) => {
                bail!("kube-apiserver is not ready after {} s: {}", START_LIMIT.as_secs(), api.log())
            }
            Err(error) => return Err(error.context(api.log())),
        }
    }
}

/// Asks `/readyz` over TLS.
fn is_ready(tls: &Arc<ClientConfig>, port: u16) -> Result<bool> {
    let connection = ClientConnection::new(tls.clone(), ServerName::try_from("localhost")?)?;
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = StreamOwned::new(connection, socket);
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    write!(stream, "{request}Authorization: Bearer {TOKEN}\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status == *b"HTTP/1.1 200")
}

/// A program with its log, killed when dropped: what it keeps is thrown away anyway.
struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(name: &'static str, mut command: Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("make the log of {name}"))?;
        let child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Kills it.
    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Fails if it has ended.
    fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}: {}", self.name, self.log()),
        }
    }

    /// The end of its log.
    fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
