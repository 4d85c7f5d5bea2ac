//! People who ask for one thing after the other, or move shards themselves.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use dialog_operator::api::{DialogClusterStatus, RebalanceSpec};
use dialog_operator::condition::{BALANCED, METADATA_SYNCED};
use dialog_operator::names::Group;
use dialog_operator::shards::round::Round;
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::{REBALANCE_ANNOTATION, Wanted, gate};
use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::held_up::HeldUp;
use crate::needs_citus;
use crate::traffic::Traffic;
use crate::world::{SHARDS, World, condition, few_shards, with_an_empty_worker};

/// Shard groups of the table `messages` on the server of `group`.
async fn dialogs_on(world: &mut World, group: Group) -> Result<i64> {
    let port = world.server(group).port();
    let count = format!(
        "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_dist_node USING (groupid)
         WHERE logicalrelid = 'public.messages'::regclass AND nodeport = {port}"
    );
    world.number(Group::Coordinator, &count).await
}

#[tokio::test]
async fn a_drain_by_hand_is_waited_for_and_then_undone() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    let wanted = few_shards(2);
    world.serve(&wanted).await?;
    let traffic = Traffic::start(&world).await?;
    let port = world.server(Group::Worker(1)).port();
    let there = format!(
        "SELECT min(shardid) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_dist_node USING (groupid)
         WHERE logicalrelid = 'public.messages'::regclass AND nodeport = {port}"
    );
    let held_up = HeldUp::new(&world, world.number(Group::Coordinator, &there).await?).await?;
    let by_hand = world.ask_client(Group::Coordinator).await?;
    let drain = tokio::spawn(async move {
        by_hand.batch_execute(&format!("SELECT citus_drain_node('localhost', {port})")).await
    });
    while !held_up.is_waited_for().await? {
        ensure!(!drain.is_finished(), "the drain was not held up");
    }
    let round = world.round(&wanted).await?;
    assert!(round.performed.is_empty() && round.long.is_empty(), "{:?}", round.plan.steps);
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "OtherMove"), "{message}");
    assert!(message.contains("by hand"), "{message}");

    held_up.end().await?;
    drain.await??;
    assert_eq!(dialogs_on(&mut world, Group::Worker(1)).await?, 0, "it was drained");
    let steps = world.settle(&wanted).await?;
    let allowed = Step::SetShouldHaveShards { group: Group::Worker(1), value: true };
    assert!(steps.contains(&allowed), "{steps:?}");
    assert_eq!(condition(&world.round(&wanted).await?, BALANCED).0, "True");
    assert!(dialogs_on(&mut world, Group::Worker(1)).await?.abs_diff(i64::from(SHARDS) / 2) <= 1);
    traffic.verify(&world).await
}

#[tokio::test]
async fn a_count_that_changes_all_the_time_costs_nothing_but_moves() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let traffic = Traffic::start(&world).await?;
    world.add(Group::Worker(2))?;
    world.add(Group::Worker(3))?;
    let counts = [4, 2, 3, 4, 2, 4, 3, 2, 4, 2];
    let mut begun = Vec::new();
    for pair in counts.windows(2) {
        let (now, next) = (few_shards(pair[0]), few_shards(pair[1]));
        let round = world.round(&now).await?;
        ensure!(round.failed.is_empty(), "{:?}", round.failed);
        // What was begun goes on while the count is another already.
        let long = try_join_all(round.long.iter().map(|step| world.try_carry_out(&now, step)));
        let (_, meanwhile) = tokio::try_join!(long, world.round(&next))?;
        ensure!(meanwhile.failed.is_empty(), "{:?}", meanwhile.failed);
        begun.extend(round.long);
    }
    assert!(!begun.is_empty(), "nothing was moved");
    world.settle(&few_shards(3)).await?;
    for number in 0..3 {
        let here = dialogs_on(&mut world, Group::Worker(number)).await?;
        assert!(here.abs_diff(i64::from(SHARDS) / 3) <= 1, "worker-{number} has {here}");
    }
    assert_eq!(dialogs_on(&mut world, Group::Worker(3)).await?, 0);
    traffic.verify(&world).await
}

#[tokio::test]
async fn many_more_workers_than_can_be_had_change_nothing_for_who_is_there() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let traffic = Traffic::start(&world).await?;
    let round = world.round(&few_shards(50)).await?;
    assert!(round.performed.is_empty() && round.long.is_empty(), "{:?}", round.plan.steps);
    let (status, reason, message) = condition(&round, METADATA_SYNCED);
    assert_eq!((status, reason), ("False", "NodeUnreachable"));
    assert!(message.contains("worker-2 does not answer") && message.ends_with("; and 45 more"), "{message}");
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "WorkersMissing"), "{message}");
    // A table that comes meanwhile waits, and is served.
    assert_eq!(world.settle(&few_shards(2)).await?, vec![]);
    assert_eq!(condition(&world.round(&few_shards(2)).await?, BALANCED).0, "True");
    traffic.verify(&world).await
}

/// A resource in mode `Manual`, and what the status says of it.
#[derive(Default)]
struct Manual {
    request: Option<&'static str>,
    status: Option<DialogClusterStatus>,
}

impl Manual {
    /// One round, its moves included, as the controller makes it.
    async fn round(&mut self, world: &World) -> Result<Round> {
        let spec: RebalanceSpec = serde_json::from_value(json!({"mode": "Manual"}))?;
        let annotations: BTreeMap<String, String> = self
            .request
            .map(|value| (REBALANCE_ANNOTATION.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        let handled = self.status.as_ref().and_then(|status| status.last_handled_rebalance.as_deref());
        let mut wanted: Wanted = few_shards(2);
        wanted.rebalance.gate = gate(&spec, &annotations, handled, Timestamp::now());
        wanted.rebalance.request = annotations.get(REBALANCE_ANNOTATION).cloned();
        let round = world.round(&wanted).await?;
        try_join_all(round.long.iter().map(|step| world.carry_out(&wanted, step))).await?;
        self.status =
            Some(status(&wanted, &world.topology(), &round, self.status.as_ref(), Timestamp::now()));
        Ok(round)
    }

    fn handled(&self) -> Option<&str> {
        self.status.as_ref()?.last_handled_rebalance.as_deref()
    }
}

#[tokio::test]
async fn a_rebalance_that_is_asked_for_is_made_once() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let mut manual = Manual::default();
    assert_eq!(condition(&manual.round(&world).await?, BALANCED).1, "PlanAvailable");

    manual.request = Some("one");
    let mut moves = 0;
    while manual.handled() != Some("one") {
        moves += manual.round(&world).await?.long.len();
        ensure!(moves <= 2 * usize::try_from(SHARDS)?, "it does not end");
    }
    assert!(moves >= usize::try_from(SHARDS)? - 2, "{moves} moves");

    // What becomes uneven later is none of its business.
    let back = "SELECT count(citus_move_shard_placement(shardid, b.nodeid, a.nodeid, 'block_writes'))
                FROM pg_dist_node AS a, pg_dist_node AS b,
                     (SELECT shardid, groupid FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
                      WHERE logicalrelid = 'public.messages'::regclass) AS there
                WHERE a.groupid = (SELECT min(groupid) FROM pg_dist_node WHERE groupid > 0)
                  AND b.groupid = (SELECT max(groupid) FROM pg_dist_node) AND there.groupid = b.groupid";
    world.ask(Group::Coordinator, back).await.context("move shards back by hand")?;
    let round = manual.round(&world).await?;
    assert!(round.long.is_empty(), "{:?}", round.long);
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "PlanAvailable"), "{message}");
    assert!(message.contains("asked for has ended"), "{message}");

    manual.request = Some("two");
    assert!(!manual.round(&world).await?.long.is_empty(), "another value asks for another");
    // Taken away before its end, it ends; and its name is free again.
    manual.request = None;
    assert!(manual.round(&world).await?.long.is_empty());
    assert_eq!(manual.handled(), None);
    manual.request = Some("one");
    assert!(!manual.round(&world).await?.long.is_empty());
    Ok(())
}
