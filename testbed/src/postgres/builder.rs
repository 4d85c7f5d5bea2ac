//! What a server is to be like, and how its data directory is made.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail};

use super::Server;
use super::configuration::{Access, append, node_conninfo, write_tls};
use super::installation::{Installation, Owner};
use super::volume::Volume;
use crate::certificates::Authority;

/// What a server is to be like; made by [`Server::builder`].
#[derive(Clone)]
#[must_use]
pub struct Builder<'a> {
    name: String,
    parameters: BTreeMap<String, String>,
    authority: Option<&'a Authority>,
    access: Option<Access>,
    citus: bool,
    volume: Option<u64>,
}

/// Has a server write as in production, and remember more of it: for measurements.
pub fn durable(builder: Builder<'_>) -> Builder<'_> {
    builder
        .parameter("fsync", "on")
        .parameter("shared_buffers", "256MB")
        .parameter("max_connections", "300")
        .parameter("max_wal_size", "4GB")
}

impl<'a> Builder<'a> {
    /// A server with what PostgreSQL takes by itself.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            parameters: BTreeMap::new(),
            authority: None,
            access: None,
            citus: false,
            volume: None,
        }
    }

    /// Sets a parameter of `postgresql.conf`; the value is quoted here. Overrides the defaults of this module.
    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.insert(name.into(), value.into());
        self
    }

    /// Preloads Citus and sizes the server for moving shards: logical decoding, slots, senders, workers.
    /// Creating the extension and registering nodes is left to whoever owns the cluster.
    pub fn citus(mut self) -> Self {
        self.citus = true;
        self
    }

    /// Demands TLS with client certificates on every TCP connection; the node gets a certificate of this authority for
    /// `localhost`.
    pub fn tls(mut self, authority: &'a Authority) -> Self {
        self.authority = Some(authority);
        self
    }

    /// Says who may connect; otherwise it is anybody on this machine or, with TLS, a node as superuser and dialog-api as
    /// `dialog_api`.
    pub fn access(mut self, access: Access) -> Self {
        self.access = Some(access);
        self
    }

    /// Keeps the data on a volume of its own of this many bytes; ask [`volumes_available`](super::volumes_available) first.
    pub fn volume(mut self, bytes: u64) -> Self {
        self.volume = Some(bytes);
        self
    }

    /// Makes the data directory and starts the server; returns when it accepts connections. Blocks.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, or does not start; the end of its log is in the message.
    pub fn start(self) -> Result<Server> {
        let installation = Installation::find()?;
        if self.citus && !installation.has_extension("citus") {
            bail!("the citus extension is not installed: ask testbed::postgres::citus_available() first");
        }
        let owner = Owner::of_servers()?;
        let directory =
            tempfile::Builder::new().prefix("testbed-").tempdir().context("temporary directory")?;
        owner.give(directory.path())?;

        let data = directory.path().join("data");
        let volume = match self.volume {
            Some(bytes) => {
                fs::create_dir(&data).context("make the data directory")?;
                let volume = Volume::mount(&data, bytes)?;
                owner.give(&data)?;
                Some(volume)
            }
            None => None,
        };
        let output = owner
            .command(&installation.binaries.join("initdb"), directory.path())
            .args(["--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=reject"])
            .args(["--no-sync", "--no-instructions", "--pgdata"])
            .arg(&data)
            .output()
            .context("run initdb")?;
        if !output.status.success() {
            bail!("initdb of {} failed: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        append(&data.join("postgresql.conf"), "include 'testbed.conf'\n")?;

        let mut parameters: BTreeMap<String, String> = [
            ("listen_addresses", "localhost"),
            ("unix_socket_directories", &directory.path().display().to_string()),
            ("cluster_name", &self.name),
            ("lc_messages", "C"),
            ("shared_buffers", "32MB"),
            ("log_line_prefix", "%m [%p] %q%u@%d/%a "),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let tls = match self.authority {
            Some(authority) => Some(write_tls(authority, directory.path(), &owner, &mut parameters)?),
            None => None,
        };
        if self.citus {
            let conninfo = tls.as_ref().map_or_else(|| "sslmode=disable".to_owned(), node_conninfo);
            parameters.extend(
                [
                    ("shared_preload_libraries", "citus"),
                    ("citus.node_conninfo", &conninfo),
                    ("citus.local_hostname", "localhost"),
                    ("wal_level", "logical"),
                    ("max_replication_slots", "32"),
                    ("max_wal_senders", "32"),
                    ("max_logical_replication_workers", "16"),
                    ("max_worker_processes", "32"),
                    ("max_prepared_transactions", "200"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
        }
        parameters.extend(self.parameters);

        let (rules, identities) = self.access.unwrap_or_else(|| Access::usual(tls.is_some())).files()?;
        fs::write(data.join("pg_hba.conf"), rules).context("write pg_hba.conf")?;
        fs::write(data.join("pg_ident.conf"), identities).context("write pg_ident.conf")?;

        let mut server = Server {
            name: self.name,
            binaries: installation.binaries,
            owner,
            volume,
            directory,
            port: 0,
            parameters,
            tls,
            process: None,
        };
        server.start_on_a_free_port()?;
        Ok(server)
    }
}
