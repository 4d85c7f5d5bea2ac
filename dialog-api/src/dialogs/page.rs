//! Listing a dialog, a page at a time, by key: however long the dialog is, a page costs the same.

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DialogError, Dialogs,
    archive::{Edge, Found, beyond, joined},
    pair::Pair,
};
use crate::database::{
    statements::Sql,
    wire::rows::{Row, Value},
};

/// Most messages in one page.
pub const PAGE_LIMIT: u16 = 100;

/// The column of a list that says whether the messages before this one are archived.
const OLDER_ARCHIVED: usize = 7;

/// A message in a list. Its text may be part of what the database answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<T = String> {
    /// Its id, a UUIDv7: greater ids are newer.
    pub id: Uuid,
    /// Who wrote it.
    pub from: Uuid,
    /// To whom.
    pub to: Uuid,
    /// What.
    pub text: T,
    /// When the service took it.
    pub created_at: Timestamp,
    /// When its author changed it last.
    pub edited_at: Option<Timestamp>,
    /// When its author deleted it; then the text is empty.
    pub deleted_at: Option<Timestamp>,
}

impl<'a, T: Value<'a>> From<Row<'a>> for Message<T> {
    fn from(row: Row<'a>) -> Self {
        Self {
            id: row.get(0),
            from: row.get(1),
            to: row.get(2),
            text: row.get(3),
            created_at: row.get(4),
            edited_at: row.get(5),
            deleted_at: row.get(6),
        }
    }
}

impl From<Message<&str>> for Message {
    fn from(message: Message<&str>) -> Self {
        let Message { id, from, to, text, created_at, edited_at, deleted_at } = message;
        Self { id, from, to, text: text.to_owned(), created_at, edited_at, deleted_at }
    }
}

/// Which part of a dialog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The newest messages that are older than this one.
    Before(Uuid),
    /// The oldest messages that are newer than this one.
    After(Uuid),
}

impl Default for Range {
    /// The newest of all: message ids are UUIDv7, none is greater than this.
    fn default() -> Self {
        Self::Before(Uuid::max())
    }
}

/// Part of a dialog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T = String> {
    /// Newest first, whichever way the dialog is read.
    pub messages: Vec<Message<T>>,
    /// Where to go on in the same direction. Backwards, nothing when this was the beginning of the dialog; forwards
    /// always, since there will be more.
    pub next: Option<Uuid>,
}

impl<T> Page<T> {
    /// Of messages in the order in which they were read.
    fn new(mut messages: Vec<Message<T>>, range: Range, limit: u16) -> Self {
        let last = messages.last().map(|message| message.id);
        let next = match range {
            Range::Before(_) => last.filter(|_| messages.len() == usize::from(limit)),
            Range::After(start) => Some(last.unwrap_or(start)),
        };
        if matches!(range, Range::After(_)) {
            messages.reverse();
        }
        Self { messages, next }
    }
}

impl Dialogs {
    /// Part of the messages between the two, archived or not, at most `limit`, which is 1 to [`PAGE_LIMIT`].
    ///
    /// # Errors
    /// When the limit is another, the other does not exist, or the database failed.
    pub async fn list(
        &self,
        reader: Uuid,
        peer: Uuid,
        range: Range,
        limit: u16,
    ) -> Result<Page, DialogError> {
        let owned = |Page { messages, next }: Page<&str>| Page {
            messages: messages.into_iter().map(Message::from).collect(),
            next,
        };
        self.show(reader, peer, range, limit, owned).await
    }

    /// As [`Dialogs::list`], for a look only: texts stay where the database's answer was received.
    ///
    /// # Errors
    /// As [`Dialogs::list`].
    pub async fn show<T>(
        &self,
        reader: Uuid,
        peer: Uuid,
        range: Range,
        limit: u16,
        look: impl FnOnce(Page<&str>) -> T,
    ) -> Result<T, DialogError> {
        if limit == 0 || limit > PAGE_LIMIT {
            return Err(DialogError::BadRange(format!("limit is {limit}, it can be 1 to {PAGE_LIMIT}")));
        }
        let pair = Pair::new(reader, peer);
        let dialog = pair.dialog_id();
        let (sql, start) = match range {
            Range::Before(end) => (Sql::ListMessages, end),
            Range::After(start) => (Sql::ListMessagesAfter, start),
        };
        let rows = self.database.query(sql, &[&dialog, &start, &i64::from(limit)]).await?;
        let edge = |row: Row<'_>| Edge { id: row.get(0), border: row.get(OLDER_ARCHIVED) };
        let found = Found { count: rows.len(), first: rows.first().map(edge), last: rows.last().map(edge) };
        let mut messages: Vec<Message<&str>> = rows.iter().map(Message::from).collect();
        let archived_rows;
        if let Some(beyond) = beyond(range, usize::from(limit), found) {
            let count = i64::try_from(beyond.count).unwrap_or(i64::MAX);
            archived_rows = self.database.query(beyond.sql, &[&dialog, &beyond.start, &count]).await?;
            let archived = archived_rows.iter().map(Message::from).collect();
            messages = joined(range, usize::from(limit), messages, archived);
        }
        // Whoever has exchanged messages exists: only a page without any needs the question.
        if messages.is_empty() && !self.users.exists(peer).await? {
            return Err(DialogError::UnknownPeer);
        }
        // Each message names its pair, so a shared id cannot show anybody's messages to others.
        if messages.iter().any(|message| Pair::new(message.from, message.to) != pair) {
            return Err(DialogError::Collision(dialog));
        }
        Ok(look(Page::new(messages, range, limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(ids: &[u128]) -> Vec<Message> {
        let from = Uuid::nil();
        let message = |id: &u128| Message {
            id: Uuid::from_u128(*id),
            from,
            to: from,
            text: String::new(),
            created_at: Timestamp::UNIX_EPOCH,
            edited_at: None,
            deleted_at: None,
        };
        ids.iter().map(message).collect()
    }

    #[test]
    fn backwards_ends_with_a_page_that_is_not_full() {
        let page = Page::new(messages(&[3, 2]), Range::default(), 2);
        assert_eq!((page.messages, page.next), (messages(&[3, 2]), Some(Uuid::from_u128(2))));
        assert_eq!(Page::new(messages(&[3, 2]), Range::default(), 3).next, None);
        assert_eq!(Page::new(messages(&[]), Range::default(), 3).next, None);
    }

    #[test]
    fn forwards_never_ends() {
        let range = Range::After(Uuid::from_u128(1));
        let page = Page::new(messages(&[2, 3]), range, 2);
        assert_eq!((page.messages, page.next), (messages(&[3, 2]), Some(Uuid::from_u128(3))));
        assert_eq!(Page::new(messages(&[]), range, 2).next, Some(Uuid::from_u128(1)));
    }
}
