//! How long it takes to decide about load, up to a million tenants that are all listed.
//!
//! `cargo bench -p dialog-operator --bench decide` prints it. Each node does as much as its tenants together; a few
//! tenants are hot, and have been for so long that something is decided.

use dialog_operator::heat::{Decision, History, NodeLoad, Period, Policy, Tenant, TenantLoad, decide};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::Role;
use jiff::{SignedDuration, Timestamp};

fn main() {
    divan::main();
}

const CPU_LIMIT: u64 = 8 * 60_000_000;

/// `tenants` tenants on `nodes` nodes; every thousandth asks for a thousand times as much, and one for half a node.
fn period(nodes: u32, tenants: u32, minute: i64) -> Period {
    let mut period = Period {
        end: Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minute),
        length: SignedDuration::from_mins(1),
        nodes: (0..nodes).map(|number| (Group::Worker(number), idle())).collect(),
        tenants: Vec::new(),
        pins: Vec::new(),
        held: Vec::new(),
        large: Vec::new(),
        shard_groups: 8_000,
        underway: false,
    };
    for number in 0..tenants {
        let cpu = if number == 1 {
            CPU_LIMIT / 2
        } else if number % 1000 == 0 {
            100_000
        } else {
            10_000
        };
        let load = TenantLoad {
            // Scattered, as hashes are.
            tenant: Tenant { colocation_id: 1, hash: number.wrapping_mul(2_654_435_769).cast_signed() },
            node: Group::Worker(number % nodes),
            queries: cpu / 100,
            writes: cpu / 200,
            cpu,
            shard_bytes: 1 << 30,
            alone: false,
        };
        if let Some(node) = period.nodes.get_mut(&load.node) {
            node.queries += load.queries;
            node.writes += load.writes;
            node.cpu += load.cpu;
        }
        period.tenants.push(load);
    }
    period
}

fn idle() -> NodeLoad {
    NodeLoad {
        role: Role::Shared,
        queries: 0,
        writes: 0,
        // Each has something else to do as well, so that none is idle.
        cpu: CPU_LIMIT / 3,
        cpu_limit: CPU_LIMIT,
        free_bytes: Some(1 << 40),
        unseen: 0,
    }
}

#[divan::bench(args = [(20, 100_000), (200, 1_000_000)])]
fn tenants(bencher: divan::Bencher<'_, '_>, (nodes, tenants): (u32, u32)) {
    let policy = Policy { min_queries: 10, ..Policy::default() };
    let mut history = History::default();
    for minute in 1..3 {
        history = decide(&policy, &history, &period(nodes, tenants, minute)).1;
    }
    let last = period(nodes, tenants, 3);
    let answer: Decision = decide(&policy, &history, &last).0;
    assert!(answer.action.is_some(), "there is something to decide: {answer:?}");
    bencher.bench(|| decide(divan::black_box(&policy), divan::black_box(&history), divan::black_box(&last)));
}
