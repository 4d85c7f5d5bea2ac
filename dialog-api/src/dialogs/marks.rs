//! How far each of the two has read, and how much is unread.
//!
//! Nothing is counted while messages are sent: a counter for each user would be one row that everybody who writes to
//! that user waits for. What is unread is counted when somebody asks, over the messages after the mark.

use uuid::Uuid;

use super::{
    DialogError, Dialogs,
    page::{Message, Range},
    pair::Pair,
};
use crate::database::{error::DatabaseError, statements::Sql};

/// Most unread messages that are told; more are this many.
pub const UNREAD_LIMIT: usize = 100;
/// Newest messages among which the unread ones are counted.
const UNREAD_WINDOW: i64 = 300;

/// How a dialog stands for one of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Messages of the other that are newer than the mark and not deleted, at most [`UNREAD_LIMIT`], counted among
    /// the newest 300.
    pub unread: usize,
    /// The last message that was read.
    pub last_read: Option<Uuid>,
    /// The last message that the other has read.
    pub peer_last_read: Option<Uuid>,
}

impl Dialogs {
    /// Notes that everything up to this message, or up to the newest, was read. The mark never goes back, and never
    /// beyond the newest message.
    ///
    /// # Errors
    /// When the other does not exist, or the database failed.
    pub async fn mark_read(
        &self,
        reader: Uuid,
        peer: Uuid,
        up_to: Option<Uuid>,
    ) -> Result<Standing, DialogError> {
        let newest = self.list(reader, peer, Range::default(), 1).await?;
        if let Some(newest) = newest.messages.first() {
            let mark = up_to.map_or(newest.id, |id| id.min(newest.id));
            let dialog = Pair::new(reader, peer).dialog_id();
            self.database.query(Sql::MarkRead, &[&dialog, &reader, &mark]).await?;
        }
        Ok(self.standing_after(reader, peer, newest.messages.first()).await?)
    }

    /// How the dialog stands for the reader.
    ///
    /// # Errors
    /// When the other does not exist, or the database failed.
    pub async fn standing(&self, reader: Uuid, peer: Uuid) -> Result<Standing, DialogError> {
        let newest = self.list(reader, peer, Range::default(), 1).await?;
        Ok(self.standing_after(reader, peer, newest.messages.first()).await?)
    }

    /// The newest message with how the dialog stands, for the inbox.
    pub(crate) async fn glance(
        &self,
        reader: Uuid,
        peer: Uuid,
    ) -> Result<(Option<Message>, Standing), DialogError> {
        let newest = self.list(reader, peer, Range::default(), 1).await?.messages.pop();
        let standing = self.standing_after(reader, peer, newest.as_ref()).await?;
        Ok((newest, standing))
    }

    async fn standing_after(
        &self,
        reader: Uuid,
        peer: Uuid,
        newest: Option<&Message>,
    ) -> Result<Standing, DatabaseError> {
        let Some(newest) = newest else { return Ok(Standing::default()) };
        let dialog = Pair::new(reader, peer).dialog_id();
        let marks = self.database.query(Sql::SelectReadMarks, &[&dialog]).await?;
        let mark = |user: Uuid| marks.iter().find(|row| row.get::<Uuid>(0) == user).map(|row| row.get(1));
        let (last_read, peer_last_read): (Option<Uuid>, _) = (mark(reader), mark(peer));
        let after = last_read.unwrap_or_default();
        // Nothing is newer than the newest.
        let unread = if after >= newest.id {
            0
        } else {
            let rows = self.database.query(Sql::ListAuthorsAfter, &[&dialog, &after, &UNREAD_WINDOW]).await?;
            let others = rows.iter().filter(|row| row.get::<Uuid>(0) != reader && !row.get::<bool>(1));
            others.take(UNREAD_LIMIT).count()
        };
        Ok(Standing { unread, last_read, peer_last_read })
    }
}
