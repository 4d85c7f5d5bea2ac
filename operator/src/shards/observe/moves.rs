//! Reads what runs, how far it is, and what moves need.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use crate::pg::{self, APPLICATION, Session};
use crate::shards::observed::{Catalog, Change, Cleanup, Foreign, Progress, Resources, Transaction};

/// What Citus' catalogs say beside nodes and placements.
pub(super) async fn read(session: &Session, catalog: &mut Catalog) -> Result<(), pg::Error> {
    let foreign = session
        .query(
            "SELECT job_id, description, NULL::int, NULL FROM pg_dist_background_job
             WHERE state NOT IN ('finished', 'cancelled', 'failed')
             UNION ALL
             SELECT NULL, NULL, pid, application_name FROM pg_stat_activity
             WHERE datname = current_database() AND state <> 'idle' AND backend_type = 'client backend'
               AND pid <> pg_backend_pid() AND NOT starts_with(application_name, $1)
               AND NOT starts_with(application_name, 'citus_')
               AND query ~* '(citus_move_shard_placement|citus_copy_shard_placement|citus_drain_node|citus_split_shard|'
                            'rebalance_table_shards|isolate_tenant_to_new_shard)[a-z_]*[[:space:]]*[(]'",
            &[(&APPLICATION, Type::TEXT)],
        )
        .await?;
    catalog.foreign = foreign
        .iter()
        .map(|row| match row.get::<_, Option<i64>>(0) {
            Some(id) => Foreign::Job { id, description: row.get::<_, Option<_>>(1).unwrap_or_default() },
            None => Foreign::Statement {
                pid: row.get::<_, Option<_>>(2).unwrap_or_default(),
                application: row.get::<_, Option<_>>(3).unwrap_or_default(),
            },
        })
        .collect();
    let cleanup = session
        .query("SELECT node_group_id, count(*) FROM pg_dist_cleanup GROUP BY 1 ORDER BY 1", &[])
        .await?;
    catalog.cleanup =
        cleanup.iter().map(|row| Cleanup { group_id: row.get(0), records: row.get(1) }).collect();
    let unfollowable = session
        .query(
            "SELECT colocationid, relname::text FROM pg_dist_partition JOIN pg_class ON pg_class.oid = logicalrelid
             WHERE partmethod = 'h' AND (relpersistence <> 'p' OR NOT CASE relreplident
                        WHEN 'f' THEN true
                        WHEN 'd' THEN EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)
                        WHEN 'i' THEN EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisreplident)
                        ELSE false END)
             ORDER BY 1, 2",
            &[],
        )
        .await?;
    let mut names: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for row in &unfollowable {
        names.entry(row.get(0)).or_default().push(row.get(1));
    }
    catalog.unfollowable = names;
    catalog.changes = changes(session).await?;
    if catalog.moves().next().is_some() {
        catalog.progress = progress(session).await?;
    }
    Ok(())
}

/// Who changes distributed tables: reading and writing rows takes weaker locks.
async fn changes(session: &Session) -> Result<Vec<Change>, pg::Error> {
    let rows = session
        .query(
            "SELECT DISTINCT ON (colocationid) colocationid, relname::text, pid, application_name
             FROM pg_locks JOIN pg_dist_partition ON logicalrelid = relation JOIN pg_class ON pg_class.oid = relation
             JOIN pg_stat_activity USING (pid)
             WHERE locktype = 'relation' AND granted AND partmethod = 'h' AND backend_type = 'client backend'
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                            'AccessExclusiveLock')
               AND NOT starts_with(application_name, $1) AND NOT starts_with(application_name, 'citus_')
             ORDER BY colocationid, pid",
            &[(&APPLICATION, Type::TEXT)],
        )
        .await?;
    let change = |row: &tokio_postgres::Row| Change {
        colocation_id: row.get(0),
        table: row.get(1),
        pid: row.get(2),
        application: row.get::<_, Option<_>>(3).unwrap_or_default(),
    };
    Ok(rows.iter().map(change).collect())
}

/// How far the moves are. This asks every node that takes part, so it is asked only while something moves.
async fn progress(session: &Session) -> Result<Vec<Progress>, pg::Error> {
    let rows = session
        .query(
            "SELECT sessionid, shardid, coalesce(source_shard_size, 0), coalesce(target_shard_size, 0),
                    source_lsn::text, target_lsn::text, coalesce(status, '')
             FROM get_rebalance_progress() ORDER BY sessionid, shardid",
            &[],
        )
        .await?;
    let progress = |row: &tokio_postgres::Row| Progress {
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

/// What moves need on the server of `session`; of one that is to leave also whether it still stores shards.
pub(super) async fn resources(session: &Session, leaving: bool) -> Result<(i32, Resources), pg::Error> {
    let row = session
        .query_one(
            "WITH writers AS (
                 SELECT pid, application_name AS name, xact_start AS since FROM pg_stat_activity
                 WHERE backend_xid IS NOT NULL AND backend_type = 'client backend'
                   AND NOT starts_with(application_name, $1) AND NOT starts_with(application_name, 'citus_')
                 UNION ALL SELECT 0, gid, prepared FROM pg_prepared_xacts)
             SELECT (SELECT groupid FROM pg_dist_local_group), space.available_disk_size, space.total_disk_size,
                    current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots),
                    current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication),
                    current_setting('max_logical_replication_workers')::int8
                        - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL),
                    current_setting('max_worker_processes')::int8
                        - (SELECT count(*) FROM pg_stat_activity WHERE backend_type NOT IN (
                               'client backend', 'walsender', 'walreceiver', 'walwriter', 'startup', 'checkpointer',
                               'background writer', 'archiver', 'logger', 'autovacuum launcher', 'autovacuum worker')),
                    oldest.pid, oldest.name, extract(epoch FROM clock_timestamp() - oldest.since)::int8
             FROM citus_local_disk_space_stats() AS space
             LEFT JOIN (SELECT * FROM writers ORDER BY since LIMIT 1) AS oldest ON true",
            &[(&APPLICATION, Type::TEXT)],
        )
        .await?;
    let oldest_writer = row.get::<_, Option<i32>>(7).map(|pid| Transaction {
        pid,
        name: row.get::<_, Option<_>>(8).unwrap_or_default(),
        seconds: row.get::<_, Option<_>>(9).unwrap_or_default(),
    });
    let resources = Resources {
        free_bytes: row.get(1),
        total_bytes: row.get(2),
        free_slots: row.get(3),
        free_senders: row.get(4),
        free_appliers: row.get(5),
        free_workers: row.get(6),
        oldest_writer,
        stored_shards: if leaving { Some(stored_shards(session).await?) } else { None },
    };
    Ok((row.get(0), resources))
}

/// Shards of distributed tables that are physically on this server, whatever the catalogs say.
pub(in crate::shards) async fn stored_shards(session: &Session) -> Result<i64, pg::Error> {
    let row = session
        .query_one(
            "SELECT count(*) FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid)
             JOIN pg_class ON pg_class.oid = logicalrelid
             WHERE partmethod = 'h' AND to_regclass(
                 CASE relnamespace WHEN 'public'::regnamespace THEN 'public.' ELSE '' END
                 || shard_name(logicalrelid, shardid)) IS NOT NULL",
            &[],
        )
        .await?;
    Ok(row.get(0))
}
