//! What the pods of one database group may do, asked of the API server itself, and what becomes of these rights.

use anyhow::{Result, ensure};
use dialog_operator::names::{Group, Names};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::bed::{Bed, eventually};
use crate::controller::{Running, until_ready_says};
use crate::needs_apiserver;

/// Whether pods of `group` may do `verb` to an object; to all of the kind if `name` is empty.
async fn may(bed: &Bed, group: Group, verb: &str, resource: &str, name: &str) -> Result<bool> {
    let account = Names::new("chat", &*bed.namespace).group(group);
    let attributes = ResourceAttributes {
        namespace: Some(bed.namespace.clone()),
        verb: Some(verb.to_owned()),
        resource: Some(resource.to_owned()),
        name: Some(name.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{}:{account}", bed.namespace)),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::all(bed.client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[tokio::test]
async fn a_group_can_do_what_patroni_needs_and_nothing_to_another_group() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("rights").await?;
    let spec = json!({ "coordinator": { "instances": 2 }, "workers": { "count": 2 } });
    bed.apply("chat", &spec).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "Creating").await?;
    let worker = Group::Worker(0);
    // The API server learns of a new Role by a watch.
    eventually("the rights", async || {
        Ok(may(&bed, worker, "patch", "pods", "chat-worker-0-0").await?.then_some(()))
    })
    .await?;

    for (verb, resource, name) in [
        ("list", "pods", ""),
        ("watch", "pods", ""),
        ("list", "configmaps", ""),
        ("watch", "configmaps", ""),
        ("get", "configmaps", "chat-worker-0-leader"),
        ("patch", "configmaps", "chat-worker-0-config"),
        ("patch", "configmaps", "chat-worker-0-leader"),
        ("patch", "configmaps", "chat-worker-0-failover"),
        ("patch", "configmaps", "chat-worker-0-sync"),
    ] {
        ensure!(may(&bed, worker, verb, resource, name).await?, "may not {verb} {resource} {name}");
    }
    for (verb, resource, name) in [
        ("patch", "configmaps", "chat-coordinator-leader"),
        ("patch", "configmaps", "chat-worker-1-leader"),
        ("patch", "configmaps", "chat-patroni"),
        ("delete", "configmaps", "chat-worker-0-leader"),
        ("create", "configmaps", ""),
        ("patch", "pods", "chat-coordinator-0"),
        ("patch", "pods", "chat-worker-1-0"),
        ("delete", "pods", "chat-worker-0-0"),
        ("get", "secrets", "chat-worker-0-tls"),
        ("list", "secrets", ""),
        ("patch", "services", "chat-worker-0"),
    ] {
        ensure!(!may(&bed, worker, verb, resource, name).await?, "may {verb} {resource} {name}");
    }
    ensure!(may(&bed, Group::Coordinator, "patch", "pods", "chat-coordinator-1").await?, "the standby");
    controller.stop().await
}

#[tokio::test]
async fn the_rights_the_state_and_the_certificate_of_a_group_go_with_it() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("surplus").await?;
    bed.apply("chat", &json!({ "workers": { "count": 2 } })).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "Creating").await?;
    bed.apply("chat", &json!({ "workers": { "count": 1 } })).await?;
    let sets: Api<StatefulSet> = Api::namespaced(bed.client.clone(), &bed.namespace);
    ensure!(sets.get_opt("chat-worker-1").await?.is_some(), "a smaller count deletes a group");
    // Somebody's own, with the labels of the group.
    let maps: Api<ConfigMap> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let config = maps.get("chat-worker-1-config").await?;
    let metadata = ObjectMeta {
        name: Some("dashboards".to_owned()),
        labels: config.metadata.labels.clone(),
        ..ObjectMeta::default()
    };
    let own = ConfigMap { metadata: metadata.clone(), ..ConfigMap::default() };
    maps.create(&PostParams::default(), &own).await?;
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), &bed.namespace);
    secrets.create(&PostParams::default(), &Secret { metadata, ..Secret::default() }).await?;
    let left = eventually("the end of the rights", async || {
        // A reconciliation that saw it before may have made it anew.
        if sets.get_opt("chat-worker-1").await?.is_some() {
            sets.delete("chat-worker-1", &DeleteParams::default()).await?;
        }
        let mut left = bed.versions::<ServiceAccount>().await?;
        left.extend(bed.versions::<Role>().await?);
        left.extend(bed.versions::<RoleBinding>().await?);
        left.extend(bed.versions::<Service>().await?);
        Ok((!left.keys().any(|name| name.contains("chat-worker-1"))).then_some(left))
    })
    .await?;
    for name in ["ServiceAccount chat-worker-0", "Role chat-worker-0", "RoleBinding chat-worker-0"] {
        ensure!(left.contains_key(name), "{name} is missing in {:?}", left.keys());
    }
    // Nobody has a database of it any more, so nobody is to wait for one.
    eventually("the end of Patroni's state", async || {
        let kept = bed.versions::<ConfigMap>().await?;
        Ok((!kept.contains_key("ConfigMap chat-worker-1-config")).then_some(()))
    })
    .await?;
    ensure!(
        bed.versions::<ConfigMap>().await?.contains_key("ConfigMap dashboards"),
        "somebody's own was deleted"
    );
    let secrets = eventually("the end of its certificate", async || {
        let kept = bed.versions::<Secret>().await?;
        Ok((!kept.contains_key("Secret chat-worker-1-tls")).then_some(kept))
    })
    .await?;
    for name in
        ["Secret dashboards", "Secret chat-worker-0-tls", "Secret chat-coordinator-tls", "Secret chat-ca"]
    {
        ensure!(secrets.contains_key(name), "{name} is missing in {:?}", secrets.keys());
    }
    controller.stop().await
}
