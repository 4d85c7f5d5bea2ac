//! What keeps reference tables from being copied to a worker, and with that everything else.

use std::collections::BTreeSet;

use super::moves::two_workers;
use super::{catalog, facts, table, topology, wanted};
use crate::condition::{BALANCED, Finding, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED};
use crate::names::Group;
use crate::shards::observed::{End, Observed, Operation, Spread, Stall, StallKind, Transaction};
use crate::shards::plan::{Plan, plan};
use crate::shards::step::Step;
use crate::shards::wanted::Wanted;

const APPLICATION: &str = "dialog-operator: copy the reference tables to every node";

/// Two workers with shards; the second lacks a reference table.
fn without_a_copy() -> Observed {
    let mut observed = two_workers();
    catalog(&mut observed).copies = [("public.countries".to_owned(), BTreeSet::from([0, 1]))].into();
    observed
}

fn two() -> Wanted {
    Wanted { workers: 2, ..wanted() }
}

fn say(plan: &Plan, kind: &str) -> (&'static str, &'static str, String) {
    let found = plan.findings.iter().find(|finding| finding.kind == kind);
    let Finding { holds, reason, message, .. } = found.unwrap().clone();
    (holds.as_str(), reason, message)
}

#[test]
fn a_copy_that_does_not_get_on_is_named_wherever_it_is_waited_for() {
    let mut observed = without_a_copy();
    catalog(&mut observed).operations = vec![Operation { pid: 7, application: APPLICATION.to_owned() }];
    let running = plan(&wanted(), &topology(), &observed);
    let (holds, reason, message) = say(&running, SCALE_IN_BLOCKED);
    assert_eq!((holds, reason), ("False", "Draining"), "it may end by itself");
    assert!(message.contains(APPLICATION) && message.contains("(pid 7 on the coordinator)"), "{message}");

    observed.stalls = vec![Stall {
        pid: 7,
        application: APPLICATION.to_owned(),
        seconds: 600,
        blocks_writers: false,
        kind: StallKind::Blocked,
        cause: "somebody is there".to_owned(),
        end: Some(End::Cancel),
    }];
    let stalled = plan(&wanted(), &topology(), &observed);
    let cancel = Step::CancelMove { pid: 7, application: APPLICATION.to_owned(), end: End::Cancel };
    assert_eq!(stalled.steps, [cancel]);
    for (kind, expected) in [(SCHEMA_DISTRIBUTED, "False"), (BALANCED, "False"), (SCALE_IN_BLOCKED, "True")] {
        let (holds, reason, message) = say(&stalled, kind);
        assert_eq!((holds, reason), (expected, "CopyBlocked"), "{kind}: {message}");
        assert!(message.contains("no progress for 600 s: somebody is there"), "{kind}: {message}");
    }
}

#[test]
fn what_a_copy_would_wait_for_is_named_and_the_copy_not_begun() {
    let begins = |observed: &Observed| {
        plan(&two(), &topology(), observed).steps.contains(&Step::ReplicateReferenceTables)
    };
    assert!(begins(&without_a_copy()));
    let writer = |group: Group, seconds: i64| {
        let mut observed = without_a_copy();
        let resources = facts(&mut observed, group).resources.as_mut().unwrap();
        resources.writers = vec![Transaction { pid: 9, name: "psql".to_owned(), seconds }];
        observed
    };
    assert!(begins(&writer(Group::Coordinator, 60)), "it will end");
    assert!(begins(&writer(Group::Worker(0), 600)), "the copy comes from the coordinator");
    let mut slots = without_a_copy();
    facts(&mut slots, Group::Coordinator).resources.as_mut().unwrap().free_slots = 0;
    let mut appliers = without_a_copy();
    facts(&mut appliers, Group::Worker(1)).resources.as_mut().unwrap().free_appliers = 0;
    let mut bare = without_a_copy();
    catalog(&mut bare).uncopyable = BTreeSet::from(["public.countries".to_owned()]);
    let cases = [
        (writer(Group::Coordinator, 61), "LongTransaction", "psql (pid 9) on coordinator"),
        (slots, "NoReplicationSlot", "coordinator has 0"),
        (appliers, "NoReplicationWorker", "worker-1 has 0"),
        (bare, "NoReplicaIdentity", "public.countries"),
    ];
    for (mut observed, expected, part) in cases {
        assert!(!begins(&observed), "{expected}");
        let kept = plan(&two(), &topology(), &observed);
        let (holds, reason, message) = say(&kept, SCHEMA_DISTRIBUTED);
        assert_eq!((holds, reason), ("False", expected), "{message}");
        assert!(message.contains(part), "{message}");
        // Citus would begin any move, and any other table, with the copies.
        let begun =
            |step: &&Step| matches!(step, Step::MoveShard { .. }) || step.condition() == SCHEMA_DISTRIBUTED;
        assert_eq!(kept.steps.iter().find(begun), None);
        let drained = plan(&wanted(), &topology(), &observed);
        let (holds, reason, message) = say(&drained, SCALE_IN_BLOCKED);
        assert_eq!((holds, reason), ("True", expected), "{message}");
        // Once it has begun, others may come and go.
        catalog(&mut observed).operations = vec![Operation { pid: 7, application: APPLICATION.to_owned() }];
        assert_eq!(say(&plan(&two(), &topology(), &observed), SCHEMA_DISTRIBUTED).1, "Distributing");
    }
}

#[test]
fn a_table_without_a_key_becomes_no_reference_table() {
    let mut wanted = two();
    let policy = wanted.tables.iter_mut().find(|policy| policy.name == "dialogs").unwrap();
    (policy.kind, policy.column, policy.group) = (crate::api::TableKind::Reference, None, None);
    let mut observed = two_workers();
    table(&mut observed, "dialogs").spread = Spread::PlainEmpty;
    let create = Step::CreateReferenceTable { table: "dialogs".to_owned(), holds_rows: false };
    assert!(plan(&wanted, &topology(), &observed).steps.contains(&create));
    table(&mut observed, "dialogs").replica_identity = false;
    let refused = plan(&wanted, &topology(), &observed);
    assert!(!refused.steps.contains(&create));
    let (_, reason, message) = say(&refused, SCHEMA_DISTRIBUTED);
    assert_eq!(reason, "NoReplicaIdentity");
    assert!(message.contains("dialogs: it has no primary key"), "{message}");
}

#[test]
fn rows_are_not_copied_while_an_old_transaction_is_open_beside_them() {
    let mut observed = two_workers();
    table(&mut observed, "dialogs").spread = Spread::PlainWithRows;
    let begins = |observed: &Observed| {
        let planned = plan(&two(), &topology(), observed);
        let begins = planned.steps.iter().any(|step| matches!(step, Step::DistributeConcurrently(_)));
        (begins, say(&planned, SCHEMA_DISTRIBUTED).1)
    };
    assert_eq!(begins(&observed), (true, "Distributing"));
    let resources = facts(&mut observed, Group::Coordinator).resources.as_mut().unwrap();
    resources.writers = vec![Transaction { pid: 9, name: "psql".to_owned(), seconds: 61 }];
    assert_eq!(begins(&observed), (false, "LongTransaction"));
}
