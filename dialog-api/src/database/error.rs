//! What an error of the database means for the statement that met it.

use std::sync::Arc;

use super::{tables::Table, wire::error::StatementError};

/// Why a statement has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database could not be reached, or did not decide, in time. The text is the last failure.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database understood the statement and refused it.
    #[error("the database refused the statement: {0}")]
    Refused(Arc<StatementError>),
}

impl DatabaseError {
    /// Whether the row is there already, by another unique key than the statement was prepared to meet.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Refused(error) if state(error) == "23505")
    }

    /// Whether values that a client sent are the reason: a value out of range, a violated check.
    #[must_use]
    pub fn is_bad_value(&self) -> bool {
        match self {
            Self::Refused(error) => state(error).starts_with("22") || state(error) == "23514",
            Self::Unavailable(_) => false,
        }
    }
}

/// The SQLSTATE; nothing if it is not the server who complains.
fn state(error: &StatementError) -> &str {
    match error {
        StatementError::Server(error) => &error.code,
        _ => "",
    }
}

/// What to do about a failed statement. All of [`Sql`](super::statements::Sql) are harmless when they are repeated within
/// the time limit of a statement, so "did it happen?" need not be known: `postgres/twice.rs` runs each of them twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again, on this connection or another.
    TryAgain,
    /// Try again, but never on this connection.
    TryElsewhere,
    /// Trying again would end the same.
    Refused,
}

/// Whether a refusal is about the statement's values, whichever server says so: data that does not fit its type,
/// a violated constraint.
#[must_use]
pub fn is_about_values(error: &StatementError) -> bool {
    state(error).starts_with("22") || state(error).starts_with("23")
}

/// Judges an error of a statement.
#[must_use]
pub fn verdict(error: &StatementError) -> Verdict {
    match error {
        // Whatever it is about: nothing more can be asked here.
        StatementError::Server(error) if error.ends_session() => Verdict::TryElsewhere,
        StatementError::Server(error) => verdict_of_state(&error.code, &error.routine, &error.message),
        StatementError::Closed | StatementError::Broken(_) | StatementError::Protocol(_) => {
            Verdict::TryElsewhere
        }
        // A mistake in this program, found by any test of the statement.
        StatementError::Parameter(..) => Verdict::Refused,
    }
}

/// Judges by SQLSTATE. Two states are used for more than one thing. What tells these apart are names, in the server's code
/// or in the message, and not words: a server may speak any language, and only its superuser can change that.
fn verdict_of_state(state: &str, routine: &str, message: &str) -> Verdict {
    match state {
        // The server is ending, starting, or read-only since it was demoted (a worker's error comes through
        // the coordinator, whose session may hold on to the wrong connection); the prepared statement is
        // gone, or its plan is from before a migration.
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25006" | "26000" => Verdict::TryElsewhere,
        "0A000" if routine == "RevalidateCachedQuery" => Verdict::TryElsewhere,
        // Serialization failure (also a shard that was split meanwhile), deadlock, lock or statement timeout.
        // Internal errors: by that state Citus reports a connection to a worker that breaks in the middle of
        // a statement, and a placement or shard that its metadata no longer know; PostgreSQL what a statement
        // sees of DDL beside it ("cache lookup failed", "could not open relation"). It may also be anything else, and
        // the statement may have been executed or not. That is no reason to refuse: run twice it leaves what it leaves
        // when it ran once, and what is broken for good is broken until the time is over, which is a 503.
        "40001" | "40P01" | "55P03" | "57014" | "XX000" => Verdict::TryAgain,
        // A shard that was moved or split between plan and execution, and is gone where it was.
        "42P01" if names_a_shard(message) => Verdict::TryAgain,
        // A connection between the nodes of a Citus cluster; disk, memory or connections exhausted.
        _ if state.starts_with("08") || state.starts_with("53") => Verdict::TryAgain,
        _ => Verdict::Refused,
    }
}

/// Whether a message names a shard, whatever words and quotation marks stand around the name: that of a table of this
/// service, and a number.
fn names_a_shard(message: &str) -> bool {
    let names = message.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    names.filter_map(|name| name.rsplit_once('_')).any(|(table, number)| {
        Table::NAMES.contains(&table)
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::{super::wire::error::ServerError, *};

    #[test]
    fn what_passes_is_tried_again() {
        for state in ["08000", "08006", "40001", "40P01", "53300", "53100", "55P03", "57014"] {
            assert_eq!(verdict_of_state(state, "", ""), Verdict::TryAgain, "{state}");
        }
    }

    #[test]
    fn a_session_that_cannot_recover_is_left() {
        for state in ["57P01", "57P02", "57P03", "25006", "26000"] {
            assert_eq!(verdict_of_state(state, "", ""), Verdict::TryElsewhere, "{state}");
        }
        let message = "gecachter Plan darf den Ergebnistyp nicht ändern";
        assert_eq!(verdict_of_state("0A000", "RevalidateCachedQuery", message), Verdict::TryElsewhere);
    }

    #[test]
    fn whatever_ends_a_session_is_asked_elsewhere() {
        for (severity, expected) in [("FATAL", Verdict::TryElsewhere), ("ERROR", Verdict::Refused)] {
            let error = ServerError {
                severity: severity.to_owned(),
                code: "42501".to_owned(),
                ..ServerError::default()
            };
            assert_eq!(verdict(&StatementError::Server(error)), expected, "{severity}");
        }
    }

    #[test]
    fn what_would_end_the_same_is_refused() {
        for state in ["23505", "23514", "22021", "42P01", "42501", "0A000", "XX001", "XX002"] {
            assert_eq!(verdict_of_state(state, "Other", "cached plan"), Verdict::Refused, "{state}");
        }
        for name in ["public.dialog_state", "dialog_state_", "messages_archive", "elsewhere_102008"] {
            let message = format!(r#"relation "{name}" does not exist"#);
            assert_eq!(verdict_of_state("42P01", "parserOpenTable", &message), Verdict::Refused, "{name}");
        }
    }

    #[test]
    fn what_happens_while_shards_move_and_workers_fail_over_passes() {
        for (state, message) in [
            // libpq's words without a state, which Citus passes on as an internal error.
            ("XX000", "server closed the connection unexpectedly"),
            ("XX000", "SSL connection has been closed unexpectedly"),
            ("XX000", "could not find valid entry for shard 102008"),
            ("XX000", "could not open relation with OID 16999"),
            ("08006", "connection to the remote node dialog_api@chat-worker-0:5432 failed"),
            ("08006", "could not establish any connections to the node chat-worker-0:5432 after 30000 ms"),
            ("40001", "shard for the given value does not exist"),
            ("40P01", "canceling the transaction since it was involved in a distributed deadlock"),
            ("55P03", "canceling statement due to lock timeout"),
            ("42P01", r#"relation "public.messages_102008" does not exist"#),
            ("42P01", "Relation »messages_archive_102008« existiert nicht"),
        ] {
            assert_eq!(verdict_of_state(state, "", message), Verdict::TryAgain, "{state}: {message}");
        }
        for (state, message) in [
            ("25006", "cannot execute INSERT in a read-only transaction"),
            ("25006", "writing to worker nodes is not currently allowed"),
            ("57P01", "terminating connection due to administrator command"),
            ("57P03", "the database system is starting up"),
        ] {
            assert_eq!(verdict_of_state(state, "", message), Verdict::TryElsewhere, "{state}: {message}");
        }
    }
}
