//! How the bench reaches the database: as the service does, on the coordinator and on every node that holds a
//! shard of the messages.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use dialog_api::{
    config::DatabaseConfig,
    database::connect::{Connector, Purpose},
};
use tokio_postgres::Client;
use uuid::Uuid;

/// The database of the service: PostgreSQL, or the coordinator of a Citus cluster.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseArguments {
    /// Host name of PostgreSQL or of the Citus coordinator, or the directory of its Unix socket
    #[arg(long = "database-host", env = "DIALOG_API_DATABASE_HOST", id = "database_host")]
    pub host: Option<String>,

    /// Port of PostgreSQL
    #[arg(long = "database-port", env = "DIALOG_API_DATABASE_PORT", default_value_t = 5432)]
    pub port: u16,

    /// Database with the service's tables
    #[arg(long = "database-name", env = "DIALOG_API_DATABASE_NAME", default_value = "dialog")]
    pub name: String,

    /// Role to connect as
    #[arg(long = "database-user", env = "DIALOG_API_DATABASE_USER", default_value = "dialog_api")]
    pub user: String,

    /// Certificate of the authority that signed the servers' (PEM); the connection is encrypted with it
    #[arg(long, env = "DIALOG_API_TLS_CA", requires_all = ["tls_cert", "tls_key"])]
    pub tls_ca: Option<PathBuf>,

    /// Client certificate (PEM)
    #[arg(long, env = "DIALOG_API_TLS_CERT", requires_all = ["tls_ca", "tls_key"])]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the client certificate (PEM)
    #[arg(long, env = "DIALOG_API_TLS_KEY", requires_all = ["tls_ca", "tls_cert"])]
    pub tls_key: Option<PathBuf>,
}

impl DatabaseArguments {
    /// The same as flags of the service.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let Self { host, port, name, user, tls_ca, tls_cert, tls_key } = self;
        let mut flags: Vec<String> = host.iter().map(|host| format!("--database-host={host}")).collect();
        flags.push(format!("--database-port={port}"));
        flags.push(format!("--database-name={name}"));
        flags.push(format!("--database-user={user}"));
        for (flag, file) in [("ca", tls_ca), ("cert", tls_cert), ("key", tls_key)] {
            flags.extend(file.iter().map(|file| format!("--tls-{flag}={}", file.display())));
        }
        flags
    }
}

/// The service's own flags, so that connections are made exactly as it makes them.
#[derive(Parser)]
struct ServiceFlags {
    #[command(flatten)]
    database: DatabaseConfig,
}

/// Makes connections to the nodes.
#[derive(Clone, Debug)]
pub struct Database {
    config: DatabaseConfig,
}

/// One part of the messages, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its id in Citus; 0 for a table that is not distributed.
    pub id: i64,
    /// The table, on its node.
    pub table: String,
    /// First and last hash that belong to it.
    pub hashes: (i32, i32),
    /// The node's host.
    pub host: String,
    /// The node's port.
    pub port: u16,
}

impl Shard {
    /// The node, for people.
    #[must_use]
    pub fn node(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl Database {
    /// Takes what was given on the command line; `None` if there is no host among it.
    ///
    /// # Errors
    /// When the service would not accept these values.
    pub fn from_arguments(arguments: &DatabaseArguments) -> Result<Option<Self>> {
        if arguments.host.is_none() {
            return Ok(None);
        }
        let flags = std::iter::once("dialog-api".to_owned()).chain(arguments.flags());
        let ServiceFlags { database } =
            ServiceFlags::try_parse_from(flags).context("what to connect to the database with")?;
        Ok(Some(Self { config: database }))
    }

    /// How the service is configured that reaches it in the same way.
    #[must_use]
    pub fn config(&self) -> &DatabaseConfig {
        &self.config
    }

    /// A session on PostgreSQL or the coordinator.
    ///
    /// # Errors
    /// When there is none within 5 s.
    pub async fn connect(&self) -> Result<Client> {
        let (client, traffic) = Connector::new(&self.config)?.connect(Purpose::Schema).await?;
        tokio::spawn(async move {
            // How it ended is told by the statement that was under way, if any was.
            let _ = traffic.await;
        });
        Ok(client)
    }

    /// A session on the node that holds a shard.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub async fn connect_to(&self, shard: &Shard) -> Result<Client> {
        let mut config = self.config.clone();
        config.host.clone_from(&shard.host);
        config.port = shard.port;
        Self { config }.connect().await
    }

    /// Where the messages are now: every shard, in the order of hashes; the table itself if it is not
    /// distributed.
    ///
    /// # Errors
    /// When the catalogs cannot be read, or do not say where every shard is.
    pub async fn shards(&self, client: &Client) -> Result<Vec<Shard>> {
        let distributed: bool = client
            .query_one("SELECT to_regclass('pg_catalog.pg_dist_shard') IS NOT NULL", &[])
            .await
            .context("look for Citus' catalogs")?
            .get(0);
        let rows = if distributed {
            client
                .query(
                    "SELECT shardid, shardminvalue::int, shardmaxvalue::int, nodename, nodeport
                     FROM pg_dist_shard
                     LEFT JOIN pg_dist_placement USING (shardid)
                     LEFT JOIN pg_dist_node USING (groupid)
                     WHERE logicalrelid = 'public.messages'::regclass
                       AND (noderole = 'primary' OR noderole IS NULL)
                     ORDER BY 2",
                    &[],
                )
                .await
                .context("read where the shards are")?
        } else {
            Vec::new()
        };
        if rows.is_empty() {
            return Ok(vec![Shard {
                id: 0,
                table: "public.messages".into(),
                hashes: (i32::MIN, i32::MAX),
                host: self.config.host.clone(),
                port: self.config.port,
            }]);
        }
        let mut shards = Vec::new();
        for row in rows {
            let id: i64 = row.get(0);
            let host: Option<String> = row.get(3);
            let host = host.with_context(|| format!("shard {id} of the messages is nowhere"))?;
            let (port, hashes) = (u16::try_from(row.get::<_, i32>(4))?, (row.get(1), row.get(2)));
            shards.push(Shard { id, table: format!("public.messages_{id}"), hashes, host, port });
        }
        ensure!(covers_all_hashes(&shards), "the shards of the messages do not cover every hash");
        Ok(shards)
    }

    /// The hashes that Citus goes by, in the order of the ids.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn hashes(&self, client: &Client, ids: &[Uuid]) -> Result<Vec<i32>> {
        let mut hashes = Vec::with_capacity(ids.len());
        for part in ids.chunks(20_000) {
            let rows = client
                .query(
                    "SELECT worker_hash(id) FROM unnest($1::uuid[]) WITH ORDINALITY AS part (id, place) ORDER BY place",
                    &[&part],
                )
                .await
                .context("ask for the hashes of dialogs")?;
            hashes.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
        }
        Ok(hashes)
    }
}

/// Whether every hash belongs to exactly one shard.
fn covers_all_hashes(shards: &[Shard]) -> bool {
    let mut next = i64::from(i32::MIN);
    shards.iter().all(|shard| {
        let fits = i64::from(shard.hashes.0) == next;
        next = i64::from(shard.hashes.1) + 1;
        fits
    }) && next == i64::from(i32::MAX) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(first: i32, last: i32) -> Shard {
        Shard { id: 1, table: "t".into(), hashes: (first, last), host: "h".into(), port: 1 }
    }

    #[test]
    fn a_hole_or_an_overlap_is_noticed() {
        assert!(covers_all_hashes(&[shard(i32::MIN, i32::MAX)]));
        assert!(covers_all_hashes(&[shard(i32::MIN, -1), shard(0, 0), shard(1, i32::MAX)]));
        assert!(!covers_all_hashes(&[shard(i32::MIN, -1), shard(1, i32::MAX)]));
        assert!(!covers_all_hashes(&[shard(i32::MIN, 0), shard(0, i32::MAX)]));
        assert!(!covers_all_hashes(&[shard(i32::MIN, 0)]));
        assert!(!covers_all_hashes(&[]));
    }

    #[test]
    fn the_services_own_rules_hold() {
        let arguments = |host: Option<&str>, ca: Option<&str>| DatabaseArguments {
            host: host.map(Into::into),
            port: 5432,
            name: "dialog".into(),
            user: "dialog_api".into(),
            tls_ca: ca.map(Into::into),
            tls_cert: None,
            tls_key: None,
        };
        assert!(Database::from_arguments(&arguments(None, None)).unwrap().is_none());
        assert!(Database::from_arguments(&arguments(Some("db"), None)).unwrap().is_some());
        assert!(Database::from_arguments(&arguments(Some("db"), Some("ca"))).is_err());
    }
}
