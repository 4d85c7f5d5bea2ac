//! How the operator speaks TLS, to databases and to Patroni: whom it believes, and what it shows.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::cluster::certificates::{CA, CERTIFICATE, KEY};

/// A part of the operator's identity that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "{part}: {reason}; the Secret has to hold ca.crt, tls.crt and tls.key, all PEM and of one kind: delete it to have it made anew"
)]
pub struct Error {
    part: &'static str,
    reason: String,
}

impl Error {
    fn new(part: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { part, reason: reason.to_string() }
    }
}

/// A configuration that believes servers with a certificate of `authority` for their name, and shows `certificate`
/// with its `key`; all PEM.
///
/// # Errors
/// When a part is missing, is not PEM, or does not fit the others.
pub fn client(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for root in certificates(CA, authority)? {
        roots.add(root).map_err(|error| Error::new(CA, error))?;
    }
    let chain = certificates(CERTIFICATE, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Error::new(KEY, error))?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(CERTIFICATE, error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| Error::new(KEY, error))
}

fn certificates(part: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::new(part, error))?;
    if found.is_empty() {
        return Err(Error::new(part, "it holds no certificate"));
    }
    Ok(found)
}
