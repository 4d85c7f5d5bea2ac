//! Secrets: certificates and keys.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::meta;
use crate::cluster::certificates::{CA, CA_KEY, CERTIFICATE, Certificates, KEY, Pair, TOKEN_KEY};
use crate::names::Names;

/// Every Secret of a cluster.
#[must_use]
pub fn secrets(certificates: &Certificates, names: &Names) -> Vec<Secret> {
    let Certificates { authority, groups, operator, api, patroni_authority, patroni, token } = certificates;
    let issued = |issuer: &Pair, name: String, labels: meta::Labels, pair: &Pair| {
        let data = [(CA, &*issuer.certificate), (CERTIFICATE, &*pair.certificate), (KEY, &*pair.key)];
        secret(names, name, labels, "kubernetes.io/tls", &data)
    };
    let database = || meta::component(names, meta::DATABASE);
    let service = || meta::component(names, meta::API);
    let leaf = |name: String, labels: meta::Labels, pair: &Pair| issued(authority, name, labels, pair);
    let authority_data = [(CA, &*authority.certificate), (CA_KEY, &*authority.key)];
    let patroni_data = [(CA, &*patroni_authority.certificate), (CA_KEY, &*patroni_authority.key)];
    let mut secrets = vec![
        secret(names, names.authority(), database(), "Opaque", &authority_data),
        secret(names, names.patroni_authority(), database(), "Opaque", &patroni_data),
        issued(patroni_authority, names.patroni_certificate(), database(), patroni),
        leaf(names.operator_certificate(), database(), operator),
        leaf(names.api_certificate(), service(), api),
        secret(names, names.api_token(), service(), "Opaque", &[(TOKEN_KEY, token.expose())]),
    ];
    secrets.extend(
        groups
            .iter()
            .map(|(group, pair)| leaf(names.group_certificate(*group), meta::group(names, *group), pair)),
    );
    secrets
}

fn secret(names: &Names, name: String, labels: meta::Labels, kind: &str, data: &[(&str, &str)]) -> Secret {
    Secret {
        metadata: meta::object(names, name, labels),
        type_: Some(kind.to_owned()),
        data: Some(
            data.iter()
                .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
                .collect(),
        ),
        ..Secret::default()
    }
}
