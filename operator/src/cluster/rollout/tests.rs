use super::*;
use crate::cluster::instance::{Member, Trouble};

mod held;

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
