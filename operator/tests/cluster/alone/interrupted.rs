//! Servers that change while shards move from one to the other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogCluster, MoveStatus};
use dialog_operator::names::Group;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;

use crate::bed::{Bed, holds};

/// How long a move may take to begin, with everything that comes before it.
const TO_BEGIN: Duration = Duration::from_mins(5);
/// How long the shards may take to be where they belong after all.
const TO_END: Duration = Duration::from_mins(10);
/// Enough for moves that take a moment.
const ROWS: &str = "200000";

/// What befalls a server that takes part in a move.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    /// Another instance of the source becomes its primary.
    SwitchoverOfTheSource,
    /// The target's primary is deleted.
    TargetDeleted,
    /// The source's primary is deleted.
    SourceDeleted,
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_end_where_they_should_whatever_befalls_their_servers() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("interrupted").await?;
    bed.create(1, |cluster| cluster["workers"]["instances"] = json!(2)).await?;
    bed.ready().await?;
    let (ada, grace, message) = bed.talk()?;
    let insert = format!(
        "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
         SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), repeat('text', 25), now()
         FROM generate_series(1, {ROWS})"
    );
    bed.sql(Group::Coordinator, &insert).await?;
    let count = "SELECT count(*) FROM messages";
    let before = bed.sql(Group::Coordinator, count).await?;

    bed.patch(json!({"workers": {"count": 2}})).await?;
    let mut interrupted = Vec::new();
    for mishap in [Mishap::SwitchoverOfTheSource, Mishap::TargetDeleted, Mishap::SourceDeleted] {
        // Each in the way of another move.
        let is_next =
            |cluster: &DialogCluster| current(cluster).is_some_and(|it| !interrupted.contains(&it.shard_id));
        let cluster = bed.until(&format!("moving, before {mishap:?}"), TO_BEGIN, is_next).await?;
        let moving = current(&cluster).context("the move was there a moment ago")?.clone();
        let group = |name: &str| Group::parse(name).with_context(|| format!("{name} is no group"));
        let (from, to) = (group(&moving.from)?, group(&moving.to)?);
        bed.say(format!("{mishap:?}, while shard {} moves from {from} to {to}", moving.shard_id));
        match mishap {
            Mishap::SwitchoverOfTheSource => switch_over(&bed, from).await?,
            Mishap::TargetDeleted => delete_primary(&bed, to).await?,
            Mishap::SourceDeleted => delete_primary(&bed, from).await?,
        }
        interrupted.push(moving.shard_id);
    }
    bed.until("balanced", TO_END, |cluster| holds(cluster, "Balanced") == "True").await?;
    bed.ready().await?;

    let after = bed.sql(Group::Coordinator, count).await?;
    ensure!(after == before, "there were {before} messages, and there are {after}");
    bed.still_listed(&ada, &grace, &message)?;
    for worker in [Group::Worker(0), Group::Worker(1)] {
        let left = bed
            .sql(worker, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'citus_shard_%'")
            .await?;
        ensure!(left == "0", "{left} slots of moves are left on {worker}");
    }
    bed.done();
    Ok(())
}

/// The move that the status shows.
fn current(cluster: &DialogCluster) -> Option<&MoveStatus> {
    cluster.status.as_ref()?.rebalance.as_ref()?.current.first()
}

async fn switch_over(bed: &Bed, group: Group) -> Result<()> {
    let (old, scope) = (bed.primary(group).await?, bed.names.group(group));
    let configuration = "/etc/dialog/patroni/patroni.yml";
    let switch = ["patronictl", "-c", configuration, "switchover", &scope, "--primary", &old, "--force"];
    bed.say(bed.exec(&old, &switch)?);
    Ok(())
}

async fn delete_primary(bed: &Bed, group: Group) -> Result<()> {
    let pod = bed.primary(group).await?;
    bed.all::<Pod>().delete(&pod, &DeleteParams::default()).await?;
    Ok(())
}
