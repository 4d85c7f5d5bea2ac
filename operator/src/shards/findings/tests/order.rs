//! What waits for something else, and what is said of it.

use std::collections::BTreeSet;

use super::{at_rest, catalog, facts, ranges, table, topology, wanted};
use crate::condition::{BALANCED, SCHEMA_DISTRIBUTED};
use crate::names::Group;
use crate::shards::observed::{Member, Observed, Resources, Spread};
use crate::shards::plan::{Plan, plan};
use crate::shards::rebalance::Move;
use crate::shards::step::Step;

/// The status, reason and message of a condition.
fn said(plan: &Plan, kind: &str) -> (&'static str, &'static str, String) {
    let found = plan.findings.iter().find(|finding| finding.kind == kind).unwrap();
    (found.holds.as_str(), found.reason, found.message.clone())
}

/// The worker is to leave, and has shards that the coordinator is to take.
fn nobody_is_wanted(change: impl FnOnce(&mut Observed)) -> Plan {
    let mut none = wanted();
    none.workers = 0;
    let mut observed = at_rest();
    let nodes = catalog(&mut observed).members.iter_mut();
    nodes.for_each(|member| member.should_have_shards = member.group_id == 0);
    change(&mut observed);
    plan(&none, &topology(), &observed)
}

#[test]
fn shards_are_not_where_they_belong_while_who_leaves_cannot_give_them_away() {
    let plan = nobody_is_wanted(|observed| {
        catalog(observed).members[1].active = false;
        facts(observed, Group::Worker(0)).citus.installed = Some("13.1-1".to_owned());
    });
    assert_eq!(plan.steps, vec![]);
    let (holds, reason, message) = said(&plan, BALANCED);
    assert_eq!((holds, reason), ("False", "Waiting"), "{message}");
    assert!(
        message.contains("288 shards wait on worker-0") && message.contains("another version"),
        "{message}"
    );
}

#[test]
fn no_shard_moves_while_a_reference_table_is_to_be_copied() {
    let mut observed = at_rest();
    // The coordinator's shards belong on the worker.
    catalog(&mut observed).placements = [1, 2].into_iter().flat_map(|id| ranges(id, 0, 0..48)).collect();
    let moves = |plan: &Plan| plan.steps.iter().filter(|step| matches!(step, Step::MoveShard { .. })).count();
    catalog(&mut observed).copies.insert("countries".to_owned(), BTreeSet::from([0, 1]));
    assert_ne!(moves(&plan(&wanted(), &topology(), &observed)), 0, "each node has a copy");

    catalog(&mut observed).copies.insert("countries".to_owned(), BTreeSet::from([0]));
    for put_off in [vec![], vec![Step::ReplicateReferenceTables]] {
        observed.deferred = put_off;
        let plan = plan(&wanted(), &topology(), &observed);
        assert_eq!(plan.steps, vec![Step::ReplicateReferenceTables]);
        let (holds, reason, message) = said(&plan, BALANCED);
        assert_eq!((holds, reason), ("False", "Waiting"), "{message}");
        assert!(message.contains(&Step::ReplicateReferenceTables.to_string()), "{message}");
    }
}

#[test]
fn no_shard_moves_while_a_server_lacks_what_a_node_needs() {
    let mut observed = at_rest();
    catalog(&mut observed).placements = [1, 2].into_iter().flat_map(|id| ranges(id, 0, 0..48)).collect();
    let moves = |plan: &Plan| plan.steps.iter().any(|step| matches!(step, Step::MoveShard { .. }));
    assert!(moves(&plan(&wanted(), &topology(), &observed)));

    // Somebody has dropped the extension: nothing is known of the room there.
    facts(&mut observed, Group::Worker(0)).citus.installed = None;
    let plan = plan(&wanted(), &topology(), &observed);
    let step = Step::CreateExtension { group: Group::Worker(0) };
    assert!(plan.steps.contains(&step) && !moves(&plan), "{:?}", plan.steps);
    let (holds, reason, message) = said(&plan, BALANCED);
    assert_eq!((holds, reason), ("False", "Waiting"), "{message}");
    assert!(message.contains(&step.to_string()), "{message}");
}

#[test]
fn no_shard_moves_while_a_node_that_takes_no_part_in_it_cannot_be_followed() {
    let mut observed = at_rest();
    let (mut two, other) = (wanted(), Group::Worker(1));
    two.workers = 2;
    let endpoint = topology().endpoint(other).unwrap().clone();
    let member = Member { endpoint, node_id: 3, group_id: 2, ..catalog(&mut observed).members[1].clone() };
    catalog(&mut observed).members.push(member);
    catalog(&mut observed).placements = [1, 2].into_iter().flat_map(|id| ranges(id, 0, 0..48)).collect();
    let node = observed.nodes[&Group::Worker(0)].clone();
    observed.nodes.insert(other, node);
    observed.existing.insert(other);
    let targets = |observed: &Observed| -> Vec<Group> {
        let plan = plan(&two, &topology(), observed);
        let moves = plan.moves.unwrap().plan.moves;
        assert_eq!(moves.len(), 96, "all leave the coordinator");
        let begun = |next: &Move| {
            let step = Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to };
            plan.steps.contains(&step)
        };
        moves.into_iter().filter(begun).map(|next| next.to).collect()
    };
    let begun = targets(&observed);
    assert_eq!(begun.len(), 1);
    // Also the moves to the worker that is as it should be.
    facts(&mut observed, other).settings.insert("wal_level".to_owned(), "replica".to_owned());
    assert_eq!(targets(&observed), vec![]);
}

#[test]
fn a_table_beside_another_waits_until_that_is_distributed() {
    let mut observed = at_rest();
    let names: Vec<String> = wanted().tables.into_iter().map(|policy| policy.name).collect();
    for name in &names {
        table(&mut observed, name).spread = Spread::PlainEmpty;
    }
    let plan = plan(&wanted(), &topology(), &observed);
    let tables: Vec<&str> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::DistributeTable(distribution) => Some(distribution.table.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(tables.len(), 2, "one of each colocation group: {tables:?}");
    let (holds, reason, message) = said(&plan, SCHEMA_DISTRIBUTED);
    assert_eq!(holds, "False", "{reason}");
    assert!(names.iter().all(|name| message.contains(name.as_str())), "{message}");
}

#[test]
fn who_cannot_give_its_shards_away_for_lack_of_room_is_waited_for() {
    let plan = nobody_is_wanted(|observed| {
        let shards = [1000, 2000].into_iter().flat_map(|first| first..first + 48);
        facts(observed, Group::Worker(0)).sizes = Some(shards.map(|shard| (shard, 1 << 30)).collect());
        let room = Resources { total_bytes: 100 << 30, ..Default::default() };
        facts(observed, Group::Coordinator).resources = Some(room);
    });
    let (holds, reason, message) = said(&plan, BALANCED);
    assert_eq!((holds, reason), ("False", "NoPlace"), "{message}");
    assert!(plan.waits.iter().any(|wait| wait.contains("finds no room")), "{:?}", plan.waits);
}
