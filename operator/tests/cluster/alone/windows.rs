//! Rebalances that somebody asks for one by one, and such as wait for a window: on the cluster of [`super::approval`], with
//! two workers that have the same shards.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogCluster, PlanStatus, RebalanceStatus};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::approval::{SHARDS, placements, plan};
use super::held_up::HeldUp;
use super::until_halved;
use crate::bed::{Bed, CLUSTER, TO_NOTICE};

/// Not a whole number of hours away from UTC, and without summer time.
const ZONE: &str = "Asia/Kolkata";
/// How long a window is open in which a move begins: the move is held up until it has closed, and would give up waiting for a
/// lock after a minute.
const OPEN: Duration = Duration::from_secs(40);
const OLD: Group = Group::Worker(0);
const NEW: Group = Group::Worker(1);

/// In mode `Manual` nothing moves before somebody asks for it, and after that once.
pub(super) async fn a_rebalance_is_made_once_for_who_asks(bed: &Bed) -> Result<()> {
    bed.patch(json!({"sharding": {"rebalance": {"mode": "Manual"}}})).await?;
    bed.condition(BALANCED, "balanced in mode Manual", TO_NOTICE, |found| found.status == "True").await?;
    let uneven = make_uneven(bed).await?;
    let says = "set the annotation dialogcluster.io/rebalance";
    let planned = nothing_moves(bed, "PlanAvailable", says, uneven).await?;
    ensure!(handled(bed).await?.is_none(), "nobody has asked for anything");

    bed.kubectl(&["annotate", "--overwrite", "dlg", CLUSTER, "dialogcluster.io/rebalance=one"])?;
    let is_handled = |cluster: &DialogCluster| {
        let status = cluster.status.as_ref();
        status.and_then(|status| status.last_handled_rebalance.as_deref()) == Some("one")
    };
    bed.until("what was asked for once", TO_NOTICE, is_handled).await?;
    bed.condition(BALANCED, "balanced by hand", TO_NOTICE, |found| found.status == "True").await?;
    are_made(bed, &planned, planned.steps.len()).await?;
    until_halved(bed, SHARDS, TO_NOTICE).await?;

    // What becomes uneven later is none of its business.
    let uneven = make_uneven(bed).await?;
    nothing_moves(bed, "PlanAvailable", "asked for has ended; give it another value", uneven).await?;
    ensure!(handled(bed).await?.as_deref() == Some("one"), "it was forgotten what was asked for");
    Ok(())
}

/// With windows, moves begin in them only: none before one opens, and when one closes the move under way is completed and no
/// other begins. The spread is as uneven as it was left by [`a_rebalance_is_made_once_for_who_asks`].
pub(super) async fn moves_begin_in_windows_only(bed: &Bed) -> Result<()> {
    let zone = TimeZone::get(ZONE)?;
    let minute = |time: Zoned| time.with().second(0).subsec_nanosecond(0).build();
    let opens = minute(Timestamp::now().to_zoned(zone.clone()).checked_add(2.hours())?)?;
    let automatic = |window: Value| {
        bed.patch(json!({"sharding": {"rebalance": {"mode": "Automatic", "windows": [window]}}}))
    };
    automatic(window(&opens, Duration::from_hours(1))).await?;
    let left = on_old(bed).await? - usize::try_from(SHARDS)? / 2;
    let planned = nothing_moves(bed, "OutsideWindow", &next(&opens), left).await?;

    let held_up = HeldUp::begin(bed, 1).await?;
    held_up.until_held(bed).await?;
    let now = Timestamp::now().to_zoned(zone.clone());
    // It opened a minute ago, so that it is the same window whatever second it is now.
    let opens = minute(now.checked_sub(1.minute())?)?;
    let closes = now.checked_add(OPEN)?;
    automatic(window(&opens, Duration::try_from(closes.duration_since(&opens))?)).await?;
    held_up.until_copied(bed, "").await?;
    let shown = is_told_of(bed, &planned).await?;
    bed.say(format!("{shown:?}"));
    ensure!(Timestamp::now() < closes.timestamp(), "the machine is too busy: the window has closed before");
    bed.eventually("the window has closed", OPEN + TO_NOTICE, || async {
        Ok((Timestamp::now() <= closes.timestamp()).then(|| format!("it closes at {closes}")))
    })
    .await?;
    held_up.end(bed).await?;
    nothing_moves(bed, "OutsideWindow", &next(&opens.checked_add(1.day())?), left - 1).await?;
    are_made(bed, &planned, 1).await?;

    // The rest follows in the next one.
    automatic(window(&opens, Duration::from_hours(1))).await?;
    bed.condition(BALANCED, "balanced in a window", TO_NOTICE, |found| found.status == "True").await?;
    are_made(bed, &planned, planned.steps.len()).await?;
    until_halved(bed, SHARDS, TO_NOTICE).await
}

/// A window that opens then, every day.
fn window(opens: &Zoned, duration: Duration) -> Value {
    json!({
        "schedule": format!("{} {} * * *", opens.minute(), opens.hour()),
        "duration": format!("{}s", duration.as_secs()),
        "timeZone": ZONE,
    })
}

/// What is said outside of windows.
fn next(opens: &Zoned) -> String {
    format!("the next window opens at {}", opens.timestamp())
}

/// Somebody moves all shards of messages to one worker; how many have to go back.
async fn make_uneven(bed: &Bed) -> Result<usize> {
    // The shards that left the worker are stored there until they are taken away, and cannot come before.
    bed.eventually("nothing is left of earlier moves", TO_NOTICE, || async {
        let left = bed.sql(Group::Coordinator, "SELECT count(*) FROM pg_dist_cleanup").await?;
        Ok((left != "0").then_some(left))
    })
    .await?;
    let (old, new) = (bed.names.host(OLD), bed.names.host(NEW));
    let there = format!(
        "SELECT shardid FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
         WHERE logicalrelid = 'public.messages'::regclass AND nodename = '{new}'"
    );
    let shards = bed.sql(Group::Coordinator, &there).await?;
    for shard in shards.lines() {
        let back = format!(
            "SELECT citus_move_shard_placement({shard}, source.nodeid, target.nodeid, 'block_writes')
             FROM pg_dist_node AS source, pg_dist_node AS target
             WHERE source.nodename = '{new}' AND target.nodename = '{old}'"
        );
        bed.sql(Group::Coordinator, &back).await?;
    }
    let moved = shards.lines().count();
    ensure!(moved == usize::try_from(SHARDS)? / 2, "{moved} shards were moved by hand");
    Ok(moved)
}

/// Shards of messages on the old worker.
async fn on_old(bed: &Bed) -> Result<usize> {
    let count = format!(
        "SELECT count(*) FROM citus_shards WHERE table_name = 'public.messages'::regclass AND nodename = '{}'",
        bed.names.host(OLD)
    );
    Ok(bed.sql(Group::Coordinator, &count).await?.parse()?)
}

/// Makes sure that `moves` are planned and none is made, with this reason and message of the condition; returns the plan.
async fn nothing_moves(bed: &Bed, reason: &str, says: &str, moves: usize) -> Result<PlanStatus> {
    bed.condition(BALANCED, reason, TO_NOTICE, |found| {
        found.reason == reason && found.message.contains(says)
    })
    .await?;
    let before = placements(bed).await?;
    let (code, text) = plan(bed, &["--output", "json"]).await?;
    let planned: PlanStatus = serde_json::from_str(&text)?;
    ensure!(code == 2 && planned.steps.len() == moves, "{code}, and not {moves} moves: {text}");
    ensure!(planned.steps.iter().all(|step| step.to == NEW.to_string()), "{planned:?}");
    // Another generation has another round, which sees what the one of this condition has begun.
    let cluster = bed.all::<DialogCluster>().get(CLUSTER).await?;
    let generation = cluster.metadata.generation.context("an object without a generation")?;
    let other = format!("{}s", 600 + generation);
    bed.patch(json!({"sharding": {"rebalance": {"stallTimeout": other}}})).await?;
    let known = |found: &Condition| found.observed_generation > Some(generation) && found.status != "Unknown";
    let found = bed.condition(BALANCED, "looked at again", TO_NOTICE, known).await?;
    ensure!(found.reason == reason && found.message.contains(says), "{}: {}", found.reason, found.message);
    ensure!(placements(bed).await? == before, "a shard was moved although {reason}");
    Ok(planned)
}

/// Makes sure that of the moves of `planned` the first ones are made, and no other.
async fn are_made(bed: &Bed, planned: &PlanStatus, made: usize) -> Result<()> {
    let asked = "SELECT shardid || ' ' || nodename FROM pg_dist_placement JOIN pg_dist_node USING (groupid)";
    let rows = bed.sql(Group::Coordinator, asked).await?;
    let places: BTreeMap<&str, &str> = rows.lines().filter_map(|row| row.split_once(' ')).collect();
    for (number, step) in planned.steps.iter().enumerate() {
        let at = if number < made { &step.to } else { &step.from };
        let host = bed.names.host(Group::parse(at).context("no group")?);
        let found = places.get(step.shard.to_string().as_str()).copied();
        ensure!(found == Some(host.as_str()), "{made} are made: {step:?} is at {found:?}");
    }
    Ok(())
}

/// What the status says of the first move of `planned`, which is under way with everything copied.
async fn is_told_of(bed: &Bed, planned: &PlanStatus) -> Result<RebalanceStatus> {
    let shown = |cluster: &DialogCluster| cluster.status.as_ref()?.rebalance.clone();
    // Bytes have arrived, and from what was seen of that the end is foreseen. It is held up in this phase.
    let is_foreseen = |shown: &RebalanceStatus| {
        let [now] = &shown.current[..] else { return false };
        now.phase == "Final Catchup" && now.bytes_done > 0 && shown.eta.is_some()
    };
    let told = |cluster: &DialogCluster| shown(cluster).is_some_and(|shown| is_foreseen(&shown));
    let cluster = bed.until("told of", OPEN, told).await?;
    let shown = shown(&cluster).context("it was there a moment ago")?;
    let (now, first) = (&shown.current[0], &planned.steps[0]);
    ensure!((now.shard_id, &now.from, &now.to) == (first.shard, &first.from, &first.to), "{shown:?}");
    ensure!(now.bytes_total > 0, "{shown:?}");
    let (begun, left) = (shown.moves_done, usize::try_from(shown.moves_total - shown.moves_done)?);
    ensure!(begun == 0 && left == planned.steps.len() && shown.bytes_done == 0, "{shown:?}");
    let times = shown.started_at.as_ref().zip(shown.last_progress_at.as_ref()).zip(shown.eta.as_ref());
    let ((started, last), end) = times.with_context(|| format!("times are missing: {shown:?}"))?;
    // An end is foreseen in whole seconds.
    let [started, last, end] = [started, last, end].map(|Time(at)| at.as_second());
    ensure!(started <= last && last <= end, "{shown:?}");
    Ok(shown)
}

/// The request for a rebalance that was answered last.
async fn handled(bed: &Bed) -> Result<Option<String>> {
    let cluster = bed.all::<DialogCluster>().get(CLUSTER).await?;
    Ok(cluster.status.and_then(|status| status.last_handled_rebalance))
}
