//! The topology lock: one change of nodes, tables or shards at a time per cluster, even with two operators alive.
//!
//! It is an advisory lock of a session on the coordinator, so it ends with the session that holds it and no sooner.
//! dialog-api holds it while it migrates. Moves of shards share it: they get in the way of everything else, and not of
//! each other. Each holds it in its own session, so that a move that outlives its operator is still guarded.

use std::fmt;

use tokio_postgres::types::Type;

use crate::pg::{self, Session};

/// The two keys of the lock: `dial` in ASCII, and its number.
pub const KEYS: (i32, i32) = (1_684_631_916, 1);

/// The reason where somebody else has it.
pub(super) const TOPOLOGY_LOCKED: &str = "TopologyLocked";

/// Who holds the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The session's name.
    pub application: String,
    /// The server process on the coordinator.
    pub pid: i32,
    /// How long it has had nothing to do; `None` while it is at work.
    pub idle: Option<Idle>,
}

/// How long a session has had nothing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Since when, in UTC.
    pub since: String,
    /// For how long, in seconds.
    pub seconds: i64,
}

/// Seconds after which a session that has nothing to do will not give back the lock by itself: who looks around between two
/// changes is done sooner.
const FORGOTTEN: i64 = 60;

impl Holder {
    /// Whether it seems to have forgotten that it has the lock.
    #[must_use]
    pub fn is_forgetful(&self) -> bool {
        self.idle.as_ref().is_some_and(|idle| idle.seconds >= FORGOTTEN)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { application, pid, idle } = self;
        write!(f, "the topology lock is held by {application} (pid {pid} on the coordinator)")?;
        let Some(Idle { since, .. }) = idle else { return Ok(()) };
        write!(
            f,
            ", which has been idle since {since}: if its client is gone, SELECT pg_terminate_backend({pid}) there gives the lock \
             back"
        )
    }
}

/// Takes the lock for `session` alone, or says who has it.
///
/// # Errors
/// When the server cannot be asked.
pub async fn try_acquire(session: &Session) -> Result<Option<Holder>, pg::Error> {
    acquire(session, "SELECT pg_try_advisory_lock($1, $2)").await
}

/// Takes the lock for `session` together with other moves, or says who has it alone.
///
/// # Errors
/// When the server cannot be asked.
pub async fn try_share(session: &Session) -> Result<Option<Holder>, pg::Error> {
    acquire(session, "SELECT pg_try_advisory_lock_shared($1, $2)").await
}

async fn acquire(session: &Session, statement: &str) -> Result<Option<Holder>, pg::Error> {
    let keys: [pg::Parameter<'_>; 2] = [(&KEYS.0, Type::INT4), (&KEYS.1, Type::INT4)];
    if session.query_one(statement, &keys).await?.get(0) {
        return Ok(None);
    }
    // It may have been given back between the two statements; then nobody can be named, and trying again is right.
    let ended = || Holder { application: "a session that has just ended".to_owned(), pid: 0, idle: None };
    Ok(Some(holder(session).await?.unwrap_or_else(ended)))
}

/// Who has the lock, of several the one that has had nothing to do for the longest time.
///
/// # Errors
/// When the server cannot be asked.
pub async fn holder(session: &Session) -> Result<Option<Holder>, pg::Error> {
    let rows = session
        .query(
            "SELECT pid, application_name,
                    CASE WHEN starts_with(state, 'idle')
                         THEN to_char(state_change AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') END,
                    extract(epoch FROM clock_timestamp() - state_change)::int8
             FROM pg_stat_activity JOIN pg_locks USING (pid)
             WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = $1::int4::oid
               AND objid = $2::int4::oid AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
             ORDER BY NOT starts_with(state, 'idle'), state_change",
            &[(&KEYS.0, Type::INT4), (&KEYS.1, Type::INT4)],
        )
        .await?;
    Ok(rows.first().map(|row| {
        let since: Option<String> = row.get(2);
        let idle = since.map(|since| Idle { since, seconds: row.get(3) });
        Holder { pid: row.get(0), application: row.get(1), idle }
    }))
}

/// Gives back what `session` holds of the lock.
///
/// # Errors
/// When the server cannot be asked; the lock then ends with the session.
pub async fn release(session: &Session) -> Result<(), pg::Error> {
    // These sessions hold no other advisory lock.
    session.query("SELECT pg_advisory_unlock_all()", &[]).await.map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dialog_api_asks_for_the_same_lock() {
        assert_eq!(super::KEYS, dialog_api::migrations::TOPOLOGY_LOCK);
    }
}
