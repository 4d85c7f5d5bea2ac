//! Defaults, the scale subresource, and a status that two controllers share.

use anyhow::{Result, ensure};
use dialog_operator::api::{DialogCluster, DialogClusterStatus, NodeState, NodeStatus, Phase};
use dialog_operator::condition::{self, BALANCED, Finding, READY};
use dialog_operator::status::{self, Part};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::bed::Bed;
use crate::needs_apiserver;

const ONE: Part = Part { manager: "one", fields: &["phase", "url"], conditions: &[READY] };
const OTHER: Part = Part { manager: "other", fields: &["shards", "nodes"], conditions: &[BALANCED] };

#[tokio::test]
async fn an_empty_spec_is_completed() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("defaults").await?;
    let written = bed.apply("chat", &json!({})).await?;
    let spec = &written.data["spec"];
    for (path, value) in [
        ("/workers/count", json!(2)),
        ("/workers/instances", json!(1)),
        ("/coordinator/instances", json!(1)),
        ("/coordinator/storage/size", json!("10Gi")),
        ("/workers/storage/reclaim", json!("Retain")),
        ("/sharding/shardCount", json!(48)),
        ("/sharding/rebalance/mode", json!("Automatic")),
        ("/sharding/rebalance/strategy", json!("BySize")),
        ("/sharding/rebalance/threshold", json!("0.1")),
        ("/sharding/rebalance/maxParallelMoves", json!(1)),
        ("/sharding/rebalance/stallTimeout", json!("10m")),
        ("/api/replicas", json!(2)),
        ("/paused", json!(false)),
        ("/deletionProtection", json!(false)),
    ] {
        ensure!(spec.pointer(path) == Some(&value), "{path} is {:?} in {spec}", spec.pointer(path));
    }
    // The list of dialog-api's tables may grow with a version; an object must not hold today's.
    ensure!(spec["sharding"].get("tables").is_none(), "{spec}");
    let read = bed.clusters().get("chat").await?;
    ensure!(serde_json::to_value(&read.spec)? == *spec, "what is read is not what was written");
    Ok(())
}

#[tokio::test]
async fn workers_can_be_scaled() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("scale").await?;
    bed.apply("chat", &json!({ "workers": { "count": 2 } })).await?;
    let clusters = bed.clusters();
    let scaled = json!({ "spec": { "replicas": 5 } });
    clusters.patch_scale("chat", &PatchParams::default(), &Patch::Merge(&scaled)).await?;
    ensure!(clusters.get("chat").await?.spec.workers.count == 5);
    let too_many = json!({ "spec": { "replicas": 100 } });
    let refused = clusters.patch_scale("chat", &PatchParams::default(), &Patch::Merge(&too_many)).await;
    ensure!(refused.is_err(), "100 workers were accepted");
    Ok(())
}

async fn write(bed: &Bed, part: Part, status: DialogClusterStatus, finding: Finding) -> Result<bool> {
    let cluster = bed.clusters().get("chat").await?;
    Ok(status::write(&bed.context, &cluster, part, &status, vec![finding]).await?)
}

async fn current(bed: &Bed) -> Result<(DialogCluster, DialogClusterStatus)> {
    let cluster = bed.clusters().get("chat").await?;
    let status = cluster.status.clone().unwrap_or_default();
    Ok((cluster, status))
}

#[tokio::test]
async fn two_controllers_keep_out_of_each_others_status() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("status").await?;
    bed.apply("chat", &json!({})).await?;
    let ready = || Finding::new(READY, true, "Ready", "all serves");
    let balanced = || Finding::new(BALANCED, false, "Uneven", "moves are planned");
    let node = NodeStatus {
        group: "coordinator".into(),
        host: "chat-coordinator.status.svc".into(),
        state: NodeState::Active,
        shards: 48,
        bytes: Some(1),
    };
    let mine =
        DialogClusterStatus { phase: Some(Phase::Ready), url: Some("http://a".into()), ..Default::default() };
    let theirs = DialogClusterStatus { shards: Some(48), nodes: vec![node], ..Default::default() };

    ensure!(write(&bed, ONE, mine.clone(), ready()).await?);
    ensure!(write(&bed, OTHER, theirs.clone(), balanced()).await?);
    let (first, status) = current(&bed).await?;
    ensure!(
        (status.phase, status.shards, status.nodes.len()) == (Some(Phase::Ready), Some(48), 1),
        "{status:?}"
    );
    ensure!(status.conditions.len() == 2);

    // The same again writes nothing, so nobody is woken for nothing.
    ensure!(!write(&bed, ONE, mine.clone(), ready()).await?);
    ensure!(!write(&bed, OTHER, theirs, balanced()).await?);
    ensure!(current(&bed).await?.0.metadata.resource_version == first.metadata.resource_version);

    // What one does not say any more is gone; what the other says stays.
    ensure!(write(&bed, ONE, DialogClusterStatus { url: None, ..mine }, ready()).await?);
    let (_, status) = current(&bed).await?;
    ensure!((status.url, status.shards) == (None, Some(48)));
    ensure!(condition::find(&status.conditions, BALANCED).is_some_and(|found| found.reason == "Uneven"));
    Ok(())
}

#[tokio::test]
async fn each_transition_is_an_event() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("events").await?;
    bed.apply("chat", &json!({})).await?;
    let status = DialogClusterStatus::default;
    for _ in 0..2 {
        write(&bed, ONE, status(), Finding::new(READY, true, "Ready", "all serves")).await?;
    }
    write(&bed, ONE, status(), Finding::new(READY, false, "NoPrimary", "chat-worker-0 has no primary"))
        .await?;
    let events: Api<Event> = Api::namespaced(bed.client.clone(), "events");
    let mut seen: Vec<_> = events
        .list(&ListParams::default())
        .await?
        .into_iter()
        .map(|event| {
            (event.reason.unwrap_or_default(), event.type_.unwrap_or_default(), event.series.is_some())
        })
        .collect();
    seen.sort();
    let expected = [("NoPrimary", "Warning", false), ("Ready", "Normal", false)];
    ensure!(
        seen == expected.map(|(reason, kind, series)| (reason.to_owned(), kind.to_owned(), series)),
        "{seen:?}"
    );
    Ok(())
}
