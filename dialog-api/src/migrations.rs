//! Versioned migrations of the schema, embedded in the program.
//!
//! Every replica runs them at its start. One at a time does, under the topology lock, which whoever moves or
//! distributes shards holds as well, so that DDL and moves never meet. A replica that finds nothing to do does
//! not ask for the lock and starts even while shards move. An applied migration never changes: its checksum is
//! recorded and compared.

use std::time::Duration;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;

use crate::database::tables::Table;

/// The topology lock: the two keys of `pg_advisory_lock`, the first of which is "dial" in ASCII.
pub const TOPOLOGY_LOCK: (i32, i32) = (1_684_631_916, 1);

/// The tables that requests use and that Citus distributes, if it is there.
pub const TABLES: [&str; Table::ALL.len()] = Table::NAMES;

/// How long the topology lock is waited for inside the server at a time. Who waits there is next: no move begins before, however
/// many follow each other, nor beside those that are under way. A statement that waits holds a snapshot that a moving shard
/// may have to wait for, so it does not wait for long, and begins anew.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// One step of the schema.
#[derive(Debug)]
struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

/// All steps, in order. Appended to, never changed.
const MIGRATIONS: [Migration; 2] = [
    Migration { version: 1, name: "schema", sql: include_str!("../migrations/0001_schema.sql") },
    Migration {
        version: 2,
        name: "archive_and_erasures",
        sql: include_str!("../migrations/0002_archive_and_erasures.sql"),
    },
];

/// Why the schema is not up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// An applied migration differs from the one in this program. Trying again does not help.
    #[error(
        "migration {version} ({name}) was applied with checksum {applied}, but this program has {known}: \
         an applied migration must never change. Run the program that applied it, or add a new migration"
    )]
    Changed {
        /// Version of the migration.
        version: i64,
        /// Name of the migration in this program.
        name: &'static str,
        /// Checksum in `schema_migrations`, hexadecimal.
        applied: String,
        /// Checksum in this program, hexadecimal.
        known: String,
    },
    /// The database failed; trying again may help.
    #[error(transparent)]
    Database(#[from] anyhow::Error),
}

impl Migration {
    /// SHA-256 of the text, hexadecimal.
    fn checksum(&self) -> String {
        use std::fmt::Write as _;
        Sha256::digest(self.sql).iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// What `schema_migrations` says: versions with their checksums.
type Applied = Vec<(i64, String)>;

/// The migrations that are still to be applied. Versions that this program does not know are left alone:
/// they are from a newer program, which a rolling update or its way back can leave behind.
fn pending<'a>(known: &'a [Migration], applied: &Applied) -> Result<Vec<&'a Migration>, MigrationError> {
    let mut pending = Vec::new();
    for migration in known {
        match applied.iter().find(|(version, _)| *version == migration.version) {
            None => pending.push(migration),
            Some((_, checksum)) if *checksum == migration.checksum() => {}
            Some((_, checksum)) => {
                return Err(MigrationError::Changed {
                    version: migration.version,
                    name: migration.name,
                    applied: checksum.clone(),
                    known: migration.checksum(),
                });
            }
        }
    }
    Ok(pending)
}

/// Brings the schema up to date. After an error the connection has to be closed, which gives the topology lock back in
/// every case. `waiting` is told when somebody else holds that lock.
///
/// # Errors
/// [`MigrationError::Changed`] when an applied migration differs, otherwise what the database said.
pub async fn run(client: &mut Client, mut waiting: impl FnMut()) -> Result<(), MigrationError> {
    if pending(&MIGRATIONS, &read_applied(client).await?)?.is_empty() {
        return Ok(());
    }
    while !try_lock(client).await? {
        waiting();
    }
    // Another replica may have been here while we waited.
    let outcome = apply_pending(client).await;
    // However often it holds it: a wait that ends in the moment in which it is granted may leave it with the session.
    let released = client.execute("SELECT pg_advisory_unlock_all()", &[]).await;
    outcome?;
    released.context("release the topology lock")?;
    Ok(())
}

async fn apply_pending(client: &mut Client) -> Result<(), MigrationError> {
    client
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (
                 version    bigint      PRIMARY KEY,
                 name       text        NOT NULL,
                 checksum   text        NOT NULL,
                 applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .await
        .context("create schema_migrations")?;
    for migration in pending(&MIGRATIONS, &read_applied(client).await?)? {
        apply(client, migration).await?;
        tracing::info!(version = migration.version, name = migration.name, "migration applied");
    }
    Ok(())
}

async fn apply(client: &mut Client, migration: &Migration) -> anyhow::Result<()> {
    let step = || format!("migration {} ({})", migration.version, migration.name);
    let transaction = client.transaction().await.with_context(step)?;
    transaction.batch_execute(migration.sql).await.with_context(step)?;
    transaction
        .execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
            &[&migration.version, &migration.name, &migration.checksum()],
        )
        .await
        .with_context(step)?;
    transaction.commit().await.with_context(step)
}

async fn read_applied(client: &Client) -> anyhow::Result<Applied> {
    let exists = client
        .query_one("SELECT to_regclass('public.schema_migrations') IS NOT NULL", &[])
        .await
        .context("look for schema_migrations")?
        .get::<_, bool>(0);
    if !exists {
        return Ok(Vec::new());
    }
    let rows = client
        .query("SELECT version, checksum FROM schema_migrations ORDER BY version", &[])
        .await
        .context("read schema_migrations")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Takes the topology lock, or gives up after [`LOCK_WAIT`].
async fn try_lock(client: &Client) -> anyhow::Result<bool> {
    let (first, second) = TOPOLOGY_LOCK;
    let ask = || "ask for the topology lock";
    // A wait in vain is no error: it would be one in the server's log twice a second. The lock is the session's, and stays
    // when the transaction has ended, however that does.
    let wait = format!(
        "DO $$ BEGIN
             PERFORM set_config('lock_timeout', '{}', true);
             PERFORM pg_advisory_lock({first}, {second});
         EXCEPTION WHEN lock_not_available THEN NULL;
         END $$",
        LOCK_WAIT.as_millis()
    );
    client.batch_execute(&wait).await.with_context(ask)?;
    let holds = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND granted
                 AND objsubid = 2 AND classid = $1::int4::oid AND objid = $2::int4::oid)",
            &[&first, &second],
        )
        .await
        .with_context(ask)?;
    Ok(holds.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Migration; 2] = [
        Migration { version: 1, name: "one", sql: "SELECT 1" },
        Migration { version: 2, name: "two", sql: "SELECT 2" },
    ];

    #[test]
    fn what_is_missing_is_applied_in_order() {
        let versions = |applied| {
            pending(&KNOWN, &applied).unwrap().iter().map(|migration| migration.version).collect::<Vec<_>>()
        };
        assert_eq!(versions(vec![]), [1, 2]);
        assert_eq!(versions(vec![(1, KNOWN[0].checksum())]), [2]);
        assert_eq!(versions(vec![(1, KNOWN[0].checksum()), (2, KNOWN[1].checksum())]), [0_i64; 0]);
    }

    #[test]
    fn a_newer_schema_is_left_alone() {
        let applied = vec![(1, KNOWN[0].checksum()), (2, KNOWN[1].checksum()), (3, "newer".into())];
        assert!(pending(&KNOWN, &applied).unwrap().is_empty());
    }

    #[test]
    fn a_changed_migration_is_refused() {
        let error = pending(&KNOWN, &vec![(1, "other".into())]).unwrap_err();
        assert!(matches!(error, MigrationError::Changed { version: 1, .. }), "{error}");
    }

    #[test]
    fn versions_rise_and_every_table_is_made() {
        assert!(MIGRATIONS.is_sorted_by(|one, other| one.version < other.version));
        for table in TABLES {
            let statement = format!("CREATE TABLE {table} (");
            assert!(MIGRATIONS.iter().any(|migration| migration.sql.contains(&statement)), "{table}");
        }
    }
}
