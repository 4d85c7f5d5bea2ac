use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::api::{DialogClusterStatus, IsolatedTenant, PinSpec};
use crate::condition::{BALANCED, HOT_TENANT};
use crate::shards::findings::tests::{at_rest, catalog, facts, ranges, topology};
use crate::shards::heat::actions::{Kept, KeptPin};
use crate::shards::heat::{ENOUGH, Heat};
use crate::shards::observed::{
    End, Foreign, Hashes, Member, Name, Node, Observed, Operation, Placement, Resources, RunningSplit, Stall,
    StallKind,
};
use crate::shards::plan::{Plan, plan};
use crate::shards::rebalance::HashRange;
use crate::shards::status::isolated;
use crate::shards::strategy::{NAME, Seen, Strategy};
use crate::shards::wanted::{Gate, Rebalance, Wanted};

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
    assert_eq!(stall(true), said("kept all who write to its shard waiting for 6 s, since it waits itself"));
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

#[test]
fn a_tenant_is_pinned_and_stays_where_it_is_pinned() {
    let mut observed = with(vec![isolation(TENANT.hash)]);
    cut_out(&mut observed, 1);
    let home = TENANT.pin(Group::Worker(0));
    let steps = planned(&observed, 3).steps;
    let [Step::SetPin { pin: set, author: Author::Policy, .. }] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!(*set, home);
    observed.kept.pins = vec![pin(Group::Worker(0))];
    let done = Step::EndAction { id: 5, outcome: Outcome::Done, note: None };
    assert_eq!(planned(&observed, 3).steps, [done]);
    observed.kept.acts.clear();
    // Somebody moves it away: it comes back, whatever the windows say.
    for at in catalog(&mut observed).placements.iter_mut().filter(|at| at.shard_id == 3001) {
        at.group_id = 3;
    }
    let steps = planned(&observed, 3).steps;
    assert_eq!(steps, [Step::MoveShard { shard_id: 3001, from: Group::Worker(2), to: Group::Worker(0) }]);
}

#[test]
fn pins_are_retargeted_before_their_node_is_drained() {
    let mut observed = observed();
    cut_out(&mut observed, 3);
    observed.kept.pins = vec![pin(Group::Worker(2))];
    let steps = planned(&observed, 2).steps;
    let position = |kind: &str| steps.iter().position(|step| step.kind() == kind);
    let refused =
        planned(&observed, 2).findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
    assert!(
        position("Retarget").is_some() && position("MoveShard").is_none(),
        "{steps:?}: {}",
        refused.message
    );
    let found = steps.iter().find_map(|step| match step {
        Step::Retarget { pin, from, .. } => Some((pin, *from)),
        _ => None,
    });
    let Some((next, Group::Worker(2))) = found else { panic!("{steps:?}") };
    assert!([Group::Worker(0), Group::Worker(1)].contains(&next.node));
    let said: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert!(said.contains(&format!("pin dialog seven to {}, as worker-2 leaves", next.node)), "{said:?}");
}

#[test]
fn who_is_pinned_goes_where_there_is_time_for_what_it_does() {
    let mut observed = observed();
    cut_out(&mut observed, 3);
    observed.kept.pins = vec![pin(Group::Worker(2))];
    let node = |cpu| NodeLoad {
        role: Role::Shared,
        queries: 0,
        writes: 0,
        cpu,
        cpu_limit: 100,
        free_bytes: None,
        unseen: 0,
        unlisted: 0,
    };
    let nodes = BTreeMap::from([(Group::Worker(0), node(75)), (Group::Worker(1), node(10))]);
    let wanted = Wanted { dedicated: 1, ..wanted(2) };
    // The dedicated worker comes first, if it can bear it.
    for (cpu, expected) in [(5, Group::Worker(0)), (50, Group::Worker(1))] {
        let pinned = vec![(TENANT, cpu)];
        observed.heat = Some(Heat { nodes: nodes.clone(), pinned, ..Heat::default() });
        let (steps, _) = steps(&observed, &wanted);
        let retargeted = steps.iter().find_map(|step| match step {
            Step::Retarget { pin, .. } => Some(pin.node),
            _ => None,
        });
        assert_eq!(retargeted, Some(expected), "{cpu}: {steps:?}");
    }
}

#[test]
fn who_is_pinned_is_shown_by_name_and_no_more_of_them_than_the_schema_allows() {
    let mut observed = observed();
    observed.kept.now = Some("2026-01-05T10:00:00Z".parse().unwrap());
    let since = |minute: i32| pin(Group::Worker(0)).since + jiff::SignedDuration::from_mins(minute.into());
    let unknown = |number: i32| KeptPin {
        tenant: Tenant { hash: number, ..TENANT },
        key: None,
        since: since(number),
        author: Author::Spec,
        ..pin(Group::Worker(1))
    };
    observed.kept.pins = (1..100).rev().map(unknown).chain([pin(Group::Worker(0))]).collect();
    let (wanted, topology) = (wanted(3), topology());
    let shown = |observed: &Observed, before| {
        isolated(&World { wanted: &wanted, topology: &topology, observed }, before)
    };
    let (list, count) = shown(&observed, None);
    assert_eq!((list.len(), count), (64, Some(100)));
    let said = |one: &IsolatedTenant| format!("{} {} {} {}", one.group, one.tenant, one.worker, one.asked_by);
    assert_eq!(said(&list[0]), "dialog seven worker-0 policy");
    assert_eq!((said(&list[1]), list[1].since.0), ("dialog hash 1 worker-1 spec".to_owned(), since(1)));
    // What nobody could read is not over.
    let before = DialogClusterStatus { isolated: list.clone(), isolated_count: count, ..Default::default() };
    observed.kept = Kept::default();
    assert_eq!(shown(&observed, Some(&before)), (list, count));
    observed.kept.now = Some(since(0));
    assert_eq!(shown(&observed, Some(&before)), (Vec::new(), None));
}

#[test]
fn a_pin_of_a_shard_that_covers_more_means_nothing() {
    let mut observed = observed();
    observed.kept.pins = vec![pin(Group::Worker(0))];
    assert_eq!(planned(&observed, 3).steps, []);
}

#[test]
fn nothing_is_begun_while_a_worker_is_away() {
    let mut observed = with(vec![isolation(4750)]);
    observed.nodes.insert(Group::Worker(1), Node::Down("connection refused".to_owned()));
    let steps: BTreeSet<&str> = planned(&observed, 3).steps.iter().map(Step::kind).collect();
    assert!(!steps.contains("SplitShard"), "{steps:?}");
}

/// Somebody has decided about the tenant.
fn decided(worker: Option<i32>) -> Wanted {
    let pin = PinSpec { group: "dialog".to_owned(), tenant: "seven".to_owned(), worker };
    Wanted { pins: vec![pin], ..wanted(3) }
}

/// It is known who is meant.
fn named(observed: Observed) -> Observed {
    let name = Name { type_name: "uuid".to_owned(), tenant: "seven".to_owned() };
    Observed { hashes: Hashes::from([(name, Ok(TENANT.hash))]), ..observed }
}

/// The steps, and what the condition says.
fn steps(observed: &Observed, wanted: &Wanted) -> (Vec<Step>, &'static str) {
    let plan = plan(wanted, &topology(), observed);
    let finding = plan.findings.iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
    (plan.steps, finding.reason)
}

#[test]
fn what_somebody_has_decided_is_begun_and_comes_before_the_policy() {
    let (begun, _) = steps(&named(observed()), &decided(Some(0)));
    let [Step::BeginIsolation { tenant, from, to, rest, .. }] = &begun[..] else { panic!("{begun:?}") };
    let expected = (TENANT, Group::Worker(2), Group::Worker(0), Some(Group::Worker(1)));
    assert_eq!((*tenant, *from, *to, *rest), expected);
    // Before anybody knows who is meant nothing is done, nor undone.
    let mut pinned = observed();
    cut_out(&mut pinned, 1);
    pinned.kept.pins = vec![KeptPin { author: Author::Spec, ..pin(Group::Worker(0)) }];
    assert_eq!(steps(&pinned, &decided(Some(0))).0, []);
    let (gone, _) = steps(&pinned, &wanted(3));
    assert!(matches!(gone[..], [Step::RemovePin { tenant: TENANT, .. }]), "{gone:?}");

    // Nor is anything kept for tables that are gone, whoever asked for it; catalogs that nobody could read say nothing.
    let nowhere = Tenant { colocation_id: 9, ..TENANT };
    for author in [Author::Policy, Author::Spec] {
        let mut dropped = observed();
        dropped.kept.pins = vec![KeptPin { tenant: nowhere, author, ..pin(Group::Worker(0)) }];
        let (gone, _) = steps(&named(dropped.clone()), &decided(None));
        assert!(
            matches!(&gone[..], [Step::RemovePin { tenant, why, .. }] if *tenant == nowhere && why == "its tables are gone"),
            "{gone:?}"
        );
        dropped.catalog = None;
        let (unread, _) = steps(&named(dropped), &decided(None));
        assert!(!unread.iter().any(|step| matches!(step, Step::RemovePin { .. })), "{unread:?}");
    }

    // What the policy has begun is not done, nor what is not asked for any more.
    let policy = named(with(vec![isolation(TENANT.hash)]));
    let by_hand = Act { asked_by: Author::Spec.name().to_owned(), ..isolation(TENANT.hash) };
    let is_dropped = |steps: &[Step]| matches!(steps, [Step::EndAction { outcome: Outcome::Dropped, .. }]);
    for (observed, wanted) in [
        (policy.clone(), decided(Some(1))),
        (policy.clone(), decided(None)),
        (named(with(vec![by_hand.clone()])), wanted(3)),
    ] {
        let (steps, _) = steps(&observed, &wanted);
        assert!(is_dropped(&steps), "{steps:?}");
    }
    // What is asked for is done in every mode.
    let observing = Wanted { watch: None, ..decided(Some(0)) };
    let (split, _) = steps(&named(with(vec![by_hand.clone()])), &observing);
    assert!(split.iter().any(|step| matches!(step, Step::SplitShard(_))), "{split:?}");

    // It is not tried again at once.
    let ended = "2026-01-05T09:10:00Z".parse().unwrap();
    let failed = Act { ended: Some(ended), outcome: Some(Outcome::Failed), ..by_hand };
    let mut tried = named(with(vec![failed]));
    for (now, expected) in [("2026-01-05T09:19:00Z", 0), ("2026-01-05T09:21:00Z", 1)] {
        tried.kept.now = Some(now.parse().unwrap());
        let (steps, reason) = steps(&tried, &decided(Some(0)));
        assert_eq!(steps.len(), expected, "{steps:?}");
        assert_eq!(reason == "PinNotPossible", expected == 0);
    }
    // A large shard is not cut with a part left where it is.
    let mut large = named(observed());
    facts(&mut large, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 1 << 30);
    let (moves, reason) = steps(&large, &decided(Some(2)));
    assert!(moves.iter().all(|step| step.kind() == "MoveShard"), "{moves:?}");
    assert_eq!(reason, "PinNotPossible");
}

#[test]
fn what_waits_for_an_hour_is_given_up_in_every_mode() {
    let by_hand = Act { asked_by: Author::Spec.name().to_owned(), ..isolation(TENANT.hash) };
    let mut waiting = named(with(vec![by_hand]));
    facts(&mut waiting, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 1 << 20);
    facts(&mut waiting, Group::Worker(0)).resources.as_mut().unwrap().free_bytes = 0;
    let off = Wanted { watch: None, ..decided(Some(0)) };
    let given_up = |observed: &Observed, wanted: &Wanted| {
        let steps = steps(observed, wanted).0;
        let fails = |step: &Step| matches!(step, Step::EndAction { id: 5, outcome: Outcome::Failed, note: Some(note) } if note.contains("no room"));
        steps.iter().any(fails)
    };
    for (now, expected) in [("2026-01-05T09:59:00Z", false), ("2026-01-05T10:01:00Z", true)] {
        waiting.kept.now = Some(now.parse().unwrap());
        assert_eq!(given_up(&waiting, &decided(Some(0))), expected, "{now}");
        assert_eq!(given_up(&waiting, &off), expected, "{now}, mode Off");
    }
    // So is what has to wait for its writers again and again, as a part of its shard stays and there is no other way.
    let stays = Action::Isolate { tenant: TENANT, from: Group::Worker(2), to: Group::Worker(0), rest: None };
    let why = "canceling statement due to lock timeout";
    let mut kept = with(vec![Act { note: Some(why.to_owned()), ..act(stays) }]);
    for (now, expected) in [("2026-01-05T09:59:00Z", "SplitShard"), ("2026-01-05T10:01:00Z", "EndAction")] {
        kept.kept.now = Some(now.parse().unwrap());
        let planned = steps(&kept, &wanted(3)).0;
        assert_eq!(planned.iter().map(Step::kind).collect::<Vec<_>>(), [expected], "{now}");
        if let Step::EndAction { outcome, note, .. } = &planned[0] {
            assert_eq!(
                (*outcome, note.as_deref()),
                (Outcome::Failed, Some(&*format!("not within an hour: {why}")))
            );
        }
    }
    // While shards move it may be these that it waits for.
    catalog(&mut waiting).foreign = vec![Foreign::Job { id: 4, description: "Rebalance all".to_owned() }];
    assert!(!given_up(&waiting, &off));
}

#[test]
fn what_has_waited_for_others_alone_begins_however_long_that_took() {
    let late = |act: Act, now: &str| {
        let mut observed = with(vec![act]);
        observed.kept.now = Some(now.parse().unwrap());
        observed
    };
    let kinds = |observed: &Observed, wanted: &Wanted| {
        steps(observed, wanted).0.iter().map(Step::kind).collect::<Vec<_>>()
    };
    let mut held_up = late(isolation(TENANT.hash), "2026-01-05T10:10:00Z");
    catalog(&mut held_up).foreign = vec![Foreign::Job { id: 4, description: "Rebalance all".to_owned() }];
    assert!(kinds(&held_up, &wanted(3)).is_empty());
    catalog(&mut held_up).foreign.clear();
    assert_eq!(kinds(&held_up, &wanted(3)), ["SplitShard"]);
    let updated = Wanted { rebalance: Rebalance { hold: true, ..wanted(3).rebalance }, ..wanted(3) };
    assert!(kinds(&held_up, &updated).is_empty(), "servers are updated");

    // The hour of what fails and counts as no attempt begins with its first failure.
    let begun = Some("2026-01-05T10:10:00Z".parse().unwrap());
    let failed = Act { begun, note: Some("lock timeout".to_owned()), ..isolation(TENANT.hash) };
    for (now, expected) in [("2026-01-05T11:09:00Z", "SplitShard"), ("2026-01-05T11:11:00Z", "EndAction")] {
        assert_eq!(kinds(&late(failed.clone(), now), &wanted(3)), [expected], "{now}");
    }

    // So does a move, unless something else is in its way.
    let mut moved = late(isolation(TENANT.hash), "2026-01-05T10:10:00Z");
    cut_out(&mut moved, 3);
    moved.kept.pins = vec![pin(Group::Worker(0))];
    let back = Step::MoveShard { shard_id: 3001, from: Group::Worker(2), to: Group::Worker(0) };
    assert_eq!(steps(&moved, &wanted(3)).0, std::slice::from_ref(&back));
    let is_given_up = |observed: &Observed| {
        let failed = |step: &Step| matches!(step, Step::EndAction { outcome: Outcome::Failed, .. });
        steps(observed, &wanted(3)).0.iter().any(failed)
    };
    moved.deferred = vec![back];
    assert!(is_given_up(&moved), "it failed");
    moved.deferred.clear();
    facts(&mut moved, Group::Worker(0)).resources.as_mut().unwrap().free_slots = 0;
    facts(&mut moved, Group::Worker(2)).resources.as_mut().unwrap().free_slots = 0;
    assert!(is_given_up(&moved), "it has no slot");
}

#[test]
fn a_dedicated_worker_is_emptied_of_what_is_not_pinned_there() {
    let mut observed = observed();
    cut_out(&mut observed, 1);
    observed.kept.pins = vec![pin(Group::Worker(0))];
    let dedicated = Wanted { dedicated: 1, ..wanted(3) };
    let (steps, _) = steps(&observed, &dedicated);
    assert!(matches!(&steps[0], Step::SetStrategy { strategy, .. } if strategy.dedicated.len() == 1));
    let moves = plan(&dedicated, &topology(), &observed).moves.unwrap().plan.moves;
    // Two colocation groups, of which it held a third each.
    let leaving = moves.iter().filter(|next| next.from == Group::Worker(0));
    assert_eq!(leaving.filter(|next| next.shard_id != 3001).count(), 32);
    assert!(moves.iter().all(|next| next.to != Group::Worker(0) && next.shard_id != 3001), "{moves:?}");
}
