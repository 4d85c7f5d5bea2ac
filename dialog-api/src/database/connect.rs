//! The one place that knows how a connection to the database is made.

use std::{
    fs,
    future::{Future, poll_fn},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{
    AsyncMessage, Client, Connection, NoTls, Notification,
    config::{SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::wire::{self, Keepalive};
use crate::config::DatabaseConfig;

/// Longest time to establish a connection: name, TCP, TLS and start of the session.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest time to prepare all statements.
const PREPARE_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait of a statement for a lock.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Longest time for one statement of a migration.
const MIGRATION_LIMIT: Duration = Duration::from_mins(10);
/// Longest time for reading where shards are.
const ROUTING_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for the coordinator to find out whether it reaches another server. (A server without Citus takes
/// the setting for one of an extension it does not have.)
const NODE_CONNECTION_LIMIT: Duration = Duration::from_secs(1);
/// Longest time for one statement of a job.
const JOB_LIMIT: Duration = Duration::from_mins(5);
/// How long a peer may stay silent before the kernel asks, how often it asks again, and how often in vain.
const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(10), interval: Duration::from_secs(5), retries: 3 };

/// What drives a connection's traffic; it ends with the connection.
pub type Traffic = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

/// Is given each notification.
pub type Hear = Box<dyn Fn(&Notification) + Send>;

/// What a connection is for; decides its time limits and what it is called in `pg_stat_activity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Statements of requests, each bounded by this time.
    Requests(Duration),
    /// What the service does for itself from time to time: a statement of it may look at many shards.
    Jobs,
    /// Migrations and looking at catalogs: DDL may take its time, but does not wait long for locks.
    Schema,
    /// Reading where shards are.
    Routing,
}

/// Makes connections. Certificates are read anew each time, so replacing the files needs no restart.
#[derive(Clone, Debug)]
pub struct Connector {
    /// All but the server's address.
    config: tokio_postgres::Config,
    tls: Option<TlsFiles>,
    host: String,
    port: u16,
    target: String,
    address: String,
}

#[derive(Clone, Debug)]
struct TlsFiles {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Connector {
    /// Takes what was configured; reads the certificates once to find mistakes early.
    ///
    /// # Errors
    /// When only some of the TLS files are named, or one cannot be read or is not what it should be.
    pub fn new(config: &DatabaseConfig) -> Result<Self> {
        let tls = match (&config.tls_ca, &config.tls_cert, &config.tls_key) {
            (None, None, None) => None,
            (Some(authority), Some(certificate), Some(key)) => {
                let (authority, certificate, key) = (authority.clone(), certificate.clone(), key.clone());
                Some(TlsFiles { authority, certificate, key })
            }
            _ => bail!("--tls-ca, --tls-cert and --tls-key go together: give all three or none"),
        };
        if let Some(files) = &tls {
            files.load()?;
        }
        let mut connection = tokio_postgres::Config::new();
        connection
            .dbname(&config.name)
            .user(&config.user)
            // A standby, or a primary that was demoted a moment ago, is no use: try the next address.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable })
            .connect_timeout(CONNECT_LIMIT)
            .keepalives_idle(KEEPALIVE.idle)
            .keepalives_interval(KEEPALIVE.interval)
            .keepalives_retries(KEEPALIVE.retries)
            .tcp_user_timeout(KEEPALIVE.idle);
        Ok(Self::described(connection, tls, &config.host, config.port))
    }

    /// The same for another server of the cluster: database, role and certificates stay.
    #[must_use]
    pub fn to(&self, host: &str, port: u16) -> Self {
        Self::described(self.config.clone(), self.tls.clone(), host, port)
    }

    /// The same for those in a hurry: an address that does not take the connection in this time is given up.
    #[must_use]
    pub fn answered_within(&self, limit: Duration) -> Self {
        let mut hurried = self.clone();
        hurried.config.connect_timeout(limit);
        hurried
    }

    fn described(config: tokio_postgres::Config, tls: Option<TlsFiles>, host: &str, port: u16) -> Self {
        let address = format!("{host}:{port}");
        let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
        let target = format!("{}@{address}/{}", name(config.get_user()), name(config.get_dbname()));
        Self { config, tls, host: host.to_owned(), port, target, address }
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Role, host, port and database, for messages.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Connects. The returned traffic must be polled (spawned) for the client to work.
    ///
    /// # Errors
    /// When the certificates cannot be read, or no session comes about within 5 s.
    pub async fn connect(&self, purpose: Purpose) -> Result<(Client, Traffic)> {
        self.establish(purpose, None).await
    }

    /// Connects like [`Connector::connect`], and hands over what the server sends to those who `LISTEN`.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn connect_and_hear(&self, purpose: Purpose, hear: Hear) -> Result<(Client, Traffic)> {
        self.establish(purpose, Some(hear)).await
    }

    async fn establish(&self, purpose: Purpose, hear: Option<Hear>) -> Result<(Client, Traffic)> {
        let mut config = self.config.clone();
        config.host(&self.host).port(self.port);
        config.application_name(purpose.application_name()).options(purpose.session_settings());
        let session = async {
            Ok(if let Some(files) = &self.tls {
                let (client, connection) = config.connect(MakeRustlsConnect::new(files.load()?)).await?;
                (client, drive(connection, hear))
            } else {
                let (client, connection) = config.connect(NoTls).await?;
                (client, drive(connection, hear))
            })
        };
        // connect_timeout bounds each address; this bounds the whole.
        tokio::time::timeout(CONNECT_LIMIT, session)
            .await
            .unwrap_or_else(|_| bail!("no session within {CONNECT_LIMIT:?}"))
            .with_context(|| format!("connect to {}", self.target))
    }

    /// Connects for these prepared statements only, which many share. The returned traffic must be polled (spawned) for
    /// the client to work.
    ///
    /// # Errors
    /// When the certificates cannot be read, a statement cannot be prepared, or no session comes about within 10 s.
    pub async fn connect_prepared(
        &self,
        purpose: Purpose,
        statements: &[&str],
    ) -> Result<(wire::Client, wire::Traffic)> {
        let tls = self.tls.as_ref().map(TlsFiles::load).transpose()?.map(Arc::new);
        let owned = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let target = wire::Target {
            host: self.host.clone(),
            port: self.port,
            user: owned(self.config.get_user()),
            database: owned(self.config.get_dbname()),
            application_name: purpose.application_name().to_owned(),
            settings: purpose.session_settings(),
            tls,
            address_limit: self.config.get_connect_timeout().copied().unwrap_or(CONNECT_LIMIT),
            keepalive: KEEPALIVE,
        };
        let limit = CONNECT_LIMIT + PREPARE_LIMIT;
        tokio::time::timeout(limit, wire::Client::connect(&target, statements))
            .await
            .unwrap_or_else(|_| bail!("no session within {limit:?}"))
            .with_context(|| format!("connect to {}", self.target))
    }
}

/// The traffic of a connection. Without anybody who hears them, notifications are dropped by the library.
fn drive<S, T>(mut connection: Connection<S, T>, hear: Option<Hear>) -> Traffic
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(hear) = hear else { return Box::pin(connection) };
    Box::pin(async move {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await.transpose()? {
            if let AsyncMessage::Notification(notification) = message {
                hear(&notification);
            }
        }
        Ok(())
    })
}

impl Purpose {
    fn application_name(self) -> &'static str {
        match self {
            Self::Requests(_) => "dialog-api",
            Self::Jobs => "dialog-api jobs",
            Self::Schema => "dialog-api schema",
            Self::Routing => "dialog-api routing",
        }
    }

    /// Settings that decide what statements mean and how long they may take are pinned, whatever the role,
    /// the database or the server have been told.
    fn session_settings(self) -> String {
        let statement_timeout = match self {
            Self::Requests(limit) => limit.as_millis(),
            Self::Jobs => JOB_LIMIT.as_millis(),
            Self::Schema => MIGRATION_LIMIT.as_millis(),
            Self::Routing => ROUTING_LIMIT.as_millis(),
        };
        [
            ("search_path", "public"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO"),
            ("default_transaction_isolation", "read\\ committed"),
            ("default_transaction_read_only", "off"),
            ("client_min_messages", "warning"),
            // Citus (13.2.2) keeps one more local plan at every execution of a generic plan on the node that owns the
            // shard, and finds none of them again: some 25 kB each, for as long as the session lives.
            ("plan_cache_mode", "force_custom_plan"),
            ("idle_in_transaction_session_timeout", "60000"),
            ("lock_timeout", &LOCK_LIMIT.as_millis().to_string()),
            ("statement_timeout", &statement_timeout.to_string()),
            // Newer servers make a transaction block of reads that share a transaction, for which the coordinator would begin
            // one on each worker.
            ("citus.select_opens_transaction_block", "off"),
            ("citus.node_connection_timeout", &NODE_CONNECTION_LIMIT.as_millis().to_string()),
        ]
        .map(|(name, value)| format!("-c {name}={value}"))
        .join(" ")
    }
}

impl TlsFiles {
    /// TLS as libpq's `verify-full`: the server's certificate is checked against our authority and the name
    /// we connect to, and we show our own certificate.
    fn load(&self) -> Result<ClientConfig> {
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("read {}", path.display()));
        let certificates = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>> {
            let found = CertificateDer::pem_slice_iter(&read(path)?)
                .collect::<Result<Vec<_>, _>>()
                .with_context(|| format!("{} is not PEM", path.display()))?;
            if found.is_empty() {
                bail!("{} holds no certificate", path.display());
            }
            Ok(found)
        };
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&self.authority)? {
            authorities
                .add(certificate)
                .with_context(|| format!("{} holds no usable authority", self.authority.display()))?;
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .with_context(|| format!("{} holds no private key", self.key.display()))?;
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_root_certificates(authorities)
            .with_client_auth_cert(certificates(&self.certificate)?, key)
            .with_context(|| {
                format!("{} and {} do not belong together", self.certificate.display(), self.key.display())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_pinned_and_spaces_escaped() {
        let settings = Purpose::Requests(Duration::from_millis(2500)).session_settings();
        assert!(settings.contains("-c search_path=public "));
        assert!(settings.contains("-c default_transaction_isolation=read\\ committed "));
        assert!(settings.contains("-c plan_cache_mode=force_custom_plan "));
        assert!(settings.contains("-c statement_timeout=2500 "));
        assert!(Purpose::Schema.session_settings().contains("-c statement_timeout=600000 "));
    }
}
