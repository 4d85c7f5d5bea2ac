//! Every statement that requests run, in one place.
//!
//! Each touches one table, and unless [`Scope`] says otherwise by its distribution column: the first parameter, of
//! the column's own type and without a cast, so that Citus sends the statement to one shard by the fast path.
//!
//! Each is harmless when it is repeated within the time limit of a statement, whatever others have done meanwhile: ids and
//! times are made by the service before the first attempt, a row that is there already stays, and what is changed is set
//! to a value that was sent and never computed from what it was. (After that time a user who was written late could be one
//! who was erased. Nobody is told of a user before the statement is answered.)

use super::{tables::Table, wire::Company};

/// How many shards a statement touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One: the shard of the first parameter.
    OneShard,
    /// All of the table's: only for what is rare by its nature.
    AllShards,
}

/// A prepared statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Sql {
    /// dialog, message, sender, recipient, text, time
    InsertMessage,
    /// dialog, message, sender, recipient, text, time, sender's own id: the message that has this own id, which is
    /// the one written now or an earlier one
    InsertKeyedMessage,
    /// dialog, first id not wanted (exclusive), how many: newest first
    ListMessages,
    /// dialog, last id not wanted (exclusive), how many: oldest first
    ListMessagesAfter,
    /// dialog, smaller and greater id of the pair, time
    InsertDialog,
    /// dialog
    SelectDialog,
    /// user, first name, second name, birth date, biography, city, time
    InsertUser,
    /// user
    SelectUserExists,
    /// user
    SelectUser,
    /// patterns of first and second name, how many: by id
    SearchUsers,
    /// user, hash, time
    InsertCredentials,
    /// user
    SelectCredentials,
    /// dialog, message
    SelectMessage,
    /// dialog, message, author, text, time: the message as it is then, if it can be changed
    EditMessage,
    /// dialog, message, author, time: the message's id, if it was not deleted before
    DeleteMessage,
    /// dialog, last id not wanted (exclusive), how many: authors of the newest, and whether each is deleted
    ListAuthorsAfter,
    /// dialog, user, message
    MarkRead,
    /// dialog: users with the message each has read last
    SelectReadMarks,
    /// dialog, message
    MarkInboxes,
    /// user, dialog, peer, last message
    MergeUserDialog,
    /// user, first message id not wanted (exclusive), how many: dialogs with peers, newest first
    ListUserDialogs,
    /// dialog, first id not wanted (exclusive), how many: newest first, of the archive
    ListArchive,
    /// dialog, last id not wanted (exclusive), how many: oldest first, of the archive
    ListArchiveAfter,
    /// dialog, message, of the archive
    SelectArchived,
    /// dialog, message, author, text, time: as [`Sql::EditMessage`], in the archive
    EditArchived,
    /// dialog, message, author, time: as [`Sql::DeleteMessage`], in the archive
    DeleteArchived,
    /// user, last dialog not wanted (exclusive), how many: dialogs with peers, in the order of their ids
    ListPeers,
    /// user, time
    InsertErasure,
    /// nothing: all users who were erased lately
    ListErasures,
    /// user
    DeleteCredentials,
    /// user
    DeleteUser,
}

impl Sql {
    /// All statements, in the order of their numbers.
    pub const ALL: [Self; 31] = [
        Self::InsertMessage,
        Self::InsertKeyedMessage,
        Self::ListMessages,
        Self::ListMessagesAfter,
        Self::InsertDialog,
        Self::SelectDialog,
        Self::InsertUser,
        Self::SelectUserExists,
        Self::SelectUser,
        Self::SearchUsers,
        Self::InsertCredentials,
        Self::SelectCredentials,
        Self::SelectMessage,
        Self::EditMessage,
        Self::DeleteMessage,
        Self::ListAuthorsAfter,
        Self::MarkRead,
        Self::SelectReadMarks,
        Self::MarkInboxes,
        Self::MergeUserDialog,
        Self::ListUserDialogs,
        Self::ListArchive,
        Self::ListArchiveAfter,
        Self::SelectArchived,
        Self::EditArchived,
        Self::DeleteArchived,
        Self::ListPeers,
        Self::InsertErasure,
        Self::ListErasures,
        Self::DeleteCredentials,
        Self::DeleteUser,
    ];

    /// The text of the statement.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "one arm for each statement")]
    pub const fn text(self) -> &'static str {
        match self {
            Self::InsertMessage => {
                "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (dialog_id, message_id) DO NOTHING"
            }
            // The update changes nothing: it makes the row that was there first come back.
            Self::InsertKeyedMessage => {
                "INSERT INTO messages \
                 (dialog_id, message_id, from_user_id, to_user_id, text, created_at, client_msg_id) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT (dialog_id, from_user_id, client_msg_id) WHERE client_msg_id IS NOT NULL \
                 DO UPDATE SET client_msg_id = excluded.client_msg_id \
                 RETURNING message_id, text, edited_at IS NOT NULL OR deleted_at IS NOT NULL"
            }
            Self::ListMessages => {
                "SELECT message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at, older_archived \
                 FROM messages WHERE dialog_id = $1 AND message_id < $2 ORDER BY message_id DESC LIMIT $3"
            }
            Self::ListMessagesAfter => {
                "SELECT message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at, older_archived \
                 FROM messages WHERE dialog_id = $1 AND message_id > $2 ORDER BY message_id LIMIT $3"
            }
            Self::InsertDialog => {
                "INSERT INTO dialogs (dialog_id, user_lo, user_hi, created_at) \
                 VALUES ($1, $2, $3, $4) ON CONFLICT (dialog_id) DO NOTHING"
            }
            Self::SelectDialog => "SELECT user_lo, user_hi, closed FROM dialogs WHERE dialog_id = $1",
            Self::InsertUser => {
                "INSERT INTO users (user_id, first_name, second_name, birthdate, biography, city, created_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (user_id) DO NOTHING"
            }
            Self::SelectUserExists => "SELECT 1 FROM users WHERE user_id = $1",
            Self::SelectUser => {
                "SELECT user_id, first_name, second_name, birthdate, biography, city FROM users WHERE user_id = $1"
            }
            Self::SearchUsers => {
                "SELECT user_id, first_name, second_name, birthdate, biography, city FROM users \
                 WHERE lower(first_name) LIKE lower($1) AND lower(second_name) LIKE lower($2) ORDER BY user_id LIMIT $3"
            }
            Self::InsertCredentials => {
                "INSERT INTO credentials (user_id, password_hash, updated_at) \
                 VALUES ($1, $2, $3) ON CONFLICT (user_id) DO NOTHING"
            }
            Self::SelectCredentials => "SELECT password_hash FROM credentials WHERE user_id = $1",
            Self::SelectMessage => {
                "SELECT message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at FROM messages \
                 WHERE dialog_id = $1 AND message_id = $2"
            }
            Self::EditMessage => {
                "UPDATE messages SET text = $4, edited_at = $5 \
                 WHERE dialog_id = $1 AND message_id = $2 AND from_user_id = $3 AND deleted_at IS NULL \
                 AND (edited_at IS NULL OR edited_at <= $5) \
                 RETURNING message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at"
            }
            Self::DeleteMessage => {
                "UPDATE messages SET text = '', deleted_at = $4 \
                 WHERE dialog_id = $1 AND message_id = $2 AND from_user_id = $3 AND deleted_at IS NULL \
                 RETURNING message_id"
            }
            Self::ListAuthorsAfter => {
                "SELECT from_user_id, deleted_at IS NOT NULL FROM messages \
                 WHERE dialog_id = $1 AND message_id > $2 ORDER BY message_id DESC LIMIT $3"
            }
            Self::MarkRead => {
                "INSERT INTO dialog_state (dialog_id, user_id, last_read_id) VALUES ($1, $2, $3) \
                 ON CONFLICT (dialog_id, user_id) DO UPDATE SET last_read_id = excluded.last_read_id \
                 WHERE dialog_state.last_read_id < excluded.last_read_id"
            }
            Self::SelectReadMarks => "SELECT user_id, last_read_id FROM dialog_state WHERE dialog_id = $1",
            Self::MarkInboxes => {
                "UPDATE dialogs SET inbox_id = $2 \
                 WHERE dialog_id = $1 AND (inbox_id IS NULL OR inbox_id < $2)"
            }
            Self::MergeUserDialog => {
                "INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (user_id, dialog_id) DO UPDATE SET last_message_id = excluded.last_message_id \
                 WHERE user_dialogs.last_message_id < excluded.last_message_id"
            }
            Self::ListUserDialogs => {
                "SELECT dialog_id, peer_id, last_message_id FROM user_dialogs \
                 WHERE user_id = $1 AND last_message_id < $2 ORDER BY last_message_id DESC LIMIT $3"
            }
            Self::ListArchive => {
                "SELECT message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at \
                 FROM messages_archive WHERE dialog_id = $1 AND message_id < $2 ORDER BY message_id DESC LIMIT $3"
            }
            Self::ListArchiveAfter => {
                "SELECT message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at \
                 FROM messages_archive WHERE dialog_id = $1 AND message_id > $2 ORDER BY message_id LIMIT $3"
            }
            Self::SelectArchived => {
                "SELECT message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at \
                 FROM messages_archive WHERE dialog_id = $1 AND message_id = $2"
            }
            Self::EditArchived => {
                "UPDATE messages_archive SET text = $4, edited_at = $5 \
                 WHERE dialog_id = $1 AND message_id = $2 AND from_user_id = $3 AND deleted_at IS NULL \
                 AND (edited_at IS NULL OR edited_at <= $5) \
                 RETURNING message_id, from_user_id, to_user_id, text, created_at, edited_at, deleted_at"
            }
            Self::DeleteArchived => {
                "UPDATE messages_archive SET text = '', deleted_at = $4 \
                 WHERE dialog_id = $1 AND message_id = $2 AND from_user_id = $3 AND deleted_at IS NULL \
                 RETURNING message_id"
            }
            Self::ListPeers => {
                "SELECT dialog_id, peer_id FROM user_dialogs \
                 WHERE user_id = $1 AND dialog_id > $2 ORDER BY dialog_id LIMIT $3"
            }
            Self::InsertErasure => {
                "INSERT INTO erasures (user_id, requested_at) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING"
            }
            Self::ListErasures => "SELECT user_id FROM erasures",
            Self::DeleteCredentials => "DELETE FROM credentials WHERE user_id = $1",
            Self::DeleteUser => "DELETE FROM users WHERE user_id = $1",
        }
    }

    /// Whether it changes nothing, so that one execution can answer several who ask the same.
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(self.text().as_bytes(), [b'S', b'E', b'L', b'E', b'C', b'T', ..])
    }

    /// Whether it may share a transaction with others: it only reads, and soon.
    #[must_use]
    pub const fn company(self) -> Company {
        match self.scope() {
            // What is read once a year, or for one user's export, comes from the disk.
            _ if matches!(
                self,
                Self::ListArchive | Self::ListArchiveAfter | Self::SelectArchived | Self::ListPeers
            ) =>
            {
                Company::Alone
            }
            Scope::OneShard if self.is_read() => Company::Shared,
            _ => Company::Alone,
        }
    }

    /// A short name for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InsertMessage => "insert_message",
            Self::InsertKeyedMessage => "insert_keyed_message",
            Self::ListMessages => "list_messages",
            Self::ListMessagesAfter => "list_messages_after",
            Self::InsertDialog => "insert_dialog",
            Self::SelectDialog => "select_dialog",
            Self::InsertUser => "insert_user",
            Self::SelectUserExists => "select_user_exists",
            Self::SelectUser => "select_user",
            Self::SearchUsers => "search_users",
            Self::InsertCredentials => "insert_credentials",
            Self::SelectCredentials => "select_credentials",
            Self::SelectMessage => "select_message",
            Self::EditMessage => "edit_message",
            Self::DeleteMessage => "delete_message",
            Self::ListAuthorsAfter => "list_authors_after",
            Self::MarkRead => "mark_read",
            Self::SelectReadMarks => "select_read_marks",
            Self::MarkInboxes => "mark_inboxes",
            Self::MergeUserDialog => "merge_user_dialog",
            Self::ListUserDialogs => "list_user_dialogs",
            Self::ListArchive => "list_archive",
            Self::ListArchiveAfter => "list_archive_after",
            Self::SelectArchived => "select_archived",
            Self::EditArchived => "edit_archived",
            Self::DeleteArchived => "delete_archived",
            Self::ListPeers => "list_peers",
            Self::InsertErasure => "insert_erasure",
            Self::ListErasures => "list_erasures",
            Self::DeleteCredentials => "delete_credentials",
            Self::DeleteUser => "delete_user",
        }
    }

    /// The table it touches; for [`Scope::OneShard`], its first parameter is that table's [key](Table::key).
    #[must_use]
    pub const fn table(self) -> Table {
        match self {
            Self::InsertMessage
            | Self::InsertKeyedMessage
            | Self::ListMessages
            | Self::ListMessagesAfter
            | Self::SelectMessage
            | Self::EditMessage
            | Self::DeleteMessage
            | Self::ListAuthorsAfter => Table::Messages,
            Self::MarkRead | Self::SelectReadMarks => Table::DialogState,
            Self::ListArchive
            | Self::ListArchiveAfter
            | Self::SelectArchived
            | Self::EditArchived
            | Self::DeleteArchived => Table::MessagesArchive,
            Self::MergeUserDialog | Self::ListUserDialogs | Self::ListPeers => Table::UserDialogs,
            Self::InsertErasure | Self::ListErasures => Table::Erasures,
            Self::InsertDialog | Self::SelectDialog | Self::MarkInboxes => Table::Dialogs,
            Self::InsertUser
            | Self::SelectUserExists
            | Self::SelectUser
            | Self::SearchUsers
            | Self::DeleteUser => Table::Users,
            Self::InsertCredentials | Self::SelectCredentials | Self::DeleteCredentials => Table::Credentials,
        }
    }

    /// How many shards of it.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::SearchUsers | Self::ListErasures => Scope::AllShards,
            _ => Scope::OneShard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_is_found_under_its_own_number() {
        for (number, sql) in Sql::ALL.into_iter().enumerate() {
            assert_eq!(sql as usize, number, "{}", sql.name());
        }
    }

    /// What retrying relies on: see `postgres/twice.rs` for what the statements do.
    #[test]
    fn nothing_that_is_written_depends_on_when_or_how_often() {
        for sql in Sql::ALL.into_iter().filter(|sql| !sql.is_read()) {
            let (name, text) = (sql.name(), sql.text());
            assert!(
                !text.starts_with("INSERT ") || text.contains(" ON CONFLICT ("),
                "{name} would add a second row"
            );
            // No functions that differ from call to call: of none but the conditions on columns.
            assert!(!text.contains("()"), "{name} calls a function");
            let Some((_, rest)) = text.split_once(" SET ") else { continue };
            let changes = rest.split(" WHERE ").next().unwrap().split(" RETURNING ").next().unwrap();
            for change in changes.split(", ") {
                let (_, value) = change.split_once(" = ").unwrap();
                let is_sent = value.starts_with('$') || value.starts_with("excluded.") || value == "''";
                assert!(is_sent && !value.contains(' '), "{name} computes {value}");
            }
        }
    }

    /// What routing to the owner of a shard relies on.
    #[test]
    fn the_first_parameter_is_the_key_of_the_one_table() {
        for sql in Sql::ALL {
            let (text, table) = (sql.text(), sql.table());
            assert!(text.split(' ').any(|word| word == table.name()), "{}", sql.name());
            let key = table.key();
            let by_key = text.contains(&format!(" WHERE {key} = $1"))
                || text.starts_with(&format!("INSERT INTO {} ({key}, ", table.name()))
                    && text.contains(" VALUES ($1, ");
            assert_eq!(by_key, sql.scope() == Scope::OneShard, "{}", sql.name());
        }
    }
}
