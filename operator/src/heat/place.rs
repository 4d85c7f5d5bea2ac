//! Where to: the targets of actions.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::watch::{BUSY_PERCENT, WARM, above};
use super::{
    Action, History, LargeShard, NodeLoad, Period, Policy, QUICK_BYTES, Reason, Refused, Relief, Tenant,
    TenantLoad,
};
use crate::names::Group;
use crate::shards::rebalance::{Pin, Role, Strategy};

/// Shard groups that isolation adds: what is before the tenant, and what is after it.
pub(super) const FLANKS: usize = 2;

/// What another shared node may come to, at most, of what the tenant's own spends now, in percent: between nodes that are
/// about as busy nothing is gained.
const WORTH_PERCENT: u64 = 90;

/// Whether pinned shard groups may be placed on the node.
fn takes_pins(node: &NodeLoad) -> bool {
    matches!(node.role, Role::Shared | Role::Dedicated)
}

fn has_room(node: &NodeLoad, bytes: u64) -> bool {
    node.free_bytes.is_none_or(|free| free >= bytes)
}

/// CPU time spent, in thousandths of what could be; of unknown nodes the one that spends least comes first.
fn permille(node: &NodeLoad) -> (u128, u64) {
    let part = (u128::from(node.cpu) * 1000).checked_div(u128::from(node.cpu_limit));
    (part.unwrap_or(0), node.cpu)
}

/// Whether any node could do what the tenant asks for, if it did nothing else.
pub(super) fn bearable(period: &Period, load: &TenantLoad) -> bool {
    let mut able = period.nodes.values().filter(|node| takes_pins(node));
    able.any(|node| !above(load.cpu, node.cpu_limit, BUSY_PERCENT))
}

/// Whether nobody is pinned to the node, which is kept free for those that are: who moves there harms nobody, however hot.
fn is_kept_free(period: &Period, group: Group, node: &NodeLoad) -> bool {
    node.role == Role::Dedicated && !period.pins.iter().any(|pin| pin.node == group)
}

/// Whether a tenant that is pinned is on a node that is kept for it alone: it harms nobody there, however hot.
pub(super) fn is_kept_for(period: &Period, load: &TenantLoad) -> bool {
    let node = period.nodes.get(&load.node);
    let other = |pin: &Pin| pin.node == load.node && Tenant::from(pin) != load.tenant;
    node.is_some_and(|node| node.role == Role::Dedicated) && !period.pins.iter().any(other)
}

/// Isolates a tenant on the node that has most to spare: a dedicated one if there are any with enough. One that no node can
/// bear goes to a dedicated one where it is alone, if there is one: it gains nothing, and all its neighbours do.
pub(super) fn isolate(policy: &Policy, period: &Period, load: &TenantLoad) -> Result<Action, Reason> {
    let bearable = bearable(period, load);
    let kept_free = |(group, node): (&Group, &NodeLoad)| {
        *group != load.node && is_kept_free(period, *group, node) && has_room(node, load.shard_bytes)
    };
    if !bearable && !period.nodes.iter().any(kept_free) {
        return Err(Reason::TooHot);
    }
    let own = period.pins.iter().filter(|pin| !period.held.contains(&Tenant::from(*pin)));
    if own.count() >= policy.max_isolated {
        return Err(Reason::Budget);
    }
    if !load.alone && period.shard_groups.saturating_add(FLANKS) > policy.max_shard_groups {
        return Err(Reason::TooManyShards);
    }
    let with = |node: &NodeLoad| node.cpu.saturating_add(load.cpu);
    let able = period.nodes.iter().filter(|(group, node)| {
        if !bearable {
            return kept_free((group, node));
        }
        **group != load.node
            && takes_pins(node)
            && !above(with(node), node.cpu_limit, BUSY_PERCENT)
            && has_room(node, load.shard_bytes)
    });
    let able: Vec<(&Group, &NodeLoad)> = able.collect();
    if able.is_empty() {
        return Err(Reason::NoHeadroom);
    }
    let source = period.nodes.get(&load.node);
    let helps = |node: &NodeLoad| {
        node.role == Role::Dedicated
            || source.is_none_or(|source| !above(with(node), source.cpu, WORTH_PERCENT))
    };
    let target = able
        .into_iter()
        .filter(|(_, node)| helps(node))
        .min_by_key(|(group, node)| (node.role != Role::Dedicated, permille(node), **group));
    let (to, _) = target.ok_or(Reason::NothingGained)?;
    let rest = shared(period, load.node, load.shard_bytes)
        .filter(|(_, node)| takes_more(node))
        .min_by_key(|(group, node)| (*group == to, permille(node), **group))
        .filter(|_| !load.alone)
        .map(|(group, _)| *group);
    // The rest may stay on the source only where nobody writes during the split.
    if rest.is_none() && !load.alone && load.shard_bytes > QUICK_BYTES {
        return Err(Reason::NoHeadroom);
    }
    Ok(Action::Isolate { tenant: load.tenant, from: load.node, to: *to, rest })
}

/// The nodes that may take shard groups that nobody pinned, but for one.
fn shared(period: &Period, but: Group, bytes: u64) -> impl Iterator<Item = (&Group, &NodeLoad)> {
    period
        .nodes
        .iter()
        .filter(move |(group, node)| **group != but && node.role == Role::Shared && has_room(node, bytes))
}

/// Whether it may take a part of a shard group. What that does is not known: it goes to nobody who has too much to do already.
fn takes_more(node: &NodeLoad) -> bool {
    !above(node.cpu, node.cpu_limit, BUSY_PERCENT)
}

/// Splits the largest of the shard groups that are too large, and says why others stay as they are.
pub(super) fn split(policy: &Policy, period: &Period, refused: &mut Vec<Refused>) -> Option<Action> {
    let limit = policy.max_shard_bytes?;
    let source = |large: &LargeShard| period.nodes.get(&large.node).map(|node| node.role);
    let mut large: Vec<&LargeShard> = period
        .large
        .iter()
        .filter(|large| large.bytes > limit && source(large).is_some_and(|role| role != Role::Unavailable))
        .collect();
    large.sort_by_key(|large| (Reverse(large.bytes), large.shard_id));
    for LargeShard { colocation_id, shard_id, node: from, bytes, median, .. } in large.into_iter().copied() {
        match halves(policy, period, from, bytes, median) {
            Ok(_) if period.splits_held => refused.push(Refused::shard(shard_id, Reason::SplitHeld)),
            Ok((at, to)) => return Some(Action::Split { colocation_id, shard_id, from, at, to }),
            Err(reason) => refused.push(Refused::shard(shard_id, reason)),
        }
    }
    None
}

/// Where the halves begin and where they go.
fn halves(
    policy: &Policy,
    period: &Period,
    from: Group,
    bytes: u64,
    median: Option<i32>,
) -> Result<(i32, [Group; 2]), Reason> {
    let at = median.ok_or(Reason::Indivisible)?;
    if period.shard_groups >= policy.max_shard_groups {
        return Err(Reason::TooManyShards);
    }
    // Who is busy now need not be once a window is open.
    let able = |node: &NodeLoad| period.splits_held || takes_more(node);
    let room = |bytes| {
        let mut nodes: Vec<_> = shared(period, from, bytes).filter(|(_, node)| able(node)).collect();
        nodes.sort_by_key(|(group, node)| (permille(node), **group));
        nodes.into_iter().map(|(group, _)| *group)
    };
    let mut two = room(bytes.div_ceil(2));
    match (two.next(), two.next(), room(bytes).next()) {
        (Some(first), Some(second), _) => Ok((at, [first, second])),
        (_, _, Some(one)) => Ok((at, [one, one])),
        _ => Err(Reason::NoPlaceForHalf),
    }
}

/// Has load spread, if a node was busy long enough and another is not; why other busy nodes stay as they are goes to
/// `refused`.
pub(super) fn spread(
    policy: &Policy,
    history: &History,
    period: &Period,
    refused: &mut Vec<Refused>,
) -> Option<Action> {
    let calmest = |busy: Group| {
        shared(period, busy, 0)
            .filter(|(_, node)| {
                node.cpu_limit > 0 && !above(node.cpu, node.cpu_limit, BUSY_PERCENT * WARM.0 / WARM.1)
            })
            .min_by_key(|(group, node)| (permille(node), **group))
    };
    let lasting = history.busy.iter().filter(|(_, periods)| **periods >= policy.consecutive_periods.max(1));
    let load = |group: &Group| period.nodes.get(group).map(permille);
    let mut busy: Vec<Group> = lasting.map(|(group, _)| *group).collect();
    busy.sort_by_key(|group| (Reverse(load(group)), *group));
    let mut action = None;
    for from in busy {
        match calmest(from) {
            Some((to, _)) if policy.strategy == Strategy::ByLoad => match period.relief {
                Relief::Ready => action = action.or(Some(Action::Spread { from, to: *to })),
                Relief::Held => refused.push(Refused::node(from, Reason::MovesHeld)),
                Relief::Useless => refused.push(Refused::node(from, Reason::NoMoveHelps)),
                // It is known within a few periods.
                Relief::Unmeasured => {}
            },
            Some(_) => refused.push(Refused::node(from, Reason::NotByLoad)),
            None => refused.push(Refused::node(from, Reason::AllBusy)),
        }
    }
    action
}

/// New nodes for the pins of those that leave or have left.
pub(crate) fn retarget(period: &Period, refused: &mut Vec<Refused>) -> Vec<Pin> {
    let leaves = |pin: &&Pin| period.nodes.get(&pin.node).is_none_or(|node| node.role == Role::Draining);
    let mut gone: Vec<Pin> = period.pins.iter().filter(leaves).copied().collect();
    gone.sort_unstable();
    let mut pinned: BTreeMap<Group, usize> = BTreeMap::new();
    for pin in period.pins.iter().filter(|pin| !leaves(pin)) {
        *pinned.entry(pin.node).or_default() += 1;
    }
    let mut retargeted = Vec::new();
    for pin in gone {
        let tenant = Tenant::from(&pin);
        let load = period.tenants.iter().find(|load| load.tenant == tenant);
        let (cpu, bytes) = load.map_or((0, 0), |load| (load.cpu, load.shard_bytes));
        let able = period.nodes.iter().filter(|(_, node)| takes_pins(node) && has_room(node, bytes));
        let target = able.min_by_key(|(group, node)| {
            let harmed = above(node.cpu.saturating_add(cpu), node.cpu_limit, BUSY_PERCENT);
            let pinned = pinned.get(group).copied().unwrap_or(0);
            (harmed, node.role != Role::Dedicated, pinned, permille(node), **group)
        });
        match target {
            Some((node, _)) => {
                *pinned.entry(*node).or_default() += 1;
                retargeted.push(Pin { node: *node, ..pin });
            }
            None => {
                refused.push(Refused::tenant(tenant, Reason::NoHeadroom));
            }
        }
    }
    retargeted
}
