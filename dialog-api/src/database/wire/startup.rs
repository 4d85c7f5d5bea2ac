//! From an address to a connection on which statements can be executed: TLS, login, and the statements prepared.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::types::Type;

use super::{
    error::ServerError,
    messages::{self, tag},
    stream::{Address, Keepalive, Stream},
};

/// A database, and as whom to use it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name or address of the server, or the directory of its Unix socket.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The role. It logs in with a certificate, or is trusted; there are no passwords.
    pub user: String,
    /// The database.
    pub database: String,
    /// What the session is called in `pg_stat_activity`.
    pub application_name: String,
    /// Settings of the session, as the server's command line has them.
    pub settings: String,
    /// With what to make and to demand TLS; without it there is none.
    pub tls: Option<Arc<ClientConfig>>,
    /// Longest time for an address to take the connection.
    pub address_limit: Duration,
    /// When a silent server is taken to be gone.
    pub keepalive: Keepalive,
}

/// A statement that the server knows.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// Types of its parameters, as the server has them.
    pub(super) parameters: Vec<Type>,
    /// See [`messages::bind_prefix`].
    pub(super) bind_prefix: Box<[u8]>,
}

/// A session that takes statements. Nothing is under way.
pub(super) struct Opened {
    pub(super) stream: Stream,
    /// What has been received beyond what was waited for: the server may say something at any time.
    pub(super) received: BytesMut,
    pub(super) statements: Vec<Prepared>,
}

/// A session that is being made.
struct Opening {
    stream: Stream,
    received: BytesMut,
}

/// Opens a session at the first address that takes it and can be written to, with these statements prepared.
pub(super) async fn open(target: &Target, statements: &[&str]) -> Result<Opened> {
    let mut failure = anyhow!("{} has no address", target.host);
    for address in Address::all(&target.host, target.port).await.context("look up the address")? {
        let session = async {
            let mut opening = Opening::connect(target, &address).await?;
            opening.log_in(target).await?;
            opening.expect_writable().await?;
            anyhow::Ok(opening)
        };
        match session.await {
            // What is wrong with a statement here is wrong at other addresses.
            Ok(opening) => return opening.prepare(statements).await,
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

impl Opening {
    async fn connect(target: &Target, address: &Address) -> Result<Self> {
        let mut stream = Stream::connect(address, target.address_limit, target.keepalive).await?;
        if let Some(config) = &target.tls {
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            stream.write_all(&request).await?;
            // No byte more than the answer: what is behind it belongs to TLS.
            if stream.read_u8().await? != b'S' {
                bail!("the server has no TLS");
            }
            stream = stream.secured(&target.host, Arc::clone(config)).await?;
        }
        Ok(Self { stream, received: BytesMut::new() })
    }

    async fn log_in(&mut self, target: &Target) -> Result<()> {
        let mut start = BytesMut::new();
        let parameters = [
            ("client_encoding", "UTF8"),
            ("user", &target.user),
            ("database", &target.database),
            ("application_name", &target.application_name),
            ("options", &target.settings),
        ];
        frontend::startup_message(parameters, &mut start)?;
        self.send(&start).await?;
        match self.message().await? {
            (tag::AUTHENTICATION, kind) if *kind == [0; 4] => {}
            (tag::AUTHENTICATION, _) => bail!("the server asks for a password, and there is none"),
            _ => bail!("the server does not answer a login as one of PostgreSQL"),
        }
        loop {
            match self.message().await?.0 {
                tag::BACKEND_KEY => {}
                tag::READY => return Ok(()),
                other => bail!("unexpected message {:?} after the login", char::from(other)),
            }
        }
    }

    /// A standby, or a primary that was demoted a moment ago, is no use.
    async fn expect_writable(&mut self) -> Result<()> {
        let mut question = BytesMut::new();
        frontend::query("SHOW transaction_read_only", &mut question)?;
        self.send(&question).await?;
        let mut read_only = None;
        loop {
            match self.message().await? {
                // One column of two or three letters.
                (tag::DATA_ROW, row) => read_only = Some(row.ends_with(b"on")),
                (tag::ROW_DESCRIPTION | tag::COMMAND_COMPLETE, _) => {}
                (tag::READY, _) => break,
                (other, _) => bail!("unexpected message {:?} about a setting", char::from(other)),
            }
        }
        match read_only {
            Some(false) => Ok(()),
            Some(true) => bail!("the server does not allow writes"),
            None => bail!("the server does not say whether it allows writes"),
        }
    }

    /// Prepares all statements in one round trip.
    async fn prepare(mut self, statements: &[&str]) -> Result<Opened> {
        let name = |number: usize| format!("s{number}");
        let mut request = BytesMut::new();
        for (number, text) in statements.iter().enumerate() {
            frontend::parse(&name(number), text, [], &mut request)?;
            frontend::describe(b'S', &name(number), &mut request)?;
        }
        frontend::sync(&mut request);
        self.send(&request).await?;
        let mut prepared = Vec::with_capacity(statements.len());
        for (number, text) in statements.iter().enumerate() {
            let described = self.described(&name(number)).await;
            prepared.push(described.with_context(|| format!("prepare {text:?}"))?);
        }
        match self.message().await? {
            (tag::READY, _) => {}
            (other, _) => bail!("unexpected message {:?} after the statements", char::from(other)),
        }
        Ok(Opened { stream: self.stream, received: self.received, statements: prepared })
    }

    async fn described(&mut self, name: &str) -> Result<Prepared> {
        let mut parameters = Vec::new();
        loop {
            match self.message().await? {
                (tag::PARSE_COMPLETE, _) => {}
                (tag::PARAMETER_DESCRIPTION, body) => {
                    let (_, oids) = body.split_first_chunk::<2>().context("a description that is cut")?;
                    for oid in oids.chunks_exact(4) {
                        let oid = u32::from_be_bytes(oid.try_into()?);
                        parameters.push(Type::from_oid(oid).with_context(|| format!("unknown type {oid}"))?);
                    }
                }
                (tag::ROW_DESCRIPTION | tag::NO_DATA, _) => break,
                (other, _) => bail!("unexpected message {:?}", char::from(other)),
            }
        }
        let bind_prefix = messages::bind_prefix(name, u16::try_from(parameters.len())?);
        Ok(Prepared { parameters, bind_prefix })
    }

    async fn send(&mut self, messages: &[u8]) -> Result<()> {
        self.stream.write_all(messages).await?;
        // TLS keeps what it has no room to write.
        Ok(self.stream.flush().await?)
    }

    /// The next message that is an answer. An error is one.
    async fn message(&mut self) -> Result<(u8, BytesMut)> {
        loop {
            let Some((tag, length)) = messages::first(&self.received)?.map(|(tag, body)| (tag, body.len()))
            else {
                if self.stream.read_buf(&mut self.received).await? == 0 {
                    bail!("the server closed the connection");
                }
                continue;
            };
            let body = self.received.split_to(messages::HEADER + length).split_off(messages::HEADER);
            match tag {
                tag::NOTICE | tag::PARAMETER_STATUS | tag::NOTIFICATION => {}
                tag::ERROR => {
                    return Err(ServerError::read(&body).context("an error that cannot be read")?.into());
                }
                _ => return Ok((tag, body)),
            }
        }
    }
}
