//! From what the servers have counted to a [`Period`]: a pure function.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::read::{Reading, Usage, left_out};
use crate::api::TableKind;
use crate::heat::{
    Counters, History, LargeShard, Mode, NodeLoad, Period, Policy, Relief, Tenant, TenantLoad,
};
use crate::names::Group;
use crate::shards::observed::Spread;
use crate::shards::rebalance::{HashRange, Layout, Role, ShardGroup};
use crate::shards::wanted::Watch;
use crate::shards::world::World;

/// Tenants of a node that are kept of a period: those with the largest part of what it does.
const KEPT: usize = 10;
/// A reading may be so much later than its period was long.
const LATE: SignedDuration = SignedDuration::from_secs(15);

/// What is seen at the end of a period.
pub(super) struct Seen<'a> {
    pub(super) world: &'a World<'a>,
    pub(super) watch: &'a Watch,
    pub(super) end: Timestamp,
    pub(super) layout: &'a Layout,
    /// The servers that answered.
    pub(super) readings: &'a BTreeMap<Group, Reading>,
    pub(super) large: Vec<LargeShard>,
    /// What the tenants are called that fill these.
    pub(super) fillers: Names,
    /// The tenants that were quiet and have no row any more.
    pub(super) empty: Vec<Tenant>,
}

/// What a server had counted when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mark {
    at: Timestamp,
    started: Timestamp,
    counters: Counters,
    /// See [`Reading::accesses`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) accesses: Option<BTreeMap<i64, u64>>,
    /// See [`Reading::uses`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uses: Option<BTreeMap<i64, u64>>,
}

/// Bytes of a colocation group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    pub(super) colocation_id: i32,
    /// As the resource calls it.
    pub(super) group: String,
    pub(super) bytes: i64,
    pub(super) largest: i64,
    pub(super) shards: i64,
}

/// What tenants are called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Names(Vec<(Tenant, String)>);

impl Names {
    /// The key of a tenant; of one that nobody has seen its hash.
    pub(super) fn of(&self, tenant: Tenant) -> String {
        let known = self.0.iter().find(|(known, _)| *known == tenant);
        known.map_or_else(|| format!("hash {}", tenant.hash), |(_, key)| key.clone())
    }

    /// Says what a tenant is called.
    pub(super) fn set(&mut self, tenant: Tenant, key: String) {
        self.0.retain(|(known, _)| *known != tenant);
        self.0.push((tenant, key));
    }

    /// All of them.
    pub(super) fn list(self) -> Vec<(Tenant, String)> {
        self.0
    }

    /// Adds those of `tenants` that only `others` know.
    pub(super) fn add(&mut self, others: &Self, tenants: &[Tenant]) {
        for (tenant, key) in &others.0 {
            if tenants.contains(tenant) && !self.0.iter().any(|(known, _)| known == tenant) {
                self.0.push((*tenant, key.clone()));
            }
        }
    }

    /// Forgets those that nobody will speak of.
    pub(super) fn keep(&mut self, histories: [&History; 2], period: &Period) {
        let pinned: BTreeSet<Tenant> = period.pins.iter().map(Tenant::from).collect();
        let spoken = |tenant: &Tenant| {
            let of = |history: &History| {
                history.hot.contains_key(tenant) || history.imagined.pins.contains_key(tenant)
            };
            pinned.contains(tenant) || histories.into_iter().any(of)
        };
        self.0.retain(|(tenant, _)| spoken(tenant));
    }
}

/// The policy by which tenants are only watched: nothing ever follows.
pub(super) fn only_watching(policy: &Policy) -> Policy {
    Policy { mode: Mode::Isolate, consecutive_periods: u32::MAX, max_shard_bytes: None, ..*policy }
}

/// The period, what to compare the next reading with, and what its tenants are called. Of the tenants those are `kept` in
/// any case, and otherwise the busiest.
pub(super) fn period(
    seen: &Seen<'_>,
    before: &BTreeMap<Group, Mark>,
    kept: &[Tenant],
) -> (Period, BTreeMap<Group, Mark>, Names) {
    let mut period = Period {
        end: seen.end,
        length: seen.watch.period,
        nodes: BTreeMap::new(),
        tenants: Vec::new(),
        pins: seen.layout.pins.clone(),
        held: seen.world.decisions().known.iter().map(|decided| decided.tenant).collect(),
        empty: seen.empty.clone(),
        uses: Vec::new(),
        large: seen.large.clone(),
        shard_groups: seen.layout.groups.len(),
        underway: is_underway(seen.world),
        relief: Relief::Ready,
        splits_held: seen.world.wanted.rebalance.gate.is_outside_windows(),
    };
    let shards = by_hash(&seen.layout.groups);
    let mut keys: BTreeMap<Tenant, (u64, &str)> = BTreeMap::new();
    for (group, node) in &seen.layout.nodes {
        // It holds shards only where there are no workers, or not any more.
        let aside = *group == Group::Coordinator
            && seen.world.wanted.workers > 0
            && !seen.layout.groups.iter().any(|shard| shard.node == *group);
        if aside {
            continue;
        }
        let unavailable = NodeLoad { free_bytes: node.free_bytes, ..NodeLoad::unknown(Role::Unavailable) };
        let reading = seen.readings.get(group);
        let counted = reading.and_then(|reading| figures(seen.watch, *group, reading, before.get(group)));
        let (Some(reading), Some((mut load, true))) =
            (reading, counted.map(|load| (load, node.role != Role::Unavailable)))
        else {
            period.nodes.insert(*group, unavailable);
            continue;
        };
        load.role = node.role;
        load.free_bytes = node.free_bytes;
        let between =
            before.get(group).map(|before| Between { length: seen.watch.period, now: reading, before });
        period.uses.extend(between.iter().flat_map(|between| between.uses(seen.layout, *group)));
        let (notable, dropped) = notable(&load, &reading.tenants, kept);
        load.unseen = dropped.max(reading.unlisted);
        let statements = load.queries.saturating_add(load.writes);
        load.unlisted = left_out(reading.unlisted, reading.limit, statements);
        for Usage { tenant, key, counted } in notable {
            let Some(shard) = shard_of(&shards, *tenant) else { continue };
            let known = keys.entry(*tenant).or_insert((counted.queries, key));
            if counted.queries > known.0 {
                *known = (counted.queries, key);
            }
            period.tenants.push(TenantLoad {
                tenant: *tenant,
                node: *group,
                queries: counted.queries,
                writes: counted.writes,
                cpu: counted.cpu,
                shard_bytes: shard.bytes,
                alone: shard.range.min == shard.range.max,
            });
        }
        period.nodes.insert(*group, load);
    }
    let mark = |reading: &Reading| Mark {
        at: reading.at,
        started: reading.started,
        counters: reading.counters,
        accesses: reading.accesses.clone(),
        uses: reading.uses.clone(),
    };
    let marks = seen.readings.iter().map(|(group, reading)| (*group, mark(reading))).collect();
    let names = keys.into_iter().map(|(tenant, (_, key))| (tenant, key.to_owned())).collect();
    (period, marks, Names(names))
}

/// Adds a load of nothing for each of those that were hot, and where, that did nothing in the period: whoever is missing from
/// it may as well have been left out.
///
/// All that the servers list of these was kept, and whoever is listed has queries. A server drops the lowest scores only: where
/// it has dropped nobody with as many queries as a hot tenant has, it lists whom it had seen hot, if that did anything.
pub(super) fn add_silent(period: &mut Period, seen: &Seen<'_>, was_hot: &BTreeMap<Tenant, Group>) {
    let shards = by_hash(&seen.layout.groups);
    let listed: BTreeSet<Tenant> = period.tenants.iter().map(|load| load.tenant).collect();
    let lists_all = |group: &Group| {
        let known = period.nodes.get(group).is_some_and(|node| node.role != Role::Unavailable);
        let reading = seen.readings.get(group).filter(|_| known);
        reading.is_some_and(|reading| reading.unlisted < seen.watch.policy.min_queries)
    };
    let missing = was_hot.iter().filter(|(tenant, _)| !listed.contains(tenant));
    let silent = missing.filter_map(|(tenant, node)| {
        let shard = shard_of(&shards, *tenant)?;
        // It may have been moved in the period.
        [node, &shard.node].into_iter().all(lists_all).then_some(TenantLoad {
            tenant: *tenant,
            node: shard.node,
            queries: 0,
            writes: 0,
            cpu: 0,
            shard_bytes: shard.bytes,
            alone: shard.range.min == shard.range.max,
        })
    });
    let silent: Vec<TenantLoad> = silent.collect();
    period.tenants.extend(silent);
}

/// Whether shards are being moved, split or made, by anybody.
pub(in crate::shards) fn is_underway(world: &World<'_>) -> bool {
    world.catalog().is_none_or(|catalog| !catalog.operations.is_empty() || !catalog.foreign.is_empty())
}

/// Two readings of a server, one period after the other, or nearly so.
struct Between<'a> {
    length: SignedDuration,
    now: &'a Reading,
    before: &'a Mark,
}

impl Between<'_> {
    /// What was counted between them, for as long as a period is: it is taken as even.
    fn even(&self, counted: u64) -> u64 {
        let millis = |time: SignedDuration| u128::try_from(time.as_millis()).unwrap_or(0);
        let apart = millis(self.now.at.duration_since(self.before.at)).max(1);
        u64::try_from(u128::from(counted) * millis(self.length) / apart).unwrap_or(u64::MAX)
    }

    /// How many statements can have used the shard group of each tenant that is pinned to `node`, and has one of its own there.
    fn uses<'b>(&'b self, layout: &'b Layout, node: Group) -> impl Iterator<Item = (Tenant, u64)> + 'b {
        let pinned = layout.pins.iter().filter(move |pin| pin.node == node);
        pinned.filter_map(move |pin| {
            let tenant = Tenant::from(pin);
            let range = HashRange { min: tenant.hash, max: tenant.hash };
            let own = |group: &&ShardGroup| {
                (group.colocation_id, group.range, group.node) == (tenant.colocation_id, range, node)
            };
            let shard = layout.groups.iter().find(own)?.shard_id;
            let (now, before) = (self.now.uses.as_ref()?, self.before.uses.as_ref()?);
            // Somebody may have had the counters of one table begin anew.
            let uses = now.get(&shard)?.checked_sub(*before.get(&shard)?)?;
            Some((tenant, self.even(uses).max(uses)))
        })
    }
}

/// What a node did in the period; `None` if there is nothing to compare its reading with.
///
/// Transactions stand for queries: one of many statements counts too little, which the sum of the tenants' mends.
fn figures(watch: &Watch, group: Group, now: &Reading, before: Option<&Mark>) -> Option<NodeLoad> {
    let before = before.filter(|before| before.started == now.started)?;
    // They may have caught up with what they were since.
    if now.reset.is_some_and(|reset| reset > before.at) {
        return None;
    }
    let counted = now.counters.since(before.counters)?;
    let (length, apart) = (watch.period.as_millis(), now.at.duration_since(before.at));
    let late = watch.period.saturating_mul(2).saturating_add(LATE);
    if apart.as_millis() < length / 4 || apart > late {
        return None;
    }
    let (length, apart) = (u128::try_from(length).ok()?, u128::try_from(apart.as_millis()).ok()?);
    let between = Between { length: watch.period, now, before };
    let even = |counted: u64| between.even(counted);
    let sum = |of: fn(&Counters) -> u64| {
        now.tenants.iter().map(|tenant| of(&tenant.counted)).fold(0, u64::saturating_add)
    };
    // A process that ends while its time is read is missing from one sum, and in the next one with all that it has ever
    // spent: no more counts than can have been spent since.
    let spendable =
        now.cpu.map_or(u64::MAX, |cpu| u64::try_from(u128::from(cpu) * apart).unwrap_or(u64::MAX));
    let declared = if group == Group::Coordinator { watch.coordinator_cpu } else { watch.worker_cpu };
    // Where nobody knows what was spent, what may be is of no use.
    let millicores = now.cpu.map_or(0, |cpu| declared.unwrap_or(cpu));
    Some(NodeLoad {
        role: Role::Unavailable,
        queries: even(counted.queries).max(sum(|counted| counted.queries)),
        writes: even(counted.writes).max(sum(|counted| counted.writes)),
        cpu: even(counted.cpu.min(spendable)).max(sum(|counted| counted.cpu)),
        // Thousandths of a core, for so many milliseconds: microseconds.
        cpu_limit: u64::try_from(u128::from(millicores) * length).unwrap_or(u64::MAX),
        free_bytes: None,
        unseen: 0,
        unlisted: 0,
    })
}

/// The tenants with the largest part of what the node did, and the most queries of those that are left out.
fn notable<'a>(node: &NodeLoad, tenants: &'a [Usage], kept: &[Tenant]) -> (Vec<&'a Usage>, u64) {
    let part =
        |part: u64, whole: u64| (u128::from(part) * 10_000).checked_div(u128::from(whole)).unwrap_or(0);
    let share = |one: &Usage| {
        let Counters { queries, writes, cpu } = one.counted;
        part(queries, node.queries).max(part(writes, node.writes)).max(part(cpu, node.cpu))
    };
    let mut all: Vec<&Usage> = tenants.iter().collect();
    all.sort_by_key(|one| (!kept.contains(&one.tenant), Reverse(share(one)), one.tenant));
    let known = all.iter().filter(|one| kept.contains(&one.tenant)).count();
    let dropped = all.split_off((known + KEPT).min(all.len()));
    (all, dropped.iter().map(|one| one.counted.queries).max().unwrap_or(0))
}

/// The shard groups of each colocation group by their lowest hashes.
pub(super) fn by_hash(groups: &[ShardGroup]) -> BTreeMap<(i32, i32), &ShardGroup> {
    groups.iter().map(|group| ((group.colocation_id, group.range.min), group)).collect()
}

/// The shard group that covers a tenant's hash.
pub(super) fn shard_of<'a>(
    shards: &BTreeMap<(i32, i32), &'a ShardGroup>,
    tenant: Tenant,
) -> Option<&'a ShardGroup> {
    let (_, shard) = shards.range(..=(tenant.colocation_id, tenant.hash)).next_back()?;
    (shard.colocation_id == tenant.colocation_id && shard.range.contains(tenant.hash)).then_some(*shard)
}

/// What the resource calls a colocation group: the group of its tables. Tables of one group that somebody has put into
/// several colocation groups give their name to the first.
pub(in crate::shards) fn group_name(world: &World<'_>, colocation_id: i32) -> String {
    let named = world.wanted.tables.iter().filter(|table| table.kind == TableKind::Distributed);
    let colocated = named.filter_map(|table| {
        let Spread::Hash { colocation_id, .. } = world.observed.tables.get(&table.name)?.spread else {
            return None;
        };
        Some((table.group.as_deref()?, colocation_id))
    });
    let colocated: BTreeSet<(&str, i32)> = colocated.collect();
    let first = |name: &str| colocated.iter().find(|(group, _)| *group == name).map(|(_, id)| *id);
    let mut own = colocated.iter().filter(|(_, id)| *id == colocation_id).map(|(name, _)| *name);
    own.find(|name| first(name) == Some(colocation_id))
        .map_or_else(|| format!("colocation {colocation_id}"), str::to_owned)
}

/// How large the colocation groups are; nothing until all shards were measured.
pub(super) fn sizes(seen: &Seen<'_>) -> Vec<Size> {
    let measured =
        |group: &Group| seen.world.observed.facts(*group).is_some_and(|facts| facts.sizes.is_some());
    if !seen.layout.nodes.keys().all(measured) {
        return Vec::new();
    }
    let mut sizes: BTreeMap<i32, Size> = BTreeMap::new();
    for shard in &seen.layout.groups {
        let size = sizes.entry(shard.colocation_id).or_insert_with(|| Size {
            colocation_id: shard.colocation_id,
            group: group_name(seen.world, shard.colocation_id),
            bytes: 0,
            largest: 0,
            shards: 0,
        });
        let bytes = i64::try_from(shard.bytes).unwrap_or(i64::MAX);
        size.bytes = size.bytes.saturating_add(bytes);
        size.largest = size.largest.max(bytes);
        size.shards += 1;
    }
    sizes.into_values().collect()
}

#[cfg(test)]
mod tests;
