//! How much each shard group has to do: what its node spends, divided among those that are there. A pure function.
//!
//! A node's CPU time is divided by the pages that were accessed for each shard group, whoever asked; one whose tenants are
//! known to have spent more gets what they spent, because some queries cost more than their pages say. Where nobody knows
//! what a node spends, the accesses themselves are the load.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::period::{Mark, Seen, by_hash, is_underway, shard_of};
use super::read::Reading;
use crate::heat::Period;
use crate::names::Group;
use crate::shards::rebalance::{Role, ShardGroup, Strategy};

/// Periods that an average is over: a load that comes and goes within less is none to move shards for.
const AVERAGED: u64 = 10;
/// Periods in which a shard group has to be seen where it is before the loads count.
pub const ENOUGH: u32 = 5;
/// The shard groups of a colocation group count, besides what they do, for one part in so many of what the nodes may spend:
/// on nodes with little to do, hardly anything is worth a move.
const BASE_PART: u64 = 10;
/// What a node may do where nobody knows what it may spend: pages accessed in a second.
const ACCESSES: u64 = 10_000;

/// The average load of every shard group, in millionths of a core; or pages accessed per second, where that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Loads {
    /// Whether it is CPU time.
    of_cpu: bool,
    /// What all nodes may do together, in the same unit.
    capacity: u64,
    /// By the lowest id among its shards.
    groups: BTreeMap<i64, Load>,
}

/// The load of one shard group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Load {
    node: Group,
    average: u64,
    /// Periods that are part of the average.
    periods: u64,
    /// Those of them since it has come to its node.
    here: u32,
}

impl Loads {
    /// What a shard group counts for that is one of `siblings` in its colocation group; unknown is idle.
    #[must_use]
    pub fn of(&self, shard_id: i64, siblings: u64) -> u64 {
        let load = self.groups.get(&shard_id).map_or(0, |load| load.average);
        load.saturating_add(self.capacity / BASE_PART / siblings.max(1))
    }

    /// How many of `groups` were not seen for long enough where they are: after moves everything is looked at again before
    /// anything else is moved.
    #[must_use]
    pub fn unknown(&self, groups: &[ShardGroup]) -> usize {
        let known = |group: &&ShardGroup| {
            let load = self.groups.get(&group.shard_id);
            load.is_some_and(|load| load.node == group.node && load.here >= ENOUGH)
        };
        groups.len() - groups.iter().filter(known).count()
    }
}

/// The loads after one more period; nothing if shards are not spread by load.
pub(super) fn loads(
    before: &Loads,
    seen: &Seen<'_>,
    period: &Period,
    marks: &BTreeMap<Group, Mark>,
) -> Loads {
    if seen.world.wanted.rebalance.policy.strategy != Strategy::ByLoad {
        return Loads::default();
    }
    let mut on: BTreeMap<Group, Vec<&ShardGroup>> = BTreeMap::new();
    for group in &seen.layout.groups {
        on.entry(group.node).or_default().push(group);
    }
    let seconds = u64::try_from(period.length.as_secs()).unwrap_or(1).max(1);
    let measured = || period.nodes.iter().filter(|(_, node)| node.role != Role::Unavailable);
    let (Some(answered), all) = (NonZeroU64::new(count(measured().count())), count(period.nodes.len()))
    else {
        // Nobody has answered: what was known before is all there is.
        return before.clone();
    };
    let of_cpu = measured().all(|(_, node)| node.cpu_limit > 0);
    let capacity = if of_cpu {
        let known = measured().map(|(_, node)| node.cpu_limit / seconds).fold(0, u64::saturating_add);
        (known / answered).saturating_mul(all)
    } else {
        ACCESSES.saturating_mul(all)
    };
    let mut next = Loads { of_cpu, capacity, groups: BTreeMap::new() };
    // Averages of something else are none.
    let before = (before.of_cpu == of_cpu).then_some(&before.groups);
    for group in &seen.layout.groups {
        let Some(mut load) = before.and_then(|before| before.get(&group.shard_id)).copied() else { continue };
        if load.node != group.node {
            (load.node, load.here) = (group.node, 0);
        }
        next.groups.insert(group.shard_id, load);
    }
    if is_underway(seen.world) {
        // Copying costs what nobody will cost once it is done.
        return next;
    }
    let shards = by_hash(&seen.layout.groups);
    for (node, load) in measured() {
        let (Some(groups), Some(reading), Some(mark)) =
            (on.get(node), seen.readings.get(node), marks.get(node))
        else {
            continue;
        };
        let Some(work) = accesses(groups, reading, mark) else { continue };
        let mut tenants: BTreeMap<i64, u64> = BTreeMap::new();
        for usage in &reading.tenants {
            if let Some(shard) = shard_of(&shards, usage.tenant).filter(|_| of_cpu) {
                let spent = tenants.entry(shard.shard_id).or_default();
                *spent = spent.saturating_add(usage.counted.cpu);
            }
        }
        let parts: Vec<Part> = groups
            .iter()
            .zip(&work)
            .map(|(group, work)| Part {
                work: *work,
                least: tenants.get(&group.shard_id).copied().unwrap_or(0) / seconds,
            })
            .collect();
        let whole = if of_cpu { load.cpu / seconds } else { work.iter().sum::<u64>() / seconds };
        for (group, part) in groups.iter().zip(divide(whole, &parts)) {
            let load = next.groups.entry(group.shard_id);
            let load = load.or_insert(Load { node: group.node, average: 0, periods: 0, here: 0 });
            load.periods = (load.periods + 1).min(AVERAGED);
            load.average =
                (load.average.saturating_mul(load.periods - 1).saturating_add(part)) / load.periods;
            load.here = load.here.saturating_add(1);
        }
    }
    next
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Pages that were accessed for each of `groups` between two readings; `None` if others were there in between, or the
/// statistics began anew.
fn accesses(groups: &[&ShardGroup], now: &Reading, before: &Mark) -> Option<Vec<u64>> {
    let (now, before) = (now.accesses.as_ref()?, before.accesses.as_ref()?);
    if !now.keys().eq(before.keys()) || now.len() != groups.len() {
        return None;
    }
    let since = |group: &&ShardGroup| now.get(&group.shard_id)?.checked_sub(*before.get(&group.shard_id)?);
    groups.iter().map(since).collect()
}

/// What one shard group has of a whole.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// By this it is divided.
    work: u64,
    /// So much it is in any case.
    least: u64,
}

/// Divides `whole` by work, so that nobody gets less than is known of it: what these get is missing for the others.
fn divide(whole: u64, parts: &[Part]) -> Vec<u64> {
    let mut settled = vec![false; parts.len()];
    loop {
        let (mut rest, mut work) = (whole, 0_u128);
        for (part, settled) in parts.iter().zip(&settled) {
            if *settled {
                rest = rest.saturating_sub(part.least);
            } else {
                work += u128::from(part.work);
            }
        }
        let share = |part: &Part| {
            let share = (u128::from(rest) * u128::from(part.work)).checked_div(work);
            share.and_then(|share| u64::try_from(share).ok()).unwrap_or(0)
        };
        let mut any = false;
        for (part, settled) in parts.iter().zip(&mut settled) {
            if !*settled && part.least > share(part) {
                (*settled, any) = (true, true);
            }
        }
        if !any {
            let of = |(part, settled): (&Part, &bool)| if *settled { part.least } else { share(part) };
            return parts.iter().zip(&settled).map(of).collect();
        }
    }
}

#[cfg(test)]
mod tests;
