//! A throw-away certificate authority, shaped like the one the operator makes for a cluster:
//! ECDSA P-256, PKCS#8 keys, one certificate per database node (server and client), one per program.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

/// Common name of the certificate every database node carries.
pub const NODE: &str = "dialog-node";

/// A certificate authority that lives as long as the test.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key, PKCS#8 PEM.
    pub key: String,
}

/// Where an [`Identity`] and the certificate of its authority were written.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    /// Certificate of the authority, PEM.
    pub ca: PathBuf,
    /// Certificate of the holder, PEM.
    pub certificate: PathBuf,
    /// Private key of the holder, PKCS#8 PEM, mode 0600.
    pub key: PathBuf,
}

impl Authority {
    /// Makes a new authority with a key of its own.
    ///
    /// # Errors
    /// When the key cannot be generated or the certificate cannot be signed.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "testbed");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("generate the authority's key")?;
        let issuer = CertifiedIssuer::self_signed(params, key).context("sign the authority's certificate")?;
        Ok(Self { issuer })
    }

    /// The authority's own certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a database node on loopback: server and client, for `localhost` and 127.0.0.1.
    ///
    /// # Errors
    /// When the certificate cannot be signed.
    pub fn node(&self) -> Result<Identity> {
        self.issue(
            NODE,
            &["localhost", "127.0.0.1", "::1"],
            &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    /// A client certificate whose common name says which program holds it, such as `dialog-api`.
    ///
    /// # Errors
    /// When the certificate cannot be signed.
    pub fn client(&self, common_name: &str) -> Result<Identity> {
        self.issue(common_name, &[], &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// A certificate for any holder; `names` are DNS names or IP addresses.
    ///
    /// # Errors
    /// When a name is not valid or the certificate cannot be signed.
    pub fn issue(
        &self,
        common_name: &str,
        names: &[&str],
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).context("names of the certificate")?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("generate a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("sign the certificate of {common_name}"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` into `directory`, which must exist.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, identity: &Identity, directory: &Path) -> Result<IdentityFiles> {
        let files = IdentityFiles {
            ca: directory.join("ca.crt"),
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
        };
        write_private(&files.ca, &self.certificate())?;
        write_private(&files.certificate, &identity.certificate)?;
        write_private(&files.key, &identity.key)?;
        Ok(files)
    }
}

/// Writes a file that only its owner can read, as libpq and the server demand of keys.
fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
