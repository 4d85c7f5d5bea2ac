//! The objects of a cluster, one file per kind. Pure: the same target and certificates give the same objects.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use kind::{Kind, Surplus};

use super::certificates::Certificates;
use super::target::Target;

pub mod config_maps;
pub mod deployment;
pub mod disruption;
pub mod ingress;
pub mod kind;
pub mod meta;
pub mod pod;
pub mod rbac;
pub mod secrets;
pub mod services;
pub mod stateful_sets;

/// Every object of a cluster, in the order in which they are applied: what others refer to comes first.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// Certificates and keys.
    pub secrets: Vec<Secret>,
    /// Patroni's configuration, and the objects in which it keeps its state.
    pub config_maps: Vec<ConfigMap>,
    /// Whom the pods act as.
    pub service_accounts: Vec<ServiceAccount>,
    /// What Patroni may do.
    pub roles: Vec<Role>,
    /// That it may.
    pub role_bindings: Vec<RoleBinding>,
    /// The names of primaries, standbys, instances and of dialog-api.
    pub services: Vec<Service>,
    /// The database groups.
    pub stateful_sets: Vec<StatefulSet>,
    /// dialog-api.
    pub deployments: Vec<Deployment>,
    /// How dialog-api is reached from outside.
    pub ingresses: Vec<Ingress>,
    /// What a drain of Kubernetes nodes has to leave running.
    pub disruption_budgets: Vec<PodDisruptionBudget>,
}

/// Builds every object of a cluster.
#[must_use]
pub fn build(target: &Target, certificates: &Certificates) -> Objects {
    Objects {
        secrets: secrets::secrets(certificates, &target.names),
        config_maps: config_maps::config_maps(target),
        service_accounts: rbac::service_accounts(target),
        roles: rbac::roles(target),
        role_bindings: rbac::role_bindings(target),
        services: services::services(target),
        stateful_sets: stateful_sets::stateful_sets(target, certificates),
        deployments: vec![deployment::deployment(target, certificates)],
        ingresses: ingress::ingress(target).into_iter().collect(),
        disruption_budgets: disruption::disruption_budgets(target),
    }
}

impl Objects {
    /// The same by kind, each object belonging to `owner`, so that it goes when its cluster goes.
    ///
    /// # Errors
    /// If an object cannot be written as JSON.
    pub fn into_kinds(self, owner: &OwnerReference) -> Result<Vec<Kind>, serde_json::Error> {
        // Named one by one, so that a kind that is added cannot be forgotten.
        let Self {
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
        } = self;
        Ok(vec![
            Kind::new(secrets, Surplus::Stays, owner)?,
            Kind::new(config_maps, Surplus::Stays, owner)?,
            Kind::new(service_accounts, Surplus::Goes, owner)?,
            Kind::new(roles, Surplus::Goes, owner)?,
            Kind::new(role_bindings, Surplus::Goes, owner)?,
            Kind::new(services, Surplus::Goes, owner)?,
            Kind::new(stateful_sets, Surplus::Stays, owner)?,
            Kind::new(deployments, Surplus::Stays, owner)?,
            Kind::new(ingresses, Surplus::Goes, owner)?,
            Kind::new(disruption_budgets, Surplus::Goes, owner)?,
        ])
    }
}

#[cfg(test)]
mod tests;
