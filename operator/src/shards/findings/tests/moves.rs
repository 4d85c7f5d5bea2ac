//! What keeps shards from moving, and what is said of it.

use super::{at_rest, catalog, facts, ranges, topology, wanted};
use crate::condition::{BALANCED, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED};
use crate::names::Group;
use crate::shards::observed::{
    Change, Node, Observed, Operation, Progress, Resources, StoredShards, Transaction,
};
use crate::shards::plan::plan;
use crate::shards::rebalance::Strategy;
use crate::shards::step::Step;

#[test]
fn a_shrink_is_refused_before_it_begins_when_the_others_have_no_room() {
    let mut none = wanted();
    none.workers = 0;
    let mut observed = at_rest();
    let sizes = (0..48).map(|number| (1000 + number, 1 << 30)).collect();
    facts(&mut observed, Group::Worker(0)).sizes = Some(sizes);
    let room = Resources { free_bytes: 20 << 30, total_bytes: 100 << 30, ..Resources::default() };
    facts(&mut observed, Group::Coordinator).resources = Some(room);
    let plan = plan(&none, &topology(), &observed);
    let flag = Step::SetShouldHaveShards { group: Group::Worker(0), value: false };
    assert!(!plan.steps.contains(&flag), "{:?}", plan.steps);
    let found = plan.findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("True", "NoPlace"), "{}", found.message);
    assert!(found.message.contains("raise spec.workers.count"), "{}", found.message);
}

#[test]
fn what_a_move_needs_is_named_before_it_begins() {
    are_named(&[
        (
            |observed| {
                catalog(observed).unfollowable =
                    [(1, vec!["bare".to_owned()]), (2, vec!["bare".to_owned()])].into();
            },
            "NoReplicaIdentity",
            "cannot follow bare",
        ),
        (
            |observed| {
                let settings = &mut facts(observed, Group::Coordinator).settings;
                settings.insert("wal_level".to_owned(), "replica".to_owned());
            },
            "WalLevel",
            "not logical on coordinator",
        ),
        (
            |observed| {
                let settings = &mut facts(observed, Group::Worker(0)).settings;
                settings.insert("wal_level".to_owned(), "replica".to_owned());
            },
            "WalLevel",
            "not logical on worker-0",
        ),
        (
            |observed| resources(observed, Group::Coordinator).free_slots = 1,
            "NoReplicationSlot",
            "coordinator has 1",
        ),
        (
            |observed| {
                catalog(observed).owners = [(1, 3), (2, 3)].into();
                resources(observed, Group::Coordinator).free_slots = 2;
            },
            "NoReplicationSlot",
            "coordinator has 2 replication slots free and a move needs 3",
        ),
        (
            |observed| resources(observed, Group::Coordinator).free_senders = 0,
            "NoWalSender",
            "pg_stat_replication",
        ),
        (
            |observed| resources(observed, Group::Worker(0)).free_appliers = 0,
            "NoReplicationWorker",
            "worker-0 has 0",
        ),
        (
            |observed| resources(observed, Group::Worker(0)).free_workers = 1,
            "NoBackgroundWorker",
            "worker-0 has 1 background workers",
        ),
    ]);
}

#[test]
fn who_stands_in_the_way_of_a_move_is_named_before_it_begins() {
    are_named(&[
        (
            |observed| {
                let writer = Transaction { pid: 42, name: "psql".to_owned(), seconds: 600 };
                resources(observed, Group::Coordinator).writers = vec![writer];
            },
            "LongTransaction",
            "pg_terminate_backend(42)",
        ),
        (
            |observed| {
                let name = "citus_internal gpid=20000000042".to_owned();
                resources(observed, Group::Coordinator).writers =
                    vec![Transaction { pid: 7, name, seconds: 600 }];
            },
            "LongTransaction",
            "pg_terminate_backend(42) on worker-0",
        ),
        (
            |observed| {
                let name = "citus_0_4711_12_3".to_owned();
                resources(observed, Group::Coordinator).writers =
                    vec![Transaction { pid: 0, name, seconds: 600 }];
            },
            "LongTransaction",
            "Never COMMIT or ROLLBACK PREPARED it by hand",
        ),
        (
            |observed| {
                resources(observed, Group::Coordinator).changes = vec![change(1, None), change(2, None)];
            },
            "TableChanging",
            "psql (pid 43 on coordinator) is changing messages",
        ),
        (
            |observed| {
                // Each shard on the node that it goes to.
                let all = [1, 2].into_iter().flat_map(|colocation_id| ranges(colocation_id, 0, 0..48));
                resources(observed, Group::Worker(0)).changes =
                    all.map(|at| change(at.colocation_id, Some(at.shard_id))).collect();
            },
            "TableChanging",
            "psql (pid 43 on worker-0) is changing messages",
        ),
    ]);
}

/// A change of what is observed, the reason that it has, and a part of the message.
type Case = (fn(&mut Observed), &'static str, &'static str);

/// Makes sure that no move begins after any of these, and that the condition says why.
fn are_named(cases: &[Case]) {
    for (change, expected, part) in cases {
        let mut observed = at_rest();
        // Everything is still on the coordinator.
        catalog(&mut observed).placements =
            [1, 2].into_iter().flat_map(|colocation_id| ranges(colocation_id, 0, 0..48)).collect();
        for group in [Group::Coordinator, Group::Worker(0)] {
            facts(&mut observed, group).resources = Some(enough());
        }
        let moves = |observed: &Observed| {
            let plan = plan(&wanted(), &topology(), observed);
            let begin = plan.steps.iter().filter(|step| matches!(step, Step::MoveShard { .. })).count();
            let found = plan.findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
            (begin, found)
        };
        assert_eq!(moves(&observed).0, 1, "one at a time");
        change(&mut observed);
        let (begin, found) = moves(&observed);
        assert_eq!((begin, found.reason), (0, *expected), "{}", found.message);
        assert!(found.message.contains(part), "{}", found.message);
    }
}

/// A session that changes a table, or a shard.
fn change(colocation_id: i32, shard_id: Option<i64>) -> Change {
    Change { colocation_id, shard_id, table: "messages".to_owned(), pid: 43, application: "psql".to_owned() }
}

#[test]
fn what_cannot_move_does_not_keep_the_rest() {
    let mut observed = at_rest();
    catalog(&mut observed).placements =
        [1, 2].into_iter().flat_map(|colocation_id| ranges(colocation_id, 0, 0..48)).collect();
    for group in [Group::Coordinator, Group::Worker(0)] {
        facts(&mut observed, group).resources = Some(enough());
    }
    let begin = |observed: &Observed| plan(&wanted(), &topology(), observed).steps;
    let first = begin(&observed);
    let [Step::MoveShard { shard_id, .. }] = &first[..] else { panic!("{first:?}") };
    // One that failed is still to be done, after another.
    observed.deferred.clone_from(&first);
    let steps = begin(&observed);
    assert_eq!((steps.len(), &steps[0]), (2, &first[0]), "{steps:?}");
    assert!(matches!(steps[1], Step::MoveShard { .. }));
    // A shard that somebody changes keeps those that move with it only.
    observed.deferred.clear();
    let colocation_id = if *shard_id < 2000 { 1 } else { 2 };
    resources(&mut observed, Group::Worker(0)).changes = vec![change(colocation_id, Some(*shard_id))];
    let steps = begin(&observed);
    assert!(
        matches!(&steps[..], [Step::MoveShard { shard_id: other, .. }] if other != shard_id),
        "{steps:?}"
    );
    resources(&mut observed, Group::Worker(0)).changes.clear();
    // A table that cannot be followed keeps its own colocation group only.
    let (own, other) = if *shard_id < 2000 { (1, 2000..3000) } else { (2, 1000..2000) };
    catalog(&mut observed).unfollowable = [(own, vec!["bare".to_owned()])].into();
    let steps = begin(&observed);
    let [Step::MoveShard { shard_id, .. }] = &steps[..] else { panic!("{steps:?}") };
    assert!(other.contains(shard_id), "{steps:?}");
    let found = plan(&wanted(), &topology(), &observed).findings;
    let found = found.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
    assert_eq!(found.reason, "NoReplicaIdentity", "{}", found.message);
}

#[test]
fn a_move_under_way_is_no_long_transaction() {
    let mut two = wanted();
    (two.rebalance.policy.max_parallel_moves, two.rebalance.policy.moves_per_node) = (2, 2);
    let mut observed = at_rest();
    catalog(&mut observed).placements =
        [1, 2].into_iter().flat_map(|colocation_id| ranges(colocation_id, 0, 0..48)).collect();
    let application = Operation::name_of(1000, Group::Coordinator, Group::Worker(0));
    catalog(&mut observed).operations = vec![Operation { pid: 41, application }];
    let name = "citus_internal gpid=10000000041".to_owned();
    for group in [Group::Coordinator, Group::Worker(0)] {
        facts(&mut observed, group).resources = Some(enough());
    }
    resources(&mut observed, Group::Coordinator).writers = vec![Transaction { pid: 7, name, seconds: 600 }];
    let begin = |observed: &Observed| plan(&two, &topology(), observed).steps.len();
    assert_eq!(begin(&observed), 1, "beside the one under way");
    // Another's is not hidden behind it.
    let other = Transaction { pid: 8, name: "psql".to_owned(), seconds: 599 };
    resources(&mut observed, Group::Coordinator).writers.push(other);
    assert_eq!(begin(&observed), 0);
}

#[test]
fn what_has_arrived_needs_no_room_any_more() {
    let mut one = wanted();
    one.rebalance.policy.max_parallel_moves = 1;
    let mut observed = at_rest();
    catalog(&mut observed).placements = ranges(1, 0, 0..2).collect();
    facts(&mut observed, Group::Coordinator).sizes = Some([(1000, 14 << 30), (1001, 14 << 30)].into());
    facts(&mut observed, Group::Worker(0)).sizes = Some([].into());
    for group in [Group::Coordinator, Group::Worker(0)] {
        facts(&mut observed, group).resources = Some(enough());
    }
    let room = |free: i64| Resources { free_bytes: free << 30, total_bytes: 100 << 30, ..enough() };
    facts(&mut observed, Group::Worker(0)).resources = Some(room(40));
    let held = plan(&one, &topology(), &observed).moves.unwrap().plan;
    assert_eq!(held.moves.len(), 2);
    // 13 of the 14 GiB of the first are there, and 27 are free.
    let application = Operation::name_of(held.moves[0].shard_id, Group::Coordinator, Group::Worker(0));
    facts(&mut observed, Group::Worker(0)).resources = Some(room(27));
    catalog(&mut observed).operations = vec![Operation { pid: 41, application }];
    catalog(&mut observed).progress = vec![Progress {
        pid: 41,
        shard_id: held.moves[0].shard_id,
        source_bytes: 14 << 30,
        target_bytes: 13 << 30,
        source_lsn: None,
        target_lsn: None,
        phase: "Copying Data".to_owned(),
    }];
    observed.held = Some(held.clone());
    let moves = plan(&one, &topology(), &observed).moves.unwrap();
    let left: Vec<i64> = moves.plan.moves.iter().map(|next| next.shard_id).collect();
    assert_eq!((moves.overtaken, left), (None, vec![held.moves[1].shard_id]));
}

#[test]
fn who_is_asked_to_leave_after_others_is_refused_as_well() {
    let mut observed = two_workers();
    catalog(&mut observed).members[2].should_have_shards = false;
    let room = Resources { free_bytes: 20 << 30, total_bytes: 100 << 30, ..enough() };
    for group in [Group::Coordinator, Group::Worker(0)] {
        facts(&mut observed, group).resources = Some(room.clone());
    }
    // worker-1 was told to leave when there were to be one; now nobody is to stay.
    let mut none = wanted();
    none.workers = 0;
    let plan = plan(&none, &topology(), &observed);
    let flag = Step::SetShouldHaveShards { group: Group::Worker(0), value: false };
    assert!(!plan.steps.contains(&flag), "{:?}", plan.steps);
    let found = plan.findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("True", "NoPlace"), "{}", found.message);
}

#[test]
fn a_table_that_nothing_moves_keeps_its_own_worker_only() {
    let mut three = two_workers();
    let worker = facts(&mut three, Group::Worker(1)).clone();
    three.nodes.insert(Group::Worker(2), Node::Up(Box::new(worker)));
    facts(&mut three, Group::Worker(2)).sizes = Some([].into());
    facts(&mut three, Group::Worker(2)).resources.as_mut().unwrap().stored_shards =
        Some(StoredShards::default());
    three.existing.insert(Group::Worker(2));
    let mut last = catalog(&mut three).members[2].clone();
    (last.group_id, last.node_id, last.should_have_shards) = (3, 4, false);
    last.endpoint = topology().endpoint(Group::Worker(2)).unwrap().clone();
    catalog(&mut three).members.push(last);
    catalog(&mut three).members[2].should_have_shards = false;
    let plan = |observed: &Observed| plan(&wanted(), &topology(), observed);
    // Both leave; the one that is empty goes first.
    assert_eq!(plan(&three).steps[0], Step::RemoveNode { group: Group::Worker(2) });
    catalog(&mut three).immovable = [(3, vec!["notes".to_owned()])].into();
    let plan = plan(&three);
    assert!(matches!(plan.steps[..], [Step::MoveShard { from: Group::Worker(1), .. }]), "{:?}", plan.steps);
    let found = plan.findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("True", "TableNotMovable"), "{}", found.message);
    assert!(
        found.message.contains("worker-2 has tables") && found.message.contains("notes"),
        "{}",
        found.message
    );
}

#[test]
fn who_may_hold_something_is_not_said_to_be_empty() {
    let mut observed = two_workers();
    // Somebody has deleted the row of a worker that is not asked for any more.
    catalog(&mut observed).members.pop();
    let plan = plan(&wanted(), &topology(), &observed);
    let found = plan.findings.into_iter().find(|finding| finding.kind == SCALE_IN_BLOCKED).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("True", "NotRegistered"), "{}", found.message);
    assert!(found.message.contains("worker-1") && found.message.contains("144 shards"), "{}", found.message);
}

#[test]
fn no_move_begins_while_an_update_waits_for_those_under_way() {
    let mut observed = at_rest();
    catalog(&mut observed).placements = ranges(1, 0, 0..2).collect();
    for group in [Group::Coordinator, Group::Worker(0)] {
        facts(&mut observed, group).resources = Some(enough());
    }
    let mut wanted = wanted();
    assert!(matches!(plan(&wanted, &topology(), &observed).steps[..], [Step::MoveShard { .. }]));
    wanted.rebalance.hold = true;
    let plan = plan(&wanted, &topology(), &observed);
    assert_eq!(plan.steps, vec![]);
    let found = plan.findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
    assert!(found.reason == "Waiting" && found.message.contains("updated first"), "{}", found.message);
}

#[test]
fn tables_stay_distributed_while_a_shard_is_split() {
    let distributed = |application: &str| {
        let mut observed = at_rest();
        let operation = Operation { pid: 42, application: application.to_owned() };
        catalog(&mut observed).operations.push(operation);
        let findings = plan(&wanted(), &topology(), &observed).findings;
        findings.into_iter().find(|finding| finding.kind == SCHEMA_DISTRIBUTED).unwrap().reason
    };
    assert_eq!(distributed("dialog-operator: split 102008 worker-0"), "Distributed");
    assert_eq!(distributed("dialog-operator: distribute messages"), "Distributing");
}

#[test]
fn who_was_away_for_a_moment_is_not_empty() {
    let mut two = wanted();
    two.workers = 2;
    two.rebalance.policy.strategy = Strategy::BySize;
    let mut before = two_workers();
    let fresh = |observed: &Observed| {
        // The second look after the failover: nobody is asked for sizes.
        let mut next = observed.clone();
        next.away.clear();
        for group in [Group::Coordinator, Group::Worker(0), Group::Worker(1)] {
            facts(&mut next, group).sizes = None;
        }
        next
    };
    assert_eq!(plan(&two, &topology(), &before).steps, vec![], "it is even");
    let mut down = fresh(&before);
    down.nodes.insert(Group::Worker(1), Node::Down("connection refused".to_owned()));
    down.keep_sizes(&before);
    let mut back = fresh(&before);
    back.keep_sizes(&down);
    assert_eq!(back.sizes(), before.sizes());
    assert_eq!(plan(&two, &topology(), &back).steps, vec![]);

    // A plan that was made before is not judged by sizes that nobody knows, and nothing of it begins.
    catalog(&mut before).placements =
        [1, 2].into_iter().flat_map(|id| ranges(id, 1, 0..40).chain(ranges(id, 2, 40..48))).collect();
    let held = plan(&two, &topology(), &before).moves.unwrap().plan;
    assert_ne!(held.moves, []);
    let mut unknown = fresh(&before);
    unknown.held = Some(held.clone());
    let plan = plan(&two, &topology(), &unknown);
    assert_eq!((plan.steps, plan.moves.unwrap().plan.hash), (vec![], held.hash));
    let found = plan.findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
    assert_eq!((found.holds.as_str(), found.reason), ("Unknown", "NotMeasured"), "{}", found.message);
}

/// Two workers that hold the same, 4 GiB in each shard group.
pub(super) fn two_workers() -> Observed {
    let mut observed = at_rest();
    let worker = facts(&mut observed, Group::Worker(0)).clone();
    observed.nodes.insert(Group::Worker(1), Node::Up(Box::new(worker)));
    observed.existing.insert(Group::Worker(1));
    let catalog = catalog(&mut observed);
    let mut second = catalog.members[1].clone();
    (second.group_id, second.node_id) = (2, 3);
    second.endpoint = topology().endpoint(Group::Worker(1)).unwrap().clone();
    catalog.members.push(second);
    catalog.placements =
        [1, 2].into_iter().flat_map(|id| ranges(id, 1, 0..24).chain(ranges(id, 2, 24..48))).collect();
    let placements = catalog.placements.clone();
    for (group, group_id) in [(Group::Coordinator, 0), (Group::Worker(0), 1), (Group::Worker(1), 2)] {
        let here = placements.iter().filter(|at| at.group_id == group_id);
        facts(&mut observed, group).sizes = Some(here.map(|at| (at.shard_id, 4 << 30)).collect());
        facts(&mut observed, group).resources = Some(enough());
    }
    observed
}

/// What many moves need.
fn enough() -> Resources {
    Resources {
        free_bytes: 1 << 40,
        total_bytes: 1 << 40,
        free_slots: 9,
        free_senders: 9,
        free_appliers: 9,
        free_workers: 9,
        ..Resources::default()
    }
}

fn resources(observed: &mut Observed, group: Group) -> &mut Resources {
    facts(observed, group).resources.as_mut().unwrap()
}

#[test]
fn nothing_is_moved_for_a_load_that_nobody_knows() {
    let mut wanted = wanted();
    wanted.rebalance.policy.strategy = Strategy::ByLoad;
    let balanced = |observed: &Observed| {
        let plan = plan(&wanted, &topology(), observed);
        let found = plan.findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
        (plan.steps, found.holds.as_str(), found.reason, found.message)
    };
    let (steps, holds, reason, message) = balanced(&at_rest());
    assert_eq!((steps, holds, reason), (vec![], "Unknown", "LoadNotMeasured"), "{message}");
    assert!(message.contains(": 96;"), "{message}");

    // Who has to leave does not wait for that.
    let mut leaving = at_rest();
    catalog(&mut leaving).placements =
        [1, 2].into_iter().flat_map(|colocation_id| ranges(colocation_id, 0, 0..48)).collect();
    for group in [Group::Coordinator, Group::Worker(0)] {
        facts(&mut leaving, group).resources = Some(enough());
    }
    let (steps, _, reason, message) = balanced(&leaving);
    assert!(matches!(steps[..], [Step::MoveShard { .. }]), "{steps:?}");
    assert_eq!(reason, "Moving", "{message}");
}
