//! A group whose primary changes, as Citus and the clients see it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::Group;
use serde_json::json;
use tokio::task::block_in_place;

use crate::bed::Bed;
use crate::writer::Writer;

/// How long the group may be without a primary that the others can reach.
const TO_SWITCH: Duration = Duration::from_mins(1);

/// With Citus, the group is a worker's; without, it is the only one there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_in_a_group_goes_unnoticed_by_citus() -> Result<()> {
    let (group, spec) =
        if Bed::has_citus() { (Group::Worker(0), "workers") } else { (Group::Coordinator, "coordinator") };
    let bed = Bed::new("switchover").await?;
    bed.create(Bed::workers(), |cluster| cluster[spec]["instances"] = json!(2)).await?;
    bed.ready().await?;
    assert_links(&bed, group).await?;
    let before = nodes(&bed).await?;
    let (service, ada, grace) = bed.two_people()?;
    let writer = Writer::start(&bed)?;

    let old = bed.primary(group).await?;
    let scope = bed.names.group(group);
    let configuration = "/etc/dialog/patroni/patroni.yml";
    // Patroni hands over to a synchronous standby only, and says who is one in the round after it has found out.
    let list = ["patronictl", "-c", configuration, "list", &scope];
    bed.eventually("a synchronous standby", TO_SWITCH, || async {
        let members = bed.exec(&old, &list)?;
        Ok((!members.contains("Sync Standby")).then_some(members))
    })
    .await?;
    let switch = ["patronictl", "-c", configuration, "switchover", &scope, "--primary", &old, "--force"];
    bed.say(bed.exec(&old, &switch)?);
    bed.eventually("another instance is primary", TO_SWITCH, || async {
        Ok(match bed.primary(group).await {
            Ok(now) if now != old => None,
            Ok(_) => Some(format!("{old} is primary still")),
            Err(error) => Some(format!("{error:#}")),
        })
    })
    .await?;
    let after = Instant::now();
    bed.eventually("a message is taken again", TO_SWITCH, || async {
        Ok(block_in_place(|| service.send(&grace, &ada, "after")).err().map(|error| format!("{error:#}")))
    })
    .await?;
    let seconds = after.elapsed().as_secs_f64();
    bed.say(format!("messages are taken {seconds:.1} s after the new primary is known"));
    writer.stop(&bed).await?;

    let now = nodes(&bed).await?;
    ensure!(now == before, "pg_dist_node was\n{before}\nand is\n{now}");
    bed.ready().await?;
    bed.done();
    Ok(())
}

/// Every connection from outside the pod shows a certificate, and every server that connects to another checks that one's.
async fn assert_links(bed: &Bed, group: Group) -> Result<()> {
    bed.talk()?;
    let standbys = bed.sql(group, "SELECT count(*) FROM pg_stat_replication").await?;
    ensure!(standbys == "1", "{standbys} standbys follow the primary of {group}");
    for group in [Group::Coordinator, group] {
        let links = "SELECT DISTINCT usename, coalesce(ssl AND client_dn IS NOT NULL, false) \
                     FROM pg_stat_activity LEFT JOIN pg_stat_ssl USING (pid) WHERE client_addr IS NOT NULL ORDER BY 1";
        let links = bed.sql(group, links).await?;
        bed.say(format!("connections to {group}: {}", links.replace('\n', ", ")));
        ensure!(
            !links.is_empty() && links.lines().all(|link| link.ends_with("|t")),
            "without certificate: {links}"
        );
    }
    let primary = bed.primary(group).await?;
    let standby = (0..2).map(|ordinal| bed.names.pod(group, ordinal)).find(|pod| *pod != primary);
    let standby = standby.context("a group of two has a standby")?;
    let mut settings = vec![(standby, "primary_conninfo")];
    if Bed::has_citus() {
        settings.push((primary, "citus.node_conninfo"));
    }
    for (pod, setting) in settings {
        let value = bed.sql_in(&pod, &format!("SHOW {setting}"))?;
        ensure!(value.contains("sslmode=verify-full"), "{setting} of {pod} is {value}");
    }
    Ok(())
}

/// What Citus knows of its nodes; nothing without Citus.
async fn nodes(bed: &Bed) -> Result<String> {
    if !Bed::has_citus() {
        return Ok(String::new());
    }
    let catalog =
        "SELECT nodeid, groupid, nodename, nodeport, isactive, metadatasynced FROM pg_dist_node ORDER BY 1";
    bed.sql(Group::Coordinator, catalog).await
}
