//! Changing and deleting one's own messages. A deleted message stays as a tombstone: its place, without its text.

use jiff::SignedDuration;
use uuid::Uuid;

use super::{DialogError, Dialogs, TEXT_LIMIT, page::Message, pair::Pair};
use crate::{
    database::statements::Sql,
    streams::{News, Notice},
    users::check_text,
};

/// The smallest difference between two times in the database.
const CLOCK_STEP: SignedDuration = SignedDuration::from_micros(1);

impl Dialogs {
    /// Gives a message of the author another text and returns the message. Of two changes at a time the later stays.
    ///
    /// # Errors
    /// When the text is not allowed, when there is no such message between the two, somebody else wrote it, it was
    /// deleted, or the database failed.
    pub async fn edit(&self, author: Uuid, peer: Uuid, id: Uuid, text: &str) -> Result<Message, DialogError> {
        check_text("text", text, 1, TEXT_LIMIT).map_err(DialogError::BadText)?;
        let dialog = Pair::new(author, peer).dialog_id();
        let mut time = self.clock.now();
        loop {
            // What is archived in between is found by the second: it takes a message from one and gives it to the other.
            for sql in [Sql::EditMessage, Sql::EditArchived] {
                let rows = self.database.query(sql, &[&dialog, &id, &author, &text, &time]).await?;
                if let Some(row) = rows.first() {
                    self.streams.announce(Notice { dialog, news: News::Changed(id) });
                    return Ok(Message::from(row));
                }
            }
            let message = self.own(author, peer, id).await?;
            if message.deleted_at.is_some() {
                return Err(DialogError::Deleted);
            }
            // The clock of whoever changed it last was ahead of ours, or ours was set back. Or its shard has just come to
            // the node that was asked: a statement that waits there for the end of the move goes by what was there before
            // it waited, and changes nothing.
            if let Some(last) = message.edited_at.filter(|last| *last > time) {
                time = last + CLOCK_STEP;
            }
        }
    }

    /// Deletes a message of the author. Deleting it again changes nothing.
    ///
    /// # Errors
    /// When there is no such message between the two, somebody else wrote it, or the database failed.
    pub async fn delete(&self, author: Uuid, peer: Uuid, id: Uuid) -> Result<(), DialogError> {
        let dialog = Pair::new(author, peer).dialog_id();
        let now = self.clock.now();
        loop {
            for sql in [Sql::DeleteMessage, Sql::DeleteArchived] {
                if !self.database.query(sql, &[&dialog, &id, &author, &now]).await?.is_empty() {
                    self.streams.announce(Notice { dialog, news: News::Changed(id) });
                    return Ok(());
                }
            }
            // If it is there and not deleted, its shard has just come, as above.
            if self.own(author, peer, id).await?.deleted_at.is_some() {
                return Ok(());
            }
        }
    }

    /// A message of the dialog between the two, if there is one of this id.
    ///
    /// # Errors
    /// When the database failed.
    pub async fn get(&self, reader: Uuid, peer: Uuid, id: Uuid) -> Result<Option<Message>, DialogError> {
        let pair = Pair::new(reader, peer);
        let mut rows = self.database.query(Sql::SelectMessage, &[&pair.dialog_id(), &id]).await?;
        if rows.is_empty() {
            rows = self.database.query(Sql::SelectArchived, &[&pair.dialog_id(), &id]).await?;
        }
        let message = rows.first().map(Message::from);
        if message.as_ref().is_some_and(|message| Pair::new(message.from, message.to) != pair) {
            return Err(DialogError::Collision(pair.dialog_id()));
        }
        Ok(message)
    }

    /// The message, if this is its author.
    async fn own(&self, author: Uuid, peer: Uuid, id: Uuid) -> Result<Message, DialogError> {
        let message = self.get(author, peer, id).await?.ok_or(DialogError::UnknownMessage)?;
        if message.from == author { Ok(message) } else { Err(DialogError::NotTheAuthor) }
    }
}
