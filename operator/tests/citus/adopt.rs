//! Tables that hold rows already.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use dialog_operator::condition::SCHEMA_DISTRIBUTED;
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;
use tokio_postgres::types::Type;

use crate::needs_citus;
use crate::traffic::persist;
use crate::world::{World, condition, distributed, eventually, few_shards, placements, reference, wanted};

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
                // An insert of one row, and an update of it by its key, as dialog-api makes them.
                let inserted = persist(
                    &session,
                    "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
                     VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), $1, now())
                     RETURNING dialog_id::text, message_id::text",
                    &[(&format!("during {acknowledged}"), Type::TEXT)],
                )
                .await?;
                acknowledged += 1;
                let [dialog, message]: [String; 2] = [0, 1].map(|column| inserted[0].get(column));
                let updated = persist(
                    &session,
                    "UPDATE messages SET edited_at = now()
                     WHERE dialog_id = $1::uuid AND message_id = $2::uuid RETURNING 1",
                    &[(&dialog, Type::TEXT), (&message, Type::TEXT)],
                )
                .await?;
                anyhow::ensure!(updated.len() == 1, "update {acknowledged} found {} rows", updated.len());
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
async fn rows_stay_where_they_are_until_their_shards_can_leave_the_coordinator() -> Result<()> {
    needs_citus!();
    let mut world = World::start(0)?;
    rows_before_citus(&world).await?;

    let alone = few_shards(0);
    world.settle(&alone).await?;
    let round = world.round(&alone).await?;
    assert!(round.performed.is_empty(), "{:?}", round.performed);
    let (status, reason, message) = condition(&round, SCHEMA_DISTRIBUTED);
    assert_eq!((status, reason), ("False", "RowsOnCoordinator"));
    assert!(message.contains("messages: it holds rows"), "{message}");
    let distributed = "SELECT count(*) FROM pg_dist_partition";
    let empty = i64::try_from(alone.tables.len())? - 1;
    assert_eq!(world.number(Group::Coordinator, distributed).await?, empty, "the empty ones are cut");

    // The rest of the group is on the coordinator now, so messages must not follow it there before it has left.
    world.add(Group::Worker(0))?;
    let round = world.round(&few_shards(1)).await?;
    let (status, reason, message) = condition(&round, SCHEMA_DISTRIBUTED);
    assert_eq!((status, reason), ("False", "RowsOnCoordinator"));
    assert!(message.contains("as soon as the shards of its group have moved to workers"), "{message}");

    let steps = world.settle(&few_shards(1)).await?;
    let follows =
        |step: &Step| matches!(step, Step::DistributeConcurrently(table) if table.table == "messages");
    assert!(steps.iter().any(follows), "{steps:?}");
    let round = world.round(&few_shards(1)).await?;
    assert_eq!(
        condition(&round, SCHEMA_DISTRIBUTED).0,
        "True",
        "{:?}",
        condition(&round, SCHEMA_DISTRIBUTED)
    );
    let placements = placements(&world).await?;
    assert!(placements.iter().all(|(_, group_id, _)| *group_id > 0), "{placements:?}");
    let api = world.api(Group::Coordinator).await?;
    assert_eq!(api.query_one("SELECT count(*) FROM messages", &[]).await?.get::<_, i64>(0), 20_000);
    Ok(())
}

#[tokio::test]
async fn copies_of_reference_tables_have_all_the_time_they_need() -> Result<()> {
    needs_citus!();
    let mut world = World::start(1)?;
    let mut policy = wanted(1);
    world.settle(&policy).await?;
    let api = world.api(Group::Coordinator).await?;
    api.run("CREATE TABLE emoji (code text PRIMARY KEY); INSERT INTO emoji VALUES ('x'), ('y')").await?;
    policy.tables = vec![reference("emoji")];

    // Somebody's transaction holds the table, so that copying it takes longer than anything else may.
    let writer = world.ask_client(Group::Coordinator).await?;
    writer.batch_execute("BEGIN; INSERT INTO public.emoji VALUES ('z')").await?;
    let round = world.round(&policy).await?;
    let create = Step::CreateReferenceTable { table: "emoji".to_owned(), holds_rows: true };
    assert_eq!(round.long, vec![create.clone()], "{round:?}");
    assert!(round.performed.is_empty() && round.failed.is_empty(), "{round:?}");
    let wait_for_operation = async || -> Result<()> {
        let seen = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                    AND application_name = 'dialog-operator: copy the table emoji to every node'";
        eventually("the copy waits", async || Ok(world.number(Group::Coordinator, seen).await? > 0)).await?;
        // The next operator finds it, and leaves the cluster alone.
        let round = world.round(&policy).await?;
        assert!(round.performed.is_empty() && round.long.is_empty(), "{round:?}");
        let (status, reason, message) = condition(&round, SCHEMA_DISTRIBUTED);
        assert_eq!((status, reason), ("False", "Distributing"));
        assert!(message.contains("copy the table emoji to every node"), "{message}");
        writer.batch_execute("COMMIT").await.map_err(Into::into)
    };
    tokio::try_join!(world.carry_out(&policy, &create), wait_for_operation())?;
    assert_eq!(world.number(Group::Worker(0), "SELECT count(*) FROM public.emoji").await?, 3);

    // A new worker lacks the copies. They come first: Citus would make them up in the middle of any other step.
    world.add(Group::Worker(1))?;
    policy.workers = 2;
    api.run("CREATE TABLE pins (dialog_id uuid PRIMARY KEY)").await?;
    policy.tables.push(distributed("pins", "dialog_id", "dialog"));
    let round = world.round(&policy).await?;
    assert_eq!(round.long, vec![Step::ReplicateReferenceTables], "{round:?}");
    assert!(!round.performed.iter().any(|step| matches!(step, Step::DistributeTable(_))), "{round:?}");
    world.settle(&policy).await?;
    assert_eq!(world.number(Group::Worker(1), "SELECT count(*) FROM public.emoji").await?, 3);
    Ok(())
}
