//! The connection to the database with certificates, as in a cluster.

use anyhow::Result;
use tempfile::TempDir;
use testbed::{
    certificates::{Authority, Identity},
    postgres::Server,
};

use crate::support::{Service, create_database};

struct Setup {
    authority: Authority,
    server: Server,
    directory: TempDir,
}

impl Setup {
    async fn new() -> Result<Self> {
        let authority = Authority::new()?;
        let server = Server::builder("tls")
            .tls(&authority)
            .parameter("listen_addresses", "localhost,127.0.0.2")
            .start()?;
        create_database(&server).await?;
        Ok(Self { authority, server, directory: tempfile::tempdir()? })
    }

    fn service(&self, host: &str, authority: &Authority, identity: &Identity) -> Result<Service> {
        let files = authority.write(identity, self.directory.path())?;
        let [ca, certificate, key] =
            [&files.ca, &files.certificate, &files.key].map(|path| path.display().to_string());
        Service::spawn_with(&[
            "--database-host",
            host,
            "--database-port",
            &self.server.port().to_string(),
            "--tls-ca",
            &ca,
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
        ])
    }
}

#[tokio::test]
async fn a_client_certificate_is_all_it_needs() -> Result<()> {
    let setup = Setup::new().await?;
    let service = setup.service("localhost", &setup.authority, &setup.authority.client("dialog-api")?)?;
    service.wait_until_ready().await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    client.send(&ada, &bob, "in private").await?;
    assert_eq!(client.texts(&bob, &ada).await?, ["in private"]);

    let sessions = setup
        .server
        .connect("dialog")
        .await?
        .query(
            "SELECT usename, version, client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE application_name = 'dialog-api'",
            &[],
        )
        .await?;
    assert!(!sessions.is_empty());
    for session in sessions {
        let seen: [Option<&str>; 3] = [session.get(0), session.get(1), session.get(2)];
        assert_eq!(seen, [Some("dialog_api"), Some("TLSv1.3"), Some("/CN=dialog-api")]);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_is_believed_only_with_the_right_authority_and_name() -> Result<()> {
    let setup = Setup::new().await?;
    let stranger = Authority::new()?;
    let service = setup.service("localhost", &stranger, &stranger.client("dialog-api")?)?;
    service.wait_for_log("invalid peer certificate: ")?;
    service.wait_for_ready(503).await?;

    let service = setup.service("127.0.0.2", &setup.authority, &setup.authority.client("dialog-api")?)?;
    service.wait_for_log("certificate not valid for name")?;
    service.wait_for_ready(503).await
}

#[tokio::test]
async fn the_server_believes_only_its_own_clients() -> Result<()> {
    let setup = Setup::new().await?;
    let service = setup.service("localhost", &setup.authority, &setup.authority.client("somebody")?)?;
    service.wait_for_log("certificate authentication failed for user")?;
    let port = setup.server.port().to_string();
    let plain = Service::spawn_with(&["--database-host", "localhost", "--database-port", &port])?;
    plain.wait_for_log("no encryption")?;
    plain.wait_for_ready(503).await
}
