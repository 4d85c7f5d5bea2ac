//! Where the rows of a large shard group are, by a sample: in which half by the hash, and whether in more than one; and whose
//! most of them are.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use tokio_postgres::types::Type;

use super::period::Names;
use super::read::LONGEST_KEY;
use crate::heat::{Heaviest, LargeShard, Tenant, median};
use crate::pg::{self, Session};
use crate::shards::rebalance::{Layout, ShardGroup};
use crate::shards::sessions::{Door, Sessions};
use crate::shards::wanted::Watch;

/// Shard groups that can be split and are sampled after one period: only one is split at a time.
const MOST: usize = 3;
/// Shard groups that are sampled after one period, those included that cannot be split: they must not hide the others. So
/// many of those that would be split already may come on top.
const MOST_OF_ALL: usize = 20;
/// Pages that are read of each: a few megabytes.
const PAGES: i64 = 300;

/// The shard groups that are too large, the largest first.
pub(super) fn too_large<'a>(layout: &'a Layout, watch: &Watch) -> Vec<&'a ShardGroup> {
    let Some(limit) = watch.policy.max_shard_bytes else { return Vec::new() };
    let mut groups: Vec<&ShardGroup> = layout.groups.iter().filter(|group| group.bytes > limit).collect();
    groups.sort_by_key(|group| (Reverse(group.bytes), group.shard_id));
    groups
}

/// The largest of the shard groups that are too large, and what the tenants are called that fill them. Those that would be
/// `split` already are only to be shown. One whose server does not answer waits for the next period, as does one in which no
/// row is found: what was erased just now may have been all of it.
pub(super) async fn large(
    sessions: &Sessions,
    layout: &Layout,
    watch: &Watch,
    split: &BTreeSet<i64>,
) -> (Vec<LargeShard>, Names) {
    let (mut large, mut names) = (Vec::new(), Names::default());
    let (mut tried, mut divisible) = (0, 0);
    for (rank, group) in too_large(layout, watch).into_iter().enumerate() {
        let is_split = split.contains(&group.shard_id);
        let enough = if is_split { rank >= MOST_OF_ALL } else { tried == MOST_OF_ALL || divisible == MOST };
        if enough {
            continue;
        }
        tried += usize::from(!is_split);
        let Ok(session) = sessions.session(group.node, Door::Dialog).await else { continue };
        if let Ok(Some(Sample { median, heaviest, key })) = sample(&session, group).await {
            let ShardGroup { colocation_id, shard_id, node, bytes, .. } = *group;
            divisible += usize::from(median.is_some() && !is_split);
            names.set(heaviest.tenant, key);
            let heaviest = Some(heaviest);
            large.push(LargeShard { colocation_id, shard_id, node, bytes, median, heaviest });
        }
    }
    (large, names)
}

/// What some of the rows of a shard group tell about all of them.
struct Sample {
    median: Option<i32>,
    heaviest: Heaviest,
    /// The value of the heaviest tenant's distribution column.
    key: String,
}

/// Samples the group's largest table; `None` if there is no such table, or no row was found.
async fn sample(session: &Session, group: &ShardGroup) -> Result<Option<Sample>, pg::Error> {
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
        "SELECT worker_hash({key}), count(*), left(min({key}::text), {LONGEST_KEY})
         FROM {table} TABLESAMPLE SYSTEM (least(100.0, 100.0 * {PAGES} / {pages})) GROUP BY 1"
    );
    let weights = session.query(&statement, &[]).await?;
    let weight = |row: &tokio_postgres::Row| (row.get(0), u64::try_from(row.get::<_, i64>(1)).unwrap_or(0));
    let all: Vec<(i32, u64)> = weights.iter().map(weight).collect();
    let total: u64 = all.iter().map(|(_, rows)| *rows).sum();
    let heaviest = weights.iter().zip(&all).max_by_key(|(_, (hash, rows))| (*rows, Reverse(*hash)));
    let Some((row, (hash, rows))) = heaviest else { return Ok(None) };
    let percent = u32::try_from(rows.saturating_mul(100) / total.max(1)).unwrap_or(100);
    let tenant = Tenant { colocation_id: group.colocation_id, hash: *hash };
    let key = row.get(2);
    Ok(Some(Sample { median: median(all), heaviest: Heaviest { tenant, percent }, key }))
}
