//! What the objects of a cluster are built from: the resource, checked and completed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::api::{DialogCluster, DialogClusterSpec, PlacementSpec, ResourcesSpec, StorageSpec};
use crate::context::{Pull, Settings};
use crate::names::{Group, Names};

use super::memory;
use super::observe::{Observed, ObservedGroup};

/// Everything that decides how a cluster's objects look, secrets aside.
#[derive(Clone, Debug)]
pub struct Target {
    /// The names of the objects.
    pub names: Names,
    /// The cluster, as the owner of all of them.
    pub owner: OwnerReference,
    /// What was asked for.
    pub spec: DialogClusterSpec,
    /// The image of the database.
    pub postgres_image: String,
    /// The image of dialog-api.
    pub api_image: String,
    /// How both are had.
    pub pull: Pull,
    /// The class of the Ingress: Kubernetes writes the default one only into a new object, so it is named.
    pub ingress_class: Option<String>,
    /// The groups that exist or are asked for.
    pub groups: BTreeMap<Group, GroupTarget>,
}

/// How a group is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupTarget {
    /// Instances that are to run now; not always as many as are asked for, see [`GroupTarget::new`].
    pub replicas: i32,
    /// Whether Patroni may make a new database if it finds none.
    pub bootstrap: bool,
    /// Whether its volumes were told to be deleted with its StatefulSet, because it is leaving.
    pub volumes_follow: bool,
}

/// What the resource says of one group.
#[derive(Clone, Copy, Debug)]
pub struct GroupSpec<'a> {
    /// Instances that are asked for.
    pub instances: i32,
    /// The volume of each.
    pub storage: &'a StorageSpec,
    /// CPU and memory of each.
    pub resources: &'a ResourcesSpec,
    /// Where they may run.
    pub placement: &'a PlacementSpec,
}

/// Why nothing can be built, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Target {
    /// Checks what the schema cannot, and completes the rest.
    ///
    /// # Errors
    /// If something is missing that only people can add.
    pub fn new(cluster: &DialogCluster, settings: &Settings, observed: &Observed) -> Result<Self, Refusal> {
        let image = |own: &Option<String>, default: &Option<String>, field: &str, flag: &str| {
            own.clone().or_else(|| default.clone()).ok_or_else(|| Refusal {
                reason: "ImageMissing",
                message: format!(
                    "{field} is not set and the operator was started without {flag}; set one of them"
                ),
            })
        };
        let spec = &cluster.spec;
        let postgres_image = image(&spec.image, &settings.postgres_image, "spec.image", "--postgres-image")?;
        let api_image = image(&spec.api.image, &settings.api_image, "spec.api.image", "--api-image")?;
        if let Some(message) = memory::excess(spec) {
            return Err(Refusal { reason: "MemoryTooSmall", message });
        }
        let owner = cluster.controller_owner_ref(&()).ok_or_else(|| Refusal {
            reason: "NotStored",
            message: "the object has no UID yet".to_owned(),
        })?;
        let desired =
            [Group::Coordinator].into_iter().chain((0..spec.workers.count.unsigned_abs()).map(Group::Worker));
        let groups: BTreeSet<Group> = desired
            .chain(observed.groups.keys().copied())
            .filter(|group| !observed.is_leaving(*group))
            .collect();
        Ok(Self {
            names: Names::new(cluster.name_any(), cluster.namespace().unwrap_or_default()),
            owner,
            spec: spec.clone(),
            postgres_image,
            api_image,
            pull: settings.pull.clone(),
            ingress_class: spec
                .api
                .ingress
                .as_ref()
                .and_then(|ingress| ingress.class_name.clone())
                .or_else(|| observed.ingress_classes.default.clone()),
            groups: groups
                .into_iter()
                .map(|group| {
                    let asked = group_spec(spec, group).instances;
                    let there = observed.groups.get(&group);
                    // Only groups that are not asked for are ever told so; one that is asked for again is told otherwise.
                    let surplus =
                        matches!(group, Group::Worker(number) if number >= spec.workers.count.unsigned_abs());
                    let volumes_follow = surplus && there.is_some_and(|there| there.volumes_follow);
                    let target = GroupTarget::new(asked, there, observed.highest_claim(group));
                    (group, GroupTarget { volumes_follow, ..target })
                })
                .collect(),
        })
    }

    /// Whether a group is not asked for.
    #[must_use]
    pub fn is_surplus(&self, group: Group) -> bool {
        matches!(group, Group::Worker(number) if number >= self.spec.workers.count.unsigned_abs())
    }

    /// What the resource says of a group.
    #[must_use]
    pub fn group(&self, group: Group) -> GroupSpec<'_> {
        group_spec(&self.spec, group)
    }
}

fn group_spec(spec: &DialogClusterSpec, group: Group) -> GroupSpec<'_> {
    match group {
        Group::Coordinator => GroupSpec {
            instances: spec.coordinator.instances,
            storage: &spec.coordinator.storage,
            resources: &spec.coordinator.resources,
            placement: &spec.coordinator.placement,
        },
        Group::Worker(_) => GroupSpec {
            instances: spec.workers.instances,
            storage: &spec.workers.storage,
            resources: &spec.workers.resources,
            placement: &spec.workers.placement,
        },
    }
}

impl GroupTarget {
    /// How a group of `asked` instances is to run, given what there is of it and the highest ordinal that has a
    /// claim.
    ///
    /// - Before the database exists, one instance runs, so that there is no race to make it.
    /// - Volumes that outlived an earlier cluster of the same name are adopted. If there are several, the newest data
    ///   may be on any of them: all of these instances start, and none may make a new database.
    /// - Instances are taken away, and their volumes with them, only while one that stays is certainly the primary.
    #[must_use]
    pub fn new(asked: i32, group: Option<&ObservedGroup>, highest_claim: Option<i32>) -> Self {
        let highest_claim = highest_claim.unwrap_or(0);
        if !group.is_some_and(ObservedGroup::is_initialized) {
            return Self {
                replicas: highest_claim + 1,
                bootstrap: highest_claim == 0,
                volumes_follow: false,
            };
        }
        let now = group.map_or(asked, |group| group.replicas);
        let stays = group.and_then(ObservedGroup::primary).is_some_and(|primary| {
            primary.is_ready && primary.ordinal < asked && primary.patroni.state == "running"
        });
        let replicas = if asked >= now || stays { asked } else { now };
        Self { replicas, bootstrap: true, volumes_follow: false }
    }
}
