//! Writes the objects of a cluster by server-side apply, and takes away those that are not asked for and hold
//! nothing.

use std::collections::BTreeSet;
use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::info;

use super::build::Objects;
use super::target::Target;
use crate::condition::CLUSTER_MANAGER;
use crate::error::Error;
use crate::names::{CLUSTER_LABEL, Names};

/// Applies every object. The same objects again change nothing.
///
/// # Errors
/// At the first object that the API server refuses.
pub async fn apply(client: &Client, target: &Target, objects: Objects) -> Result<(), Error> {
    // Named one by one, so that a kind that is added cannot be forgotten here.
    let Objects {
        secrets,
        config_maps,
        service_accounts,
        roles,
        role_bindings,
        services,
        stateful_sets,
        deployments,
        ingresses,
        disruption_budgets,
    } = objects;
    let writer = Writer { client, names: &target.names, owner: &target.owner.uid };
    // Nothing is written while one of the names is somebody else's.
    tokio::try_join!(
        writer.check(&secrets),
        writer.check(&config_maps),
        writer.check(&service_accounts),
        writer.check(&roles),
        writer.check(&role_bindings),
        writer.check(&services),
        writer.check(&stateful_sets),
        writer.check(&deployments),
        writer.check(&ingresses),
        writer.check(&disruption_budgets),
    )?;
    writer.all(&secrets).await?;
    writer.all(&config_maps).await?;
    writer.all(&service_accounts).await?;
    writer.all(&roles).await?;
    writer.all(&role_bindings).await?;
    writer.all(&services).await?;
    writer.all(&stateful_sets).await?;
    writer.all(&deployments).await?;
    writer.all(&ingresses).await?;
    writer.all(&disruption_budgets).await?;
    // Only kinds that hold nothing that could be lost.
    writer.prune::<RoleBinding>(&role_bindings).await?;
    writer.prune::<Role>(&roles).await?;
    writer.prune::<ServiceAccount>(&service_accounts).await?;
    writer.prune::<Service>(&services).await?;
    writer.prune::<Ingress>(&ingresses).await?;
    writer.prune::<PodDisruptionBudget>(&disruption_budgets).await
}

struct Writer<'a> {
    client: &'a Client,
    names: &'a Names,
    /// The cluster's UID.
    owner: &'a str,
}

impl Writer<'_> {
    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), self.names.namespace())
    }

    async fn all<K>(&self, objects: &[K]) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let (api, how) = (self.api::<K>(), PatchParams::apply(CLUSTER_MANAGER).force());
        for object in objects {
            let name = object.name_any();
            api.patch(&name, &how, &Patch::Apply(object))
                .await
                .map_err(Error::kubernetes("apply", format!("{} {name}", K::kind(&()))))?;
        }
        Ok(())
    }

    /// The metadata of the objects of a kind that carry the cluster's label.
    async fn labelled<K>(&self) -> Result<Vec<PartialObjectMeta<K>>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let selector = format!("{CLUSTER_LABEL}={}", self.names.cluster());
        let found = self.api::<K>().list_metadata(&ListParams::default().labels(&selector)).await;
        let found = found.map_err(Error::kubernetes("list", format!("{}s with {selector}", K::kind(&()))))?;
        Ok(found.items)
    }

    fn owns(&self, object: &impl ResourceExt) -> bool {
        object.owner_references().iter().any(|owner| owner.uid == self.owner)
    }

    /// Fails if one of the objects exists and is not this cluster's.
    async fn check<K>(&self, objects: &[K]) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let ours: BTreeSet<String> = self
            .labelled::<K>()
            .await?
            .iter()
            .filter(|object| self.owns(*object))
            .map(ResourceExt::name_any)
            .collect();
        let api = self.api::<K>();
        for name in objects.iter().map(ResourceExt::name_any).filter(|name| !ours.contains(name)) {
            let object = format!("{} {name}", K::kind(&()));
            let found = api.get_metadata_opt(&name).await.map_err(Error::kubernetes("read", &*object))?;
            if found.is_some_and(|found| !self.owns(&found)) {
                return Err(Error::NameTaken { object });
            }
        }
        Ok(())
    }

    /// Deletes the cluster's objects of a kind that are not among `wanted`.
    async fn prune<K>(&self, wanted: &[K]) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        let wanted: BTreeSet<String> = wanted.iter().map(ResourceExt::name_any).collect();
        for object in self.labelled::<K>().await? {
            let name = object.name_any();
            if !self.owns(&object) || wanted.contains(&name) || object.metadata.deletion_timestamp.is_some() {
                continue;
            }
            info!(kind = %K::kind(&()), %name, namespace = self.names.namespace(), "deleting what is not asked for");
            let this = Preconditions { uid: object.uid(), resource_version: None };
            api.delete(&name, &DeleteParams::default().preconditions(this))
                .await
                .map_err(Error::kubernetes("delete", format!("{} {name}", K::kind(&()))))?;
        }
        Ok(())
    }
}
