use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::*;
use crate::api::{DialogClusterStatus, IsolatedTenant};
use crate::condition::{BALANCED, HOT_TENANT};
use crate::heat::NodeLoad;
use crate::pg::Endpoint;
use crate::shards::findings::tests::{at_rest, catalog, facts, ranges, topology};
use crate::shards::heat::actions::{Kept, KeptPin};
use crate::shards::heat::{ENOUGH, Heat};
use crate::shards::observed::{
    End, Foreign, Member, Node, Observed, Operation, Placement, Resources, RunningSplit, Stall, StallKind,
};
use crate::shards::plan::{Plan, plan};
use crate::shards::rebalance::HashRange;
use crate::shards::status::isolated;
use crate::shards::strategy::{NAME, Seen, Strategy};
use crate::shards::wanted::{Gate, Rebalance, Wanted};

mod decided;
mod pins;

const TENANT: Tenant = Tenant { colocation_id: 1, hash: 4750 };

fn wanted(workers: u32) -> Wanted {
    let spec = json!({"workers": {"count": workers}, "sharding": {"hotTenants": {"mode": "Isolate"}}});
    Wanted::from(&serde_json::from_value(spec).unwrap())
}

/// Three workers, with sixteen shard groups of two colocation groups each.
fn observed() -> Observed {
    let mut observed = at_rest();
    let worker = observed.nodes[&Group::Worker(0)].clone();
    for number in 1..3_u32 {
        let group = Group::Worker(number);
        observed.nodes.insert(group, worker.clone());
        observed.existing.insert(group);
        let group_id = i32::try_from(number).unwrap() + 1;
        let endpoint = topology().endpoint(group).unwrap().clone();
        let first = catalog(&mut observed).members[1].clone();
        catalog(&mut observed).members.push(Member { endpoint, group_id, node_id: group_id + 1, ..first });
    }
    let own = Strategy::new(&wanted(3).rebalance.policy, Vec::new()).description();
    catalog(&mut observed).strategies = Seen { default: Some(NAME.to_owned()), own: Some(own) };
    let spread = |id| (0..3).flat_map(move |node| ranges(id, node + 1, node * 16..node * 16 + 16));
    catalog(&mut observed).placements = [1, 2].into_iter().flat_map(spread).collect();
    let enough = Resources {
        free_bytes: 1 << 40,
        total_bytes: 1 << 40,
        free_slots: 9,
        free_senders: 9,
        free_appliers: 9,
        free_workers: 9,
        ..Resources::default()
    };
    for group in (0..3).map(Group::Worker).chain([Group::Coordinator]) {
        facts(&mut observed, group).resources = Some(enough.clone());
    }
    observed
}

fn act(action: Action) -> Act {
    Act {
        id: 5,
        decided: "2026-01-05T09:00:00Z".parse().unwrap(),
        begun: None,
        ended: None,
        action,
        tenant: None,
        asked_by: "policy".to_owned(),
        why: "it is hot".to_owned(),
        attempts: 0,
        outcome: None,
        note: None,
        before: None,
        after: None,
    }
}

/// The dialog is on worker-2; it is to go to worker-0, and the rest of its shard to worker-1.
fn isolation(hash: i32) -> Act {
    let tenant = Tenant { hash, ..TENANT };
    act(Action::Isolate {
        tenant,
        from: Group::Worker(2),
        to: Group::Worker(0),
        rest: Some(Group::Worker(1)),
    })
}

fn planned(observed: &Observed, workers: u32) -> Plan {
    plan(&wanted(workers), &topology(), observed)
}

fn with(acts: Vec<Act>) -> Observed {
    Observed { kept: Kept { acts, ..Kept::default() }, ..observed() }
}

/// The split of the shard that the tenant is in.
fn running_split() -> RunningSplit {
    RunningSplit {
        pid: 7,
        application: format!("dialog-operator: {}1047 worker-2", Split::PURPOSE),
        shard_id: 1047,
        from: Group::Worker(2),
        since: "2026-01-05T09:00:01Z".parse().unwrap(),
        nodes: vec![Group::Worker(2)],
        phase: "Copying Data",
        progress: Vec::new(),
        errors: 0,
        waits: false,
        blocking: false,
    }
}

/// Puts the tenant's hash alone on a node, as a split leaves it.
fn cut_out(observed: &mut Observed, group_id: i32) {
    let placements = &mut catalog(observed).placements;
    let whole =
        placements.iter().position(|at| at.colocation_id == 1 && at.range.contains(TENANT.hash)).unwrap();
    let whole = placements.remove(whole);
    let part = |shard_id, min, max, group_id| Placement {
        shard_id,
        range: HashRange { min, max },
        group_id,
        ..whole.clone()
    };
    let HashRange { min, max } = whole.range;
    placements.extend([
        part(3000, min, TENANT.hash - 1, 2),
        part(3001, TENANT.hash, TENANT.hash, group_id),
        part(3002, TENANT.hash + 1, max, 2),
    ]);
    for group in (0..3).map(Group::Worker) {
        facts(observed, group).sizes.as_mut().unwrap().extend([(3000, 0), (3001, 0), (3002, 0)]);
    }
}

fn pin(node: Group) -> KeptPin {
    KeptPin {
        tenant: TENANT,
        endpoint: topology().endpoint(node).unwrap().clone(),
        author: Author::Policy,
        key: Some("seven".to_owned()),
        since: "2026-01-05T09:00:00Z".parse().unwrap(),
    }
}

/// The steps, and what the condition says.
fn steps(observed: &Observed, wanted: &Wanted) -> (Vec<Step>, &'static str) {
    let plan = plan(wanted, &topology(), observed);
    let finding = plan.findings.iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
    (plan.steps, finding.reason)
}

#[test]
fn a_shard_is_cut_around_the_hash_wherever_it_is() {
    let (to, rest) = (Group::Worker(0), Group::Worker(1));
    for (hash, points, nodes) in [
        (4750, vec![4749, 4750], vec![rest, to, rest]),
        (4700, vec![4700], vec![to, rest]),
        (4799, vec![4798], vec![rest, to]),
    ] {
        let plan = planned(&with(vec![isolation(hash)]), 3);
        let expected =
            Split { action: 5, shard_id: 1047, from: Group::Worker(2), points, nodes, blocking: true };
        assert_eq!(plan.steps, [Step::SplitShard(expected)], "{hash}: {:?}", plan.waits);
        let finding = plan.findings.iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
        assert_eq!(finding.reason, "Acting");
    }
}

#[test]
fn a_shard_of_two_hashes_is_cut_once() {
    let mut observed = with(vec![isolation(4750)]);
    for at in catalog(&mut observed).placements.iter_mut().filter(|at| at.shard_id == 1047) {
        at.range = HashRange { min: 4750, max: 4751 };
    }
    let Step::SplitShard(split) = &planned(&observed, 3).steps[0] else { panic!("nothing is split") };
    assert_eq!(
        (split.points.as_slice(), split.nodes.as_slice()),
        (&[4750][..], &[Group::Worker(0), Group::Worker(1)][..])
    );
}

/// Two workers share what the third has to do, and every shard group was seen for long enough: `heavy` have as much to do as
/// all others together.
fn loaded(act: Act, heavy: &[i64]) -> Observed {
    let mut observed = with(vec![act]);
    let groups: serde_json::Map<String, serde_json::Value> = catalog(&mut observed)
        .placements
        .iter()
        .map(|at| {
            let average = if heavy.contains(&at.shard_id) { 400_000 } else { 5_000 };
            let node = format!("worker-{}", at.group_id - 1);
            (
                at.shard_id.to_string(),
                json!({"node": node, "average": average, "periods": 10, "here": ENOUGH}),
            )
        })
        .collect();
    let loads = json!({"ofCpu": true, "capacity": 3_000_000, "groups": groups});
    observed.heat = Some(Heat { loads: serde_json::from_value(loads).unwrap(), ..Heat::default() });
    observed
}

#[test]
fn load_is_spread_when_the_moves_for_it_were_made() {
    let spec = |mode: &str, strategy: &str| {
        let sharding = json!({"hotTenants": {"mode": mode}, "rebalance": {"strategy": strategy}});
        let spec = json!({"workers": {"count": 3}, "sharding": sharding});
        Wanted::from(&serde_json::from_value(spec).unwrap())
    };
    let by_load = spec("Isolate", "ByLoad");
    let closed = Gate::Closed { reason: "OutsideWindow", message: "it opens at night".to_owned() };
    let held =
        Wanted { rebalance: Rebalance { gate: closed, ..by_load.rebalance.clone() }, ..by_load.clone() };
    let open = act(Action::Spread { from: Group::Worker(0), to: Group::Worker(1) });
    let mut busy = loaded(open.clone(), &[1000, 1001, 1002, 1003]);
    let even = loaded(open, &[]);
    let own = Strategy::new(&by_load.rebalance.policy, Vec::new()).description();
    catalog(&mut busy).strategies.own = Some(own);
    let planned = |observed: &Observed, wanted: &Wanted| {
        let steps = plan(wanted, &topology(), observed).steps;
        let moves = steps.iter().any(|step| matches!(step, Step::MoveShard { .. }));
        let ended = steps.into_iter().find_map(|step| match step {
            Step::EndAction { outcome, note, .. } => Some((outcome, note.unwrap_or_default())),
            _ => None,
        });
        (moves, ended)
    };
    let relief = |observed: &Observed, wanted: &Wanted| {
        super::relief(&World { wanted, topology: &topology(), observed })
    };
    assert_eq!(planned(&busy, &by_load), (true, None), "it is not done before anything has moved");
    assert_eq!(relief(&busy, &by_load), Relief::Ready);

    let mut moved = busy.clone();
    catalog(&mut moved).placements.iter_mut().find(|at| at.shard_id == 1000).unwrap().group_id = 2;
    assert_eq!(planned(&moved, &by_load).1, Some((Outcome::Done, String::new())));
    assert_eq!(relief(&moved, &by_load), Relief::Unmeasured);

    for (observed, wanted, why) in [
        (&even, &by_load, "no move is worth it"),
        (&busy, &held, "may not be made any more"),
        (&busy, &spec("Isolate", "BySize"), "not ByLoad any more"),
        (&busy, &spec("Observe", "ByLoad"), "not Isolate any more"),
    ] {
        let (_, ended) = planned(observed, wanted);
        let (outcome, note) = ended.unwrap();
        assert!(outcome == Outcome::Dropped && note.contains(why), "{outcome:?}: {note}");
    }
    assert_eq!((relief(&even, &by_load), relief(&busy, &held)), (Relief::Useless, Relief::Held));

    // A hot tenant does not wait for all of them.
    busy.heat.as_mut().unwrap().urgent = true;
    let first = Some((Outcome::Dropped, "a tenant is hot, and comes first".to_owned()));
    assert_eq!(planned(&busy, &by_load), (false, first));
}

#[test]
fn a_split_is_done_where_its_own_tables_end_at_its_hash() {
    let split = |colocation_id| {
        let (from, to) = (Group::Worker(2), [Group::Worker(0), Group::Worker(1)]);
        act(Action::Split { colocation_id, shard_id: 9999, from, at: TENANT.hash - 1, to })
    };
    // Of the first colocation group a shard group ends there, of the second none.
    for (colocation_id, expected) in [(1, Outcome::Done), (2, Outcome::Dropped)] {
        let mut observed = with(vec![split(colocation_id)]);
        cut_out(&mut observed, 3);
        let steps = planned(&observed, 3).steps;
        let ended = steps.iter().find_map(|step| match step {
            Step::EndAction { outcome, .. } => Some(*outcome),
            _ => None,
        });
        assert_eq!(ended, Some(expected), "colocation group {colocation_id}: {steps:?}");
    }
}

#[test]
fn what_is_split_for_its_size_is_begun_in_a_window_and_asks_for_no_other_word() {
    let to = [Group::Worker(0), Group::Worker(1)];
    let split = act(Action::Split { colocation_id: 1, shard_id: 1047, from: Group::Worker(2), at: 4749, to });
    let planned = |act: Act, reason: &'static str| {
        let gate = Gate::Closed { reason, message: "later".to_owned() };
        let wanted = Wanted { rebalance: Rebalance { gate, ..wanted(3).rebalance }, ..wanted(3) };
        let steps = plan(&wanted, &topology(), &with(vec![act])).steps;
        steps.iter().map(Step::kind).collect::<Vec<_>>()
    };
    assert_eq!(planned(split.clone(), "OutsideWindow"), ["EndAction"]);
    assert_eq!(planned(split.clone(), "WindowInvalid"), ["EndAction"]);
    assert_eq!(planned(split, "PlanAvailable"), ["SplitShard"]);
    assert_eq!(planned(isolation(4750), "OutsideWindow"), ["SplitShard"]);
}

#[test]
fn a_split_for_size_that_is_not_under_way_makes_way_for_a_hot_tenant() {
    let to = [Group::Worker(0), Group::Worker(1)];
    let split = Action::Split { colocation_id: 1, shard_id: 1047, from: Group::Worker(2), at: 4749, to };
    let first = Step::EndAction { id: 5, outcome: Outcome::Dropped, note: Some(URGENT.to_owned()) };
    let ends = |observed: &Observed| planned(observed, 3).steps.contains(&first);
    let urgent = |act: Act| {
        let mut observed = with(vec![act]);
        facts(&mut observed, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 24 << 30);
        observed.heat = Some(Heat { urgent: true, ..Heat::default() });
        observed
    };
    // It needs a slot that is not there, or its last attempt has failed.
    let mut waiting = urgent(act(split));
    facts(&mut waiting, Group::Worker(2)).resources.as_mut().unwrap().free_slots = 0;
    let failed = urgent(Act { attempts: 1, note: Some("no answer".to_owned()), ..act(split) });
    assert!(ends(&waiting) && ends(&failed));
    waiting.heat = None;
    assert!(!ends(&waiting));
    let mut running = failed;
    catalog(&mut running).splits = vec![running_split()];
    assert!(!ends(&running), "it is being made");
    // What is asked for a tenant's sake does not make way.
    assert!(!ends(&urgent(isolation(TENANT.hash))));
}

#[test]
fn what_is_large_is_cut_while_people_write_and_never_with_a_part_on_its_node() {
    let mut observed = with(vec![isolation(4750)]);
    facts(&mut observed, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 1 << 30);
    let Step::SplitShard(split) = &planned(&observed, 3).steps[0] else { panic!("nothing is split") };
    assert!(!split.blocking && !split.nodes.contains(&split.from));
    // It needs what moves need.
    facts(&mut observed, Group::Worker(2)).resources.as_mut().unwrap().free_slots = 0;
    let plan = planned(&observed, 3);
    assert!(plan.steps.is_empty() && plan.waits[0].contains("replication slots"), "{plan:?}");
    // Its rest has no place but its own node: then it stays whole.
    observed.kept.acts = vec![act(Action::Isolate {
        tenant: TENANT,
        from: Group::Worker(2),
        to: Group::Worker(0),
        rest: None,
    })];
    let [Step::EndAction { outcome: Outcome::Dropped, .. }] = &planned(&observed, 3).steps[..] else {
        panic!("it is cut")
    };
}

#[test]
fn what_is_begun_again_and_again_is_given_up() {
    let ended = |act: &Act| match planned(&with(vec![act.clone()]), 3).steps.into_iter().next() {
        Some(Step::EndAction { id: 5, outcome: Outcome::Failed, note: Some(note) }) => note,
        other => panic!("it goes on: {other:?}"),
    };
    let quick = |act: &Act| match planned(&with(vec![act.clone()]), 3).steps.into_iter().next() {
        Some(Step::SplitShard(split)) => split.blocking,
        other => panic!("it is not tried: {other:?}"),
    };
    let why = "canceling statement due to lock timeout";
    let mut often = Act { note: Some(why.to_owned()), ..isolation(4750) };
    for attempts in 1..3 {
        often.attempts = attempts;
        assert!(!quick(&often), "writers did not let go: the other way");
    }
    often.attempts = 3;
    assert_eq!(ended(&often), why);
    // Nobody was there at the end of these: nothing is known against the quick way, and they count all the same.
    often.note = None;
    assert!(ended(&often).contains("begun 3 times"), "{}", ended(&often));
    often.attempts = 2;
    assert!(quick(&often));
}

#[test]
fn a_split_waits_for_the_moves_under_way_and_no_other_begins() {
    let mut observed = with(vec![isolation(4750)]);
    // Two more than its share.
    for at in catalog(&mut observed).placements.iter_mut().filter(|at| at.group_id == 1) {
        at.group_id = if at.shard_id % 8 == 0 { 2 } else { at.group_id };
    }
    let first = Observed { kept: Kept::default(), ..observed.clone() };
    let begun = planned(&first, 3).steps;
    let [Step::MoveShard { shard_id, from, to }] = begun[..] else { panic!("{begun:?}") };
    let application = Operation::name_of(shard_id, from, to);
    catalog(&mut observed).operations = vec![Operation { pid: 7, application }];
    let plan = planned(&observed, 3);
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    assert!(plan.waits.iter().any(|wait| wait.contains("come to their end first; then: split shard 1047")));
    let says = |observed: &Observed| {
        let findings = planned(observed, 3).findings;
        let finding = findings.into_iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
        (finding.reason, finding.message)
    };
    let expected = "it is hot; it waits: moves that are under way (1) come to their end first";
    assert_eq!(says(&observed), ("ActionWaits", expected.to_owned()));

    // Somebody else's moves are no other.
    catalog(&mut observed).operations.clear();
    catalog(&mut observed).foreign = vec![Foreign::Job { id: 4, description: "Rebalance all".to_owned() }];
    assert!(planned(&observed, 3).steps.is_empty(), "{:?}", planned(&observed, 3).steps);
    let (reason, message) = says(&observed);
    assert!(reason == "ActionWaits" && message.contains("background job 4"), "{message}");
    // While it is split itself it does not wait.
    catalog(&mut observed).foreign.clear();
    let split = running_split();
    let application = split.application.clone();
    catalog(&mut observed).operations = vec![Operation { pid: split.pid, application }];
    catalog(&mut observed).splits = vec![split];
    assert_eq!(says(&observed), ("Acting", "it is hot".to_owned()));
    let mut stall = |blocks_writers| {
        observed.stalls = vec![Stall {
            pid: 7,
            application: catalog(&mut observed).splits[0].application.clone(),
            seconds: 6,
            blocks_writers,
            kind: StallKind::Blocked,
            cause: "somebody writes".to_owned(),
            end: Some(End::Cancel),
        }];
        says(&observed)
    };
    let said = |what: &str| {
        let split = "it is hot; its split (pid 7 on the coordinator)";
        ("SplitStalled", format!("{split} has {what}: somebody writes; it is ended, and tried again"))
    };
    assert_eq!(stall(false), said("made no progress for 6 s"));
    assert_eq!(
        stall(true),
        said("kept all who write to its shard group waiting for 6 s, since it waits itself")
    );
}

#[test]
fn no_move_begins_while_one_keeps_a_hot_tenant_from_being_isolated() {
    let mut observed = observed();
    // Two more than its share.
    for at in catalog(&mut observed).placements.iter_mut().filter(|at| at.group_id == 1) {
        at.group_id = if at.shard_id % 8 == 0 { 2 } else { at.group_id };
    }
    let moves = |heat: Heat, wanted: &Wanted| {
        let observed = Observed { heat: Some(heat), ..observed.clone() };
        let plan = plan(wanted, &topology(), &observed);
        let said = plan.waits.iter().any(|wait| wait.contains("a hot tenant"));
        (plan.steps.iter().any(|step| matches!(step, Step::MoveShard { .. })), said)
    };
    let urgent = || Heat { urgent: true, ..Heat::default() };
    assert_eq!(moves(Heat::default(), &wanted(3)), (true, false));
    assert_eq!(moves(urgent(), &wanted(3)), (false, true));
    // Where nobody can look, or nothing would follow, they are not kept for ever.
    let blind = Heat { failure: Some("no answer".to_owned()), ..urgent() };
    assert_eq!(moves(blind, &wanted(3)), (true, false));
    assert_eq!(moves(urgent(), &Wanted { watch: None, ..wanted(3) }), (true, false));
}
