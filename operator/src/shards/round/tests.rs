//! What a round leaves to the steps that take long.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::ready;
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::api::DialogClusterStatus;
use crate::shards::findings::tests::{at_rest, catalog, facts, ranges, topology, wanted};
use crate::shards::observed::{End, Operation, Progress, Resources, StallKind, Transaction};
use crate::shards::rebalance::Cause;
use crate::shards::supervise::Watch;
use crate::shards::wanted::Gate;

/// A cluster in which shards are to be moved to a worker that is empty.
pub(in crate::shards) fn uneven() -> Observed {
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
    let round = |observed: &Observed| of(&wanted(), observed);
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
fn an_operator_that_is_started_anew_carries_on_the_plan_with_the_move_under_way() {
    let mut wanted = wanted();
    let mut observed = uneven();
    let whole = of(&wanted, &observed).held_plan().unwrap();
    (wanted.rebalance.gate, wanted.rebalance.request) =
        (Gate::Approved(whole.hash.clone()), Some(whole.hash.clone()));
    observed.held = Some(whole.clone());
    let first = whole.moves[0];
    let application = Operation::name_of(first.shard_id, first.from, first.to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    let shown = shown(&wanted, &of(&wanted, &observed)).unwrap();
    assert_eq!(Some(&shown), whole.status().as_ref(), "a move is of the plan until it was made");
    // The next operator remembers nothing but what is in the status.
    (observed.held, observed.shown) = (None, Some(shown));
    assert_eq!(of(&wanted, &observed).held_plan().as_ref(), Some(&whole));
    // The node of the move was drained with the operator, and the move failed.
    catalog(&mut observed).operations.clear();
    let after = of(&wanted, &observed);
    let again = Step::MoveShard { shard_id: first.shard_id, from: first.from, to: first.to };
    assert_eq!(after.plan.steps.first(), Some(&again));
    let plan = after.plan.moves.unwrap().plan;
    assert_eq!((&plan.hash, plan.moves.len()), (&whole.hash, whole.moves.len()));
}

#[test]
fn the_plan_is_shown_until_its_last_move_was_made() {
    let wanted = wanted();
    let mut observed = uneven();
    let whole = of(&wanted, &observed).held_plan().unwrap();
    let (last, others) = whole.moves.split_last().unwrap();
    for made in others {
        place(&mut observed, made.shard_id, 1);
    }
    observed.held = Some(whole.clone());
    let application = Operation::name_of(last.shard_id, last.from, last.to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    let shown_now = shown(&wanted, &of(&wanted, &observed)).unwrap();
    assert_eq!((shown_now.hash, shown_now.moves), (whole.hash.clone(), 1));
    catalog(&mut observed).operations.clear();
    place(&mut observed, last.shard_id, 1);
    assert_eq!(shown(&wanted, &of(&wanted, &observed)), None);
}

#[test]
fn under_the_lock_the_next_move_is_asked_for_while_a_failed_one_is_put_off() {
    let mut observed = uneven();
    let servers = observed.clone();
    let first = plan(&wanted(), &topology(), &observed).steps;
    let [failed @ Step::MoveShard { .. }] = &first[..] else { panic!("one at a time: {first:?}") };
    observed.deferred = vec![failed.clone()];
    let unreachable = act::Error::Unreachable("worker-0 cannot connect to coordinator".to_owned());
    let round = Round {
        plan: plan(&wanted(), &topology(), &observed),
        observed,
        performed: Vec::new(),
        partly: Vec::new(),
        failed: Vec::new(),
        deferred: vec![(failed.clone(), Failure::from(&unreachable))],
        held: None,
        long: Vec::new(),
    };
    let next = next(&round, false).unwrap();
    assert_ne!(next, *failed);
    let said = round.findings().into_iter().find(|finding| finding.kind == BALANCED).unwrap();
    assert_eq!((said.holds.as_str(), said.reason), ("False", "NodeUnreachable"), "{}", said.message);
    assert!(said.message.ends_with("worker-0 cannot connect to coordinator"), "{}", said.message);

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
fn what_follows_a_move_is_of_the_plan_that_was_shown() {
    let observed = uneven();
    let of = |observed: &Observed| plan(&wanted(), &topology(), observed);
    let first = of(&observed);
    let whole = first.moves.clone().unwrap().plan;
    assert!(!carries_on(None, &first), "nobody was shown it yet");
    let mut seen = observed;
    seen.held = Some(whole.clone());
    let [but_last @ .., last] = &whole.moves[..] else { panic!("nothing is to be moved") };
    for next in but_last {
        assert!(carries_on(Some(&whole), &of(&seen)));
        place(&mut seen, next.shard_id, 1);
    }
    assert!(carries_on(Some(&whole), &of(&seen)));
    place(&mut seen, last.shard_id, 1);
    // Whatever comes after it is another plan.
    assert!(!carries_on(Some(&whole), &of(&seen)));
    let back = Wanted { workers: 0, ..wanted() };
    catalog(&mut seen).members[0].should_have_shards = true;
    catalog(&mut seen).members[1].should_have_shards = false;
    let next = plan(&back, &topology(), &seen);
    assert!(next.steps.iter().any(|step| matches!(step, Step::MoveShard { .. })), "{:?}", next.steps);
    assert!(!carries_on(Some(&whole), &next));
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
        partly: Vec::new(),
        failed: Vec::new(),
        deferred: vec![(
            step,
            Failure { reason: "StepFailed", message: "it is the only one with a shard".to_owned() },
        )],
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

#[test]
fn in_a_paused_cluster_nothing_begins_and_a_move_that_does_not_get_on_is_ended() {
    let mut observed = uneven();
    let paused = next(&of(&wanted(), &observed), true);
    assert!(next(&of(&wanted(), &observed), false).is_some(), "there is something to do");
    assert_eq!(paused, None);
    let first = of(&wanted(), &observed).held_plan().unwrap().moves[0];
    let application = Operation::name_of(first.shard_id, first.from, first.to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application: application.clone() }];
    assert_eq!(next(&of(&wanted(), &observed), true), None, "it gets on");
    observed.stalls = vec![Stall {
        pid: 7,
        application: application.clone(),
        seconds: 5,
        blocks_writers: true,
        kind: StallKind::Blocked,
        cause: "somebody waits".to_owned(),
        end: Some(End::Cancel),
    }];
    let mut round = of(&wanted(), &observed);
    let cancel = Step::CancelMove { pid: 7, application, end: End::Cancel };
    assert_eq!(next(&round, true), Some(cancel.clone()));
    round.performed.push(cancel);
    assert_eq!(next(&round, true), None);
}

/// A round that saw this, and did nothing.
pub(in crate::shards) fn of(wanted: &Wanted, observed: &Observed) -> Round {
    Round {
        plan: plan(wanted, &topology(), observed),
        observed: observed.clone(),
        performed: Vec::new(),
        partly: Vec::new(),
        failed: Vec::new(),
        deferred: Vec::new(),
        held: None,
        long: Vec::new(),
    }
}

/// The status after such a round.
fn status(wanted: &Wanted, round: &Round) -> DialogClusterStatus {
    let now = "2026-01-05T09:01:00Z".parse().unwrap();
    crate::shards::status::status(wanted, &topology(), round, None, now)
}

/// The request for a rebalance that counts as answered then.
fn handled(wanted: &Wanted, round: &Round) -> Option<String> {
    status(wanted, round).last_handled_rebalance
}

/// The plan that is shown then.
fn shown(wanted: &Wanted, round: &Round) -> Option<PlanStatus> {
    status(wanted, round).plan
}

/// Puts a shard group on the node of this Citus group.
pub(in crate::shards) fn place(observed: &mut Observed, shard_id: i64, group_id: i32) {
    let placements = &mut catalog(observed).placements;
    placements.iter_mut().find(|at| at.shard_id == shard_id).unwrap().group_id = group_id;
}

#[test]
fn what_leaves_is_shown_before_what_waits_for_a_word() {
    // Everything is on a coordinator that is to hold nothing.
    let mut observed = uneven();
    let closed = Gate::Closed { reason: "AwaitingApproval", message: "look".to_owned() };
    let mut wanted = wanted();
    wanted.rebalance.gate = closed;
    let moves = of(&wanted, &observed).plan.moves.unwrap();
    assert_eq!(moves.plan, moves.open, "what is made is what is shown");
    assert!(moves.plan.moves.iter().all(|next| next.cause == Cause::Drain) && !moves.plan.moves.is_empty());
    // As it goes on, the plan is the same.
    observed.held = Some(moves.plan.clone());
    let first = moves.plan.moves[0];
    let made = catalog(&mut observed).placements.iter_mut().find(|at| at.shard_id == first.shard_id).unwrap();
    made.group_id = 1;
    let after = of(&wanted, &observed).plan.moves.unwrap();
    assert_eq!((&after.plan.hash, after.plan.moves.len() + 1), (&moves.plan.hash, moves.plan.moves.len()));
    assert_eq!((after.overtaken, after.ended), (None, None));
}

#[test]
fn an_approval_is_for_one_time() {
    let mut observed = uneven();
    let mut wanted = wanted();
    let whole = of(&wanted, &observed).plan.moves.unwrap().plan;
    (wanted.rebalance.gate, wanted.rebalance.request) =
        (Gate::Approved(whole.hash.clone()), Some(whole.hash.clone()));
    observed.held = Some(whole.clone());
    let first = whole.moves[0];
    for next in &whole.moves {
        assert_eq!(handled(&wanted, &of(&wanted, &observed)), None, "a part of it is left");
        let placements = &mut catalog(&mut observed).placements;
        placements.iter_mut().find(|at| at.shard_id == next.shard_id).unwrap().group_id = 1;
    }
    // The last is still under way.
    let application = Operation::name_of(first.shard_id, first.from, first.to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    assert_eq!(handled(&wanted, &of(&wanted, &observed)), None);
    catalog(&mut observed).operations.clear();
    assert_eq!(handled(&wanted, &of(&wanted, &observed)), Some(whole.hash.clone()));
    // An operator that was started anew knows it from the status.
    observed.held = None;
    observed.shown = whole.status();
    assert_eq!(handled(&wanted, &of(&wanted, &observed)), Some(whole.hash));
}

#[test]
fn a_rebalance_by_hand_ends_where_nothing_more_can_be_moved() {
    let mut wanted = wanted();
    wanted.rebalance.request = Some("now".to_owned());
    assert_eq!(handled(&wanted, &of(&wanted, &at_rest())), Some("now".to_owned()));
    let mut observed = uneven();
    assert_eq!(handled(&wanted, &of(&wanted, &observed)), None, "there is much to do");
    let bare = || vec!["bare".to_owned()];
    catalog(&mut observed).unfollowable = [(1, bare())].into();
    assert_eq!(handled(&wanted, &of(&wanted, &observed)), None, "the others can be moved");
    catalog(&mut observed).unfollowable = [(1, bare()), (2, bare())].into();
    assert_eq!(handled(&wanted, &of(&wanted, &observed)), Some("now".to_owned()));
    // What passes is waited for.
    let mut observed = uneven();
    let writer = Transaction { pid: 42, name: "psql".to_owned(), seconds: 600 };
    facts(&mut observed, Group::Coordinator).resources.as_mut().unwrap().writers = vec![writer];
    assert_eq!(handled(&wanted, &of(&wanted, &observed)), None);
}

#[test]
fn progress_is_what_the_move_makes_and_not_what_others_write() {
    let wanted = wanted();
    let mut observed = uneven();
    let first = of(&wanted, &observed).held_plan().unwrap().moves[0];
    let application = Operation::name_of(first.shard_id, first.from, first.to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    let (mut watch, start) = (Watch::default(), Instant::now());
    let mut before = None;
    let mut look = |second: u32, source_bytes: i64, target_bytes: i64| {
        let progress = Progress {
            pid: 7,
            shard_id: first.shard_id,
            source_bytes,
            target_bytes,
            source_lsn: None,
            target_lsn: None,
            phase: "Copying Data".to_owned(),
        };
        catalog(&mut observed).progress = vec![progress];
        let now = Timestamp::from_second(second.into()).unwrap();
        let round = of(&wanted, &observed);
        watch.look(round.observed.catalog.as_ref(), start + Duration::from_secs(second.into()));
        let mut now_is = crate::shards::status::status(&wanted, &topology(), &round, before.as_ref(), now);
        if watch.got_on() {
            crate::shards::status::got_on(&mut now_is, now);
        }
        let shown = now_is.rebalance.clone().unwrap();
        assert_eq!(shown.current[0].bytes_total, source_bytes);
        before = Some(now_is);
        shown.last_progress_at.unwrap().0.as_second()
    };
    assert_eq!(look(10, 1000, 0), 10, "it began");
    assert_eq!([look(20, 2000, 0), look(30, 3000, 0)], [10, 10], "only its source grows");
    assert_eq!([look(40, 3000, 500), look(50, 4000, 500)], [40, 40]);
}

#[test]
fn what_citus_cannot_take_away_is_said_and_the_spread_is_even_all_the_same() {
    let mut observed = at_rest();
    catalog(&mut observed).cleanup = vec![crate::shards::observed::Cleanup { group_id: 0, records: 1 }];
    let left = "Citus cannot take away the table public.messages_102008";
    let mut round = of(&wanted(), &observed);
    assert_eq!(round.plan.steps, [Step::CleanUp]);
    let say = |round: &Round| {
        let found = round.findings().into_iter().find(|finding| finding.kind == BALANCED).unwrap();
        (found.holds.as_str(), found.reason, found.message)
    };
    assert_eq!(say(&round).1, "Balanced");
    // When it was tried, until it is tried again, and while others are about it.
    observed.uncleaned = Some(left.to_owned());
    let partly = |error| vec![(Step::CleanUp, error)];
    for (error, put_off) in [
        (act::Error::Left(left.to_owned()), false),
        (act::Error::Left(left.to_owned()), true),
        (act::Error::Kept("of 1 notes".to_owned()), false),
    ] {
        round = of(&wanted(), &observed);
        if put_off {
            round.deferred = vec![(Step::CleanUp, Failure::from(&error))];
        } else {
            round.partly = partly(error);
        }
        let (status, reason, message) = say(&round);
        assert_eq!((status, reason), ("True", "CleanupBlocked"), "{message}");
        assert!(message.ends_with(&format!("; {left}")), "{message}");
        assert!(was_tried(&round, &Step::CleanUp), "not again in this round");
    }
    // Others are about it before anybody knows.
    observed.uncleaned = None;
    round = of(&wanted(), &observed);
    round.partly = partly(act::Error::Kept("of 1 notes".to_owned()));
    assert_eq!(say(&round).1, "Balanced");
}

#[test]
fn what_citus_could_not_take_away_is_said_until_nothing_is_noted() {
    let before = Observed { uncleaned: Some("a table".to_owned()), ..at_rest() };
    let mut now = at_rest();
    catalog(&mut now).cleanup = vec![crate::shards::observed::Cleanup { group_id: 0, records: 1 }];
    now.keep_uncleaned(&before);
    assert_eq!(now.uncleaned, before.uncleaned);
    now.catalog = None;
    now.keep_uncleaned(&before);
    assert_eq!(now.uncleaned, before.uncleaned, "nobody knows");
    now = at_rest();
    now.keep_uncleaned(&before);
    assert_eq!(now.uncleaned, None);
}

#[test]
fn a_server_that_is_silent_and_not_registered_is_not_asked_after_each_step() {
    let mut observed = at_rest();
    let topology = topology();
    assert!(silent(&observed, &topology).is_empty());
    let away = |observed: &mut Observed, group| {
        observed.nodes.insert(group, Node::Down("no answer within 5 s".to_owned()));
    };
    // Of one that is registered is asked whether it has come back: what is done depends on it.
    away(&mut observed, Group::Worker(0));
    assert!(silent(&observed, &topology).is_empty());
    away(&mut observed, Group::Worker(7));
    let expected = BTreeMap::from([(Group::Worker(7), "no answer within 5 s".to_owned())]);
    assert_eq!(silent(&observed, &topology), expected);
    // Without the catalogs nobody knows who is registered, nor while the coordinator is away.
    away(&mut observed, Group::Coordinator);
    assert_eq!(silent(&observed, &topology), expected);
    observed.catalog = None;
    assert!(silent(&observed, &topology).is_empty());
}
