//! A cluster at rest costs the API server reads only, and is put right when somebody changes it all the same.

use anyhow::{Result, ensure};
use dialog_operator::api::DialogCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::rbac::v1::Role;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::bed::{Bed, eventually};
use crate::controller::{Running, reconciliations, settle, spec, until_ready_says, versions};
use crate::needs_apiserver;

/// Reconciliations that are watched.
const ROUNDS: u64 = 3;

/// How often anything was applied but a status, by the API server's own count.
async fn applied(bed: &Bed) -> Result<u64> {
    let metrics = bed.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    let counters = metrics.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("verb=\"APPLY\"")
            && !line.contains("resource=\"dialogclusters\"")
    });
    Ok(counters.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

/// Has the controller look `times` times.
async fn look(bed: &Bed, times: u64) -> Result<()> {
    let clusters: Api<DialogCluster> = bed.clusters();
    for _ in 0..times {
        let before = reconciliations(bed);
        let wake = json!({ "metadata": { "annotations": { "example.org/looks": before.to_string() } } });
        clusters.patch("chat", &PatchParams::default(), &Patch::Merge(&wake)).await?;
        eventually("a reconciliation", async || Ok((reconciliations(bed) > before).then_some(()))).await?;
    }
    Ok(())
}

/// Nothing but the cluster itself, which [`look`] changes.
async fn objects(bed: &Bed) -> Result<Vec<(String, String)>> {
    let all = versions(bed).await?;
    Ok(all.into_iter().filter(|(name, _)| !name.starts_with("DialogCluster ")).collect())
}

#[tokio::test]
async fn at_rest_nothing_is_applied_and_a_change_by_hand_is_taken_back() -> Result<()> {
    needs_apiserver!();
    // Its own server, so that all that is counted is this controller's.
    let bed = Bed::alone("rest").await?;
    bed.apply("chat", &spec()).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "IngressClassMissing").await?;
    settle(&bed).await?;

    let (there, before) = (objects(&bed).await?, applied(&bed).await?);
    ensure!(before >= there.len() as u64 / 2, "{before} counted for {} objects", there.len());
    look(&bed, ROUNDS).await?;
    ensure!(applied(&bed).await? == before, "something was applied at rest");
    ensure!(objects(&bed).await? == there, "something was written at rest");
    controller.stop().await?;

    // What was applied is read from the objects: a new operator has nothing to write either.
    let controller = Running::start(&bed);
    look(&bed, 1).await?;
    ensure!(applied(&bed).await? == before, "a new operator applies what is there");

    change_and_see_it_restored(&bed).await?;
    let restored = applied(&bed).await?;
    ensure!(restored > before, "nothing was restored");
    look(&bed, 1).await?;
    ensure!(applied(&bed).await? == restored, "what was restored is applied again");
    controller.stop().await
}

/// Changes a value, an item of a list, a list as a whole, and takes away a field and a label.
async fn change_and_see_it_restored(bed: &Bed) -> Result<()> {
    let sets: Api<StatefulSet> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let services: Api<Service> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let roles: Api<Role> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let maps: Api<ConfigMap> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let scaled = json!({ "spec": { "replicas": 5 } });
    sets.patch_scale("chat-worker-0", &PatchParams::default(), &Patch::Merge(&scaled)).await?;
    restored(bed, &sets, "chat-worker-0", "/spec/replicas", &json!(1)).await?;
    let image = json!({ "spec": { "template": { "spec": {
        "containers": [{ "name": "postgres", "image": "example.org/other" }],
    } } } });
    sets.patch("chat-worker-0", &PatchParams::default(), &Patch::Strategic(&image)).await?;
    let path = "/spec/template/spec/containers/0/image";
    restored(bed, &sets, "chat-worker-0", path, &json!("example.org/postgres:1")).await?;
    let selector = json!({ "spec": { "selector": { "dialogcluster.io/group": "worker-7" } } });
    services.patch("chat-coordinator", &PatchParams::default(), &Patch::Merge(&selector)).await?;
    let path = "/spec/selector/dialogcluster.io~1group";
    restored(bed, &services, "chat-coordinator", path, &json!("coordinator")).await?;
    let replaced = json!({ "rules": [{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["*"] }] });
    roles.patch("chat-worker-0", &PatchParams::default(), &Patch::Merge(&replaced)).await?;
    restored(bed, &roles, "chat-worker-0", "/rules/0/resources/0", &json!("configmaps")).await?;
    let label = json!({ "metadata": { "labels": { "app.kubernetes.io/name": null } } });
    maps.patch("chat-worker-0-leader", &PatchParams::default(), &Patch::Merge(&label)).await?;
    let path = "/metadata/labels/app.kubernetes.io~1name";
    restored(bed, &maps, "chat-worker-0-leader", path, &json!("dialog")).await
}

/// Waits until a field of an object is `value`. Not all kinds are watched, so the controller is woken.
async fn restored<K>(bed: &Bed, api: &Api<K>, name: &str, path: &str, value: &Value) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    look(bed, 1).await?;
    eventually(&format!("{path} of {name}"), async || {
        let object = serde_json::to_value(api.get(name).await?)?;
        Ok((object.pointer(path) == Some(value)).then_some(()))
    })
    .await
}
