//! Small clusters for the tests.

use jiff::{SignedDuration, Timestamp};

use super::*;

pub(super) const MINUTE: SignedDuration = SignedDuration::from_mins(1);

pub(super) fn policy() -> Policy {
    Policy {
        release_after: SignedDuration::from_hours(24),
        max_shard_groups: 1000,
        strategy: Strategy::ByLoad,
        ..Policy::default()
    }
}

pub(super) fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + minute * 60).unwrap()
}

pub(super) fn tenant(number: i32) -> Tenant {
    Tenant { colocation_id: 1, hash: number }
}

/// A node of one core that spends so many percent of it.
pub(super) fn node(role: Role, percent: u64) -> NodeLoad {
    let cpu_limit = 60_000_000;
    let cpu = cpu_limit / 100 * percent;
    NodeLoad {
        role,
        queries: cpu / 1000,
        writes: cpu / 2000,
        cpu,
        cpu_limit,
        free_bytes: None,
        unseen: 0,
        unlisted: 0,
    }
}

/// A tenant that does so many percent of what its node could do.
pub(super) fn load(number: i32, worker: u32, percent: u64) -> TenantLoad {
    let NodeLoad { queries, writes, cpu, .. } = node(Role::Shared, percent);
    TenantLoad {
        tenant: tenant(number),
        node: Group::Worker(worker),
        queries,
        writes,
        cpu,
        shard_bytes: 1 << 20,
        alone: false,
    }
}

pub(super) fn period(minute: i64, nodes: &[NodeLoad], tenants: &[TenantLoad]) -> Period {
    Period {
        end: at(minute),
        length: MINUTE,
        nodes: (0..).map(Group::Worker).zip(nodes.iter().copied()).collect(),
        tenants: tenants.to_vec(),
        pins: Vec::new(),
        held: Vec::new(),
        empty: Vec::new(),
        uses: Vec::new(),
        large: Vec::new(),
        shard_groups: 48,
        underway: false,
        relief: Relief::Ready,
        splits_held: false,
    }
}

/// The decisions about periods one after the other.
pub(super) fn run(policy: &Policy, periods: impl IntoIterator<Item = Period>) -> Vec<Decision> {
    let mut history = History::default();
    let decide = |period: Period| {
        let (decision, next) = decide(policy, &history, &period);
        history = next;
        decision
    };
    periods.into_iter().map(decide).collect()
}

pub(super) fn actions(decisions: &[Decision]) -> Vec<Option<Action>> {
    decisions.iter().map(|decision| decision.action).collect()
}

pub(super) fn three() -> [NodeLoad; 3] {
    [node(Role::Shared, 70), node(Role::Shared, 20), node(Role::Shared, 30)]
}
