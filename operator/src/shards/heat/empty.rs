//! Whether there is anything left of a tenant who is quiet: one that was deleted needs no worker of its own.

use tokio_postgres::types::Type;

use crate::heat::Tenant;
use crate::pg::{self, Session};
use crate::shards::rebalance::{HashRange, Layout, ShardGroup};
use crate::shards::sessions::{Door, Sessions};

/// Bytes of a shard group's rows, without their indexes, that are looked through for one that is left: about a second's work.
/// Where more were deleted, autovacuum gives their space back within minutes, but not that of the indexes.
const LOOKED_THROUGH: i64 = 1 << 30;

/// Those of `tenants` with a shard group of their own that has no row.
pub(super) async fn empty(sessions: &Sessions, layout: &Layout, tenants: &[Tenant]) -> Vec<Tenant> {
    let mut empty = Vec::new();
    for tenant in tenants {
        let range = HashRange { min: tenant.hash, max: tenant.hash };
        let own = |group: &&ShardGroup| group.colocation_id == tenant.colocation_id && group.range == range;
        let Some(group) = layout.groups.iter().find(own) else { continue };
        let Ok(session) = sessions.session(group.node, Door::Dialog).await else { continue };
        // Of whom nobody can tell, nobody says so.
        if has_no_row(&session, group).await.unwrap_or(false) {
            empty.push(*tenant);
        }
    }
    empty
}

/// Whether the group has shards on this server, and no row in any of them; no if there is too much to look through.
///
/// A table is read until a row is found: its first page, or all pages if every row was deleted and nothing was vacuumed yet. An
/// index would have as many dead entries. The smallest comes first, and one row there is enough: who is only quiet, as a dialog
/// whose messages were archived, costs a page.
async fn has_no_row(session: &Session, group: &ShardGroup) -> Result<bool, pg::Error> {
    let hash = i64::from(group.range.min);
    // shard_name() leaves the schema `public` out, and this session would not look there.
    let shards = session
        .query(
            "SELECT shard::text, pg_relation_size(shard)
             FROM (SELECT to_regclass(CASE relnamespace WHEN 'public'::regnamespace THEN 'public.' ELSE '' END
                              || shard_name(logicalrelid, shardid)) AS shard
                   FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid)
                   JOIN pg_class ON pg_class.oid = logicalrelid
                   WHERE partmethod = 'h' AND colocationid = $1 AND shardminvalue::int8 = $2
                     AND shardmaxvalue::int8 = $2) AS shards
             WHERE shard IS NOT NULL ORDER BY 2",
            &[(&group.colocation_id, Type::INT4), (&hash, Type::INT8)],
        )
        .await?;
    if shards.is_empty() || shards.iter().map(|row| row.get::<_, i64>(1)).sum::<i64>() > LOOKED_THROUGH {
        return Ok(false);
    }
    let any = shards.iter().map(|row| format!("EXISTS (SELECT FROM {})", row.get::<_, String>(0)));
    let statement = format!("SELECT NOT ({})", any.collect::<Vec<_>>().join(" OR "));
    Ok(session.query_one(&statement, &[]).await?.get(0))
}
