//! Where a page of a dialog goes on in the archive.
//!
//! The job that archives ([`crate::jobs`]) takes a dialog's oldest messages, never its newest, and marks the oldest one
//! that stays. So a page says by itself whether it ends at that border, and only then the archive is asked.

use uuid::Uuid;

use super::page::{Message, Range};
use crate::database::statements::Sql;

/// A message that is not archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) id: Uuid,
    /// Whether the messages before it are archived.
    pub(super) border: bool,
}

/// What was found of a page beside the archive: how many messages, and the first and last in the order of reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) count: usize,
    pub(super) first: Option<Edge>,
    pub(super) last: Option<Edge>,
}

/// A question for the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beyond {
    pub(super) sql: Sql,
    pub(super) start: Uuid,
    pub(super) count: usize,
}

/// What a page still needs of the archive, given what was found beside it.
pub(super) fn beyond(range: Range, limit: usize, found: Found) -> Option<Beyond> {
    match range {
        Range::Before(end) => {
            let start = match found.last {
                // Even the newest is not there, and that is never archived.
                None if end == Uuid::max() => return None,
                None => end,
                Some(last) if last.border => last.id,
                Some(_) => return None,
            };
            let count = limit.saturating_sub(found.count);
            (count > 0).then_some(Beyond { sql: Sql::ListArchive, start, count })
        }
        Range::After(start) => found.first.is_some_and(|first| first.border).then_some(Beyond {
            sql: Sql::ListArchiveAfter,
            start,
            count: limit,
        }),
    }
}

/// The page, from what was found beside the archive and in it; both in the order of reading.
pub(super) fn joined<T>(
    range: Range,
    limit: usize,
    mut recent: Vec<Message<T>>,
    mut archived: Vec<Message<T>>,
) -> Vec<Message<T>> {
    match range {
        Range::Before(_) => {
            recent.append(&mut archived);
            recent
        }
        Range::After(_) => {
            // Between the two questions more may have been archived.
            if let Some(first) = recent.first() {
                archived.retain(|message| message.id < first.id);
            }
            archived.append(&mut recent);
            archived.truncate(limit);
            archived
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn message(id: u128) -> Message {
        let from = Uuid::nil();
        Message {
            id: Uuid::from_u128(id),
            from,
            to: from,
            text: String::new(),
            created_at: Timestamp::UNIX_EPOCH,
            edited_at: None,
            deleted_at: None,
        }
    }

    /// What the statements do with a table that holds these messages.
    fn select(table: &[u128], range: Range, limit: usize) -> Vec<u128> {
        match range {
            Range::Before(end) => {
                table.iter().rev().filter(|id| **id < end.as_u128()).take(limit).copied().collect()
            }
            Range::After(start) => {
                table.iter().filter(|id| **id > start.as_u128()).take(limit).copied().collect()
            }
        }
    }

    /// A page of a dialog whose first messages are archived.
    fn page(all: &[u128], archived: usize, range: Range, limit: usize) -> (Vec<u128>, bool) {
        let (archive, recent) = all.split_at(archived);
        let ids = select(recent, range, limit);
        let edge =
            |id: &u128| Edge { id: Uuid::from_u128(*id), border: archived > 0 && recent.first() == Some(id) };
        let found = Found { count: ids.len(), first: ids.first().map(edge), last: ids.last().map(edge) };
        let messages = ids.iter().map(|id| message(*id)).collect();
        let beyond = beyond(range, limit, found);
        let older = beyond.map_or_else(Vec::new, |beyond| {
            let range = match beyond.sql {
                Sql::ListArchive => Range::Before(beyond.start),
                _ => Range::After(beyond.start),
            };
            select(archive, range, beyond.count).into_iter().map(message).collect()
        });
        let joined = joined(range, limit, messages, older);
        (joined.iter().map(|message| message.id.as_u128()).collect(), beyond.is_some())
    }

    proptest! {
        #[test]
        fn a_page_is_the_same_wherever_the_border_is(
            ids in prop::collection::btree_set(1_u128..200, 1..60),
            archived in 0_usize..60, limit in 1_usize..20, at in 0_u128..201, forward: bool, newest: bool,
        ) {
            let all: Vec<u128> = ids.into_iter().collect();
            // At least the newest stays.
            let archived = archived.min(all.len() - 1);
            let range = match (newest, forward) {
                (true, _) => Range::default(),
                (_, true) => Range::After(Uuid::from_u128(at)),
                (_, false) => Range::Before(Uuid::from_u128(at)),
            };
            let (found, _) = page(&all, archived, range, limit);
            prop_assert_eq!(found, select(&all, range, limit));
        }

        #[test]
        fn the_newest_messages_cost_nothing_more(
            count in 1_u128..60, archived in 0_usize..60, limit in 1_usize..20,
        ) {
            let all: Vec<u128> = (1..=count).collect();
            let archived = archived.min(all.len() - 1);
            let (_, asked) = page(&all, archived, Range::default(), limit);
            prop_assert_eq!(asked, archived > 0 && all.len() - archived < limit);
        }
    }

    #[test]
    fn what_was_archived_meanwhile_is_not_there_twice() {
        let range = Range::After(Uuid::from_u128(1));
        let ids = |messages: Vec<Message>| -> Vec<u128> {
            messages.iter().map(|message| message.id.as_u128()).collect()
        };
        let recent = vec![message(4), message(5)];
        let archived = vec![message(2), message(3), message(4)];
        assert_eq!(ids(joined(range, 10, recent, archived)), [2, 3, 4, 5]);
    }
}
