use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::SignedDuration;

use super::*;
use crate::api::HeldMovesStatus;
use crate::cluster::instance::{Member, Trouble};
use crate::shards::findings::tests::at_rest;
use crate::shards::observed::Observed;
use crate::shards::status::held_moves;
use crate::shards::step;

const NEW: &str = "new";
const OLD: &str = "old";

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

/// A group of instances, primary first; each by its revision.
fn group(name: Group, revisions: &[&str]) -> ObservedGroup {
    let instances = revisions
        .iter()
        .zip(0..)
        .map(|(revision, ordinal)| Instance {
            pod: format!("chat-{name}-{ordinal}"),
            ordinal,
            revision: Some((*revision).to_owned()),
            is_primary: ordinal == 0,
            is_ready: true,
            created: Some(Timestamp::UNIX_EPOCH),
            ..Instance::default()
        })
        .collect();
    ObservedGroup {
        replicas: i32::try_from(revisions.len()).unwrap(),
        revision: Some(NEW.to_owned()),
        instances,
        system_identifier: Some("1".to_owned()),
        leader: Some(format!("chat-{name}-0")),
        ..ObservedGroup::default()
    }
}

fn step(groups: &[(Group, ObservedGroup)]) -> Step {
    let groups = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
    next(&groups, Some(&BTreeSet::new()), now())
}

fn replaced(step: &Step) -> &str {
    match step {
        Step::Replace { pod, .. } => pod,
        other => panic!("{other:?} replaces nothing"),
    }
}

/// Workers with one instance each, by its revision.
fn workers(revisions: [&str; 3]) -> Vec<(Group, ObservedGroup)> {
    let names = (0..3).map(Group::Worker);
    names.zip(revisions).map(|(name, revision)| (name, group(name, &[revision]))).collect()
}

#[test]
fn a_server_is_behind_that_was_found_at_another_level_and_not_one_that_could_not_be_asked() {
    let status = |holds: &str| -> DialogClusterStatus {
        serde_json::from_value(serde_json::json!({"conditions": [
            {"type": "WalLevelLogical", "status": holds, "reason": "", "message": "",
             "lastTransitionTime": "2026-03-01T00:00:00Z"}]}))
        .unwrap()
    };
    assert!(is_behind(Some(&status("False"))));
    assert!(!is_behind(Some(&status("True"))) && !is_behind(Some(&status("Unknown"))));
    assert!(!is_behind(Some(&DialogClusterStatus::default())) && !is_behind(None));
}

#[test]
fn who_gives_or_takes_a_shard_is_restarted_after_that() {
    let needed = BTreeSet::from([Group::Coordinator, Group::Worker(0), Group::Worker(2)]);
    let step = |groups: &[(Group, ObservedGroup)], busy| {
        let groups = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
        next(&groups, busy, now())
    };
    let after = |step| match step {
        Step::AfterMoves { group, then } => (group, replaced(&then).to_owned()),
        other => panic!("{other:?} waits for no move"),
    };
    let first = || (Group::Worker(0), "chat-worker-0-0".to_owned());
    assert_eq!(after(step(&workers([OLD, OLD, OLD]), Some(&needed))), first());
    assert_eq!(
        replaced(&step(&workers([NEW, OLD, NEW]), Some(&needed))),
        "chat-worker-1-0",
        "it has no part in a move"
    );
    assert_eq!(after(step(&workers([NEW, NEW, OLD]), Some(&needed))).0, Group::Worker(2));
    assert_eq!(after(step(&workers([OLD, OLD, OLD]), None)), first(), "nobody knows yet");
    // One that does not serve is of no use to the move.
    let mut broken = workers([OLD, NEW, NEW]);
    broken[0].1.instances[0].is_ready = false;
    broken[0].1.instances[0].trouble = Some(Trouble::Crash("exit code 1".to_owned()));
    assert_eq!(replaced(&step(&broken, None)), "chat-worker-0-0");
    assert_eq!(step(&workers([NEW, NEW, NEW]), None), Step::Nothing);
}

#[test]
fn who_moves_shards_is_known_by_an_answer_to_the_same_question() {
    let minutes = |minutes: i64| Timestamp::from_second(1_000_000 + minutes * 60).unwrap();
    let held = |at, busy: &[&str]| {
        let busy = busy.iter().map(ToString::to_string).collect();
        Some(HeldMovesStatus { since: MicroTime(minutes(at)), busy })
    };
    let status = |asked: Option<i64>, held_moves| DialogClusterStatus {
        hold_moves: asked.map(|at| MicroTime(minutes(at))),
        held_moves,
        ..DialogClusterStatus::default()
    };
    let busy = |status: &DialogClusterStatus, at| busy(Some(status), minutes(at));
    let needed = || Some(BTreeSet::from([Group::Coordinator, Group::Worker(0)]));
    assert_eq!(busy(&status(None, None), 5), None, "nobody was asked");
    assert_eq!(busy(&status(Some(5), None), 6), None);
    assert_eq!(busy(&status(Some(5), held(4, &[])), 6), None, "moves have begun since");
    assert_eq!(busy(&status(Some(5), held(5, &["coordinator", "worker-0"])), 600), needed());
    assert_eq!(busy(&status(Some(5), held(5, &[])), 6), Some(BTreeSet::new()));
    assert_eq!(busy(&status(Some(5), held(4, &["worker-0"])), 16), Some(BTreeSet::new()), "nobody answers");
    assert_eq!(super::busy(None, minutes(6)), None);
    let silent: DialogClusterStatus = serde_json::from_value(serde_json::json!({"conditions": [
        {"type": "Balanced", "status": "Unknown", "reason": "", "message": "", "lastTransitionTime": minutes(20).to_string()}]}))
    .unwrap();
    let silent =
        DialogClusterStatus { conditions: silent.conditions, ..status(Some(5), held(5, &["worker-0"])) };
    assert_eq!(busy(&silent, 21), Some(BTreeSet::from([Group::Worker(0)])));
    assert_eq!(busy(&silent, 31), Some(BTreeSet::new()), "nobody knows whether it still runs");
}

#[test]
fn shards_move_while_an_update_waits_for_something_else() {
    let holds = |groups: &[(Group, ObservedGroup)], held| {
        let groups = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
        holds(&next(&groups, None, now()), &groups, held, now())
    };
    let ago = |minutes: i64| now() - SignedDuration::from_mins(minutes);
    assert!(!holds(&workers([NEW, NEW, NEW]), true) && holds(&workers([NEW, NEW, OLD]), false));
    // The server of the one is replaced, then away, and then back.
    for others in [NEW, OLD] {
        let mut groups = workers([NEW, others, others]);
        let ending = &mut groups[0].1.instances[0];
        (ending.is_terminating, ending.revision) = (true, Some(OLD.to_owned()));
        assert!(holds(&groups, true), "it ends");
        let ending = &mut groups[0].1.instances[0];
        (ending.is_ready, ending.stopped) = (false, Some(ago(5)));
        assert!(!holds(&groups, true), "its node is dead");
        groups[0].1.instances.clear();
        assert_eq!(holds(&groups, true), others == OLD, "others follow once it is back");
        groups[0].1 = group(Group::Worker(0), &[NEW]);
        groups[0].1.instances[0].is_ready = false;
        groups[0].1.instances[0].created = Some(now());
        assert!(holds(&groups, true), "it comes");
        groups[0].1.instances[0].is_ready = true;
        assert_eq!(holds(&groups, true), others == OLD, "it is back");
    }
    // One that does not come back may keep the update for days; and nobody holds moves for one that has gone by itself.
    for ordinal in [0, 1] {
        let mut groups = workers([NEW, OLD, OLD]);
        groups[0].1 = group(Group::Worker(0), &[NEW, NEW]);
        let away = &mut groups[0].1.instances[ordinal];
        (away.is_ready, away.created, away.stopped) = (false, Some(ago(60)), Some(ago(1)));
        assert!(holds(&groups, true) && !holds(&groups, false));
        groups[0].1.instances[ordinal].stopped = Some(ago(4));
        assert!(!holds(&groups, true));
    }
}

#[test]
fn between_two_standbys_of_an_update_no_move_begins() {
    let mut worker = group(Group::Worker(0), &[OLD, NEW]);
    worker.instances[1].created = Some(now());
    let groups = BTreeMap::from([(Group::Worker(0), (&worker, 2))]);
    // The standby is back, and Patroni does not let it take over before it has caught up.
    let refused = Step::Wait("chat-worker-0-1 to be able to take over".to_owned());
    assert!(holds(&refused, &groups, true, now()));
    let later = now() + SignedDuration::from_mins(4);
    assert!(!holds(&refused, &groups, true, later), "it lags for long");
}

/// Plays an update while shards move without a pause: they are small, and each time one is there the next begins, unless the
/// status said some time ago that none may.
#[test]
fn an_update_in_the_middle_of_many_moves_meets_none_and_comes_to_its_end() {
    for begins in 50..62 {
        play(begins);
    }
}

/// Plays it with an update that begins at this second.
fn play(begins: u32) {
    let mut groups: BTreeMap<Group, ObservedGroup> = workers([NEW, NEW, NEW]).into_iter().collect();
    groups.insert(Group::Coordinator, group(Group::Coordinator, &[NEW]));
    let mut status = DialogClusterStatus::default();
    let (observed, silent) = (at_rest(), Observed::default());
    // What moves, and until when; and which pod comes back when.
    let mut moves: Vec<(step::Step, u32)> = Vec::new();
    let mut back: Option<(Group, u32)> = None;
    let (mut begun, mut restarts) = (0, Vec::new());
    for second in 0..400_u32 {
        let now = Timestamp::from_second(second.into()).unwrap();
        let read = status.clone();
        moves.retain(|(_, until)| *until > second);
        if second == begins {
            for group in groups.values_mut() {
                group.instances[0].revision = Some(OLD.to_owned());
            }
        }
        if let Some((name, _)) = back.take_if(|(_, at)| *at == second) {
            groups.insert(name, group(name, &[NEW]));
        }
        if second % 2 == 0 {
            let there = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
            let step = next(&there, busy(Some(&status), now).as_ref(), now);
            let since = || read.hold_moves.clone().unwrap_or(MicroTime(now));
            status.hold_moves = holds(&step, &there, read.hold_moves.is_some(), now).then(since);
            if let Step::Replace { pod, .. } = &step {
                let name = *groups.iter().find(|(_, group)| group.instances[0].pod == *pod).unwrap().0;
                let needs = |one: &step::Step| {
                    let step::Step::MoveShard { from, to, .. } = one else { return false };
                    [*from, *to, Group::Coordinator].contains(&name)
                };
                assert!(!moves.iter().any(|(one, _)| needs(one)), "{pod} at {second} in {moves:?}");
                let ending = &mut groups.get_mut(&name).unwrap().instances[0];
                (ending.is_terminating, ending.is_ready, ending.stopped) = (true, false, Some(now));
                back = Some((name, second + 7));
                restarts.push(name);
            }
        }
        // Who begins has read what was so before.
        let serves = |group: Group| back.is_none_or(|(away, _)| away != group && away != Group::Coordinator);
        let (from, to) = (Group::Worker(second % 3), Group::Worker((second + 1) % 3));
        if read.hold_moves.is_none() && moves.len() < 2 && serves(from) && serves(to) {
            moves.push((step::Step::MoveShard { shard_id: second.into(), from, to }, second + 4));
            begun += 1;
        }
        if second % 3 == 0 {
            let own: Vec<step::Step> = moves.iter().map(|(step, _)| step.clone()).collect();
            // Every other look at the databases fails.
            let looked = if second % 2 == 0 { &observed } else { &silent };
            status.held_moves = held_moves(Some(&read), Some(looked), &own);
        }
    }
    let order = [0, 1, 2].map(Group::Worker).into_iter().chain([Group::Coordinator]);
    assert_eq!(restarts, order.collect::<Vec<_>>());
    assert_eq!((status.hold_moves, status.held_moves), (None, None));
    assert!(begun > 100, "{begun}: they go on afterwards");
}

#[test]
fn what_is_up_to_date_is_left_alone() {
    let coordinator = group(Group::Coordinator, &[NEW, NEW]);
    assert_eq!(step(&[(Group::Coordinator, coordinator)]), Step::Nothing);
}

/// Plays a whole update: every step is carried out until nothing is left, and the order is what was promised.
#[test]
fn an_update_goes_through_workers_first_and_primaries_last() {
    let mut groups = vec![
        (Group::Coordinator, group(Group::Coordinator, &[OLD])),
        (Group::Worker(0), group(Group::Worker(0), &[OLD, OLD])),
        (Group::Worker(1), group(Group::Worker(1), &[OLD])),
    ];
    let mut done = Vec::new();
    loop {
        let step = step(&groups);
        match &step {
            Step::Nothing => break,
            Step::Replace { pod, .. } => {
                let all = groups.iter_mut().flat_map(|(_, group)| &mut group.instances);
                let instance = all.into_iter().find(|instance| instance.pod == *pod).unwrap();
                instance.revision = Some(NEW.to_owned());
                done.push(format!("replace {pod}"));
            }
            Step::SwitchOver { group, from, to } => {
                let (_, group) = groups.iter_mut().find(|(name, _)| name == group).unwrap();
                assert_eq!(group.leader.as_ref(), Some(from));
                group.leader = Some(to.clone());
                for instance in &mut group.instances {
                    instance.is_primary = instance.pod == *to;
                }
                done.push(format!("switch {from} {to}"));
            }
            other => panic!("{other:?}"),
        }
        assert!(done.len() < 20, "no end: {done:?}");
    }
    assert_eq!(
        done,
        [
            "replace chat-worker-0-1",
            "switch chat-worker-0-0 chat-worker-0-1",
            "replace chat-worker-0-0",
            "replace chat-worker-1-0",
            "replace chat-coordinator-0",
        ]
    );
}

#[test]
fn nothing_that_serves_is_touched_while_something_else_does_not() {
    let mut worker = group(Group::Worker(0), &[NEW]);
    worker.instances[0].is_ready = false;
    let groups = [(Group::Coordinator, group(Group::Coordinator, &[OLD])), (Group::Worker(0), worker)];
    assert_eq!(step(&groups), Step::Wait("chat-worker-0-0 to be ready".to_owned()));
}

#[test]
fn a_missing_instance_or_primary_is_waited_for() {
    let mut coordinator = group(Group::Coordinator, &[OLD]);
    coordinator.replicas = 2;
    assert_eq!(
        step(&[(Group::Coordinator, coordinator.clone())]),
        Step::Wait("all 2 instances of coordinator".to_owned())
    );
    coordinator.replicas = 1;
    coordinator.instances[0].is_primary = false;
    assert_eq!(step(&[(Group::Coordinator, coordinator)]), Step::Wait("a primary of coordinator".to_owned()));
}

#[test]
fn a_broken_instance_is_replaced_as_soon_as_its_template_is_mended() {
    let mut worker = group(Group::Worker(0), &[OLD]);
    worker.instances[0].is_ready = false;
    worker.instances[0].created = Some(now());
    worker.instances[0].trouble = Some(Trouble::Image("no such image".to_owned()));
    let mut coordinator = group(Group::Coordinator, &[OLD]);
    coordinator.instances[0].is_ready = false;
    coordinator.instances[0].created = Some(now());
    let groups = [(Group::Coordinator, coordinator), (Group::Worker(0), worker)];
    assert_eq!(replaced(&step(&groups)), "chat-worker-0-0");
}

#[test]
fn an_instance_that_makes_the_database_is_not_cut_off() {
    let mut coordinator = group(Group::Coordinator, &[OLD]);
    coordinator.instances[0].is_ready = false;
    coordinator.system_identifier = None;
    assert!(matches!(step(&[(Group::Coordinator, coordinator)]), Step::Wait(_)));
}

#[test]
fn an_instance_that_is_stuck_is_replaced_unless_it_is_being_copied() {
    let mut worker = group(Group::Worker(0), &[NEW, OLD]);
    worker.instances[1].is_ready = false;
    assert_eq!(replaced(&step(&[(Group::Worker(0), worker.clone())])), "chat-worker-0-1");
    worker.instances[1].patroni.state = "creating replica".to_owned();
    assert!(matches!(step(&[(Group::Worker(0), worker)]), Step::Wait(_)));
}

#[test]
fn before_the_statefulset_is_seen_by_its_controller_nothing_is_known_to_be_outdated() {
    let mut coordinator = group(Group::Coordinator, &[OLD]);
    coordinator.revision = None;
    assert_eq!(step(&[(Group::Coordinator, coordinator)]), Step::Nothing);
}

#[test]
fn a_primary_that_is_to_go_hands_over_first() {
    let mut coordinator = group(Group::Coordinator, &[NEW, NEW]);
    coordinator.instances[0].is_primary = false;
    coordinator.instances[1].is_primary = true;
    coordinator.leader = Some("chat-coordinator-1".to_owned());
    let groups = BTreeMap::from([(Group::Coordinator, (&coordinator, 1))]);
    assert_eq!(
        next(&groups, Some(&BTreeSet::new()), now()),
        Step::SwitchOver {
            group: Group::Coordinator,
            from: "chat-coordinator-1".to_owned(),
            to: "chat-coordinator-0".to_owned(),
        }
    );
}

#[test]
fn only_a_standby_that_has_everything_takes_over() {
    let mut worker = group(Group::Worker(0), &[OLD, NEW, NEW]);
    worker.synchronous = ["chat-worker-0-2".to_owned()].into();
    let Step::SwitchOver { to, .. } = step(&[(Group::Worker(0), worker)]) else { panic!("no switchover") };
    assert_eq!(to, "chat-worker-0-2");
    let mut worker = group(Group::Worker(0), &[OLD, NEW, NEW]);
    worker.synchronous = ["chat-worker-0-3".to_owned()].into();
    let waits = step(&[(Group::Worker(0), worker)]);
    assert!(matches!(waits, Step::Wait(_)), "the primary goes with what no standby has: {waits:?}");
}

#[test]
fn replacing_a_pod_comes_before_restarting_a_server() {
    let mut first = group(Group::Worker(0), &[NEW]);
    first.instances[0].patroni = pending("shared_buffers", "1", "2");
    let groups = [(Group::Worker(0), first), (Group::Worker(1), group(Group::Worker(1), &[OLD]))];
    assert_eq!(replaced(&step(&groups)), "chat-worker-1-0");
}

fn pending(name: &str, old: &str, new: &str) -> Member {
    let change = Change { old_value: old.to_owned(), new_value: new.to_owned() };
    Member {
        pending_restart: true,
        pending_restart_reason: [(name.to_owned(), change)].into(),
        ..Member::default()
    }
}

fn restarted(member: &Member) -> String {
    let mut worker = group(Group::Worker(0), &[NEW, NEW, NEW]);
    for instance in &mut worker.instances {
        instance.patroni = member.clone();
    }
    match step(&[(Group::Worker(0), worker)]) {
        Step::Restart { pod, .. } => pod,
        other => panic!("{other:?} restarts nothing"),
    }
}

#[test]
fn parameters_begin_with_standbys_unless_they_are_lowered() {
    assert_eq!(restarted(&pending("max_connections", "100", "200")), "chat-worker-0-2");
    assert_eq!(restarted(&pending("shared_buffers", "200", "100")), "chat-worker-0-2");
    assert_eq!(restarted(&pending("max_connections", "200", "100")), "chat-worker-0-0");
}

/// As when all nodes are found at `wal_level=replica`.
#[test]
fn all_groups_restart_for_a_parameter_one_server_at_a_time_and_the_coordinator_last() {
    let names = [(Group::Coordinator, 2), (Group::Worker(0), 2), (Group::Worker(1), 1)];
    let mut groups: BTreeMap<Group, ObservedGroup> =
        names.map(|(name, count)| (name, group(name, &vec![NEW; count]))).into();
    for instance in groups.values_mut().flat_map(|group| &mut group.instances) {
        instance.patroni = pending("wal_level", "replica", "logical");
    }
    let look = |groups: &BTreeMap<Group, ObservedGroup>| {
        step(&groups.iter().map(|(name, there)| (*name, there.clone())).collect::<Vec<_>>())
    };
    let mut restarts = Vec::new();
    while let Step::Restart { group, pod, parameters } = look(&groups) {
        assert_eq!(parameters, ["wal_level"]);
        let restart = |groups: &mut BTreeMap<Group, ObservedGroup>, is_ready| {
            let mut instances = groups.get_mut(&group).unwrap().instances.iter_mut();
            let instance = instances.find(|instance| instance.pod == pod).unwrap();
            instance.is_ready = is_ready;
            instance.patroni = Member::default();
        };
        restart(&mut groups, false);
        let meanwhile = look(&groups);
        assert!(matches!(meanwhile, Step::Wait(_) | Step::Nothing), "{meanwhile:?} while {pod} restarts");
        restart(&mut groups, true);
        restarts.push(pod);
    }
    assert_eq!(look(&groups), Step::Nothing);
    let order =
        ["chat-worker-0-1", "chat-worker-0-0", "chat-worker-1-0", "chat-coordinator-1", "chat-coordinator-0"];
    assert_eq!(restarts, order);
}
