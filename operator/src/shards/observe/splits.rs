//! Reads how far splits are, and steps that spread tables, of which Citus itself shows nothing, and finds out what one waits for
//! that does not get on.

use tokio_postgres::types::Type;

use super::moves::LOCKED;
use super::stall::{self, Blocker, Cause};
use crate::names::Group;
use crate::pg;
use crate::shards::act::split::BLOCKING;
use crate::shards::observed::{Catalog, RunningSplit, Stall, StallKind};
use crate::shards::sessions::Sessions;
use crate::shards::supervise::StalledSplit;

/// What one server shows of a split or a step that spreads tables: what is copied, what is followed, what is built, and whether a
/// session of it waits for a lock. `$1` and `$2` are as [`stall::ask`] has them, and `$3` the numbers of its operations: what
/// others have left may fail, or get on, and is no matter of this one.
const SHOWN: &str = "
    SELECT concat_ws(' ', copies, follows, builds, slots), copies IS NOT NULL, follows IS NOT NULL, builds IS NOT NULL,
           (SELECT coalesce(sum(apply_error_count + sync_error_count), 0)::int8 FROM pg_stat_subscription_stats
            WHERE subname ~ '^citus_shard_(move|split)_' AND substring(subname FROM '_([0-9]+)$') = ANY ($3)),
           EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                   AND (pid = $1 OR application_name LIKE ANY (ARRAY['citus_internal gpid=%' || $2, 'citus_rebalancer gpid=%' || $2])))
    FROM (SELECT
        (SELECT string_agg(pid || '=' || bytes_processed, ',' ORDER BY pid) FROM pg_stat_progress_copy) AS copies,
        (SELECT string_agg(subname || '=' || coalesce(latest_end_lsn::text, ''), ',' ORDER BY subname)
         FROM pg_stat_subscription
         WHERE subname ~ '^citus_shard_(move|split)_' AND substring(subname FROM '_([0-9]+)$') = ANY ($3)) AS follows,
        (SELECT string_agg(pid || '=' || phase || blocks_done || tuples_done, ',' ORDER BY pid)
         FROM pg_stat_progress_create_index) AS builds,
        (SELECT string_agg(slot_name || '=' || active, ',' ORDER BY slot_name)
         FROM pg_replication_slots
         WHERE slot_name ~ '^citus_shard_(move|split)_' AND substring(slot_name FROM '_([0-9]+)$') = ANY ($3)) AS slots)
        AS shown";

/// What one server shows of a split, or of a step that spreads tables.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) progress: String,
    phase: Phase,
    errors: i64,
    pub(super) waits: bool,
}

/// What a split is doing on a server. Of several what comes last here counts: while anything is still copied nothing else
/// is over.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    SettingUp,
    CatchingUp,
    CreatingConstraints,
    CopyingData,
}

/// The splits that are under way, each with how far it is. The servers are asked only while there is one.
pub(super) async fn running(sessions: &Sessions, catalog: &Catalog) -> Vec<RunningSplit> {
    let mut running = Vec::new();
    for operation in &catalog.operations {
        let Some((shard_id, from)) = operation.split() else { continue };
        // It may have ended meanwhile.
        let Ok(Some(Begun { since, operations, blocking })) = begun(sessions, operation.pid).await else {
            continue;
        };
        let nodes: Vec<Group> = catalog.groups(sessions.topology()).collect();
        let mut shown = Vec::new();
        for group in &nodes {
            // A server that does not answer has no progress to show.
            shown.extend(of(sessions, *group, operation.pid, &operations).await.ok());
        }
        running.push(RunningSplit {
            pid: operation.pid,
            application: operation.application.clone(),
            shard_id,
            from,
            since,
            nodes,
            phase: shown.iter().map(|shown| shown.phase).max().unwrap_or_default().name(),
            errors: shown.iter().map(|shown| shown.errors).sum(),
            waits: shown.iter().any(|shown| shown.waits),
            progress: shown.into_iter().map(|shown| shown.progress).collect(),
            blocking,
        });
    }
    running
}

/// What the coordinator shows of a split, or of a step that spreads tables.
pub(super) struct Begun {
    /// When its statement began.
    pub(super) since: jiff::Timestamp,
    /// The numbers of its operations. There is none until Citus begins to make anything for it.
    pub(super) operations: Vec<String>,
    /// Whether it copies while writers wait.
    blocking: bool,
}

/// What the coordinator shows of what its process `pid` is about. Reference tables are copied by a session that Citus opens there
/// for it.
pub(super) async fn begun(sessions: &Sessions, pid: i32) -> Result<Option<Begun>, pg::Error> {
    let statement = format!(
        "SELECT query_start,
                ARRAY (SELECT operation_id FROM ({LOCKED}) AS locked JOIN pg_stat_activity AS its USING (pid)
                       WHERE pid = $1 OR its.application_name LIKE 'citus_rebalancer gpid=%' || $2)::text[],
                position('{BLOCKING}' IN query) > 0
         FROM pg_stat_activity WHERE pid = $1"
    );
    let rows = stall::ask(sessions, Group::Coordinator, pid, &statement, &[]).await?;
    Ok(rows.first().and_then(|row| {
        let since = row.get::<_, Option<_>>(0)?;
        Some(Begun { since, operations: row.get(1), blocking: row.get(2) })
    }))
}

/// What `group`'s server shows of what the coordinator's process `pid` is about.
pub(super) async fn of(
    sessions: &Sessions,
    group: Group,
    pid: i32,
    operations: &[String],
) -> Result<Shown, pg::Error> {
    let row = stall::ask(sessions, group, pid, SHOWN, &[(&operations, Type::TEXT_ARRAY)]).await?;
    let Some(row) = row.first() else { return Ok(Shown::default()) };
    let phases = [Phase::CopyingData, Phase::CatchingUp, Phase::CreatingConstraints];
    let phase = (1..).zip(phases).filter(|(column, _)| row.get(*column)).map(|(_, phase)| phase).max();
    Ok(Shown {
        progress: row.get(0),
        phase: phase.unwrap_or_default(),
        errors: row.get(4),
        waits: row.get(5),
    })
}

impl Phase {
    /// In the words that Citus has for moves.
    fn name(self) -> &'static str {
        match self {
            Self::SettingUp => "Setting Up",
            Self::CatchingUp => "Catching Up",
            Self::CreatingConstraints => "Creating Constraints",
            Self::CopyingData => "Copying Data",
        }
    }
}

/// What is said where nothing is known to keep it.
pub(super) const NOTHING_KNOWN: &str = "nothing that is known keeps it: look at the logs of its nodes";

/// What keeps `stalled`, with the process to look at; `None` if it is at work all the same.
pub async fn diagnose(sessions: &Sessions, stalled: &StalledSplit) -> Option<Stall> {
    let running = &stalled.running;
    let (kind, cause) = if stalled.hopeless {
        let message = format!(
            "its target failed {} times to follow the changes of its source, and will go on to: its log says why",
            running.errors
        );
        (StallKind::ReplicationFailed, message)
    } else if stalled.blocking.is_some() {
        // Writers wait while it is looked for, whatever is found.
        let unknown = || (StallKind::Unknown, NOTHING_KNOWN.to_owned());
        stall::in_time(async { cause(sessions, stalled).await.unwrap_or_else(unknown) }).await
    } else {
        cause(sessions, stalled).await?
    };
    Some(Stall {
        pid: running.pid,
        application: running.application.clone(),
        seconds: stalled.blocking.unwrap_or(stalled.idle).as_secs(),
        blocks_writers: stalled.blocking.is_some(),
        kind,
        cause,
        end: stalled.end,
    })
}

/// Who keeps the split, or `None` while it builds an index.
async fn cause(sessions: &Sessions, stalled: &StalledSplit) -> Option<Cause> {
    let RunningSplit { pid, nodes, .. } = &stalled.running;
    Some(kept(sessions, nodes, *pid).await?.unwrap_or_else(|| (StallKind::Unknown, NOTHING_KNOWN.to_owned())))
}

/// Who keeps what the coordinator's process `pid` is about, on whatever server of `nodes`: its parts go to several, and a lock of
/// the catalogs is one of all of them. `None` while it builds an index, `Some(None)` where nobody keeps it.
#[allow(clippy::option_option, reason = "that nobody keeps it is an answer, and that it is at work another")]
pub(super) async fn kept(sessions: &Sessions, nodes: &[Group], pid: i32) -> Option<Option<Cause>> {
    let (mut away, mut builds, mut blocker) = (None, false, None);
    for group in nodes {
        match stall::blocked(sessions, *group, pid).await {
            Ok(None) => builds |= stall::builds_index(sessions, *group, pid).await.unwrap_or(false),
            Ok(found) => blocker = Blocker::worse(blocker, found),
            Err(error) => away = away.or(Some(stall::unasked(*group, &error))),
        }
    }
    if let Some(blocker) = blocker {
        return Some(Some((StallKind::Blocked, blocker.message)));
    }
    if away.is_none() && builds {
        return None;
    }
    Some(away)
}
