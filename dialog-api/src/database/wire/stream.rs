//! What a connection travels on: TCP, with TLS or without, or a Unix socket.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Where a server can be reached.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// How long a peer may stay silent before it is asked, how often it is asked again, and how often in vain.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Silence before the first question; also how long what was sent may stay unacknowledged.
    pub idle: Duration,
    /// Pause between questions.
    pub interval: Duration,
    /// Questions without an answer until the peer is taken to be gone.
    pub retries: u32,
}

/// A way to a server and back.
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Address {
    /// All addresses of a host. A path is that of the directory in which the server has its Unix socket.
    pub(super) async fn all(host: &str, port: u16) -> io::Result<Vec<Self>> {
        if host.starts_with('/') {
            return Ok(vec![Self::Unix(PathBuf::from(host).join(format!(".s.PGSQL.{port}")))]);
        }
        Ok(lookup_host((host, port)).await?.map(Self::Tcp).collect())
    }
}

impl Stream {
    /// Connects to an address, which has this time to take the connection.
    pub(super) async fn connect(
        address: &Address,
        limit: Duration,
        keepalive: Keepalive,
    ) -> io::Result<Self> {
        let connect = async {
            Ok(match address {
                Address::Tcp(address) => Self::Tcp(TcpStream::connect(address).await?),
                Address::Unix(path) => Self::Unix(UnixStream::connect(path).await?),
            })
        };
        let late =
            |_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("not connected within {limit:?}")));
        let stream = timeout(limit, connect).await.unwrap_or_else(late)?;
        if let Self::Tcp(stream) = &stream {
            stream.set_nodelay(true)?;
            let Keepalive { idle, interval, retries } = keepalive;
            let settings = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
            let socket = SockRef::from(stream);
            socket.set_tcp_keepalive(&settings)?;
            socket.set_tcp_user_timeout(Some(idle))?;
        }
        Ok(stream)
    }

    /// Goes on with TLS, for which both sides are ready.
    pub(super) async fn secured(self, host: &str, config: Arc<ClientConfig>) -> Result<Self> {
        let Self::Tcp(stream) = self else { anyhow::bail!("TLS needs TCP") };
        let name = ServerName::try_from(host.to_owned()).context("no name that a certificate could have")?;
        let stream = TlsConnector::from(config).connect(name, stream).await.context("TLS")?;
        Ok(Self::Tls(Box::new(stream)))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
