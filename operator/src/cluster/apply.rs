//! Writes the objects of a cluster by server-side apply, and takes away those that are not asked for and hold nothing.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::{DynamicObject, ObjectMeta};
use kube::{Api, Client, ResourceExt};
use tracing::{debug, info};

use super::applied::is_applied;
use super::build::Objects;
use super::build::kind::{Kind, Surplus};
use super::target::Target;
use crate::condition::CLUSTER_MANAGER;
use crate::error::Error;
use crate::names::{CLUSTER_LABEL, Names};

/// Calls to the API server at the same time, for one cluster.
const PARALLEL: usize = 8;

/// The metadata of the cluster's own objects of one kind, by name.
type Own = BTreeMap<String, ObjectMeta>;

/// Applies every object that is not as it was applied last. The same objects again write nothing.
///
/// # Errors
/// At the first kind of which the API server refuses an object.
pub async fn apply(client: &Client, target: &Target, objects: Objects) -> Result<(), Error> {
    let kinds = objects.into_kinds(&target.owner).map_err(kube::Error::SerdeError);
    let kinds = kinds.map_err(Error::kubernetes("write", "the cluster's objects"))?;
    let writer = Writer { client, names: &target.names, owner: &target.owner.uid };
    // Nothing is written while one of the names is somebody else's.
    let own = try_join_all(kinds.iter().map(|kind| writer.own(kind))).await?;
    for (kind, own) in kinds.iter().zip(&own) {
        writer.write(kind, own).await?;
    }
    for (kind, own) in kinds.iter().zip(&own).filter(|(kind, _)| kind.surplus == Surplus::Goes).rev() {
        writer.prune(kind, own).await?;
    }
    Ok(())
}

struct Writer<'a> {
    client: &'a Client,
    names: &'a Names,
    /// The cluster's UID.
    owner: &'a str,
}

impl Writer<'_> {
    fn api(&self, kind: &Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.names.namespace(), &kind.resource)
    }

    fn owns(&self, metadata: &ObjectMeta) -> bool {
        metadata.owner_references.iter().flatten().any(|owner| owner.uid == self.owner)
    }

    /// What the cluster has of a kind. Fails if one of the names that are asked for is taken by another's object.
    async fn own(&self, kind: &Kind) -> Result<Own, Error> {
        let api = self.api(kind);
        let selector = format!("{CLUSTER_LABEL}={}", self.names.cluster());
        let found = api.list_metadata(&ListParams::default().labels(&selector)).await;
        let found =
            found.map_err(Error::kubernetes("list", format!("{}s with {selector}", kind.resource.kind)))?;
        let own: Own = found
            .items
            .into_iter()
            .filter(|object| self.owns(&object.metadata))
            .map(|object| (object.name_any(), object.metadata))
            .collect();
        let names = kind.objects.iter().map(ResourceExt::name_any).filter(|name| !own.contains_key(name));
        stream::iter(names)
            .map(Ok)
            .try_for_each_concurrent(PARALLEL, |name| {
                let api = &api;
                async move {
                    let object = kind.called(&name);
                    let found = api.get_metadata_opt(&name).await;
                    let found = found.map_err(Error::kubernetes("read", &*object))?;
                    match found {
                        Some(found) if !self.owns(&found.metadata) => Err(Error::NameTaken { object }),
                        _ => Ok(()),
                    }
                }
            })
            .await?;
        Ok(own)
    }

    /// Applies the objects of a kind that are not as they were applied last.
    async fn write(&self, kind: &Kind, own: &Own) -> Result<(), Error> {
        let (api, how) = (self.api(kind), PatchParams::apply(CLUSTER_MANAGER).force());
        let differs = |object: &&DynamicObject| {
            own.get(&object.name_any()).is_none_or(|there| !is_applied(object, there))
        };
        stream::iter(kind.objects.iter().filter(differs))
            .map(Ok)
            .try_for_each_concurrent(PARALLEL, |object| {
                let (api, how) = (&api, &how);
                async move {
                    let name = object.name_any();
                    debug!(kind = %kind.resource.kind, %name, namespace = self.names.namespace(), "applying");
                    let applied = api.patch(&name, how, &Patch::Apply(object)).await;
                    applied.map(drop).map_err(Error::kubernetes("apply", kind.called(&name)))
                }
            })
            .await
    }

    /// Deletes the cluster's objects of a kind that are not asked for.
    async fn prune(&self, kind: &Kind, own: &Own) -> Result<(), Error> {
        let api = self.api(kind);
        let is_wanted = |name: &str| kind.objects.iter().any(|object| object.name_any() == name);
        for (name, there) in own {
            if is_wanted(name) || there.deletion_timestamp.is_some() {
                continue;
            }
            info!(
                kind = %kind.resource.kind, %name, namespace = self.names.namespace(),
                "deleting what is not asked for"
            );
            let this = Preconditions { uid: there.uid.clone(), resource_version: None };
            api.delete(name, &DeleteParams::default().preconditions(this))
                .await
                .map_err(Error::kubernetes("delete", kind.called(name)))?;
        }
        Ok(())
    }
}
