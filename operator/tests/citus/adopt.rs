//! Tables that hold rows already.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use dialog_operator::condition::SCHEMA_DISTRIBUTED;
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;
use tokio_postgres::types::Type;

use crate::needs_citus;
use crate::world::{World, condition, placements, wanted};

const ROWS: &str = "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
    SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'before', now()
    FROM generate_series(1, 20000)";

/// dialog-api's tables on one server, with rows, and not known to Citus: what a cluster whose image had no Citus leaves.
async fn rows_before_citus(world: &World) -> Result<()> {
    world.round_of(&wanted(0), 5).await?;
    world.ask(Group::Coordinator, "ALTER ROLE dialog_api LOGIN").await?;
    world.migrate().await?;
    world.api(Group::Coordinator).await?.run(ROWS).await.map_err(Into::into)
}

#[tokio::test]
async fn tables_with_rows_are_cut_while_they_are_written_to() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    rows_before_citus(&world).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (session, stop) = (world.api(Group::Coordinator).await?, Arc::clone(&stop));
        tokio::spawn(async move {
            let mut acknowledged = 0_i64;
            while !stop.load(Ordering::Relaxed) {
                // An insert of one row, an update of it, and an update of a row that was there before.
                session
                    .query(
                        "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
                         VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), $1, now())",
                        &[(&format!("during {acknowledged}"), Type::TEXT)],
                    )
                    .await?;
                acknowledged += 1;
                session
                    .query(
                        "UPDATE messages SET edited_at = now() WHERE text = $1",
                        &[(&format!("during {}", acknowledged - 1), Type::TEXT)],
                    )
                    .await?;
            }
            anyhow::Ok(acknowledged)
        })
    };
    let steps = world.settle(&wanted(2)).await?;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await??;

    let concurrently: Vec<&str> = steps
        .iter()
        .filter_map(|step| match step {
            Step::DistributeConcurrently(distribution) => Some(distribution.table.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(concurrently, ["messages"], "the other tables are empty: {steps:?}");
    let api = world.api(Group::Coordinator).await?;
    let count = async |filter: &str| -> Result<i64> {
        Ok(api.query_one(&format!("SELECT count(*) FROM messages WHERE {filter}"), &[]).await?.get(0))
    };
    assert_eq!(count("text = 'before'").await?, 20_000);
    assert_eq!(count("text LIKE 'during %'").await?, acknowledged);
    assert_eq!(count("text LIKE 'during %' AND edited_at IS NULL").await?, 0, "an update was lost");
    assert!(acknowledged > 0);
    let placements = placements(&world).await?;
    assert!(placements.iter().all(|(_, group_id, shards)| *group_id > 0 && *shards == 24), "{placements:?}");
    Ok(())
}

#[tokio::test]
async fn rows_stay_where_they_are_when_their_shards_would_not_leave_the_coordinator() -> Result<()> {
    needs_citus!();
    let mut world = World::start(0)?;
    rows_before_citus(&world).await?;

    let alone = wanted(0);
    world.settle(&alone).await?;
    let round = world.round(&alone).await?;
    assert!(round.performed.is_empty(), "{:?}", round.performed);
    let (status, reason, message) = condition(&round, SCHEMA_DISTRIBUTED);
    assert_eq!((status, reason), ("False", "RowsOnCoordinator"));
    assert!(message.contains("messages: it holds rows"), "{message}");
    let distributed = "SELECT count(*) FROM pg_dist_partition";
    assert_eq!(world.number(Group::Coordinator, distributed).await?, 5, "the empty ones are cut");

    // The rest of the group is on the coordinator now, so messages must not follow it there, workers or not.
    world.add(Group::Worker(0))?;
    world.settle(&wanted(1)).await?;
    let round = world.round(&wanted(1)).await?;
    let (status, reason, message) = condition(&round, SCHEMA_DISTRIBUTED);
    assert_eq!((status, reason), ("False", "RowsOnCoordinator"));
    assert!(message.contains("move the group's shards to workers"), "{message}");
    let api = world.api(Group::Coordinator).await?;
    assert_eq!(api.query_one("SELECT count(*) FROM messages", &[]).await?.get::<_, i64>(0), 20_000);
    Ok(())
}
