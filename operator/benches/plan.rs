//! How long planning takes, and how much memory, up to the size of a very large cluster.
//!
//! `cargo bench -p dialog-operator --bench plan` prints both. The cluster has just been grown by a half: a third of its
//! nodes are empty, sizes differ by three orders of magnitude.

use std::collections::BTreeMap;

use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::{
    Goal, HashRange, Layout, Node, Policy, Role, ShardGroup, Strategy, plan,
};

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// `groups` shard groups on two thirds of `nodes` nodes; `drained` of these have to be emptied.
fn layout(nodes: u32, groups: u32, drained: u32) -> Layout {
    let node = |number: u32| {
        let role = if number < drained { Role::Draining } else { Role::Shared };
        (Group::Worker(number), Node { role, free_bytes: Some(1 << 50) })
    };
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let used = u64::from(nodes * 2 / 3).max(1);
    let group = |number: u32| ShardGroup {
        colocation_id: i32::try_from(number % 4).unwrap_or(0),
        shard_id: 100_000 + i64::from(number),
        range: HashRange { min: i32::try_from(number).unwrap_or(0), max: i32::try_from(number).unwrap_or(0) },
        node: Group::Worker(u32::try_from(random() % used).unwrap_or(0)),
        bytes: (1 << 20) << (random() % 10),
        load: random() % 10_000,
    };
    Layout {
        nodes: (0..nodes).map(node).collect::<BTreeMap<_, _>>(),
        groups: (0..groups).map(group).collect(),
        pins: Vec::new(),
    }
}

fn policy(strategy: Strategy) -> Policy {
    Policy { strategy, threshold: 100, max_parallel_moves: 8, moves_per_node: 1, goal: Goal::Balance }
}

const SIZES: [(u32, u32); 3] = [(5, 96), (50, 2000), (200, 8000)];

#[divan::bench(args = SIZES)]
fn by_size(bencher: divan::Bencher<'_, '_>, (nodes, groups): (u32, u32)) {
    let layout = layout(nodes, groups, 0);
    bencher.bench(|| plan(divan::black_box(&layout), &policy(Strategy::BySize)));
}

#[divan::bench(args = SIZES)]
fn by_count(bencher: divan::Bencher<'_, '_>, (nodes, groups): (u32, u32)) {
    let layout = layout(nodes, groups, 0);
    bencher.bench(|| plan(divan::black_box(&layout), &policy(Strategy::ByCount)));
}

#[divan::bench(args = SIZES)]
fn by_load_while_a_tenth_drains(bencher: divan::Bencher<'_, '_>, (nodes, groups): (u32, u32)) {
    let layout = layout(nodes, groups, nodes / 10);
    bencher.bench(|| plan(divan::black_box(&layout), &policy(Strategy::ByLoad)));
}
