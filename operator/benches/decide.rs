//! How long it takes to decide about load, and how much memory, up to a million tenants that are all listed.
//!
//! `cargo bench -p dialog-operator --bench decide` prints both, of the whole decision: who is hot, who is quiet, which nodes
//! are busy, what is done, what is refused, and what is remembered. Each node does as much as its tenants together, and as
//! much again of other things. Few tenants do most: one in a thousand asks for fifty times as much as the others, one for
//! two fifths of a node, and has for so long that something is decided. There are as many pins as the policy allows but one, tenants
//! that somebody has decided about, and shard groups that are too large and cannot be divided.

use dialog_operator::heat::{
    Decision, History, LargeShard, Mode, NodeLoad, Period, Policy, Relief, Tenant, TenantLoad, decide,
};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::Role;
use jiff::{SignedDuration, Timestamp};

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

/// Eight cores for a minute, in microseconds.
const CPU_LIMIT: u64 = 8 * 60_000_000;
/// The one that is to be isolated.
const HOT: u32 = 1;
/// Shard groups that are too large.
const LARGE: u32 = 100;

/// `tenants` tenants on `nodes` nodes, in a minute.
fn period(policy: &Policy, nodes: u32, tenants: u32, minute: i64) -> Period {
    let tenant = |number: u32| Tenant {
        colocation_id: 1,
        // Scattered, as hashes are.
        hash: number.wrapping_mul(2_654_435_769).cast_signed(),
    };
    let mut period = Period {
        end: Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minute),
        length: SignedDuration::from_mins(1),
        nodes: (0..nodes)
            .map(|number| {
                (
                    Group::Worker(number),
                    idle(if number + 1 == nodes { Role::Dedicated } else { Role::Shared }),
                )
            })
            .collect(),
        tenants: Vec::new(),
        pins: (2..)
            .map(|number| tenant(number).pin(Group::Worker(number % nodes)))
            .take(policy.max_isolated - 1)
            .collect(),
        held: (1_000..1_008).map(tenant).collect(),
        empty: Vec::new(),
        large: (0..LARGE)
            .map(|number| LargeShard {
                colocation_id: 1,
                shard_id: 100_000 + i64::from(number),
                node: Group::Worker(number % nodes),
                bytes: (30 << 30) + u64::from(number),
                median: None,
                heaviest: None,
            })
            .collect(),
        shard_groups: 8_000,
        underway: false,
        relief: Relief::Ready,
        splits_held: false,
    };
    let pinned: Vec<Tenant> = period.pins.iter().map(Tenant::from).collect();
    for number in 0..tenants {
        let cpu = if number == HOT {
            CPU_LIMIT * 2 / 5
        } else if number % 1000 == 0 {
            400_000
        } else {
            8_000
        };
        let load = TenantLoad {
            tenant: tenant(number),
            node: Group::Worker(number % nodes),
            queries: cpu / 100,
            writes: cpu / 200,
            cpu,
            shard_bytes: 1 << 30,
            alone: pinned.contains(&tenant(number)),
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

fn idle(role: Role) -> NodeLoad {
    NodeLoad {
        role,
        queries: 0,
        writes: 0,
        // So much that none counts as idle: then every tenant is looked at.
        cpu: CPU_LIMIT / 4,
        cpu_limit: CPU_LIMIT,
        free_bytes: Some(1 << 40),
        unseen: 0,
        unlisted: 0,
    }
}

const SIZES: [(u32, u32); 2] = [(20, 100_000), (200, 1_000_000)];

/// Every tenant has enough queries to count.
fn policy(mode: Mode) -> Policy {
    Policy { mode, min_queries: 10, ..Policy::default() }
}

/// The decision after so many periods, where the last of them finds `expected`.
fn bench(
    bencher: divan::Bencher<'_, '_>,
    mode: Mode,
    (nodes, tenants): (u32, u32),
    periods: i64,
    expected: impl Fn(&History, &Decision) -> bool,
) {
    let policy = policy(mode);
    let mut history = History::default();
    for minute in 1..periods {
        history = decide(&policy, &history, &period(&policy, nodes, tenants, minute)).1;
    }
    let last = period(&policy, nodes, tenants, periods);
    let answer = decide(&policy, &history, &last).0;
    assert!(expected(&history, &answer), "this is another case: {answer:?}");
    bencher.bench(|| decide(divan::black_box(&policy), divan::black_box(&history), divan::black_box(&last)));
}

/// The period in which something is decided.
#[divan::bench(args = SIZES, sample_count = 50, sample_size = 1)]
fn isolating(bencher: divan::Bencher<'_, '_>, size: (u32, u32)) {
    bench(bencher, Mode::Isolate, size, 3, |_, answer| answer.action.is_some());
}

/// The period after that where nothing is done: it is decided as if the tenant were elsewhere.
#[divan::bench(args = SIZES, sample_count = 50, sample_size = 1)]
fn observing(bencher: divan::Bencher<'_, '_>, size: (u32, u32)) {
    bench(bencher, Mode::Observe, size, 4, |history, _| !history.imagined.pins.is_empty());
}
