//! Clusters that fit on no machine here, as the operator would observe them.

use std::collections::BTreeMap;

use clap::ValueEnum;
use dialog_operator::names::Group;
use dialog_operator::pg::Endpoint;
use dialog_operator::shards::heat::Heat;
use dialog_operator::shards::observed::{
    Catalog, Citus, Facts, Member, Node, Observed, Placement, Resources, Role, Spread, StoredShards, Table,
};
use dialog_operator::shards::plan::{Moves, Plan, plan};
use dialog_operator::shards::rebalance::{HashRange, Strategy};
use dialog_operator::shards::step::Step;
use dialog_operator::shards::topology::Topology;
use dialog_operator::shards::wanted::{Gate, Wanted};
use serde_json::{Value, json};

/// Colocation groups.
const COLOCATIONS: i32 = 4;
/// Free bytes of a volume of twice as many.
const FREE: i64 = 1 << 40;

/// What a cluster is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// It was grown by a half: a third of its workers is empty
    Grown,
    /// The same, spread by count, while nothing may move
    Gated,
    /// The same, half of the plan carried out
    UnderWay,
    /// A tenth of its workers leaves, and the others are spread by load
    Leaving,
    /// Everything is where it belongs, and the volumes are nearly full
    AtRest,
}

impl Case {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Grown => "grown by a half, `BySize`",
            Self::Gated => "the same `ByCount`, and nothing may move",
            Self::UnderWay => "half of such a plan carried out",
            Self::Leaving => "a tenth of the workers leaves, `ByLoad`",
            Self::AtRest => "at rest, volumes nearly full",
        }
    }
}

/// What a plan is made from.
pub struct Cluster {
    wanted: Wanted,
    topology: Topology,
    observed: Observed,
}

impl Cluster {
    /// A cluster of so many workers and shard groups, whose sizes and loads differ by three orders of magnitude.
    pub fn new(case: Case, workers: u32, groups: u32) -> Self {
        let asked = if case == Case::Leaving { workers * 9 / 10 } else { workers };
        let spec = serde_json::from_value(json!({"workers": {"count": 1}})).unwrap();
        let mut wanted = Wanted { workers: asked, ..Wanted::from(&spec) };
        let rebalance = &mut wanted.rebalance;
        rebalance.policy.strategy = match case {
            Case::Gated => Strategy::ByCount,
            Case::Leaving => Strategy::ByLoad,
            Case::Grown | Case::UnderWay | Case::AtRest => Strategy::BySize,
        };
        if case == Case::Gated {
            rebalance.gate =
                Gate::Closed { reason: "AwaitingApproval", message: "nobody has said so".to_owned() };
        }
        let topology: Topology = all(workers)
            .map(|group| (group, Endpoint::new(format!("chat-{group}.chat.svc"), 5432)))
            .collect();
        let used = if case == Case::Leaving { workers } else { (workers * 2 / 3).max(1) };
        let observed = observe(&wanted, &topology, workers, &placed(used, groups));
        let mut cluster = Self { wanted, topology, observed };
        match case {
            Case::UnderWay => {
                let whole = cluster.moves().plan;
                cluster.make(whole.moves.len() / 2);
                cluster.observed.held = Some(whole);
            }
            Case::AtRest => {
                cluster.make(usize::MAX);
                for node in cluster.observed.nodes.values_mut() {
                    let Node::Up(facts) = node else { continue };
                    facts.resources.as_mut().unwrap().free_bytes = FREE / 5;
                }
            }
            Case::Grown | Case::Gated | Case::Leaving => {}
        }
        cluster
    }

    /// Everything that is decided, of which the moves are a part.
    pub fn plan(&self) -> Plan {
        plan(&self.wanted, &self.topology, &self.observed)
    }

    /// The moves of that; it begins with one where any is allowed, so that nothing was left out.
    pub fn moves(&self) -> Moves {
        let plan = self.plan();
        let moves = plan.moves.unwrap();
        let begins = plan.steps.iter().any(|step| matches!(step, Step::MoveShard { .. }));
        assert_eq!(begins, !moves.open.moves.is_empty(), "{:?}, {:?}", plan.steps, plan.waits);
        moves
    }

    /// Makes the first moves of the plan.
    fn make(&mut self, most: usize) {
        let moves = self.moves().plan.moves;
        let catalog = self.observed.catalog.as_mut().unwrap();
        let targets: BTreeMap<i64, i32> =
            moves.iter().take(most).map(|next| (next.shard_id, number_of(next.to))).collect();
        for at in &mut catalog.placements {
            at.group_id = targets.get(&at.shard_id).copied().unwrap_or(at.group_id);
        }
    }
}

fn all(workers: u32) -> impl Iterator<Item = Group> {
    [Group::Coordinator].into_iter().chain((0..workers).map(Group::Worker))
}

/// Citus' number of a node's group.
fn number_of(group: Group) -> i32 {
    match group {
        Group::Coordinator => 0,
        Group::Worker(number) => i32::try_from(number).unwrap() + 1,
    }
}

/// A shard group on a worker.
struct Placed {
    shard_id: i64,
    colocation_id: i32,
    worker: u32,
    bytes: i64,
    load: u64,
}

/// Shard groups at random, the same ones each time, on the first workers.
fn placed(used: u32, groups: u32) -> Vec<Placed> {
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    (0..groups)
        .map(|number| Placed {
            shard_id: 100_000 + i64::from(number),
            colocation_id: 1 + i32::try_from(number).unwrap() % COLOCATIONS,
            worker: u32::try_from(random(u64::from(used))).unwrap(),
            bytes: (1 << 20) << random(10),
            load: 1 + random(10_000),
        })
        .collect()
}

/// What the servers would say, nothing being the matter.
fn observe(wanted: &Wanted, topology: &Topology, workers: u32, placed: &[Placed]) -> Observed {
    let members = all(workers).map(|group| Member {
        node_id: number_of(group) + 1,
        endpoint: topology.endpoint(group).unwrap().clone(),
        group_id: number_of(group),
        active: true,
        has_metadata: true,
        synced: true,
        should_have_shards: matches!(group, Group::Worker(number) if number < wanted.workers),
    });
    let placements = placed.iter().zip(0..).map(|(at, number)| Placement {
        colocation_id: at.colocation_id,
        group_id: number_of(Group::Worker(at.worker)),
        shard_id: at.shard_id,
        range: HashRange { min: number * 100, max: number * 100 + 99 },
        shards: 4,
    });
    let catalog =
        Catalog { members: members.collect(), placements: placements.collect(), ..Catalog::default() };
    let tables = wanted.tables.iter().map(|policy| {
        let column = policy.column.clone().unwrap();
        let colocation_id = if column == "dialog_id" { 1 } else { 2 };
        let spread = Spread::Hash { column, colocation_id };
        let column_type = Some("uuid".to_owned());
        (policy.name.clone(), Table { ordinary: true, column_type, replica_identity: true, spread })
    });
    let node = |group| {
        let here = placed.iter().filter(|at| Group::Worker(at.worker) == group);
        (group, Node::Up(Box::new(facts(group, here.map(|at| (at.shard_id, at.bytes)).collect()))))
    };
    Observed {
        nodes: all(workers).map(node).collect(),
        catalog: Some(catalog),
        tables: tables.collect(),
        existing: all(workers).collect(),
        heat: Some(heat(placed)),
        ..Observed::default()
    }
}

/// What a server says that is as it should be.
fn facts(group: Group, sizes: BTreeMap<i64, i64>) -> Facts {
    let version = || Some("13.2-1".to_owned());
    Facts {
        version: "15.20".to_owned(),
        inside: true,
        operator: Some(Role { login: true, superuser: true }),
        api: Some(Role { login: true, superuser: false }),
        database_owner: Some("dialog_api".to_owned()),
        citus: Citus {
            available: version(),
            preloaded: true,
            installed: version(),
            release: Some("13.2.2".to_owned()),
        },
        settings: [("wal_level".to_owned(), "logical".to_owned())].into(),
        local_group: number_of(group),
        own_tables: group == Group::Coordinator,
        resources: Some(Resources {
            free_bytes: FREE,
            total_bytes: 2 * FREE,
            free_slots: 32,
            free_senders: 32,
            free_appliers: 16,
            free_workers: 32,
            stored_shards: Some(StoredShards {
                count: i64::try_from(sizes.len()).unwrap_or(i64::MAX),
                first: Vec::new(),
            }),
            ..Resources::default()
        }),
        sizes: Some(sizes),
        ..Facts::default()
    }
}

/// Loads that were watched for long enough.
fn heat(placed: &[Placed]) -> Heat {
    let load = |at: &Placed| {
        let load = json!({
            "node": Group::Worker(at.worker).to_string(), "average": at.load, "periods": 10, "here": 10,
        });
        (at.shard_id.to_string(), load)
    };
    let groups: Value = placed.iter().map(load).collect();
    let loads = serde_json::from_value(json!({"ofCpu": true, "capacity": 1_000_000, "groups": groups}));
    Heat { loads: loads.unwrap(), ..Heat::default() }
}
