//! Reads what runs, how far it is, and what moves need.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::names::Group;
use crate::pg::{self, APPLICATION, Session};
use crate::shards::heat::actions::{KEPT, Kept};
use crate::shards::observe::orphans;
use crate::shards::observed::{
    Catalog, Change, Cleanup, Foreign, Operation, Orphan, Progress, Resources, StoredShards, Transaction,
};
use crate::shards::sessions::{Door, Sessions};
use crate::shards::strategy::{self, Seen};

/// The numbers of the operations that somebody carries out, or whose leavings somebody takes away, with the process on the
/// coordinator: it keeps each locked in class 10 of Citus' advisory locks. What Citus makes for an operation has its number
/// at the end of its name.
pub(in crate::shards) const LOCKED: &str = "
    SELECT (classid::int8 << 32) | objid::int8 AS operation_id, pid FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 10 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// A lock in `pg_locks` for which all who write to a shard group wait, from when it is asked for: writers share it, in each
/// node that they write through. Class 4 of Citus' advisory locks is for tables that are copied whole, 8 for shard groups.
pub(in crate::shards) const WRITES: &str =
    "locktype = 'advisory' AND objsubid IN (4, 8) AND mode = 'ExclusiveLock'";

/// Whether logical replication cannot follow the table of a row of `pg_class`.
const UNFOLLOWABLE: &str = "(relpersistence <> 'p' OR NOT CASE relreplident
    WHEN 'f' THEN true
    WHEN 'd' THEN EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)
    WHEN 'i' THEN EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisreplident)
    ELSE false END)";

/// What Citus' catalogs say beside nodes and placements, and what is written down in the operator's `own_tables`.
pub(super) async fn read(
    session: &Session,
    own_tables: bool,
    catalog: &mut Catalog,
) -> Result<Kept, pg::Error> {
    activity(session, catalog).await?;
    obstacles(session, own_tables, catalog).await
}

/// Who is at work on shards: the operator's own sessions, Citus' jobs, and statements by hand.
async fn activity(session: &Session, catalog: &mut Catalog) -> Result<(), pg::Error> {
    let rows = session
        .query(
            &format!("SELECT 'job', job_id, NULL::int, '', description FROM pg_dist_background_job
             WHERE state NOT IN ('finished', 'cancelled', 'failed')
             UNION ALL
             SELECT 'operation', NULL, pid, application_name,
                    (SELECT 'blocking' FROM pg_locks WHERE pg_locks.pid = at.pid AND {WRITES} LIMIT 1)
             FROM pg_stat_activity AS at
             WHERE datname = current_database() AND starts_with(application_name, $2) AND state <> 'idle'
               AND pid <> pg_backend_pid()
             UNION ALL
             SELECT 'statement', NULL, pid, application_name, NULL FROM pg_stat_activity
             WHERE datname = current_database() AND state <> 'idle' AND backend_type = 'client backend'
               AND pid <> pg_backend_pid() AND NOT starts_with(application_name, $1)
               AND NOT starts_with(application_name, 'citus_')
               AND query ~* '(citus_move_shard_placement|citus_copy_shard_placement|citus_drain_node|citus_split_shard|'
                            'rebalance_table_shards|isolate_tenant_to_new_shard)[a-z_]*[[:space:]]*[(]'
             ORDER BY 1, 2, 3"),
            &[(&APPLICATION, Type::TEXT), (&format!("{APPLICATION}: "), Type::TEXT)],
        )
        .await?;
    for row in &rows {
        let number: i64 = row.get::<_, Option<_>>(1).unwrap_or_default();
        let pid: i32 = row.get::<_, Option<_>>(2).unwrap_or_default();
        let application: String = row.get::<_, Option<_>>(3).unwrap_or_default();
        let text: String = row.get::<_, Option<_>>(4).unwrap_or_default();
        match row.get(0) {
            "job" => catalog.foreign.push(Foreign::Job { id: number, description: text }),
            "operation" => {
                catalog.operations.push(Operation { pid, application });
                if !text.is_empty() {
                    catalog.blocking.insert(pid);
                }
            }
            _ => catalog.foreign.push(Foreign::Statement { pid, application }),
        }
    }
    Ok(())
}

/// What stands in the way of moves, whoever makes them: what is still to be taken away, tables that logical replication
/// cannot follow, and tables that are not cut by a hash: those that are copied to every node leave with it, and have to be
/// there before anything else comes.
async fn obstacles(session: &Session, own_tables: bool, catalog: &mut Catalog) -> Result<Kept, pg::Error> {
    let kept = if own_tables { KEPT } else { "NULL::text" };
    let rows = session
        .query(
            &format!("SELECT node_group_id, count(*), NULL FROM pg_dist_cleanup GROUP BY 1
             UNION ALL
             SELECT colocationid, NULL, relname::text FROM pg_dist_partition JOIN pg_class ON pg_class.oid = logicalrelid
             WHERE partmethod = 'h' AND {UNFOLLOWABLE}
             UNION ALL
             SELECT DISTINCT groupid, -1, relname::text FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
             JOIN pg_dist_partition USING (logicalrelid) JOIN pg_class ON pg_class.oid = logicalrelid
             WHERE groupid <> 0 AND partmethod <> 'h' AND repmodel <> 't'
             UNION ALL
             SELECT groupid, -4, logicalrelid::regclass::text FROM pg_dist_partition JOIN pg_dist_shard USING (logicalrelid)
             JOIN pg_dist_placement USING (shardid) WHERE partmethod = 'n' AND repmodel = 't'
             UNION ALL
             SELECT NULL, -6, logicalrelid::regclass::text FROM pg_dist_partition JOIN pg_class ON pg_class.oid = logicalrelid
             WHERE partmethod = 'n' AND repmodel = 't' AND {UNFOLLOWABLE}
             UNION ALL
             SELECT colocationid, -5, count(DISTINCT relowner)::text FROM pg_dist_partition JOIN pg_class ON pg_class.oid = logicalrelid
             WHERE partmethod = 'h' GROUP BY 1
             UNION ALL
             SELECT NULL, -2, {kept}
             UNION ALL
             SELECT NULL, -3, {strategies}
             ORDER BY 1, 3", strategies = strategy::SEEN),
            &[],
        )
        .await?;
    let mut written = Kept::default();
    for row in &rows {
        match row.get::<_, Option<i64>>(1) {
            Some(-2) => {
                written =
                    row.get::<_, Option<String>>(2).map_or_else(Kept::default, |text| Kept::parse(&text));
            }
            Some(-6) => drop(catalog.uncopyable.insert(row.get(2))),
            Some(-5) => {
                let owners: &str = row.get(2);
                catalog.owners.insert(row.get(0), owners.parse().unwrap_or_default());
            }
            Some(-4) => {
                catalog.copies.entry(row.get(2)).or_default().insert(row.get(0));
            }
            Some(-3) => catalog.strategies = Seen::parse(row.get(2)),
            Some(-1) => catalog.immovable.entry(row.get(0)).or_default().push(row.get(2)),
            Some(records) => catalog.cleanup.push(Cleanup { group_id: row.get(0), records }),
            None => catalog.unfollowable.entry(row.get(0)).or_default().push(row.get(2)),
        }
    }
    Ok(written)
}

/// How far the moves are. The coordinator asks every node that takes part, and waits for one that is silent as long as a
/// statement may take: so this is asked only while something moves, of nodes that answer, and what else the coordinator
/// says does not depend on it.
pub(super) async fn progress(sessions: &Sessions) -> Result<Vec<Progress>, pg::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let rows = session
        .query(
            "SELECT sessionid, shardid, coalesce(source_shard_size, 0), coalesce(target_shard_size, 0),
                    source_lsn::text, target_lsn::text, coalesce(status, '')
             FROM get_rebalance_progress() ORDER BY sessionid, shardid",
            &[],
        )
        .await?;
    let progress = |row: &Row| Progress {
        pid: row.get(0),
        shard_id: row.get(1),
        source_bytes: row.get(2),
        target_bytes: row.get(3),
        source_lsn: row.get(4),
        target_lsn: row.get(5),
        phase: row.get(6),
    };
    Ok(rows.iter().map(progress).collect())
}

/// What the server of `session` says of Citus.
pub(super) struct Local {
    /// Citus' number of its group.
    pub(super) group_id: i32,
    /// Citus' release, for example `13.2.2`.
    pub(super) release: String,
    /// What moves need.
    pub(super) resources: Resources,
    /// What may have been left by moves and splits.
    pub(super) orphans: Vec<Orphan>,
}

/// Who has a lock that changes take on a distributed table, or on a shard that is here; reading and writing rows takes
/// weaker ones. What Citus does for a session on another node shows there. Shards are known by their names: Citus hides
/// them in `pg_class`.
const CHANGES: &str = "
    SELECT DISTINCT ON (colocationid, shard_id) colocationid, relation::regclass::text AS name, pid, application_name,
           (SELECT min(beside.shardid) FROM pg_dist_shard AS beside JOIN pg_dist_partition AS its USING (logicalrelid)
            WHERE its.colocationid = part.colocationid AND beside.shardminvalue = shard.shardminvalue) AS shard_id
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    LEFT JOIN pg_dist_shard AS shard
         ON shard.shardid = substring(relation::regclass::text FROM '_([0-9]{1,18})$')::int8
         AND relation = to_regclass(
             CASE (SELECT relnamespace FROM pg_class WHERE oid = shard.logicalrelid)
             WHEN 'public'::regnamespace THEN 'public.' ELSE '' END || shard_name(shard.logicalrelid, shard.shardid))
    JOIN pg_dist_partition AS part ON part.logicalrelid = coalesce(shard.logicalrelid, relation::regclass)
    WHERE locktype = 'relation' AND granted AND partmethod = 'h' AND backend_type = 'client backend'
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
      AND NOT starts_with(application_name, $1) AND NOT starts_with(application_name, 'citus_')
    ORDER BY colocationid, shard_id, pid";

/// Transactions that are named; those of moves under way are among them, and there are few.
const WRITERS: i64 = 16;

/// What the server of `session` says of Citus and of what moves need; of one that is to leave also whether it still stores
/// shards.
pub(super) async fn local(session: &Session, leaving: bool) -> Result<Local, pg::Error> {
    let row = session
        .query_one(
            &format!("WITH writers AS (
                 SELECT pid, application_name AS name, xact_start AS since FROM pg_stat_activity
                 WHERE backend_xid IS NOT NULL AND backend_type = 'client backend'
                   AND NOT starts_with(application_name, $1)
                 UNION ALL SELECT 0, gid, prepared FROM pg_prepared_xacts),
             oldest AS (SELECT * FROM writers ORDER BY since LIMIT $2),
             changes AS ({CHANGES})
             SELECT (SELECT groupid FROM pg_dist_local_group), space.available_disk_size, space.total_disk_size,
                    current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots),
                    current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication),
                    current_setting('max_logical_replication_workers')::int8
                        - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL),
                    current_setting('max_worker_processes')::int8
                        - (SELECT count(*) FROM pg_stat_activity WHERE backend_type NOT IN (
                               'client backend', 'walsender', 'walreceiver', 'walwriter', 'startup', 'checkpointer',
                               'background writer', 'archiver', 'logger', 'autovacuum launcher', 'autovacuum worker')),
                    ARRAY (SELECT pid FROM oldest ORDER BY since), ARRAY (SELECT name FROM oldest ORDER BY since),
                    ARRAY (SELECT extract(epoch FROM clock_timestamp() - since)::int8 FROM oldest ORDER BY since),
                    citus_version(), {named},
                    ARRAY (SELECT colocationid FROM changes ORDER BY colocationid, shard_id),
                    ARRAY (SELECT shard_id FROM changes ORDER BY colocationid, shard_id),
                    ARRAY (SELECT name FROM changes ORDER BY colocationid, shard_id),
                    ARRAY (SELECT pid FROM changes ORDER BY colocationid, shard_id),
                    ARRAY (SELECT application_name FROM changes ORDER BY colocationid, shard_id)
             FROM citus_local_disk_space_stats() AS space", named = orphans::NAMED),
            &[(&APPLICATION, Type::TEXT), (&WRITERS, Type::INT8)],
        )
        .await?;
    let (pids, names, ages): (Vec<i32>, Vec<Option<String>>, Vec<Option<i64>>) =
        (row.get(7), row.get(8), row.get(9));
    let writers = pids.into_iter().zip(names).zip(ages).map(|((pid, name), seconds)| Transaction {
        pid,
        name: name.unwrap_or_default(),
        seconds: seconds.unwrap_or_default(),
    });
    let resources = Resources {
        free_bytes: row.get(1),
        total_bytes: row.get(2),
        free_slots: row.get(3),
        free_senders: row.get(4),
        free_appliers: row.get(5),
        free_workers: row.get(6),
        writers: writers.collect(),
        changes: changes(&row, 12),
        stored_shards: if leaving { Some(stored_shards(session).await?) } else { None },
    };
    // "Citus 13.2.2 on x86_64-pc-linux-gnu, compiled by gcc ..."
    let version: String = row.get(10);
    let release = version.split_whitespace().nth(1).unwrap_or(&version).to_owned();
    let left: Vec<String> = row.get(11);
    Ok(Local { group_id: row.get(0), release, resources, orphans: orphans::parse(&left) })
}

/// The changes in five columns from `first` on.
fn changes(row: &Row, first: usize) -> Vec<Change> {
    let groups: Vec<i32> = row.get(first);
    let shards: Vec<Option<i64>> = row.get(first + 1);
    let tables: Vec<String> = row.get(first + 2);
    let pids: Vec<i32> = row.get(first + 3);
    let applications: Vec<String> = row.get(first + 4);
    let who = pids.into_iter().zip(applications);
    let what = groups.into_iter().zip(shards).zip(tables);
    what.zip(who)
        .map(|(((colocation_id, shard_id), table), (pid, application))| Change {
            colocation_id,
            shard_id,
            table,
            pid,
            application,
        })
        .collect()
}

/// Shards of tables that are physically on this server, whatever the catalogs say; of tables that are copied whole to every
/// node nothing is lost with one.
pub(in crate::shards) async fn stored_shards(session: &Session) -> Result<StoredShards, pg::Error> {
    let row = session
        .query_one(
            "WITH named AS (
                 SELECT CASE relnamespace WHEN 'public'::regnamespace THEN 'public.' ELSE '' END
                        || shard_name(logicalrelid, shardid) AS name
                 FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid)
                 JOIN pg_class ON pg_class.oid = logicalrelid WHERE repmodel <> 't'),
             stored AS (SELECT name FROM named WHERE to_regclass(name) IS NOT NULL)
             SELECT count(*), ARRAY (SELECT name FROM stored ORDER BY name LIMIT $1) FROM stored",
            &[(&StoredShards::NAMED, Type::INT8)],
        )
        .await?;
    Ok(StoredShards { count: row.get(0), first: row.get(1) })
}
