//! What keeps workers that are not asked for any more.

use std::collections::BTreeSet;

use super::moves::two_workers;
use super::{catalog, facts, ranges, topology, wanted};
use crate::condition::SCALE_IN_BLOCKED;
use crate::names::Group;
use crate::shards::act;
use crate::shards::lock::{Holder, Idle};
use crate::shards::observed::{
    Cleanup, End, Foreign, Node, Observed, Operation, Resources, Stall, StallKind, StoredShards,
};
use crate::shards::plan::plan;
use crate::shards::retire::Stay;
use crate::shards::round::tests::of;
use crate::shards::round::{Failure, Round};
use crate::shards::step::Step;

/// What is said of who is to leave.
fn blocked(observed: &Observed) -> (&'static str, &'static str, String) {
    let findings = plan(&wanted(), &topology(), observed).findings;
    let found = findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    (found.holds.as_str(), found.reason, found.message)
}

#[test]
fn what_keeps_every_move_keeps_who_is_to_leave() {
    let observed = two_workers();
    let (holds, reason, message) = blocked(&observed);
    assert_eq!((holds, reason), ("False", "Draining"), "{message}");

    let mut stalled = observed.clone();
    stalled.stalls = vec![Stall {
        pid: 7,
        application: "dialog-operator: move 1024 worker-1>worker-0".to_owned(),
        seconds: 600,
        blocks_writers: false,
        kind: StallKind::Blocked,
        cause: "somebody waits".to_owned(),
        end: Some(End::Cancel),
    }];
    let (holds, reason, message) = blocked(&stalled);
    assert_eq!((holds, reason), ("True", "MoveBlocked"), "{message}");
    assert!(message.contains("worker-1 leave") && message.contains("somebody waits"), "{message}");

    let mut theirs = observed.clone();
    catalog(&mut theirs).foreign = vec![Foreign::Job { id: 3, description: "Rebalance".to_owned() }];
    assert_eq!(blocked(&theirs).1, "OtherRebalance");

    let mut away = observed.clone();
    away.nodes.insert(Group::Worker(0), Node::Down("connection refused".to_owned()));
    let (holds, reason, message) = blocked(&away);
    assert_eq!((holds, reason), ("True", "NodeUnreachable"), "{message}");
    assert!(message.contains("connection refused") && message.contains("no shard moves"), "{message}");

    // An update ends by itself.
    let mut updated = wanted();
    updated.rebalance.hold = true;
    for observed in [observed, away] {
        let findings = plan(&updated, &topology(), &observed).findings;
        let found = findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
        assert_eq!((found.holds.as_str(), found.reason), ("False", "Draining"), "{}", found.message);
        assert!(found.message.contains("updated first"), "{}", found.message);
    }
}

#[test]
fn a_move_that_fails_keeps_who_is_to_leave() {
    let mut observed = two_workers();
    catalog(&mut observed).members[2].should_have_shards = false;
    let mut round = of(&wanted(), &observed);
    let [step @ Step::MoveShard { .. }] = &round.plan.steps[..] else { panic!("{:?}", round.plan.steps) };
    let step = step.clone();
    let say = |round: &Round| {
        let found = round.findings().into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
        (found.holds.as_str(), found.reason)
    };
    assert_eq!(say(&round), ("False", "Draining"));
    let failure = Failure { reason: "StepFailed", message: "permission denied".to_owned() };
    round.deferred = vec![(step, failure)];
    assert_eq!(say(&round), ("True", "StepFailed"));
}

/// An attempt may take longer than the pause after it: who waits for this to last hears of it all the same.
#[test]
fn a_move_that_has_failed_keeps_who_is_to_leave_while_it_is_tried_again() {
    let mut observed = two_workers();
    catalog(&mut observed).members[2].should_have_shards = false;
    let round = of(&wanted(), &observed);
    let [step @ Step::MoveShard { shard_id, from, to }] = &round.plan.steps[..] else {
        panic!("{:?}", round.plan.steps)
    };
    let application = Operation::name_of(*shard_id, *from, *to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    assert_eq!(blocked(&observed).1, "Draining", "it is tried for the first time");
    let failure = Failure { reason: "StepFailed", message: "permission denied".to_owned() };
    observed.failed_moves = vec![(step.clone(), failure.clone())];
    let (holds, reason, message) = blocked(&observed);
    assert_eq!((holds, reason), ("True", "StepFailed"), "{message}");
    assert!(message.contains("worker-1 leave") && message.contains("permission denied"), "{message}");

    // One between those that stay is nothing to them.
    let other = Step::MoveShard { shard_id: *shard_id, from: Group::Worker(0), to: Group::Coordinator };
    observed.failed_moves = vec![(other, failure)];
    assert_eq!(blocked(&observed).1, "Draining");
}

#[test]
fn who_has_no_server_comes_back_with_a_larger_count() {
    let mut observed = two_workers();
    observed.nodes.insert(Group::Worker(1), Node::Down("no such host".to_owned()));
    let (holds, reason, message) = blocked(&observed);
    assert_eq!((holds, reason), ("True", "NodeUnreachable"), "{message}");
    assert!(message.contains("bring it back"), "{message}");
    observed.existing.remove(&Group::Worker(1));
    let (holds, reason, message) = blocked(&observed);
    assert_eq!((holds, reason), ("True", "NodeUnreachable"), "{message}");
    assert!(message.contains("raise spec.workers.count to 2 or more"), "{message}");
    // Where Kubernetes does not say who has a server, it is not said that somebody has none.
    observed.existing = BTreeSet::new();
    assert!(blocked(&observed).2.contains("bring it back"));
}

/// Two workers of which one was told to leave and holds nothing by the catalogs; on its server are so many tables that are
/// named like shards.
fn emptied(count: i64) -> Observed {
    let mut observed = two_workers();
    catalog(&mut observed).placements = [1, 2].into_iter().flat_map(|id| ranges(id, 1, 0..48)).collect();
    catalog(&mut observed).members[2].should_have_shards = false;
    let first = (0..count.min(StoredShards::NAMED)).map(|number| format!("public.messages_10200{number}"));
    let stored_shards = Some(StoredShards { count, first: first.collect() });
    facts(&mut observed, Group::Worker(1)).resources =
        Some(Resources { stored_shards, ..Resources::default() });
    observed
}

#[test]
fn tables_of_which_nobody_has_a_note_keep_who_is_to_leave() {
    let leaves = [Step::RemoveNode { group: Group::Worker(1) }];
    assert_eq!(plan(&wanted(), &topology(), &emptied(0)).steps, leaves);

    let mut observed = emptied(5);
    let stays = plan(&wanted(), &topology(), &observed);
    assert_eq!(stays.steps, []);
    let [wait] = &stays.waits[..] else { panic!("{:?}", stays.waits) };
    assert!(wait.starts_with("worker-1 stays: ") && wait.contains("(5): see"), "{wait}");
    let (holds, reason, message) = blocked(&observed);
    assert_eq!((holds, reason), ("True", "LeftBehind"), "{message}");
    let said = "worker-1 cannot leave: its server stores tables that are named like shards and that Citus has no note of there \
                (5): public.messages_102000; public.messages_102001; public.messages_102002; and 2 more. Look at them";
    assert!(message.starts_with(said) && message.contains("DROP TABLE"), "{message}");

    // What is noted is taken away.
    catalog(&mut observed).cleanup = vec![Cleanup { group_id: 2, records: 5 }];
    assert_eq!(blocked(&observed).1, "Draining");
    assert_eq!(plan(&wanted(), &topology(), &observed).steps, [Step::CleanUp]);
}

#[test]
fn what_a_server_says_that_nobody_has_registered_is_said_unless_it_passes() {
    let mut observed = two_workers();
    catalog(&mut observed).placements = [1, 2].into_iter().flat_map(|id| ranges(id, 1, 0..48)).collect();
    catalog(&mut observed).members.pop();
    assert_eq!(blocked(&observed).1, "Removing");
    let mut say = |reason, message: &str| {
        let stay = Stay { reason, message: message.to_owned() };
        observed.staying = [(Group::Worker(1), stay)].into();
        blocked(&observed)
    };
    let (holds, reason, _) = say(None, "the server that answers is a standby");
    assert_eq!((holds, reason), ("False", "Removing"));
    let (holds, reason, message) = say(Some("NodeUnreachable"), "worker-1 does not answer: bring it back");
    assert_eq!((holds, reason), ("True", "NodeUnreachable"), "{message}");
    assert_eq!(message, "worker-1 stays: worker-1 does not answer: bring it back");
    // Its StatefulSet is deleted.
    observed.existing.remove(&Group::Worker(1));
    assert_eq!(blocked(&observed).1, "NothingToRemove");
}

#[test]
fn what_others_keep_from_leaving_is_said_where_nothing_gets_on() {
    type Change = fn(&mut Observed);
    let mut leaving = two_workers();
    catalog(&mut leaving).members[2].should_have_shards = false;
    let behind: Change = |observed| catalog(observed).members[2].synced = false;
    let other: Change = |observed| {
        facts(observed, Group::Worker(0)).citus.installed = Some("13.1-1".to_owned());
    };
    let cases = [
        (behind, "the catalogs of chat-worker-1.ns.svc:5432 are being brought up to date"),
        (other, "worker-0 is registered and cannot take part"),
    ];
    for (change, part) in cases {
        let mut observed = leaving.clone();
        change(&mut observed);
        let (holds, reason, message) = blocked(&observed);
        assert_eq!((holds, reason), ("True", "Waiting"), "{message}");
        assert!(message.contains("worker-1 leave") && message.contains(part), "{message}");

        // What is under way comes to its end.
        let application = Operation::name_of(1024, Group::Worker(1), Group::Worker(0));
        catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
        assert_eq!(blocked(&observed).1, "Draining");
    }
    // So does an update, and meanwhile nothing is taken away.
    let mut updated = wanted();
    updated.rebalance.hold = true;
    let mut observed = emptied(0);
    catalog(&mut observed).cleanup = vec![Cleanup { group_id: 2, records: 5 }];
    let findings = plan(&updated, &topology(), &observed).findings;
    let found = findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("False", "Draining"), "{}", found.message);
    assert!(found.message.contains("updated first"), "{}", found.message);
}

#[test]
fn a_step_that_comes_first_and_fails_keeps_who_is_to_leave() {
    let mut observed = two_workers();
    catalog(&mut observed).members[2].should_have_shards = true;
    let mut round = of(&wanted(), &observed);
    let say = |round: &Round| {
        let found = round.findings().into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
        (found.holds.as_str(), found.reason, found.message)
    };
    let (holds, reason, message) = say(&round);
    assert_eq!((holds, reason), ("False", "Draining"), "{message}");
    let flag = Step::SetShouldHaveShards { group: Group::Worker(1), value: false };
    assert_eq!(round.plan.steps.first(), Some(&flag));
    let refused = || act::Error::Unreachable("refused".to_owned());
    round.failed = vec![(flag.clone(), refused())];
    let (holds, reason, message) = say(&round);
    assert_eq!((holds, reason), ("True", refused().reason()));
    assert_eq!(message, format!("could not {flag}: refused"));
    // Nobody waits for what stands apart.
    round.failed = vec![(Step::DropStrategy, refused())];
    assert_eq!(say(&round).1, "Draining");
}

#[test]
fn a_topology_lock_that_somebody_has_forgotten_keeps_who_is_to_leave() {
    let mut observed = two_workers();
    let say = |observed: &Observed, idle: Option<i64>| {
        let mut round = of(&wanted(), observed);
        let idle = idle.map(|seconds| Idle { since: "2026-01-05T09:00:00Z".to_owned(), seconds });
        let step = round.plan.steps.first().unwrap().clone();
        let holder = Holder { application: "psql".to_owned(), pid: 7, idle };
        round.held = Some((step.clone(), holder));
        let found = round.findings().into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
        (step, found.holds.as_str(), found.reason, found.message)
    };
    let flag = Step::SetShouldHaveShards { group: Group::Worker(1), value: false };
    for flagged in [false, true] {
        catalog(&mut observed).members[2].should_have_shards = !flagged;
        for (idle, expected) in [(None, "False"), (Some(59), "False"), (Some(60), "True")] {
            let (step, holds, reason, message) = say(&observed, idle);
            assert_eq!(flagged, step != flag, "{step}");
            assert_eq!((holds, reason), (expected, "TopologyLocked"), "{message}");
            assert!(message.starts_with(&format!("waiting to {step}: ")), "{message}");
            assert!(message.contains("held by psql (pid 7"), "{message}");
        }
    }
    // Where nobody leaves it keeps nobody.
    let mut asked = wanted();
    asked.workers = 2;
    let mut round = of(&asked, &observed);
    let holder = Holder {
        application: "psql".to_owned(),
        pid: 7,
        idle: Some(Idle { since: "2026-01-05T09:00:00Z".to_owned(), seconds: 60 }),
    };
    round.held = Some((Step::CreateOwnTables, holder));
    let found = round.findings().into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!(found.reason, "NothingToRemove", "{}", found.message);
    // A move of the operator's own holds it, too, and gets on.
    let mut two = wanted();
    two.rebalance.policy.max_parallel_moves = 2;
    let application = Operation::name_of(1024, Group::Worker(1), Group::Worker(0));
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    let mut round = of(&two, &observed);
    let holder = Holder { application: "dialog-operator: move".to_owned(), pid: 7, idle: None };
    round.held = Some((Step::CreateOwnTables, holder));
    let found = round.findings().into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!(found.reason, "Draining", "{}", found.message);

    // What else is known of who is to leave is worse.
    observed.nodes.insert(Group::Worker(1), Node::Down("connection refused".to_owned()));
    let mut round = of(&wanted(), &observed);
    let holder = Holder { application: "psql".to_owned(), pid: 8, idle: None };
    round.held = Some((Step::CreateOwnTables, holder));
    let found = round.findings().into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("True", "NodeUnreachable"), "{}", found.message);
}
