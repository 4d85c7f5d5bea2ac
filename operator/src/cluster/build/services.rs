//! Services: the names by which everything finds everything.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta;
use crate::cluster::target::Target;
use crate::names::{API_PORT, Group, PATRONI_PORT, PEERS_PORT, POSTGRES_PORT, ROLE_LABEL};

/// Every Service of a cluster.
#[must_use]
pub fn services(target: &Target) -> Vec<Service> {
    let databases = target.groups.keys().flat_map(|&group| group_services(target, group));
    databases.chain([api(target), api_peers(target)]).collect()
}

fn group_services(target: &Target, group: Group) -> [Service; 3] {
    let names = &target.names;
    let of_role = |name: String, role: &str| {
        let mut selector = meta::select_group(names, group);
        selector.insert(ROLE_LABEL.to_owned(), role.to_owned());
        Service {
            metadata: meta::object(names, name, meta::group(names, group)),
            spec: Some(ServiceSpec {
                selector: Some(selector),
                ports: Some(vec![port("postgres", POSTGRES_PORT)]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    };
    let instances = Service {
        metadata: meta::object(names, names.instances(group), meta::group(names, group)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            // Instances find each other before they are ready.
            publish_not_ready_addresses: Some(true),
            selector: Some(meta::select_group(names, group)),
            ports: Some(vec![port("postgres", POSTGRES_PORT), port("patroni", PATRONI_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    [of_role(names.group(group), "primary"), of_role(names.standbys(group), "replica"), instances]
}

fn api(target: &Target) -> Service {
    let names = &target.names;
    Service {
        metadata: meta::object(names, names.api(), meta::component(names, meta::API)),
        spec: Some(ServiceSpec {
            selector: Some(meta::select_api(names)),
            ports: Some(vec![port("http", API_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn api_peers(target: &Target) -> Service {
    let names = &target.names;
    Service {
        metadata: meta::object(names, names.api_peers(), meta::component(names, meta::API)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            // One that is about to end, and no longer ready, still has streams.
            publish_not_ready_addresses: Some(true),
            selector: Some(meta::select_api(names)),
            ports: Some(vec![ServicePort { protocol: Some("UDP".to_owned()), ..port("peers", PEERS_PORT) }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
