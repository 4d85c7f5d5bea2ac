//! What stands in the way is named soon, waited for quietly, and gone when it is gone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::bed::{Bed, object};

/// How long the operator is watched while it waits.
const WATCHED: Duration = Duration::from_secs(20);
/// It may look once per this time and controller.
const PACE: Duration = Duration::from_secs(5);
/// The controllers of one process.
const CONTROLLERS: f64 = 2.0;

/// Reconciliations that the operator has ended, of both controllers.
async fn reconciliations(bed: &Bed) -> Result<f64> {
    let namespace = std::env::var("DIALOG_OPERATOR_NAMESPACE").unwrap_or_else(|_| "dialog-system".to_owned());
    let service =
        std::env::var("DIALOG_OPERATOR_DEPLOYMENT").unwrap_or_else(|_| "dialog-operator".to_owned());
    let path = format!("/api/v1/namespaces/{namespace}/services/{service}:http/proxy/metrics");
    let text = bed.client.request_text(http::Request::get(path).body(Vec::new())?).await?;
    let counters =
        text.lines().filter_map(|line| line.strip_prefix("dialog_operator_reconciliations_total{"));
    let values: Vec<f64> = counters.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    ensure!(!values.is_empty(), "the operator's metrics count no reconciliations:\n{text}");
    Ok(values.iter().sum())
}

/// The operator must not spin while it can only wait.
async fn assert_waits_quietly(bed: &Bed) -> Result<()> {
    let before = reconciliations(bed).await?;
    tokio::time::sleep(WATCHED).await;
    let count = reconciliations(bed).await? - before;
    // One more for each, because the interval begins anywhere.
    let allowed = CONTROLLERS * (WATCHED.as_secs_f64() / PACE.as_secs_f64() + 1.0);
    ensure!(count <= allowed, "{count} reconciliations in {} s of waiting", WATCHED.as_secs());
    println!("{count} reconciliations in {} s of waiting", WATCHED.as_secs());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled() -> Result<()> {
    let bed = Bed::new("image").await?;
    bed.create(0, |spec| spec["image"] = json!("registry.invalid/no/such/image:1")).await?;
    let condition = bed.refused(&["ImagePullFailed"]).await?;
    ensure!(condition.message.contains("registry.invalid/no/such/image:1"), "{}", condition.message);
    assert_waits_quietly(&bed).await?;
    bed.patch(json!({"image": null})).await?;
    bed.ready().await?;
    bed.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_class_that_does_not_exist() -> Result<()> {
    let bed = Bed::new("storage").await?;
    let name = bed.names.namespace().to_owned();
    bed.create(0, |spec| spec["coordinator"]["storage"]["className"] = json!(name)).await?;
    let condition = bed.refused(&["StorageClassMissing"]).await?;
    ensure!(condition.message.contains(&name), "{}", condition.message);
    let classes: Api<StorageClass> = Api::all(bed.client.clone());
    let standard = classes
        .list(&kube::api::ListParams::default())
        .await?
        .into_iter()
        .next()
        .context("this cluster has no StorageClass")?;
    let class: StorageClass = object(json!({
        "metadata": {"name": name},
        "provisioner": standard.provisioner,
        "volumeBindingMode": "WaitForFirstConsumer",
    }))?;
    classes.create(&PostParams::default(), &class).await?;
    let outcome = bed.ready().await;
    classes.delete(&name, &DeleteParams::default()).await?;
    outcome?;
    bed.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_no_node() -> Result<()> {
    let bed = Bed::new("placement").await?;
    let label = format!("dialogcluster.io/{}", bed.names.namespace());
    bed.create(0, |spec| spec["coordinator"]["placement"] = json!({"nodeSelector": {&label: "yes"}})).await?;
    bed.refused(&["Unschedulable"]).await?;
    let nodes: Api<Node> = Api::all(bed.client.clone());
    let node = nodes.list(&kube::api::ListParams::default()).await?.into_iter().next();
    let node = node.and_then(|node| node.metadata.name).context("this cluster has no node")?;
    let mark = |value: Option<&str>| Patch::Merge(json!({"metadata": {"labels": {&label: value}}}));
    nodes.patch(&node, &PatchParams::default(), &mark(Some("yes"))).await?;
    let outcome = bed.ready().await;
    nodes.patch(&node, &PatchParams::default(), &mark(None)).await?;
    outcome?;
    bed.done();
    Ok(())
}
