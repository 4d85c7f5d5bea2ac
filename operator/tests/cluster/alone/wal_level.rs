//! A group whose servers are found at `wal_level=replica`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::condition::WAL_LEVEL_LOGICAL;
use dialog_operator::names::Group;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::interrupted::loops;
use crate::bed::{Bed, TO_NOTICE};

/// The file that Patroni writes.
const DECLARED: &str = "postgresql.conf";
/// The file that `ALTER SYSTEM` writes.
const BY_HAND: &str = "postgresql.auto.conf";
/// How long two instances may take to be restarted one after the other.
const TO_RESTART: Duration = Duration::from_mins(3);

/// The declared level comes back by Patroni's dynamic configuration and a restart of each server, the standby's first; no
/// server that has it already is restarted. The volume of the primary says otherwise by `ALTER SYSTEM`, as one from elsewhere
/// may: alone that has no effect, and beside a level that Patroni was told by hand and that was taken back by hand it is what
/// keeps Patroni from seeing that the primary needs a restart.
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
    let configure = |level: &str| {
        let parameter = format!("postgresql.parameters.wal_level={level}");
        control(&["edit-config", &scope, "--force", "--set", &parameter])
    };
    let pods = [bed.names.pod(group, 0), bed.names.pod(group, 1)];
    let waiting = async |who: &[&str]| {
        bed.eventually("Patroni asks for the restarts that are needed", TO_NOTICE, || async {
            let listed = control(&["list", &scope, "--format", "json"])?;
            Ok((pending(&listed)? != who).then_some(listed))
        })
        .await
    };
    // Patroni says the level to the server that it starts, and that outranks every file.
    bed.sql_in(&primary, "ALTER SYSTEM SET wal_level = 'replica'")?;
    control(&["restart", &scope, "--force"])?;
    all_at(&bed, &pods, "logical")?;
    ensure!(says(&bed, &primary, BY_HAND)? == ["replica"], "nothing on {primary} says otherwise any more");

    configure("replica")?;
    waiting(&pods.each_ref().map(String::as_str)).await?;
    control(&["restart", &scope, "--force"])?;
    all_at(&bed, &pods, "replica")?;
    let found = bed.condition(WAL_LEVEL_LOGICAL, "named", TO_NOTICE, |it| it.status == "False").await?;
    bed.say(&found.message);
    ensure!(found.message.contains(&format!("replica on {group}")), "{}", found.message);

    // Another may be primary now.
    let primary = bed.primary(group).await?;
    bed.sql_in(&primary, "ALTER SYSTEM SET wal_level = 'replica'")?;
    configure("logical")?;
    bed.eventually("Patroni writes what it was told", TO_NOTICE, || async {
        let written = says(&bed, &primary, DECLARED)?;
        Ok((written != ["logical"]).then(|| written.join(", ")))
    })
    .await?;
    loops(&bed, group, 1).await?;
    let standby = pods.iter().find(|pod| **pod != primary).context("a group of two has a standby")?;
    waiting(&[standby]).await?;

    bed.patch(json!({"paused": false})).await?;
    bed.condition(WAL_LEVEL_LOGICAL, "mended", TO_RESTART, |it| it.status == "True").await?;
    bed.ready().await?;
    let now = bed.primary(group).await?;
    let standby = pods.iter().find(|pod| **pod != now).context("a group of two has a standby")?;
    all_at(&bed, &pods, "logical")?;
    ensure!(says(&bed, &primary, BY_HAND)?.is_empty(), "{primary} says otherwise by ALTER SYSTEM");
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

/// Makes sure that every one of `pods` has this level.
fn all_at(bed: &Bed, pods: &[String], level: &str) -> Result<()> {
    for pod in pods {
        let found = bed.sql_in(pod, "SHOW wal_level")?;
        ensure!(found == level, "wal_level of {pod} is {found}, and not {level}");
    }
    Ok(())
}

/// What this file on the volume of `pod` says that the level is, if anything.
fn says(bed: &Bed, pod: &str, file: &str) -> Result<Vec<String>> {
    let asked = format!(
        "SELECT setting FROM pg_file_settings WHERE name = 'wal_level' AND sourcefile LIKE '%/{file}'"
    );
    Ok(bed.sql_in(pod, &asked)?.lines().map(str::to_owned).collect())
}

/// The pods that wait for a restart, in the order of their names, by what `patronictl list` says in JSON.
fn pending(listed: &str) -> Result<Vec<String>> {
    let members: Vec<Value> = serde_json::from_str(listed).with_context(|| listed.to_owned())?;
    let waits = |member: &&Value| member.get("Pending restart").is_some_and(|mark| mark == "*");
    let names = members.iter().filter(waits).filter_map(|member| Some(member["Member"].as_str()?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// When PostgreSQL of `pod` was started last.
fn began(bed: &Bed, pod: &str) -> Result<Timestamp> {
    let at = bed.sql_in(
        pod,
        "SELECT to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    )?;
    at.parse().with_context(|| format!("{at} is no time"))
}
