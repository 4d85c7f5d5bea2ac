//! StatefulSets: one per database group, PostgreSQL under Patroni.

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, ContainerPort, EnvVar, KeyToPath, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec, Probe, Volume, VolumeResourceRequirements,
};
use kube::core::ObjectMeta;

use super::pod::{self, MOUNTED, PATRONI_TLS_DIRECTORY, TLS_DIRECTORY};
use super::{config_maps, meta};
use crate::api::{Reclaim, StorageSpec};
use crate::cluster::certificates::{Certificates, Pair, fingerprint};
use crate::cluster::patroni::config;
use crate::cluster::target::Target;
use crate::names::{Group, Names, PATRONI_PORT, POSTGRES_PORT, VOLUME};

/// User and group `postgres` in the image.
const POSTGRES_ID: i64 = 999;
/// Time for a checkpoint and for standbys to receive the last of the log.
const TERMINATION_SECONDS: i64 = 120;
/// What PostgreSQL needs with its own defaults: 128 MB of shared buffers, Patroni, and some connections.
const LEAST: [(&str, &str); 2] = [("cpu", "100m"), ("memory", "256Mi")];
/// The directory of Patroni's configuration.
const CONFIGURATION: &str = "/etc/dialog/patroni";

/// The StatefulSet of each group.
#[must_use]
pub fn stateful_sets(target: &Target, certificates: &Certificates) -> Vec<StatefulSet> {
    target.groups.keys().map(|&group| stateful_set(target, group, certificates)).collect()
}

fn stateful_set(target: &Target, group: Group, certificates: &Certificates) -> StatefulSet {
    let names = &target.names;
    let spec = target.group(group);
    let mounted = format!(
        "{}-{}-{}",
        fingerprint(&config::local(target, group)),
        certificates.groups.get(&group).map(Pair::fingerprint).unwrap_or_default(),
        certificates.patroni.fingerprint()
    );
    StatefulSet {
        metadata: meta::object(names, names.group(group), meta::group(names, group)),
        spec: Some(StatefulSetSpec {
            service_name: Some(names.instances(group)),
            replicas: target.groups.get(&group).map(|group| group.replicas),
            selector: meta::selector(meta::select_group(names, group)),
            pod_management_policy: Some("Parallel".to_owned()),
            // We choose the order: one group at a time, standbys before their primary.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(
                    match spec.storage.reclaim {
                        _ if target.groups.get(&group).is_some_and(|group| group.volumes_follow) => "Delete",
                        Reclaim::Retain => "Retain",
                        Reclaim::Delete => "Delete",
                    }
                    .to_owned(),
                ),
                // A standby's volume is a copy; a later standby is better off with a new one.
                when_scaled: Some("Delete".to_owned()),
            }),
            volume_claim_templates: Some(vec![claim(names, group, spec.storage)]),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(meta::patroni(names, group)),
                    annotations: Some([(MOUNTED.to_owned(), mounted)].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod_spec(target, group)),
            },
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn claim(names: &Names, group: Group, storage: &StorageSpec) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME.to_owned()),
            // Immutable with the StatefulSet, so only what never changes.
            labels: Some(meta::select_group(names, group)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), storage.size.to_quantity())].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn pod_spec(target: &Target, group: Group) -> PodSpec {
    let names = &target.names;
    let spec = target.group(group);
    let placement = spec.placement;
    PodSpec {
        service_account_name: Some(names.group(group)),
        automount_service_account_token: Some(true),
        enable_service_links: Some(false),
        security_context: Some(pod::security(POSTGRES_ID)),
        termination_grace_period_seconds: Some(TERMINATION_SECONDS),
        topology_spread_constraints: Some(pod::spread(&meta::select_group(names, group))),
        node_selector: (!placement.node_selector.is_empty()).then(|| placement.node_selector.clone()),
        tolerations: (!placement.tolerations.is_empty()).then(|| placement.tolerations.clone()),
        image_pull_secrets: pod::pull_secrets(&target.pull),
        containers: vec![container(target, group)],
        volumes: Some(vec![
            Volume {
                name: "configuration".to_owned(),
                config_map: Some(ConfigMapVolumeSource {
                    name: names.patroni(),
                    items: Some(vec![KeyToPath {
                        key: config_maps::key(group),
                        path: "patroni.yml".to_owned(),
                        mode: None,
                    }]),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
            pod::secret_volume("tls", names.group_certificate(group)),
            pod::secret_volume("patroni-tls", names.patroni_certificate()),
            pod::empty_volume("run", None),
            pod::empty_volume("tmp", None),
            // Parallel queries share memory; the runtime's default is 64 MiB.
            pod::empty_volume("shm", Some("Memory")),
        ]),
        ..PodSpec::default()
    }
}

fn container(target: &Target, group: Group) -> Container {
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    Container {
        name: "postgres".to_owned(),
        image: Some(target.postgres_image.clone()),
        image_pull_policy: target.pull.policy.map(|policy| policy.as_str().to_owned()),
        args: Some(vec![format!("{CONFIGURATION}/patroni.yml")]),
        env: Some(environment(&target.names, group)),
        ports: Some(vec![port("postgres", POSTGRES_PORT), port("patroni", PATRONI_PORT)]),
        resources: pod::resources(target.group(group).resources, &LEAST),
        security_context: Some(pod::container_security()),
        startup_probe: Some(pod::probe("HTTPS", "patroni", "/liveness", 2, 90)),
        liveness_probe: Some(pod::probe("HTTPS", "patroni", "/liveness", 10, 6)),
        readiness_probe: Some(Probe {
            success_threshold: Some(1),
            ..pod::probe("HTTPS", "patroni", "/readiness", 2, 3)
        }),
        // The last lines of the log go into the pod's status when it fails, and from there into our conditions.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            pod::mount(VOLUME, config::VOLUME, false),
            pod::mount("configuration", CONFIGURATION, true),
            pod::mount("tls", TLS_DIRECTORY, true),
            pod::mount("patroni-tls", PATRONI_TLS_DIRECTORY, true),
            pod::mount("run", config::SOCKETS, false),
            pod::mount("tmp", "/tmp", false),
            pod::mount("shm", "/dev/shm", false),
        ]),
        ..Container::default()
    }
}

/// What differs between instances that share a configuration.
fn environment(names: &Names, group: Group) -> Vec<EnvVar> {
    let host = names.instance_host(group, "$(PATRONI_NAME)");
    vec![
        pod::name_variable("PATRONI_NAME"),
        pod::variable("PATRONI_RESTAPI_CONNECT_ADDRESS", format!("{host}:{PATRONI_PORT}")),
        pod::variable("PATRONI_POSTGRESQL_CONNECT_ADDRESS", format!("{host}:{POSTGRES_PORT}")),
    ]
}
