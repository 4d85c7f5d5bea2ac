//! The decision.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::{
    Action, Decision, History, Hot, LargeShard, Mode, NodeLoad, Period, Policy, Reason, Refused, Tenant,
    TenantLoad,
};
use crate::names::Group;
use crate::shards::rebalance::Role;

/// A node that spends less of its CPU time than this is not harmed by anybody, in percent.
const IDLE_PERCENT: u64 = 30;
/// A node that spends more has too much to do, and no target may come to more, in percent.
const BUSY_PERCENT: u64 = 80;
/// A tenant is not hot any more below this part of the share that made it hot: one that wavers around the limit is.
const WARM: (u64, u64) = (3, 4);
/// Hot tenants that a decision names.
const NAMED: usize = 20;

/// How hot a tenant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heat {
    Cold,
    Warm,
    Hot,
}

/// Decides what to do after `period`, and what to remember.
///
/// The same input gives the same answer. A period that was seen before changes nothing; after a gap, or if the clock was
/// set back, periods are counted anew, and the cooldown is kept in full.
#[must_use]
pub fn decide(policy: &Policy, history: &History, period: &Period) -> (Decision, History) {
    let mut history = history.clone();
    if history.seen == Some(period.end) {
        return (Decision::default(), history);
    }
    let now = period.end;
    if !follows(&history, period) {
        history.hot.clear();
        history.busy.clear();
        history.quiet.clear();
    }
    history.seen = Some(now);
    history.acted = history.acted.map(|acted| acted.min(now));

    let hot = watch(policy, &mut history, period);
    if policy.mode == Mode::Isolate {
        history.imagined.clear();
    }
    let isolated: BTreeSet<Tenant> =
        period.isolated.iter().copied().chain(history.imagined.keys().copied()).collect();
    rest(policy, &mut history, period, &isolated, &hot);

    let mut decision = Decision { hot: named(&history, &hot), ..Decision::default() };
    if period.underway {
        return (decision, history);
    }
    let (action, refused) = choose(policy, &history, period, &isolated, &hot);
    decision.refused = refused;
    let cooling =
        history.acted.and_then(|acted| acted.checked_add(policy.cooldown).ok()).filter(|end| *end > now);
    match (action, cooling) {
        (Some(_), Some(end)) => decision.cooling_until = Some(end),
        (Some(action), None) => {
            history.acted = Some(now);
            remember(policy, &mut history, action, now);
            decision.action = Some(action);
        }
        (None, _) => {}
    }
    (decision, history)
}

/// Whether `period` comes right after the last one.
fn follows(history: &History, period: &Period) -> bool {
    history.seen.is_some_and(|seen| {
        let apart = period.end.duration_since(seen);
        apart.is_positive() && apart <= period.length.saturating_mul(2)
    })
}

/// The nodes by their numbers, since a million tenants ask for them.
struct Nodes<'a>(HashMap<Group, &'a NodeLoad>);

/// A hot tenant with its figures.
struct Seen<'a> {
    load: &'a TenantLoad,
    /// In hundredths of a percent, so that close ones have an order.
    share: u64,
}

/// Counts the periods of hot tenants and of busy nodes; the tenants that are hot now, the hottest first.
fn watch<'a>(policy: &Policy, history: &mut History, period: &'a Period) -> Vec<Seen<'a>> {
    let nodes = Nodes(period.nodes.iter().map(|(group, node)| (*group, node)).collect());
    let mut hot = Vec::new();
    let mut counted: BTreeMap<Tenant, u32> = BTreeMap::new();
    let mut blamed: BTreeSet<Group> = BTreeSet::new();
    for load in &period.tenants {
        let Some(node) = nodes.0.get(&load.node) else { continue };
        let (heat, share) = heat(policy, node, load);
        let before = || history.hot.get(&load.tenant).copied().unwrap_or(0);
        match heat {
            Heat::Cold => continue,
            Heat::Warm => {
                if before() > 0 {
                    counted.insert(load.tenant, before());
                }
            }
            Heat::Hot => {
                counted.insert(load.tenant, before().saturating_add(1));
                hot.push(Seen { load, share });
            }
        }
        blamed.insert(load.node);
    }
    // Nobody is acquitted for want of evidence.
    let missing = period.nodes.values().any(|node| node.role == Role::Unavailable);
    if missing {
        let seen: BTreeSet<Tenant> = period
            .tenants
            .iter()
            .map(|load| load.tenant)
            .filter(|tenant| history.hot.contains_key(tenant))
            .collect();
        let unseen = history.hot.iter().filter(|(tenant, _)| !seen.contains(tenant));
        counted.extend(unseen.map(|(tenant, periods)| (*tenant, *periods)));
    }
    history.hot = counted;
    let busy = period.nodes.iter().filter(|(group, node)| {
        node.role == Role::Shared && above(node.cpu, node.cpu_limit, BUSY_PERCENT) && !blamed.contains(group)
    });
    history.busy = busy
        .map(|(group, _)| (*group, history.busy.get(group).copied().unwrap_or(0).saturating_add(1)))
        .collect();
    hot.sort_by_key(|seen| (Reverse(seen.share), seen.load.tenant));
    hot
}

/// Whether `part` is more than so many percent of `whole`; never if the whole is not known.
fn above(part: u64, whole: u64, percent: u64) -> bool {
    whole > 0 && u128::from(part) * 100 > u128::from(whole) * u128::from(percent)
}

/// How hot a tenant is, and its largest share, in hundredths of a percent.
fn heat(policy: &Policy, node: &NodeLoad, load: &TenantLoad) -> (Heat, u64) {
    let idle = node.cpu_limit > 0 && !above(node.cpu, node.cpu_limit, IDLE_PERCENT);
    if load.queries < policy.min_queries || idle || matches!(node.role, Role::Unavailable) {
        return (Heat::Cold, 0);
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
    let share = share(load.queries, node.queries).max(writes).max(share(load.cpu, node.cpu));
    let limit = u64::from(policy.share_percent) * 100;
    let heat = if share >= limit {
        Heat::Hot
    } else if share * WARM.1 >= limit * WARM.0 {
        Heat::Warm
    } else {
        Heat::Cold
    };
    (heat, share)
}

fn named(history: &History, hot: &[Seen<'_>]) -> Vec<Hot> {
    let name = |seen: &Seen<'_>| Hot {
        tenant: seen.load.tenant,
        node: seen.load.node,
        share: u32::try_from(seen.share / 100).unwrap_or(100),
        periods: history.hot.get(&seen.load.tenant).copied().unwrap_or(0),
    };
    hot.iter().take(NAMED).map(name).collect()
}

/// Keeps since when pinned tenants have been quiet.
fn rest(
    policy: &Policy,
    history: &mut History,
    period: &Period,
    isolated: &BTreeSet<Tenant>,
    hot: &[Seen<'_>],
) {
    let active: BTreeSet<Tenant> = period
        .tenants
        .iter()
        .filter(|load| load.queries >= policy.min_queries && isolated.contains(&load.tenant))
        .map(|load| load.tenant)
        .chain(hot.iter().map(|seen| seen.load.tenant))
        .collect();
    // Its node may be the one whose figures are missing.
    let known = period.nodes.values().all(|node| node.role != Role::Unavailable);
    history.quiet = isolated
        .iter()
        .filter(|tenant| !active.contains(tenant))
        .filter_map(|tenant| {
            let since = history.quiet.get(tenant).copied();
            Some((*tenant, since.or(known.then_some(period.end))?))
        })
        .collect();
}

/// The best thing to do, and what cannot be done that should be.
fn choose(
    policy: &Policy,
    history: &History,
    period: &Period,
    isolated: &BTreeSet<Tenant>,
    hot: &[Seen<'_>],
) -> (Option<Action>, Vec<Refused>) {
    let mut refused = Vec::new();
    let mut action = None;
    let lasting = hot.iter().filter(|seen| {
        history
            .hot
            .get(&seen.load.tenant)
            .is_some_and(|periods| *periods >= policy.consecutive_periods.max(1))
    });
    for Seen { load, .. } in lasting {
        let tenant = load.tenant;
        let own = isolated.contains(&tenant);
        let attempt = if own { stays(period, load) } else { isolate(policy, period, isolated.len(), load) };
        match attempt {
            Ok(found) => action = action.or(found),
            Err(reason) => refused.push(Refused { tenant: Some(tenant), reason }),
        }
    }
    refused.truncate(NAMED);
    if action.is_none() {
        action = split(policy, period).unwrap_or_else(|reason| {
            refused.push(Refused { tenant: None, reason });
            None
        });
    }
    let action = action.or_else(|| spread(policy, history, period)).or_else(|| {
        let quiet = history.quiet.iter().find(|(_, since)| {
            let end = since.checked_add(policy.release_after);
            end.is_ok_and(|end| end <= period.end)
        });
        quiet.map(|(tenant, _)| Action::Release { tenant: *tenant })
    });
    (action, refused)
}

/// A tenant that has its own shard already is never moved around; at most there is something to say.
fn stays(period: &Period, load: &TenantLoad) -> Result<Option<Action>, Reason> {
    if bearable(period, load) { Ok(None) } else { Err(Reason::TooHot) }
}

/// Whether any node could do what the tenant asks for, if it did nothing else.
fn bearable(period: &Period, load: &TenantLoad) -> bool {
    let mut able = period.nodes.values().filter(|node| matches!(node.role, Role::Shared | Role::Dedicated));
    able.any(|node| !above(load.cpu, node.cpu_limit, BUSY_PERCENT))
}

/// Isolates a tenant on the node that has most to spare: a dedicated one if there are any with enough.
fn isolate(
    policy: &Policy,
    period: &Period,
    isolated: usize,
    load: &TenantLoad,
) -> Result<Option<Action>, Reason> {
    if !bearable(period, load) {
        return Err(Reason::TooHot);
    }
    if isolated >= policy.max_isolated {
        return Err(Reason::Budget);
    }
    // What is before it and what is after it are shard groups of their own then.
    if period.shard_groups.saturating_add(2) > policy.max_shard_groups {
        return Err(Reason::TooManyShards);
    }
    let source = period.nodes.get(&load.node);
    let target = period
        .nodes
        .iter()
        .filter(|(group, node)| {
            **group != load.node && matches!(node.role, Role::Shared | Role::Dedicated)
                && !above(node.cpu.saturating_add(load.cpu), node.cpu_limit, BUSY_PERCENT)
                && node.free_bytes.is_none_or(|free| free >= load.shard_bytes)
                // Not to make another node what this one is.
                && (node.role == Role::Dedicated
                    || source.is_none_or(|source| node.cpu.saturating_add(load.cpu) < source.cpu))
        })
        .min_by_key(|(group, node)| (node.role != Role::Dedicated, permille(node), **group));
    match target {
        Some((to, _)) => Ok(Some(Action::Isolate { tenant: load.tenant, from: load.node, to: *to })),
        None => Err(Reason::NoHeadroom),
    }
}

/// CPU time spent, in thousandths of what could be; of unknown nodes the one that spends least comes first.
fn permille(node: &NodeLoad) -> (u128, u64) {
    let part = (u128::from(node.cpu) * 1000).checked_div(u128::from(node.cpu_limit));
    (part.unwrap_or(0), node.cpu)
}

/// Splits the largest of the shard groups that are too large.
fn split(policy: &Policy, period: &Period) -> Result<Option<Action>, Reason> {
    let Some(limit) = policy.max_shard_bytes else { return Ok(None) };
    let able = |large: &&LargeShard| {
        large.bytes > limit && period.nodes.get(&large.node).is_some_and(|node| node.role == Role::Shared)
    };
    let largest = period.large.iter().filter(able).max_by_key(|large| (large.bytes, Reverse(large.shard_id)));
    let Some(LargeShard { shard_id, node, .. }) = largest else { return Ok(None) };
    if period.shard_groups >= policy.max_shard_groups {
        return Err(Reason::TooManyShards);
    }
    Ok(Some(Action::Split { shard_id: *shard_id, node: *node }))
}

/// Has the shards spread by load, if a node was busy long enough and another is not.
fn spread(policy: &Policy, history: &History, period: &Period) -> Option<Action> {
    let relieved = |busy: &Group| {
        period.nodes.iter().any(|(group, node)| {
            let spare = node.role == Role::Shared && node.cpu_limit > 0;
            group != busy && spare && !above(node.cpu, node.cpu_limit, BUSY_PERCENT * WARM.0 / WARM.1)
        })
    };
    let lasting = |periods: u32| periods >= policy.consecutive_periods.max(1);
    let busy = history.busy.iter().find(|(group, periods)| lasting(**periods) && relieved(group));
    busy.map(|(node, _)| Action::Spread { node: *node })
}

/// Keeps what an action leaves behind that the next period may not show.
fn remember(policy: &Policy, history: &mut History, action: Action, now: Timestamp) {
    match action {
        Action::Isolate { tenant, .. } => {
            history.hot.remove(&tenant);
            if policy.mode == Mode::Observe {
                history.imagined.insert(tenant, now);
            }
        }
        Action::Release { tenant } => {
            history.quiet.remove(&tenant);
            history.imagined.remove(&tenant);
        }
        Action::Spread { .. } => history.busy.clear(),
        Action::Split { .. } => {}
    }
}
