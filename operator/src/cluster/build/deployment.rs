//! The Deployment of dialog-api.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::ObjectMeta;

use super::meta;
use super::pod::{self, MOUNTED, TLS_DIRECTORY};
use crate::cluster::certificates::{CA, CERTIFICATE, Certificates, KEY, TOKEN_KEY};
use crate::cluster::target::Target;
use crate::names::{API_PORT, DATABASE, Group, Names, PEERS_PORT, POSTGRES_PORT};
use crate::shards::step::API_ROLE;

/// User and group of the image.
const API_ID: i64 = 65532;
/// Time for accepted requests to end.
const TERMINATION_SECONDS: i64 = 30;
/// What an idle process needs.
const LEAST: [(&str, &str); 2] = [("cpu", "20m"), ("memory", "32Mi")];
const TOKEN_DIRECTORY: &str = "/etc/dialog/token";

/// The Deployment.
#[must_use]
pub fn deployment(target: &Target, certificates: &Certificates) -> Deployment {
    let names = &target.names;
    let labels = meta::component(names, meta::API);
    let mounted = format!("{}-{}", certificates.api.fingerprint(), certificates.token_fingerprint());
    Deployment {
        metadata: meta::object(names, names.api(), labels.clone()),
        spec: Some(DeploymentSpec {
            replicas: Some(target.spec.api.replicas),
            selector: meta::selector(meta::select_api(names)),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some([(MOUNTED.to_owned(), mounted)].into()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod_spec(target)),
            },
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn pod_spec(target: &Target) -> PodSpec {
    let names = &target.names;
    PodSpec {
        service_account_name: Some(names.api()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod::security(API_ID)),
        termination_grace_period_seconds: Some(TERMINATION_SECONDS),
        topology_spread_constraints: Some(pod::spread(&meta::select_api(names))),
        image_pull_secrets: pod::pull_secrets(&target.pull),
        containers: vec![container(target)],
        volumes: Some(vec![
            pod::secret_volume("tls", names.api_certificate()),
            pod::secret_volume("token", names.api_token()),
        ]),
        ..PodSpec::default()
    }
}

fn container(target: &Target) -> Container {
    Container {
        name: "api".to_owned(),
        image: Some(target.api_image.clone()),
        image_pull_policy: target.pull.policy.map(|policy| policy.as_str().to_owned()),
        env: Some(environment(&target.names)),
        ports: Some(vec![port("http", API_PORT, "TCP"), port("peers", PEERS_PORT, "UDP")]),
        resources: pod::resources(&target.spec.api.resources, &LEAST),
        security_context: Some(pod::container_security()),
        liveness_probe: Some(pod::probe("HTTP", "http", "/health", 10, 3)),
        readiness_probe: Some(pod::probe("HTTP", "http", "/ready", 2, 2)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            pod::mount("tls", TLS_DIRECTORY, true),
            pod::mount("token", TOKEN_DIRECTORY, true),
        ]),
        ..Container::default()
    }
}

fn port(name: &str, number: u16, protocol: &str) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some(protocol.to_owned()),
        ..ContainerPort::default()
    }
}

fn environment(names: &Names) -> Vec<EnvVar> {
    vec![
        pod::variable("DIALOG_API_LISTEN", format!("0.0.0.0:{API_PORT}")),
        pod::variable("DIALOG_API_DATABASE_HOST", names.host(Group::Coordinator)),
        pod::variable("DIALOG_API_DATABASE_PORT", POSTGRES_PORT.to_string()),
        pod::variable("DIALOG_API_DATABASE_NAME", DATABASE),
        pod::variable("DIALOG_API_DATABASE_USER", API_ROLE),
        pod::variable("DIALOG_API_TLS_CA", format!("{TLS_DIRECTORY}/{CA}")),
        pod::variable("DIALOG_API_TLS_CERT", format!("{TLS_DIRECTORY}/{CERTIFICATE}")),
        pod::variable("DIALOG_API_TLS_KEY", format!("{TLS_DIRECTORY}/{KEY}")),
        pod::variable("DIALOG_API_TOKEN_KEY_FILE", format!("{TOKEN_DIRECTORY}/{TOKEN_KEY}")),
        pod::variable("DIALOG_API_DISTRIBUTION", "auto"),
        pod::variable(
            "DIALOG_API_PEERS",
            format!("{}:{PEERS_PORT}", names.host_of_service(&names.api_peers())),
        ),
        pod::variable("DIALOG_API_PEER_LISTEN", format!("0.0.0.0:{PEERS_PORT}")),
        pod::variable("DIALOG_API_LOG_FORMAT", "json"),
    ]
}
