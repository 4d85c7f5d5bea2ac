//! A group whose primary changes, as Citus and the clients see it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
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
    let before = nodes(&bed).await?;
    let (service, ada, grace) = bed.two_people()?;
    let writer = Writer::start(&bed)?;

    let old = bed.primary(group).await?;
    let scope = bed.names.group(group);
    let configuration = "/etc/dialog/patroni/patroni.yml";
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

/// What Citus knows of its nodes; nothing without Citus.
async fn nodes(bed: &Bed) -> Result<String> {
    if !Bed::has_citus() {
        return Ok(String::new());
    }
    let catalog =
        "SELECT nodeid, groupid, nodename, nodeport, isactive, metadatasynced FROM pg_dist_node ORDER BY 1";
    bed.sql(Group::Coordinator, catalog).await
}
