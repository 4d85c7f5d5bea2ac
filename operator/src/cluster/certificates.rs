//! The certificates of one cluster: an authority, a certificate per database group, one each for the operator and for
//! dialog-api. They are made once and kept in Secrets; there are no passwords.
//!
//! Patroni takes orders from whoever has a certificate of the authority that it is given, whatever the name in it. So
//! that authority is another one, and dialog-api has no certificate of it.
//!
//! Whether a certificate can be kept is decided by what it says, never by when or by whom it was made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use rand::RngExt;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::error::Error;
use crate::names::{Group, Names};
use crate::pg::{Identity, IdentityError};

mod inspect;

use inspect::{Facts, inspect};

/// What the operator shows to the databases, from the Secret that holds it.
///
/// # Errors
/// When a part is missing, is not PEM, or does not fit the others.
pub fn identity(secret: &Secret) -> Result<Identity, IdentityError> {
    let data = secret.data.as_ref();
    let part = |key: &str| data.and_then(|data| data.get(key)).map_or(&[][..], |bytes| &bytes.0);
    Identity::from_pem(part(CA), part(CERTIFICATE), part(KEY))
}

/// The key in a Secret of the authority's certificate.
pub const CA: &str = "ca.crt";
/// The key in a Secret of the authority's private key.
pub const CA_KEY: &str = "ca.key";
/// The key in a Secret of the holder's certificate.
pub const CERTIFICATE: &str = "tls.crt";
/// The key in a Secret of the holder's private key.
pub const KEY: &str = "tls.key";
/// The key in a Secret of what signs the tokens of dialog-api.
pub const TOKEN_KEY: &str = "key";

/// The common name in the certificate of every database instance.
pub const NODE: &str = "dialog-node";
/// The common name in the operator's certificate.
pub const OPERATOR: &str = "dialog-operator";
/// The common name in dialog-api's certificate.
pub const API: &str = "dialog-api";
/// The common name in the certificate of those who may command Patroni.
pub const PATRONI: &str = "dialog-patroni";

const AUTHORITY_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// Clocks may differ by this much.
const SKEW: Duration = Duration::hours(1);

/// A certificate and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS#8.
    pub key: String,
    facts: Facts,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// The key that signs the tokens of dialog-api, as base64.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey(String);

impl TokenKey {
    /// The key as it is put into the Secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

/// Everything secret of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// The authority.
    pub authority: Pair,
    /// The certificate of each database group, for serving and for asking others.
    pub groups: BTreeMap<Group, Pair>,
    /// What the operator shows to databases and to Patroni.
    pub operator: Pair,
    /// What dialog-api shows to databases.
    pub api: Pair,
    /// The authority of those who may command Patroni.
    pub patroni_authority: Pair,
    /// What instances and the operator show to Patroni.
    pub patroni: Pair,
    /// What signs the tokens of dialog-api.
    pub token: TokenKey,
}

/// What a certificate has to say to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    common_name: &'static str,
    names: BTreeSet<String>,
    server: bool,
}

impl Wanted {
    fn client(common_name: &'static str) -> Self {
        Self { common_name, names: BTreeSet::new(), server: false }
    }

    fn group(names: &Names, group: Group) -> Self {
        Self { common_name: NODE, names: group_names(names, group), server: true }
    }
}

/// The names in the certificate of a group: its Services however they are asked for, its instances, and itself.
#[must_use]
pub fn group_names(names: &Names, group: Group) -> BTreeSet<String> {
    let namespace = names.namespace();
    let instances = names.instances(group);
    [names.group(group), names.standbys(group), instances.clone()]
        .into_iter()
        .flat_map(|service| {
            [
                format!("{service}.{namespace}"),
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.cluster.local"),
                service,
            ]
        })
        .chain([
            format!("*.{instances}.{namespace}.svc"),
            format!("*.{instances}.{namespace}.svc.cluster.local"),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
        ])
        .collect()
}

/// The Secrets of a cluster by name, as they are now.
pub type Secrets = BTreeMap<String, Secret>;

impl Certificates {
    /// Keeps what is good in `secrets` and makes what is missing, does not belong together, or says too little.
    ///
    /// # Errors
    /// If a key or certificate cannot be made.
    pub fn ensure(
        secrets: &Secrets,
        names: &Names,
        groups: &BTreeSet<Group>,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let now = OffsetDateTime::from_unix_timestamp(now.as_second())
            .map_err(|error| failed(names.authority(), &error))?;
        let authority = |secret: String| match read(secrets, &secret, CA, CA_KEY)
            .filter(|pair| pair.facts.is_authority)
        {
            Some(pair) => Ok(pair),
            None => new_authority(names, secret, now),
        };
        let leaf_of = |issuer: &Ca<'_>, secret: String, wanted: Wanted| match kept(
            secrets,
            &secret,
            issuer.pair,
            &wanted,
        ) {
            Some(pair) => Ok(pair),
            None => issuer.issue(&secret, &wanted, now),
        };
        let patroni_authority = authority(names.patroni_authority())?;
        let authority = authority(names.authority())?;
        let issuer = Ca { name: names.authority(), pair: &authority };
        let leaf = |secret: String, wanted: Wanted| leaf_of(&issuer, secret, wanted);
        let commanders = Ca { name: names.patroni_authority(), pair: &patroni_authority };
        Ok(Self {
            groups: groups
                .iter()
                .map(|&group| Ok((group, leaf(names.group_certificate(group), Wanted::group(names, group))?)))
                .collect::<Result<_, Error>>()?,
            operator: leaf(names.operator_certificate(), Wanted::client(OPERATOR))?,
            api: leaf(names.api_certificate(), Wanted::client(API))?,
            patroni: leaf_of(&commanders, names.patroni_certificate(), Wanted::client(PATRONI))?,
            patroni_authority,
            token: token(secrets, &names.api_token()).unwrap_or_else(new_token),
            authority,
        })
    }

    /// The certificate that expires first.
    #[must_use]
    pub fn earliest_expiry(&self, names: &Names) -> Expiry {
        let groups = self.groups.iter().map(|(&group, pair)| (names.group_certificate(group), pair));
        let others = [
            (names.operator_certificate(), &self.operator),
            (names.api_certificate(), &self.api),
            (names.patroni_certificate(), &self.patroni),
            (names.patroni_authority(), &self.patroni_authority),
        ];
        let expiry = |secret: String, pair: &Pair| Expiry {
            secret,
            is_authority: pair.facts.is_authority,
            at: pair.facts.not_after,
        };
        groups.chain(others).map(|(secret, pair)| expiry(secret, pair)).fold(
            expiry(names.authority(), &self.authority),
            |first, next| {
                if next.at < first.at { next } else { first }
            },
        )
    }
}

/// When a certificate expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The Secret that holds it.
    pub secret: String,
    /// Whether others are signed with it.
    pub is_authority: bool,
    /// The first moment at which it is not good any more.
    pub at: Timestamp,
}

impl Certificates {
    /// Changes whenever the key for tokens does. Keyed, because that key may have been put there by hand, and be weak.
    #[must_use]
    pub fn token_fingerprint(&self) -> String {
        fingerprint(&format!("{}{}", self.authority.key, self.token.expose()))
    }
}

impl Pair {
    /// Changes whenever the certificate does; says nothing about the key.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }
}

/// A short hash, of something that is not secret or that nobody could guess.
#[must_use]
pub fn fingerprint(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).fold(String::new(), |mut hex, byte| {
        use fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The pair in a Secret, if there is one and both halves belong together.
fn read(secrets: &Secrets, secret: &str, certificate: &str, key: &str) -> Option<Pair> {
    let data = secrets.get(secret)?.data.as_ref()?;
    let text = |key: &str| data.get(key).and_then(|ByteString(bytes)| String::from_utf8(bytes.clone()).ok());
    let (certificate, key) = (text(certificate)?, text(key)?);
    let facts = inspect(&certificate)?;
    let public = KeyPair::from_pem(&key).ok()?.public_key_raw().to_vec();
    (facts.public_key == public).then_some(Pair { certificate, key, facts })
}

/// The pair in a Secret, if this authority has signed it and it says what is wanted.
fn kept(secrets: &Secrets, secret: &str, authority: &Pair, wanted: &Wanted) -> Option<Pair> {
    let issuer = secrets.get(secret)?.data.as_ref()?.get(CA)?;
    let pair = read(secrets, secret, CERTIFICATE, KEY)?;
    let facts = &pair.facts;
    let good = issuer.0 == authority.certificate.as_bytes()
        && facts.authority_key == authority.facts.subject_key
        && facts.common_name == wanted.common_name
        && facts.server == wanted.server
        && facts.client
        && wanted.names.is_subset(&facts.names);
    good.then_some(pair)
}

fn token(secrets: &Secrets, secret: &str) -> Option<TokenKey> {
    let ByteString(bytes) = secrets.get(secret)?.data.as_ref()?.get(TOKEN_KEY)?;
    let text = String::from_utf8(bytes.clone()).ok()?;
    (text.trim().len() >= 43).then_some(TokenKey(text))
}

fn new_token() -> TokenKey {
    use base64::Engine as _;
    let key: [u8; 48] = rand::rng().random();
    TokenKey(base64::engine::general_purpose::STANDARD.encode(key))
}

fn new_authority(names: &Names, object: String, now: OffsetDateTime) -> Result<Pair, Error> {
    let mut params = CertificateParams::default();
    // The name tells authorities of the same cluster apart: after a new one is made, both can be in use for a while.
    let serial = rand::rng().random::<u32>();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{object} {} {serial:08x}", names.namespace()));
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(AUTHORITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = new_key(&object)?;
    let certificate = params.self_signed(&key).map_err(|error| failed(&object, &error))?;
    pair(object, &certificate.pem(), &key)
}

/// An authority that can issue.
struct Ca<'a> {
    name: String,
    pair: &'a Pair,
}

impl Ca<'_> {
    fn issue(&self, object: &str, wanted: &Wanted, now: OffsetDateTime) -> Result<Pair, Error> {
        let key = KeyPair::from_pem(&self.pair.key).map_err(|error| failed(&self.name, &error))?;
        let issuer = Issuer::from_ca_cert_pem(&self.pair.certificate, key)
            .map_err(|error| failed(&self.name, &error))?;
        let mut params = CertificateParams::new(wanted.names.iter().cloned().collect::<Vec<_>>())
            .map_err(|error| failed(object, &error))?;
        params.distinguished_name.push(DnType::CommonName, wanted.common_name);
        params.not_before = now - SKEW;
        params.not_after = now + Duration::days(LEAF_DAYS);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if wanted.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = new_key(object)?;
        let certificate = params.signed_by(&key, &issuer).map_err(|error| failed(object, &error))?;
        pair(object, &certificate.pem(), &key)
    }
}

fn new_key(object: &str) -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(object, &error))
}

fn pair(object: impl Into<String>, certificate: &str, key: &KeyPair) -> Result<Pair, Error> {
    let facts = inspect(certificate).ok_or_else(|| Error::Certificate {
        object: object.into(),
        reason: "what was made cannot be read".to_owned(),
    })?;
    Ok(Pair { certificate: certificate.to_owned(), key: key.serialize_pem(), facts })
}

fn failed(object: impl Into<String>, error: &impl fmt::Display) -> Error {
    Error::Certificate { object: format!("Secret {}", object.into()), reason: error.to_string() }
}

#[cfg(test)]
mod tests;
