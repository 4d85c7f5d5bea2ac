//! What single objects of Kubernetes tell.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::{Claim, ObservedApi, ObservedGroup};
use crate::condition::CLUSTER_MANAGER;
use crate::names::{GROUP_LABEL, Group};

/// The annotation of a claim by which the scheduler asks for a volume where the node can reach it.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The group that an object is of, by its label.
pub fn group_of(object: &impl ResourceExt) -> Option<Group> {
    Group::parse(object.labels().get(GROUP_LABEL)?)
}

/// When somebody other than us wrote to an object last.
pub fn written_by_patroni(map: &ConfigMap) -> Option<Timestamp> {
    let fields = map.metadata.managed_fields.iter().flatten();
    let others = fields.filter(|fields| fields.manager.as_deref() != Some(CLUSTER_MANAGER));
    others.filter_map(|fields| fields.time.as_ref().map(|time| time.0)).max()
}

/// What a StatefulSet says of its group.
pub fn stateful_set(set: &StatefulSet) -> ObservedGroup {
    let status = set.status.as_ref();
    // Until its controller has seen this generation, the status speaks of an older one.
    let seen = status.filter(|status| status.observed_generation == set.metadata.generation);
    ObservedGroup {
        replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        revision: seen.and_then(|status| status.update_revision.clone()),
        uid: set.metadata.uid.clone(),
        created: set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        volumes_follow: set
            .spec
            .as_ref()
            .and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref())
            .is_some_and(|policy| policy.when_deleted.as_deref() == Some("Delete")),
        ..ObservedGroup::default()
    }
}

/// Whether a claim has its volume.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// What a claim says of itself, and what `complaints` say of it.
pub fn volume_claim(claim: &PersistentVolumeClaim, complaints: &BTreeMap<String, String>) -> Claim {
    let failure = claim.uid().and_then(|uid| complaints.get(&uid).cloned());
    Claim {
        name: claim.name_any(),
        failure: failure.filter(|_| !is_bound(claim)),
        bound: is_bound(claim),
        has_node: claim.annotations().contains_key(SELECTED_NODE),
        class: claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()),
        owner: claim
            .owner_references()
            .iter()
            .find(|owner| owner.kind == "StatefulSet")
            .map(|owner| owner.uid.clone()),
        created: claim.metadata.creation_timestamp.as_ref().map(|time| time.0),
        is_terminating: claim.metadata.deletion_timestamp.is_some(),
    }
}

/// What the Deployment of dialog-api says.
pub fn api(deployment: &Deployment) -> ObservedApi {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return ObservedApi { replicas, ..ObservedApi::default() } };
    ObservedApi {
        replicas,
        available: status.available_replicas.unwrap_or(0),
        creation_failure: status.conditions.iter().flatten().find_map(|condition| {
            let fails = condition.type_ == "ReplicaFailure" && condition.status == "True";
            fails.then(|| condition.message.clone().unwrap_or_default())
        }),
        current: status.observed_generation == deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) == replicas
            && status.replicas.unwrap_or(0) == replicas,
    }
}
