//! What a round leaves to the steps that take long.

use futures::FutureExt;
use futures::future::ready;

use super::*;
use crate::shards::findings::tests::{at_rest, catalog, facts, ranges, topology, wanted};
use crate::shards::observed::{Operation, Resources};

/// A cluster in which shards are to be moved to a worker that is empty.
fn uneven() -> Observed {
    let mut observed = at_rest();
    catalog(&mut observed).placements =
        [1, 2].into_iter().flat_map(|colocation_id| ranges(colocation_id, 0, 0..48)).collect();
    let enough = Resources {
        free_bytes: 1 << 40,
        total_bytes: 1 << 40,
        free_slots: 9,
        free_senders: 9,
        free_appliers: 9,
        free_workers: 9,
        ..Resources::default()
    };
    for group in [Group::Coordinator, Group::Worker(0)] {
        facts(&mut observed, group).resources = Some(enough.clone());
    }
    observed
}

#[test]
fn a_move_under_way_is_part_of_the_plan_until_it_was_made() {
    let mut observed = uneven();
    let round = |observed: &Observed| Round {
        plan: plan(&wanted(), &topology(), observed),
        observed: observed.clone(),
        performed: Vec::new(),
        failed: Vec::new(),
        deferred: Vec::new(),
        held: None,
        long: Vec::new(),
    };
    let whole = round(&observed).held_plan().unwrap();
    let first = whole.moves[0];
    observed.held = Some(whole.clone());
    let application = Operation::name_of(first.shard_id, first.from, first.to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    let during = round(&observed);
    let moves = during.plan.moves.as_ref().unwrap();
    assert_eq!((moves.running.len(), moves.plan.moves.len() + 1), (1, whole.moves.len()));
    assert_eq!(during.held_plan().as_ref(), Some(&whole), "it may fail");

    // It did, and is the next one again.
    observed.held = during.held_plan();
    catalog(&mut observed).operations.clear();
    let next = round(&observed).plan.steps.first().cloned();
    assert_eq!(next, Some(Step::MoveShard { shard_id: first.shard_id, from: first.from, to: first.to }));
    // It was made, and is part of nothing any more.
    let placements = &mut catalog(&mut observed).placements;
    let made = placements.iter_mut().find(|at| at.shard_id == first.shard_id).unwrap();
    assert_eq!(first.to, Group::Worker(0));
    made.group_id = 1;
    let left = round(&observed).held_plan().unwrap();
    assert_eq!((left.moves.len() + 1, &left.hash), (whole.moves.len(), &whole.hash));
}

#[test]
fn under_the_lock_the_next_move_is_asked_for_while_a_failed_one_is_put_off() {
    let mut observed = uneven();
    let servers = observed.clone();
    let first = plan(&wanted(), &topology(), &observed).steps;
    let [failed @ Step::MoveShard { .. }] = &first[..] else { panic!("one at a time: {first:?}") };
    observed.deferred = vec![failed.clone()];
    let round = Round {
        plan: plan(&wanted(), &topology(), &observed),
        observed,
        performed: Vec::new(),
        failed: Vec::new(),
        deferred: vec![(failed.clone(), "no route to host".to_owned())],
        held: None,
        long: Vec::new(),
    };
    let next = next(&round).unwrap();
    assert_ne!(next, *failed);

    let wanted = wanted();
    let handover = Handover::of(&wanted, &round);
    let existing = servers.existing.clone();
    let ask = || -> BoxFuture<'_, BTreeSet<Group>> { ready(existing.clone()).boxed() };
    let mut seen = servers;
    remember(&mut seen, &handover.brief(&ask), existing.clone());
    let steps = plan(&wanted, &topology(), &seen).steps;
    assert!(steps.contains(&next), "{next} is not asked for any more: {steps:?}");
}

#[test]
fn a_worker_that_cannot_be_removed_blocks_the_shrink() {
    let step = Step::RemoveNode { group: Group::Worker(3) };
    let mut observed = at_rest();
    observed.existing.insert(Group::Worker(3));
    let mut plan = plan(&wanted(), &topology(), &observed);
    plan.steps = vec![step.clone()];
    let mut round = Round {
        observed,
        plan,
        performed: Vec::new(),
        failed: Vec::new(),
        deferred: vec![(step, "it is the only one with a shard".to_owned())],
        held: None,
        long: Vec::new(),
    };
    let say = |round: &Round| {
        let found = round.findings().into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
        (found.holds.as_str(), found.reason)
    };
    assert_eq!(say(&round), ("True", "StepFailed"));
    round.deferred.clear();
    assert_eq!(say(&round), ("False", "Removing"));
}
