//! What stands in the way is named soon, waited for quietly, and gone when it is gone.

use std::collections::BTreeMap;
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

/// Reconciliations that the operator has ended, by controller.
async fn reconciliations(bed: &Bed) -> Result<BTreeMap<String, f64>> {
    let namespace = std::env::var("DIALOG_OPERATOR_NAMESPACE").unwrap_or_else(|_| "dialog-system".to_owned());
    let service =
        std::env::var("DIALOG_OPERATOR_DEPLOYMENT").unwrap_or_else(|_| "dialog-operator".to_owned());
    let path = format!("/api/v1/namespaces/{namespace}/services/{service}:http/proxy/metrics");
    let text = bed.client.request_text(http::Request::get(path).body(Vec::new())?).await?;
    let counters =
        text.lines().filter_map(|line| line.strip_prefix("dialog_operator_reconciliations_total{"));
    let mut by_controller = BTreeMap::new();
    for line in counters {
        let controller = line.split("controller=\"").nth(1).and_then(|rest| rest.split('"').next());
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
        let (Some(controller), Some(count)) = (controller, count) else { continue };
        *by_controller.entry(controller.to_owned()).or_default() += count;
    }
    ensure!(!by_controller.is_empty(), "the operator's metrics count no reconciliations:\n{text}");
    Ok(by_controller)
}

/// The operator must not spin while it can only wait.
async fn assert_waits_quietly(bed: &Bed) -> Result<()> {
    let before = reconciliations(bed).await?;
    tokio::time::sleep(WATCHED).await;
    // One more, because the interval begins anywhere.
    let allowed = WATCHED.as_secs_f64() / PACE.as_secs_f64() + 1.0;
    for (controller, after) in reconciliations(bed).await? {
        let count = after - before.get(&controller).copied().unwrap_or_default();
        // A counter that falls is that of another process: the operator has crashed.
        ensure!(
            (0.0..=allowed).contains(&count),
            "{controller}: {count} in {} s of waiting",
            WATCHED.as_secs()
        );
        println!("{controller}: {count} reconciliations in {} s of waiting", WATCHED.as_secs());
    }
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
