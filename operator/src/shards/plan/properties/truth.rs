//! What is really there, and what a step does to it.

use std::collections::{BTreeMap, BTreeSet};

use super::WHOLE;
use crate::names::Group;
use crate::shards::observed::{
    Catalog, Cleanup, Facts, Member, Node, Observed, Operation, Placement, Resources, Role, Spread,
    StoredShards, Table,
};
use crate::shards::rebalance::HashRange;
use crate::shards::step::{API_ROLE, Beside, Distribution, Step};
use crate::shards::topology::Topology;
use crate::shards::wanted::Wanted;

/// What is really there.
#[derive(Clone, Debug)]
pub(super) struct Truth {
    pub(super) topology: Topology,
    pub(super) servers: BTreeMap<Group, Server>,
    pub(super) members: Vec<Member>,
    pub(super) tables: BTreeMap<String, Table>,
    /// Nodes of each colocation group, by Citus' group numbers.
    pub(super) colocation: BTreeMap<i32, Vec<i32>>,
    /// Nodes that have a copy of each reference table.
    pub(super) copies: BTreeMap<String, BTreeSet<i32>>,
    /// What moves have left behind.
    pub(super) cleanup: Vec<Cleanup>,
    /// Bytes of shard groups, one after the other and then from the start again; empty ones where there are none.
    pub(super) sizes: Vec<i64>,
    /// The moves under way.
    pub(super) running: Vec<Step>,
}

/// Where a shard is whose node was taken away.
const LOST: i32 = -1;

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) up: bool,
    /// Bytes free on its volume of a tebibyte.
    pub(super) free: i64,
    /// Tables on it that are named like shards, and of which nobody has a note.
    pub(super) unnoted: i64,
    pub(super) facts: Facts,
}

/// How the session of a move that is under way is seen.
fn operation((pid, step): (i32, &Step)) -> Operation {
    let Step::MoveShard { shard_id, from, to } = step else { panic!("{step} is no move") };
    Operation { pid, application: Operation::name_of(*shard_id, *from, *to) }
}

impl Truth {
    /// What the servers would say.
    pub(super) fn look(&self, wanted: &Wanted) -> Observed {
        let mut observed = Observed::default();
        let catalog = Catalog {
            members: self.members.clone(),
            placements: self.placements(),
            cleanup: self.cleanup.clone(),
            operations: (100..).zip(&self.running).map(operation).collect(),
            copies: self.copies.clone(),
            ..Catalog::default()
        };
        if let Node::Up(facts) = self.node(Group::Coordinator)
            && facts.inside
        {
            observed.tables = self.tables.clone();
            observed.catalog = (facts.citus.installed.is_some() && facts.citus.preloaded).then_some(catalog);
        }
        let registered = observed.catalog.iter().flat_map(|catalog| catalog.groups(&self.topology));
        let groups: BTreeSet<Group> = (0..wanted.workers).map(Group::Worker).chain(registered).collect();
        observed.existing = (0..wanted.workers).map(Group::Worker).chain([Group::Coordinator]).collect();
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
        if facts.citus.installed.is_some() {
            let endpoint = self.topology.endpoint(group);
            let member = self.members.iter().find(|member| Some(&member.endpoint) == endpoint);
            let here = self
                .placements()
                .iter()
                .filter(|at| Some(at.group_id) == member.map(|it| it.group_id))
                .count();
            let number = member.map(|it| it.group_id);
            let placements = self.placements();
            let own = placements.iter().filter(|at| Some(at.group_id) == number);
            facts.sizes = Some(own.map(|at| (at.shard_id, self.size(at.shard_id))).collect());
            facts.resources = Some(Resources {
                free_bytes: server.free,
                total_bytes: 1 << 40,
                free_slots: 9,
                free_senders: 9,
                free_appliers: 9,
                free_workers: 9,
                stored_shards: Some(StoredShards {
                    count: i64::try_from(here).unwrap() + server.unnoted,
                    first: Vec::new(),
                }),
                ..Resources::default()
            });
        }
        Node::Up(Box::new(facts))
    }

    pub(super) fn placements(&self) -> Vec<Placement> {
        let mut placements = Vec::new();
        for (id, nodes) in &self.colocation {
            let tables = self.tables.values().filter(
                |table| matches!(&table.spread, Spread::Hash { colocation_id, .. } if colocation_id == id),
            );
            let shards = i64::try_from(tables.count()).unwrap();
            for (number, node) in (0..).zip(nodes).filter(|(_, node)| shards > 0 && **node != LOST) {
                placements.push(Placement {
                    colocation_id: *id,
                    group_id: *node,
                    shard_id: i64::from(id * 1000 + number),
                    range: HashRange { min: number * 100, max: number * 100 + 99 },
                    shards,
                });
            }
        }
        placements
    }

    /// Bytes of a shard group.
    pub(super) fn size(&self, shard_id: i64) -> i64 {
        let number = usize::try_from(shard_id).unwrap().checked_rem(self.sizes.len());
        number.map_or(0, |number| self.sizes[number])
    }

    /// Makes sure that no step of a plan would lose anything, were it done now: plans are made of what is, and not of what
    /// will be.
    pub(super) fn assert_safe(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::RemoveNode { group } => {
                    let group_id = self.member(*group).unwrap().group_id;
                    let held = self.placements().iter().filter(|at| at.group_id == group_id).count();
                    assert_eq!(held, 0, "{step}: it holds placements");
                    let server = self.servers.get(group).filter(|server| server.up);
                    assert!(server.is_none_or(|server| server.unnoted == 0), "{step}: it stores something");
                    let takes_part = |one: &Step| matches!(one, Step::MoveShard { from, to, .. } if from == group || to == group);
                    assert!(!self.running.iter().any(takes_part), "{step}: a shard is under way");
                }
                Step::MoveShard { shard_id, from, to } => {
                    let from = self.member(*from).unwrap().group_id;
                    let is_there = |at: &Placement| at.shard_id == *shard_id && at.group_id == from;
                    assert!(self.placements().iter().any(is_there), "{step}: it is not there");
                    assert!(!self.running.contains(step), "{step}: it is under way");
                    let free = self.servers[to].free;
                    assert!(self.size(*shard_id) <= free, "{step}: {free} bytes are free");
                }
                _ => {}
            }
        }
    }

    /// A move that is under way ends, and was made or for nothing.
    pub(super) fn end(&mut self, made: bool) {
        let step = self.running.remove(0);
        match step {
            _ if made => self.apply(&step),
            Step::MoveShard { to, .. } => {
                let group_id = self.member(to).unwrap().group_id;
                self.cleanup.push(Cleanup { group_id, records: 1 });
            }
            _ => panic!("{step} is no move"),
        }
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
    pub(super) fn apply(&mut self, step: &Step) {
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
            Step::CreateOwnTables => self.facts(Group::Coordinator).own_tables = true,
            // Nothing was decided in these worlds.
            Step::SplitShard(_)
            | Step::BeginIsolation { .. }
            | Step::SetPin { .. }
            | Step::Retarget { .. }
            | Step::RemovePin { .. }
            | Step::SetStrategy { .. }
            | Step::DropStrategy
            | Step::EndAction { .. } => panic!("{step}"),
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
            Step::SetCoordinatorHost
            | Step::AddNode { .. }
            | Step::ActivateNode { .. }
            | Step::UpdateNode { .. }
            | Step::RestoreNode { .. }
            | Step::SyncMetadata { .. }
            | Step::CancelMove { .. }
            | Step::RemoveNode { .. }
            | Step::SetShouldHaveShards { .. } => self.apply_to_nodes(step),
            Step::ForgetCleanup { group_id } => {
                assert!(self.members.iter().all(|member| member.group_id != *group_id));
                self.cleanup.retain(|left| left.group_id != *group_id);
            }
            Step::CleanUp => self.cleanup.clear(),
            Step::MoveShard { shard_id, from, to } => {
                self.assert_all_can_follow();
                let bytes = self.size(*shard_id);
                self.servers.get_mut(from).unwrap().free += bytes;
                self.servers.get_mut(to).unwrap().free -= bytes;
                let (from, to) = (self.member(*from).unwrap().group_id, self.member(*to).unwrap().clone());
                assert!(to.should_have_shards, "{step}: the target is not to hold shards");
                let (id, number) =
                    (i32::try_from(shard_id / 1000).unwrap(), usize::try_from(shard_id % 1000).unwrap());
                let node = &mut self.colocation.get_mut(&id).unwrap()[number];
                assert_eq!(*node, from, "{step}: it is not there");
                let copied = self.copies.values().all(|nodes| nodes.contains(&to.group_id));
                assert!(copied, "{step}: reference tables are missing on the target");
                *node = to.group_id;
                self.cleanup.push(Cleanup { group_id: from, records: 1 });
            }
            Step::CreateReferenceTable { table, .. } => {
                self.tables.get_mut(table).unwrap().spread = Spread::Reference;
                self.copies
                    .insert(table.clone(), self.members.iter().map(|member| member.group_id).collect());
            }
            Step::ReplicateReferenceTables => {
                let all: BTreeSet<i32> = self.members.iter().map(|member| member.group_id).collect();
                for nodes in self.copies.values_mut() {
                    nodes.clone_from(&all);
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

    /// What a step does to the nodes that Citus knows.
    fn apply_to_nodes(&mut self, step: &Step) {
        match step {
            Step::SetCoordinatorHost | Step::RestoreNode { group: Group::Coordinator, .. } => {
                self.assert_all_can_follow();
                let endpoint = self.topology.endpoint(Group::Coordinator).unwrap().clone();
                self.members.push(Member {
                    endpoint,
                    node_id: 1,
                    group_id: 0,
                    active: true,
                    has_metadata: true,
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
                    node_id: group_id + 1,
                    group_id,
                    active: true,
                    has_metadata: true,
                    synced: true,
                    should_have_shards: true,
                });
            }
            Step::ActivateNode { group } => {
                self.assert_all_can_follow();
                self.facts(*group);
                self.member(*group).unwrap().active = true;
            }
            Step::RemoveNode { group } => {
                let group_id = self.member(*group).unwrap().group_id;
                let all = self.colocation.values_mut().flatten();
                all.filter(|node| **node == group_id).for_each(|node| *node = LOST);
                assert!(
                    self.cleanup.iter().all(|left| left.group_id != group_id),
                    "its records would poison moves"
                );
                self.members.retain(|member| member.group_id != group_id);
                for nodes in self.copies.values_mut() {
                    nodes.remove(&group_id);
                }
            }
            Step::SetShouldHaveShards { group, value } => {
                self.assert_all_can_follow();
                self.member(*group).unwrap().should_have_shards = *value;
                assert!(self.members.iter().any(|member| member.should_have_shards), "nobody holds shards");
            }
            _ => panic!("nothing here asks for {step}"),
        }
    }

    /// Spreads a table; the nodes that its shards land on.
    fn distribute(&mut self, distribution: &Distribution) -> Vec<i32> {
        self.assert_all_can_follow();
        let apart = match &distribution.beside {
            Beside::Nothing { apart, .. } => apart.clone(),
            Beside::Table(_) => Vec::new(),
        };
        let is_apart = |member: &Member| {
            self.topology.group(&member.endpoint).is_some_and(|group| apart.contains(&group))
        };
        let holders: Vec<i32> = self
            .members
            .iter()
            .filter(|member| member.active && member.should_have_shards && !is_apart(member))
            .map(|member| member.group_id)
            .collect();
        assert!(!holders.is_empty(), "nowhere to put shards");
        let id = match &distribution.beside {
            Beside::Nothing { shard_count, .. } => {
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
