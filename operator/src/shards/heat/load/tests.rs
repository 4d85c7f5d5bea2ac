use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::*;
use crate::api::DialogClusterSpec;
use crate::heat::{Counters, Tenant};
use crate::shards::heat::period;
use crate::shards::heat::read::Usage;
use crate::shards::observed::{Catalog, Observed, Operation};
use crate::shards::rebalance::{Goal, HashRange, Layout, Node, Policy, plan};
use crate::shards::topology::Topology;
use crate::shards::wanted::Wanted;
use crate::shards::world::World;

const MINUTE: i64 = 60;

/// Two workers of two cores, and what they counted so far.
struct Scene {
    wanted: Wanted,
    topology: Topology,
    observed: Observed,
    layout: Layout,
    minute: i64,
    counted: BTreeMap<Group, Reading>,
    loads: Loads,
}

impl Scene {
    /// `each` shard groups on each of two workers, of a hundred hashes each.
    fn new(each: i64) -> Self {
        let spec = json!({
            "workers": {"count": 2, "resources": {"limits": {"cpu": "2"}}},
            "sharding": {"rebalance": {"strategy": "ByLoad"}},
        });
        let spec: DialogClusterSpec = serde_json::from_value(spec).unwrap();
        let group = |shard_id: i64| ShardGroup {
            colocation_id: 1,
            shard_id,
            range: HashRange { min: low(shard_id), max: low(shard_id) + 99 },
            node: Group::Worker(u32::from(shard_id >= each)),
            bytes: 1 << 20,
            load: 0,
        };
        let nodes =
            [0, 1].map(|worker| (Group::Worker(worker), Node { role: Role::Shared, free_bytes: None }));
        Self {
            wanted: Wanted::from(&spec),
            topology: [].into_iter().collect(),
            observed: Observed { catalog: Some(Catalog::default()), ..Observed::default() },
            layout: Layout {
                nodes: nodes.into_iter().collect(),
                groups: (0..2 * each).map(group).collect(),
                pins: Vec::new(),
            },
            minute: 0,
            counted: BTreeMap::new(),
            loads: Loads::default(),
        }
    }

    /// One more minute: each shard group is accessed so often, and each worker spends so many microseconds.
    fn minute(&mut self, work: impl Fn(i64) -> u64, cpu: impl Fn(u32) -> u64, tenants: &[(i64, u64)]) {
        let before = std::mem::take(&mut self.counted);
        for worker in [0, 1] {
            let node = Group::Worker(worker);
            let earlier = before.get(&node);
            let here = |group: &&ShardGroup| group.node == node;
            let so_far = |shard: i64| {
                earlier.and_then(|reading| reading.accesses.as_ref()?.get(&shard).copied()).unwrap_or(0)
            };
            let accesses = self
                .layout
                .groups
                .iter()
                .filter(here)
                .map(|group| (group.shard_id, so_far(group.shard_id) + work(group.shard_id)));
            let counters = earlier.map_or(Counters::default(), |reading| reading.counters);
            let usage = |(shard, cpu): &(i64, u64)| Usage {
                tenant: Tenant { colocation_id: 1, hash: low(*shard) + 7 },
                key: String::new(),
                counted: Counters { queries: 1, writes: 0, cpu: *cpu },
            };
            let on_it = |(shard, _): &&(i64, u64)| {
                self.layout.groups.iter().any(|group| group.shard_id == *shard && here(&group))
            };
            let reading = Reading {
                at: at(self.minute),
                started: at(-100),
                reset: None,
                counters: Counters { cpu: counters.cpu + cpu(worker), ..counters },
                cpu: Some(2000),
                tenants: tenants.iter().filter(on_it).map(usage).collect(),
                unlisted: 0,
                limit: 10,
                accesses: Some(accesses.collect()),
                uses: None,
            };
            self.counted.insert(node, reading);
        }
        self.see(&before);
        self.minute += 1;
    }

    /// One more minute, at whose end the servers say something else than before.
    fn again(&mut self, change: impl Fn(&mut Reading)) {
        let before = self.counted.clone();
        for reading in self.counted.values_mut() {
            reading.at = at(self.minute);
            reading.counters.cpu += 30_000_000;
            change(reading);
        }
        self.see(&before);
        self.minute += 1;
    }

    fn see(&mut self, before: &BTreeMap<Group, Reading>) {
        let world = World { wanted: &self.wanted, topology: &self.topology, observed: &self.observed };
        let watch = self.wanted.watch.as_ref().unwrap();
        let seen = |readings, end| Seen {
            world: &world,
            watch,
            end,
            layout: &self.layout,
            readings,
            large: Vec::new(),
            fillers: period::Names::default(),
            empty: Vec::new(),
        };
        let (_, marks, _) = period::period(&seen(before, at(self.minute - 1)), &BTreeMap::new(), &[]);
        let seen = seen(&self.counted, at(self.minute));
        let (period, ..) = period::period(&seen, &marks, &[]);
        self.loads = loads(&self.loads, &seen, &period, &marks);
    }

    fn averages(&self) -> Vec<u64> {
        self.loads.groups.values().map(|load| load.average).collect()
    }

    fn unknown(&self) -> usize {
        self.loads.unknown(&self.layout.groups)
    }

    /// What would be moved for the sake of load.
    fn moves(&self) -> Vec<i64> {
        let siblings = u64::try_from(self.layout.groups.len()).unwrap();
        let weighed =
            |group: &ShardGroup| ShardGroup { load: self.loads.of(group.shard_id, siblings), ..*group };
        let layout =
            Layout { groups: self.layout.groups.iter().map(weighed).collect(), ..self.layout.clone() };
        let policy = Policy { goal: Goal::Balance, ..self.wanted.rebalance.policy };
        plan(&layout, &policy).moves.iter().map(|next| next.shard_id).collect()
    }
}

fn low(shard_id: i64) -> i32 {
    i32::try_from(shard_id).unwrap() * 100
}

fn at(minute: i64) -> Timestamp {
    let start = Timestamp::from_second(1_800_000_000).unwrap();
    start + SignedDuration::from_secs(minute * MINUTE)
}

#[test]
fn a_whole_is_divided_by_work_and_nobody_gets_less_than_is_known() {
    let divided = |whole, parts: &[(u64, u64)]| {
        divide(
            whole,
            &parts.iter().map(|(work, least)| Part { work: *work, least: *least }).collect::<Vec<_>>(),
        )
    };
    assert_eq!(divided(100, &[(3, 0), (1, 0)]), [75, 25]);
    assert_eq!(divided(100, &[(3, 0), (1, 60)]), [40, 60]);
    assert_eq!(divided(100, &[(3, 10), (1, 20)]), [75, 25], "less than their part says nothing new");
    // What one gets in any case leaves the second too little.
    assert_eq!(divided(100, &[(98, 0), (1, 90), (1, 1)]), [9, 90, 1]);
    assert_eq!(divided(100, &[(0, 0), (0, 30)]), [0, 30], "the rest is the node's own");
    assert_eq!(divided(10, &[(1, 0), (0, 30)]), [0, 30]);
    assert_eq!(divided(100, &[]), [0_u64; 0]);
}

#[test]
fn a_load_is_known_once_it_was_seen_long_enough() {
    let mut scene = Scene::new(2);
    let work = |shard: i64| if shard == 0 { 9000 } else { 1000 };
    let cpu = |worker: u32| if worker == 0 { 60_000_000 } else { 6_000_000 };
    scene.minute(work, cpu, &[]);
    assert_eq!((scene.averages(), scene.unknown()), (vec![], 4), "there is nothing to compare with");
    for _ in 0..ENOUGH - 1 {
        scene.minute(work, cpu, &[]);
        assert_eq!(scene.unknown(), 4);
    }
    scene.minute(work, cpu, &[]);
    assert_eq!((scene.averages(), scene.unknown()), (vec![900_000, 100_000, 50_000, 50_000], 0));
    // A tenth of four cores, for one of four.
    assert_eq!(scene.loads.of(1, 4), 100_000 + 100_000);
    // A tenant of the second shard spends more than the accesses say.
    for _ in 0..100 {
        scene.minute(work, cpu, &[(1, 30_000_000)]);
    }
    assert!((498_000..=500_000).contains(&scene.averages()[1]), "{:?}", scene.averages());
    assert!((500_000..=502_000).contains(&scene.averages()[0]), "{:?}", scene.averages());

    // A move is under way: what it costs counts for nobody.
    let before = scene.averages();
    let underway = Operation { pid: 1, application: "dialog-operator: split 1".to_owned() };
    scene.observed.catalog.as_mut().unwrap().operations = vec![underway];
    scene.minute(work, |_| 120_000_000, &[]);
    assert_eq!(scene.averages(), before);
    scene.observed.catalog = Some(Catalog::default());
    // It came and went between two readings.
    scene.layout.groups[1].node = Group::Worker(1);
    scene.minute(work, |_| 120_000_000, &[]);
    assert_eq!((scene.averages(), scene.unknown()), (before, 1), "where it is now it was not seen yet");
    for _ in 0..ENOUGH {
        assert_eq!(scene.unknown(), 1);
        scene.minute(work, cpu, &[]);
    }
    assert_eq!(scene.unknown(), 0);

    // A shard that was split, and its table that was dropped.
    scene.layout.groups[0].shard_id = 77;
    assert_eq!(scene.unknown(), 1);
    scene.layout.groups.remove(0);
    scene.minute(work, cpu, &[]);
    assert_eq!(scene.loads.groups.len(), 3);
    scene.wanted.rebalance.policy.strategy = Strategy::BySize;
    scene.minute(work, cpu, &[]);
    assert_eq!(scene.loads, Loads::default(), "nobody asked");
}

#[test]
fn a_server_that_counts_anew_or_tells_nothing_keeps_its_average() {
    let mut scene = Scene::new(1);
    for _ in 0..=ENOUGH {
        scene.minute(|_| 100, |_| 30_000_000, &[]);
    }
    let before = scene.loads.clone();
    let all = |reading: &mut Reading, change: fn(u64) -> u64| {
        for accesses in reading.accesses.iter_mut().flat_map(BTreeMap::values_mut) {
            *accesses = change(*accesses);
        }
    };
    scene.again(|reading| all(reading, |_| 0));
    assert_eq!(scene.loads, before, "the statistics began anew");
    scene.again(|reading| reading.accesses = None);
    assert_eq!(scene.loads, before, "it could not be told");
    scene.again(|reading| reading.started = at(-50));
    assert_eq!(scene.loads, before, "nobody is the server that it was");
    // Where nobody knows what is spent the accesses are all there is, and begin anew.
    for _ in 0..2 {
        scene.minute(|_| 600, |_| 0, &[]);
    }
    scene.again(|reading| {
        all(reading, |accesses| accesses + 600);
        reading.cpu = None;
    });
    assert_eq!((scene.averages(), scene.unknown()), (vec![10, 10], 2), "{:?}", scene.loads);
}

#[test]
fn what_two_shards_do_is_shared_and_what_wavers_is_left_alone() {
    let mut scene = Scene::new(12);
    // Two shards of the first worker do all that is done: nine tenths of its cores.
    for _ in 0..=ENOUGH {
        scene.minute(
            |shard| if shard < 2 { 10_000 } else { 0 },
            |worker| if worker == 0 { 108_000_000 } else { 0 },
            &[],
        );
    }
    let moved = scene.moves();
    assert_eq!(moved.iter().filter(|shard| **shard < 2).count(), 1, "{moved:?}");

    // The same from two that are apart already.
    let mut scene = Scene::new(12);
    for _ in 0..=ENOUGH {
        scene.minute(|shard| if shard % 12 == 0 { 10_000 } else { 0 }, |_| 54_000_000, &[]);
    }
    assert_eq!(scene.moves(), [] as [i64; 0]);

    // For a day every shard group does in each minute between a half and three halves of what it does on average, all
    // together a half to nine tenths of what the workers may spend.
    let mut scene = Scene::new(12);
    let mut seed = 1_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for minute in 0..1440 {
        let work: Vec<u64> = (0..24).map(|_| 500 + random(1000)).collect();
        let level = 5000 + u64::try_from(minute).unwrap() % 4000;
        let of = |worker: usize| work[worker * 12..][..12].iter().sum::<u64>();
        let cpu = [of(0), of(1)].map(|work| work * level);
        scene.minute(
            |shard| work[usize::try_from(shard).unwrap()],
            |worker| cpu[usize::try_from(worker).unwrap()],
            &[],
        );
        if scene.unknown() == 0 {
            assert_eq!(scene.moves(), [] as [i64; 0], "minute {minute}");
        }
    }

    // An idle cluster: whatever its workers do by themselves is nothing to move shards for.
    let mut scene = Scene::new(12);
    for minute in 0..100_i64 {
        let (busy, cpu) = (minute / 10 % 24, random(2_000_000));
        scene.minute(|shard| u64::from(shard == busy), |_| cpu, &[]);
        if scene.unknown() == 0 {
            assert_eq!(scene.moves(), [] as [i64; 0], "minute {minute}");
        }
    }
}
