//! Dialogs between two users: which dialog a pair has, sending, listing.

use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::{
    database::{Database, error::DatabaseError, statements::Sql},
    recent::RecentSet,
    users::{Users, check_text},
};

/// Longest message, in characters.
pub const TEXT_LIMIT: usize = 4_096;
/// Messages in one list: the newest.
pub const LIST_LIMIT: i64 = 100;
/// Dialogs whose pair was compared that are remembered, at least; 16 bytes each and some for the set.
const REMEMBERED_DIALOGS: usize = 50_000;
/// What the hash of a pair begins with, so that another way of making ids can never make the same.
const DIALOG_ID_VERSION: &[u8] = b"dialog-id/1";
/// Greater than every message id, which are all UUIDv7.
const AFTER_ALL_MESSAGES: Uuid = Uuid::max();

/// Two users, in order. The same pair whoever of them asks; both may be the same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    low: Uuid,
    high: Uuid,
}

impl Pair {
    /// The pair of these two.
    #[must_use]
    pub fn new(one: Uuid, other: Uuid) -> Self {
        Self { low: one.min(other), high: one.max(other) }
    }

    /// The id of the pair's dialog: the first 128 bits of a SHA-256, all of them used, so that two of 10^10
    /// dialogs share an id with probability 1.5e-19. It is a value of PostgreSQL's type uuid and no UUID of
    /// any version.
    #[must_use]
    pub fn dialog_id(self) -> Uuid {
        let hash = Sha256::new()
            .chain_update(DIALOG_ID_VERSION)
            .chain_update(self.low.as_bytes())
            .chain_update(self.high.as_bytes())
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Uuid::from_bytes(id)
    }
}

/// A message in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, a UUIDv7: greater ids are newer.
    pub id: Uuid,
    /// Who wrote it.
    pub from: Uuid,
    /// To whom.
    pub to: Uuid,
    /// What.
    pub text: String,
    /// When the service took it.
    pub created_at: Timestamp,
}

/// Why a message was not sent or a dialog not listed.
#[derive(Debug, thiserror::Error)]
pub enum DialogError {
    /// The text is not allowed; the sentence says why.
    #[error("{0}")]
    BadText(String),
    /// There is no user of this id to talk to.
    #[error("there is no such user to talk to")]
    UnknownPeer,
    /// Two pairs of users have the same dialog id. Nothing is shown or written.
    #[error("dialog {0} belongs to another pair of users: two pairs share an id")]
    Collision(Uuid),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Sends and lists messages.
pub struct Dialogs {
    database: Arc<Database>,
    users: Arc<Users>,
    verified: RecentSet<Uuid>,
}

impl Dialogs {
    /// Dialogs in this database.
    #[must_use]
    pub fn new(database: Arc<Database>, users: Arc<Users>) -> Self {
        Self { database, users, verified: RecentSet::new(REMEMBERED_DIALOGS) }
    }

    /// Sends a message and returns its id. When this returns, the message is durable and a list shows it.
    ///
    /// The id is fixed before the first attempt, so an attempt whose outcome got lost is simply repeated.
    ///
    /// # Errors
    /// When the text is empty, longer than 4096 characters or contains NUL, when the recipient does not exist,
    /// or when the database failed; then the message may have been written or not.
    pub async fn send(&self, from: Uuid, to: Uuid, text: &str) -> Result<Uuid, DialogError> {
        check_text("text", text, 1, TEXT_LIMIT).map_err(DialogError::BadText)?;
        if !self.users.exists(to).await? {
            return Err(DialogError::UnknownPeer);
        }
        let pair = Pair::new(from, to);
        let dialog = pair.dialog_id();
        self.verify(dialog, pair).await?;
        let (id, now) = (Uuid::now_v7(), Timestamp::now());
        self.database.query(Sql::InsertMessage, &[&dialog, &id, &from, &to, &text, &now]).await?;
        Ok(id)
    }

    /// The newest messages between the two, newest first, at most [`LIST_LIMIT`].
    ///
    /// # Errors
    /// When the other does not exist, or the database failed.
    pub async fn list(&self, reader: Uuid, peer: Uuid) -> Result<Vec<Message>, DialogError> {
        let pair = Pair::new(reader, peer);
        let dialog = pair.dialog_id();
        let rows =
            self.database.query(Sql::ListMessages, &[&dialog, &AFTER_ALL_MESSAGES, &LIST_LIMIT]).await?;
        // Whoever has exchanged messages exists: only a dialog without any needs the question.
        if rows.is_empty() && !self.users.exists(peer).await? {
            return Err(DialogError::UnknownPeer);
        }
        rows.iter()
            .map(|row| {
                let message = message(row);
                // Each message names its pair, so a shared id cannot show anybody's messages to others.
                if Pair::new(message.from, message.to) == pair {
                    Ok(message)
                } else {
                    Err(DialogError::Collision(dialog))
                }
            })
            .collect()
    }

    /// Makes sure that the dialog id is this pair's and nobody else's: records the pair at first contact and
    /// compares it with what is recorded.
    async fn verify(&self, dialog: Uuid, pair: Pair) -> Result<(), DialogError> {
        if self.verified.contains(&dialog) {
            return Ok(());
        }
        let mut recorded = self.recorded_pair(dialog).await?;
        if recorded.is_none() {
            let now = Timestamp::now();
            self.database.query(Sql::InsertDialog, &[&dialog, &pair.low, &pair.high, &now]).await?;
            // Read again: somebody else may have been first.
            recorded = self.recorded_pair(dialog).await?;
        }
        if recorded != Some(pair) {
            return Err(DialogError::Collision(dialog));
        }
        self.verified.insert(dialog);
        Ok(())
    }

    async fn recorded_pair(&self, dialog: Uuid) -> Result<Option<Pair>, DatabaseError> {
        let rows = self.database.query(Sql::SelectDialog, &[&dialog]).await?;
        Ok(rows.first().map(|row| Pair { low: row.get(0), high: row.get(1) }))
    }
}

fn message(row: &Row) -> Message {
    Message { id: row.get(0), from: row.get(1), to: row.get(2), text: row.get(3), created_at: row.get(4) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_id() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    /// Dialogs already stored are found by this value: it can never change.
    #[test]
    fn the_id_of_a_dialog_is_fixed_for_ever() {
        let pair = Pair::new(Uuid::from_u128(1), Uuid::from_u128(2));
        let hash = Sha256::digest(
            [b"dialog-id/1".as_slice(), Uuid::from_u128(1).as_bytes(), Uuid::from_u128(2).as_bytes()]
                .concat(),
        );
        assert_eq!(pair.dialog_id().as_bytes(), &hash[..16]);
        assert_eq!(pair.dialog_id().to_string(), "61ade535-9df9-9edf-57d7-d1f1bc88f8c3");
    }

    proptest! {
        #[test]
        fn both_have_the_same_dialog(one in any_id(), other in any_id()) {
            prop_assert_eq!(Pair::new(one, other).dialog_id(), Pair::new(other, one).dialog_id());
        }

        #[test]
        fn another_pair_has_another_dialog(one in any_id(), other in any_id(), third in any_id()) {
            prop_assume!(other != third);
            prop_assert_ne!(Pair::new(one, other).dialog_id(), Pair::new(one, third).dialog_id());
        }
    }
}
