//! Servers that change in the middle of a move.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dialog_operator::names::Group;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::held_up::{HeldUp, TO_COPY};
use super::until_halved;
use crate::bed::{Bed, CLUSTER, TO_SERVE};

/// Messages before the first move.
const ROWS: &str = "20000";
/// Shards of each table: a few moves say as much as many.
const SHARDS: i32 = 4;
/// Patroni's loops that a move is held for.
const LOOPS: usize = 3;
/// How long each of these may take on a busy machine; it is five seconds on a quiet one.
const TO_LOOP: Duration = Duration::from_mins(2);
/// A move gives up waiting for a lock after a minute; one that has waited for longer than this may have been begun anew.
const PATIENCE: Duration = Duration::from_secs(45);
/// Moves that are held: where the machine was too busy for Patroni's loops within [`PATIENCE`], another one is.
const ATTEMPTS: usize = 3;
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
    let first = until_outlasted(&bed, &held_up).await?;

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

/// Returns when a move has lasted for longer than some of Patroni's loops, and its slots as well: its process.
async fn until_outlasted(bed: &Bed, held_up: &HeldUp) -> Result<String> {
    let mut mover = String::new();
    for attempt in 1..=ATTEMPTS {
        // One that was held before this has waited for nobody knows how long.
        mover = held_up.until_copied(bed, &mover).await?;
        let copied = Instant::now();
        loops(bed, SOURCE, LOOPS).await?;
        let waited = copied.elapsed();
        bed.say(format!("attempt {attempt}: {LOOPS} loops of Patroni took {:.1} s", waited.as_secs_f64()));
        if waited < PATIENCE {
            let slots = "SELECT count(*) > 0 FROM pg_replication_slots WHERE slot_name LIKE 'citus_shard_move_slot_%'";
            let slots = bed.sql(SOURCE, slots).await?;
            ensure!(slots == "t", "after {LOOPS} loops of Patroni the slots of the move have gone");
            let now = held_up.mover(bed).await?;
            ensure!(now == mover, "the move of process {mover} did not last: {now:?}");
            return Ok(mover);
        }
    }
    bail!(
        "the machine is too busy: in {ATTEMPTS} attempts {LOOPS} loops of Patroni took longer than {} s",
        PATIENCE.as_secs()
    )
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

/// Returns when Patroni on the primary of `group` has gone through some loops: each renews its lock.
pub(super) async fn loops(bed: &Bed, group: Group, loops: usize) -> Result<()> {
    let lock = bed.names.patroni_state(group, "leader");
    let renewed = async || -> Result<Option<String>> {
        let map = bed.all::<ConfigMap>().get(&lock).await?;
        Ok(map.annotations().get("renewTime").cloned())
    };
    for _ in 0..loops {
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
