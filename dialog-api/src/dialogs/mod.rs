//! Dialogs between two users: which dialog a pair has ([`pair`]), sending, listing ([`page`], and where it goes on in
//! the archive), changing what one has said ([`change`]), and who has read how far ([`marks`]).

mod archive;
pub mod change;
pub mod marks;
pub mod page;
pub mod pair;

use std::{sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use self::pair::Pair;
use crate::{
    clock::Clock,
    database::{Database, Parameters, error::DatabaseError, statements::Sql},
    inbox::Inbox,
    rate::RateLimit,
    recent::RecentSet,
    streams::{News, Notice, Streams},
    users::{Users, check_text},
};

/// Longest message, in characters.
pub const TEXT_LIMIT: usize = 4_096;
/// Longest id that a client gives a message, in characters.
pub const CLIENT_ID_LIMIT: usize = 255;
/// Dialogs whose pair was compared that are remembered, at least; 16 bytes each and some for the set.
const REMEMBERED_DIALOGS: usize = 200_000;
/// What the hash of a client's id begins with.
const CLIENT_ID_VERSION: &[u8] = b"client-msg-id/1";

/// The id that a client gave a message of its own, so that sending it again is no second message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(Uuid);

impl ClientId {
    /// A UUID is taken as it is, anything else by its hash.
    ///
    /// # Errors
    /// When it is empty or longer than 255 characters.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.chars().count() > CLIENT_ID_LIMIT {
            return Err(format!("a client's id for a message has 1 to {CLIENT_ID_LIMIT} characters"));
        }
        Ok(Self(Uuid::try_parse(text).unwrap_or_else(|_| {
            let hash = Sha256::new().chain_update(CLIENT_ID_VERSION).chain_update(text).finalize();
            let mut id = [0; 16];
            id.copy_from_slice(&hash[..16]);
            Uuid::from_bytes(id)
        })))
    }
}

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// Who writes it.
    pub from: Uuid,
    /// To whom.
    pub to: Uuid,
    /// What: 1 to 4096 characters.
    pub text: &'a str,
    /// The sender's own id for it.
    pub client_id: Option<ClientId>,
}

/// What became of a message that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its id.
    pub id: Uuid,
    /// Whether an earlier request had sent it already.
    pub replayed: bool,
}

/// Why a message was not sent or a dialog not listed.
#[derive(Debug, thiserror::Error)]
pub enum DialogError {
    /// The text is not allowed; the sentence says why.
    #[error("{0}")]
    BadText(String),
    /// The place in the dialog is not allowed; the sentence says why.
    #[error("{0}")]
    BadRange(String),
    /// The sender has used its own id for a message with another text.
    #[error("this id was used for a message with another text")]
    OtherText,
    /// There is no such message in this dialog.
    #[error("there is no such message in this dialog")]
    UnknownMessage,
    /// Somebody else wrote the message.
    #[error("somebody else wrote this message")]
    NotTheAuthor,
    /// The message was deleted.
    #[error("this message was deleted")]
    Deleted,
    /// The sender sends too much, altogether or to this recipient; after this time it may send again.
    #[error("too many messages, try again later")]
    TooMany(Duration),
    /// There is no user of this id to talk to.
    #[error("there is no such user to talk to")]
    UnknownPeer,
    /// A statement that always returns a row did not.
    #[error("message {0} was written and did not come back")]
    Vanished(Uuid),
    /// Two pairs of users have the same dialog id. Nothing is shown or written.
    #[error("dialog {0} belongs to another pair of users: two pairs share an id")]
    Collision(Uuid),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// How much may be sent through this replica; nothing means as much as one likes.
#[derive(Debug)]
pub struct SendLimits {
    /// By each user, altogether.
    pub sender: Option<RateLimit<Uuid>>,
    /// By each user to each other.
    pub pair: Option<RateLimit<(Uuid, Uuid)>>,
}

impl SendLimits {
    fn take(&self, from: Uuid, to: Uuid) -> Result<(), Duration> {
        let now = Instant::now();
        // What one of them refuses counts for neither.
        self.pair.as_ref().map_or(Ok(()), |limit| limit.check((from, to), now))?;
        self.sender.as_ref().map_or(Ok(()), |limit| limit.take(from, now))?;
        self.pair.as_ref().map_or(Ok(()), |limit| limit.take((from, to), now))
    }
}

/// Sends and lists messages.
pub struct Dialogs {
    database: Arc<Database>,
    users: Arc<Users>,
    inbox: Arc<Inbox>,
    streams: Arc<Streams>,
    clock: Arc<Clock>,
    limits: SendLimits,
    verified: RecentSet<Uuid>,
}

impl Dialogs {
    /// Dialogs in this database. Inboxes and streams are told of what happens in them.
    #[must_use]
    pub fn new(
        database: Arc<Database>,
        users: Arc<Users>,
        inbox: Arc<Inbox>,
        streams: Arc<Streams>,
        clock: Arc<Clock>,
        limits: SendLimits,
    ) -> Self {
        Self { database, users, inbox, streams, clock, limits, verified: RecentSet::new(REMEMBERED_DIALOGS) }
    }

    /// Sends a message. When this returns, the message is durable and a list shows it.
    ///
    /// The id is fixed before the first attempt, so an attempt whose outcome got lost is simply repeated. With the
    /// sender's own id for the message, so can whole requests be: all of them send one message.
    ///
    /// # Errors
    /// When the text is empty, longer than 4096 characters or contains NUL, when the recipient does not exist, when
    /// the sender's own id was used with another text, or when the database failed; then the message may have been
    /// written or not.
    pub async fn send(&self, draft: Draft<'_>) -> Result<Sent, DialogError> {
        let Draft { from, to, text, client_id } = draft;
        check_text("text", text, 1, TEXT_LIMIT).map_err(DialogError::BadText)?;
        self.limits.take(from, to).map_err(DialogError::TooMany)?;
        let pair = Pair::new(from, to);
        let dialog = pair.dialog_id();
        self.verify(dialog, pair, to).await?;
        let (id, now) = self.clock.next_id();
        let Some(ClientId(client_id)) = client_id else {
            self.database.query(Sql::InsertMessage, &[&dialog, &id, &from, &to, &text, &now]).await?;
            self.tell(dialog, pair, id);
            return Ok(Sent { id, replayed: false });
        };
        let parameters: Parameters<'_> = &[&dialog, &id, &from, &to, &text, &now, &client_id];
        let rows = match self.database.query(Sql::InsertKeyedMessage, parameters).await {
            // An attempt given up as lost wrote this very message at the same moment: now it is there.
            Err(error) if error.is_duplicate() => {
                self.database.query(Sql::InsertKeyedMessage, parameters).await?
            }
            rows => rows?,
        };
        let row = rows.first().ok_or(DialogError::Vanished(id))?;
        let (first, first_text, changed): (Uuid, &str, bool) = (row.get(0), row.get(1), row.get(2));
        // With what text it was sent cannot be told of a message that was changed since.
        if first != id && first_text != text && !changed {
            return Err(DialogError::OtherText);
        }
        self.tell(dialog, pair, first);
        Ok(Sent { id: first, replayed: first != id })
    }

    /// A message was written.
    fn tell(&self, dialog: Uuid, pair: Pair, message: Uuid) {
        self.inbox.follow(dialog, pair, message);
        self.streams.announce(Notice { dialog, news: News::Sent });
    }

    /// Makes sure that the dialog id is this pair's and nobody else's: records the pair at first contact and
    /// compares it with what is recorded. Only at first contact the other has to be looked up among the users: a server
    /// that holds users and is away is in the way of no dialog that is elsewhere.
    async fn verify(&self, dialog: Uuid, pair: Pair, other: Uuid) -> Result<(), DialogError> {
        if self.users.erased().contains(other) {
            return Err(DialogError::UnknownPeer);
        }
        if self.verified.contains(&dialog) {
            return Ok(());
        }
        let mut recorded = self.recorded_pair(dialog).await?;
        if recorded.is_none() {
            if !self.users.exists(other).await? {
                return Err(DialogError::UnknownPeer);
            }
            let now = self.clock.now();
            self.database.query(Sql::InsertDialog, &[&dialog, &pair.low, &pair.high, &now]).await?;
            // Read again: somebody else may have been first.
            recorded = self.recorded_pair(dialog).await?;
        }
        let (recorded, closed) = recorded.ok_or(DialogError::Collision(dialog))?;
        if recorded != pair {
            return Err(DialogError::Collision(dialog));
        }
        if closed {
            return Err(DialogError::UnknownPeer);
        }
        self.verified.insert(dialog);
        Ok(())
    }

    /// Whose the dialog is, and whether one of them was erased.
    async fn recorded_pair(&self, dialog: Uuid) -> Result<Option<(Pair, bool)>, DatabaseError> {
        let rows = self.database.query(Sql::SelectDialog, &[&dialog]).await?;
        Ok(rows.first().map(|row| (Pair { low: row.get(0), high: row.get(1) }, row.get(2))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_a_uuid_or_becomes_one() {
        let uuid = Uuid::from_u128(7);
        assert_eq!(ClientId::new(&uuid.to_string()), Ok(ClientId(uuid)));
        assert_eq!(ClientId::new("order-7"), ClientId::new("order-7"));
        assert_ne!(ClientId::new("order-7"), ClientId::new("order-8"));
        assert!(ClientId::new("").is_err() && ClientId::new(&"x".repeat(256)).is_err());
    }
}
