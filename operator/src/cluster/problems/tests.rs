use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::cluster::instance::Member;
use crate::cluster::observe::{Claim, Classes, ObservedApi};
use crate::context::Settings;

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn cluster(spec: &Value, conditions: &Value) -> DialogCluster {
    serde_json::from_value(json!({
        "apiVersion": "dialogcluster.io/v1alpha1",
        "kind": "DialogCluster",
        "metadata": { "name": "chat", "namespace": "ns", "uid": "5f1d", "generation": 3 },
        "spec": spec,
        "status": { "conditions": conditions },
    }))
    .unwrap()
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": format!("{kind} is {status}"),
        "lastTransitionTime": "2026-03-01T00:00:00Z", "observedGeneration": 3,
    })
}

fn prepared() -> Value {
    json!([
        condition(CITUS_AVAILABLE, "True", "Installed"),
        condition(METADATA_SYNCED, "True", "Synced"),
        condition(SCHEMA_DISTRIBUTED, "True", "Distributed"),
    ])
}

fn single() -> Value {
    json!({ "workers": { "count": 0 }, "api": { "replicas": 1 } })
}

/// A single node that serves.
fn serving() -> Observed {
    let classes =
        Classes { names: BTreeSet::from(["standard".to_owned()]), default: Some("standard".to_owned()) };
    let primary = Instance {
        pod: "chat-coordinator-0".to_owned(),
        is_primary: true,
        is_ready: true,
        created: Some(Timestamp::UNIX_EPOCH),
        patroni: Member { state: "running".to_owned(), ..Member::default() },
        ..Instance::default()
    };
    let group = ObservedGroup {
        replicas: 1,
        system_identifier: Some("1".to_owned()),
        leader: Some("chat-coordinator-0".to_owned()),
        instances: vec![primary],
        ..ObservedGroup::default()
    };
    let claim = Claim {
        name: "data-chat-coordinator-0".to_owned(),
        bound: true,
        class: Some("standard".to_owned()),
        ..Claim::default()
    };
    Observed {
        groups: [(Group::Coordinator, group)].into(),
        claims: [(Group::Coordinator, [(0, claim)].into())].into(),
        api: Some(ObservedApi { replicas: 1, available: 1, current: true, ..ObservedApi::default() }),
        ingress_classes: classes.clone(),
        storage_classes: classes,
        ..Observed::default()
    }
}

fn found(cluster: &DialogCluster, observed: &Observed) -> Vec<Problem> {
    let settings = Settings {
        postgres_image: Some("postgres".to_owned()),
        api_image: Some("api".to_owned()),
        ..Settings::default()
    };
    problems(cluster, &Target::new(cluster, &settings, observed).unwrap(), observed, now())
}

/// The worst problem after `change`.
fn worst(change: impl FnOnce(&mut Observed)) -> Problem {
    let mut observed = serving();
    change(&mut observed);
    found(&cluster(&single(), &prepared()), &observed).into_iter().next().unwrap()
}

fn instance(observed: &mut Observed) -> &mut Instance {
    let instance = &mut observed.groups.get_mut(&Group::Coordinator).unwrap().instances[0];
    instance.is_ready = false;
    instance
}

fn claim(observed: &mut Observed) -> &mut Claim {
    let claim = observed.claims.get_mut(&Group::Coordinator).unwrap().get_mut(&0).unwrap();
    claim.bound = false;
    claim
}

#[test]
fn what_serves_has_no_problem() {
    assert_eq!(found(&cluster(&single(), &prepared()), &serving()), []);
}

#[test]
fn each_trouble_has_its_reason_and_names_its_object() {
    let troubles = [
        (Trouble::Image("x: not found".to_owned()), "ImagePullFailed"),
        (Trouble::Unschedulable("0/1 nodes".to_owned()), "Unschedulable"),
        (Trouble::Container("secret not found".to_owned()), "ContainerNotCreated"),
        (Trouble::Crash("Error, exit code 1".to_owned()), "CrashLooping"),
    ];
    for (trouble, reason) in troubles {
        let problem = worst(|observed| instance(observed).trouble = Some(trouble.clone()));
        assert_eq!(problem.reason, reason);
        assert!(problem.message.contains("chat-coordinator-0") && !problem.passes, "{}", problem.message);
    }
}

#[test]
fn a_worker_that_leaves_and_never_had_a_place_is_nobodys_problem() {
    let mut observed = serving();
    let pending = Instance {
        pod: "chat-worker-0-0".to_owned(),
        created: Some(Timestamp::UNIX_EPOCH),
        trouble: Some(Trouble::Unschedulable("Insufficient cpu".to_owned())),
        ..Instance::default()
    };
    let group = ObservedGroup { replicas: 1, instances: vec![pending], ..ObservedGroup::default() };
    observed.groups.insert(Group::Worker(0), group);
    let asked = json!({ "workers": { "count": 1 }, "api": { "replicas": 1 } });
    let of = |spec: &Value, observed: &Observed| -> Vec<&str> {
        found(&cluster(spec, &prepared()), observed).iter().map(|problem| problem.reason).collect()
    };
    assert_eq!(of(&asked, &observed), ["Unschedulable"]);
    assert_eq!(of(&single(), &observed), [""; 0]);
    // One that has a database may have shards, and they are out of reach.
    observed.groups.get_mut(&Group::Worker(0)).unwrap().system_identifier = Some("1".to_owned());
    assert_eq!(of(&single(), &observed), ["Unschedulable"]);
}

#[test]
fn an_instance_may_start_for_a_while_before_it_counts_as_unreachable() {
    assert_eq!(worst(|observed| instance(observed).created = Some(now())).reason, "Starting");
    assert_eq!(worst(|observed| instance(observed).started = Some(now())).reason, "Starting");
    let stopped = worst(|observed| {
        instance(observed).created = Some(now());
        instance(observed).stopped = Some(now());
    });
    assert_eq!(
        (stopped.reason, stopped.passes),
        ("DatabaseUnreachable", false),
        "it does not start, it has stopped"
    );
    assert_eq!(worst(|observed| instance(observed).ordinal = 0).reason, "DatabaseUnreachable");
    let failed = worst(|observed| {
        let instance = instance(observed);
        instance.created = Some(now());
        instance.patroni.state = "start failed".to_owned();
    });
    assert_eq!((failed.reason, failed.passes), ("DatabaseUnreachable", false));
    let copying = worst(|observed| instance(observed).patroni.state = "creating replica".to_owned());
    assert_eq!((copying.reason, copying.passes), ("CopyingStandby", true));
    let initializing = worst(|observed| {
        instance(observed);
        observed.groups.get_mut(&Group::Coordinator).unwrap().system_identifier = None;
    });
    assert_eq!((initializing.reason, initializing.passes), ("Starting", true));
}

#[test]
fn storage_that_cannot_be_had_is_named_before_the_pod_that_waits_for_it() {
    let unschedulable = |observed: &mut Observed| {
        instance(observed).trouble = Some(Trouble::Unschedulable("unbound immediate claims".to_owned()));
    };
    let missing = worst(|observed| {
        unschedulable(observed);
        claim(observed).class = Some("fast".to_owned());
        claim(observed).failure = Some("storageclass \"fast\" not found".to_owned());
    });
    assert_eq!(missing.reason, "StorageClassMissing");
    assert!(missing.message.contains("data-chat-coordinator-0") && missing.message.contains("fast"));
    let none = worst(|observed| {
        claim(observed).class = None;
        observed.storage_classes.default = None;
    });
    assert_eq!(none.reason, "StorageClassMissing");
    let failed = worst(|observed| {
        claim(observed).failure = Some("no space left".to_owned());
    });
    assert_eq!(failed.reason, "VolumeNotProvisioned");
    assert!(failed.message.contains("no space left"), "{}", failed.message);
    let pending = worst(|observed| {
        unschedulable(observed);
        claim(observed);
    });
    assert_eq!(pending.reason, "Unschedulable");
    assert!(pending.message.contains("unbound immediate claims"), "{}", pending.message);
    let unserved = worst(|observed| {
        instance(observed).trouble = Some(Trouble::Unschedulable("what it tried before".to_owned()));
        claim(observed).has_node = true;
    });
    assert_eq!((unserved.reason, unserved.passes), ("VolumePending", false));
}

#[test]
fn pods_that_cannot_be_created_say_why() {
    let problem = worst(|observed| {
        let group = observed.groups.get_mut(&Group::Coordinator).unwrap();
        group.instances.clear();
        group.creation_failure = Some("exceeded quota".to_owned());
    });
    assert_eq!(problem.reason, "PodsNotCreated");
    assert!(problem.message.contains("exceeded quota"), "{}", problem.message);
}

#[test]
fn a_group_without_a_primary_does_not_serve() {
    let problem = worst(|observed| {
        observed.groups.get_mut(&Group::Coordinator).unwrap().instances[0].is_primary = false;
    });
    assert_eq!(problem.reason, "NoPrimary");
}

#[test]
fn the_database_has_to_be_prepared() {
    let nothing_said = found(&cluster(&single(), &json!([])), &serving());
    assert_eq!(nothing_said[0].reason, "PreparingDatabase");
    let undistributed = json!([
        condition(CITUS_AVAILABLE, "True", "Installed"),
        condition(METADATA_SYNCED, "True", "Synced"),
        condition(SCHEMA_DISTRIBUTED, "False", "WaitingForTables"),
    ]);
    let problem = &found(&cluster(&single(), &undistributed), &serving())[0];
    assert!(problem.message.contains("SchemaDistributed is False"), "{}", problem.message);
    assert_eq!((problem.reason, problem.passes), ("PreparingDatabase", true));
}

#[test]
fn parameters_are_named_where_a_server_does_not_start() {
    let mut spec = single();
    spec["postgres"] = json!({ "parameters": { "unix_socket_group": "nobody", "work_mem": "8MB" } });
    let mut observed = serving();
    instance(&mut observed).patroni.state = "restart failed".to_owned();
    let problem = found(&cluster(&spec, &prepared()), &observed).remove(0);
    assert_eq!(problem.reason, "DatabaseUnreachable");
    let remedy = "if it is one of spec.postgres.parameters (unix_socket_group, work_mem), correct it there";
    assert!(problem.message.contains(remedy), "{}", problem.message);
}

#[test]
fn a_database_that_nobody_makes_is_named() {
    let problem = worst(|observed| {
        let instance = instance(observed);
        instance.started = Some(Timestamp::UNIX_EPOCH);
        instance.patroni = Member { state: "stopped".to_owned(), ..Member::default() };
        observed.groups.get_mut(&Group::Coordinator).unwrap().system_identifier = None;
    });
    assert_eq!((problem.reason, problem.passes), ("DatabaseNotMade", false));
    assert!(problem.message.contains("chat-coordinator-config"), "{}", problem.message);
}

#[test]
fn of_a_database_that_is_not_read_is_said_what_to_look_at_and_nothing_of_a_coordinator_is_deleted() {
    let problem = worst(|observed| {
        let instance = instance(observed);
        instance.started = Some(Timestamp::UNIX_EPOCH);
        let (state, role) = ("stopped".to_owned(), "uninitialized".to_owned());
        instance.patroni = Member { state, role, ..Member::default() };
    });
    assert_eq!((problem.reason, problem.passes), ("DatabaseNotRead", false));
    for part in
        ["chat-coordinator-0: ", "(data-chat-coordinator-0)", "ConfigMap chat-coordinator-config", "backup"]
    {
        assert!(problem.message.contains(part), "no {part:?} in {}", problem.message);
    }
    assert!(!problem.message.contains("kubectl delete"), "{}", problem.message);
}

#[test]
fn what_the_database_says_needs_somebody_or_speaks_of_this_generation() {
    let said = |reason: &str| {
        let conditions = json!([
            condition(CITUS_AVAILABLE, "True", "Installed"),
            condition(METADATA_SYNCED, "True", "Synced"),
            condition(SCHEMA_DISTRIBUTED, "False", reason),
        ]);
        let problem = found(&cluster(&single(), &conditions), &serving()).remove(0);
        (problem.reason, problem.passes)
    };
    assert_eq!(said("RowsOnCoordinator"), ("DatabaseNotAsDeclared", false));
    assert_eq!(said("NotObserved"), ("DatabaseUnreachable", true));
    let mut changed = cluster(&single(), &prepared());
    changed.metadata.generation = Some(4);
    assert_eq!(found(&changed, &serving())[0].reason, "PreparingDatabase");
    changed.spec.paused = true;
    assert_eq!(found(&changed, &serving()), []);
}

#[test]
fn one_node_serves_without_citus_and_more_do_not() {
    let without = json!([
        condition(CITUS_AVAILABLE, "False", "NotInImage"),
        condition(METADATA_SYNCED, "Unknown", "CitusUnavailable"),
        condition(SCHEMA_DISTRIBUTED, "Unknown", "CitusUnavailable"),
    ]);
    assert_eq!(found(&cluster(&single(), &without), &serving()), []);
    let mut observed = serving();
    observed.groups.insert(Group::Worker(0), observed.groups[&Group::Coordinator].clone());
    let workers = json!({ "workers": { "count": 1 }, "api": { "replicas": 1 } });
    assert_eq!(found(&cluster(&workers, &without), &observed)[0].reason, "CitusMissing");
}

#[test]
fn dialog_api_has_to_serve() {
    let unavailable = worst(|observed| observed.api.as_mut().unwrap().available = 0);
    assert_eq!(unavailable.reason, "StartingApi");
    let refused = worst(|observed| {
        let api = observed.api.as_mut().unwrap();
        api.available = 0;
        api.creation_failure = Some("forbidden".to_owned());
    });
    assert_eq!(refused.reason, "PodsNotCreated");
    let image = worst(|observed| {
        observed.api.as_mut().unwrap().available = 0;
        observed.api_pods = vec![Instance {
            pod: "chat-api-x".to_owned(),
            trouble: Some(Trouble::Image("nope".to_owned())),
            ..Instance::default()
        }];
    });
    assert_eq!(image.reason, "ImagePullFailed");
    assert!(image.message.contains("spec.api.image"), "{}", image.message);
}

#[test]
fn an_ingress_needs_its_class() {
    let asked = |ingress: Value| {
        let spec = json!({ "workers": { "count": 0 }, "api": { "replicas": 1, "ingress": ingress } });
        found(&cluster(&spec, &prepared()), &serving())
    };
    assert_eq!(asked(json!({ "host": "chat.example.org" })), []);
    let missing = asked(json!({ "host": "chat.example.org", "className": "nginx" }));
    assert_eq!(missing[0].reason, "IngressClassMissing");
}

#[test]
fn what_needs_somebody_comes_first() {
    let mut observed = serving();
    instance(&mut observed).created = Some(now());
    observed.ingress_classes.default = None;
    let spec = json!({
        "workers": { "count": 0 }, "api": { "replicas": 1, "ingress": { "host": "chat.example.org" } },
    });
    let reasons: Vec<_> =
        found(&cluster(&spec, &prepared()), &observed).into_iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, ["IngressClassMissing", "Starting"]);
}
