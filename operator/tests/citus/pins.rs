//! Where tenants belong, whoever moves shards: on real servers.

use anyhow::{Context, Result, ensure};
use dialog_operator::api::PinSpec;
use dialog_operator::condition::{BALANCED, HOT_TENANT};
use dialog_operator::heat::{Action, Mode, Tenant};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;

use crate::heat::uuid;
use crate::isolation::{
    assert_nothing_is_left, colocation, covering, decide, hash, isolating, isolation, with_mode,
};
use crate::needs_citus;
use crate::world::{World, closed, condition, distributed, eventually, gated};

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

/// What is done until nothing is left to do. What moves leave behind may be gone before the operator takes it away.
async fn kinds(world: &World, wanted: &Wanted) -> Result<Vec<&'static str>> {
    let steps = world.settle(wanted).await?;
    Ok(steps.iter().map(Step::kind).filter(|kind| *kind != "CleanUp").collect())
}

#[tokio::test]
async fn who_rebalances_by_hand_leaves_pinned_shards_where_they_are() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let wanted = with_mode(gated(3, closed()), Mode::Isolate);
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

    // A pin to a node that is told to go keeps nobody there.
    let client = world.ask_client(Group::Coordinator).await?;
    let port = i32::from(port);
    let allowed = format!(
        "SELECT coalesce(array_agg(nodeport ORDER BY nodeport), '{{}}') FROM pg_dist_node
         WHERE groupid > 0 AND dialog_operator.shard_allowed({shard}, nodeid)"
    );
    let ports = async || -> Result<Vec<i32>> { Ok(client.query_one(&allowed, &[]).await?.get(0)) };
    assert_eq!(ports().await?, [port]);
    client
        .batch_execute(&format!(
            "SELECT citus_set_node_property('localhost', {port}, 'shouldhaveshards', false)"
        ))
        .await?;
    assert_eq!(ports().await?.len(), 3);
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
        let client = world.ask_client(Group::Coordinator).await?;
        // Citus would send it to every node.
        client.batch_execute("SET citus.enable_ddl_propagation = off").await?;
        Ok(client.batch_execute(statement).await?)
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
    let port = world.topology().endpoint(first).context("it has an address")?.port;
    let planned = format!(
        "SELECT count(*) FROM get_rebalance_table_shards_plan(rebalance_strategy := 'by_disk_size')
         WHERE targetport = {port}"
    );
    assert!(world.number(Group::Coordinator, &planned).await? > 0, "this shows nothing");
    rebalance_by_hand(&world).await?;
    assert_eq!(shards_on(&world, first).await?, placed.shards);

    // One like the others, and again not: who is pinned there stays there.
    world.settle(&shared).await?;
    assert!(shards_on(&world, first).await? > placed.shards);
    rebalance_by_hand(&world).await?;
    assert_eq!(covering(&world, hash).await?, placed);
    world.settle(&wanted).await?;
    assert_eq!((covering(&world, hash).await?, shards_on(&world, first).await?), (placed, placed.shards));
    // A worker that leaves leaves nothing there.
    world.settle(&Wanted { workers: 2, ..wanted.clone() }).await?;
    assert_eq!((covering(&world, hash).await?, shards_on(&world, first).await?), (placed, placed.shards));
    Ok(())
}

#[tokio::test]
async fn a_pin_to_a_worker_that_has_left_is_written_to_another_and_its_shard_stays_there() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let three = with_mode(gated(3, closed()), Mode::Isolate);
    world.serve(&three).await?;
    let hash = 4711;
    let action = isolation(&world, hash).await?;
    decide(&world, action).await?;
    let two = Wanted { workers: 2, ..three.clone() };
    world.settle(&three).await?;
    world.settle(&two).await?;

    // An older copy of the table: the worker that it names is gone, with its row in the catalogs.
    let gone = world.topology().endpoint(Group::Worker(2)).context("it has an address")?.clone();
    let registered = format!("SELECT count(*) FROM pg_dist_node WHERE nodeport = {}", gone.port);
    assert_eq!(world.number(Group::Coordinator, &registered).await?, 0);
    let restored = format!(
        "UPDATE dialog_operator.pins SET nodename = '{}', nodeport = {} WHERE hash = {hash} RETURNING 1",
        gone.host, gone.port
    );
    assert_eq!(world.ask(Group::Coordinator, &restored).await?.len(), 1);
    assert_eq!(kinds(&world, &two).await?.first(), Some(&"Retarget"));
    let pin = "SELECT nodeport FROM dialog_operator.pins";
    let port: i32 = world.ask(Group::Coordinator, pin).await?[0].get(0);
    let placed = covering(&world, hash).await?;
    let home = world.topology().endpoint(placed.node).context("it has an address")?.port;
    assert!(port == i32::from(home) && port != i32::from(gone.port), "pinned to {port}, and is on {home}");
    let acts = world.round_of(&two, 0).await?.observed.kept.acts;
    let act = acts.last().context("nothing was written down")?;
    assert_eq!((act.action.kind(), act.outcome), ("Retarget", Some(Outcome::Done)), "{act:?}");
    let allowed = format!(
        "SELECT array_agg(nodeport) FROM pg_dist_node WHERE groupid > 0 AND dialog_operator.shard_allowed({}, nodeid)",
        placed.shard_id
    );
    assert_eq!(world.ask(Group::Coordinator, &allowed).await?[0].get::<_, Vec<i32>>(0), [port]);
    rebalance_by_hand(&world).await?;
    assert_eq!(covering(&world, hash).await?.node, placed.node);
    assert_nothing_is_left(&world, 2).await
}

/// An entry of `spec.sharding.pins`.
fn entry(tenant: &str, worker: Option<i32>) -> PinSpec {
    PinSpec { group: "dialog".to_owned(), tenant: tenant.to_owned(), worker }
}

/// What was done last, who asked for it, and what became of it.
async fn last(world: &World, wanted: &Wanted) -> Result<(&'static str, String, Option<Outcome>)> {
    let acts = world.round_of(wanted, 0).await?.observed.kept.acts;
    let act = acts.last().context("nothing was done")?;
    Ok((act.action.kind(), act.asked_by.clone(), act.outcome))
}

#[tokio::test]
async fn what_somebody_has_decided_about_a_dialog_is_done_in_every_mode_and_taken_back() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let observing = gated(3, closed());
    world.serve(&observing).await?;
    let dialog = uuid(7);
    let hash = hash(&world, &dialog).await?;
    let from = covering(&world, hash).await?.node;
    let mut others = (0..3).filter(|number| Group::Worker(*number) != from);
    let (first, second) = (others.next().context("a worker")?, others.next().context("another")?);
    let on =
        |worker: u32| Wanted { pins: vec![entry(&dialog, i32::try_from(worker).ok())], ..observing.clone() };
    let done = |kind, outcome| (kind, "spec".to_owned(), Some(outcome));

    let steps = kinds(&world, &on(first)).await?;
    assert_eq!(
        steps,
        ["BeginIsolation", "SplitShard", "SetPin", "SetStrategy", "EndAction"],
        "a small shard is cut where it is to be"
    );
    let placed = covering(&world, hash).await?;
    assert_eq!((placed.node, placed.range), (Group::Worker(first), HashRange { min: hash, max: hash }));
    assert_eq!(last(&world, &on(first)).await?, done("Isolate", Outcome::Done));
    assert_eq!(kinds(&world, &on(first)).await?, [""; 0]);
    assert_eq!(default_strategy(&world).await?, "dialog_operator");

    // Another worker: it is moved, and not cut again.
    let steps = kinds(&world, &on(second)).await?;
    assert_eq!(steps, ["BeginIsolation", "SetPin", "MoveShard", "EndAction"]);
    assert_eq!(covering(&world, hash).await?.node, Group::Worker(second));
    let acts = world.round_of(&on(second), 0).await?.observed.kept.acts;
    let took = acts.last().context("nothing was done")?.status().milliseconds;
    assert!(took > Some(0), "the move takes longer than {took:?} ms");

    // Nobody looks at load: it is no less so.
    let off = Wanted { watch: None, ..on(second) };
    assert_eq!(kinds(&world, &off).await?, [""; 0]);

    // An entry without a worker has it as one like the others, and one that goes takes its pin with it. What is written down
    // about that is no more for those who watch no load.
    let like_others = Wanted { pins: vec![entry(&dialog, None)], ..observing.clone() };
    let past = "INSERT INTO dialog_operator.actions (decided, ended, action, asked_by, why, outcome)
                SELECT now(), now(), '{}', 'spec', 'of another version', 'Done' FROM generate_series(1, 1500)";
    world.ask(Group::Coordinator, past).await?;
    let written = "SELECT count(*) FROM dialog_operator.actions";
    assert!(world.number(Group::Coordinator, written).await? > 1500);
    assert_eq!(
        kinds(&world, &Wanted { watch: None, ..like_others.clone() }).await?,
        ["RemovePin", "DropStrategy"]
    );
    assert_eq!(world.number(Group::Coordinator, written).await?, 1000);
    world.ask(Group::Coordinator, past).await?;
    kinds(&world, &Wanted { watch: None, ..on(second) }).await?;
    assert_eq!(world.number(Group::Coordinator, written).await?, 1000);
    assert_eq!(kinds(&world, &like_others).await?, ["RemovePin", "DropStrategy"]);
    assert_eq!(last(&world, &like_others).await?, done("Release", Outcome::Done));
    kinds(&world, &on(second)).await?;
    // Somebody has misspelled another entry.
    let misspelled = PinSpec { group: "dialgo".to_owned(), ..entry(&dialog, Some(0)) };
    let misspelled = Wanted { pins: vec![misspelled], ..observing.clone() };
    assert!(kinds(&world, &misspelled).await?.contains(&"RemovePin"));
    assert_eq!(world.round_of(&misspelled, 0).await?.observed.kept.pins.len(), 0);
    kinds(&world, &on(second)).await?;
    assert_eq!(kinds(&world, &observing).await?, ["RemovePin", "DropStrategy"]);
    assert_eq!(default_strategy(&world).await?, "by_disk_size");

    // What the policy has pinned goes where nobody looks any more, and where somebody has decided otherwise.
    let isolating = Wanted { rebalance: observing.rebalance.clone(), ..isolating(3) };
    for other in [
        Wanted { watch: None, ..isolating.clone() },
        Wanted { watch: None, pins: misspelled.pins, ..isolating.clone() },
        Wanted { pins: like_others.pins.clone(), ..isolating.clone() },
    ] {
        decide(&world, isolation(&world, hash).await?).await?;
        world.settle(&isolating).await?;
        assert_eq!(world.round_of(&isolating, 0).await?.observed.kept.pins.len(), 1);
        assert!(kinds(&world, &other).await?.contains(&"RemovePin"));
        assert_eq!(world.round_of(&other, 0).await?.observed.kept.pins.len(), 0);
        // What it has decided before that is not done either.
        if other.watch.is_some() {
            decide(&world, isolation(&world, hash).await?).await?;
            assert_eq!(kinds(&world, &other).await?, ["EndAction"]);
            assert_eq!(last(&world, &other).await?.2, Some(Outcome::Dropped));
        }
    }

    // What means nobody is said.
    for (wrong, why) in [
        (entry("not a dialog", Some(0)), "invalid input syntax for type uuid"),
        (PinSpec { group: "tags".to_owned(), ..entry(&dialog, Some(0)) }, "no table of the group tags"),
    ] {
        let wanted = Wanted { pins: vec![wrong], ..observing.clone() };
        world.settle(&wanted).await?;
        let (status, reason, message) = condition(&world.round(&wanted).await?, HOT_TENANT);
        assert_eq!((status, reason), ("True", "PinNotPossible"), "{message}");
        assert!(message.contains(why), "{message}");
    }
    assert_nothing_is_left(&world, 3).await
}

#[tokio::test]
async fn a_key_of_a_fixed_length_is_meant_as_a_whole() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let mut wanted = gated(2, closed());
    world.serve(&wanted).await?;
    world.api(Group::Coordinator).await?.run("CREATE TABLE rooms (room character(8) PRIMARY KEY)").await?;
    wanted.tables.push(distributed("rooms", "room", "rooms"));
    world.settle(&wanted).await?;
    wanted.pins = vec![PinSpec { group: "rooms".to_owned(), ..entry("kitchen", Some(0)) }];
    world.settle(&wanted).await?;
    let hash = world.number(Group::Coordinator, "SELECT worker_hash('kitchen'::character(8))::int8").await?;
    let pins = world.round_of(&wanted, 0).await?.observed.kept.pins;
    assert_eq!(pins.iter().map(|pin| i64::from(pin.tenant.hash)).collect::<Vec<_>>(), [hash]);
    Ok(())
}
