//! Wakes up a session that moves or cuts shards and has fallen asleep.
//!
//! Citus waits four times until the changes of the source have come to the target; the last time, all who write to the shards
//! wait as well. Between two looks it sleeps for a second (`WaitForGroupedLogicalRepTargetsToCatchUp`, Citus 13.2), however
//! soon they are there. It is woken by what PostgreSQL tells a session that listens: then it looks again, and hears nothing else.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::types::Type;
use tracing::debug;

use crate::names::{Group, WAKE_CHANNEL};
use crate::pg::{self, Session};
use crate::shards::observe::moves::WRITES;
use crate::shards::sessions::{Door, Sessions};

/// Between two looks whether it sleeps.
const PAUSE: Duration = Duration::from_millis(50);
/// As long as nobody waits for it, it is woken after so small a part of the time that all has taken so far, and not more seldom
/// than it wakes by itself: it sleeps as well while what takes hours is copied.
const PART: u32 = 50;
const SLEEP: Duration = Duration::from_secs(1);

/// Wakes the session until this is dropped.
pub(in crate::shards) struct Awake {
    _task: JoinSet<()>,
}

impl Awake {
    /// Wakes the coordinator's session `pid` from now on, if it listens, by a session of `sessions`: nobody may look with these
    /// meanwhile. It need not have a client any more: it goes on by itself until its statement has ended, and listens for as long.
    pub(in crate::shards) fn new(sessions: Sessions, pid: i32) -> Self {
        let mut task = JoinSet::new();
        task.spawn(async move {
            let begun = Instant::now();
            // Whoever is not woken sleeps for a second: nothing is lost by a failure, and the next session may do.
            loop {
                let Err(error) = wake(&sessions, pid, begun).await;
                debug!(pid, %error, "it is not woken for a moment");
                tokio::time::sleep(SLEEP).await;
            }
        });
        Self { _task: task }
    }
}

/// Wakes `session`, the coordinator's, from now on. It must be in no transaction, and nobody may look with the sessions meanwhile.
pub(super) async fn awake(sessions: &Sessions, session: &Session) -> Result<Awake, pg::Error> {
    session.run(&format!("LISTEN {WAKE_CHANNEL}")).await?;
    let pid = session.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    Ok(Awake::new(sessions.looking(), pid))
}

/// Wakes the session `pid`, which has been at work since `begun` or longer, for as long as the database answers.
async fn wake(sessions: &Sessions, pid: i32, begun: Instant) -> Result<Infallible, pg::Error> {
    let waker = sessions.session(Group::Coordinator, Door::Dialog).await?;
    // What is said here need not outlive the server, nor be on a standby.
    let statement = format!(
        "SELECT set_config('synchronous_commit', 'off', true), pg_notify('{WAKE_CHANNEL}', '')
         FROM pg_stat_get_activity($1) AS mover
         WHERE mover.state = 'active' AND mover.wait_event = 'Extension'
           AND ($2 OR EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = $1 AND {WRITES}))"
    );
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(PAUSE).await;
        let is_due = last.elapsed() >= SLEEP.min(begun.elapsed() / PART);
        if !waker.query(&statement, &[(&pid, Type::INT4), (&is_due, Type::BOOL)]).await?.is_empty() {
            last = Instant::now();
        }
    }
}
