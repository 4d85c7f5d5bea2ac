//! The servers of a cluster: what a StatefulSet's controller, a kubelet and Patroni would say of them, said by hand.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::{CLUSTER_LABEL, GROUP_LABEL, ROLE_LABEL};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::bed::Bed;

/// The servers of the cluster `chat`, one in each group.
pub struct Servers<'a> {
    bed: &'a Bed,
    /// The pods that were made.
    made: BTreeSet<String>,
    /// The pods that were deleted and made anew, in order.
    pub replaced: Vec<String>,
    /// Whether pods that are missing are made.
    pub make: bool,
    /// Whether pods that are made get ready.
    pub get_ready: bool,
}

impl<'a> Servers<'a> {
    /// None yet.
    pub fn of(bed: &'a Bed) -> Self {
        Self { bed, made: BTreeSet::new(), replaced: Vec::new(), make: true, get_ready: true }
    }

    /// Says which template each StatefulSet has now, makes the pods that are missing, and has those that are there get ready.
    /// Fails if more than one that was there is missing: an update takes one at a time.
    pub async fn go_on(&mut self) -> Result<()> {
        let sets: Api<StatefulSet> = Api::namespaced(self.bed.client.clone(), &self.bed.namespace);
        let pods: Api<Pod> = Api::namespaced(self.bed.client.clone(), &self.bed.namespace);
        let labelled = ListParams::default().labels(&format!("{CLUSTER_LABEL}=chat"));
        let mut missing = Vec::new();
        for set in sets.list(&labelled).await? {
            let group = set.labels().get(GROUP_LABEL).context("a StatefulSet is of a group")?;
            let revision = revision(&set)?;
            self.tell_revision(&sets, &set, &revision).await?;
            let name = format!("{}-0", set.name_any());
            let there = pods.get_opt(&name).await?;
            if let Some(pod) = there {
                if self.get_ready && !is_ready(&pod) {
                    get_ready(&pods, &name).await?;
                }
                continue;
            }
            if !self.make {
                continue;
            }
            self.lead(group, &name).await?;
            pods.create(&PostParams::default(), &pod(&name, group, &revision)?).await?;
            if !self.made.insert(name.clone()) {
                missing.push(name);
            }
        }
        ensure!(missing.len() < 2, "deleted at the same time: {missing:?}");
        self.replaced.extend(missing);
        Ok(())
    }

    /// What the StatefulSet's controller says once it has seen a template.
    async fn tell_revision(&self, sets: &Api<StatefulSet>, set: &StatefulSet, revision: &str) -> Result<()> {
        let generation = set.metadata.generation;
        let is_said = set.status.as_ref().is_some_and(|said| {
            said.observed_generation == generation && said.update_revision.as_deref() == Some(revision)
        });
        if !is_said {
            let status = json!({ "status": {
                "observedGeneration": generation, "updateRevision": revision, "replicas": 1,
            } });
            sets.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await?;
        }
        Ok(())
    }

    /// What Patroni writes once `pod` has made the database of `group` and leads it.
    async fn lead(&self, group: &str, pod: &str) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.bed.client.clone(), &self.bed.namespace);
        let patroni = PatchParams { field_manager: Some("Patroni".to_owned()), ..PatchParams::default() };
        for (map, annotation, value) in
            [("config", "initialize", "7300000000000000000"), ("leader", "leader", pod)]
        {
            let change = json!({ "metadata": { "annotations": { annotation: value } } });
            maps.patch(&format!("chat-{group}-{map}"), &patroni, &Patch::Merge(&change)).await?;
        }
        Ok(())
    }
}

/// Names a template, as the StatefulSet's controller does.
fn revision(set: &StatefulSet) -> Result<String> {
    let template = &set.spec.as_ref().context("a StatefulSet has a spec")?.template;
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(template)?.hash(&mut hasher);
    Ok(format!("{:x}", hasher.finish()))
}

/// A primary that starts, of the template `revision`.
fn pod(name: &str, group: &str, revision: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {
                CLUSTER_LABEL: "chat", GROUP_LABEL: group, ROLE_LABEL: "primary", "controller-revision-hash": revision,
            },
            "annotations": { "status": json!({ "state": "running", "role": "primary" }).to_string() },
        },
        "spec": { "containers": [{ "name": "postgres", "image": "example.org/postgres:1" }] },
    }))?)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn get_ready(pods: &Api<Pod>, name: &str) -> Result<()> {
    let now = Timestamp::now();
    let ready: Value = json!({ "status": {
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
        "containerStatuses": [{
            "name": "postgres", "image": "example.org/postgres:1", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": now } },
        }],
    } });
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&ready)).await?;
    Ok(())
}
