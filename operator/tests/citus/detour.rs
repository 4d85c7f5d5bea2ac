//! A way to a server that can be cut, for everybody or for one other server.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use tokio::io::{self, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Who does not get through. Nothing is refused or closed: what is sent is lost, as on a network that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nobody is kept.
    Nobody,
    /// The processes of the server whose main process this is.
    Server(u32),
    /// Everybody.
    Everybody,
}

impl Cut {
    fn keeps(self, parent: Option<u32>) -> bool {
        match self {
            Self::Nobody => false,
            Self::Server(pid) => parent == Some(pid),
            Self::Everybody => true,
        }
    }
}

/// Takes connections for a server until it is dropped.
pub struct Detour {
    port: u16,
    cut: watch::Sender<Cut>,
}

impl Detour {
    /// An open way to this port of this machine.
    pub async fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (port, cut) = (listener.local_addr()?.port(), watch::Sender::new(Cut::Nobody));
        let mut changes = cut.subscribe();
        tokio::spawn(async move {
            let accept = accept(&listener, port, server, changes.clone());
            tokio::select! {
                _ = changes.wait_for(|_| false) => Ok(()),
                end = accept => end,
            }
        });
        Ok(Self { port, cut })
    }

    /// Where it takes connections.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Keeps from now on whom `cut` says. Who was kept before has lost what was sent, and has to connect again.
    pub fn set(&self, cut: Cut) {
        self.cut.send_replace(cut);
    }
}

async fn accept(listener: &TcpListener, port: u16, server: u16, changes: watch::Receiver<Cut>) -> Result<()> {
    loop {
        let (client, address) = listener.accept().await?;
        let parent = parent_of_owner(address, port)?;
        tokio::spawn(lead(client, server, parent, changes.clone()));
    }
}

/// Leads a connection to the server until the way is cut for it; then both ends hear nothing until the way is free again.
async fn lead(
    mut client: TcpStream,
    server: u16,
    parent: Option<u32>,
    mut changes: watch::Receiver<Cut>,
) -> io::Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let cut = async {
        let _ = changes.wait_for(|cut| cut.keeps(parent)).await;
    };
    tokio::select! {
        biased;
        () = cut => {}
        end = copy_bidirectional(&mut client, &mut server) => return end.map(drop),
    }
    let _ = changes.wait_for(|cut| !cut.keeps(parent)).await;
    Ok(())
}

/// The parent of the process that has the connection from `client` to this `port`, as the kernel's tables say; for a
/// server's process that is the server's main process.
fn parent_of_owner(client: SocketAddr, port: u16) -> Result<Option<u32>> {
    let (local, remote) = (format!("0100007F:{:04X}", client.port()), format!("0100007F:{port:04X}"));
    let table = std::fs::read_to_string("/proc/net/tcp").context("read the connections of this machine")?;
    let inode = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&remote.as_str()))
            .then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    });
    let Some(inode) = inode else { return Ok(None) };
    // A process may end while it is looked at.
    let has = |process: &Path| {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == Path::new(&inode)))
    };
    let processes: BTreeSet<_> =
        std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path()).filter(|path| has(path)).collect();
    let parent = |process: &Path| {
        // "pid (name) state parent ...", and the name may hold anything.
        let text = std::fs::read_to_string(process.join("stat")).ok()?;
        text.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
    };
    Ok(processes.iter().find_map(|process| parent(process)))
}
