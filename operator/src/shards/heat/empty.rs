//! Whether there is anything left of a tenant who is quiet: one that was deleted needs no worker of its own.

use tokio_postgres::types::Type;

use crate::heat::{QUICK_BYTES, Tenant};
use crate::pg::{self, Session};
use crate::shards::rebalance::{HashRange, Layout, ShardGroup};
use crate::shards::sessions::{Door, Sessions};

/// Those of `tenants` with a shard group of their own that has no row. A large one is not looked into: only vacuuming makes
/// it quick to see that all of its rows are gone, and that gives its space back.
pub(super) async fn empty(sessions: &Sessions, layout: &Layout, tenants: &[Tenant]) -> Vec<Tenant> {
    let mut empty = Vec::new();
    for tenant in tenants {
        let range = HashRange { min: tenant.hash, max: tenant.hash };
        let own = |group: &&ShardGroup| group.colocation_id == tenant.colocation_id && group.range == range;
        let small = |group: &&ShardGroup| group.bytes <= QUICK_BYTES;
        let Some(group) = layout.groups.iter().find(own).filter(small) else { continue };
        let Ok(session) = sessions.session(group.node, Door::Dialog).await else { continue };
        // Of whom nobody can tell, nobody says so.
        if has_no_row(&session, group).await.unwrap_or(false) {
            empty.push(*tenant);
        }
    }
    empty
}

/// Whether the group has shards on this server, and no row in any of them.
async fn has_no_row(session: &Session, group: &ShardGroup) -> Result<bool, pg::Error> {
    let hash = i64::from(group.range.min);
    // shard_name() leaves the schema `public` out, and this session would not look there.
    let shards = session
        .query(
            "SELECT shard::text
             FROM (SELECT to_regclass(CASE relnamespace WHEN 'public'::regnamespace THEN 'public.' ELSE '' END
                              || shard_name(logicalrelid, shardid)) AS shard
                   FROM pg_dist_shard JOIN pg_dist_partition USING (logicalrelid)
                   JOIN pg_class ON pg_class.oid = logicalrelid
                   WHERE partmethod = 'h' AND colocationid = $1 AND shardminvalue::int8 = $2
                     AND shardmaxvalue::int8 = $2) AS shards
             WHERE shard IS NOT NULL",
            &[(&group.colocation_id, Type::INT4), (&hash, Type::INT8)],
        )
        .await?;
    if shards.is_empty() {
        return Ok(false);
    }
    let any = shards.iter().map(|row| format!("EXISTS (SELECT FROM {})", row.get::<_, String>(0)));
    let statement = format!("SELECT NOT ({})", any.collect::<Vec<_>>().join(" OR "));
    Ok(session.query_one(&statement, &[]).await?.get(0))
}
