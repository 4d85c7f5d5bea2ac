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
async fn retained_volumes_stay_and_are_adopted_with_what_is_on_them() -> Result<()> {
    let bed = Bed::new("retained").await?;
    let groups: Vec<_> = [Group::Coordinator, Group::Worker(0)]
        .into_iter()
        .take(if Bed::has_citus() { 2 } else { 1 })
        .collect();
    let claims: Vec<_> =
        groups.iter().map(|group| format!("PersistentVolumeClaim {}", bed.names.claim(*group, 0))).collect();
    let create = |reclaim: &'static str| {
        bed.create(Bed::workers(), move |spec| {
            spec["coordinator"]["storage"]["reclaim"] = json!(reclaim);
            spec["workers"]["storage"]["reclaim"] = json!(reclaim);
        })
    };
    create("Retain").await?;
    bed.ready().await?;
    let (ada, grace, message) = bed.talk()?;
    let before = systems(&bed, &groups).await?;
    bed.delete().await?;
    bed.eventually("nothing but the retained volumes is left", TO_COLLECT, || async {
        let left = left(&bed).await?;
        Ok((left != claims).then(|| left.join(", ")))
    })
    .await?;

    create("Delete").await?;
    bed.ready().await?;
    bed.still_listed(&ada, &grace, &message)?;
    let after = systems(&bed, &groups).await?;
    ensure!(after == before, "these are other databases: {before:?}, now {after:?}");
    bed.delete().await?;
    bed.eventually("nothing is left", TO_COLLECT, || async {
        let left = left(&bed).await?;
        Ok((!left.is_empty()).then(|| left.join(", ")))
    })
    .await?;
    bed.done();
    Ok(())
}

/// What PostgreSQL calls the databases of the groups: each initdb gives another name.
async fn systems(bed: &Bed, groups: &[Group]) -> Result<Vec<String>> {
    let mut systems = Vec::new();
    for group in groups {
        systems.push(bed.sql(*group, "SELECT system_identifier FROM pg_control_system()").await?);
    }
    Ok(systems)
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
