//! ServiceAccounts, and what Patroni may do: read what its labels select, and patch its own group's state and pods.
//!
//! Each group acts as itself, so that whoever takes over one instance can neither take the lock of another group nor
//! change its pods. The rights are exactly the calls that Patroni 4.1.5 makes on the Kubernetes store. It lists by
//! label, which no rule can narrow to names; there are no Secrets in what it lists.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::core::ObjectMeta;

use super::config_maps::PATRONI_STATE;
use super::meta;
use crate::cluster::target::Target;
use crate::names::Group;

/// Whom the pods act as.
#[must_use]
pub fn service_accounts(target: &Target) -> Vec<ServiceAccount> {
    let names = &target.names;
    let api = meta::object(names, names.api(), meta::component(names, meta::API));
    of_groups(target)
        .map(|(_, metadata)| metadata)
        .chain([api])
        .map(|metadata| ServiceAccount {
            metadata,
            // Pods that need a token ask for it.
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        })
        .collect()
}

/// What Patroni of each group may do.
#[must_use]
pub fn roles(target: &Target) -> Vec<Role> {
    let names = &target.names;
    of_groups(target)
        .map(|(group, metadata)| {
            let leader = vec![names.patroni_state(group, "leader")];
            let states = PATRONI_STATE.map(|what| names.patroni_state(group, what)).to_vec();
            let pods = (0..instances(target, group)).map(|ordinal| names.pod(group, ordinal)).collect();
            Role {
                metadata,
                rules: Some(vec![
                    rule(&["configmaps", "pods"], &["list", "watch"], None),
                    // After a conflict it reads the lock itself rather than its cache.
                    rule(&["configmaps"], &["get"], Some(leader)),
                    rule(&["configmaps"], &["patch"], Some(states)),
                    rule(&["pods"], &["patch"], Some(pods)),
                ]),
            }
        })
        .collect()
}

/// That it may.
#[must_use]
pub fn role_bindings(target: &Target) -> Vec<RoleBinding> {
    let names = &target.names;
    of_groups(target)
        .map(|(group, metadata)| RoleBinding {
            metadata,
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".to_owned(),
                kind: "Role".to_owned(),
                name: names.group(group),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: names.group(group),
                namespace: Some(names.namespace().to_owned()),
                ..Subject::default()
            }]),
        })
        .collect()
}

/// The groups, each with the metadata of what there is one of per group.
fn of_groups(target: &Target) -> impl Iterator<Item = (Group, ObjectMeta)> {
    let names = &target.names;
    target
        .groups
        .keys()
        .map(|&group| (group, meta::object(names, names.group(group), meta::group(names, group))))
}

/// The instances of a group that there are or will be.
fn instances(target: &Target, group: Group) -> i32 {
    target.groups.get(&group).map_or(0, |group| group.replicas).max(target.group(group).instances)
}

fn rule(resources: &[&str], verbs: &[&str], resource_names: Option<Vec<String>>) -> PolicyRule {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![String::new()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        resource_names,
        ..PolicyRule::default()
    }
}
