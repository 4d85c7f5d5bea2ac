//! Servers that change in the middle of a move.

use std::cell::RefCell;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::Group;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::until_halved;
use crate::bed::{Bed, CLUSTER, TO_SERVE, kubectl_command};

/// Messages before the first move.
const ROWS: &str = "20000";
/// Shards of each table: a few moves say as much as many.
const SHARDS: i32 = 4;
/// Patroni's loops that a move is held for.
const LOOPS: usize = 3;
/// How long each of these may take on a busy machine; it is five seconds on a quiet one.
const TO_LOOP: Duration = Duration::from_mins(2);
/// How long a move may take to be begun anew, put off as it is after each failure, and to be copied.
const TO_COPY: Duration = Duration::from_mins(4);
/// A move gives up waiting for a lock after a minute; one that has waited for longer than this may have been begun anew.
const PATIENCE: Duration = Duration::from_secs(45);
/// How the sessions that keep moves from ending are called.
const HOLDER: &str = "held-up";
const SOURCE: Group = Group::Worker(0);
/// Where Patroni's configuration is in a pod.
const CONFIGURATION: &str = "/etc/dialog/patroni/patroni.yml";

/// A move lasts longer than Patroni needs to notice slots that it does not know; then Patroni on the source's primary starts
/// anew, and in another move the source's primary changes. What fails of this is made anew, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn moves_are_made_after_all_when_servers_change_in_their_middle() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("interrupted").await?;
    let change = |spec: &mut Value| {
        spec["workers"]["instances"] = json!(2);
        spec["sharding"] = json!({"shardCount": SHARDS});
    };
    bed.create(1, change).await?;
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

    let held_up = HeldUp::begin(&bed, 1).await?;
    held_up.until_held(&bed).await?;
    bed.kubectl(&["scale", "dlg", CLUSTER, "--replicas=2"])?;
    let first = held_up.until_copied(&bed, "").await?;
    let copied = Instant::now();
    loops(&bed).await?;
    if copied.elapsed() < PATIENCE {
        let slots =
            "SELECT count(*) > 0 FROM pg_replication_slots WHERE slot_name LIKE 'citus_shard_move_slot_%'";
        let slots = bed.sql(SOURCE, slots).await?;
        ensure!(slots == "t", "after {LOOPS} loops of Patroni the slots of the move have gone");
        let now = held_up.mover(&bed).await?;
        ensure!(now == first, "the move of process {first} did not last: {now:?}");
    } else {
        bed.say("the machine is too busy to say whether the move would have lasted");
    }

    // The container ends with Patroni, and starts again; the standby may be primary by then.
    let source = bed.primary(SOURCE).await?;
    let restarts = restarts(&bed, &source)?;
    bed.exec(&source, &["sh", "-c", "kill 1"])?;
    bed.eventually("Patroni starts anew", TO_SERVE, || async {
        let now = self::restarts(&bed, &source)?;
        Ok((now == restarts).then(|| format!("{now} restarts of {source}")))
    })
    .await?;
    // From here on the next move is held up.
    let next = HeldUp::begin(&bed, 2).await?;
    held_up.end(&bed).await?;
    next.until_held(&bed).await?;
    let second = next.until_copied(&bed, &first).await?;

    // No slot survives this.
    let old = source_with_a_standby(&bed).await?;
    let scope = bed.names.group(SOURCE);
    let switch = ["patronictl", "-c", CONFIGURATION, "switchover", &scope, "--primary", &old, "--force"];
    bed.say(bed.exec(&old, &switch)?);
    next.until_copied(&bed, &second).await?;
    next.end(&bed).await?;

    until_halved(&bed, SHARDS, TO_COPY).await?;
    let after = bed.sql(Group::Coordinator, rows).await?;
    ensure!(after == before, "{before} messages before, {after} after");
    bed.still_listed(&ada, &grace, &message)?;
    bed.done();
    Ok(())
}

/// The source's primary, as soon as Patroni can hand over to its standby.
async fn source_with_a_standby(bed: &Bed) -> Result<String> {
    let scope = bed.names.group(SOURCE);
    let list = ["patronictl", "-c", CONFIGURATION, "list", &scope];
    bed.eventually("a synchronous standby", TO_SERVE, || async {
        let members = match bed.primary(SOURCE).await {
            Ok(primary) => bed.exec(&primary, &list),
            Err(error) => Err(error),
        };
        Ok(match members {
            Ok(members) if members.contains("Sync Standby") => None,
            Ok(members) => Some(members),
            Err(error) => Some(format!("{error:#}")),
        })
    })
    .await?;
    bed.primary(SOURCE).await
}

/// Keeps moves from ending: everything is copied, and the changes meanwhile are followed.
struct HeldUp {
    name: String,
    process: Child,
}

impl HeldUp {
    /// Begins to; behind others that do, this takes until these have ended.
    async fn begin(bed: &Bed, number: u32) -> Result<Self> {
        // The lock that Citus has for tests of this: nobody who writes waits for it. A move that keeps writers waiting would
        // be cancelled.
        // Moves begin here, and a server that has just changed may not be there to be told.
        let heed = "SET citus.enable_ddl_propagation = off; ALTER DATABASE dialog SET citus.running_under_citus_test_suite = on";
        bed.sql(Group::Coordinator, heed).await?;
        let hold = "SELECT pg_advisory_lock(44000, 55152); SELECT pg_sleep(3600)";
        let pod = bed.primary(Group::Coordinator).await?;
        let name = format!("{HOLDER}-{number}");
        let process = kubectl_command()
            .args([
                "--namespace",
                bed.names.namespace(),
                "exec",
                &pod,
                "--",
                "env",
                &format!("PGAPPNAME={name}"),
            ])
            .args(["psql", "-XAtq", "-U", "postgres", "-d", "dialog", "-c", hold])
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run kubectl exec")?;
        let held_up = Self { name, process };
        held_up.until(bed, "wait_event_type = 'Lock' OR wait_event = 'PgSleep'").await?;
        Ok(held_up)
    }

    /// Returns when no move can end any more.
    async fn until_held(&self, bed: &Bed) -> Result<()> {
        self.until(bed, "wait_event = 'PgSleep'").await
    }

    async fn until(&self, bed: &Bed, waits: &str) -> Result<()> {
        let asked = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}' AND ({waits})",
            self.name
        );
        bed.eventually("moves are held up", TO_COPY, || async {
            let found = bed.sql(Group::Coordinator, &asked).await?;
            Ok((found != "1").then_some(found))
        })
        .await
    }

    /// The process of the move that waits for this to go; empty while none does.
    async fn mover(&self, bed: &Bed) -> Result<String> {
        let waits = format!(
            "SELECT waiting.pid FROM pg_stat_activity AS waiting JOIN pg_stat_activity AS holder
             ON holder.pid = ANY (pg_blocking_pids(waiting.pid))
             WHERE holder.application_name = '{}' AND waiting.application_name LIKE 'dialog-operator: move %'",
            self.name
        );
        bed.sql(Group::Coordinator, &waits).await
    }

    /// Returns when a move waits for this to go that is not `before`: its process.
    async fn until_copied(&self, bed: &Bed, before: &str) -> Result<String> {
        let found = RefCell::new(String::new());
        bed.eventually("a move has copied everything", TO_COPY, || async {
            let mover = self.mover(bed).await?;
            let missing = (mover.is_empty() || mover == before).then(|| format!("held up: {mover:?}"));
            found.replace(mover);
            Ok(missing)
        })
        .await?;
        Ok(found.into_inner())
    }

    /// Lets the moves end.
    async fn end(mut self, bed: &Bed) -> Result<()> {
        let end = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{}'",
            self.name
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
