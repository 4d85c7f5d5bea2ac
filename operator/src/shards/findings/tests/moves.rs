//! What keeps shards from moving, and what is said of it.

use super::{at_rest, catalog, facts, ranges, topology, wanted};
use crate::condition::{BALANCED, SCALE_IN_BLOCKED};
use crate::names::Group;
use crate::shards::observed::{Change, Node, Observed, Resources, Transaction};
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
    type Alter = fn(&mut Observed);
    let cases: [(Alter, &str, &str); 8] = [
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
            |observed| resources(observed, Group::Coordinator).free_slots = 1,
            "NoReplicationSlot",
            "coordinator has 1",
        ),
        (
            |observed| resources(observed, Group::Coordinator).free_senders = 0,
            "NoWalSender",
            "max_wal_senders",
        ),
        (
            |observed| resources(observed, Group::Worker(0)).free_appliers = 0,
            "NoReplicationWorker",
            "worker-0 has 0",
        ),
        (
            |observed| {
                let writer = Transaction { pid: 42, name: "psql".to_owned(), seconds: 600 };
                resources(observed, Group::Coordinator).oldest_writer = Some(writer);
            },
            "LongTransaction",
            "pg_terminate_backend(42)",
        ),
        (
            |observed| resources(observed, Group::Worker(0)).free_workers = 1,
            "NoBackgroundWorker",
            "max_worker_processes",
        ),
        (
            |observed| {
                let change = |colocation_id| Change {
                    colocation_id,
                    table: "messages".to_owned(),
                    pid: 43,
                    application: "psql".to_owned(),
                };
                catalog(observed).changes = vec![change(1), change(2)];
            },
            "TableChanging",
            "psql (pid 43 on the coordinator) is changing messages",
        ),
    ];
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
        assert_eq!((begin, found.reason), (0, expected), "{}", found.message);
        assert!(found.message.contains(part), "{}", found.message);
    }
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
    // A table that cannot be followed keeps its own colocation group only.
    let (own, other) = if *shard_id < 2000 { (1, 2000..3000) } else { (2, 1000..2000) };
    observed.deferred.clear();
    catalog(&mut observed).unfollowable = [(own, vec!["bare".to_owned()])].into();
    let steps = begin(&observed);
    let [Step::MoveShard { shard_id, .. }] = &steps[..] else { panic!("{steps:?}") };
    assert!(other.contains(shard_id), "{steps:?}");
    let found = plan(&wanted(), &topology(), &observed).findings;
    let found = found.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
    assert_eq!(found.reason, "NoReplicaIdentity", "{}", found.message);
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
fn two_workers() -> Observed {
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
