//! The controller of Kubernetes objects against a real API server. Nothing runs pods, so clusters do not get ready;
//! but everything is created, owned, reported, and left alone once it is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogCluster, Phase};
use dialog_operator::cluster::Controller;
use dialog_operator::condition::{self, CERTIFICATES_VALID, READY};
use dialog_operator::reconcile;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, CustomResourceExt, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bed::{Bed, LIMIT, eventually};
use crate::needs_apiserver;

/// The controller, running in a namespace.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub fn start(bed: &Bed) -> Self {
        let stop = CancellationToken::new();
        let controller = Arc::new(Controller::new(bed.context.clone()));
        let related = Controller::related(&bed.context);
        let task = tokio::spawn(reconcile::run(controller, bed.context.clone(), related, stop.clone()));
        Self { stop, task }
    }

    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.task).await.context("it does not stop")??;
        Ok(())
    }
}

pub fn spec() -> Value {
    json!({
        "coordinator": { "instances": 2 },
        "workers": { "count": 1 },
        "api": { "ingress": { "host": "chat.example.org", "className": "nowhere" } },
    })
}

/// A condition's status and reason.
fn says(cluster: &DialogCluster, kind: &str) -> (String, String) {
    let conditions = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
    condition::find(conditions, kind)
        .map(|found| (found.status.clone(), found.reason.clone()))
        .unwrap_or_default()
}

pub async fn until_ready_says(bed: &Bed, name: &str, reason: &str) -> Result<DialogCluster> {
    let clusters = bed.clusters();
    eventually(&format!("Ready={reason} of {name}"), async || {
        let cluster = clusters.get(name).await?;
        Ok((says(&cluster, READY).1 == reason).then_some(cluster))
    })
    .await
}

pub async fn versions(bed: &Bed) -> Result<BTreeMap<String, String>> {
    let mut all = bed.versions::<Secret>().await?;
    for more in [
        bed.versions::<ConfigMap>().await?,
        bed.versions::<ServiceAccount>().await?,
        bed.versions::<Role>().await?,
        bed.versions::<RoleBinding>().await?,
        bed.versions::<Service>().await?,
        bed.versions::<StatefulSet>().await?,
        bed.versions::<Deployment>().await?,
        bed.versions::<Ingress>().await?,
        bed.versions::<PodDisruptionBudget>().await?,
        bed.versions::<DialogCluster>().await?,
    ] {
        all.extend(more);
    }
    Ok(all)
}

/// How often the controller has reconciled.
pub fn reconciliations(bed: &Bed) -> u64 {
    let text = bed.context.metrics.encode().unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with("dialog_operator_reconciliations_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test]
async fn everything_is_created_and_then_left_alone() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("created").await?;
    bed.apply("chat", &spec()).await?;
    let controller = Running::start(&bed);
    let cluster = until_ready_says(&bed, "chat", "IngressClassMissing").await?;
    let status = cluster.status.clone().unwrap_or_default();
    ensure!(status.phase == Some(Phase::Creating) && status.workers == Some(0), "{status:?}");
    ensure!(status.observed_generation == cluster.metadata.generation);
    ensure!(says(&cluster, CERTIFICATES_VALID) == ("True".to_owned(), "Valid".to_owned()));

    let created = versions(&bed).await?;
    for name in [
        "Secret chat-ca",
        "Secret chat-coordinator-tls",
        "Secret chat-worker-0-tls",
        "Secret chat-operator-tls",
        "Secret chat-api-tls",
        "Secret chat-api-token",
        "Secret chat-patroni-ca",
        "Secret chat-patroni-tls",
        "ConfigMap chat-patroni",
        "ConfigMap chat-coordinator-leader",
        "ServiceAccount chat-coordinator",
        "Role chat-coordinator",
        "RoleBinding chat-worker-0",
        "Service chat-coordinator",
        "Service chat-worker-0-ro",
        "Service chat-worker-0-nodes",
        "Service chat-api",
        "Service chat-api-peers",
        "StatefulSet chat-coordinator",
        "StatefulSet chat-worker-0",
        "Deployment chat-api",
        "Ingress chat-api",
        "PodDisruptionBudget chat-coordinator",
        "PodDisruptionBudget chat-api",
    ] {
        ensure!(created.contains_key(name), "{name} is missing in {:?}", created.keys());
    }

    // While it waits for pods that never come, it looks again at its pace, and writes nothing.
    let settled = settle(&bed).await?;
    let started = Instant::now();
    looks(&bed, 4).await?;
    let four = started.elapsed();
    ensure!(four >= Duration::from_secs(15), "4 reconciliations in {four:?} of waiting, not one in 5 s");
    ensure!(versions(&bed).await? == settled, "something was written without a reason");
    controller.stop().await
}

/// Waits until the controller has reconciled `more` times.
pub async fn looks(bed: &Bed, more: u64) -> Result<()> {
    let goal = reconciliations(bed) + more;
    eventually(&format!("{more} reconciliations"), async || Ok((reconciliations(bed) >= goal).then_some(())))
        .await
}

/// Waits until the controller looks twice and writes nothing: one look may have begun before.
pub async fn settle(bed: &Bed) -> Result<BTreeMap<String, String>> {
    let mut last = versions(bed).await?;
    eventually("rest", async || {
        looks(bed, 2).await?;
        let now = versions(bed).await?;
        let settled = now == last;
        last.clone_from(&now);
        Ok(settled.then_some(now))
    })
    .await
}

#[tokio::test]
async fn everything_belongs_to_the_cluster_except_what_is_retained() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("owned").await?;
    bed.apply("chat", &json!({ "workers": { "count": 1, "storage": { "reclaim": "Delete" } } })).await?;
    let controller = Running::start(&bed);
    let cluster = until_ready_says(&bed, "chat", "Creating").await?;
    let sets: Api<StatefulSet> = Api::namespaced(bed.client.clone(), &bed.namespace);
    for (name, deleted) in [("chat-coordinator", "Retain"), ("chat-worker-0", "Delete")] {
        let set = sets.get(name).await?;
        let owners = set.owner_references();
        ensure!(owners.len() == 1 && Some(&owners[0].uid) == cluster.metadata.uid.as_ref(), "{owners:?}");
        let spec = set.spec.context("a spec")?;
        let policy = spec.persistent_volume_claim_retention_policy.context("a policy")?;
        ensure!(policy.when_deleted.as_deref() == Some(deleted), "{name}: {policy:?}");
        let claims = spec.volume_claim_templates.unwrap_or_default();
        ensure!(
            claims.iter().all(|claim| claim.owner_references().is_empty()),
            "a claim would go with the cluster"
        );
    }
    controller.stop().await
}

#[tokio::test]
async fn what_was_deleted_or_changed_by_hand_is_restored() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("restored").await?;
    bed.apply("chat", &json!({ "workers": { "count": 0 } })).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "Creating").await?;
    let services: Api<Service> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let before = services.get("chat-coordinator").await?;
    services.delete("chat-coordinator", &DeleteParams::default()).await?;
    eventually("the Service", async || {
        let found = services.get_opt("chat-coordinator").await?;
        Ok(found.filter(|service| service.uid() != before.uid()))
    })
    .await?;

    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let broken = json!({ "data": { "tls.crt": "bm8gY2VydGlmaWNhdGU=" } });
    secrets.patch("chat-api-tls", &PatchParams::default(), &Patch::Merge(&broken)).await?;
    eventually("the certificate", async || {
        let data = secrets.get("chat-api-tls").await?.data.unwrap_or_default();
        let certificate = data.get("tls.crt").map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        Ok(certificate.filter(|text| text.contains("BEGIN CERTIFICATE")))
    })
    .await?;
    controller.stop().await
}

#[tokio::test]
async fn an_ingress_that_is_not_asked_for_any_more_goes() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("pruned").await?;
    bed.apply("chat", &spec()).await?;
    let stranger = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": { "name": "mine", "labels": { "dialogcluster.io/cluster": "chat" } },
        "spec": { "defaultBackend": { "service": { "name": "x", "port": { "number": 80 } } } },
    });
    let ingresses: Api<Ingress> = Api::namespaced(bed.client.clone(), &bed.namespace);
    ingresses.patch("mine", &PatchParams::apply("somebody"), &Patch::Apply(&stranger)).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "IngressClassMissing").await?;
    bed.apply("chat", &json!({ "coordinator": { "instances": 2 }, "workers": { "count": 1 } })).await?;
    eventually("the end of the Ingress", async || {
        Ok(ingresses.get_opt("chat-api").await?.is_none().then_some(()))
    })
    .await?;
    ensure!(ingresses.get_opt("mine").await?.is_some(), "somebody else's Ingress was deleted");
    controller.stop().await
}

#[tokio::test]
async fn a_name_that_is_somebody_elses_is_left_alone() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("taken").await?;
    let services: Api<Service> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let mine = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "chat-api" },
        "spec": { "ports": [{ "port": 9 }], "selector": { "app": "mine" } },
    });
    let before = services.patch("chat-api", &PatchParams::apply("somebody"), &Patch::Apply(&mine)).await?;
    bed.apply("chat", &json!({ "workers": { "count": 0 } })).await?;
    let controller = Running::start(&bed);
    let cluster = until_ready_says(&bed, "chat", "NameTaken").await?;
    let conditions = cluster.status.unwrap_or_default().conditions;
    let message = condition::find(&conditions, READY).map(|ready| ready.message.clone()).unwrap_or_default();
    ensure!(message.contains("Service chat-api"), "{message}");
    ensure!(services.get("chat-api").await? == before, "somebody else's Service was changed");
    ensure!(bed.versions::<StatefulSet>().await?.is_empty(), "something was written all the same");

    services.delete("chat-api", &DeleteParams::default()).await?;
    until_ready_says(&bed, "chat", "Creating").await?;
    controller.stop().await
}

#[tokio::test]
async fn a_paused_cluster_is_only_observed() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("paused").await?;
    bed.apply("chat", &json!({ "paused": true })).await?;
    let controller = Running::start(&bed);
    let clusters = bed.clusters();
    eventually("the phase", async || {
        let phase = clusters.get("chat").await?.status.and_then(|status| status.phase);
        Ok((phase == Some(Phase::Paused)).then_some(()))
    })
    .await?;
    let there = versions(&bed).await?;
    ensure!(there.keys().all(|name| !name.contains("chat-")), "{there:?}");
    bed.apply("chat", &json!({ "paused": false })).await?;
    until_ready_says(&bed, "chat", "Creating").await?;
    controller.stop().await
}

/// What a kubelet, a scheduler and a StatefulSet's controller would say, said by hand.
async fn pod(bed: &Bed, name: &str, group: &str, status: &Value) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), &bed.namespace);
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": { "dialogcluster.io/cluster": "chat", "dialogcluster.io/group": group },
        },
        "spec": { "containers": [{ "name": "postgres", "image": "example.org/postgres:1" }] },
    });
    let how = PatchParams::apply("kubelet").force();
    pods.patch(name, &how, &Patch::Apply(&object)).await?;
    let status = json!({ "apiVersion": "v1", "kind": "Pod", "status": status });
    pods.patch_status(name, &how, &Patch::Apply(&status)).await?;
    Ok(())
}

#[tokio::test]
async fn trouble_with_a_pod_becomes_a_reason_and_goes_with_its_cause() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("trouble").await?;
    bed.apply("chat", &json!({ "workers": { "count": 0 } })).await?;
    let controller = Running::start(&bed);
    until_ready_says(&bed, "chat", "Creating").await?;
    let waiting = |reason: &str| {
        json!({ "containerStatuses": [{
            "name": "postgres", "image": "example.org/postgres:1", "imageID": "", "ready": false, "restartCount": 3,
            "state": { "waiting": { "reason": reason, "message": "as it is" } },
        }] })
    };
    let unschedulable = json!({ "conditions": [
        { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available" },
    ] });
    for (status, reason) in [
        (waiting("ImagePullBackOff"), "ImagePullFailed"),
        (waiting("CrashLoopBackOff"), "CrashLooping"),
        (waiting("CreateContainerConfigError"), "ContainerNotCreated"),
        (unschedulable, "Unschedulable"),
        (waiting("ContainerCreating"), "Starting"),
    ] {
        pod(&bed, "chat-coordinator-0", "coordinator", &status).await?;
        let cluster = until_ready_says(&bed, "chat", reason).await?;
        let conditions = cluster.status.unwrap_or_default().conditions;
        let message =
            condition::find(&conditions, READY).map(|ready| ready.message.clone()).unwrap_or_default();
        ensure!(message.contains("chat-coordinator-0"), "{reason}: {message}");
    }
    controller.stop().await
}

#[tokio::test]
async fn one_malformed_object_does_not_stop_the_others() -> Result<()> {
    needs_apiserver!();
    // A definition that lets in what the program cannot read, as that of another version may; nobody else should see it.
    let bed = Bed::alone("malformed").await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(bed.client.clone());
    let (name, how) = (DialogCluster::crd_name(), PatchParams::apply("testbed").force());
    let mut lax = serde_json::to_value(DialogCluster::crd())?;
    let schema = &mut lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"] = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    // The rules over several fields are not valid without the fields.
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("x-kubernetes-validations");
    }
    definitions.patch(name, &how, &Patch::Apply(&lax)).await?;
    eventually("a malformed object", async || Ok(bed.apply("broken", &json!({ "image": 5 })).await.ok()))
        .await?;

    let controller = Running::start(&bed);
    eventually("a good object", async || Ok(bed.apply("chat", &json!({})).await.ok())).await?;
    until_ready_says(&bed, "chat", "Creating").await?;
    let untyped = bed.untyped();
    eventually("the report about the malformed object", async || {
        let object = untyped.get("broken").await?;
        let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.into_iter().find(|condition| condition["reason"] == "Malformed"))
    })
    .await?;
    ensure!(untyped.get("broken").await?.data["spec"]["image"] == json!(5));
    controller.stop().await
}
