//! Shards that are spread by what they have to do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::heat::ENOUGH;
use dialog_operator::shards::plan::plan;
use dialog_operator::shards::rebalance::Strategy;
use dialog_operator::shards::round::Round;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;

use crate::heat::{Crowd, Operator as Watcher, start, uuid, watched};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, condition};

/// Thousandths of a core that a worker may spend: few, so that what a busy machine lets the writers do counts.
const MILLICORES: u64 = 100;

/// Two dialogs whose shards are not the same, on one worker.
async fn neighbours(world: &World) -> Result<[String; 2]> {
    let rows = world
        .ask(
            Group::Coordinator,
            "SELECT min(number) FROM (
                 SELECT number, get_shard_id_for_distribution_column('public.messages',
                     ('00000000-0000-4000-8000-' || lpad(number::text, 12, '0'))::uuid) AS shardid
                 FROM generate_series(0, 999) AS number) AS dialogs
             JOIN citus_shards USING (shardid)
             WHERE nodeport = (SELECT min(nodeport) FROM citus_shards WHERE table_name = 'public.messages'::regclass)
             GROUP BY shardid ORDER BY shardid LIMIT 2",
        )
        .await?;
    let number = |index: usize| u32::try_from(rows[index].get::<_, i32>(0));
    Ok([uuid(number(0)?), uuid(number(1)?)])
}

/// The servers that have the shards of `dialogs`, by their ports.
async fn homes(world: &World, dialogs: &[String]) -> Result<Vec<i32>> {
    let mut homes = Vec::new();
    for dialog in dialogs {
        let home = format!(
            "SELECT nodeport FROM citus_shards
             WHERE shardid = get_shard_id_for_distribution_column('public.messages', '{dialog}'::uuid)"
        );
        homes.push(world.ask(Group::Coordinator, &home).await?[0].get(0));
    }
    Ok(homes)
}

/// The next period, and a round that knows of it.
async fn period(world: &World, wanted: &Wanted, operator: &mut Operator, before: &Round) -> Result<Round> {
    let watcher = Watcher { world, wanted, observed: before.observed.clone() };
    operator.heat = Some(watcher.look(operator.heat.as_ref()).await?);
    operator.round(world, wanted).await
}

#[tokio::test]
async fn two_shards_that_do_all_the_work_end_on_two_workers_and_stay_there() -> Result<()> {
    needs_citus!();
    let mut wanted = watched(2, MILLICORES);
    let world = start(2, &wanted, 100).await?;
    (wanted.rebalance.policy.strategy, wanted.rebalance.policy.threshold) = (Strategy::ByLoad, 300);
    let dialogs = neighbours(&world).await?;
    let before = homes(&world, &dialogs).await?;
    ensure!(before[0] == before[1], "{before:?}");

    let crowd = Crowd::start(&world, 4, dialogs.to_vec(), Duration::from_millis(4)).await?;
    let mut operator = Operator::default();
    let mut round = operator.round(&world, &wanted).await?;
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("Unknown", "LoadNotMeasured"), "{message}");
    let mut periods = 0;
    while round.long.is_empty() {
        ensure!(
            operator.done.is_empty() && periods < 3 * ENOUGH,
            "{:?}: {:?}",
            condition(&round, BALANCED),
            operator.heat
        );
        round = period(&world, &wanted, &mut operator, &round).await?;
        periods += 1;
    }
    assert!(periods > ENOUGH, "what is seen for {periods} periods is no reason");
    // By their sizes nothing would be moved: the servers were not asked for more than they are.
    let mut by_size = wanted.clone();
    by_size.rebalance.policy.strategy = Strategy::BySize;
    let otherwise = plan(&by_size, &world.topology(), &round.observed);
    assert_eq!(otherwise.moves.context("there are catalogs")?.plan.moves, []);

    operator.settle(&world, &wanted, Duration::from_mins(3)).await?;
    operator.take_results();
    let moved = operator.done.iter().filter(|step| matches!(step, Step::MoveShard { .. })).count();
    assert!(moved > 0 && operator.failed.is_empty(), "{:?}, {:?}", operator.done, operator.failed);
    let after = homes(&world, &dialogs).await?;
    assert!(after[0] != after[1], "{before:?}, {after:?}");
    round = operator.round(&world, &wanted).await?;
    assert_eq!(condition(&round, BALANCED).1, "LoadNotMeasured", "all is looked at again first");

    // From now on it is even, and stays as it is: for twice as long as it takes to find that something should move.
    let mut even = 0;
    for _ in 0..2 * ENOUGH + 3 {
        round = period(&world, &wanted, &mut operator, &round).await?;
        assert_eq!(round.long, [], "{:?}", operator.heat);
        even += u32::from(condition(&round, BALANCED).1 == "Balanced");
    }
    assert!(even >= ENOUGH, "{:?}: {:?}", condition(&round, BALANCED), operator.heat);
    assert_eq!(homes(&world, &dialogs).await?, after);
    let written = crowd.end().await?;
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, written);
    Ok(())
}
