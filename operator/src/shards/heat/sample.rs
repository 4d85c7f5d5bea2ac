//! Where the rows of a large shard group are, by a sample: in which half by the hash, and whether in more than one.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use tokio_postgres::types::Type;

use crate::heat::{LargeShard, median};
use crate::pg::{self, Session};
use crate::shards::rebalance::{Layout, ShardGroup};
use crate::shards::sessions::{Door, Sessions};
use crate::shards::wanted::Watch;

/// Shard groups that are sampled after one period: only one is split at a time.
const MOST: usize = 3;
/// Pages that are read of each: a few megabytes.
const PAGES: i64 = 300;

/// The largest of the shard groups that are too large, but for those that would be `split` already. One whose server
/// does not answer waits for the next period.
pub(super) async fn large(
    sessions: &Sessions,
    layout: &Layout,
    watch: &Watch,
    split: &BTreeSet<i64>,
) -> Vec<LargeShard> {
    let Some(limit) = watch.policy.max_shard_bytes else { return Vec::new() };
    let too_large = |group: &&ShardGroup| group.bytes > limit && !split.contains(&group.shard_id);
    let mut groups: Vec<&ShardGroup> = layout.groups.iter().filter(too_large).collect();
    groups.sort_by_key(|group| (Reverse(group.bytes), group.shard_id));
    let mut large = Vec::new();
    for group in groups.into_iter().take(MOST) {
        let Ok(session) = sessions.session(group.node, Door::Dialog).await else { continue };
        if let Ok(median) = middle(&session, group).await {
            let ShardGroup { shard_id, node, bytes, .. } = *group;
            large.push(LargeShard { shard_id, node, bytes, median });
        }
    }
    large
}

/// The hash in the middle of the rows of the group's largest table.
async fn middle(session: &Session, group: &ShardGroup) -> Result<Option<i32>, pg::Error> {
    let (min, max) = (i64::from(group.range.min), i64::from(group.range.max));
    let rows = session
        .query(
            "SELECT shard::text, quote_ident(key), greatest(pg_relation_size(shard) / 8192, 1)
             FROM (SELECT to_regclass(CASE relnamespace WHEN 'public'::regnamespace THEN 'public.' ELSE '' END
                              || shard_name(logicalrelid, shardid)) AS shard,
                          column_to_column_name(logicalrelid, partkey) AS key
                   FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid)
                   JOIN pg_class ON pg_class.oid = logicalrelid
                   WHERE partmethod = 'h' AND colocationid = $1 AND shardminvalue::int8 = $2
                     AND shardmaxvalue::int8 = $3) AS shards
             WHERE shard IS NOT NULL ORDER BY pg_total_relation_size(shard) DESC LIMIT 1",
            &[(&group.colocation_id, Type::INT4), (&min, Type::INT8), (&max, Type::INT8)],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (table, key, pages): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
    let statement = format!(
        "SELECT worker_hash({key}), count(*)
         FROM {table} TABLESAMPLE SYSTEM (least(100.0, 100.0 * {PAGES} / {pages})) GROUP BY 1"
    );
    let weights = session.query(&statement, &[]).await?;
    let weight = |row: &tokio_postgres::Row| (row.get(0), u64::try_from(row.get::<_, i64>(1)).unwrap_or(0));
    Ok(median(weights.iter().map(weight).collect()))
}
