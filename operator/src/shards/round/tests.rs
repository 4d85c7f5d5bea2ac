//! What a round leaves to the steps that take long.

use futures::FutureExt;
use futures::future::ready;

use super::*;
use crate::shards::findings::tests::{at_rest, catalog, facts, ranges, topology, wanted};
use crate::shards::observed::Resources;

#[test]
fn under_the_lock_the_next_move_is_asked_for_while_a_failed_one_is_put_off() {
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
