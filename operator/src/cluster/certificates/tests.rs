use super::*;
use crate::cluster::build::secrets::secrets;

fn names() -> Names {
    Names::new("chat", "ns")
}

fn groups(workers: u32) -> BTreeSet<Group> {
    [Group::Coordinator].into_iter().chain((0..workers).map(Group::Worker)).collect()
}

fn now() -> Timestamp {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

fn stored(certificates: &Certificates) -> Secrets {
    secrets(certificates, &names())
        .into_iter()
        .map(|secret| (secret.metadata.name.clone().unwrap(), secret))
        .collect()
}

#[test]
fn what_is_good_is_kept() {
    let first = Certificates::ensure(&Secrets::new(), &names(), &groups(2), now()).unwrap();
    let again = Certificates::ensure(&stored(&first), &names(), &groups(2), now()).unwrap();
    assert_eq!(first, again);
}

#[test]
fn a_new_group_gets_a_certificate_and_the_others_keep_theirs() {
    let first = Certificates::ensure(&Secrets::new(), &names(), &groups(1), now()).unwrap();
    let grown = Certificates::ensure(&stored(&first), &names(), &groups(2), now()).unwrap();
    assert_eq!(grown.groups.len(), 3);
    assert_eq!(grown.groups[&Group::Worker(0)], first.groups[&Group::Worker(0)]);
    assert_eq!(grown.authority, first.authority);
    assert_eq!(grown.token, first.token);
}

#[test]
fn certificates_of_a_lost_authority_are_replaced() {
    let first = Certificates::ensure(&Secrets::new(), &names(), &groups(1), now()).unwrap();
    let mut secrets = stored(&first);
    secrets.remove("chat-ca");
    let second = Certificates::ensure(&secrets, &names(), &groups(1), now()).unwrap();
    assert_ne!(second.authority, first.authority);
    assert_ne!(second.operator, first.operator);
    assert_eq!(second.operator.facts.authority_key, second.authority.facts.subject_key);
    assert_eq!(second.token, first.token);
}

#[test]
fn unreadable_or_mismatched_pairs_are_replaced() {
    let first = Certificates::ensure(&Secrets::new(), &names(), &groups(1), now()).unwrap();
    let data = |secrets: &mut Secrets, secret: &str, key: &str, value: Vec<u8>| {
        secrets.get_mut(secret).unwrap().data.as_mut().unwrap().insert(key.to_owned(), ByteString(value));
    };
    let mut secrets = stored(&first);
    data(&mut secrets, "chat-worker-0-tls", CERTIFICATE, b"no certificate".to_vec());
    data(&mut secrets, "chat-api-tls", KEY, first.operator.key.clone().into_bytes());
    data(&mut secrets, "chat-api-token", TOKEN_KEY, b"short".to_vec());
    let second = Certificates::ensure(&secrets, &names(), &groups(1), now()).unwrap();
    assert_ne!(second.groups[&Group::Worker(0)], first.groups[&Group::Worker(0)]);
    assert_ne!(second.api, first.api);
    assert_ne!(second.token, first.token);
    assert_eq!(second.operator, first.operator);
    assert_eq!(second.groups[&Group::Coordinator], first.groups[&Group::Coordinator]);
}

#[test]
fn a_certificate_that_lacks_a_name_is_replaced() {
    let elsewhere = Names::new("chat", "other");
    let first = Certificates::ensure(&Secrets::new(), &elsewhere, &groups(0), now()).unwrap();
    let second = Certificates::ensure(&stored(&first), &names(), &groups(0), now()).unwrap();
    assert_eq!(second.authority, first.authority);
    let certificate = &second.groups[&Group::Coordinator].facts;
    for name in
        ["chat-coordinator.ns.svc", "chat-coordinator-ro", "*.chat-coordinator-nodes.ns.svc", "127.0.0.1"]
    {
        assert!(certificate.names.contains(name), "{name} is not in {:?}", certificate.names);
    }
    assert!(certificate.server && certificate.client && !certificate.is_authority);
}

#[test]
fn a_year_and_ten_years() {
    let certificates = Certificates::ensure(&Secrets::new(), &names(), &groups(0), now()).unwrap();
    let first = certificates.earliest_expiry(&names());
    assert_eq!((first.at.to_string().as_str(), first.is_authority), ("2027-03-01T00:00:00Z", false));
    assert_eq!(first.secret, "chat-coordinator-tls");
    assert_eq!(certificates.authority.facts.not_after.to_string(), "2036-02-27T00:00:00Z");
}

/// Who has dialog-api's certificate, or a database's, is not believed by Patroni.
#[test]
fn only_its_own_certificate_commands_patroni() {
    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use rustls::server::WebPkiClientVerifier;

    let certificates = Certificates::ensure(&Secrets::new(), &names(), &groups(1), now()).unwrap();
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now().as_second().unsigned_abs()));
    let commands = |pair: &Pair| {
        let mut roots = RootCertStore::empty();
        roots.add(der(&certificates.patroni_authority.certificate)).unwrap();
        let provider = rustls::crypto::ring::default_provider().into();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        verifier.verify_client_cert(&der(&pair.certificate), &[], at).is_ok()
    };
    assert!(commands(&certificates.patroni));
    assert!(!commands(&certificates.api) && !commands(&certificates.operator));
    assert!(!commands(&certificates.groups[&Group::Coordinator]));
}

#[test]
fn nothing_secret_is_printed() {
    let certificates = Certificates::ensure(&Secrets::new(), &names(), &groups(1), now()).unwrap();
    let printed = format!("{certificates:?}");
    assert!(!printed.contains("PRIVATE KEY") && !printed.contains(certificates.token.expose()), "{printed}");
}

#[test]
fn the_databases_trust_exactly_these_certificates() {
    use rustls::RootCertStore;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    let certificates = Certificates::ensure(&Secrets::new(), &names(), &groups(1), now()).unwrap();
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der(&certificates.authority.certificate)).unwrap();
    let provider = rustls::crypto::ring::default_provider().into();
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now().as_second().unsigned_abs()));
    let accepts = |pair: &Pair, host: &'static str| {
        let name = ServerName::try_from(host).unwrap();
        verifier.verify_server_cert(&der(&pair.certificate), &[], &name, &[], at).is_ok()
    };
    let worker = &certificates.groups[&Group::Worker(0)];
    assert!(accepts(worker, "chat-worker-0.ns.svc"));
    assert!(accepts(worker, "chat-worker-0-1.chat-worker-0-nodes.ns.svc"));
    assert!(!accepts(worker, "chat-worker-1.ns.svc"));
    assert!(!accepts(&certificates.operator, "chat-worker-0.ns.svc"));
}
