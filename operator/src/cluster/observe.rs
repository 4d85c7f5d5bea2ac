//! What there is of a cluster in Kubernetes. Reads only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Error;
use crate::names::{BEGUN_ANEW, CLUSTER_LABEL, Group, Names};

use super::build::config_maps::PATRONI_STATE;
use super::certificates::Secrets;
use super::instance::Instance;
use complaints::Attempts;
use objects::{api, group_of, is_bound, stateful_set, volume_claim, written_by_patroni};

mod complaints;
mod objects;

/// The annotation of StorageClasses and IngressClasses that are taken where none is named.
const DEFAULT_STORAGE_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_INGRESS_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The groups that have a StatefulSet.
    pub groups: BTreeMap<Group, ObservedGroup>,
    /// The Secrets by name.
    pub secrets: Secrets,
    /// The volume claims of instances.
    pub claims: BTreeMap<Group, BTreeMap<i32, Claim>>,
    /// dialog-api's Deployment.
    pub api: Option<ObservedApi>,
    /// The pods of dialog-api.
    pub api_pods: Vec<Instance>,
    /// The IngressClasses.
    pub ingress_classes: Classes,
    /// The StorageClasses.
    pub storage_classes: Classes,
    /// The groups whose StatefulSet is being deleted.
    pub leaving: BTreeSet<Group>,
    /// The groups that have pods, with a StatefulSet or without.
    pub with_pods: BTreeSet<Group>,
    /// The names of the ConfigMaps in which Patroni keeps each group's state.
    pub state: BTreeMap<Group, Vec<String>>,
    /// The names of the Secrets with the groups' certificates.
    pub certificates: BTreeMap<Group, String>,
}

/// A database group.
#[derive(Clone, Debug, Default)]
pub struct ObservedGroup {
    /// Instances that its StatefulSet asks for.
    pub replicas: i32,
    /// The revision of pods that are up to date; absent while the StatefulSet was not seen by its controller.
    pub revision: Option<String>,
    /// Its pods by ordinal.
    pub instances: Vec<Instance>,
    /// What Patroni wrote once the database existed: its system identifier.
    pub system_identifier: Option<String>,
    /// The pod that holds Patroni's lock.
    pub leader: Option<String>,
    /// The standbys that have everything that was acknowledged, by Patroni; empty where nothing waits for standbys.
    pub synchronous: BTreeSet<String>,
    /// When Patroni's dynamic configuration was written last.
    pub configured: Option<Timestamp>,
    /// Patroni's dynamic configuration.
    pub configuration: Option<Value>,
    /// The version of the ConfigMap of both, so that nothing is changed there that was not seen.
    pub configuration_version: Option<String>,
    /// When the interrupted making of the database was given up, so that it begins anew.
    pub begun_anew: Option<Timestamp>,
    /// Whether an instance has ever held Patroni's lock.
    pub has_led: bool,
    /// Why its StatefulSet cannot create pods.
    pub creation_failure: Option<String>,
    /// Its StatefulSet's UID.
    pub uid: Option<String>,
    /// When its StatefulSet was made.
    pub created: Option<Timestamp>,
    /// Its volumes are deleted with the StatefulSet.
    pub volumes_follow: bool,
}

impl ObservedGroup {
    /// Whether the group's database was made.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.system_identifier.as_ref().is_some_and(|identifier| !identifier.is_empty())
    }

    /// Whether there are fewer pods than its StatefulSet asks for.
    #[must_use]
    pub fn lacks_pods(&self) -> bool {
        i32::try_from(self.instances.len()).is_ok_and(|count| count < self.replicas)
    }

    /// Whether a pod is of an older template than its StatefulSet has now.
    #[must_use]
    pub fn is_outdated(&self, pod: &str) -> bool {
        let instance = self.instances.iter().find(|instance| instance.pod == pod);
        self.revision.is_some()
            && instance.is_some_and(|found| !found.is_terminating && found.revision != self.revision)
    }

    /// The primary: the instance that holds Patroni's lock and knows it.
    ///
    /// During a switchover the old primary's label is out of date for a moment, so the label alone says nothing.
    #[must_use]
    pub fn primary(&self) -> Option<&Instance> {
        self.instances.iter().find(|instance| {
            instance.is_primary && !instance.is_terminating && self.leader.as_ref() == Some(&instance.pod)
        })
    }
}

/// A volume claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Whether it has a volume.
    pub bound: bool,
    /// The class it asks for.
    pub class: Option<String>,
    /// Whether the scheduler has chosen a node for its volume, and waits for the provisioner now.
    pub has_node: bool,
    /// Why its volume cannot be made.
    pub failure: Option<String>,
    /// The UID of the StatefulSet that it is deleted with.
    pub owner: Option<String>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// It is being deleted.
    pub is_terminating: bool,
}

/// dialog-api's Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedApi {
    /// Pods that are asked for.
    pub replicas: i32,
    /// Pods that serve.
    pub available: i32,
    /// Whether all pods are of the newest revision, and its controller has seen that revision.
    pub current: bool,
    /// Why its pods cannot be created.
    pub creation_failure: Option<String>,
}

/// Classes of something, of which one may be the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// Their names.
    pub names: BTreeSet<String>,
    /// The one that is taken where none is named.
    pub default: Option<String>,
}

impl Observed {
    /// Whether what is left of a group is still being deleted: until that is over, it cannot be made anew.
    #[must_use]
    pub fn is_leaving(&self, group: Group) -> bool {
        let uid = self.groups.get(&group).and_then(|group| group.uid.as_ref());
        // A claim that goes with a StatefulSet that is gone is deleted at any moment.
        let goes = |claim: &Claim| {
            claim.is_terminating || claim.owner.as_ref().is_some_and(|owner| Some(owner) != uid)
        };
        self.leaving.contains(&group)
            || !self.groups.contains_key(&group)
                && (self.claims.get(&group).into_iter().flatten().any(|(_, claim)| goes(claim))
                    || self.with_pods.contains(&group))
    }

    /// Whether a group has no StatefulSet, pod or volume.
    fn is_gone(&self, group: Group) -> bool {
        !self.groups.contains_key(&group)
            && !self.leaving.contains(&group)
            && !self.with_pods.contains(&group)
            && !self.claims.contains_key(&group)
    }

    /// The groups that have no StatefulSet, pod or volume, and the names of their ConfigMaps.
    pub fn orphaned_state(&self) -> impl Iterator<Item = (Group, &str)> {
        self.state
            .iter()
            .filter(move |(group, _)| self.is_gone(**group))
            .flat_map(|(group, names)| names.iter().map(|name| (*group, name.as_str())))
    }

    /// The same groups, and the names of the Secrets with their certificates.
    pub fn orphaned_certificates(&self) -> impl Iterator<Item = (Group, &str)> {
        let certificates = self.certificates.iter().filter(move |(group, _)| self.is_gone(**group));
        certificates.map(|(group, name)| (*group, name.as_str()))
    }

    /// Whether a group's volumes may hold a database: one was made, or a volume is older than the StatefulSet.
    ///
    /// What Patroni reads from a volume says nothing of that: it may be unable to read what is there.
    #[must_use]
    pub fn may_have_database(&self, group: Group) -> bool {
        let Some(there) = self.groups.get(&group) else { return false };
        let is_new = |claim: &Claim| claim.created.is_some() && claim.created >= there.created;
        there.is_initialized()
            || !self.claims.get(&group).into_iter().flatten().all(|(_, claim)| is_new(claim))
    }

    /// How many instances of a group have a claim.
    #[must_use]
    pub fn claims_of(&self, group: Group) -> usize {
        self.claims.get(&group).map_or(0, BTreeMap::len)
    }

    /// The highest ordinal among a group's instances that have a claim.
    #[must_use]
    pub fn highest_claim(&self, group: Group) -> Option<i32> {
        self.claims.get(&group)?.last_key_value().map(|(ordinal, _)| *ordinal)
    }
}

/// Looks at everything that belongs to a cluster.
///
/// # Errors
/// If the API server does not answer.
pub async fn observe(client: &Client, names: &Names) -> Result<Observed, Error> {
    let list = Lister { client, names };
    let (sets, pods, maps, secrets, claims, deployments) = tokio::try_join!(
        list.all::<StatefulSet>(),
        list.all::<Pod>(),
        list.all::<ConfigMap>(),
        list.all::<Secret>(),
        list.all::<PersistentVolumeClaim>(),
        list.all::<Deployment>(),
    )?;
    let (ingress_classes, storage_classes) = tokio::try_join!(
        classes::<IngressClass>(client, DEFAULT_INGRESS_CLASS),
        classes::<StorageClass>(client, DEFAULT_STORAGE_CLASS)
    )?;
    // Somebody's own Secret with the labels of a group has another name.
    let certificate = |secret: &Secret| {
        let (group, name) = (group_of(secret)?, secret.name_any());
        (name == names.group_certificate(group)).then_some((group, name))
    };
    let mut observed = Observed {
        certificates: secrets.iter().filter_map(certificate).collect(),
        secrets: secrets.into_iter().map(|secret| (secret.name_any(), secret)).collect(),
        api: deployments.iter().find(|deployment| deployment.name_any() == names.api()).map(api),
        ingress_classes,
        storage_classes,
        ..Observed::default()
    };
    for set in &sets {
        if let Some(group) = group_of(set).filter(|group| names.group(*group) == set.name_any()) {
            if set.metadata.deletion_timestamp.is_some() {
                observed.leaving.insert(group);
            } else {
                observed.groups.insert(group, stateful_set(set));
            }
        }
    }
    for pod in &pods {
        let instance = Instance::from_pod(pod);
        match group_of(pod) {
            Some(group) => {
                observed.with_pods.insert(group);
                if let Some(group) = observed.groups.get_mut(&group) {
                    group.instances.push(instance);
                }
            }
            None => observed.api_pods.push(instance),
        }
    }
    for group in observed.groups.values_mut() {
        group.instances.sort_by_key(|instance| instance.ordinal);
    }
    if observed.groups.values().any(ObservedGroup::lacks_pods) {
        let complaints = list.complaints(complaints::PODS).await?;
        for set in &sets {
            let group = group_of(set).and_then(|group| observed.groups.get_mut(&group));
            if let Some(group) = group.filter(|group| group.lacks_pods()) {
                group.creation_failure = set.uid().and_then(|uid| complaints.get(&uid).cloned());
            }
        }
    }
    for map in &maps {
        let Some(name) = group_of(map) else { continue };
        // Somebody else's object may have our labels, and is not for us to delete.
        if PATRONI_STATE.iter().any(|what| map.name_any() == names.patroni_state(name, what)) {
            observed.state.entry(name).or_default().push(map.name_any());
        }
        let Some(group) = observed.groups.get_mut(&name) else { continue };
        let annotations = map.annotations();
        if map.name_any() == names.patroni_state(name, "config") {
            group.configured = written_by_patroni(map);
            group.configuration_version = map.resource_version();
            group.begun_anew = annotations.get(BEGUN_ANEW).and_then(|time| time.parse().ok());
            group.system_identifier = annotations.get("initialize").cloned();
            group.configuration = annotations.get("config").and_then(|text| serde_json::from_str(text).ok());
        } else if map.name_any() == names.patroni_state(name, "leader") {
            group.leader = annotations.get("leader").cloned();
            group.has_led =
                ["leader", "acquireTime", "optime"].iter().any(|key| annotations.contains_key(*key));
        } else if map.name_any() == names.patroni_state(name, "sync") {
            let standbys = annotations.get("sync_standby").map(String::as_str).unwrap_or_default();
            group.synchronous =
                standbys.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        }
    }
    let complaints = if claims.iter().all(is_bound) {
        BTreeMap::new()
    } else {
        list.complaints(complaints::VOLUMES).await?
    };
    for claim in &claims {
        let Some(group) = group_of(claim) else { continue };
        if let Some(ordinal) = names.ordinal_of_claim(group, &claim.name_any()) {
            let claim = volume_claim(claim, &complaints);
            observed.claims.entry(group).or_default().insert(ordinal, claim);
        }
    }
    Ok(observed)
}

struct Lister<'a> {
    client: &'a Client,
    names: &'a Names,
}

impl Lister<'_> {
    /// The objects of one kind that carry the cluster's label.
    async fn all<K>(&self) -> Result<Vec<K>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), self.names.namespace());
        let selector = format!("{CLUSTER_LABEL}={}", self.names.cluster());
        let found = api
            .list(&ListParams::default().labels(&selector))
            .await
            .map_err(Error::kubernetes("list", format!("{}s with {selector}", K::kind(&()))))?;
        Ok(found.items)
    }

    /// What the last attempts failed for, by the object's UID.
    async fn complaints(&self, attempts: Attempts) -> Result<BTreeMap<String, String>, Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), self.names.namespace());
        let kind = attempts.kind;
        let found = api
            .list(&ListParams::default().fields(&format!("involvedObject.kind={kind}")))
            .await
            .map_err(Error::kubernetes("list", format!("Events of {kind}s")))?;
        Ok(complaints::last(attempts, found.items))
    }
}

/// The classes of one kind: a handful per Kubernetes cluster, so their metadata is read each time.
async fn classes<K>(client: &Client, default: &str) -> Result<Classes, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let found = Api::<K>::all(client.clone())
        .list_metadata(&ListParams::default())
        .await
        .map_err(Error::kubernetes("list", format!("{}s", K::kind(&()))))?;
    let defaults =
        found.iter().filter(|class| class.annotations().get(default).is_some_and(|is| is == "true"));
    // Of several, Kubernetes takes the newest, and of those the first by name.
    let default = defaults.max_by_key(|class| (class.creation_timestamp(), Reverse(class.name_any())));
    Ok(Classes {
        default: default.map(ResourceExt::name_any),
        names: found.iter().map(ResourceExt::name_any).collect(),
    })
}

#[cfg(test)]
mod tests;
