//! A growth that waits for somebody's word: what was approved is what runs, and what ran can be checked. What others ask for,
//! or the clock, goes on with the cluster that this leaves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{PlanStatus, PlannedMove};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::windows;
use crate::bed::{Bed, CLUSTER, TO_NOTICE};

/// How long the count, or a plan that was approved, may take to come true.
const TO_SCALE: Duration = Duration::from_mins(10);
/// Shards of each table: a few moves say as much as many.
pub(super) const SHARDS: i32 = 4;
/// How a worker is called that has come.
const NEW: &str = "worker-1";
/// A plan that nobody has made.
const WRONG: &str = "ffffffffffffffff";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_before_it_is_approved_and_then_that_list() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("approval").await?;
    bed.create(1, |spec| spec["sharding"] = json!({"shardCount": SHARDS, "rebalance": {"mode": "Approve"}}))
        .await?;
    bed.ready().await?;
    bed.condition(BALANCED, "balanced", TO_NOTICE, |found| found.status == "True").await?;
    let (code, text) = plan(&bed, &[]).await?;
    ensure!(code == 0 && text.starts_with("nothing to move"), "{code}: {text}");

    bed.kubectl(&["scale", "dlg", CLUSTER, "--replicas=2"])?;
    // From here on there is something to do, or nobody knows: whoever waits does not go on.
    bed.eventually("a plan waits for approval", TO_SCALE, || async {
        let (code, text) = plan(&bed, &[]).await?;
        ensure!(code != 0, "the growth was taken for done: {text}");
        Ok((!text.contains("AwaitingApproval")).then_some(text))
    })
    .await?;
    let (code, text) = plan(&bed, &["--output", "json"]).await?;
    ensure!(code == 2, "{code}: {text}");
    let planned: PlanStatus = serde_json::from_str(&text)?;
    let numbers: Vec<i32> = planned.steps.iter().map(|step| step.number).collect();
    ensure!(numbers == (1..).take(numbers.len()).collect::<Vec<i32>>(), "{planned:?}");
    ensure!(planned.steps.len() >= 2 && planned.steps.iter().all(|step| step.to == NEW), "{planned:?}");
    ensure!(hash(&planned.steps) == planned.hash, "{planned:?}");

    let before = placements(&bed).await?;
    approve(&bed, WRONG)?;
    let outdated = |reason: &str| reason == "ApprovalOutdated";
    let found = bed.condition(BALANCED, "another plan", TO_NOTICE, |found| outdated(&found.reason)).await?;
    ensure!(found.message.contains(WRONG) && found.message.contains(&planned.hash), "{}", found.message);
    let (code, text) = plan(&bed, &[]).await?;
    ensure!(code == 2 && text.contains(&planned.hash), "{code}: {text}");
    ensure!(placements(&bed).await? == before, "a plan that nobody has made was carried out");

    approve(&bed, &planned.hash)?;
    let handled = |cluster: &dialog_operator::api::DialogCluster| {
        let handled = cluster.status.as_ref().and_then(|status| status.last_handled_rebalance.as_deref());
        handled == Some(planned.hash.as_str())
    };
    bed.until("carried out", TO_SCALE, handled).await?;
    bed.condition(BALANCED, "balanced again", TO_NOTICE, |found| found.status == "True").await?;
    let (code, text) = plan(&bed, &[]).await?;
    ensure!(code == 0, "{code}: {text}");

    let events = bed.all::<Event>().list(&ListParams::default()).await?;
    let announced = |event: &Event| {
        event.reason.as_deref() == Some("MovesPlanned")
            && event.note.as_ref().is_some_and(|note| note.starts_with(&format!("plan {}: ", planned.hash)))
    };
    ensure!(events.iter().filter(|event| announced(event)).count() == 1, "it was not announced once");
    for what in ["begun", "done"] {
        let told = told(&bed, what, &planned.hash).await?;
        let list = |steps: &[PlannedMove]| -> Vec<(i32, i64, String, String)> {
            steps.iter().map(|step| (step.number, step.shard, step.from.clone(), step.to.clone())).collect()
        };
        ensure!(list(&told) == list(&planned.steps), "{what}: {told:?}, and not {:?}", planned.steps);
        ensure!(hash(&told) == planned.hash, "{what}: {told:?}");
    }
    windows::a_rebalance_is_made_once_for_who_asks(&bed).await?;
    windows::moves_begin_in_windows_only(&bed).await?;
    bed.talk()?;
    bed.done();
    Ok(())
}

/// What `dialog-operator plan` exits with, and what it prints and complains of.
pub(super) async fn plan(bed: &Bed, arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_dialog-operator"))
        .args(["plan", CLUSTER, "--namespace", bed.names.namespace()])
        .args(arguments)
        .output()
        .await?;
    let text = format!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok((output.status.code().context("it was killed")?, text))
}

/// Approves the plan of this name.
fn approve(bed: &Bed, hash: &str) -> Result<()> {
    let annotation = format!("dialogcluster.io/approve-plan={hash}");
    bed.kubectl(&["annotate", "--overwrite", "dlg", CLUSTER, &annotation])?;
    Ok(())
}

/// Where every shard is.
pub(super) async fn placements(bed: &Bed) -> Result<String> {
    bed.sql(Group::Coordinator, "SELECT shardid, groupid FROM pg_dist_placement ORDER BY 1, 2").await
}

/// The name of a list of moves, as anybody makes it.
fn hash(steps: &[PlannedMove]) -> String {
    let lines = steps.iter().map(|step| format!("{} {} {}\n", step.shard, step.from, step.to));
    let digest = Sha256::digest(lines.collect::<String>());
    digest.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The moves of the plan that Events tell of, by their numbers: `begun: move shard 1 from a to b (move 1 of plan x): 0 of 2 moves
/// and 0 B made, 43 MiB left`, and those that are done with how much was copied in what time before that (`: 21.4 MiB in 3.2 s; `).
async fn told(bed: &Bed, what: &str, hash: &str) -> Result<Vec<PlannedMove>> {
    let of = format!(" of plan {hash})");
    let mut told = Vec::new();
    for event in bed.all::<Event>().list(&ListParams::default()).await? {
        let note = event.note.filter(|_| event.reason.as_deref() == Some("MoveShard")).unwrap_or_default();
        let Some(text) = note.strip_prefix(&format!("{what}: move shard ")) else { continue };
        let (text, figures) = text.split_once(": ").unwrap_or((text, ""));
        let (copied, far) = figures.split_once("; ").unwrap_or(("", figures));
        ensure!((what == "done") == (copied.contains("B in ") && copied.ends_with(" s")), "{note}");
        ensure!(far.contains(" moves and ") && far.contains(" made, ") && far.contains(" left"), "{note}");
        let words = text.strip_suffix(&of).with_context(|| format!("of no plan, or another: {note}"))?;
        let [shard, "from", from, "to", to, "(move", number] = words.split(' ').collect::<Vec<_>>()[..]
        else {
            anyhow::bail!("{note}");
        };
        told.push(PlannedMove {
            number: number.parse()?,
            shard: shard.parse()?,
            from: from.to_owned(),
            to: to.to_owned(),
            bytes: 0,
            wave: 0,
            cause: String::new(),
        });
    }
    told.sort_by_key(|step| step.number);
    Ok(told)
}
