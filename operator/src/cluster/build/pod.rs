//! What all pods have in common: the restricted Pod Security Standard, spread over nodes, volumes of Secrets.

use k8s_openapi::api::core::v1::{
    Capabilities, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, LocalObjectReference,
    ObjectFieldSelector, PodSecurityContext, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource,
    SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::{self, Labels};
use crate::api::{ResourceAmounts, ResourcesSpec};
use crate::context::Pull;

/// Where the certificates are, in every pod.
pub const TLS_DIRECTORY: &str = "/etc/dialog/tls";

/// Where the certificate for commands to Patroni is, in the pods of databases.
pub const PATRONI_TLS_DIRECTORY: &str = "/etc/dialog/patroni-tls";
/// Annotation of pods that changes when they have to be restarted for what they mount.
pub const MOUNTED: &str = "dialogcluster.io/mounted";

/// A pod that runs as this user and group, and may be admitted in a restricted namespace.
#[must_use]
pub fn security(id: i64) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(id),
        run_as_group: Some(id),
        fs_group: Some(id),
        // Large volumes are not walked through at each start.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// The Secrets with which the images of a pod are pulled.
#[must_use]
pub fn pull_secrets(pull: &Pull) -> Option<Vec<LocalObjectReference>> {
    let secrets: Vec<_> =
        pull.secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect();
    (!secrets.is_empty()).then_some(secrets)
}

/// A container that can write to its volumes only.
#[must_use]
pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// Pods of one kind go to different nodes where there are any.
#[must_use]
pub fn spread(selected: &Labels) -> Vec<TopologySpreadConstraint> {
    ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        .into_iter()
        .map(|key| TopologySpreadConstraint {
            max_skew: 1,
            topology_key: key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(meta::selector(selected.clone())),
            ..TopologySpreadConstraint::default()
        })
        .collect()
}

/// CPU and memory; of what the resource says nothing, `least` is requested: a pod without any request is the first to be
/// killed when its node is short of memory.
#[must_use]
pub fn resources(spec: &ResourcesSpec, least: &[(&str, &str)]) -> Option<ResourceRequirements> {
    let amounts = |amounts: &ResourceAmounts| {
        let ResourceAmounts { cpu, memory } = amounts;
        let given = [("cpu", cpu), ("memory", memory)];
        let given: std::collections::BTreeMap<_, _> = given
            .into_iter()
            .filter_map(|(name, amount)| Some((name.to_owned(), amount.as_ref()?.to_quantity())))
            .collect();
        (!given.is_empty()).then_some(given)
    };
    let ResourcesSpec { requests, limits } = spec;
    let (mut requests, limits) = (amounts(requests), amounts(limits));
    for (name, amount) in least {
        // A limit alone is a request as well.
        if ![&requests, &limits].into_iter().flatten().any(|given| given.contains_key(*name)) {
            requests.get_or_insert_default().insert((*name).to_owned(), Quantity((*amount).to_owned()));
        }
    }
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

/// A volume of a Secret whose files the pod's group may read, and nobody else.
#[must_use]
pub fn secret_volume(name: &str, secret: String) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            // libpq and PostgreSQL take a key that root owns and their group may read.
            default_mode: Some(0o640),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// An empty volume, in memory if `medium` says so.
#[must_use]
pub fn empty_volume(name: &str, medium: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit: None }),
        ..Volume::default()
    }
}

/// Mounts a volume.
#[must_use]
pub fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// An environment variable.
#[must_use]
pub fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}

/// An environment variable with the pod's name.
#[must_use]
pub fn name_variable(name: &str) -> EnvVar {
    let field =
        ObjectFieldSelector { field_path: "metadata.name".to_owned(), api_version: Some("v1".to_owned()) };
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    }
}

/// A probe by HTTP.
#[must_use]
pub fn probe(scheme: &str, port: &str, path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(port.to_owned()),
            scheme: Some(scheme.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}
