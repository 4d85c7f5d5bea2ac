//! Takes away the groups that have left: their StatefulSets and, with them, pods and volumes.
//!
//! A volume goes with its StatefulSet by Kubernetes' own rule (`whenDeleted: Delete`), so the deletion is one call that
//! cannot be done by halves. The rule is set only once the databases have said that the group holds nothing, and they are
//! asked again, under the topology lock, immediately before the call.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tracing::info;

use super::certificates::identity;
use super::observe::Observed;
use super::target::Target;
use crate::condition::CLUSTER_MANAGER;
use crate::context::Context;
use crate::error::Error;
use crate::names::{Group, Names};
use crate::shards::retire::{retire, stays};
use crate::shards::sessions::Sessions;
use crate::shards::topology::Topology;

/// Groups whose databases are asked at the same time.
const PARALLEL: usize = 16;

/// What is done next to take away what is left of a group that is not asked for, once it holds nothing: each is safe
/// to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Removal {
    /// Have its volumes go with its StatefulSet.
    LetVolumesFollow,
    /// Wait until Kubernetes has taken note of that on every claim.
    AwaitOwners,
    /// Delete the StatefulSet, and with it pods and volumes.
    DeleteStatefulSet,
    /// Delete its certificate, and the state that Patroni keeps of it.
    Forget,
}

impl Removal {
    /// All, in their order.
    pub const ALL: [Self; 4] =
        [Self::LetVolumesFollow, Self::AwaitOwners, Self::DeleteStatefulSet, Self::Forget];

    /// What is next for `group`; `None` where nothing is left of it, or while Kubernetes is deleting that.
    #[must_use]
    pub fn next(observed: &Observed, group: Group) -> Option<Self> {
        let Some(there) = observed.groups.get(&group) else {
            let mut kept = observed.orphaned_certificates().chain(observed.orphaned_state());
            return kept.any(|(of, _)| of == group).then_some(Self::Forget);
        };
        let belongs = |owner: &Option<String>| owner.is_some() && *owner == there.uid;
        let mut claims = observed.claims.get(&group).into_iter().flatten();
        Some(if !there.volumes_follow {
            Self::LetVolumesFollow
        } else if claims.all(|(_, claim)| belongs(&claim.owner)) {
            Self::DeleteStatefulSet
        } else {
            Self::AwaitOwners
        })
    }
}

/// Deletes what is kept of groups without a StatefulSet, pod or volume: the certificates of those that are not asked for, which
/// nobody is to use any more, and the state that Patroni keeps. That speaks of a database that is no more, and a group that
/// comes back would wait for it.
///
/// # Errors
/// If the API server refuses.
pub async fn forget(context: &Context, target: &Target, observed: &Observed) -> Result<(), Error> {
    let names = &target.names;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), names.namespace());
    for (_, name) in observed.orphaned_certificates().filter(|(group, _)| target.is_surplus(*group)) {
        info!(%name, namespace = names.namespace(), "deleting the certificate of a group that is gone");
        let deleted = secrets.delete(name, &DeleteParams::default()).await;
        absent_is_fine(deleted.map(drop), || format!("Secret {name}"))?;
    }
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), names.namespace());
    for (_, name) in observed.orphaned_state() {
        info!(%name, namespace = names.namespace(), "forgetting the state of a database that is gone");
        let deleted = maps.delete(name, &DeleteParams::default()).await;
        absent_is_fine(deleted.map(drop), || format!("ConfigMap {name}"))?;
    }
    Ok(())
}

/// Takes the next step for each group that is not asked for any more, whose databases listen where `topology` says; why
/// the ones that stay do.
///
/// # Errors
/// If the API server refuses, or the coordinator cannot be asked.
pub async fn step(
    context: &Context,
    target: &Target,
    observed: &Observed,
    topology: Topology,
) -> Result<Vec<String>, Error> {
    let surplus: BTreeSet<Group> =
        observed.groups.keys().copied().filter(|group| target.is_surplus(*group)).collect();
    let names = &target.names;
    let name = names.operator_certificate();
    let Some(secret) = observed.secrets.get(&name).filter(|secret| secret.data.is_some()) else {
        return Ok(Vec::new());
    };
    if surplus.is_empty() {
        return Ok(Vec::new());
    }
    let identity = identity(secret).map_err(|source| Error::Identity { secret: name, source })?;
    let sessions = Sessions::new(topology, identity);
    // The highest leaves first. All are asked side by side: one that does not answer takes seconds.
    let asked: Vec<(Group, Option<String>)> = stream::iter(surplus.into_iter().rev())
        .map(async |group| {
            let stay = stays(&sessions, group, observed.may_have_database(group)).await;
            (group, stay.map(|stay| stay.message))
        })
        .buffered(PARALLEL)
        .collect()
        .await;
    let mut stay = Vec::new();
    for (group, mut why) in asked {
        if why.is_none() {
            let delete = async || remove(context, names, observed, group).await;
            why = retire(&sessions, group, observed.may_have_database(group), delete).await?;
        }
        stay.extend(why.map(|why| format!("{group} stays: {why}")));
    }
    Ok(stay)
}

/// Has the volumes follow the StatefulSet; once Kubernetes has taken note of that, deletes it.
async fn remove(context: &Context, names: &Names, observed: &Observed, group: Group) -> Result<(), Error> {
    let sets: Api<StatefulSet> = Api::namespaced(context.client.clone(), names.namespace());
    let name = names.group(group);
    let object = || format!("StatefulSet {name}");
    match Removal::next(observed, group) {
        Some(Removal::LetVolumesFollow) => {
            let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}});
            let patched = sets.patch(&name, &PatchParams::default(), &Patch::Merge(&policy)).await;
            absent_is_fine(patched.map(drop), object)
        }
        Some(Removal::DeleteStatefulSet) => {
            info!(%group, namespace = names.namespace(), manager = CLUSTER_MANAGER, "deleting a group that holds nothing any more");
            let uid = observed.groups.get(&group).and_then(|there| there.uid.clone());
            let this = Preconditions { uid, resource_version: None };
            let deleted = sets.delete(&name, &DeleteParams::foreground().preconditions(this)).await;
            absent_is_fine(deleted.map(drop), object)
        }
        Some(Removal::AwaitOwners | Removal::Forget) | None => Ok(()),
    }
}

fn absent_is_fine(result: kube::Result<()>, object: impl FnOnce() -> String) -> Result<(), Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result.map_err(Error::kubernetes("delete", object())),
    }
}
