//! Finds out what a move that makes no progress waits for, and who keeps a split waiting.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::names::Group;
use crate::pg::{self, Endpoint, Parameter};
use crate::shards::act::{self, moves::reaches};
use crate::shards::observed::{Operation, Room, RunningMove, Stall, StallKind, end_of_prepared};
use crate::shards::sessions::{Door, Sessions};
use crate::shards::supervise::Stalled;

/// Which sessions are of a move, a split, or a step that spreads a table, on one server: `$1` is its process on the coordinator where the server is the
/// coordinator, `$2` what ends the names of its sessions elsewhere.
const OURS: &str = "(waiting.pid = $1
       OR waiting.application_name LIKE ANY (ARRAY['citus_internal gpid=%' || $2, 'citus_rebalancer gpid=%' || $2])
       OR waiting.application_name LIKE ANY ('{citus_shard_move_%,citus_shard_split_%}')
       OR waiting.backend_type = 'logical replication worker'
       OR (waiting.backend_type = 'walsender' AND waiting.state = 'active'))";

/// Which session keeps these waiting: the oldest that does not wait itself, if there is one.
const BLOCKED: &str = "
    SELECT waiting.pid, blocker.pid, blocker.application_name, blocker.state,
           (extract(epoch FROM clock_timestamp() - blocker.xact_start) * 1000)::int8, left(blocker.query, 80),
           blocker.wait_event_type IS NOT DISTINCT FROM 'Lock' AS waits,
           blocker.query ~* '^\\s*(alter|create|drop|truncate|reindex|cluster|vacuum|lock|comment|grant|revoke)\\M'
    FROM pg_stat_activity AS waiting
    CROSS JOIN LATERAL unnest(pg_blocking_pids(waiting.pid)) AS by (pid)
    JOIN pg_stat_activity AS blocker ON blocker.pid = by.pid
    WHERE";

/// As [`BLOCKED`] has them.
const OLDEST: &str = "ORDER BY waits, blocker.xact_start LIMIT 1";

/// Which prepared transaction does. It has no process, so each is 0 among those that block: the one that is meant has a lock
/// that the one that is waited for is not granted beside, and is known by the lock on its own number.
const BLOCKED_BY_PREPARED: &str = "
    SELECT waiting.pid, prepared.gid, prepared.owner::text, prepared.database::text,
           to_char(prepared.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
           (extract(epoch FROM clock_timestamp() - prepared.prepared) * 1000)::int8
    FROM pg_stat_activity AS waiting
    JOIN pg_locks AS asked ON asked.pid = waiting.pid AND NOT asked.granted
    JOIN pg_locks AS held ON held.granted AND held.pid IS NULL
         AND (held.locktype, held.database, held.relation, held.page, held.tuple, held.virtualxid, held.transactionid,
              held.classid, held.objid, held.objsubid) IS NOT DISTINCT FROM
             (asked.locktype, asked.database, asked.relation, asked.page, asked.tuple, asked.virtualxid,
              asked.transactionid, asked.classid, asked.objid, asked.objsubid)
    JOIN (VALUES ('AccessShareLock', '{8}'::int[]), ('RowShareLock', '{7,8}'), ('RowExclusiveLock', '{5,6,7,8}'),
                 ('ShareUpdateExclusiveLock', '{4,5,6,7,8}'), ('ShareLock', '{3,4,6,7,8}'),
                 ('ShareRowExclusiveLock', '{3,4,5,6,7,8}'), ('ExclusiveLock', '{2,3,4,5,6,7,8}'),
                 ('AccessExclusiveLock', '{1,2,3,4,5,6,7,8}')) AS wish (mode, refused)
         ON wish.mode = asked.mode AND array_position(
             '{AccessShareLock,RowShareLock,RowExclusiveLock,ShareUpdateExclusiveLock,ShareLock,ShareRowExclusiveLock,
               ExclusiveLock,AccessExclusiveLock}', held.mode) = ANY (wish.refused)
    JOIN pg_locks AS own ON own.locktype = 'transactionid' AND own.pid IS NULL AND own.granted
         AND own.virtualtransaction = held.virtualtransaction
    JOIN pg_prepared_xacts AS prepared ON prepared.transaction = own.transactionid
    WHERE 0 = ANY (pg_blocking_pids(waiting.pid)) AND";

/// Whether the move or split builds an index on this server, and waits for nobody: that has no progress which Citus shows, however
/// long it takes. `$1` and `$2` are as for [`OURS`].
const BUILDS: &str = "
    SELECT EXISTS (SELECT FROM pg_stat_progress_create_index JOIN pg_stat_activity AS at USING (pid)
                   WHERE (pid = $1 OR application_name LIKE 'citus_internal gpid=%' || $2)
                     AND wait_event_type IS DISTINCT FROM 'Lock')";

/// How long it may take to find out what keeps a move or a split for which writers wait: a server that is cut off from another one says so
/// after five seconds.
const DIAGNOSIS: Duration = Duration::from_secs(8);

/// Less than this many bytes free is a full disk.
const FULL: i64 = 64 << 20;

/// What keeps a move or a split, and what to look at.
pub(super) type Cause = (StallKind, String);

/// What `stalled` waits for, with the process or object to look at; `None` if it is at work all the same.
pub async fn diagnose(sessions: &Sessions, stalled: &Stalled) -> Option<Stall> {
    let running = stalled.running;
    let (kind, cause) = match &stalled.lost_slot {
        None if stalled.filling.is_some() => filling(stalled.filling?),
        Some(slot) => lost(running.from, running.to, slot),
        None if stalled.blocking.is_some() => {
            // Writers wait while it is looked for.
            in_time(cause(sessions, stalled)).await
        }
        None if builds_index(sessions, running.to, running.pid).await.unwrap_or(false) => return None,
        None => cause(sessions, stalled).await,
    };
    let application = Operation::name_of(running.shard_id, running.from, running.to);
    Some(Stall {
        pid: running.pid,
        application,
        seconds: stalled.blocking.unwrap_or(stalled.idle).as_secs(),
        blocks_writers: stalled.blocking.is_some(),
        kind,
        cause,
        end: stalled.end,
    })
}

/// What `looking` finds, if that is soon enough for writers who wait.
pub(super) async fn in_time(looking: impl Future<Output = Cause>) -> Cause {
    tokio::time::timeout(DIAGNOSIS, looking).await.unwrap_or_else(|_| {
        let message = format!("what keeps it could not be found out within {} s", DIAGNOSIS.as_secs());
        (StallKind::NotDiagnosed, message)
    })
}

/// What is said of a move whose slot is gone.
fn lost(from: Group, to: Group, slot: &str) -> Cause {
    let message = format!(
        "slot lost, the source was switched over or restored: {from} has no replication slot {slot} any more, and what is \
         written there does not reach {to}"
    );
    (StallKind::SlotLost, message)
}

/// What is said of a move during which a volume has become nearly full.
fn filling(Room { group, free_bytes, total_bytes, .. }: Room) -> Cause {
    let message = format!(
        "the disk of {group} is nearly full: {free_bytes} of {total_bytes} bytes are free, and until it ends a move takes more, the \
         log on its source and the copy on its target; make room there, or give it a larger volume"
    );
    (StallKind::DiskFilling, message)
}

/// What keeps a move that makes no progress.
async fn cause(sessions: &Sessions, stalled: &Stalled) -> Cause {
    let (from, to) = (stalled.running.from, stalled.running.to);
    // A statement that fails is no reason not to ask for the rest.
    let (mut failed, mut blocker) = (None, None);
    let mut asked = vec![Group::Coordinator, from, to];
    if stalled.blocking.is_some() {
        // It takes the lock that writers share in every node, since they may write through any.
        match members(sessions).await {
            Ok(members) => asked.extend(members.into_iter().filter(|group| ![from, to].contains(group))),
            Err(error) => failed = Some(unasked(Group::Coordinator, &error)),
        }
    }
    for group in asked {
        match blocked(sessions, group, stalled.running.pid).await {
            Ok(found) => blocker = Blocker::worse(blocker, found),
            Err(error) if error.is_out_of_reach() && blocker.is_none() => return unasked(group, &error),
            Err(error) => failed = failed.or(Some(unasked(group, &error))),
        }
    }
    if let Some(blocker) = blocker {
        return (StallKind::Blocked, blocker.message);
    }
    let found = replication(sessions, from, to, &stalled.phase).await;
    // What is certain needs no more questions; the others may follow from a way that is cut.
    let is_certain = |(kind, _): &Cause| *kind != StallKind::ReplicationFailed;
    if !matches!(&found, Ok(Some(cause)) if is_certain(cause)) {
        match cut_off(sessions, from, to).await {
            Ok(Some(message)) => return (StallKind::Unreachable, message),
            Ok(None) => {}
            Err(cause) => failed = failed.or(Some(cause)),
        }
    }
    let found = match found {
        Ok(Some(cause)) => return cause,
        Ok(None) => None,
        Err((StallKind::Unreachable, message)) => return (StallKind::Unreachable, message),
        Err(cause) => Some(cause),
    };
    found.or(failed).unwrap_or_else(|| {
        let phase = if stalled.phase.is_empty() { "before its first phase" } else { &stalled.phase };
        let message = format!(
            "nothing that is known keeps it ({phase}): look at the logs of the coordinator, {from} and {to}"
        );
        (StallKind::Unknown, message)
    })
}

/// The workers that are registered.
async fn members(sessions: &Sessions) -> Result<Vec<Group>, pg::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let members = "SELECT nodename::text, nodeport FROM pg_dist_node
                   WHERE noderole::text = 'primary' AND isactive AND groupid <> 0 ORDER BY groupid";
    let rows = session.query(members, &[]).await?;
    let group = |row: &Row| {
        let port = u16::try_from(row.get::<_, i32>(1)).ok()?;
        sessions.topology().group(&Endpoint::new(row.get::<_, String>(0), port))
    };
    Ok(rows.iter().filter_map(group).collect())
}

/// What is said of a server that did not say what keeps a move or a split: it cannot be asked, or the statement failed.
pub(super) fn unasked(group: Group, error: &pg::Error) -> Cause {
    if error.is_out_of_reach() {
        return (StallKind::Unreachable, format!("{group} does not answer: {error}"));
    }
    let message = format!("what keeps it is not known, as {group} answers and refuses the question: {error}");
    (StallKind::NotDiagnosed, message)
}

/// Which of the two servers does not reach the other, if one does not: what the target follows comes from the source, and
/// the source copies to the target.
async fn cut_off(sessions: &Sessions, from: Group, to: Group) -> Result<Option<String>, Cause> {
    for (group, other) in [(to, from), (from, to)] {
        match reaches(sessions, group, other).await {
            Ok(()) => {}
            Err(act::Error::Database(error)) => return Err(unasked(group, &error)),
            Err(error) => return Ok(Some(error.to_string())),
        }
    }
    Ok(None)
}

/// Asks `group`'s server about the sessions of the move or split whose process on the coordinator is `pid`: of `statement`
/// `$1` is that process where the server is the coordinator, `$2` what ends the names of its sessions elsewhere, and `more`
/// follows.
pub(super) async fn ask(
    sessions: &Sessions,
    group: Group,
    pid: i32,
    statement: &str,
    more: &[Parameter<'_>],
) -> Result<Vec<Row>, pg::Error> {
    let session = sessions.session(group, Door::Dialog).await?;
    let here = if group == Group::Coordinator { pid } else { 0 };
    // The last ten digits of the number that Citus gives to a session in all nodes.
    let name = format!("{pid:010}");
    let mut parameters: Vec<Parameter<'_>> = vec![(&here, Type::INT4), (&name, Type::TEXT)];
    parameters.extend_from_slice(more);
    session.query(statement, &parameters).await
}

/// The processes of those of `moves` that build an index on their target.
pub(super) async fn building(sessions: &Sessions, moves: &[RunningMove]) -> BTreeSet<i32> {
    let mut building = BTreeSet::new();
    for running in moves {
        if builds_index(sessions, running.to, running.pid).await.unwrap_or(false) {
            building.insert(running.pid);
        }
    }
    building
}

/// Whether the move or split whose process on the coordinator is `pid` builds an index on `target`.
pub(super) async fn builds_index(sessions: &Sessions, target: Group, pid: i32) -> Result<bool, pg::Error> {
    Ok(ask(sessions, target, pid, BUILDS, &[]).await?.first().is_some_and(|row| row.get(0)))
}

/// Who keeps a move or a split waiting.
pub(super) struct Blocker {
    /// It waits for somebody itself.
    waits: bool,
    /// Its age in milliseconds: two of one second are not equally old.
    age: i64,
    /// Who it is, and what to do.
    pub(super) message: String,
}

impl Blocker {
    /// Whichever of the two is rather the cause. Transactions that come and go, such as those that Citus prepares and ends
    /// within milliseconds, keep somebody of a move for a moment: the oldest keeps it for as long as it is kept. Who waits
    /// himself is kept by another, and that one is the cause of both.
    pub(super) fn worse(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        [one, other].into_iter().flatten().max_by_key(|blocker| (!blocker.waits, blocker.age))
    }
}

/// Who keeps the move or split whose process on the coordinator is `pid` waiting on `group`'s server.
pub(super) async fn blocked(
    sessions: &Sessions,
    group: Group,
    pid: i32,
) -> Result<Option<Blocker>, pg::Error> {
    let prepared = format!("{BLOCKED_BY_PREPARED} {OURS} ORDER BY prepared.prepared LIMIT 1");
    let prepared = ask(sessions, group, pid, &prepared, &[]).await?;
    let sessions = ask(sessions, group, pid, &format!("{BLOCKED} {OURS} {OLDEST}"), &[]).await?;
    let prepared = prepared.first().map(|row| prepared_transaction(group, row));
    Ok(Blocker::worse(sessions.first().map(|row| session(group, row)), prepared))
}

/// What is said of a row of [`BLOCKED`].
fn session(group: Group, row: &Row) -> Blocker {
    let (waiting, blocker): (i32, i32) = (row.get(0), row.get(1));
    let application: String = row.get::<_, Option<_>>(2).unwrap_or_default();
    let state: String = row.get::<_, Option<_>>(3).unwrap_or_default();
    let age: i64 = row.get::<_, Option<_>>(4).unwrap_or_default();
    let seconds = age / 1000;
    let statement: String = row.get::<_, Option<_>>(5).unwrap_or_default();
    let kind = match (row.get::<_, Option<bool>>(7), state.as_str()) {
        (Some(true), _) => "a change of a table",
        (_, "idle in transaction") => "an open transaction",
        _ => "a lock",
    };
    let message = format!(
        "on {group} its process {waiting} waits for {kind} of {application} (pid {blocker}, open for {seconds} s: \
             {statement}); let it end, or SELECT pg_terminate_backend({blocker}) there"
    );
    Blocker { waits: row.get(6), age, message }
}

/// What is said of a row of [`BLOCKED_BY_PREPARED`].
fn prepared_transaction(group: Group, row: &Row) -> Blocker {
    let waiting: i32 = row.get(0);
    let [gid, owner, database, since]: [String; 4] = [row.get(1), row.get(2), row.get(3), row.get(4)];
    let age: i64 = row.get(5);
    let seconds = age / 1000;
    let message = format!(
        "on {group} its process {waiting} waits for a lock of the prepared transaction '{gid}' of {owner} in database \
         {database} (since {since}, {seconds} s): {}",
        end_of_prepared(&gid)
    );
    Blocker { waits: false, age, message }
}

/// What is wrong with the replication of the move; an error is what is said of a server that could not be asked.
async fn replication(
    sessions: &Sessions,
    from: Group,
    to: Group,
    phase: &str,
) -> Result<Option<Cause>, Cause> {
    // A disk that is full is the cause of what else there is.
    for group in [from, to] {
        let found = full(sessions, group).await.map_err(|error| unasked(group, &error))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    if !["", "Setting Up", "Completed"].contains(&phase) {
        let slots = slots(sessions, from).await.map_err(|error| unasked(from, &error))?;
        if slots == 0 {
            return Ok(Some(lost(from, to, "of the move")));
        }
    }
    subscription(sessions, to).await.map_err(|error| unasked(to, &error))
}

/// Whether a disk is full, if one is.
pub(super) async fn full(sessions: &Sessions, group: Group) -> Result<Option<Cause>, pg::Error> {
    let free = free_bytes(sessions, group).await?;
    let message = || format!("the disk of {group} is full: {free} bytes are free; make room there");
    Ok((free < FULL).then(|| (StallKind::DiskFull, message())))
}

async fn free_bytes(sessions: &Sessions, group: Group) -> Result<i64, pg::Error> {
    let free = "SELECT available_disk_size FROM citus_local_disk_space_stats()";
    Ok(sessions.session(group, Door::Dialog).await?.query_one(free, &[]).await?.get(0))
}

/// Slots of moves on the source.
async fn slots(sessions: &Sessions, from: Group) -> Result<i64, pg::Error> {
    let slots =
        "SELECT count(*) FROM pg_replication_slots WHERE starts_with(slot_name, 'citus_shard_move_slot_')";
    Ok(sessions.session(from, Door::Dialog).await?.query_one(slots, &[]).await?.get(0))
}

/// What is wrong with the subscriptions of the move on its target.
pub(super) async fn subscription(sessions: &Sessions, to: Group) -> Result<Option<Cause>, pg::Error> {
    let target = sessions.session(to, Door::Dialog).await?;
    let rows = target
        .query(
            "SELECT pg_subscription.subname::text, stat.pid IS NOT NULL, apply_error_count + sync_error_count
             FROM pg_subscription JOIN pg_stat_subscription AS stat ON stat.subid = pg_subscription.oid
             LEFT JOIN pg_stat_subscription_stats AS errors ON errors.subid = pg_subscription.oid
             WHERE subenabled AND starts_with(pg_subscription.subname, 'citus_shard_move_') AND relid IS NULL
             ORDER BY 3 DESC NULLS LAST",
            &[],
        )
        .await?;
    for row in &rows {
        let (name, runs): (String, bool) = (row.get(0), row.get(1));
        let errors: i64 = row.get::<_, Option<_>>(2).unwrap_or_default();
        if errors > 0 {
            let message =
                format!("the subscription {name} on {to} failed {errors} times: the log of {to} says why");
            return Ok(Some((StallKind::ReplicationFailed, message)));
        }
        if !runs {
            return Ok(Some(worker(sessions, to, &name).await?));
        }
    }
    Ok(None)
}

/// Why the subscription has no worker: none is free; or its worker ends again and again.
async fn worker(sessions: &Sessions, to: Group, subscription: &str) -> Result<Cause, pg::Error> {
    let session = sessions.session(to, Door::Dialog).await?;
    let row = session
        .query_one(
            "SELECT current_setting('max_logical_replication_workers')::int8, count(pid),
                    coalesce(string_agg(DISTINCT name, ', ' ORDER BY name) FILTER (WHERE pid IS NOT NULL), '')
             FROM (SELECT pid, subname::text AS name FROM pg_stat_subscription) AS workers",
            &[],
        )
        .await?;
    let (most, taken): (i64, i64) = (row.get(0), row.get(1));
    if taken < most {
        let message = format!(
            "the worker of the subscription {subscription} on {to} does not stay: its log says why, as a rule that what comes \
             cannot be applied, or that no background worker is free (pg_stat_activity)"
        );
        return Ok((StallKind::ReplicationFailed, message));
    }
    let holders: String = row.get(2);
    let message = format!(
        "the subscription {subscription} on {to} has no background worker: all {most} logical replication workers there are \
         taken, by {holders}; drop subscriptions that are not needed (see pg_stat_subscription)"
    );
    Ok((StallKind::NoWorker, message))
}
