//! Properties of the plan, through an interpreter of its steps.
//!
//! The interpreter is no stand-in for Citus (the tests against real servers are for that): it knows just enough of what
//! a step does to ask whether plans lead anywhere, and it checks before each step that the step is safe.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Plan, plan};
use crate::api::{Table as Policy, TableKind};
use crate::condition::Holds;
use crate::names::{Group, Names};
use crate::shards::observed::{
    Catalog, Citus, Facts, Member, Node, Observed, Placements, Role, Spread, Table,
};
use crate::shards::step::{API_ROLE, Beside, Distribution, KINDS, Step};
use crate::shards::topology::Topology;
use crate::shards::wanted::Wanted;

const WHOLE: Role = Role { login: true, superuser: true };

/// What is really there.
#[derive(Clone, Debug)]
struct Truth {
    topology: Topology,
    servers: BTreeMap<Group, Server>,
    members: Vec<Member>,
    tables: BTreeMap<String, Table>,
    /// Nodes of each colocation group, by Citus' group numbers.
    colocation: BTreeMap<i32, Vec<i32>>,
}

#[derive(Clone, Debug)]
struct Server {
    up: bool,
    facts: Facts,
}

impl Truth {
    /// What the servers would say.
    fn look(&self, wanted: &Wanted) -> Observed {
        let mut observed = Observed::default();
        let catalog =
            Catalog { members: self.members.clone(), placements: self.placements(), operations: Vec::new() };
        if let Node::Up(facts) = self.node(Group::Coordinator)
            && facts.inside
        {
            observed.tables = self.tables.clone();
            observed.catalog = (facts.citus.installed.is_some() && facts.citus.preloaded).then_some(catalog);
        }
        let registered = observed.catalog.iter().flat_map(|catalog| catalog.groups(&self.topology));
        let groups: BTreeSet<Group> = (0..wanted.workers).map(Group::Worker).chain(registered).collect();
        observed.nodes =
            groups.into_iter().chain([Group::Coordinator]).map(|group| (group, self.node(group))).collect();
        observed
    }

    fn node(&self, group: Group) -> Node {
        let Some(server) = self.servers.get(&group).filter(|server| server.up) else {
            return Node::Down("connection refused".to_owned());
        };
        let mut facts = server.facts.clone();
        facts.inside = facts.operator == Some(WHOLE) && facts.database_owner.is_some();
        if !facts.inside {
            facts.citus.installed = None;
        }
        Node::Up(Box::new(facts))
    }

    fn placements(&self) -> Vec<Placements> {
        let mut counts: BTreeMap<(i32, i32), (i64, i64)> = BTreeMap::new();
        for (id, nodes) in &self.colocation {
            let tables = self.tables.values().filter(
                |table| matches!(&table.spread, Spread::Hash { colocation_id, .. } if colocation_id == id),
            );
            let tables = i64::try_from(tables.count()).unwrap();
            for node in nodes {
                let count = counts.entry((*id, *node)).or_default();
                *count = (count.0 + tables, count.1 + 1);
            }
        }
        counts
            .into_iter()
            .map(|((colocation_id, group_id), (shards, ranges))| Placements {
                colocation_id,
                group_id,
                shards,
                ranges,
            })
            .collect()
    }

    fn facts(&mut self, group: Group) -> &mut Facts {
        let server = self.servers.get_mut(&group).expect("a step for a server that does not exist");
        assert!(server.up, "a step for {group}, which is away");
        &mut server.facts
    }

    fn member(&mut self, group: Group) -> Option<&mut Member> {
        let endpoint = self.topology.endpoint(group).unwrap().clone();
        self.members.iter_mut().find(|member| member.endpoint == endpoint)
    }

    /// Every change of the catalogs goes to all nodes that Citus uses.
    fn assert_all_can_follow(&self) {
        for member in self.members.iter().filter(|member| member.active) {
            let group = self.topology.group(&member.endpoint).unwrap();
            assert!(self.servers.get(&group).is_some_and(|server| server.up), "{group} cannot follow");
            assert!(member.synced, "{group} is behind");
        }
    }

    /// Does what `step` does, after making sure that it is safe to do.
    fn apply(&mut self, step: &Step) {
        match step {
            Step::CreateOperatorRole { group } => self.facts(*group).operator = Some(WHOLE),
            Step::CreateApiRole { group } => {
                let login = *group != Group::Coordinator;
                self.facts(*group).api = Some(Role { login, superuser: false });
            }
            Step::CreateDatabase { group } | Step::SetDatabaseOwner { group } => {
                let facts = self.facts(*group);
                assert!(facts.operator == Some(WHOLE) && facts.api.is_some());
                facts.database_owner = Some(API_ROLE.to_owned());
            }
            Step::CreateExtension { group } => {
                let facts = self.facts(*group);
                assert!(facts.database_owner.is_some() && facts.citus.preloaded);
                facts.citus.installed = facts.citus.available.clone();
                assert!(facts.citus.installed.is_some(), "the image has no extension");
            }
            Step::ResetSetting { group, name } => {
                self.facts(*group).overrides.retain(|other| other != name);
            }
            Step::AllowLogin { group } => {
                let facts = self.facts(*group);
                let settled = facts.citus.installed.is_some()
                    || facts.citus.available.is_none()
                    || !facts.citus.preloaded;
                assert!(settled, "dialog_api would meet a database that is about to get Citus");
                facts.api.as_mut().unwrap().login = true;
            }
            Step::SetCoordinatorHost => {
                self.assert_all_can_follow();
                let endpoint = self.topology.endpoint(Group::Coordinator).unwrap().clone();
                self.members.push(Member {
                    endpoint,
                    group_id: 0,
                    active: true,
                    synced: true,
                    should_have_shards: false,
                });
            }
            Step::AddNode { group } => {
                self.assert_all_can_follow();
                assert!(
                    self.members.iter().any(|member| member.group_id == 0),
                    "the coordinator comes first"
                );
                let first = self.facts(Group::Coordinator).citus.installed.clone();
                assert_eq!(self.facts(*group).citus.installed, first);
                assert!(self.member(*group).is_none());
                let group_id = self.members.iter().map(|member| member.group_id).max().unwrap() + 1;
                let endpoint = self.topology.endpoint(*group).unwrap().clone();
                self.members.push(Member {
                    endpoint,
                    group_id,
                    active: true,
                    synced: true,
                    should_have_shards: true,
                });
            }
            Step::ActivateNode { group } => {
                self.assert_all_can_follow();
                self.facts(*group);
                self.member(*group).unwrap().active = true;
            }
            Step::SetShouldHaveShards { group, value } => {
                self.assert_all_can_follow();
                self.member(*group).unwrap().should_have_shards = *value;
                assert!(self.members.iter().any(|member| member.should_have_shards), "nobody holds shards");
            }
            Step::CreateReferenceTable { table, .. } => {
                let group_ids = self.members.iter().map(|member| member.group_id).collect();
                self.tables.get_mut(table).unwrap().spread = Spread::Reference { group_ids };
            }
            Step::ReplicateReferenceTables => {
                let all: Vec<i32> = self.members.iter().map(|member| member.group_id).collect();
                for table in self.tables.values_mut() {
                    if let Spread::Reference { group_ids } = &mut table.spread {
                        group_ids.clone_from(&all);
                    }
                }
            }
            Step::DistributeTable(distribution) => {
                let table = &self.tables[&distribution.table];
                assert_eq!(table.spread, Spread::PlainEmpty, "it holds rows up while it copies");
                self.distribute(distribution);
            }
            Step::DistributeConcurrently(distribution) => {
                let table = &self.tables[&distribution.table];
                assert!(table.replica_identity, "changes would be lost");
                let nodes = self.distribute(distribution);
                assert!(!nodes.contains(&0), "the copy would hang");
            }
        }
    }

    /// Spreads a table; the nodes that its shards land on.
    fn distribute(&mut self, distribution: &Distribution) -> Vec<i32> {
        self.assert_all_can_follow();
        let holders: Vec<i32> = self
            .members
            .iter()
            .filter(|member| member.active && member.should_have_shards)
            .map(|member| member.group_id)
            .collect();
        assert!(!holders.is_empty(), "nowhere to put shards");
        let id = match &distribution.beside {
            Beside::Nothing { shard_count } => {
                let id = self.colocation.keys().max().map_or(1, |id| id + 1);
                let count = usize::try_from(*shard_count).unwrap();
                self.colocation.insert(id, holders.into_iter().cycle().take(count).collect());
                id
            }
            Beside::Table(other) => match &self.tables[other] {
                Table { spread: Spread::Hash { colocation_id, .. }, column_type, .. } => {
                    assert_eq!(*column_type, self.tables[&distribution.table].column_type);
                    *colocation_id
                }
                other => panic!("beside a table that is not distributed: {other:?}"),
            },
        };
        let spread = Spread::Hash { column: distribution.column.clone(), colocation_id: id };
        self.tables.get_mut(&distribution.table).unwrap().spread = spread;
        self.colocation[&id].clone()
    }
}

/// Follows plans, one first step after the other, until there is none.
fn follow(truth: &mut Truth, wanted: &Wanted) -> (Vec<Step>, Plan) {
    let mut done = Vec::new();
    loop {
        let observed = truth.look(wanted);
        let next = plan(wanted, &truth.topology, &observed);
        assert_eq!(next, plan(wanted, &truth.topology, &observed), "the same world has the same plan");
        let kinds: Vec<&str> = next.findings.iter().map(|finding| finding.kind).collect();
        assert_eq!(kinds, crate::shards::status::PART.conditions, "every condition, every time");
        let Some(step) = next.steps.first() else { return (done, next) };
        assert!(KINDS.contains(&step.kind()));
        truth.apply(step);
        done.push(step.clone());
        assert!(done.len() < 500, "no end: {:?}", &done[450..]);
    }
}

fn role() -> impl Strategy<Value = Option<Role>> {
    prop_oneof![
        3 => Just(Some(WHOLE)),
        2 => Just(None),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(login, superuser)| Some(Role { login, superuser })),
    ]
}

prop_compose! {
    fn server()(
        up in prop::bool::weighted(0.85),
        operator in role(),
        api in role(),
        owner in prop::option::weighted(0.7, prop_oneof![4 => Just(API_ROLE), 1 => Just("postgres")]),
        image in prop_oneof![8 => Just((Some("13.2-1"), true)), 1 => Just((None, false)), 1 => Just((Some("13.2-1"), false))],
        installed in prop_oneof![3 => Just(Some("13.2-1")), 3 => Just(None), 1 => Just(Some("13.1-1"))],
        overrides in prop::collection::btree_set(prop_oneof![Just("wal_level"), Just("ssl")], 0..2),
        level in prop_oneof![4 => Just("logical"), 1 => Just("replica")],
    ) -> Server {
        let database_owner = owner.map(str::to_owned);
        let installed = installed.filter(|_| database_owner.is_some() && image.0.is_some()).map(str::to_owned);
        let citus = Citus { available: image.0.map(str::to_owned), preloaded: image.1, installed, release: None };
        let settings = BTreeMap::from([("wal_level".to_owned(), level.to_owned())]);
        let overrides = overrides.into_iter().map(str::to_owned).collect();
        // A role that owns a database exists.
        let api = api.or_else(|| database_owner.as_ref().map(|_| Role { login: false, superuser: false }));
        Server { up, facts: Facts { operator, api, database_owner, citus, settings, overrides, ..Facts::default() } }
    }
}

fn policy() -> Vec<Policy> {
    let distributed = |name: &str, group: &str| Policy {
        name: name.to_owned(),
        kind: TableKind::Distributed,
        column: Some("id".to_owned()),
        group: Some(group.to_owned()),
    };
    vec![
        distributed("messages", "dialog"),
        distributed("dialogs", "dialog"),
        distributed("users", "user"),
        Policy { name: "emoji".to_owned(), kind: TableKind::Reference, column: None, group: None },
    ]
}

prop_compose! {
    fn table()(
        ordinary in prop::bool::weighted(0.95),
        column_type in prop_oneof![1 => Just(None), 6 => Just(Some("uuid")), 1 => Just(Some("bigint"))],
        replica_identity in prop::bool::weighted(0.8),
        spread in prop_oneof![
            4 => Just(Spread::PlainEmpty),
            2 => Just(Spread::PlainWithRows),
            2 => Just(Spread::Hash { column: "id".to_owned(), colocation_id: 1 }),
            1 => Just(Spread::Hash { column: "id".to_owned(), colocation_id: 2 }),
            1 => Just(Spread::Hash { column: "other".to_owned(), colocation_id: 1 }),
            1 => Just(Spread::Reference { group_ids: vec![0] }),
            1 => Just(Spread::Other),
        ],
    ) -> Table {
        Table { ordinary, column_type: column_type.map(str::to_owned), replica_identity, spread }
    }
}

prop_compose! {
    /// Any world: half-made servers, rows in every state, tables in every shape.
    fn world()(
        workers in 0_u32..4,
        servers in prop::collection::vec(server(), 5),
        members in prop::collection::vec((prop::bool::weighted(0.6), prop::bool::weighted(0.9), prop::bool::weighted(0.9), any::<bool>()), 5),
        tables in prop::collection::vec(prop::option::weighted(0.8, table()), 4),
        on_coordinator in any::<bool>(),
    ) -> (Wanted, Truth) {
        let topology = Topology::of_services(&Names::new("chat", "ns"));
        let group = |index: u32| if index == 0 { Group::Coordinator } else { Group::Worker(index - 1) };
        let servers: BTreeMap<Group, Server> = (0..).map(group).zip(servers).collect();
        let installed = servers[&Group::Coordinator].facts.citus.installed.is_some();
        let members: Vec<Member> = (0..5)
            .zip(members)
            .filter(|(_, (registered, ..))| *registered && installed)
            .map(|(index, (_, active, synced, should_have_shards))| Member {
                endpoint: topology.endpoint(group(index)).unwrap().clone(),
                group_id: i32::try_from(index).unwrap(),
                active: active || index == 0,
                synced,
                should_have_shards,
            })
            .collect();
        let policy = policy();
        let mut tables: BTreeMap<String, Table> = policy
            .iter()
            .zip(tables)
            .filter_map(|(policy, table)| Some((policy.name.clone(), table?)))
            .collect();
        for (name, table) in &mut tables {
            if name == "emoji" {
                table.column_type = None;
            }
            if matches!(table.spread, Spread::Hash { .. } | Spread::Reference { .. } | Spread::Other) && !installed {
                table.spread = Spread::PlainEmpty;
            }
        }
        let nodes = if on_coordinator { vec![0; 48] } else { vec![1; 48] };
        let colocation = BTreeMap::from([(1, nodes.clone()), (2, nodes)]);
        (Wanted { workers, shard_count: 48, tables: policy, parameters: BTreeMap::new() }, Truth { topology, servers, members, tables, colocation })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// From anywhere, safe steps lead to a world in which there are none left.
    #[test]
    fn every_plan_ends((wanted, mut truth) in world()) {
        let (_, last) = follow(&mut truth, &wanted);
        let (again, same) = follow(&mut truth, &wanted);
        prop_assert!(again.is_empty());
        prop_assert_eq!(last, same);
    }

    /// Where nothing stands in the way, everything that was asked for is there in the end, and the conditions say so.
    #[test]
    fn a_plan_without_obstacles_ends_well((wanted, mut truth) in world()) {
        for server in truth.servers.values_mut() {
            server.up = true;
            server.facts.citus.available = Some("13.2-1".to_owned());
            server.facts.citus.preloaded = true;
            server.facts.citus.installed = None;
            server.facts.settings.clear();
            server.facts.settings.insert("wal_level".to_owned(), "logical".to_owned());
        }
        truth.members.clear();
        truth.colocation.clear();
        for policy in &wanted.tables {
            let column_type = policy.column.as_ref().map(|_| "uuid".to_owned());
            let fresh = Table { ordinary: true, column_type, replica_identity: true, spread: Spread::PlainEmpty };
            truth.tables.insert(policy.name.clone(), fresh);
        }
        let (_, last) = follow(&mut truth, &wanted);
        prop_assert!(last.waits.is_empty(), "{:?}", last.waits);
        for finding in &last.findings {
            let expected = if finding.kind == crate::condition::SCALE_IN_BLOCKED { Holds::False } else { Holds::True };
            prop_assert_eq!(finding.holds, expected, "{:?}", finding);
        }
        prop_assert_eq!(truth.members.len(), 1 + wanted.workers as usize);
        // The coordinator holds shards only where there are no workers.
        let on_coordinator = truth.placements().iter().any(|at| at.group_id == 0);
        prop_assert_eq!(on_coordinator, wanted.workers == 0);
    }

    /// The count may go up and down: nobody leaves, and nothing is cut twice.
    #[test]
    fn a_smaller_count_removes_nothing((wanted, mut truth) in world(), fewer in 0_u32..4) {
        follow(&mut truth, &wanted);
        let before = (truth.members.len(), truth.colocation.clone());
        let fewer = Wanted { workers: fewer.min(wanted.workers), ..wanted };
        follow(&mut truth, &fewer);
        prop_assert!(truth.members.len() >= before.0);
        for (id, nodes) in before.1 {
            prop_assert_eq!(&truth.colocation[&id], &nodes);
        }
    }
}
