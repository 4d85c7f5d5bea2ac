//! Reads how far splits are, of which Citus itself shows nothing.

use crate::names::Group;
use crate::pg;
use crate::shards::observed::{Catalog, Operation};
use crate::shards::sessions::{Door, Sessions};
use crate::shards::supervise::SplitMark;
use crate::shards::topology::Topology;

/// The splits that are under way, each with how far it is.
pub async fn marks(
    sessions: &Sessions,
    topology: &Topology,
    catalog: &Catalog,
) -> Vec<(Operation, SplitMark)> {
    let running: Vec<&Operation> = catalog.operations.iter().filter(|running| running.is_split()).collect();
    if running.is_empty() {
        return Vec::new();
    }
    let mut mark = SplitMark::default();
    for group in catalog.groups(topology) {
        // A server that does not answer has no progress to show.
        if let Ok((progress, errors)) = of(sessions, group).await {
            mark.progress.push(progress);
            mark.errors += errors;
        }
    }
    running.into_iter().map(|running| (running.clone(), mark.clone())).collect()
}

/// What one server shows of a split: what is copied, what is followed, what is built; and how often that failed.
async fn of(sessions: &Sessions, group: Group) -> Result<(String, i64), pg::Error> {
    let session = sessions.session(group, Door::Dialog).await?;
    let row = session
        .query_one(
            "SELECT concat_ws(' ',
                        (SELECT string_agg(pid || '=' || bytes_processed, ',' ORDER BY pid) FROM pg_stat_progress_copy),
                        (SELECT string_agg(subname || '=' || coalesce(latest_end_lsn::text, ''), ',' ORDER BY subname)
                         FROM pg_stat_subscription WHERE starts_with(subname, 'citus_shard_split_')),
                        (SELECT string_agg(pid || '=' || phase || blocks_done, ',' ORDER BY pid)
                         FROM pg_stat_progress_create_index),
                        (SELECT string_agg(slot_name || '=' || active, ',' ORDER BY slot_name)
                         FROM pg_replication_slots WHERE starts_with(slot_name, 'citus_shard_split_'))),
                    (SELECT coalesce(sum(apply_error_count + sync_error_count), 0)::int8 FROM pg_stat_subscription_stats
                     WHERE starts_with(subname, 'citus_shard_split_'))",
            &[],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}
