//! Properties of the plan, through an interpreter of its steps.
//!
//! The interpreter is no stand-in for Citus (the tests against real servers are for that): it knows just enough of what
//! a step does to ask whether plans lead anywhere, and it checks before each step that the step is safe.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::{Plan, plan};
use crate::api::{DialogClusterSpec, Table as Policy, TableKind};
use crate::condition::Holds;
use crate::names::{Group, Names};
use crate::shards::observed::{Citus, Dropped, Facts, Member, Observed, Role, Spread, Table};
use crate::shards::rebalance::MovePlan;
use crate::shards::step::{API_ROLE, Hold, KINDS, Step};
use crate::shards::topology::Topology;
use crate::shards::wanted::{Gate, Wanted};
use truth::{Server, Truth};

mod places;
mod truth;

const WHOLE: Role = Role { login: true, superuser: true };

/// What becomes of a step that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Luck {
    /// It is done.
    Done,
    /// Nothing comes of it. One that takes long is put off, and the others go first.
    Fails,
    /// A move goes on while others are looked for.
    Lasts,
}

/// What an operator remembers of the plans that it has made.
#[derive(Default)]
struct Remembered {
    held: Option<MovePlan>,
    overtaken: Option<Dropped>,
}

/// Follows plans, one first step after the other, until there is none.
fn follow(truth: &mut Truth, wanted: &Wanted) -> (Vec<Step>, Plan) {
    follow_with(truth, wanted, &[])
}

/// As [`follow`], with this luck at first, and then nothing but success.
fn follow_with(truth: &mut Truth, wanted: &Wanted, luck: &[Luck]) -> (Vec<Step>, Plan) {
    Remembered::default().follow_with(truth, wanted, luck)
}

impl Remembered {
    /// As [`follow_with`], by an operator that has been at work before.
    fn follow_with(&mut self, truth: &mut Truth, wanted: &Wanted, luck: &[Luck]) -> (Vec<Step>, Plan) {
        let mut luck = luck.iter().copied();
        let mut put_off: Vec<Step> = Vec::new();
        let mut done = Vec::new();
        loop {
            let observed = Observed {
                deferred: put_off.clone(),
                held: self.held.clone(),
                overtaken: self.overtaken.clone(),
                ..truth.look(wanted)
            };
            let next = plan(wanted, &truth.topology, &observed);
            assert_eq!(next, plan(wanted, &truth.topology, &observed), "the same world has the same plan");
            if let Some(moves) = &next.moves {
                (self.held, self.overtaken) = (moves.held(), moves.overtaken.clone());
            }
            let kinds: Vec<&str> = next.findings.iter().map(|finding| finding.kind).collect();
            assert_eq!(kinds, crate::shards::status::PART.conditions, "every condition, every time");
            truth.assert_safe(&next.steps);
            let step = next.steps.iter().find(|step| !put_off.contains(step));
            // Nothing else goes on beside a move that needs the topology for itself.
            let waits = step.is_none_or(|step| step.hold() == Hold::Alone) && !truth.running.is_empty();
            match (step, luck.next().unwrap_or(Luck::Done)) {
                (_, luck) if waits => truth.end(luck != Luck::Fails),
                (None, _) if put_off.is_empty() => return (done, next),
                (None, _) => put_off.clear(),
                (Some(step), Luck::Fails) if step.is_long() => put_off.push(step.clone()),
                (Some(_), Luck::Fails) => {}
                (Some(step @ Step::MoveShard { .. }), Luck::Lasts) => truth.running.push(step.clone()),
                (Some(step), _) => {
                    assert!(KINDS.contains(&step.kind()));
                    truth.apply(step);
                    done.push(step.clone());
                }
            }
            assert!(done.len() < 1000, "no end: {:?}", &done[950..]);
        }
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
        free in prop_oneof![3 => Just(1_i64 << 40), 1 => 0..1_i64 << 38],
        unnoted in prop_oneof![4 => Just(0_i64), 1 => Just(2)],
    ) -> Server {
        let database_owner = owner.map(str::to_owned);
        let installed = installed.filter(|_| database_owner.is_some() && image.0.is_some()).map(str::to_owned);
        let citus = Citus { available: image.0.map(str::to_owned), preloaded: image.1, installed, release: None };
        let settings = BTreeMap::from([("wal_level".to_owned(), level.to_owned())]);
        let overrides = overrides.into_iter().map(str::to_owned).collect();
        // A role that owns a database exists.
        let api = api.or_else(|| database_owner.as_ref().map(|_| Role { login: false, superuser: false }));
        Server { up, free, unnoted, facts: Facts { operator, api, database_owner, citus, settings, overrides, ..Facts::default() } }
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
            1 => Just(Spread::Reference),
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
        sizes in prop::collection::vec(prop_oneof![2 => 0..1_i64 << 30, 1 => 0..1_i64 << 36], 0..5),
        undeclared in any::<bool>(),
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
                node_id: i32::try_from(index).unwrap() + 1,
                group_id: i32::try_from(index).unwrap(),
                has_metadata: true,
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
            if matches!(table.spread, Spread::Hash { .. } | Spread::Reference | Spread::Other) && !installed {
                table.spread = Spread::PlainEmpty;
            }
        }
        let nodes = if on_coordinator { vec![0; 48] } else { vec![1; 48] };
        let colocation = BTreeMap::from([(1, nodes.clone()), (2, nodes)]);
        let spec: DialogClusterSpec = serde_json::from_value(json!({"workers": {"count": workers}})).unwrap();
        let wanted = Wanted { tables: policy, ..Wanted::from(&spec) };
        let referenced = tables.iter().filter(|(_, table)| table.spread == Spread::Reference);
        let mut copies: BTreeMap<String, BTreeSet<i32>> =
            referenced.map(|(name, _)| (name.clone(), BTreeSet::from([0]))).collect();
        if undeclared && installed {
            copies.insert("countries".to_owned(), BTreeSet::from([0]));
        }
        let truth = Truth {
            topology,
            servers,
            members,
            tables,
            colocation,
            copies,
            cleanup: Vec::new(),
            sizes,
            running: Vec::new(),
        };
        (wanted, truth)
    }
}

fn luck() -> impl Strategy<Value = Vec<Luck>> {
    let each = prop_oneof![2 => Just(Luck::Done), 1 => Just(Luck::Fails), 1 => Just(Luck::Lasts)];
    prop::collection::vec(each, 0..60)
}

/// The shards that some node has.
fn shards(truth: &Truth) -> BTreeSet<i64> {
    truth.placements().iter().map(|at| at.shard_id).collect()
}

/// Makes a world in which nothing stands in the way.
fn without_obstacles(wanted: &Wanted, truth: &mut Truth) {
    for server in truth.servers.values_mut() {
        server.up = true;
        (server.free, server.unnoted) = (1 << 40, 0);
        server.facts.citus.available = Some("13.2-1".to_owned());
        server.facts.citus.preloaded = true;
        server.facts.citus.installed = None;
        server.facts.settings.clear();
        server.facts.settings.insert("wal_level".to_owned(), "logical".to_owned());
    }
    truth.sizes.clear();
    truth.members.clear();
    truth.colocation.clear();
    truth.copies.clear();
    for policy in &wanted.tables {
        let column_type = policy.column.as_ref().map(|_| "uuid".to_owned());
        let fresh = Table { ordinary: true, column_type, replica_identity: true, spread: Spread::PlainEmpty };
        truth.tables.insert(policy.name.clone(), fresh);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// From anywhere, whatever fails or lasts on the way, safe steps lead to a world in which there are none left; who is
    /// still there and was not asked for is there for a reason, and no shard is lost.
    #[test]
    fn every_plan_ends((wanted, mut truth) in world(), luck in luck(), open in any::<bool>()) {
        let mut wanted = wanted;
        if !open {
            wanted.rebalance.gate = Gate::Closed { reason: "PlanAvailable", message: "later".to_owned() };
        }
        let before = shards(&truth);
        let (_, last) = follow_with(&mut truth, &wanted, &luck);
        prop_assert!(shards(&truth).is_superset(&before), "shards were lost");
        let says = |kind: &str| last.findings.iter().find(|finding| finding.kind == kind).unwrap();
        let stays = |member: &&Member| {
            matches!(truth.topology.group(&member.endpoint), Some(Group::Worker(number)) if number >= wanted.workers)
        };
        let staying: BTreeSet<i32> = truth.members.iter().filter(stays).map(|member| member.group_id).collect();
        // Without the catalogs nobody knows who is registered.
        if !staying.is_empty() && truth.look(&wanted).catalog.is_some() {
            let blocked = says(crate::condition::SCALE_IN_BLOCKED);
            prop_assert!(blocked.reason != "NothingToRemove" && !last.waits.is_empty(), "{:?}", blocked);
        }
        if says(crate::condition::BALANCED).holds == Holds::True {
            let misplaced = truth.placements().into_iter().find(|at| staying.contains(&at.group_id));
            prop_assert_eq!(misplaced, None);
        }
    }

    /// Where nothing stands in the way, everything that was asked for is there in the end, and the conditions say so.
    #[test]
    fn a_plan_without_obstacles_ends_well((wanted, mut truth) in world()) {
        without_obstacles(&wanted, &mut truth);
        let (_, last) = follow(&mut truth, &wanted);
        prop_assert!(last.waits.is_empty(), "{:?}", last.waits);
        for finding in &last.findings {
            let expected = match finding.kind {
                crate::condition::SCALE_IN_BLOCKED => Holds::False,
                // Nobody has looked at load here.
                crate::condition::HOT_TENANT => Holds::Unknown,
                _ => Holds::True,
            };
            prop_assert_eq!(finding.holds, expected, "{:?}", finding);
        }
        prop_assert_eq!(truth.members.len(), 1 + wanted.workers as usize);
        // The coordinator holds shards only where there are no workers.
        let on_coordinator = truth.placements().iter().any(|at| at.group_id == 0);
        prop_assert_eq!(on_coordinator, wanted.workers == 0);
    }

    /// The count may go up and down, from anywhere: who holds a placement is never removed, which is checked at each step.
    #[test]
    fn a_smaller_count_loses_nothing((wanted, mut truth) in world(), fewer in 0_u32..4, luck in luck()) {
        follow(&mut truth, &wanted);
        let before = shards(&truth);
        let fewer = Wanted { workers: fewer.min(wanted.workers), ..wanted };
        follow_with(&mut truth, &fewer, &luck);
        prop_assert!(shards(&truth).is_superset(&before), "shards were lost");
    }

    /// Where nothing stands in the way, as many workers take part as are asked for, however the count goes up and down.
    #[test]
    fn the_count_comes_true((wanted, mut truth) in world(), counts in prop::collection::vec(0_u32..5, 1..4)) {
        without_obstacles(&wanted, &mut truth);
        let mut operator = Remembered::default();
        operator.follow_with(&mut truth, &wanted, &[]);
        for workers in counts {
            let wanted = Wanted { workers, ..wanted.clone() };
            let (_, last) = operator.follow_with(&mut truth, &wanted, &[]);
            prop_assert!(last.waits.is_empty(), "{:?}", last.waits);
            prop_assert_eq!(truth.members.len(), 1 + workers as usize);
            let balanced = last.findings.iter().find(|finding| finding.kind == crate::condition::BALANCED).unwrap();
            prop_assert_eq!(balanced.holds, Holds::True, "{:?}", balanced);
            let on_coordinator = truth.placements().iter().any(|at| at.group_id == 0);
            prop_assert_eq!(on_coordinator, workers == 0);
        }
    }

    /// Who cannot leave for want of room does once there is some, by the operator that has said so.
    #[test]
    fn a_smaller_count_comes_true_once_there_is_room(
        (wanted, mut truth) in world(), fewer in 0_u32..4, free in prop::collection::vec(0..1_i64 << 38, 5),
        sizes in prop::collection::vec(1_i64 << 29..8_i64 << 30, 1..5), luck in luck(),
    ) {
        without_obstacles(&wanted, &mut truth);
        let mut operator = Remembered::default();
        operator.follow_with(&mut truth, &wanted, &[]);
        truth.sizes = sizes;
        for (server, free) in truth.servers.values_mut().zip(free) {
            server.free = free;
        }
        let fewer = Wanted { workers: fewer.min(wanted.workers), ..wanted };
        operator.follow_with(&mut truth, &fewer, &luck);
        for server in truth.servers.values_mut() {
            server.free = 1 << 40;
        }
        let (_, last) = operator.follow_with(&mut truth, &fewer, &[]);
        prop_assert!(last.waits.is_empty(), "{:?}", last.waits);
        prop_assert_eq!(truth.members.len(), 1 + fewer.workers as usize);
    }
}
