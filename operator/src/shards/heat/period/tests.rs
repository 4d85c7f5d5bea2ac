use serde_json::json;

use super::*;
use crate::api::DialogClusterSpec;
use crate::shards::heat::actions::Standing;
use crate::shards::heat::store::Judged;
use crate::shards::heat::{State, judge};
use crate::shards::observed::{Catalog, Observed, Table};
use crate::shards::rebalance::{HashRange, Node};
use crate::shards::topology::Topology;
use crate::shards::wanted::Wanted;

const MINUTE: SignedDuration = SignedDuration::from_mins(1);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn tenant(hash: i32) -> Tenant {
    Tenant { colocation_id: 1, hash }
}

fn counted(hash: i32, key: &str, queries: u64, writes: u64, cpu: u64) -> Usage {
    Usage { tenant: tenant(hash), key: key.to_owned(), counted: Counters { queries, writes, cpu } }
}

/// A server that was read so many seconds after the period's end, with what it has counted since its start.
fn reading(second: i64, queries: u64, writes: u64, cpu: u64) -> Reading {
    Reading {
        at: at(second),
        started: at(-9000),
        reset: None,
        counters: Counters { queries, writes, cpu },
        cpu: Some(2000),
        tenants: Vec::new(),
        unlisted: 0,
        limit: 10,
        accesses: None,
        uses: None,
    }
}

struct Scene {
    wanted: Wanted,
    topology: Topology,
    observed: Observed,
    layout: Layout,
}

impl Scene {
    /// Two workers, with four shard groups that cover a hundred hashes each, and the last one a single one.
    fn new(spec: &serde_json::Value) -> Self {
        let spec: DialogClusterSpec = serde_json::from_value(spec.clone()).unwrap();
        let shard = |shard_id: i64, min: i32, max: i32, worker: u32| ShardGroup {
            colocation_id: 1,
            shard_id,
            range: HashRange { min, max },
            node: Group::Worker(worker),
            bytes: 1 << 20,
            load: 0,
        };
        let node = Node { role: Role::Shared, free_bytes: Some(7) };
        let draining = Node { role: Role::Draining, free_bytes: None };
        let nodes = [(Group::Coordinator, draining), (Group::Worker(0), node), (Group::Worker(1), node)];
        let groups =
            vec![shard(1, 0, 99, 0), shard(2, 100, 199, 1), shard(3, 200, 299, 0), shard(4, 300, 300, 1)];
        Self {
            wanted: Wanted::from(&spec),
            topology: [].into_iter().collect(),
            observed: Observed { catalog: Some(Catalog::default()), ..Observed::default() },
            layout: Layout { nodes: nodes.into_iter().collect(), groups, pins: Vec::new() },
        }
    }

    fn period(
        &self,
        before: &BTreeMap<Group, Mark>,
        readings: &BTreeMap<Group, Reading>,
        kept: &[Tenant],
    ) -> (Period, BTreeMap<Group, Mark>, Names) {
        let world = World { wanted: &self.wanted, topology: &self.topology, observed: &self.observed };
        let watch = self.wanted.watch.as_ref().unwrap();
        let seen = Seen {
            world: &world,
            watch,
            end: at(0),
            layout: &self.layout,
            readings,
            large: Vec::new(),
            fillers: Names::default(),
            empty: Vec::new(),
        };
        period(&seen, before, kept)
    }

    /// What is to be stored after a period that ends so many seconds later.
    fn judge(&self, before: &State, second: i64, readings: &BTreeMap<Group, Reading>) -> Judged {
        self.judge_after(Standing::default(), before, second, readings)
    }

    /// The same, with what was decided earlier.
    fn judge_after(
        &self,
        standing: Standing,
        before: &State,
        second: i64,
        readings: &BTreeMap<Group, Reading>,
    ) -> Judged {
        let world = World { wanted: &self.wanted, topology: &self.topology, observed: &self.observed };
        let seen = Seen {
            world: &world,
            watch: self.wanted.watch.as_ref().unwrap(),
            end: at(second),
            layout: &self.layout,
            readings,
            large: Vec::new(),
            fillers: Names::default(),
            empty: Vec::new(),
        };
        judge(before, standing, &seen)
    }
}

fn limited() -> serde_json::Value {
    json!({"workers": {"count": 2, "resources": {"limits": {"cpu": "300m"}}}})
}

#[test]
fn a_period_has_what_was_counted_in_it() {
    let scene = Scene::new(&limited());
    let workers = |reading: &Reading| BTreeMap::from([(Group::Worker(0), reading.clone())]);
    let before = workers(&reading(-57, 1000, 100, 5_000_000));
    let (first, marks, _) = scene.period(&BTreeMap::new(), &before, &[]);
    assert_eq!(first.nodes[&Group::Worker(0)].role, Role::Unavailable, "there is nothing to compare with");
    assert!(!first.nodes.contains_key(&Group::Coordinator), "it holds nothing");

    // Six seconds later after its period than the one before: a tenth more than a period was counted.
    let mut now = reading(9, 1000 + 6600, 100 + 1320, 5_000_000 + 11_000_000);
    now.tenants = vec![counted(250, "b", 3000, 600, 5_000_000), counted(300, "own", 200, 200, 1)];
    let (period, _, names) = scene.period(&marks, &workers(&now), &[]);
    let load = period.nodes[&Group::Worker(0)];
    assert_eq!((load.queries, load.writes, load.cpu), (6000, 1200, 10_000_000));
    assert_eq!(load.cpu_limit, 18_000_000, "as the resource declares it");
    assert_eq!((load.role, load.free_bytes, load.unseen), (Role::Shared, Some(7), 0));
    assert_eq!(period.nodes[&Group::Worker(1)].role, Role::Unavailable, "it did not answer");
    let [first, second] = &period.tenants[..] else { panic!("{:?}", period.tenants) };
    assert_eq!((first.tenant, first.queries, first.alone), (tenant(250), 3000, false));
    assert_eq!((second.tenant, second.shard_bytes, second.alone), (tenant(300), 1 << 20, true));
    assert_eq!((names.of(tenant(250)), names.of(tenant(7))), ("b".to_owned(), "hash 7".to_owned()));
    assert!(!period.underway);

    // One transaction of many statements.
    now.tenants = vec![counted(250, "b", 9000, 600, 1)];
    let (period, ..) = scene.period(&marks, &workers(&now), &[]);
    assert_eq!(period.nodes[&Group::Worker(0)].queries, 9000);
}

#[test]
fn what_cannot_be_compared_tells_nothing() {
    let scene = Scene::new(&json!({"workers": {"count": 2}}));
    let one = |reading: Reading| BTreeMap::from([(Group::Worker(0), reading)]);
    let (_, marks, _) = scene.period(&BTreeMap::new(), &one(reading(-60, 1000, 100, 5_000)), &[]);
    let role = |reading: Reading| scene.period(&marks, &one(reading), &[]).0.nodes[&Group::Worker(0)].role;
    assert_eq!(role(reading(0, 1500, 150, 6_000)), Role::Shared);
    assert_eq!(role(reading(0, 999, 150, 6_000)), Role::Unavailable, "the statistics began anew");
    assert_eq!(role(reading(500, 1500, 150, 6_000)), Role::Unavailable, "periods were missed");
    assert_eq!(role(reading(-59, 1500, 150, 6_000)), Role::Unavailable, "hardly any time has passed");
    let promoted = Reading { started: at(-30), ..reading(0, 1500, 150, 6_000) };
    assert_eq!(role(promoted), Role::Unavailable, "it is another server");

    let reset = |second| Reading { reset: Some(at(second)), ..reading(0, 1500, 150, 6_000) };
    assert_eq!(role(reset(-30)), Role::Unavailable, "what was counted since has overtaken what was before");
    assert_eq!(role(reset(-90)), Role::Shared, "both readings are of after that");

    let silent = Reading { cpu: None, ..reading(0, 1500, 150, 5_000) };
    let (period, ..) = scene.period(&marks, &one(silent), &[]);
    assert_eq!(period.nodes[&Group::Worker(0)].cpu_limit, 0, "nobody knows what was spent");
    let (period, ..) = scene.period(&marks, &one(reading(0, 1500, 150, 6_000)), &[]);
    let limit = u64::try_from(MINUTE.as_micros()).unwrap() * 2;
    assert_eq!(period.nodes[&Group::Worker(0)].cpu_limit, limit, "the server's two cores");
}

#[test]
fn no_more_cpu_time_counts_than_can_have_been_spent_since() {
    let scene = Scene::new(&json!({"workers": {"count": 2}}));
    let one = |reading: Reading| BTreeMap::from([(Group::Worker(0), reading)]);
    let (_, marks, _) = scene.period(&BTreeMap::new(), &one(reading(-66, 1000, 100, 5_000_000)), &[]);
    // A process that was missing then has worked for an hour.
    let late = reading(0, 1500, 150, 5_000_000 + 3_600_000_000);
    let (period, ..) = scene.period(&marks, &one(late), &[]);
    let load = period.nodes[&Group::Worker(0)];
    assert_eq!((load.cpu, load.cpu_limit), (120_000_000, 120_000_000), "two cores for a minute");
}

#[test]
fn of_many_tenants_the_largest_are_kept_and_those_that_are_spoken_of() {
    let scene = Scene::new(&limited());
    let one = |reading: Reading| BTreeMap::from([(Group::Worker(0), reading)]);
    let (_, marks, _) = scene.period(&BTreeMap::new(), &one(reading(-60, 0, 0, 0)), &[]);
    let mut now = reading(0, 10_000, 1000, 10_000_000);
    now.tenants = (0..50).map(|hash| counted(hash, "k", 50 + u64::try_from(hash).unwrap(), 0, 0)).collect();
    // Few queries, and half of the CPU time; and two keys of one hash.
    now.tenants.push(counted(60, "slow", 5, 0, 5_000_000));
    now.tenants.push(counted(49, "other", 500, 0, 0));
    now.unlisted = 70;
    let (period, _, names) = scene.period(&marks, &one(now.clone()), &[tenant(0)]);
    let kept: Vec<i32> = period.tenants.iter().map(|load| load.tenant.hash).collect();
    assert_eq!(kept, [0, 60, 49, 49, 48, 47, 46, 45, 44, 43, 42]);
    let load = period.nodes[&Group::Worker(0)];
    assert_eq!((load.unseen, load.unlisted), (50 + 41, 11_000), "all that the server did");
    assert_eq!(names.of(tenant(49)), "other", "the busier of the two");
    now.tenants.truncate(3);
    let (period, ..) = scene.period(&marks, &one(now.clone()), &[]);
    let load = period.nodes[&Group::Worker(0)];
    assert_eq!(load.unseen, 70, "the server may have left out one with fewer");

    // A tenant of a colocation group that has gone.
    now.tenants = vec![Usage { tenant: Tenant { colocation_id: 9, hash: 1 }, ..counted(1, "k", 900, 0, 0) }];
    assert!(scene.period(&marks, &one(now), &[]).0.tenants.is_empty());
}

#[test]
fn two_colocation_groups_are_never_called_the_same() {
    let mut scene = Scene::new(&limited());
    for (name, colocation_id) in [("messages", 4), ("dialogs", 4), ("dialog_state", 7), ("users", 5)] {
        let spread = Spread::Hash { column: "id".to_owned(), colocation_id };
        scene.observed.tables.insert(name.to_owned(), Table { spread, ..Table::default() });
    }
    let world = World { wanted: &scene.wanted, topology: &scene.topology, observed: &scene.observed };
    let names: Vec<String> = [4, 5, 7, 9].map(|id| group_name(&world, id)).into();
    assert_eq!(names, ["dialog", "user", "colocation 7", "colocation 9"]);
}

#[test]
fn a_pinned_tenant_that_is_busy_is_not_taken_for_quiet_beside_busier_ones_and_keeps_its_name() {
    let mut scene = Scene::new(&limited());
    scene.layout.pins = vec![tenant(0).pin(Group::Worker(0))];
    let judge = |before: &State, second: i64, reading: Reading| {
        scene.judge(
            before,
            second,
            &[Group::Worker(0), Group::Worker(1)].map(|group| (group, reading.clone())).into(),
        )
    };
    let first = judge(&State::default(), 0, reading(0, 0, 0, 0));
    let mut busy = reading(60, 100_000, 0, 10_000_000);
    busy.tenants = (1..50).map(|hash| counted(hash, "k", 1_000, 0, 0)).collect();
    busy.tenants.push(counted(0, "mine", 120, 0, 0));
    let second = judge(&first.state, 60, busy);
    assert!(second.period.tenants.iter().any(|load| load.tenant == tenant(0)), "{:?}", second.period.tenants);
    assert!(!second.state.history.quiet.contains_key(&tenant(0)), "it has more queries than quiet ones have");

    // It is quiet, and whoever speaks of it knows it.
    let third = judge(&second.state, 120, reading(120, 200_000, 0, 20_000_000));
    assert_eq!(third.state.history.quiet.get(&tenant(0)), Some(&at(120)));
    assert_eq!(third.state.names.of(tenant(0)), "mine");
}

#[test]
fn who_is_on_a_silent_worker_is_not_said_to_have_cooled_down() {
    let scene = Scene::new(&limited());
    let only = |number, reading: Reading| BTreeMap::from([(Group::Worker(number), reading)]);
    let step = |second: i64| {
        let passed = u64::try_from(second).unwrap();
        reading(second, passed * 1_000, 0, passed * 100_000)
    };
    let turned = |judged: &Judged| {
        judged.state.heat.turned.iter().map(|turn| (turn.hot, turn.message.clone())).collect::<Vec<_>>()
    };
    let first = scene.judge(&State::default(), 0, &only(0, step(0)));
    let flooded = Reading { tenants: vec![counted(250, "b", 30_000, 0, 0)], ..step(60) };
    let hot = scene.judge(&first.state, 60, &only(0, flooded));
    assert_eq!(turned(&hot), [(true, "colocation 1 b takes 50 % of the queries of worker-0".to_owned())]);

    let calm = scene.judge(&hot.state, 120, &only(0, step(120)));
    let over = "colocation 1 b does not take a large part of worker-0 any more, after 1 periods".to_owned();
    assert_eq!(turned(&calm), [(false, over)]);

    let mut state = hot.state;
    for second in (120..=480).step_by(60) {
        let judged = scene.judge(&state, second, &only(u32::from(second <= 300), step(second)));
        assert_eq!(turned(&judged), [], "{second}");
        state = judged.state;
    }
    assert_eq!(state.heat.nodes[&Group::Worker(0)].role, Role::Shared, "it has come back");
}

#[test]
fn what_was_dropped_before_it_began_keeps_nobody_waiting() {
    let mut spec = limited();
    spec["sharding"] = json!({"hotTenants": {"mode": "Isolate"}});
    let mut scene = Scene::new(&spec);
    for node in scene.layout.nodes.values_mut() {
        node.free_bytes = None;
    }
    let begun = |undone| {
        let mut state = State::default();
        let mut begun = Vec::new();
        for minute in 0..10 {
            let (second, passed) = (minute * 60, u64::try_from(minute).unwrap());
            let tenants = vec![counted(250, "b", 30_000, 0, 3_000_000)];
            let flooded = Reading { tenants, ..reading(second, passed * 60_000, 0, passed * 9_000_000) };
            let readings = [(Group::Worker(0), flooded), (Group::Worker(1), reading(second, 0, 0, 0))];
            let standing = Standing { undone, ..Standing::default() };
            let judged = scene.judge_after(standing, &state, second, &readings.into());
            begun.extend(judged.begun.map(|_| minute));
            state = judged.state;
        }
        (begun, state.heat.cooling_until)
    };
    assert_eq!(begun(false), (vec![3], Some(at(63 * 60))));
    // It is decided anew when it has been hot for long enough again.
    assert_eq!(begun(true), (vec![3, 6, 9], None));
}

#[test]
fn what_a_pinned_tenant_can_have_done_is_told_by_its_own_shards() {
    let mut scene = Scene::new(&limited());
    scene.layout.pins = vec![tenant(300).pin(Group::Worker(1)), tenant(7).pin(Group::Worker(0))];
    let at = |second, uses: &[(i64, u64)]| {
        let uses = Some(uses.iter().copied().collect());
        let reading = |group| (group, Reading { uses: uses.clone(), ..reading(second, 0, 0, 0) });
        [0, 1].map(Group::Worker).map(reading).into()
    };
    let uses = |scene: &Scene, before: &[(i64, u64)], second, now: &[(i64, u64)]| {
        let (_, marks, _) = scene.period(&BTreeMap::new(), &at(-60, before), &[]);
        scene.period(&marks, &at(second, now), &[]).0.uses
    };
    // The other is among the tenants of a shard.
    assert_eq!(uses(&scene, &[(4, 1000)], 0, &[(4, 1040)]), [(tenant(300), 40)]);
    // Readings that are closer together than a period is long, or further apart, tell no less.
    assert_eq!(uses(&scene, &[(4, 1000)], -30, &[(4, 1040)]), [(tenant(300), 80)]);
    assert_eq!(uses(&scene, &[(4, 1000)], 60, &[(4, 1040)]), [(tenant(300), 40)]);
    // Where it was just moved to, where counters began anew, or where its shard is elsewhere, nobody knows.
    assert_eq!(uses(&scene, &[], 0, &[(4, 40)]), []);
    assert_eq!(uses(&scene, &[(4, 1000)], 0, &[(4, 40)]), []);
    scene.layout.pins = vec![tenant(300).pin(Group::Worker(0))];
    assert_eq!(uses(&scene, &[(4, 1000)], 0, &[(4, 1040)]), []);
}

#[test]
fn periods_of_silence_are_a_break_and_those_that_a_server_cannot_tell_of_are_none() {
    let mut spec = limited();
    spec["sharding"] = json!({"hotTenants": {"mode": "Isolate"}});
    let mut scene = Scene::new(&spec);
    for node in scene.layout.nodes.values_mut() {
        node.free_bytes = None;
    }
    // Twelve others are busy all the time, of whom a period has ten.
    let others = || (1..13).map(|hash| counted(hash, "other", 2_000, 0, 300_000));
    let begun = |is_hot: fn(i64) -> bool, unlisted: u64| {
        let (mut state, mut periods) = (State::default(), Vec::new());
        for minute in 0..20 {
            let (second, passed) = (minute * 60, u64::try_from(minute).unwrap());
            let hot = is_hot(minute).then(|| counted(250, "b", 30_000, 0, 3_000_000));
            let tenants = others().chain(hot).collect();
            let busy =
                Reading { tenants, unlisted, ..reading(second, passed * 60_000, 0, passed * 9_000_000) };
            let readings = [(Group::Worker(0), busy), (Group::Worker(1), reading(second, 0, 0, 0))];
            let judged = scene.judge(&state, second, &readings.into());
            assert!(minute == 0 || judged.period.nodes[&Group::Worker(0)].unseen >= 2_000);
            if judged.begun.is_some() {
                return Some((minute, periods));
            }
            periods.extend(judged.state.history.hot.get(&tenant(250)).map(|streak| streak.periods));
            state = judged.state;
        }
        None
    };
    assert_eq!(begun(|minute| minute > 0, 0), Some((3, vec![1, 2])));
    let now_and_then: fn(i64) -> bool = |minute| minute % 4 == 1;
    assert_eq!(begun(now_and_then, 0), None);
    assert_eq!(begun(now_and_then, 99), None, "it had no more queries than quiet ones have");
    // A server that drops busy ones neither accuses nor acquits.
    assert_eq!(begun(now_and_then, 5_000), Some((9, vec![1, 1, 1, 1, 2, 2, 2, 2])));
}

#[test]
fn who_is_silent_is_known_only_from_who_lists_it() {
    let scene = Scene::new(&limited());
    let step = |second: i64| {
        let passed = u64::try_from(second).unwrap();
        reading(second, passed * 1_000, 0, passed * 100_000)
    };
    let readings = |second, tenants: &[Usage]| {
        [0, 1].map(|number| (Group::Worker(number), Reading { tenants: tenants.to_vec(), ..step(second) }))
    };
    let before = scene.judge(&State::default(), 0, &readings(0, &[]).into());
    // What is hot where its shard was: that has been moved to the other worker since.
    let was_hot = BTreeMap::from([(tenant(150), Group::Worker(0)), (tenant(250), Group::Worker(0))]);
    let silent = |of: &[(Group, Reading)]| {
        let readings: BTreeMap<Group, Reading> = of.iter().cloned().collect();
        let world = World { wanted: &scene.wanted, topology: &scene.topology, observed: &scene.observed };
        let seen = Seen {
            world: &world,
            watch: scene.wanted.watch.as_ref().unwrap(),
            end: at(60),
            layout: &scene.layout,
            readings: &readings,
            large: Vec::new(),
            fillers: Names::default(),
            empty: Vec::new(),
        };
        let (mut period, ..) = period(&seen, &before.state.marks, &[]);
        add_silent(&mut period, &seen, &was_hot);
        period.tenants.iter().map(|load| (load.tenant.hash, load.node, load.queries)).collect::<Vec<_>>()
    };
    let [first, second] = readings(60, &[]);
    let both = [(150, Group::Worker(1), 0), (250, Group::Worker(0), 0)];
    assert_eq!(silent(&[first.clone(), second.clone()]), both);
    assert_eq!(silent(std::slice::from_ref(&first)), both[1..], "where the other is now nobody knows");
    assert_eq!(silent(std::slice::from_ref(&second)), []);
    let dropping = (second.0, Reading { unlisted: 100, ..second.1.clone() });
    assert_eq!(silent(&[first.clone(), dropping]), both[1..]);
    let listed = Reading { tenants: vec![counted(250, "b", 7, 0, 0)], ..first.1 };
    assert_eq!(silent(&[(first.0, listed), second]), [(250, Group::Worker(0), 7), both[0]]);
}
