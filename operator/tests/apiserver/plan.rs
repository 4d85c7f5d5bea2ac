//! `dialog-operator plan`, the program itself: what pipelines see of it is its exit code.

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogClusterStatus, PlanStatus, PlannedMove, RebalanceStrategy, Threshold};
use dialog_operator::condition::{BALANCED, Finding, Holds, SHARDS_MANAGER};
use dialog_operator::status;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::process::Command;

use crate::bed::Bed;
use crate::needs_apiserver;

/// The exit code, and what it prints and complains of.
async fn plan(bed: &Bed) -> Result<(i32, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_dialog-operator"))
        .args(["plan", "chat", "--namespace", &bed.namespace])
        .env("KUBECONFIG", bed.kubeconfig())
        .output()
        .await?;
    let text = format!("{}{}", String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok((output.status.code().context("it was killed")?, text))
}

/// Writes what the operator says after it has looked at the spec of this generation.
async fn say(
    bed: &Bed,
    generation: Option<i64>,
    (holds, reason): (Holds, &'static str),
    plan: Option<PlanStatus>,
) -> Result<()> {
    let balanced = Finding::new(BALANCED, holds, reason, "because");
    let conditions = vec![balanced.into_condition(&[], generation, Timestamp::now())];
    let status = DialogClusterStatus { plan, conditions, ..DialogClusterStatus::default() };
    let status = serde_json::to_value(status)?;
    status::apply(&bed.context, &bed.namespace, "chat", None, SHARDS_MANAGER, status).await?;
    Ok(())
}

#[tokio::test]
async fn the_program_exits_with_what_is_known_of_the_latest_spec() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("plan").await?;
    let (code, text) = plan(&bed).await?;
    ensure!(code == 1 && text.contains("cannot read DialogCluster plan/chat"), "{code}: {text}");
    bed.apply("chat", &json!({"workers": {"count": 2}})).await?;
    let (code, text) = plan(&bed).await?;
    ensure!(code == 1 && text.contains("has not looked at this cluster's shards yet"), "{code}: {text}");

    let step = PlannedMove {
        number: 1,
        shard: 102_008,
        from: "worker-0".into(),
        to: "worker-1".into(),
        bytes: 1 << 20,
        wave: 1,
        cause: "balance".into(),
    };
    let moves = PlanStatus {
        hash: "00ff00ff00ff00ff".into(),
        moves: 1,
        bytes: 1 << 20,
        over: vec![],
        strategy: Some(RebalanceStrategy::BySize),
        threshold: Some(Threshold::new("0.1")),
        steps: vec![step],
    };
    let generation = bed.clusters().get("chat").await?.metadata.generation;
    for (said, moves, expected) in [
        ((Holds::True, "Balanced"), None, 0),
        ((Holds::False, "AwaitingApproval"), Some(moves), 2),
        ((Holds::False, "WorkersMissing"), None, 2),
        ((Holds::Unknown, "NotObserved"), None, 1),
        ((Holds::True, "Balanced"), None, 0),
    ] {
        say(&bed, generation, said, moves).await?;
        let (code, text) = plan(&bed).await?;
        ensure!(code == expected && text.contains(said.1), "{said:?}: {code}: {text}");
    }
    // The count is changed, and the status says what held before.
    bed.apply("chat", &json!({"workers": {"count": 4}})).await?;
    let (code, text) = plan(&bed).await?;
    ensure!(code == 1 && text.contains("the spec has changed"), "{code}: {text}");
    Ok(())
}
