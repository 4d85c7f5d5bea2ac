//! A group whose servers are found at `wal_level=replica`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::condition::WAL_LEVEL_LOGICAL;
use dialog_operator::names::Group;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::bed::{Bed, TO_NOTICE};

/// How long two instances may take to be restarted one after the other.
const TO_RESTART: Duration = Duration::from_mins(3);

/// The declared level comes back by Patroni's dynamic configuration and a restart of each server, the standby's first; no
/// server that has it already is restarted.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_found_at_replica_is_brought_back_standbys_first() -> Result<()> {
    let (group, spec) =
        if Bed::has_citus() { (Group::Worker(0), "workers") } else { (Group::Coordinator, "coordinator") };
    let bed = Bed::new("wal-level").await?;
    bed.create(Bed::workers(), |cluster| cluster[spec]["instances"] = json!(2)).await?;
    bed.ready().await?;
    let (ada, grace, message) = bed.talk()?;
    let others_began = began(&bed, &bed.primary(Group::Coordinator).await?)?;

    // Somebody's hand, while the operator may only watch.
    bed.patch(json!({"paused": true})).await?;
    let primary = bed.primary(group).await?;
    let scope = bed.names.group(group);
    let control = |arguments: &[&str]| {
        bed.exec(&primary, &[&["patronictl", "-c", "/etc/dialog/patroni/patroni.yml"], arguments].concat())
    };
    control(&["edit-config", &scope, "--force", "--set", "postgresql.parameters.wal_level=replica"])?;
    let pods = [bed.names.pod(group, 0), bed.names.pod(group, 1)];
    bed.eventually("Patroni asks for a restart", TO_NOTICE, || async {
        let listed = control(&["list", &scope, "--format", "json"])?;
        Ok((listed.matches("\"Pending restart\":").count() < pods.len()).then_some(listed))
    })
    .await?;
    control(&["restart", &scope, "--force"])?;
    for pod in &pods {
        let level = level(&bed, pod)?;
        ensure!(level == "replica", "wal_level of {pod} is {level}");
    }
    let found = bed.condition(WAL_LEVEL_LOGICAL, "named", TO_NOTICE, |it| it.status == "False").await?;
    bed.say(&found.message);
    ensure!(found.message.contains(&format!("replica on {group}")), "{}", found.message);

    bed.patch(json!({"paused": false})).await?;
    bed.condition(WAL_LEVEL_LOGICAL, "mended", TO_RESTART, |it| it.status == "True").await?;
    bed.ready().await?;
    let now = bed.primary(group).await?;
    let standby = pods.iter().find(|pod| **pod != now).context("a group of two has a standby")?;
    for pod in &pods {
        let level = level(&bed, pod)?;
        ensure!(level == "logical", "wal_level of {pod} is {level}");
    }
    let (first, last) = (began(&bed, standby)?, began(&bed, &now)?);
    ensure!(first < last, "the standby {standby} began at {first}, the primary {now} at {last}");
    if group != Group::Coordinator {
        let began = began(&bed, &bed.primary(Group::Coordinator).await?)?;
        ensure!(began == others_began, "the coordinator was restarted as well");
    }
    bed.still_listed(&ada, &grace, &message)?;
    bed.done();
    Ok(())
}

fn level(bed: &Bed, pod: &str) -> Result<String> {
    bed.sql_in(pod, "SHOW wal_level")
}

/// When PostgreSQL of `pod` was started last.
fn began(bed: &Bed, pod: &str) -> Result<Timestamp> {
    let at = bed.sql_in(
        pod,
        "SELECT to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )?;
    at.parse().with_context(|| format!("{at} is no time"))
}
