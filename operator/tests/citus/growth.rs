//! The number of workers changes.

use anyhow::Result;
use dialog_operator::condition::{BALANCED, METADATA_SYNCED, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED};
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;

use crate::needs_citus;
use crate::world::{World, condition, placements, wanted};

const REGISTERED: &str =
    "SELECT nodeport, shouldhaveshards, isactive AND metadatasynced FROM pg_dist_node ORDER BY groupid";

#[tokio::test]
async fn a_cluster_starts_on_its_coordinator_and_gets_workers_later() -> Result<()> {
    needs_citus!();
    let mut world = World::start(0)?;
    let alone = wanted(0);
    world.round(&alone).await?;
    world.migrate().await?;
    world.settle(&alone).await?;
    let all_here = placements(&world).await?;
    assert_eq!(all_here.len(), alone.tables.len());
    assert!(all_here.iter().all(|(_, group_id, shards)| (*group_id, *shards) == (0, 48)), "{all_here:?}");
    let round = world.round(&alone).await?;
    assert_eq!(condition(&round, SCHEMA_DISTRIBUTED).0, "True");
    assert_eq!(condition(&round, BALANCED).0, "True");

    // Asked for, and not there yet: the cluster serves on, and the condition says what it waits for.
    let round = world.round(&wanted(2)).await?;
    assert_eq!(round.performed, vec![]);
    let (status, reason, message) = condition(&round, METADATA_SYNCED);
    assert_eq!((status, reason), ("False", "NodeUnreachable"));
    assert!(message.contains("worker-0") && message.contains("worker-1"), "{message}");
    assert_eq!(condition(&round, SCHEMA_DISTRIBUTED).0, "True");

    // One of the two comes: it is registered, and the coordinator is relieved of what is still to come.
    world.add(Group::Worker(1))?;
    world.round(&wanted(2)).await?;
    world.add(Group::Worker(0))?;
    world.settle(&wanted(2)).await?;
    let port = |world: &mut World, group| i32::from(world.server(group).port());
    let expected = [
        (port(&mut world, Group::Coordinator), false, true),
        (port(&mut world, Group::Worker(1)), true, true),
        (port(&mut world, Group::Worker(0)), true, true),
    ];
    let registered: Vec<(i32, bool, bool)> = world
        .ask(Group::Coordinator, REGISTERED)
        .await?
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(registered, expected);
    assert_eq!(placements(&world).await?, all_here, "no shard is moved by this version");
    let (status, reason, message) = condition(&world.round(&wanted(2)).await?, BALANCED);
    assert_eq!((status, reason), ("False", "Misplaced"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_worker_more_is_registered_and_a_worker_less_is_kept() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    world.round(&wanted(2)).await?;
    world.migrate().await?;
    world.settle(&wanted(2)).await?;
    let before = placements(&world).await?;

    world.add(Group::Worker(2))?;
    // The count is lowered before the third was ever registered.
    let round = world.round(&wanted(2)).await?;
    assert!(round.performed.is_empty() && round.is_settled(), "{:?}", round.plan);
    let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
    assert_eq!((status, reason), ("True", "NotSupported"));
    assert!(
        message.contains("there are worker-2 (not registered)") && message.contains("count to 3"),
        "{message}"
    );

    let steps = world.settle(&wanted(3)).await?;
    assert_eq!(steps.last(), Some(&Step::AddNode { group: Group::Worker(2) }), "{steps:?}");
    let round = world.round(&wanted(3)).await?;
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "Uneven"));
    assert!(message.contains("between 0 and 24"), "{message}");

    let round = world.round(&wanted(1)).await?;
    assert!(round.performed.is_empty() && round.is_settled(), "{:?}", round.plan);
    let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
    assert_eq!((status, reason), ("True", "NotSupported"));
    assert!(message.contains("worker-1, worker-2"), "{message}");
    assert_eq!(condition(&round, METADATA_SYNCED).0, "True");
    assert_eq!(placements(&world).await?, before);
    let round = world.round(&wanted(0)).await?;
    assert!(round.performed.is_empty(), "the coordinator does not get shards back: {:?}", round.performed);
    Ok(())
}
