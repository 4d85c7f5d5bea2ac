//! What stands in the way of a cluster is named, and gone when it is gone. The parts of Kubernetes that are not here are
//! spoken for by hand.

use anyhow::{Context as _, Result, ensure};
use dialog_operator::condition::{self, READY};
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::bed::{Bed, eventually};
use crate::controller::{Running, until_ready_says};
use crate::needs_apiserver;

async fn create<K>(api: Api<K>, object: Value) -> Result<K>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// The message with which `Ready` has this reason.
async fn message(bed: &Bed, reason: &str) -> Result<String> {
    let status = until_ready_says(bed, "chat", reason).await?.status.unwrap_or_default();
    Ok(condition::find(&status.conditions, READY).map(|ready| ready.message.clone()).unwrap_or_default())
}

#[tokio::test]
async fn a_full_storage_class_is_named_until_it_has_room() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("full").await?;
    let storage = json!({ "storage": { "className": "full" } });
    bed.apply("chat", &json!({ "workers": { "count": 0 }, "coordinator": storage })).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "Creating").await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let name = "data-chat-coordinator-0";
    let claim = create(
        claims.clone(),
        json!({
            "metadata": {
                "name": name,
                "labels": { "dialogcluster.io/cluster": "chat", "dialogcluster.io/group": "coordinator" },
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "full",
                "resources": { "requests": { "storage": "1Gi" } },
            },
        }),
    )
    .await?;
    let events: Api<Event> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let complaint = |event: &str, uid: Option<String>, text: &str| {
        json!({
            "metadata": { "name": event }, "reason": "ProvisioningFailed", "message": text, "type": "Warning",
            "involvedObject": {
                "kind": "PersistentVolumeClaim", "namespace": bed.namespace, "name": name, "uid": uid,
            },
        })
    };
    create(events.clone(), complaint("earlier", Some("another".to_owned()), "of an earlier claim")).await?;
    create(events, complaint("now", claim.uid(), "not enough free space in pool fast")).await?;

    let missing = message(&bed, "StorageClassMissing").await?;
    ensure!(missing.contains("StorageClass full"), "{missing}");
    let class = json!({ "metadata": { "name": "full" }, "provisioner": "example.org/pool" });
    create::<StorageClass>(Api::all(bed.client.clone()), class).await?;
    let full = message(&bed, "VolumeNotProvisioned").await?;
    ensure!(full.contains("not enough free space in pool fast") && full.contains(name), "{full}");

    let bound = json!({ "status": { "phase": "Bound" } });
    claims.patch_status(name, &PatchParams::default(), &Patch::Merge(&bound)).await?;
    until_ready_says(&bed, "chat", "Creating").await?;
    controller.stop().await
}

#[tokio::test]
async fn memory_that_does_not_suffice_changes_nothing_and_is_named() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("memory").await?;
    let spec = |buffers: &str| {
        json!({
            "workers": { "count": 0 },
            "coordinator": { "resources": { "limits": { "memory": "1Gi" } } },
            "postgres": { "parameters": { "shared_buffers": buffers } },
        })
    };
    bed.apply("chat", &spec("2GB")).await?;
    let controller = Running::start(&bed);
    let text = message(&bed, "MemoryTooSmall").await?;
    ensure!(text.contains("spec.coordinator.resources.limits.memory is 1Gi"), "{text}");
    ensure!(bed.versions::<ConfigMap>().await?.keys().all(|name| !name.contains("chat-")), "it was built");
    bed.apply("chat", &spec("256MB")).await?;
    until_ready_says(&bed, "chat", "Creating").await?;
    controller.stop().await
}

#[tokio::test]
async fn a_database_whose_making_was_interrupted_is_made_anew() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("interrupted").await?;
    bed.apply("chat", &json!({ "workers": { "count": 0 } })).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "Creating").await?;
    // As Patroni 4.1.5 leaves it when it is killed during initdb, and reports after that.
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let report = json!({ "state": "stopped", "role": "uninitialized", "version": "4.1.5" });
    create(
        pods.clone(),
        json!({
            "metadata": {
                "name": "chat-coordinator-0",
                "labels": { "dialogcluster.io/cluster": "chat", "dialogcluster.io/group": "coordinator" },
                "annotations": { "status": report.to_string() },
            },
            "spec": { "containers": [{ "name": "postgres", "image": "example.org/postgres:1" }] },
        }),
    )
    .await?;
    let runs = json!({ "status": { "containerStatuses": [{
        "name": "postgres", "image": "example.org/postgres:1", "imageID": "", "ready": false, "restartCount": 1,
        "state": { "running": { "startedAt": "2026-03-01T00:00:00Z" } },
    }] } });
    pods.patch_status("chat-coordinator-0", &PatchParams::default(), &Patch::Merge(&runs)).await?;
    let maps: Api<ConfigMap> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let name = "chat-coordinator-config";
    let key = json!({ "metadata": { "annotations": { "initialize": "" } } });
    let patroni = PatchParams { field_manager: Some("Patroni".to_owned()), ..PatchParams::default() };
    maps.patch(name, &patroni, &Patch::Merge(&key)).await?;
    eventually("the end of the key", async || {
        let map = maps.get(name).await?;
        Ok((!map.annotations().contains_key("initialize")).then_some(()))
    })
    .await?;

    // With the sign that there was a primary, it is left alone, and somebody is asked to look.
    let led = json!({ "metadata": { "annotations": { "acquireTime": "2026-03-01T00:00:00Z" } } });
    maps.patch("chat-coordinator-leader", &patroni, &Patch::Merge(&led)).await?;
    maps.patch(name, &patroni, &Patch::Merge(&key)).await?;
    let text = message(&bed, "DatabaseNotMade").await?;
    ensure!(text.contains("chat-coordinator-0") && text.contains(name), "{text}");
    let left = maps.get(name).await?.annotations().get("initialize").cloned();
    ensure!(left.context("the key was taken away")?.is_empty());
    controller.stop().await
}
