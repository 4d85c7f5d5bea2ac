//! Where tenants belong, whoever moves shards: on real servers.

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::heat::{Action, Mode, Tenant};
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;

use crate::acting::{colocation, covering, decide, isolating, isolation, with_mode};
use crate::needs_citus;
use crate::world::{World, condition, eventually};

/// Has Citus rebalance by hand, and waits for it; how many shard groups it has moved.
async fn rebalance_by_hand(world: &World) -> Result<i64> {
    let started = world.ask(Group::Coordinator, "SELECT citus_rebalance_start()").await?;
    let Some(job) = started[0].get::<_, Option<i64>>(0) else { return Ok(0) };
    let state = format!("SELECT state::text FROM pg_dist_background_job WHERE job_id = {job}");
    eventually("Citus has rebalanced", async || {
        let state: String = world.ask(Group::Coordinator, &state).await?[0].get(0);
        ensure!(!["failed", "failing", "cancelled"].contains(&state.as_str()), "the job is {state}");
        Ok(state == "finished")
    })
    .await?;
    let tasks = format!("SELECT count(*) FROM pg_dist_background_task WHERE job_id = {job}");
    world.number(Group::Coordinator, &tasks).await
}

/// Moves the shard group of a hash by hand.
async fn move_by_hand(world: &World, hash: i32, to: Group) -> Result<()> {
    let placed = covering(world, hash).await?;
    let topology = world.topology();
    let port = |group: Group| topology.endpoint(group).map(|endpoint| endpoint.port).context("no such group");
    let statement = format!(
        "SELECT citus_move_shard_placement({}, source.nodeid, target.nodeid, 'block_writes')
         FROM pg_dist_node AS source, pg_dist_node AS target WHERE source.nodeport = {} AND target.nodeport = {}",
        placed.shard_id,
        port(placed.node)?,
        port(to)?
    );
    ensure!(world.ask(Group::Coordinator, &statement).await?.len() == 1, "no such nodes");
    ensure!(covering(world, hash).await?.node == to, "it was not moved");
    Ok(())
}

/// The default strategy of Citus' rebalancer.
async fn default_strategy(world: &World) -> Result<String> {
    let statement = "SELECT name::text FROM pg_dist_rebalance_strategy WHERE default_strategy";
    Ok(world.ask(Group::Coordinator, statement).await?[0].get(0))
}

async fn kinds(world: &World, wanted: &Wanted) -> Result<Vec<&'static str>> {
    Ok(world.settle(wanted).await?.iter().map(Step::kind).collect())
}

#[tokio::test]
async fn who_rebalances_by_hand_leaves_pinned_shards_where_they_are() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let wanted = isolating(3);
    world.serve(&wanted).await?;
    assert_eq!(default_strategy(&world).await?, "dialog_operator");

    let hash = 4711;
    let action = isolation(&world, hash).await?;
    decide(&world, action).await?;
    world.settle(&wanted).await?;
    let Action::Isolate { to: home, .. } = action else { panic!("{action:?}") };
    assert_eq!(covering(&world, hash).await?.node, home);
    rebalance_by_hand(&world).await?;
    assert_eq!(covering(&world, hash).await?.node, home, "a rebalance took it away");

    // Whoever has moved it away brings it back by that; Citus' own strategy would leave it there.
    let away = (0..3).map(Group::Worker).find(|group| *group != home).context("no other worker")?;
    move_by_hand(&world, hash, away).await?;
    let shard = covering(&world, hash).await?.shard_id;
    let planned = format!(
        "SELECT count(*) FROM get_rebalance_table_shards_plan(rebalance_strategy := 'by_disk_size') WHERE shardid = {shard}"
    );
    assert_eq!(world.number(Group::Coordinator, &planned).await?, 0, "this shows nothing");
    assert!(rebalance_by_hand(&world).await? > 0);
    assert_eq!(covering(&world, hash).await?.node, home);
    // The owner of the tables may ask for it as well, who may not read the pins.
    move_by_hand(&world, hash, away).await?;
    let api = world.api(Group::Coordinator).await?;
    let plan = "SELECT targetport FROM get_rebalance_table_shards_plan() WHERE shardid = $1";
    let rows = api.query(plan, &[(&shard, tokio_postgres::types::Type::INT8)]).await?;
    let port = world.topology().endpoint(home).context("it has an address")?.port;
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [i32::from(port)]);
    assert!(api.query("SELECT hash FROM dialog_operator.pins", &[]).await.is_err(), "anybody may read pins");
    assert_eq!(kinds(&world, &wanted).await?, ["MoveShard"], "the operator does the same");

    // Nobody rebalances onto a node that the pins lead to and that is told to go: they are none then.
    let number = "SELECT count(*) FROM pg_dist_node AS node, dialog_operator.pins
                  WHERE (node.nodename, node.nodeport) = (pins.nodename, pins.nodeport)
                    AND dialog_operator.shard_allowed($shard, nodeid)"
        .replace("$shard", &shard.to_string());
    assert_eq!(world.number(Group::Coordinator, &number).await?, 1);
    Ok(())
}

#[tokio::test]
async fn the_default_strategy_is_mended_and_given_back_and_nobody_elses_is_taken() -> Result<()> {
    needs_citus!();
    let world = World::start(1)?;
    let wanted = isolating(1);
    world.serve(&with_mode(wanted.clone(), Mode::Observe)).await?;
    assert_eq!(default_strategy(&world).await?, "by_disk_size", "who only observes changes nothing");
    assert_eq!(kinds(&world, &wanted).await?, ["SetStrategy"]);
    let by_hand = async |statement: &str| -> Result<()> {
        Ok(world.ask_client(Group::Coordinator).await?.batch_execute(statement).await?)
    };
    for statement in [
        "SELECT citus_set_default_rebalance_strategy('by_disk_size')",
        "UPDATE pg_dist_rebalance_strategy SET default_threshold = 0.7 WHERE name = 'dialog_operator'",
        "CREATE OR REPLACE FUNCTION dialog_operator.shard_allowed(shard bigint, node integer) RETURNS boolean
         LANGUAGE sql AS 'SELECT true'",
        "ALTER FUNCTION dialog_operator.shard_cost SECURITY INVOKER",
        "DROP FUNCTION dialog_operator.shard_cost",
        "DELETE FROM pg_dist_rebalance_strategy WHERE name = 'dialog_operator'",
    ] {
        by_hand(statement).await?;
        assert_eq!(kinds(&world, &wanted).await?, ["SetStrategy"], "{statement}");
        assert_eq!(default_strategy(&world).await?, "dialog_operator", "{statement}");
        assert_eq!(rebalance_by_hand(&world).await?, 0, "{statement}");
    }
    // With the schema goes everything that was known.
    by_hand("DROP SCHEMA dialog_operator CASCADE").await?;
    assert_eq!(kinds(&world, &wanted).await?, ["CreateOwnTables", "SetStrategy"]);

    // Where nothing is isolated nothing is left of it.
    let off = with_mode(wanted.clone(), Mode::Observe);
    assert_eq!(kinds(&world, &off).await?, ["DropStrategy"]);
    let left = "SELECT (SELECT count(*) FROM pg_dist_rebalance_strategy)
                     + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'dialog_operator'::regnamespace)";
    assert_eq!(world.number(Group::Coordinator, left).await?, 2);
    assert_eq!(default_strategy(&world).await?, "by_disk_size");
    assert_eq!(kinds(&world, &off).await?, [""; 0]);

    // Somebody's own choice stays, and it is said what that means.
    by_hand(
        "SELECT citus_add_rebalance_strategy('mine', 'citus_shard_cost_1', 'citus_node_capacity_1',
                                             'citus_shard_allowed_on_node_true', 0.2);
         SELECT citus_set_default_rebalance_strategy('mine')",
    )
    .await?;
    assert_eq!(kinds(&world, &wanted).await?, ["SetStrategy"]);
    assert_eq!(default_strategy(&world).await?, "mine");
    let (status, _, message) = condition(&world.round(&wanted).await?, BALANCED);
    assert!(status == "True" && message.contains("goes by the strategy mine"), "{message}");
    let mut replacing = wanted.clone();
    replacing.rebalance.replaces = true;
    assert_eq!(kinds(&world, &replacing).await?, ["SetStrategy"]);
    assert_eq!(default_strategy(&world).await?, "dialog_operator");
    let (_, _, message) = condition(&world.round(&replacing).await?, BALANCED);
    assert!(!message.contains("strategy"), "{message}");
    assert_eq!(kinds(&world, &off).await?, ["DropStrategy"]);
    assert_eq!(default_strategy(&world).await?, "mine");
    Ok(())
}

/// Shards that are placed on a node.
async fn shards_on(world: &World, group: Group) -> Result<i64> {
    let port = world.topology().endpoint(group).context("no such group")?.port;
    let statement = format!(
        "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_dist_partition USING (logicalrelid)
         JOIN pg_dist_node USING (groupid) WHERE partmethod = 'h' AND nodeport = {port}"
    );
    world.number(Group::Coordinator, &statement).await
}

#[tokio::test]
async fn a_dedicated_worker_holds_what_is_pinned_to_it_and_nothing_else() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let shared = isolating(3);
    let wanted = Wanted { dedicated: 1, ..shared.clone() };
    let first = Group::Worker(0);
    let moves = |steps: &[Step]| steps.iter().filter(|step| step.kind() == "MoveShard").count();
    world.round(&wanted).await?;
    world.migrate().await?;
    // The tables are spread over the others from the start.
    let steps = world.settle(&wanted).await?;
    assert_eq!((shards_on(&world, first).await?, moves(&steps)), (0, 0), "{steps:?}");
    let holds = "SELECT count(*) FROM pg_dist_node WHERE shouldhaveshards";
    assert_eq!(world.number(Group::Coordinator, holds).await?, 3);

    let hash = 4711;
    let before = covering(&world, hash).await?;
    let tenant = Tenant { colocation_id: colocation(&world).await?, hash };
    let rest = (1..3).map(Group::Worker).find(|group| *group != before.node);
    decide(&world, Action::Isolate { tenant, from: before.node, to: first, rest }).await?;
    world.settle(&wanted).await?;
    let placed = covering(&world, hash).await?;
    assert_eq!((placed.node, shards_on(&world, first).await?), (first, placed.shards));
    // Citus' own strategies would fill it up.
    let planned = |strategy: &str| {
        format!("SELECT count(*) FROM get_rebalance_table_shards_plan(rebalance_strategy := '{strategy}')")
    };
    assert!(world.number(Group::Coordinator, &planned("by_disk_size")).await? > 0, "this shows nothing");
    assert_eq!(rebalance_by_hand(&world).await?, 0);
    assert_eq!(shards_on(&world, first).await?, placed.shards);

    // One like the others, and again not: who is pinned there stays there.
    world.settle(&shared).await?;
    assert!(shards_on(&world, first).await? > placed.shards);
    assert_eq!(covering(&world, hash).await?, placed);
    assert_eq!(rebalance_by_hand(&world).await?, 0);
    world.settle(&wanted).await?;
    assert_eq!((covering(&world, hash).await?, shards_on(&world, first).await?), (placed, placed.shards));
    // A worker that leaves leaves nothing there.
    world.settle(&Wanted { workers: 2, ..wanted.clone() }).await?;
    assert_eq!((covering(&world, hash).await?, shards_on(&world, first).await?), (placed, placed.shards));
    Ok(())
}
