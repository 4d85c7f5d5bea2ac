//! Servers that change in the middle of moves.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogCluster, MoveStatus};
use dialog_operator::names::{DATABASE, Group};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::bed::{Bed, CLUSTER, holds, kubectl_command};

/// How long a move may take to begin and to copy, with everything that comes before it.
const TO_COPY: Duration = Duration::from_mins(5);
/// How long it may take to be seen that a move cannot end; its stall timeout is longer.
const TO_NOTICE: Duration = Duration::from_mins(3);
/// How long the shards may take to be where they belong after all.
const TO_END: Duration = Duration::from_mins(10);
/// Enough for moves that copy something.
const ROWS: &str = "200000";
/// The name of the session that holds moves up.
const HOLDER: &str = "holds moves up";

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

/// Each mishap hits a move that has copied everything and cannot end before the mishap is over.
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

    let mut held_up = HeldUp::new(&bed).await?;
    bed.patch(json!({"workers": {"count": 2}})).await?;
    for mishap in [Mishap::SwitchoverOfTheSource, Mishap::TargetDeleted, Mishap::SourceDeleted] {
        held_up.waits_for_it(&bed, mishap).await?;
        let cluster = bed
            .until(&format!("moving, before {mishap:?}"), TO_COPY, |cluster| current(cluster).is_some())
            .await?;
        let moving = current(&cluster).context("the move was there a moment ago")?.clone();
        let group = |name: &str| Group::parse(name).with_context(|| format!("{name} is no group"));
        let (from, to) = (group(&moving.from)?, group(&moving.to)?);
        let known = interruptions(&bed, moving.shard_id).await?;
        bed.say(format!("{mishap:?}, while shard {} moves from {from} to {to}", moving.shard_id));
        match mishap {
            Mishap::SwitchoverOfTheSource => switch_over(&bed, from).await?,
            Mishap::TargetDeleted => delete_primary(&bed, to).await?,
            Mishap::SourceDeleted => delete_primary(&bed, from).await?,
        }
        held_up.end(&bed).await?;
        bed.eventually(&format!("the move is ended after {mishap:?}"), TO_NOTICE, || async {
            let now = interruptions(&bed, moving.shard_id).await?;
            Ok((now <= known).then(|| format!("no Event says that shard {} failed", moving.shard_id)))
        })
        .await?;
        if !matches!(mishap, Mishap::SourceDeleted) {
            held_up = HeldUp::new(&bed).await?;
        }
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

/// As long as this is there, no move comes to its end: its session has the lock that writers of all shards have.
struct HeldUp(Child);

impl HeldUp {
    async fn new(bed: &Bed) -> Result<Self> {
        let pod = bed.primary(Group::Coordinator).await?;
        // Mode 5 is SHARE; the end of a move wants EXCLUSIVE.
        let statement = format!(
            "SET application_name = '{HOLDER}'; BEGIN;
             SELECT lock_shard_metadata(5, array_agg(shardid)) FROM pg_dist_shard; SELECT pg_sleep(3600)"
        );
        let child = kubectl_command()
            .args(["--namespace", bed.names.namespace(), "exec", &pod, "--"])
            .args(["psql", "-XAtq", "-U", "postgres", "-d", DATABASE, "-c", &statement])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run kubectl exec")?;
        Ok(Self(child))
    }

    /// Waits until a move has come to where it would end.
    async fn waits_for_it(&self, bed: &Bed, mishap: Mishap) -> Result<()> {
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity AS waiting, pg_stat_activity AS holder
             WHERE holder.application_name = '{HOLDER}' AND holder.pid = ANY (pg_blocking_pids(waiting.pid))"
        );
        bed.eventually(&format!("a move is held up, before {mishap:?}"), TO_COPY, || async {
            Ok(match bed.sql(Group::Coordinator, &waits).await {
                Ok(count) if count != "0" => None,
                Ok(_) => Some("no move waits".to_owned()),
                Err(error) => Some(format!("{error:#}")),
            })
        })
        .await
    }

    async fn end(&mut self, bed: &Bed) -> Result<()> {
        let end = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{HOLDER}'"
        );
        bed.sql(Group::Coordinator, &end).await?;
        // psql ends with its session.
        self.0.wait().context("wait for psql")?;
        Ok(())
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The move that the status shows.
fn current(cluster: &DialogCluster) -> Option<&MoveStatus> {
    cluster.status.as_ref()?.rebalance.as_ref()?.current.first()
}

/// How often it was said that the move of a shard has failed.
async fn interruptions(bed: &Bed, shard_id: i64) -> Result<i32> {
    let events = bed.all::<Event>().list(&ListParams::default()).await?;
    let of = |event: &&Event| {
        let note = event.note.as_deref().unwrap_or_default();
        event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(CLUSTER))
            && event.reason.as_deref() == Some("StepFailed")
            && note.starts_with(&format!("could not move shard {shard_id} "))
    };
    // The recorder folds what is said again into a series.
    let times = |event: &Event| event.series.as_ref().map_or(1, |series| series.count);
    Ok(events.items.iter().filter(of).map(times).sum())
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
