//! Moves while servers are updated: what is under way ends, nothing else begins, and who asks is told what is still needed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogClusterStatus, HeldMovesStatus};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::Move;
use dialog_operator::shards::round::Round;
use dialog_operator::shards::status::held_moves;
use dialog_operator::shards::step::Step;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::Notify;

use crate::held_up::HeldUp;
use crate::needs_citus;
use crate::operator::Operator;
use crate::pace::{LIMIT, moves_of};
use crate::resource::Resource;
use crate::traffic::Traffic;
use crate::world::{World, closed, condition, eventually, few_shards, gated};

/// Two workers that have the shards, and a third one that is to have its share.
async fn with_a_third_worker() -> Result<World> {
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    world.add(Group::Worker(2))?;
    world.settle(&gated(3, closed())).await?;
    Ok(world)
}

impl Resource {
    /// Asks that no move begins from now on, as who is about to restart servers does; or takes that back.
    fn hold(&self, hold: bool) {
        let hold_moves = hold.then(|| MicroTime(Timestamp::now()));
        let status = DialogClusterStatus { hold_moves, ..self.read().status.unwrap_or_default() };
        self.change(|cluster| cluster.status = Some(status));
    }

    /// Writes what a round answers to that, as its controller does: the groups that are needed, if anything is asked.
    fn answer(&self, round: &Round, own: &[Step]) -> Option<Vec<String>> {
        let before = self.read().status;
        let answer = held_moves(before.as_ref(), Some(&round.observed), own);
        self.change(|cluster| cluster.status.get_or_insert_default().held_moves.clone_from(&answer));
        let HeldMovesStatus { since, busy } = answer?;
        assert_eq!(Some(since), before.and_then(|status| status.hold_moves));
        Some(busy)
    }
}

/// The groups that a move needs: its session is on the coordinator.
fn needed_by(next: &Move) -> Vec<String> {
    BTreeSet::from([Group::Coordinator, next.from, next.to]).iter().map(Group::to_string).collect()
}

#[tokio::test]
async fn while_servers_are_updated_the_move_under_way_ends_and_the_others_wait() -> Result<()> {
    needs_citus!();
    let world = with_a_third_worker().await?;
    let traffic = Traffic::start(&world).await?;
    let (mut operator, resource) = (Operator::default(), Resource::new());
    resource.change(|cluster| cluster.spec.workers.count = 3);
    operator.present = Some(resource.present());
    let held_up = HeldUp::while_others_write(&world).await?;
    let first = operator.round(&world, &resource.wanted()).await?;
    assert_eq!(resource.answer(&first, &operator.jobs.under_way()), None, "nobody asks");
    let plan = first.held_plan().context("nothing is to be moved")?;
    ensure!(first.long.len() == 1 && plan.moves.len() > 2, "{:?}, {plan:?}", first.long);
    let needed = needed_by(&plan.moves[0]);

    // The look was before the move began: whoever has begun it knows of it. Later it is seen, and by another operator, too.
    eventually("the move is at its end", async || held_up.is_waited_for().await).await?;
    resource.hold(true);
    let own = operator.jobs.under_way();
    assert_eq!(resource.answer(&first, &own), Some(needed.clone()));
    for _ in 0..3 {
        let round = operator.round(&world, &resource.wanted()).await?;
        assert_eq!(round.long, []);
        assert_eq!(resource.answer(&round, &operator.jobs.under_way()), Some(needed.clone()));
    }
    let mut next = Operator::default();
    next.present = Some(resource.present());
    let round = next.round(&world, &resource.wanted()).await?;
    assert_eq!((&round.long[..], next.jobs.under_way()), (&[][..], vec![]));
    assert_eq!(resource.answer(&round, &[]), Some(needed));

    // It ends, and none follows: not at once, nor with the next rounds.
    held_up.end().await?;
    eventually("no move is under way any more", async || Ok(operator.jobs.is_idle())).await?;
    for _ in 0..3 {
        let round = operator.round(&world, &resource.wanted()).await?;
        assert_eq!(round.long, []);
        assert_eq!(resource.answer(&round, &operator.jobs.under_way()), Some(vec![]));
        let why = "servers are updated first: see the condition Progressing";
        ensure!(round.plan.waits.iter().any(|wait| wait == why), "{:?}", round.plan.waits);
    }
    assert_eq!((moves_of(&operator.done), operator.failed.as_slice()), (first.long, &[][..]));

    // What is left of the plan is made when the servers are back.
    resource.hold(false);
    operator.settle(&world, &resource.wanted(), LIMIT).await?;
    operator.take_results();
    let planned = plan.moves.iter().map(|next| Step::MoveShard {
        shard_id: next.shard_id,
        from: next.from,
        to: next.to,
    });
    assert_eq!(moves_of(&operator.done), planned.collect::<Vec<_>>());
    let round = operator.round(&world, &resource.wanted()).await?;
    assert_eq!(condition(&round, BALANCED).0, "True");
    assert_eq!(resource.answer(&round, &operator.jobs.under_way()), None, "nobody asks any more");
    traffic.verify(&world).await
}

/// Whoever asks is answered that nothing is under way: what was about to begin by an earlier round must not.
#[tokio::test]
async fn a_move_that_was_found_before_an_update_does_not_begin_in_it() -> Result<()> {
    needs_citus!();
    let world = with_a_third_worker().await?;
    let (mut operator, resource) = (Operator::default(), Resource::new());
    resource.change(|cluster| cluster.spec.workers.count = 3);
    // It is not known at once what is asked for now.
    let known = Arc::new(Notify::new());
    let (present, wait) = (resource.present(), Arc::clone(&known));
    operator.present = Some(Arc::new(move || {
        let (present, wait) = (Arc::clone(&present), Arc::clone(&wait));
        Box::pin(async move {
            wait.notified().await;
            present().await
        })
    }));
    let late = operator.round(&world, &resource.wanted()).await?;
    let plan = late.held_plan().context("nothing is to be moved")?;
    ensure!(late.long.len() == 1, "{:?}", late.plan.steps);
    resource.hold(true);
    // As long as nobody knows whether it begins, it counts.
    let busy = resource.answer(&late, &operator.jobs.under_way());
    assert_eq!(busy, Some(needed_by(&plan.moves[0])));
    known.notify_one();
    eventually("no move is about to begin any more", async || Ok(operator.jobs.is_idle())).await?;
    operator.take_results();
    assert_eq!((operator.begun.as_slice(), operator.done.as_slice()), (&[][..], &[][..]));
    let round = operator.round(&world, &resource.wanted()).await?;
    assert_eq!(resource.answer(&round, &operator.jobs.under_way()), Some(vec![]));
    let moves = round.plan.moves.context("the catalogs were not read")?;
    ensure!(moves.running.is_empty() && moves.plan.hash == plan.hash, "{moves:?}");
    Ok(())
}
