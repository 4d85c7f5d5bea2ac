//! Who may give orders to Patroni: its REST API restarts servers and sets any parameter, commands for archiving among
//! them. Whoever may do that may do everything.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::{Group, PATRONI_PORT};
use dialog_operator::tls;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::bed::Bed;
use crate::forward::Forward;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);
/// What somebody would do who has got hold of dialog-api.
const HOSTILE: &str = r#"{"postgresql": {"parameters": {"archive_command": "touch /tmp/taken-over"}}}"#;
/// An order that changes nothing.
const HARMLESS: &str = r#"{"ttl": 20}"#;

#[tokio::test(flavor = "multi_thread")]
async fn patroni_obeys_the_operator_and_nobody_else() -> Result<()> {
    let bed = Bed::new("commands").await?;
    bed.create(0, |_| {}).await?;
    bed.ready().await?;
    bed.talk()?;

    let names = &bed.names;
    let secret =
        async |name: String| bed.all::<Secret>().get(&name).await.with_context(|| format!("Secret {name}"));
    let authority = part(&secret(names.authority()).await?, "ca.crt")?;
    let with = async |name: String| -> Result<ClientConfig> {
        let secret = secret(name).await?;
        Ok(tls::client(&authority, &part(&secret, "tls.crt")?, &part(&secret, "tls.key")?)?)
    };
    let patroni = Patroni::of(&bed, Group::Coordinator)?;

    // Probes come without a certificate, so the port answers anybody.
    ensure!(patroni.ask(&nobody(&authority)?, "GET /liveness", "")? == Some(200), "Patroni does not answer");
    let strangers = [
        ("nobody", nobody(&authority)?),
        ("dialog-api", with(names.api_certificate()).await?),
        ("the operator, as databases know it", with(names.operator_certificate()).await?),
    ];
    for (who, tls) in strangers {
        for order in ["PATCH /config", "POST /restart"] {
            let status = patroni.ask(&tls, order, HOSTILE)?;
            bed.say(format!("{order} of {who}: {status:?}"));
            // Either the certificate is not believed, or it is not enough.
            ensure!(matches!(status, None | Some(401 | 403)), "{order} of {who} is answered with {status:?}");
        }
    }
    let commander = with(names.patroni_certificate()).await?;
    let status = patroni.ask(&commander, "PATCH /config", HARMLESS)?;
    ensure!(status == Some(200), "Patroni does not obey the operator: {status:?}");

    let state = bed.all::<ConfigMap>().get(&names.patroni_state(Group::Coordinator, "config")).await?;
    let configuration = state.annotations().get("config").context("Patroni keeps no configuration")?;
    ensure!(!configuration.contains("taken-over"), "somebody was obeyed: {configuration}");
    bed.done();
    Ok(())
}

fn part(secret: &Secret, key: &str) -> Result<Vec<u8>> {
    let data = secret.data.as_ref().and_then(|data| data.get(key));
    Ok(data.with_context(|| format!("Secret {} has no {key}", secret.name_any()))?.0.clone())
}

/// Believes the cluster's authority, and shows nothing.
fn nobody(authority: &[u8]) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A way to the Patroni of a group's first instance.
struct Patroni {
    forward: Forward,
    host: String,
}

impl Patroni {
    fn of(bed: &Bed, group: Group) -> Result<Self> {
        let pod = bed.names.pod(group, 0);
        let host = bed.names.instance_host(group, &pod);
        Ok(Self { forward: Forward::to(bed, &pod, PATRONI_PORT)?, host })
    }

    /// The HTTP status of a request such as `GET /config`; `None` if TLS ends without an answer.
    fn ask(&self, tls: &ClientConfig, request: &str, body: &str) -> Result<Option<u16>> {
        let socket = TcpStream::connect(("127.0.0.1", self.forward.port()))?;
        socket.set_read_timeout(Some(LIMIT))?;
        let name = ServerName::try_from(self.host.clone())?;
        let session = ClientConnection::new(Arc::new(tls.clone()), name)?;
        let mut stream = StreamOwned::new(session, socket);
        let text = format!(
            "{request} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.host,
            body.len()
        );
        // With TLS 1.3 the server refuses a certificate only after the client believes to be connected.
        let mut start = [0; 12];
        let answered = stream.write_all(text.as_bytes()).and_then(|()| stream.read_exact(&mut start));
        match answered {
            Ok(()) => {
                let start = String::from_utf8_lossy(&start);
                let status = start.rsplit(' ').next().and_then(|status| status.parse().ok());
                Ok(Some(status.with_context(|| format!("no HTTP: {start}"))?))
            }
            Err(error) if is_refusal(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{request} at {}", self.host)),
        }
    }
}

/// Whether the server said, in TLS, that it does not take the certificate. Anything else is no proof.
fn is_refusal(error: &std::io::Error) -> bool {
    let source = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(source, Some(rustls::Error::AlertReceived(_)))
}
