//! ServiceAccounts, and what Patroni may do: read its pods and its state, and patch what is its own.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::config_maps::PATRONI_STATE;
use super::meta;
use crate::cluster::target::Target;

/// Whom the pods act as.
#[must_use]
pub fn service_accounts(target: &Target) -> Vec<ServiceAccount> {
    let names = &target.names;
    [(names.patroni(), meta::DATABASE), (names.api(), meta::API)]
        .into_iter()
        .map(|(name, component)| ServiceAccount {
            metadata: meta::object(names, name, meta::component(names, component)),
            // Pods that need a token ask for it.
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        })
        .collect()
}

/// What Patroni may do.
#[must_use]
pub fn roles(target: &Target) -> Vec<Role> {
    let names = &target.names;
    let states = target
        .groups
        .keys()
        .flat_map(|group| PATRONI_STATE.map(|what| names.patroni_state(*group, what)))
        .collect();
    let pods = target
        .groups
        .keys()
        .flat_map(|group| (0..instances(target, *group)).map(|ordinal| names.pod(*group, ordinal)))
        .collect();
    vec![Role {
        metadata: meta::object(names, names.patroni(), meta::component(names, meta::DATABASE)),
        rules: Some(vec![
            rule(&["configmaps", "pods"], &["get", "list", "watch"], None),
            rule(&["configmaps"], &["patch"], Some(states)),
            rule(&["pods"], &["patch"], Some(pods)),
        ]),
    }]
}

/// That it may.
#[must_use]
pub fn role_bindings(target: &Target) -> Vec<RoleBinding> {
    let names = &target.names;
    vec![RoleBinding {
        metadata: meta::object(names, names.patroni(), meta::component(names, meta::DATABASE)),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: names.patroni(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: names.patroni(),
            namespace: Some(names.namespace().to_owned()),
            ..Subject::default()
        }]),
    }]
}

/// The instances of a group that there are or will be.
fn instances(target: &Target, group: crate::names::Group) -> i32 {
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
