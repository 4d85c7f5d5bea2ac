//! What has to be true before requests are served: the schema is up to date and, with Citus, distributed.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio_postgres::Client;

use crate::{
    clock::Clock,
    config::Distribution,
    database::connect::{Connector, Purpose},
    migrations::{self, MigrationError, TABLES},
    readiness::Readiness,
};

/// First pause after a failed attempt; doubled each time.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause after a failed attempt.
const PAUSE_LIMIT: Duration = Duration::from_secs(2);
/// How often the catalogs are looked at while the operator distributes the tables.
const DISTRIBUTION_INTERVAL: Duration = Duration::from_millis(500);
/// Longest time for one attempt to migrate, waiting for the topology lock not included.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Prepares the schema and takes over the database's time, trying again until it is done.
///
/// # Errors
/// Only what no second attempt could mend: an applied migration that differs from this program's.
pub async fn prepare(
    connector: &Connector,
    distribution: Distribution,
    readiness: &Readiness,
    clock: &Clock,
) -> Result<(), MigrationError> {
    let mut pause = PAUSE;
    loop {
        match attempt(connector, distribution, readiness, clock).await {
            Ok(()) => return Ok(()),
            Err(error @ MigrationError::Changed { .. }) => return Err(error),
            Err(MigrationError::Database(error)) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "the database is not ready yet");
                // Whoever reaches the service may read this; roles and hosts are for the log.
                readiness.waiting_for("a database that takes requests; the log has its answer");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_LIMIT);
            }
        }
    }
}

async fn attempt(
    connector: &Connector,
    distribution: Distribution,
    readiness: &Readiness,
    clock: &Clock,
) -> Result<(), MigrationError> {
    let (mut client, traffic) = connector.connect(Purpose::Schema).await?;
    let work = async {
        migrations::run(&mut client, || readiness.waiting_for("the topology lock, held by another session"))
            .await?;
        wait_for_distribution(&client, distribution, readiness).await?;
        // Last, when what took its time is over.
        clock.follow(&client).await.map_err(MigrationError::from)
    };
    tokio::select! {
        done = work => done,
        end = traffic => Err(MigrationError::Database(match end {
            Ok(()) => anyhow!("the connection ended"),
            Err(error) => anyhow!(error).context("the connection was lost"),
        })),
    }
}

async fn wait_for_distribution(
    client: &Client,
    distribution: Distribution,
    readiness: &Readiness,
) -> anyhow::Result<()> {
    if distribution == Distribution::Off {
        return Ok(());
    }
    loop {
        let missing = tokio::time::timeout(LOOK_LIMIT, missing(client, distribution))
            .await
            .context("look whether the tables are distributed")??;
        let Some(missing) = missing else { return Ok(()) };
        readiness.waiting_for(missing);
        tokio::time::sleep(DISTRIBUTION_INTERVAL).await;
    }
}

/// What is missing before the tables count as distributed; `None` when nothing is.
async fn missing(client: &Client, distribution: Distribution) -> anyhow::Result<Option<String>> {
    let citus = client
        .query_opt("SELECT 1 FROM pg_extension WHERE extname = 'citus'", &[])
        .await
        .context("look for the citus extension")?
        .is_some();
    if !citus {
        return Ok((distribution == Distribution::Required)
            .then(|| "the citus extension in this database (--distribution required)".into()));
    }
    let plain = plain_tables(client).await?;
    if plain.is_empty() {
        return Ok(None);
    }
    if distribution == Distribution::Auto && any_holds_rows(client, &plain).await? {
        let tables = plain.join(", ");
        tracing::warn!(
            tables,
            "these tables are not distributed and rows are in them already: served as they are"
        );
        return Ok(None);
    }
    Ok(Some(format!("these tables to be distributed: {}", plain.join(", "))))
}

/// The service's tables that Citus does not know, in alphabetical order.
async fn plain_tables(client: &Client) -> anyhow::Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT name FROM unnest($1::text[]) AS name WHERE NOT EXISTS (
                 SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass('public.' || name))
             ORDER BY name",
            &[&TABLES.as_slice()],
        )
        .await
        .context("read pg_dist_partition")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether any of these tables holds a row.
///
/// Waiting spares the copy of rows that come before the distribution. Once there are some nothing is spared,
/// and the wait could be long: copying them takes its time, the other tables have to queue behind it, and
/// what is in the way of it may need a person.
async fn any_holds_rows(client: &Client, tables: &[String]) -> anyhow::Result<bool> {
    let question: Vec<String> =
        tables.iter().map(|table| format!("EXISTS (SELECT FROM public.{table})")).collect();
    let row = client
        .query_one(&format!("SELECT {}", question.join(" OR ")), &[])
        .await
        .context("look for rows in tables that are not distributed")?;
    Ok(row.get(0))
}
