//! What is remembered, and until when.

use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::api::DialogClusterStatus;
use crate::names::Group;
use crate::shards::findings::tests::{catalog, topology, wanted};
use crate::shards::observed::{Node, Operation};
use crate::shards::rebalance::Move;
use crate::shards::round::tests::{of, place, uneven};
use crate::shards::status::status;

fn step_of(next: &Move) -> Step {
    Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to }
}

/// Has `memory` take in a round, and tells how often `step` has failed when it does so once more after it.
fn failed_again(memory: &mut Memory, observed: &Observed, step: &Step) -> u32 {
    memory.remember(&mut of(&wanted(), observed));
    memory.put_off(step, &act::Error::Moved("once more".to_owned()))
}

#[test]
fn a_move_is_of_the_plan_by_which_it_was_begun_whatever_is_planned_when_it_ends() {
    let whole = of(&wanted(), &uneven()).held_plan().unwrap();
    let step = step_of(&whole.moves[1]);
    let rest = MovePlan { moves: whole.moves[2..].to_vec(), ..whole.clone() };
    let place = Place { hash: whole.hash.clone(), number: whole.moves[1].number };
    let mut memory = Memory::default();
    assert_eq!(memory.begin(&step, Some(&whole)), Some(place.clone()));
    assert_eq!(memory.end(&step, &[&rest]), Some(place.clone()));
    assert_eq!(memory.end(&step, &[&rest]), None, "it has ended");
    // Somebody else has begun it.
    assert_eq!(memory.end(&step, &[&whole]), Some(place));
    let other = Step::CleanUp;
    assert_eq!((memory.begin(&other, Some(&whole)), memory.begun.len()), (None, 0));
}

#[test]
fn a_move_counts_until_the_status_that_counts_it_was_written() {
    let mut observed = uneven();
    let whole = of(&wanted(), &observed).held_plan().unwrap();
    let [first, second, third, ..] = whole.moves[..] else { panic!("{whole}") };
    observed.held = Some(whole);
    let mut memory = Memory::default();
    let mut written = DialogClusterStatus::default();
    let mut told = Vec::new();
    // A round of the controller: what it tells of and counts, if the status can be written after it.
    let mut round = |made: Option<Move>, is_read: bool, is_written: bool| {
        if let Some(made) = made {
            place(&mut observed, made.shard_id, 1);
            memory.done.push((step_of(&made), Duration::from_secs(3)));
        }
        let Results { done, uncounted, .. } = memory.take_results();
        told.extend(done.iter().map(|(step, _)| step.clone()));
        memory.told();
        let seen = if is_read { observed.clone() } else { Observed { catalog: None, ..observed.clone() } };
        let mut round = of(&wanted(), &seen);
        round.performed.extend(done.into_iter().map(|(step, _)| step).chain(uncounted));
        let now = Timestamp::from_second(0).unwrap();
        let status = status(&wanted(), &topology(), &round, Some(&written), now);
        let moves_done = status.rebalance.as_ref().unwrap().moves_done;
        if is_written {
            memory.counted(&round);
            written = status;
        }
        moves_done
    };
    assert_eq!(round(Some(first), true, true), 1);
    assert_eq!(round(Some(second), true, false), 2);
    assert_eq!(round(None, true, false), 2, "nobody has written it");
    assert_eq!(round(None, true, true), 2);
    assert_eq!(round(None, true, true), 2, "not twice");
    assert_eq!(round(Some(third), false, true), 2, "nobody knows what is left");
    assert_eq!(round(None, false, true), 2);
    assert_eq!(round(None, true, true), 3);
    assert_eq!(round(None, true, true), 3, "not twice");
    assert_eq!(told, [first, second, third].map(|made| step_of(&made)), "each once");
}

#[test]
fn what_failed_last_is_known_until_a_move_was_made_or_none_is_wanted() {
    let mut observed = uneven();
    let whole = of(&wanted(), &observed).held_plan().unwrap();
    let [first, second, third] = [0, 1, 2].map(|number| step_of(&whole.moves[number]));
    let by_first = whole.moves[0];
    observed.held = Some(whole);
    let mut memory = Memory::trying_again_after(Duration::ZERO);
    let known =
        |memory: &Memory| -> Vec<Step> { memory.failed_moves().into_iter().map(|(step, _)| step).collect() };
    for step in [&first, &second] {
        failed_again(&mut memory, &observed, step);
    }
    assert_eq!(memory.deferred().len(), 0, "both may be tried again");
    assert_eq!(known(&memory), [second.clone(), first.clone()]);
    // It is under way again, or the catalogs cannot be read.
    let mut during = observed.clone();
    let application = Operation::name_of(by_first.shard_id, by_first.from, by_first.to);
    catalog(&mut during).operations = vec![Operation { pid: 7, application }];
    for observed in [&during, &Observed { catalog: None, ..observed.clone() }] {
        memory.remember(&mut of(&wanted(), observed));
        assert_eq!(known(&memory), [second.clone(), first.clone()]);
    }
    memory.made(&third);
    assert_eq!(known(&memory), []);
    failed_again(&mut memory, &observed, &first);
    assert_eq!(known(&memory), [first]);
    memory.remember(&mut of(&wanted(), &crate::shards::findings::tests::at_rest()));
    assert_eq!(known(&memory), [], "nobody wants it any more");
}

#[test]
fn how_often_a_move_failed_counts_until_it_was_made_or_is_not_wanted() {
    let mut observed = uneven();
    let whole = of(&wanted(), &observed).held_plan().unwrap();
    let (first, second) = (whole.moves[0], whole.moves[1]);
    let failed = step_of(&first);
    observed.held = Some(whole);
    let mut memory = Memory::default();
    assert_eq!(failed_again(&mut memory, &observed, &failed), 1);

    // One at a time: while another is made, none is to begin.
    let mut during = observed.clone();
    let application = Operation::name_of(second.shard_id, second.from, second.to);
    catalog(&mut during).operations = vec![Operation { pid: 7, application }];
    assert!(!of(&wanted(), &during).plan.steps.contains(&failed));
    assert_eq!(failed_again(&mut memory, &during, &failed), 2);
    let put_off = memory.deferred();
    assert!(put_off.iter().any(|(step, _)| *step == failed), "{put_off:?}");
    // Nor while a node is away for a moment, or the catalogs cannot be read.
    let mut away = observed.clone();
    away.nodes.insert(Group::Worker(0), Node::Down("connection refused".to_owned()));
    assert!(!of(&wanted(), &away).plan.steps.contains(&failed));
    assert_eq!(failed_again(&mut memory, &away, &failed), 3);
    let unread = Observed { catalog: None, ..observed.clone() };
    assert_eq!(failed_again(&mut memory, &unread, &failed), 4);

    let mut made = observed.clone();
    place(&mut made, first.shard_id, 1);
    assert_eq!(failed_again(&mut memory, &made, &failed), 1, "it was made");
    assert_eq!(failed_again(&mut memory, &observed, &failed), 2);
    let unwanted = crate::shards::findings::tests::at_rest();
    memory.remember(&mut of(&wanted(), &unwanted));
    assert!(memory.failures.is_empty(), "nobody wants it any more");
}
