//! Citus' catalogs, changed by hand under a cluster that serves.

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::{BALANCED, METADATA_SYNCED, SCHEMA_DISTRIBUTED};
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;

use crate::needs_citus;
use crate::world::{World, condition, few_shards, placements};

/// What somebody did on the coordinator, with `{port}` for the second worker's, and the step that mends it; none where
/// Citus does so by itself.
struct Mishap {
    what: &'static str,
    statement: &'static str,
    mended_by: Option<&'static str>,
}

const MISHAPS: [Mishap; 9] = [
    Mishap {
        what: "a worker under another name",
        statement: "SELECT citus_update_node(nodeid, '127.0.0.1', nodeport) FROM pg_dist_node WHERE nodeport = {port}",
        mended_by: Some("UpdateNode"),
    },
    Mishap {
        what: "the coordinator under another name",
        statement: "SELECT citus_update_node(nodeid, '127.0.0.1', nodeport) FROM pg_dist_node WHERE groupid = 0",
        mended_by: Some("SetCoordinatorHost"),
    },
    Mishap {
        what: "a worker that is inactive",
        statement: "UPDATE pg_dist_node SET isactive = false WHERE nodeport = {port}",
        mended_by: Some("ActivateNode"),
    },
    Mishap {
        what: "a worker that has no catalogs",
        statement: "UPDATE pg_dist_node SET hasmetadata = false, metadatasynced = false WHERE nodeport = {port}",
        mended_by: Some("SyncMetadata"),
    },
    Mishap {
        what: "a worker whose catalogs are behind",
        statement: "UPDATE pg_dist_node SET metadatasynced = false WHERE nodeport = {port}",
        mended_by: None,
    },
    Mishap {
        what: "a worker that takes no shards, and a coordinator that does",
        statement:
            "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', NOT shouldhaveshards)
                    FROM pg_dist_node WHERE nodeport = {port} OR groupid = 0",
        mended_by: Some("SetShouldHaveShards"),
    },
    Mishap {
        what: "a worker that is missing",
        statement: "DELETE FROM pg_dist_node WHERE nodeport = {port}",
        mended_by: Some("RestoreNode"),
    },
    Mishap {
        what: "a coordinator that is missing",
        statement: "DELETE FROM pg_dist_node WHERE groupid = 0",
        mended_by: Some("RestoreNode"),
    },
    Mishap {
        what: "another strategy for Citus' own rebalancer",
        statement: "SELECT citus_set_default_rebalance_strategy('by_shard_count')",
        mended_by: None,
    },
];

#[tokio::test]
async fn what_is_wrong_in_the_catalogs_is_put_right_under_the_shards() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    let wanted = few_shards(2);
    world.serve(&wanted).await?;
    let port = world.server(Group::Worker(1)).port().to_string();
    let placed = placements(&world).await?;
    for Mishap { what, statement, mended_by } in MISHAPS {
        world.ask(Group::Coordinator, &statement.replace("{port}", &port)).await.context(what)?;
        let steps = world.settle(&wanted).await.context(what)?;
        println!("{what}: {steps:?}");
        match mended_by {
            Some(kind) => ensure!(steps.iter().any(|step| step.kind() == kind), "{what}: {steps:?}"),
            None => ensure!(steps.is_empty(), "{what}: {steps:?}"),
        }
        let moved = steps.iter().any(|step| matches!(step, Step::MoveShard { .. }));
        ensure!(!moved && placements(&world).await? == placed, "{what}: shards were moved: {steps:?}");
        assert_serves(&world, &wanted).await.context(what)?;
    }
    Ok(())
}

/// Everything is as it should be, and people can write through every node.
async fn assert_serves(world: &World, wanted: &Wanted) -> Result<()> {
    let round = world.round(wanted).await?;
    ensure!(round.performed.is_empty() && round.is_settled(), "{:?}", round.plan);
    for kind in [METADATA_SYNCED, SCHEMA_DISTRIBUTED, BALANCED] {
        let (status, reason, message) = condition(&round, kind);
        ensure!(status == "True", "{kind} is {reason}: {message}");
    }
    let before = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    let everywhere = [Group::Coordinator, Group::Worker(0), Group::Worker(1)];
    for group in everywhere {
        world
            .api(group)
            .await?
            .run(
                "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'text', now()
             FROM generate_series(1, 100)",
            )
            .await?;
    }
    let mut counts = Vec::new();
    for group in everywhere {
        counts.push(world.number(group, "SELECT count(*) FROM public.messages").await?);
    }
    ensure!(counts == [before + 300; 3], "{before} messages and 300 more are {counts:?}");
    Ok(())
}
