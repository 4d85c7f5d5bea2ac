//! Whether the replication slots that moves depend on are there.

use tokio_postgres::types::Type;

use super::moves::LOCKED;
use crate::names::Group;
use crate::pg;
use crate::shards::observed::{Catalog, LostSlot, RunningMove};
use crate::shards::sessions::{Door, Sessions};

/// The moves under way whose target follows a slot that the source does not have. A server that does not answer now says
/// nothing about slots. Asked only while something moves.
pub(super) async fn lost(sessions: &Sessions, catalog: &Catalog) -> Vec<LostSlot> {
    let mut found = Vec::new();
    for running in catalog.moves() {
        if let Ok(Some(slot)) = of(sessions, &running).await {
            found.push(LostSlot { pid: running.pid, slot });
        }
    }
    found
}

async fn of(sessions: &Sessions, running: &RunningMove) -> Result<Option<String>, pg::Error> {
    let coordinator = sessions.session(Group::Coordinator, Door::Dialog).await?;
    // Those that Citus has noted for taking away after the move.
    let statement = format!(
        "SELECT DISTINCT object_name FROM pg_dist_cleanup
         WHERE operation_id IN (SELECT operation_id FROM ({LOCKED}) AS locked WHERE pid = $1)
           AND starts_with(object_name, 'citus_shard_move_slot_') ORDER BY 1"
    );
    let rows = coordinator.query(&statement, &[(&running.pid, Type::INT4)]).await?;
    let noted: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if noted.is_empty() {
        return Ok(None);
    }
    // A subscription is enabled after its slot was made, and disabled before that is dropped.
    let target = sessions.session(running.to, Door::Dialog).await?;
    let statement = "SELECT subslotname::text FROM pg_subscription WHERE subenabled AND subslotname = ANY ($1) ORDER BY 1";
    let rows = target.query(statement, &[(&noted, Type::TEXT_ARRAY)]).await?;
    let followed: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if followed.is_empty() {
        return Ok(None);
    }
    let source = sessions.session(running.from, Door::Dialog).await?;
    // A standby, to which a Service may lead for a moment, has slots of its own.
    let statement = "SELECT pg_is_in_recovery(), ARRAY (SELECT slot_name::text FROM pg_replication_slots)";
    let row = source.query_one(statement, &[]).await?;
    let there: Vec<String> = row.get(1);
    let missing = followed.into_iter().find(|slot| !there.contains(slot));
    Ok(missing.filter(|_| !row.get::<_, bool>(0)))
}
