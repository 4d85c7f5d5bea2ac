//! Tells the other replicas what happened, in datagrams.
//!
//! The others are whoever the configured names resolve to, this replica included, which does no harm. A datagram is
//! signed with the key that all replicas share, so that nobody else can make them read; it may be lost or repeated.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::{net::UdpSocket, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{News, Notice, Streams};

/// What a datagram begins with, so that another layout can never be taken for this one.
const VERSION: &[u8] = b"dialog-peers/1";
/// Length of a notice: dialog, and the message that changed or zeros.
const NOTICE: usize = 32;
/// Length of the signature, the first half of a SHA-256.
const SIGNATURE: usize = 16;
/// Notices in one datagram, which then fits into any network's packets.
const NOTICES: usize = 32;
/// Notices that wait to be sent.
const WAITING: usize = 4_096;
/// How often names are resolved.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);
/// Longest time to resolve a name.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);
/// Pause after the socket failed.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// Signs and checks datagrams.
#[derive(Clone)]
pub struct Seal(Hmac<Sha256>);

impl Seal {
    /// With the key that all replicas share.
    ///
    /// # Errors
    /// When the key cannot be used, which HMAC does not know.
    pub fn new(key: &[u8]) -> Result<Self, hmac::digest::InvalidLength> {
        Ok(Self(Hmac::new_from_slice(key)?))
    }

    fn encode(&self, notices: &[Notice]) -> Vec<u8> {
        let mut datagram = VERSION.to_vec();
        for Notice { dialog, news } in notices {
            datagram.extend(dialog.as_bytes());
            let message = match news {
                News::Sent => Uuid::nil(),
                News::Changed(message) => *message,
            };
            datagram.extend(message.as_bytes());
        }
        let signature = self.0.clone().chain_update(&datagram).finalize().into_bytes();
        datagram.extend(&signature[..SIGNATURE]);
        datagram
    }

    /// The notices in a datagram; nothing when it is not from one of us.
    fn decode(&self, datagram: &[u8]) -> Option<Vec<Notice>> {
        let (signed, signature) = datagram.split_at_checked(datagram.len().checked_sub(SIGNATURE)?)?;
        // Compares in constant time.
        self.0.clone().chain_update(signed).verify_truncated_left(signature).ok()?;
        let (notices, []) = signed.strip_prefix(VERSION)?.as_chunks::<NOTICE>() else { return None };
        let notice = |bytes: &[u8; NOTICE]| {
            let (dialog, message) = bytes.split_at(NOTICE / 2);
            let (dialog, message) = (Uuid::from_slice(dialog).ok()?, Uuid::from_slice(message).ok()?);
            Some(Notice { dialog, news: if message.is_nil() { News::Sent } else { News::Changed(message) } })
        };
        notices.iter().map(notice).collect()
    }
}

/// Tells and listens until told to stop. `names` are host names or addresses with ports.
pub async fn run(
    streams: Arc<Streams>,
    socket: UdpSocket,
    seal: Seal,
    names: Vec<String>,
    stop: CancellationToken,
) {
    let (sender, notices) = mpsc::channel(WAITING);
    // Done once in the life of the process.
    let _ = streams.peers.set(sender);
    let addresses = Mutex::new(Vec::new());
    let work = async {
        tokio::join!(
            resolve(&names, &addresses),
            tell(&socket, &seal, notices, &addresses),
            listen(&socket, &seal, &streams)
        )
    };
    stop.run_until_cancelled(work).await;
}

/// Keeps the addresses what the names say. What cannot be resolved at the moment keeps its addresses.
async fn resolve(names: &[String], addresses: &Mutex<Vec<SocketAddr>>) {
    loop {
        let mut found = Vec::new();
        let mut failed = false;
        for name in names {
            match timeout(RESOLVE_LIMIT, tokio::net::lookup_host(name.as_str())).await {
                Ok(Ok(several)) => found.extend(several),
                Ok(Err(error)) => {
                    failed = true;
                    tracing::debug!(name, %error, "the other replicas are not known by this name");
                }
                Err(_elapsed) => failed = true,
            }
        }
        if !failed || !found.is_empty() {
            *addresses.lock().unwrap_or_else(PoisonError::into_inner) = found;
        }
        tokio::time::sleep(RESOLVE_INTERVAL).await;
    }
}

async fn tell(
    socket: &UdpSocket,
    seal: &Seal,
    mut notices: mpsc::Receiver<Notice>,
    addresses: &Mutex<Vec<SocketAddr>>,
) {
    let mut together = Vec::with_capacity(NOTICES);
    while notices.recv_many(&mut together, NOTICES).await > 0 {
        let datagram = seal.encode(&together);
        together.clear();
        let to = addresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for address in to {
            if let Err(error) = socket.send_to(&datagram, address).await {
                tracing::debug!(%address, %error, "a replica was not told");
            }
        }
    }
}

async fn listen(socket: &UdpSocket, seal: &Seal, streams: &Streams) {
    let mut buffer = [0; VERSION.len() + NOTICES * NOTICE + SIGNATURE + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let Some(notices) = seal.decode(&buffer[..length]) else {
                    tracing::debug!(%from, "a datagram that is not from one of us");
                    continue;
                };
                for notice in notices {
                    streams.tell(notice);
                }
            }
            Err(error) => {
                // Such as "connection refused" from a replica that is gone.
                tracing::debug!(%error, "receive from the other replicas");
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal() -> Seal {
        Seal::new(b"a key that all replicas share...").unwrap()
    }

    #[test]
    fn a_datagram_of_another_key_or_kind_says_nothing() {
        let notices = [Notice { dialog: Uuid::from_u128(1), news: News::Sent }];
        let datagram = Seal::new(b"another key").unwrap().encode(&notices);
        assert_eq!(seal().decode(&datagram), None);
        let mut unsigned = seal().encode(&notices);
        unsigned.truncate(unsigned.len() - SIGNATURE);
        for datagram in [&[][..], &[0; SIGNATURE], VERSION, &unsigned] {
            assert_eq!(seal().decode(datagram), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_told_is_heard(ids in prop::collection::vec((any::<u128>(), any::<u128>()), 0..NOTICES)) {
            let notice = |(dialog, message): (u128, u128)| Notice {
                dialog: Uuid::from_u128(dialog),
                news: if message % 2 == 0 { News::Sent } else { News::Changed(Uuid::from_u128(message)) },
            };
            let notices: Vec<_> = ids.into_iter().map(notice).collect();
            prop_assert_eq!(seal().decode(&seal().encode(&notices)), Some(notices));
        }

        #[test]
        fn a_changed_datagram_says_nothing(place in 0_usize..1000, change in 1_u8..) {
            let mut datagram = seal().encode(&[Notice { dialog: Uuid::from_u128(9), news: News::Sent }]);
            let place = place % datagram.len();
            datagram[place] ^= change;
            prop_assert_eq!(seal().decode(&datagram), None);
        }
    }
}
