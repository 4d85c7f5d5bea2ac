//! What a certificate says.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;

/// What we care about in a certificate; nothing of it is secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub common_name: String,
    /// DNS names and addresses.
    pub names: BTreeSet<String>,
    pub not_after: Timestamp,
    pub is_authority: bool,
    pub server: bool,
    pub client: bool,
    /// The raw public key.
    pub public_key: Vec<u8>,
    /// The identifier of its own key, which authorities have.
    pub subject_key: Option<Vec<u8>>,
    /// The identifier of the key that signed it.
    pub authority_key: Option<Vec<u8>>,
}

/// Reads a PEM certificate; `None` if it is none.
pub fn inspect(pem: &str) -> Option<Facts> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let mut facts = Facts {
        common_name: certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned(),
        not_after: Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?,
        is_authority: certificate.is_ca(),
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
        ..Default::default()
    };
    extensions(&certificate, &mut facts);
    Some(facts)
}

fn extensions(certificate: &X509Certificate<'_>, facts: &mut Facts) {
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                facts.names = names.general_names.iter().filter_map(name).collect();
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                (facts.server, facts.client) = (usage.server_auth, usage.client_auth);
            }
            ParsedExtension::SubjectKeyIdentifier(key) => facts.subject_key = Some(key.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(key) => {
                facts.authority_key = key.key_identifier.as_ref().map(|key| key.0.to_vec());
            }
            _ => {}
        }
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}
