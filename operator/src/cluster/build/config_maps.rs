//! ConfigMaps: Patroni's configuration, and the objects in which Patroni keeps its state.
//!
//! Patroni would make the latter by itself. We make them, so that they have an owner and go with the cluster, and so
//! that Patroni needs no right to create anything.

use k8s_openapi::api::core::v1::ConfigMap;

use super::meta;
use crate::cluster::patroni::config;
use crate::cluster::target::Target;
use crate::names::Group;

/// What Patroni keeps in ConfigMaps of its own: `<group>-<one of these>`.
pub const PATRONI_STATE: [&str; 4] = ["config", "leader", "failover", "sync"];

/// Every ConfigMap of a cluster.
#[must_use]
pub fn config_maps(target: &Target) -> Vec<ConfigMap> {
    let names = &target.names;
    let configuration = ConfigMap {
        metadata: meta::object(names, names.patroni(), meta::component(names, meta::DATABASE)),
        data: Some(target.groups.keys().map(|&group| (key(group), config::file(target, group))).collect()),
        ..ConfigMap::default()
    };
    let states = target.groups.keys().flat_map(|&group| {
        PATRONI_STATE.map(|what| ConfigMap {
            metadata: meta::object(names, names.patroni_state(group, what), meta::patroni(names, group)),
            ..ConfigMap::default()
        })
    });
    std::iter::once(configuration).chain(states).collect()
}

/// The key of a group's configuration.
#[must_use]
pub fn key(group: Group) -> String {
    format!("{group}.yml")
}
