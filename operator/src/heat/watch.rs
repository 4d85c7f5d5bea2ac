//! Who is hot, who is quiet, and for how long.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::place::bearable;
use super::{History, NodeLoad, Period, Policy, Streak, Tenant, TenantLoad};
use crate::api::ShareOf;
use crate::names::Group;
use crate::shards::rebalance::Role;

/// A node that spends more has too much to do, and no target may come to more, in percent.
pub(super) const BUSY_PERCENT: u64 = 80;
/// What a busy node spends on shards that may be moved, at least, if that is to be worth it, in percent.
const MOVABLE_PERCENT: u64 = 10;
/// A tenant is not hot any more below this part of the share that made it hot: one that wavers around the limit is.
pub(super) const WARM: (u64, u64) = (3, 4);

/// A hot tenant with its figures.
pub(super) struct Seen {
    /// What it did.
    pub(super) load: TenantLoad,
    /// In hundredths of a percent, so that close ones have an order.
    pub(super) share: u64,
    /// Of what.
    pub(super) of: ShareOf,
}

/// How hot a tenant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heat {
    Cold,
    Warm,
    Hot,
}

/// Whether `part` is more than so many percent of `whole`; never if the whole is not known.
pub(super) fn above(part: u64, whole: u64, percent: u64) -> bool {
    whole > 0 && u128::from(part) * 100 > u128::from(whole) * u128::from(percent)
}

/// Counts the periods of hot tenants and of busy nodes; the tenants that are hot now, the hottest first.
pub(super) fn watch(policy: &Policy, history: &mut History, period: &Period) -> Vec<Seen> {
    let own: BTreeSet<Tenant> = period.pins.iter().map(Tenant::from).collect();
    let mut hot = Vec::new();
    let mut streaks: BTreeMap<Tenant, Streak> = BTreeMap::new();
    let mut blamed: BTreeSet<Group> = BTreeSet::new();
    // CPU time of tenants that are where they belong, hot or not: it cannot be taken off the node.
    let mut bound: BTreeMap<Group, u64> = BTreeMap::new();
    for load in notable(policy, period) {
        let Some(node) = period.nodes.get(&load.node) else { continue };
        let (heat, (share, of)) = heat(policy, node, &load);
        let before = history.hot.get(&load.tenant).map_or(0, |streak| streak.periods);
        let periods = match heat {
            Heat::Hot => before.saturating_add(1),
            Heat::Warm if before > 0 => before,
            Heat::Warm | Heat::Cold => continue,
        };
        streaks.insert(load.tenant, Streak { periods, unseen: 0, node: load.node });
        if own.contains(&load.tenant) {
            let cpu = bound.entry(load.node).or_default();
            *cpu = cpu.saturating_add(load.cpu);
        } else {
            blamed.insert(load.node);
        }
        if heat == Heat::Hot {
            hot.push(Seen { load, share, of });
        }
    }
    streaks.extend(unseen(policy, history, period));
    history.hot = streaks;

    let busy = period.nodes.iter().filter(|(group, node)| {
        let bound = bound.get(group).copied().unwrap_or(0);
        node.role == Role::Shared
            && above(node.cpu, node.cpu_limit, BUSY_PERCENT)
            && above(node.cpu.saturating_sub(bound), node.cpu_limit, MOVABLE_PERCENT)
            && !blamed.contains(group)
    });
    let longer = |before: &BTreeMap<Group, u32>, group: &Group| {
        (*group, before.get(group).copied().unwrap_or(0).saturating_add(1))
    };
    let busy: BTreeMap<Group, u32> = busy.map(|(group, _)| longer(&history.busy, group)).collect();
    let several: BTreeSet<Group> = several(period, &own);
    let crowded = period.nodes.iter().filter(|(group, node)| {
        matches!(node.role, Role::Shared | Role::Dedicated)
            && above(node.cpu, node.cpu_limit, BUSY_PERCENT)
            && several.contains(group)
            && !busy.contains_key(group)
            && !blamed.contains(group)
    });
    history.crowded = crowded.map(|(group, _)| longer(&history.crowded, group)).collect();
    history.busy = busy;
    hot.sort_by_key(|seen| (Reverse(seen.share), seen.load.tenant));
    hot
}

/// The nodes where more than one of the tenants that are pinned does something, and none is by itself more than a node can
/// bear.
fn several(period: &Period, own: &BTreeSet<Tenant>) -> BTreeSet<Group> {
    let mut active: BTreeMap<Group, (BTreeSet<Tenant>, bool)> = BTreeMap::new();
    if own.is_empty() {
        return BTreeSet::new();
    }
    for load in period.tenants.iter().filter(|load| load.cpu > 0 && own.contains(&load.tenant)) {
        let (tenants, able) = active.entry(load.node).or_insert_with(|| (BTreeSet::new(), true));
        tenants.insert(load.tenant);
        *able &= bearable(period, load);
    }
    active.retain(|_, (tenants, able)| tenants.len() > 1 && *able);
    active.into_keys().collect()
}

/// What somebody does at least who may be hot on a node.
struct Enough {
    queries: u64,
    writes: u64,
    cpu: u64,
}

impl Enough {
    /// Of whoever is warm by `policy`, or a little less.
    fn new(policy: &Policy, node: &NodeLoad) -> Self {
        let share = u128::from(policy.share_percent) * 100 * u128::from(WARM.0) / u128::from(WARM.1);
        let part = |whole: u64| u64::try_from(u128::from(whole) * share / 10_000).unwrap_or(u64::MAX).max(1);
        Self { queries: part(node.queries), writes: part(node.writes), cpu: part(node.cpu) }
    }

    fn is_done_by(&self, load: &TenantLoad) -> bool {
        load.queries >= self.queries || load.writes >= self.writes || load.cpu >= self.cpu
    }
}

/// The period with those of its tenants only that anything is decided from: who may be hot, was hot, or is or would be
/// pinned or released. Of a million tenants these are few, and to look at all of them again and again takes long, as does
/// a copy.
pub(super) fn few(policy: &Policy, history: &History, period: &Period) -> Period {
    let half = halved(policy);
    let nodes = history.imagined.nodes(period);
    let busy = nodes.iter().filter(|(_, node)| !is_calm(policy, node));
    let enough: HashMap<Group, Enough> =
        busy.map(|(group, node)| (*group, Enough::new(&half, node))).collect();
    let may_be_hot = |load: &&TenantLoad| {
        load.queries >= half.min_queries
            && enough.get(&load.node).is_some_and(|enough| enough.is_done_by(load))
    };
    let hot = period.tenants.iter().filter(may_be_hot).map(|load| load.tenant);
    let own = period.pins.iter().map(Tenant::from);
    let remembered = history.hot.keys().chain(history.imagined.pins.keys()).chain(&history.imagined.released);
    let few: BTreeSet<Tenant> = hot.chain(own).chain(remembered.copied()).collect();
    Period {
        end: period.end,
        length: period.length,
        nodes: period.nodes.clone(),
        tenants: period.tenants.iter().filter(|load| few.contains(&load.tenant)).copied().collect(),
        pins: period.pins.clone(),
        held: period.held.clone(),
        empty: period.empty.clone(),
        uses: period.uses.clone(),
        large: period.large.clone(),
        shard_groups: period.shard_groups,
        underway: period.underway,
        relief: period.relief,
        splits_held: period.splits_held,
    }
}

/// Of two that are one, and are warm together, one has half of what it takes.
fn halved(policy: &Policy) -> Policy {
    Policy { share_percent: policy.share_percent / 2, min_queries: policy.min_queries / 2, ..*policy }
}

/// The tenants that may be hot, each once: those of equal hash are one, and one that has moved in this period is where it
/// did more.
fn notable(policy: &Policy, period: &Period) -> Vec<TenantLoad> {
    let half = halved(policy);
    let able = |load: &&TenantLoad| {
        period.nodes.get(&load.node).is_some_and(|node| heat(&half, node, load).0 != Heat::Cold)
    };
    let tenants: BTreeSet<Tenant> = period.tenants.iter().filter(able).map(|load| load.tenant).collect();
    if tenants.is_empty() {
        return Vec::new();
    }
    let mut sums: BTreeMap<Tenant, (u64, TenantLoad)> = BTreeMap::new();
    for load in period.tenants.iter().filter(|load| tenants.contains(&load.tenant)) {
        let (largest, sum) =
            sums.entry(load.tenant).or_insert((0, TenantLoad { queries: 0, writes: 0, cpu: 0, ..*load }));
        if (load.queries, Reverse(load.node)) > (*largest, Reverse(sum.node)) {
            (*largest, sum.node) = (load.queries, load.node);
        }
        sum.queries = sum.queries.saturating_add(load.queries);
        sum.writes = sum.writes.saturating_add(load.writes);
        sum.cpu = sum.cpu.saturating_add(load.cpu);
        sum.shard_bytes = sum.shard_bytes.max(load.shard_bytes);
        sum.alone &= load.alone;
    }
    sums.into_values().map(|(_, sum)| sum).collect()
}

/// Whether nobody on the node can be hot: it has little to do, or does not answer.
fn is_calm(policy: &Policy, node: &NodeLoad) -> bool {
    let idle = node.cpu_limit > 0 && !above(node.cpu, node.cpu_limit, policy.min_cpu_percent.into());
    idle || node.role == Role::Unavailable
}

/// How hot a tenant is, and its largest share, in hundredths of a percent, with what it is of.
fn heat(policy: &Policy, node: &NodeLoad, load: &TenantLoad) -> (Heat, (u64, ShareOf)) {
    if load.queries < policy.min_queries || is_calm(policy, node) {
        return (Heat::Cold, (0, ShareOf::Queries));
    }
    // A tenant's figures can be fresher than its node's.
    let share = |part: u64, whole: u64| {
        if part == 0 {
            0
        } else {
            u64::try_from(u128::from(part) * 10_000 / u128::from(whole.max(part))).unwrap_or(0)
        }
    };
    let writes = if load.writes < policy.min_queries { 0 } else { share(load.writes, node.writes) };
    let mut most = (share(load.queries, node.queries), ShareOf::Queries);
    for other in [(writes, ShareOf::Writes), (share(load.cpu, node.cpu), ShareOf::Cpu)] {
        if other.0 > most.0 {
            most = other;
        }
    }
    let share = most.0;
    let limit = u64::from(policy.share_percent) * 100;
    let heat = if share >= limit {
        Heat::Hot
    } else if share * WARM.1 >= limit * WARM.0 {
        Heat::Warm
    } else {
        Heat::Cold
    };
    (heat, most)
}

/// Those that were hot and about whom this period says nothing: nobody is acquitted for want of evidence, nor blamed for
/// longer than it took to be.
fn unseen(policy: &Policy, history: &History, period: &Period) -> Vec<(Tenant, Streak)> {
    let dark = |streak: &Streak| {
        period.nodes.get(&streak.node).is_some_and(|node| {
            node.role == Role::Unavailable || (node.unseen > 0 && node.unseen >= policy.min_queries)
        })
    };
    let mut missing: BTreeMap<Tenant, Streak> = history
        .hot
        .iter()
        .filter(|(_, streak)| dark(streak) && streak.unseen < policy.consecutive_periods)
        .map(|(tenant, streak)| (*tenant, Streak { unseen: streak.unseen + 1, ..*streak }))
        .collect();
    if !missing.is_empty() {
        let known =
            |group: &Group| period.nodes.get(group).is_some_and(|node| node.role != Role::Unavailable);
        for load in period.tenants.iter().filter(|load| known(&load.node)) {
            missing.remove(&load.tenant);
        }
    }
    missing.into_iter().collect()
}

/// Why nobody knows whether a pinned tenant was quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untold {
    /// Its node does not answer.
    Silent,
    /// Its node's list may have left out so much of it that it was busy, and its shards do not tell.
    Unlisted,
}

/// Keeps since when pinned tenants have been quiet; those of whom that is not known in this period.
///
/// What is not known is not quiet: such a period is none that a tenant has been quiet for, nor does it end its quiet time.
pub(super) fn rest(
    policy: &Policy,
    history: &mut History,
    period: &Period,
    hot: &[Seen],
) -> BTreeMap<Tenant, Untold> {
    let mut pinned: BTreeMap<Tenant, Group> = period.pins.iter().map(|pin| (pin.into(), pin.node)).collect();
    pinned.retain(|tenant, _| !period.held.contains(tenant));
    let mut active: BTreeSet<Tenant> = hot.iter().map(|seen| seen.load.tenant).collect();
    let mut listed: BTreeMap<Tenant, u64> = BTreeMap::new();
    for load in period.tenants.iter().filter(|load| pinned.contains_key(&load.tenant)) {
        let queries = listed.entry(load.tenant).or_default();
        *queries = queries.saturating_add(load.queries);
        if load.queries >= policy.min_queries {
            active.insert(load.tenant);
        }
    }
    pinned.retain(|tenant, _| !active.contains(tenant));
    let uses: BTreeMap<Tenant, u64> = period.uses.iter().copied().collect();
    let most = |node: &NodeLoad, tenant: &Tenant| {
        let by_list = node.unlisted.saturating_add(listed.get(tenant).copied().unwrap_or(0));
        uses.get(tenant).map_or(by_list, |uses| by_list.min(*uses))
    };
    let told = |tenant: &Tenant, group: &Group| match period.nodes.get(group) {
        None => Some(Untold::Silent),
        Some(node) if node.role == Role::Unavailable => Some(Untold::Silent),
        // With so few queries, also with those that were not counted, it is quiet.
        Some(node) if most(node, tenant) < policy.min_queries => None,
        Some(_) => Some(Untold::Unlisted),
    };
    let untold: BTreeMap<Tenant, Untold> =
        pinned.iter().filter_map(|(tenant, group)| Some((*tenant, told(tenant, group)?))).collect();
    let quiet = pinned.keys().filter_map(|tenant| {
        let since = history.quiet.get(tenant).copied();
        let since = if untold.contains_key(tenant) {
            since?.checked_add(period.length).map_or(period.end, |since| since.min(period.end))
        } else {
            since.unwrap_or(period.end)
        };
        Some((*tenant, since))
    });
    history.quiet = quiet.collect();
    untold
}
