//! What is built, as YAML to read. Certificates are left out: they differ each time.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::{Resource as _, ResourceExt as _};
use serde::Serialize;
use serde_json::json;

use super::*;
use crate::api::DialogCluster;
use crate::cluster::certificates::Secrets;
use crate::cluster::instance::{Instance, Member};
use crate::cluster::observe::{Claim, Observed, ObservedGroup};
use crate::cluster::target::GroupTarget;
use crate::context::{Pull, PullPolicy, Settings};
use crate::names::Group;

fn cluster(spec: &serde_json::Value) -> DialogCluster {
    serde_json::from_value(json!({
        "apiVersion": "dialogcluster.io/v1alpha1",
        "kind": "DialogCluster",
        "metadata": { "name": "chat", "namespace": "ns", "uid": "5f1d" },
        "spec": spec,
    }))
    .unwrap()
}

/// Everything that can be said.
fn full() -> DialogCluster {
    let storage = json!({ "size": "5Gi", "className": "fast", "reclaim": "Delete" });
    let resources = json!({ "requests": { "cpu": "250m", "memory": "1Gi" }, "limits": { "memory": "2Gi" } });
    cluster(&json!({
        "coordinator": { "instances": 2, "storage": storage, "resources": resources },
        "workers": {
            "count": 1,
            "placement": {
                "nodeSelector": { "disk": "ssd" },
                "tolerations": [{ "key": "database", "operator": "Exists", "effect": "NoSchedule" }],
            },
        },
        "postgres": { "parameters": { "max_connections": "300", "work_mem": "8MB" } },
        "api": {
            "replicas": 3,
            "ingress": { "host": "chat.example.org", "className": "traefik", "tlsSecretName": "chat-tls" },
            "resources": { "limits": { "memory": "64Mi" } },
        },
    }))
}

fn settings() -> Settings {
    Settings {
        postgres_image: Some("example.org/postgres:1".to_owned()),
        api_image: Some("example.org/dialog-api:1".to_owned()),
        pull: Pull { secrets: vec!["registry".to_owned()], policy: Some(PullPolicy::Always) },
        namespace: None,
    }
}

/// Groups that have a database already.
fn initialized(groups: &[Group]) -> Observed {
    let group =
        ObservedGroup { replicas: 1, system_identifier: Some("7".to_owned()), ..ObservedGroup::default() };
    Observed { groups: groups.iter().map(|name| (*name, group.clone())).collect(), ..Observed::default() }
}

fn objects(cluster: &DialogCluster, observed: &Observed) -> Objects {
    let target = Target::new(cluster, &settings(), observed).unwrap();
    let groups = target.groups.keys().copied().collect();
    let now = "2026-03-01T00:00:00Z".parse().unwrap();
    let certificates = Certificates::ensure(&Secrets::new(), &target.names, &groups, now).unwrap();
    let mut objects = build(&target, &certificates);
    for template in objects
        .stateful_sets
        .iter_mut()
        .filter_map(|set| set.spec.as_mut().map(|spec| &mut spec.template))
        .chain(
            objects.deployments.iter_mut().filter_map(|one| one.spec.as_mut().map(|spec| &mut spec.template)),
        )
    {
        let annotations = template.metadata.as_mut().unwrap().annotations.as_mut().unwrap();
        for value in annotations.values_mut() {
            "a hash".clone_into(value);
        }
    }
    for Secret { data, .. } in &mut objects.secrets {
        for bytes in data.as_mut().unwrap().values_mut() {
            bytes.0.clear();
        }
    }
    objects
}

fn yaml<T: Serialize>(objects: &[T]) -> String {
    let documents: Vec<_> = objects.iter().map(|object| serde_yaml_ng::to_string(object).unwrap()).collect();
    format!("---\n{}", documents.join("---\n"))
}

#[test]
fn every_kind_as_it_is_built() {
    let observed = initialized(&[Group::Coordinator, Group::Worker(0)]);
    let objects = objects(&full(), &observed);
    let kinds: BTreeMap<&str, String> = BTreeMap::from([
        ("secrets", yaml(&objects.secrets)),
        ("config_maps", yaml(&objects.config_maps)),
        ("rbac", yaml(&objects.service_accounts) + &yaml(&objects.roles) + &yaml(&objects.role_bindings)),
        ("services", yaml(&objects.services)),
        ("stateful_sets", yaml(&objects.stateful_sets)),
        ("deployment", yaml(&objects.deployments)),
        ("ingress", yaml(&objects.ingresses)),
        ("disruption_budgets", yaml(&objects.disruption_budgets)),
    ]);
    for (kind, text) in kinds {
        insta::assert_snapshot!(kind, text);
    }
}

#[test]
fn a_single_node_without_an_ingress_needs_less() {
    let single = cluster(&json!({ "workers": { "count": 0 }, "api": { "replicas": 1 } }));
    let objects = objects(&single, &Observed::default());
    assert_eq!(objects.stateful_sets.len(), 1);
    assert!(objects.ingresses.is_empty() && objects.disruption_budgets.is_empty());
}

#[test]
fn an_ingress_names_the_class_asked_for_or_the_default() {
    let mut observed = Observed::default();
    observed.ingress_classes.default = Some("nginx".to_owned());
    let class = |ingress: serde_json::Value| {
        let cluster = cluster(&json!({ "api": { "ingress": ingress } }));
        objects(&cluster, &observed).ingresses[0].spec.clone().unwrap().ingress_class_name
    };
    assert_eq!(class(json!({ "host": "a.b", "className": "traefik" })).as_deref(), Some("traefik"));
    assert_eq!(class(json!({ "host": "a.b" })).as_deref(), Some("nginx"));
}

#[test]
fn every_object_belongs_to_its_cluster() {
    let cluster = full();
    let owner = cluster.controller_owner_ref(&()).unwrap();
    let kinds = objects(&cluster, &Observed::default()).into_kinds(&owner).unwrap();
    for kind in &kinds {
        assert!(!kind.objects.is_empty(), "nothing of kind {} was built", kind.resource.kind);
        for object in &kind.objects {
            let owners: Vec<_> =
                object.owner_references().iter().map(|owner| (&*owner.uid, owner.controller)).collect();
            assert_eq!(owners, [("5f1d", Some(true))], "{}", kind.called(&object.name_any()));
        }
    }
    // Coordinator and worker: 8 Secrets, 9 ConfigMaps, 3 ServiceAccounts, 4 for RBAC, 8 Services, 2 StatefulSets,
    // Deployment, Ingress, and budgets for the coordinator and dialog-api.
    let count: usize = kinds.iter().map(|kind| kind.objects.len()).sum();
    assert_eq!(count, 8 + 9 + 3 + 4 + 8 + 2 + 1 + 1 + 2);
}

fn replicas(objects: &Objects) -> Vec<i32> {
    objects.stateful_sets.iter().map(|set| set.spec.as_ref().unwrap().replicas.unwrap()).collect()
}

fn may_bootstrap(objects: &Objects, group: Group) -> bool {
    let configuration = objects.config_maps[0].data.as_ref().unwrap();
    configuration[&config_maps::key(group)].contains("\"bootstrap\":")
}

#[test]
fn standbys_come_once_there_is_a_database() {
    assert_eq!(replicas(&objects(&full(), &Observed::default())), [1, 1]);
    assert_eq!(replicas(&objects(&full(), &initialized(&[Group::Coordinator]))), [2, 1]);
}

#[test]
fn volumes_that_outlived_a_cluster_are_adopted_and_nobody_may_make_a_new_database() {
    let mut observed = Observed::default();
    let one = objects(&full(), &observed);
    assert!(may_bootstrap(&one, Group::Coordinator));
    for ordinal in [0, 1] {
        observed.claims.entry(Group::Coordinator).or_default().insert(ordinal, Claim::default());
    }
    let adopted = objects(&full(), &observed);
    assert_eq!(replicas(&adopted), [2, 1]);
    assert!(!may_bootstrap(&adopted, Group::Coordinator) && may_bootstrap(&adopted, Group::Worker(0)));
}

#[test]
fn volumes_that_were_to_go_with_a_worker_stay_once_it_is_asked_for_again() {
    let mut observed = initialized(&[Group::Coordinator, Group::Worker(0), Group::Worker(1)]);
    let leaver = observed.groups.get_mut(&Group::Worker(1)).unwrap();
    leaver.volumes_follow = true;
    let deleted_with_it = |count: i32, observed: &Observed| {
        let built = objects(&cluster(&json!({ "workers": { "count": count } })), observed);
        let policy = |set: &StatefulSet| {
            let policy = set.spec.as_ref()?.persistent_volume_claim_retention_policy.as_ref()?;
            Some((set.name_any(), policy.when_deleted.clone()?))
        };
        built.stateful_sets.iter().filter_map(policy).filter(|(_, when)| when == "Delete").collect::<Vec<_>>()
    };
    let said = |name: &str| vec![(name.to_owned(), "Delete".to_owned())];
    assert_eq!(deleted_with_it(1, &observed), said("chat-worker-1"), "it is still leaving");
    assert_eq!(
        deleted_with_it(2, &observed),
        [],
        "whoever deletes the StatefulSet by hand would lose its data"
    );
    // Nobody but the one who asks the databases has volumes go.
    observed.groups.get_mut(&Group::Worker(1)).unwrap().volumes_follow = false;
    assert_eq!(deleted_with_it(1, &observed), []);
}

#[test]
fn an_instance_is_taken_away_only_while_one_that_stays_is_certainly_the_primary() {
    let instance = |ordinal: i32, is_primary: bool| Instance {
        pod: format!("chat-coordinator-{ordinal}"),
        ordinal,
        is_primary,
        is_ready: true,
        patroni: Member { state: "running".to_owned(), ..Member::default() },
        ..Instance::default()
    };
    let group = |label: i32, leader: i32| ObservedGroup {
        replicas: 2,
        system_identifier: Some("7".to_owned()),
        leader: Some(format!("chat-coordinator-{leader}")),
        instances: vec![instance(0, label == 0), instance(1, label == 1)],
        ..ObservedGroup::default()
    };
    let replicas = |group: &ObservedGroup| GroupTarget::new(1, Some(group), Some(1)).replicas;
    assert_eq!(replicas(&group(0, 0)), 1);
    assert_eq!(replicas(&group(1, 1)), 2);
    // In the middle of a switchover the label is of the old primary.
    assert_eq!(replicas(&group(0, 1)), 2);
    let mut starting = group(0, 0);
    starting.instances[0].patroni.state = "starting".to_owned();
    assert_eq!(replicas(&starting), 2);
}

#[test]
fn groups_that_are_not_asked_for_any_more_stay() {
    let shrunk = cluster(&json!({ "workers": { "count": 1 } }));
    let observed = initialized(&[Group::Coordinator, Group::Worker(0), Group::Worker(1)]);
    assert_eq!(objects(&shrunk, &observed).stateful_sets.len(), 3);
}

#[test]
fn a_missing_image_is_a_refusal_that_names_the_field() {
    let refusal = Target::new(&full(), &Settings::default(), &Observed::default()).unwrap_err();
    assert_eq!(refusal.reason, "ImageMissing");
    assert!(refusal.message.contains("spec.image"), "{}", refusal.message);
}
