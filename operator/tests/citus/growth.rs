//! The number of workers changes: shards follow it in both directions.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use dialog_operator::condition::{BALANCED, METADATA_SYNCED, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED};
use dialog_operator::names::Group;
use dialog_operator::shards::round::{Brief, round};
use dialog_operator::shards::step::Step;
use futures::future::{BoxFuture, ready};

use crate::needs_citus;
use crate::traffic::Traffic;
use crate::world::{SHARDS, World, brief, condition, few_shards as wanted, placements};

/// Shard groups on each registered node, workers by number.
pub async fn groups(world: &World) -> Result<Vec<(Group, i64)>> {
    let rows = world
        .ask(
            Group::Coordinator,
            "SELECT nodeport, count(DISTINCT (colocationid, shardminvalue)) FILTER (WHERE partmethod = 'h')
             FROM pg_dist_node LEFT JOIN pg_dist_placement USING (groupid) LEFT JOIN pg_dist_shard USING (shardid)
             LEFT JOIN pg_dist_partition USING (logicalrelid) GROUP BY 1",
        )
        .await?;
    let topology = world.topology();
    let group = |port: i32| {
        let endpoint = dialog_operator::pg::Endpoint::new("localhost", u16::try_from(port).unwrap());
        topology.group(&endpoint).unwrap()
    };
    let mut counts: Vec<(Group, i64)> = rows.iter().map(|row| (group(row.get(0)), row.get(1))).collect();
    counts.sort_unstable();
    Ok(counts)
}

/// Every worker of `count` holds its share, nobody else holds anything, and nothing is left behind.
async fn assert_spread(world: &World, count: u32) -> Result<()> {
    let counts = groups(world).await?;
    let (mut total, mut most, mut least) = (0, 0, i64::MAX);
    for (group, shards) in &counts {
        if *group == Group::Coordinator && count > 0 {
            assert_eq!(*shards, 0, "{counts:?}");
            continue;
        }
        total += shards;
        most = most.max(*shards);
        least = least.min(*shards);
    }
    assert_eq!(total, 2 * i64::from(SHARDS), "two colocation groups: {counts:?}");
    // Sizes count, within the threshold.
    assert!(most - least <= 2, "{counts:?}");
    assert_eq!(counts.len(), 1 + usize::try_from(count)?, "{counts:?}");
    let left = world.number(Group::Coordinator, "SELECT count(*) FROM pg_dist_cleanup").await?;
    assert_eq!(left, 0, "records of what is to be taken away are left");
    Ok(())
}

async fn serving(workers: u32) -> Result<World> {
    let world = World::start(workers)?;
    world.serve(&wanted(workers)).await?;
    Ok(world)
}

#[tokio::test]
async fn two_four_two_four_workers_lose_nothing_that_was_acknowledged() -> Result<()> {
    needs_citus!();
    let mut world = serving(2).await?;
    let traffic = Traffic::start(&world).await?;
    world.add(Group::Worker(2))?;
    world.add(Group::Worker(3))?;
    let steps = world.settle(&wanted(4)).await?;
    assert_spread(&world, 4).await?;
    let round = world.round(&wanted(4)).await?;
    assert_eq!(condition(&round, BALANCED).0, "True", "{:?}", condition(&round, BALANCED));
    let moves = steps.iter().filter(|step| matches!(step, Step::MoveShard { .. })).count();
    assert!(moves >= 10, "{moves} moves");

    let steps = world.settle(&wanted(2)).await?;
    assert_spread(&world, 2).await?;
    // All are told before the first shard moves, and each leaves empty.
    let position = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
    let first_move = position(&|step| matches!(step, Step::MoveShard { .. }));
    for group in [Group::Worker(2), Group::Worker(3)] {
        let flag = Step::SetShouldHaveShards { group, value: false };
        assert!(position(&|step| *step == flag) < first_move, "{steps:?}");
        assert!(position(&|step| *step == Step::RemoveNode { group }) > first_move);
    }
    let round = world.round(&wanted(2)).await?;
    assert_eq!(condition(&round, SCALE_IN_BLOCKED).1, "Removing", "their servers are still there");

    // Their servers and volumes went; the ones that come back are new.
    for group in [Group::Worker(2), Group::Worker(3)] {
        world.remove(group);
        world.add(group)?;
    }
    world.settle(&wanted(4)).await?;
    assert_spread(&world, 4).await?;
    traffic.verify(&world).await
}

#[tokio::test]
async fn a_cluster_starts_on_its_coordinator_and_gets_workers_and_gives_them_back() -> Result<()> {
    needs_citus!();
    let mut world = serving(0).await?;
    let all_here = placements(&world).await?;
    assert_eq!(all_here.len(), wanted(0).tables.len());
    assert!(
        all_here.iter().all(|(_, group_id, shards)| (*group_id, *shards) == (0, i64::from(SHARDS))),
        "{all_here:?}"
    );

    // Asked for, and not there yet: the cluster serves on, and the condition says what it waits for.
    let round = world.round(&wanted(2)).await?;
    assert_eq!(round.performed, vec![]);
    let (status, reason, message) = condition(&round, METADATA_SYNCED);
    assert_eq!((status, reason), ("False", "NodeUnreachable"));
    assert!(message.contains("worker-0") && message.contains("worker-1"), "{message}");
    assert_eq!(condition(&round, SCHEMA_DISTRIBUTED).0, "True");
    assert_eq!(condition(&round, BALANCED).1, "WorkersMissing");

    world.add(Group::Worker(1))?;
    world.add(Group::Worker(0))?;
    let traffic = Traffic::start(&world).await?;
    world.settle(&wanted(2)).await?;
    assert_spread(&world, 2).await?;

    world.settle(&wanted(0)).await?;
    assert_eq!(groups(&world).await?, [(Group::Coordinator, 2 * i64::from(SHARDS))]);
    assert_eq!(condition(&world.round(&wanted(0)).await?, BALANCED).0, "True");
    traffic.verify(&world).await
}

#[tokio::test]
async fn five_workers_share_what_two_had_and_no_server_is_restarted() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    let (two, five) = (crate::world::wanted(2), crate::world::wanted(5));
    world.serve(&two).await?;
    let start = "SELECT pg_postmaster_start_time()::text";
    let mut started = Vec::new();
    for group in [Group::Coordinator, Group::Worker(0), Group::Worker(1)] {
        started.push((group, world.ask(group, start).await?[0].get::<_, String>(0)));
    }
    for number in 2..5 {
        world.add(Group::Worker(number))?;
    }
    world.settle(&five).await?;
    for table in ["messages", "users"] {
        let mut shares: Vec<i64> = placements(&world)
            .await?
            .into_iter()
            .filter(|(name, ..)| name.trim_start_matches("public.") == table)
            .map(|(.., shards)| shards)
            .collect();
        shares.sort_unstable();
        assert_eq!(shares, [9, 9, 10, 10, 10], "{table}");
    }
    for (group, before) in started {
        assert_eq!(world.ask(group, start).await?[0].get::<_, String>(0), before, "{group} was restarted");
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_was_never_registered_is_not_in_the_way() -> Result<()> {
    needs_citus!();
    let mut world = serving(1).await?;
    world.add(Group::Worker(1))?;
    // The count is lowered before the second was ever registered.
    let round = world.round(&wanted(1)).await?;
    assert!(round.performed.is_empty() && round.is_settled(), "{:?}", round.plan);
    let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
    assert_eq!((status, reason), ("False", "Removing"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_shrink_is_taken_back_halfway() -> Result<()> {
    needs_citus!();
    let world = serving(3).await?;
    let traffic = Traffic::start(&world).await?;
    // The third is told to go, and a few shards have left it.
    let mut left = 0;
    while left < 3 {
        let round = world.round(&wanted(2)).await?;
        for step in &round.long {
            world.carry_out(&wanted(2), step).await?;
            left += 1;
        }
    }
    let round = world.round(&wanted(2)).await?;
    assert_eq!(condition(&round, SCALE_IN_BLOCKED).1, "Draining");
    let steps = world.settle(&wanted(3)).await?;
    let flag = Step::SetShouldHaveShards { group: Group::Worker(2), value: true };
    assert_eq!(steps.first(), Some(&flag), "{steps:?}");
    assert_spread(&world, 3).await?;
    traffic.verify(&world).await
}

/// Citus moves no shard while a node lacks a reference table, whether the operator was told of the table or not.
#[tokio::test]
async fn reference_tables_that_the_policy_does_not_name_are_copied_before_shards_move() -> Result<()> {
    needs_citus!();
    let mut world = serving(1).await?;
    let client = world.ask_client(Group::Coordinator).await?;
    for by_hand in [
        "CREATE TABLE countries (code text PRIMARY KEY)",
        "SELECT create_reference_table('countries')",
        "INSERT INTO countries VALUES ('de'), ('fr')",
    ] {
        client.batch_execute(by_hand).await?;
    }

    // One of the two that are asked for is not there yet: the other gets its copy all the same.
    world.add(Group::Worker(1))?;
    let round = world.round(&wanted(3)).await?;
    assert_eq!(round.long, vec![Step::ReplicateReferenceTables], "{:?}", round.plan.steps);
    world.carry_out(&wanted(3), &round.long[0]).await?;
    let here = "SELECT count(*) FROM public.countries";
    assert_eq!(world.number(Group::Worker(1), here).await?, 2);

    world.add(Group::Worker(2))?;
    let steps = world.settle(&wanted(3)).await?;
    let first = |kind: &str| steps.iter().position(|step| step.kind() == kind);
    assert!(first("ReplicateReferenceTables") < first("MoveShard"), "{steps:?}");
    assert_spread(&world, 3).await?;
    assert_eq!(world.number(Group::Worker(2), here).await?, 2);

    // Who leaves takes only a copy along.
    world.settle(&wanted(2)).await?;
    assert_spread(&world, 2).await
}

#[tokio::test]
async fn a_round_ends_when_the_count_has_changed_meanwhile() -> Result<()> {
    needs_citus!();
    let mut world = serving(1).await?;
    world.add(Group::Worker(1))?;
    world.add(Group::Worker(2))?;
    let (more, existing) = (wanted(3), world.existing());
    let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
    let all = round(&Brief { most: 0, ..brief(&more, &ask) }, &world.sessions()?).await.plan.steps;
    assert!(
        all.iter().any(|step| matches!(step, Step::CreateDatabase { group: Group::Worker(2) })),
        "{all:?}"
    );
    // Two more workers were asked for, until two steps were done.
    let left = AtomicUsize::new(2);
    let unchanged = || -> BoxFuture<'_, bool> { Box::pin(ready(left.fetch_sub(1, Ordering::Relaxed) > 1)) };
    let cut = round(&Brief { unchanged: &unchanged, ..brief(&more, &ask) }, &world.sessions()?).await;
    assert_eq!(cut.performed, all[..2], "the round went on");
    assert!(cut.failed.is_empty() && cut.long.is_empty(), "{:?} {:?}", cut.failed, cut.long);
    // What was begun is in nobody's way.
    world.settle(&wanted(1)).await?;
    assert_eq!(groups(&world).await?.len(), 2);
    world.settle(&more).await?;
    assert_spread(&world, 3).await
}
