//! Worlds that cannot be made with the servers of one machine, and what is said of them.

use std::collections::BTreeMap;

use serde_json::json;

use crate::api::DialogClusterSpec;
use crate::condition::{
    BALANCED, CITUS_AVAILABLE, Finding, METADATA_SYNCED, PARAMETERS_APPLIED, SCALE_IN_BLOCKED,
    SCHEMA_DISTRIBUTED, WAL_LEVEL_LOGICAL,
};
use crate::names::{Group, Names};
use crate::pg::Endpoint;
use crate::shards::heat::Heat;
use crate::shards::observed::{
    Catalog, Citus, Facts, Member, Node, Observed, Parameter, Placement, Role, Spread, Table,
};
use crate::shards::plan::plan;
use crate::shards::rebalance::HashRange;
use crate::shards::topology::Topology;
use crate::shards::wanted::Wanted;

mod copies;
mod heat;
mod held;
mod leaving;
mod many;
mod moves;
mod order;
mod orphans;

/// A cluster at rest with one worker.
pub(crate) fn at_rest() -> Observed {
    let topology = topology();
    let facts = Facts {
        version: "15.20".to_owned(),
        inside: true,
        operator: Some(Role { login: true, superuser: true }),
        api: Some(Role { login: true, superuser: false }),
        database_owner: Some("dialog_api".to_owned()),
        citus: Citus {
            available: Some("13.2-1".to_owned()),
            preloaded: true,
            installed: Some("13.2-1".to_owned()),
            release: Some("13.2.2".to_owned()),
        },
        settings: BTreeMap::from([("wal_level".to_owned(), "logical".to_owned())]),
        parameters: BTreeMap::new(),
        overrides: Vec::new(),
        own_tables: true,
        sizes: Some(
            [1000, 2000].into_iter().flat_map(|first| first..first + 48).map(|shard| (shard, 0)).collect(),
        ),
        ..Facts::default()
    };
    let groups = [Group::Coordinator, Group::Worker(0)];
    let members = groups.into_iter().zip(0..).map(|(group, group_id)| Member {
        endpoint: topology.endpoint(group).unwrap().clone(),
        node_id: group_id + 1,
        group_id,
        active: true,
        has_metadata: true,
        synced: true,
        should_have_shards: group != Group::Coordinator,
    });
    let placements = [1, 2].into_iter().flat_map(|colocation_id| ranges(colocation_id, 1, 0..48));
    let tables = wanted().tables.into_iter().map(|policy| {
        let column = policy.column.unwrap();
        let colocation_id = if column == "dialog_id" { 1 } else { 2 };
        let table = Table {
            ordinary: true,
            column_type: Some("uuid".to_owned()),
            replica_identity: true,
            spread: Spread::Hash { column, colocation_id },
        };
        (policy.name, table)
    });
    Observed {
        nodes: groups.into_iter().map(|group| (group, Node::Up(Box::new(facts.clone())))).collect(),
        catalog: Some(Catalog {
            members: members.collect(),
            placements: placements.collect(),
            ..Catalog::default()
        }),
        tables: tables.collect(),
        existing: groups.into(),
        heat: Some(Heat::default()),
        ..Observed::default()
    }
}

/// Some of the 48 ranges of a colocation group of three tables, on one node.
pub(in crate::shards) fn ranges(
    colocation_id: i32,
    group_id: i32,
    which: std::ops::Range<i32>,
) -> impl Iterator<Item = Placement> {
    which.map(move |number| Placement {
        colocation_id,
        group_id,
        shard_id: i64::from(colocation_id * 1000 + number),
        range: HashRange { min: number * 100, max: number * 100 + 99 },
        shards: 3,
    })
}

pub(in crate::shards) fn topology() -> Topology {
    Topology::of_services(&Names::new("chat", "ns"))
}

pub(in crate::shards) fn wanted() -> Wanted {
    let spec: DialogClusterSpec = serde_json::from_value(json!({"workers": {"count": 1}})).unwrap();
    Wanted::from(&spec)
}

/// What is said of a cluster at rest after `change`, of one condition; nothing is done about it.
fn say(kind: &str, change: impl FnOnce(&mut Observed)) -> (&'static str, &'static str, String) {
    let mut observed = at_rest();
    change(&mut observed);
    let plan = plan(&wanted(), &topology(), &observed);
    assert_eq!(plan.steps, vec![], "{kind}");
    let Finding { holds, reason, message, .. } =
        plan.findings.into_iter().find(|finding| finding.kind == kind).unwrap();
    (holds.as_str(), reason, message)
}

pub(in crate::shards) fn facts(observed: &mut Observed, group: Group) -> &mut Facts {
    match observed.nodes.get_mut(&group).unwrap() {
        Node::Up(facts) => facts,
        Node::Down(_) => panic!("{group} is down"),
    }
}

pub(in crate::shards) fn catalog(observed: &mut Observed) -> &mut Catalog {
    observed.catalog.as_mut().unwrap()
}

fn table<'a>(observed: &'a mut Observed, name: &str) -> &'a mut Table {
    observed.tables.get_mut(name).unwrap()
}

#[test]
fn a_cluster_at_rest_says_so() {
    for (kind, reason) in [
        (CITUS_AVAILABLE, "Installed"),
        (METADATA_SYNCED, "Synced"),
        (WAL_LEVEL_LOGICAL, "Logical"),
        (PARAMETERS_APPLIED, "Applied"),
        (SCHEMA_DISTRIBUTED, "Distributed"),
        (BALANCED, "Balanced"),
    ] {
        let found = say(kind, |_| {});
        assert_eq!((found.0, found.1), ("True", reason), "{}", found.2);
    }
}

#[test]
fn an_image_without_citus_is_answered_by_what_to_do() {
    let without = |observed: &mut Observed| {
        for group in [Group::Coordinator, Group::Worker(0)] {
            facts(observed, group).citus = Citus::default();
        }
        observed.catalog = None;
        observed.tables.clear();
    };
    let (status, reason, message) = say(CITUS_AVAILABLE, without);
    assert_eq!((status, reason), ("False", "NotInImage"));
    assert!(
        message.contains("without the workers asked for (1)") && message.contains("set spec.image"),
        "{message}"
    );
    for kind in [METADATA_SYNCED, SCHEMA_DISTRIBUTED, BALANCED] {
        let found = say(kind, without);
        assert_eq!((found.0, found.1), ("Unknown", "CitusUnavailable"), "{kind}");
    }
    assert_eq!(say(WAL_LEVEL_LOGICAL, without).0, "True");
}

#[test]
fn an_extension_of_two_versions_is_named_with_its_nodes() {
    let (status, reason, message) = say(CITUS_AVAILABLE, |observed| {
        facts(observed, Group::Worker(0)).citus.installed = Some("13.1-1".to_owned());
    });
    assert_eq!((status, reason), ("False", "VersionsDiffer"));
    assert!(message.contains("13.1-1 on worker-0; 13.2-1 on coordinator"), "{message}");
}

#[test]
fn a_setting_that_differs_is_named_and_keeps_citus_available() {
    let (status, reason, message) = say(CITUS_AVAILABLE, |observed| {
        let settings = &mut facts(observed, Group::Worker(0)).settings;
        settings.insert("max_wal_senders".to_owned(), "3".to_owned());
        settings.insert("output_plugin_libraries".to_owned(), "pgoutput, test_decoding".to_owned());
        settings.insert("citus.node_conninfo".to_owned(), "sslmode=require sslkey=/secret".to_owned());
    });
    assert_eq!((status, reason), ("True", "SettingsDiffer"));
    for part in [
        "max_wal_senders is 3 on worker-0",
        "output_plugin_libraries is pgoutput, test_decoding on worker-0",
        "citus.node_conninfo is without sslmode=verify-full on worker-0",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("/secret"), "{message}");
}

#[test]
fn a_node_that_is_none_of_ours_is_named() {
    let (status, reason, message) = say(METADATA_SYNCED, |observed| {
        let mut stranger = catalog(observed).members[1].clone();
        stranger.endpoint = Endpoint::new("10.0.0.7", 5432);
        stranger.group_id = 7;
        catalog(observed).members.push(stranger);
    });
    assert_eq!((status, reason), ("False", "UnknownNode"));
    assert!(message.contains("10.0.0.7:5432"), "{message}");
}

#[test]
fn metadata_that_is_behind_is_waited_for() {
    let (status, reason, message) =
        say(METADATA_SYNCED, |observed| catalog(observed).members[1].synced = false);
    assert_eq!((status, reason), ("False", "OutOfSync"));
    assert!(message.contains("chat-worker-0.ns.svc:5432"), "{message}");
}

#[test]
fn a_table_that_cannot_be_spread_is_named_with_the_remedy() {
    type Change = fn(&mut Observed);
    let cases: [(Change, &str, &str); 7] = [
        (|o| table(o, "dialogs").ordinary = false, "NotATable", "dialogs"),
        (|o| table(o, "dialogs").column_type = None, "ColumnMissing", "no column dialog_id"),
        (|o| table(o, "dialogs").spread = Spread::Reference, "SpreadOtherwise", "undistribute_table"),
        (
            |o| {
                table(o, "dialogs").spread = Spread::Hash { column: "dialog_id".to_owned(), colocation_id: 9 }
            },
            "NotColocated",
            "colocate_with => 'public.messages'",
        ),
        (
            |o| {
                let table = table(o, "dialogs");
                (table.spread, table.column_type) = (Spread::PlainEmpty, Some("bigint".to_owned()));
            },
            "TypesDiffer",
            "distributed by one of type uuid",
        ),
        (
            |o| {
                let table = table(o, "dialogs");
                (table.spread, table.replica_identity) = (Spread::PlainWithRows, false);
            },
            "NoReplicaIdentity",
            "primary key",
        ),
        (
            |o| {
                table(o, "dialogs").spread = Spread::PlainWithRows;
                let settings = &mut facts(o, Group::Coordinator).settings;
                settings.insert("wal_level".to_owned(), "replica".to_owned());
            },
            "SettingsDiffer",
            "wal_level",
        ),
    ];
    for (change, expected, part) in cases {
        let (status, reason, message) = say(SCHEMA_DISTRIBUTED, change);
        assert_eq!((status, reason), ("False", expected), "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn balance_is_counted_in_what_moves_together() {
    let mut two = wanted();
    two.workers = 2;
    let say_of_two = |first: i32| {
        let mut observed = at_rest();
        let worker = observed.nodes[&Group::Worker(0)].clone();
        observed.nodes.insert(Group::Worker(1), worker);
        let catalog = catalog(&mut observed);
        let mut other = catalog.members[1].clone();
        other.endpoint = Endpoint::new("chat-worker-1.ns.svc", 5432);
        other.group_id = 2;
        catalog.members.push(other);
        catalog.placements = ranges(1, 1, 0..first).chain(ranges(1, 2, first..48)).collect();
        let plan = plan(&two, &topology(), &observed);
        plan.findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap().reason
    };
    assert_eq!(say_of_two(24), "Balanced");
    assert_eq!(say_of_two(25), "Balanced", "within the threshold");
    assert_eq!(say_of_two(48), "Moving");
    let (status, reason, _) = say(BALANCED, |observed| catalog(observed).placements.clear());
    assert_eq!((status, reason), ("Unknown", "NoShards"));
}

#[test]
fn a_group_too_many_leaves_and_nobody_leaves_while_nothing_answers() {
    assert_eq!(say(SCALE_IN_BLOCKED, |_| {}).1, "NothingToRemove");
    let (status, reason, message) = say(SCALE_IN_BLOCKED, |observed| {
        observed.existing.insert(Group::Worker(3));
    });
    assert_eq!((status, reason), ("False", "Removing"));
    assert!(message.contains("no shard is placed on worker-3"), "{message}");

    let (status, reason, message) = say(SCALE_IN_BLOCKED, |observed| {
        observed.existing.insert(Group::Worker(1));
        observed.nodes.insert(Group::Coordinator, Node::Down("refused".to_owned()));
        observed.catalog = None;
    });
    assert_eq!((status, reason), ("Unknown", "NotObserved"), "{message}");
}

#[test]
fn a_parameter_that_is_not_in_force_is_named_with_its_node() {
    type Change = fn(&mut Parameter);
    let fine = Parameter { known: true, written: Some("64MB".to_owned()), ..Parameter::default() };
    let say = |name: &str, change: &dyn Fn(&mut Parameter)| {
        let mut wanted = wanted();
        wanted.parameters.insert(name.to_owned(), "64MB".to_owned());
        let mut observed = at_rest();
        for group in [Group::Coordinator, Group::Worker(0)] {
            facts(&mut observed, group).parameters.insert(name.to_owned(), fine.clone());
        }
        change(facts(&mut observed, Group::Worker(0)).parameters.get_mut(name).unwrap());
        let plan = plan(&wanted, &topology(), &observed);
        let found = plan.findings.into_iter().find(|finding| finding.kind == PARAMETERS_APPLIED).unwrap();
        (found.holds.as_str(), found.reason, found.message)
    };
    let cases: [(&str, Change, &str, &str); 7] = [
        ("work_mem", |_| {}, "Applied", "every node has the parameters"),
        (
            "wrok_mem",
            |p| p.known = false,
            "ParametersIgnored",
            "worker-0's PostgreSQL has no parameter wrok_mem",
        ),
        ("citus.later", |p| p.known = false, "Applied", "every node has the parameters"),
        (
            "work_mem",
            |p| p.written = None,
            "ParametersIgnored",
            "work_mem is not in the configuration of worker-0",
        ),
        ("work_mem", |p| p.written = Some("64kB".to_owned()), "ParametersIgnored", "work_mem is 64kB"),
        (
            "work_mem",
            |p| p.error = Some("setting could not be applied".to_owned()),
            "ParametersRejected",
            "worker-0's PostgreSQL refuses work_mem = 64MB: setting could not be applied",
        ),
        (
            "shared_buffers",
            |p| (p.restart_pending, p.error) = (true, Some("setting could not be applied".to_owned())),
            "RestartPending",
            "shared_buffers takes a restart of worker-0",
        ),
    ];
    for (name, change, expected, part) in cases {
        let (status, reason, message) = say(name, &change);
        assert_eq!((status == "True", reason), (expected == "Applied", expected), "{message}");
        assert!(message.contains(part) && !message.contains("coordinator"), "{message}");
    }
}
