//! Servers that change in the middle of a move.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::Group;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use serde_json::json;

use crate::bed::{Bed, CLUSTER, TO_SERVE, holds, kubectl_command};

/// Messages before the first move.
const ROWS: &str = "20000";
/// Patroni's loops that a move is held for.
const LOOPS: usize = 3;
/// How long these may take; one is ten seconds.
const TO_LOOP: Duration = Duration::from_mins(2);
/// How long a move may take to be begun anew, put off as it is after each failure, and to be copied.
const TO_COPY: Duration = Duration::from_mins(4);
/// The name of the session that keeps moves from ending.
const HOLDER: &str = "held-up";
const SOURCE: Group = Group::Worker(0);

/// A move lasts longer than Patroni needs to notice anything; in its middle Patroni and its server start anew on the
/// source, then the source's primary changes. Each time the move is made anew, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_made_after_all_when_servers_change_in_its_middle() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("interrupted").await?;
    bed.create(1, |spec| spec["workers"]["instances"] = json!(2)).await?;
    bed.ready().await?;
    let (ada, grace, message) = bed.talk()?;
    bed.sql(
        Group::Coordinator,
        &format!(
            "INSERT INTO public.messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'text', now()
             FROM generate_series(1, {ROWS})"
        ),
    )
    .await?;
    let rows = "SELECT count(*) FROM public.messages";
    let before = bed.sql(Group::Coordinator, rows).await?;

    let held_up = HeldUp::new(&bed).await?;
    bed.kubectl(&["scale", "dlg", CLUSTER, "--replicas=2"])?;
    held_up.until_copied(&bed).await?;
    let first = held_up.mover(&bed).await?;
    loops(&bed).await?;
    ensure!(held_up.mover(&bed).await? == first, "the move did not last");

    // The container ends with Patroni, and starts again: the server's sessions end, and its slots are there still.
    let source = bed.primary(SOURCE).await?;
    let restarts = restarts(&bed, &source)?;
    bed.exec(&source, &["sh", "-c", "kill 1"])?;
    bed.eventually("Patroni starts anew", TO_SERVE, || async {
        let now = self::restarts(&bed, &source)?;
        Ok((now == restarts).then(|| format!("{now} restarts of {source}")))
    })
    .await?;
    held_up.until_another_is_copied(&bed, &first).await?;

    // No slot survives this.
    let second = held_up.mover(&bed).await?;
    let old = bed.primary(SOURCE).await?;
    let scope = bed.names.group(SOURCE);
    let configuration = "/etc/dialog/patroni/patroni.yml";
    bed.eventually("a synchronous standby", TO_SERVE, || async {
        let members = bed.exec(&old, &["patronictl", "-c", configuration, "list", &scope])?;
        Ok((!members.contains("Sync Standby")).then_some(members))
    })
    .await?;
    let switch = ["patronictl", "-c", configuration, "switchover", &scope, "--primary", &old, "--force"];
    bed.say(bed.exec(&old, &switch)?);
    held_up.until_another_is_copied(&bed, &second).await?;
    ensure!(bed.primary(SOURCE).await? != old, "{old} is primary still");

    held_up.end(&bed).await?;
    bed.eventually("both workers hold shards", TO_COPY, || async {
        let balanced = bed.all().get(CLUSTER).await.map(|cluster| holds(&cluster, "Balanced") == "True")?;
        let count = "SELECT count(*) FROM citus_shards WHERE table_name = 'public.messages'::regclass GROUP BY nodename";
        let nodes = bed.sql(Group::Coordinator, count).await?;
        Ok((!(balanced && nodes.lines().count() == 2)).then(|| format!("{nodes:?}, Balanced {balanced}")))
    })
    .await?;
    let after = bed.sql(Group::Coordinator, rows).await?;
    ensure!(after == before, "{before} messages before, {after} after");
    let left = bed.sql(Group::Coordinator, "SELECT count(*) FROM pg_dist_cleanup").await?;
    ensure!(left == "0", "{left} records of what is to be taken away are left");
    bed.still_listed(&ada, &grace, &message)?;
    bed.done();
    Ok(())
}

/// Keeps moves from ending: everything is copied, and the changes meanwhile are followed.
struct HeldUp {
    process: Child,
}

impl HeldUp {
    async fn new(bed: &Bed) -> Result<Self> {
        let hold = "BEGIN; SELECT lock_shard_metadata(5, (SELECT array_agg(shardid) FROM pg_dist_shard)); \
                    SELECT pg_sleep(3600)";
        let pod = bed.primary(Group::Coordinator).await?;
        let name = format!("PGAPPNAME={HOLDER}");
        let process = kubectl_command()
            .args(["--namespace", bed.names.namespace(), "exec", &pod, "--", "env", &name])
            .args(["psql", "-XAtq", "-U", "postgres", "-d", "dialog", "-c", hold])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run kubectl exec")?;
        let held_up = Self { process };
        bed.eventually("the moves are held up", TO_SERVE, || async {
            let sleeps = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{HOLDER}' AND wait_event = 'PgSleep'"
            );
            let sleeps = bed.sql(Group::Coordinator, &sleeps).await?;
            Ok((sleeps != "1").then_some(sleeps))
        })
        .await?;
        Ok(held_up)
    }

    /// The process of the move that waits for this to go; empty while none does.
    async fn mover(&self, bed: &Bed) -> Result<String> {
        let waits = format!(
            "SELECT waiting.pid FROM pg_stat_activity AS waiting JOIN pg_stat_activity AS holder
             ON holder.pid = ANY (pg_blocking_pids(waiting.pid))
             WHERE holder.application_name = '{HOLDER}' AND waiting.application_name LIKE 'dialog-operator: move %'"
        );
        bed.sql(Group::Coordinator, &waits).await
    }

    async fn until_copied(&self, bed: &Bed) -> Result<()> {
        self.until_another_is_copied(bed, "").await
    }

    /// Waits until a move waits for this to go that is not `before`.
    async fn until_another_is_copied(&self, bed: &Bed, before: &str) -> Result<()> {
        bed.eventually("a move has copied everything", TO_COPY, || async {
            let mover = self.mover(bed).await?;
            Ok((mover.is_empty() || mover == before).then(|| format!("held up: {mover:?}")))
        })
        .await
    }

    /// Lets the moves end.
    async fn end(mut self, bed: &Bed) -> Result<()> {
        let end = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{HOLDER}'"
        );
        let ended = bed.sql(Group::Coordinator, &end).await?;
        ensure!(ended == "1", "moves were held up by {ended} sessions");
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        // It has ended with its session, or the test has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns when Patroni on the source has gone through some loops: each renews its lock.
async fn loops(bed: &Bed) -> Result<()> {
    let lock = bed.names.patroni_state(SOURCE, "leader");
    let renewed = async || -> Result<Option<String>> {
        let map = bed.all::<ConfigMap>().get(&lock).await?;
        Ok(map.annotations().get("renewTime").cloned())
    };
    for _ in 0..LOOPS {
        let before = renewed().await?;
        bed.eventually("Patroni renews its lock", TO_LOOP, || async {
            let now = renewed().await?;
            Ok((now == before).then(|| format!("renewed at {now:?}")))
        })
        .await?;
    }
    Ok(())
}

/// How often the container of PostgreSQL in `pod` was started again.
fn restarts(bed: &Bed, pod: &str) -> Result<u32> {
    let path = "jsonpath={.status.containerStatuses[?(@.name==\"postgres\")].restartCount}";
    let count = bed.kubectl(&["get", "pod", pod, "--output", path])?;
    count.parse().with_context(|| format!("{count:?} restarts of {pod}"))
}
