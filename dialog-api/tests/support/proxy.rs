//! A way to a server that can be interrupted, as it is while another server takes its place.

use std::net::Ipv4Addr;

use anyhow::Result;
use tokio::{
    io::{self, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They go to the server.
    Open,
    /// They end at once, as those to a server that has just stopped.
    Closed,
    /// Those that there are end; new ones come about and nobody answers on them, not later either: as those to the
    /// address of a machine that has gone.
    Silent,
}

/// Takes connections for a server until it is dropped.
pub(crate) struct Proxy {
    port: u16,
    way: watch::Sender<Way>,
}

impl Proxy {
    /// An open way to this port of this machine.
    pub(crate) async fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (port, way) = (listener.local_addr()?.port(), watch::Sender::new(Way::Open));
        let changes = way.subscribe();
        tokio::spawn(async move {
            let mut dropped = changes.clone();
            tokio::select! {
                _ = dropped.wait_for(|_| false) => Ok(()),
                end = accept(listener, server, changes) => end,
            }
        });
        Ok(Self { port, way })
    }

    /// Where it takes connections.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes the way, from now on and for connections that there are.
    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn accept(listener: TcpListener, server: u16, changes: watch::Receiver<Way>) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let mut changes = changes.clone();
        let way = *changes.borrow_and_update();
        match way {
            Way::Open => {
                tokio::spawn(async move {
                    tokio::select! {
                        _ = changes.changed() => Ok(()),
                        end = pass_on(client, server) => end,
                    }
                });
            }
            Way::Closed => drop(client),
            Way::Silent => {
                tokio::spawn(swallow(client));
            }
        }
    }
}

async fn pass_on(mut client: TcpStream, server: u16) -> io::Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Says nothing until the client has had enough.
async fn swallow(mut client: TcpStream) -> io::Result<()> {
    io::copy(&mut client, &mut io::sink()).await.map(drop)
}
