//! What it takes to delete a cluster, and what stays.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::DialogCluster;
use dialog_operator::names::Group;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use crate::bed::{Bed, CLUSTER};

/// How long Kubernetes may take to collect what has no owner any more.
const TO_COLLECT: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_to_be_retained_stays() -> Result<()> {
    if Bed::lacks_citus() {
        return Ok(());
    }
    let bed = Bed::new("deleted").await?;
    bed.create(1, |spec| spec["coordinator"]["storage"]["reclaim"] = json!("Retain")).await?;
    bed.ready().await?;
    bed.delete().await?;
    let retained = format!("PersistentVolumeClaim {}", bed.names.claim(Group::Coordinator, 0));
    bed.eventually("nothing but the retained volume is left", TO_COLLECT, || async {
        let left = left(&bed).await?;
        Ok((left != [retained.clone()]).then(|| left.join(", ")))
    })
    .await?;
    bed.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_cluster_is_not_deleted() -> Result<()> {
    let bed = Bed::new("protected").await?;
    // Paused, because what happens to the object is the point.
    bed.create(0, |spec| {
        spec["deletionProtection"] = json!(true);
        spec["paused"] = json!(true);
    })
    .await?;
    let refused = bed.delete().await.err().context("a protected cluster is deleted")?;
    let sentence = format!("spec.deletionProtection is true, so DialogCluster {CLUSTER} is not deleted");
    ensure!(refused.to_string().contains(&sentence), "{refused}");
    let all = bed.all::<DialogCluster>();
    let refused = all.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    ensure!(refused.is_err(), "a protected cluster is deleted with its collection");
    ensure!(all.get(CLUSTER).await?.metadata.deletion_timestamp.is_none(), "the object is being deleted");
    bed.patch(json!({"deletionProtection": false})).await?;
    bed.delete().await?;
    bed.done();
    Ok(())
}

/// Every object of the cluster that there is.
async fn left(bed: &Bed) -> Result<Vec<String>> {
    let left = [
        bed.left::<StatefulSet>().await?,
        bed.left::<Deployment>().await?,
        bed.left::<Pod>().await?,
        bed.left::<Service>().await?,
        bed.left::<Ingress>().await?,
        bed.left::<ConfigMap>().await?,
        bed.left::<Secret>().await?,
        bed.left::<ServiceAccount>().await?,
        bed.left::<Role>().await?,
        bed.left::<RoleBinding>().await?,
        bed.left::<PodDisruptionBudget>().await?,
        bed.left::<PersistentVolumeClaim>().await?,
    ];
    Ok(left.concat())
}
