//! What keeps shards from moving, and what is said of it.

use super::{at_rest, catalog, facts, ranges, topology, wanted};
use crate::condition::{BALANCED, SCALE_IN_BLOCKED};
use crate::names::Group;
use crate::shards::observed::{Change, Observed, Resources, Transaction};
use crate::shards::plan::plan;
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
    let cases: [(Alter, &str, &str); 9] = [
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
            |observed| {
                let writer = Transaction { pid: 0, name: "citus_0_42_7_1".to_owned(), seconds: 600 };
                resources(observed, Group::Coordinator).oldest_writer = Some(writer);
            },
            "LongTransaction",
            "Never COMMIT or ROLLBACK PREPARED it by hand",
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
