//! The Ingress of dialog-api.

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend,
    IngressSpec, IngressTLS, ServiceBackendPort,
};

use super::meta;
use crate::cluster::target::Target;

/// The Ingress, if one is asked for.
#[must_use]
pub fn ingress(target: &Target) -> Option<Ingress> {
    let names = &target.names;
    let asked = target.spec.api.ingress.as_ref()?;
    let backend = IngressBackend {
        service: Some(IngressServiceBackend {
            name: names.api(),
            port: Some(ServiceBackendPort { name: Some("http".to_owned()), number: None }),
        }),
        resource: None,
    };
    Some(Ingress {
        metadata: meta::object(names, names.api(), meta::component(names, meta::API)),
        spec: Some(IngressSpec {
            ingress_class_name: target.ingress_class.clone(),
            rules: Some(vec![IngressRule {
                host: Some(asked.host.clone()),
                http: Some(HTTPIngressRuleValue {
                    paths: vec![HTTPIngressPath {
                        path: Some("/".to_owned()),
                        path_type: "Prefix".to_owned(),
                        backend,
                    }],
                }),
            }]),
            tls: asked.tls_secret_name.as_ref().map(|secret| {
                vec![IngressTLS { hosts: Some(vec![asked.host.clone()]), secret_name: Some(secret.clone()) }]
            }),
            default_backend: None,
        }),
        ..Ingress::default()
    })
}
