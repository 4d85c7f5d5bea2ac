//! What was seen and decided, in the words of the status. Pure.

use std::cmp::Reverse;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::period::{Names, Seen, group_name, sizes};
use super::{Heat, Refusal, Turn};
use crate::api::{DecisionStatus, HotTenant, LargeShardStatus, SizeStatus};
use crate::heat::{
    Action, Decision, History, Hot, LargeShard, Mode, Period, Reason, Refused, Tenant, TenantLoad,
};
use crate::names::Group;

/// Sizes are shown in steps of this: each write of the status is one more that others are told of.
const STEP: i64 = 1 << 20;
/// Tenants that are told of that became hot in one period, and that have cooled down.
const TURNS: usize = 20;
/// Tenants that are named of those that are together too much for their worker.
const CROWD: usize = 3;

/// What is known now. `hot` are the tenants that are really hot, and `before` is what was known so far.
pub(super) fn heat(
    seen: &Seen<'_>,
    period: &Period,
    names: &Names,
    decision: &Decision,
    hot: &[Hot],
    before: &Heat,
) -> Heat {
    let speaker = Speaker { seen, period, names };
    let decided = decision.action.map(|action| DecisionStatus {
        at: Time(period.end),
        kind: action.kind().to_owned(),
        message: speaker.action(action, decision),
    });
    Heat {
        end: Some(period.end),
        length: period.length,
        nodes: period.nodes.clone(),
        hot: hot.iter().map(|hot| speaker.hot(hot)).collect(),
        turned: Vec::new(),
        last: decided.or_else(|| before.last.clone()),
        refused: decision.refused.iter().map(|refused| speaker.refused(refused)).collect(),
        cooling_until: decision.cooling_until,
        urgent: decision.urgent,
        sizes: shown_sizes(seen, before),
        large: period.large.iter().filter_map(|large| speaker.large(large)).collect(),
        loads: before.loads.clone(),
        failure: None,
    }
}

/// Who became hot, and who has cooled down: one that wavers around the limit does neither. `hot` are those that are hot now.
pub(super) fn turned(
    seen: &Seen<'_>,
    names: &Names,
    before: &History,
    hot: &[Hot],
    now: &History,
) -> Vec<Turn> {
    let name =
        |tenant: Tenant| format!("{} {}", group_name(seen.world, tenant.colocation_id), names.of(tenant));
    let came = hot.iter().filter(|hot| !before.hot.contains_key(&hot.tenant)).map(|hot| Turn {
        hot: true,
        message: format!("{} takes {} % of {}", name(hot.tenant), hot.share, hot.node),
    });
    let gone = before.hot.iter().filter(|(tenant, _)| !now.hot.contains_key(tenant));
    let gone = gone.map(|(tenant, streak)| Turn {
        hot: false,
        message: format!(
            "{} does not take a large part of {} any more, after {} periods",
            name(*tenant),
            streak.node,
            streak.periods
        ),
    });
    came.take(TURNS).chain(gone.take(TURNS)).collect()
}

/// The sizes as of now; growth is added by who knows the past.
fn shown_sizes(seen: &Seen<'_>, before: &Heat) -> Vec<SizeStatus> {
    let sizes = sizes(seen);
    if sizes.is_empty() {
        return before.sizes.clone();
    }
    let size = |size: super::period::Size| SizeStatus {
        group: size.group,
        shards: size.shards,
        bytes: size.bytes / STEP * STEP,
        largest_bytes: size.largest / STEP * STEP,
        growth_per_hour: None,
    };
    sizes.into_iter().map(size).collect()
}

struct Speaker<'a> {
    seen: &'a Seen<'a>,
    period: &'a Period,
    names: &'a Names,
}

impl Speaker<'_> {
    fn group(&self, tenant: Tenant) -> String {
        group_name(self.seen.world, tenant.colocation_id)
    }

    fn name(&self, tenant: Tenant) -> String {
        format!("{} {}", self.group(tenant), self.names.of(tenant))
    }

    fn hot(&self, hot: &Hot) -> HotTenant {
        let of = |load: &&TenantLoad| load.tenant == hot.tenant;
        let loads = || self.period.tenants.iter().filter(of);
        let seconds = u64::try_from(self.period.length.as_secs()).unwrap_or(1).max(1);
        let per_second = |count: u64| i64::try_from(count / seconds).unwrap_or(i64::MAX);
        HotTenant {
            tenant: self.names.of(hot.tenant),
            group: self.group(hot.tenant),
            node: hot.node.to_string(),
            share_percent: i32::try_from(hot.share).unwrap_or(100),
            queries_per_second: per_second(loads().map(|load| load.queries).sum()),
            writes_per_second: per_second(loads().map(|load| load.writes).sum()),
            periods: i32::try_from(hot.periods).unwrap_or(i32::MAX),
            pinned: self.period.pins.iter().any(|pin| Tenant::from(pin) == hot.tenant),
        }
    }

    fn large(&self, large: &LargeShard) -> Option<LargeShardStatus> {
        let heaviest = large.heaviest?;
        Some(LargeShardStatus {
            shard: large.shard_id,
            group: self.group(heaviest.tenant),
            node: large.node.to_string(),
            bytes: i64::try_from(large.bytes).unwrap_or(i64::MAX) / STEP * STEP,
            tenant: self.names.of(heaviest.tenant),
            tenant_percent: i32::try_from(heaviest.percent).unwrap_or(100),
        })
    }

    /// Whose most of the rows of a large shard are, in brackets; empty if nobody knows.
    fn filler(&self, shard_id: i64) -> String {
        let large = self.period.large.iter().find(|large| large.shard_id == shard_id);
        large.and_then(|large| large.heaviest).map_or_else(String::new, |heaviest| {
            format!(" ({} has {} % of its rows)", self.name(heaviest.tenant), heaviest.percent)
        })
    }

    fn action(&self, action: Action, decision: &Decision) -> String {
        // In the mode Observe it stays a thought.
        let done = self.seen.watch.policy.mode == Mode::Isolate;
        let say = |done_so: &'static str, thought: &'static str| if done { done_so } else { thought };
        match action {
            Action::Isolate { tenant, from, to, rest } => {
                let hot = decision.hot.iter().find(|hot| hot.tenant == tenant);
                let why = hot.map_or_else(String::new, |hot| format!(" takes {} % of {from} and", hot.share));
                let alone = self.period.tenants.iter().any(|load| load.tenant == tenant && load.alone);
                let name = self.name(tenant);
                let gets = say("gets", "would get");
                match rest {
                    _ if alone => {
                        let moved = say("is moved", "would be moved");
                        format!("{name}{why} has a shard of its own: it {moved} to {to}")
                    }
                    Some(rest) => format!(
                        "{name}{why} {gets} a shard of its own on {to}; the rest of its shard {} to {rest}",
                        say("goes", "would go")
                    ),
                    None => format!("{name}{why} {gets} a shard of its own on {to}"),
                }
            }
            Action::Split { shard_id, from, to: [first, second], .. } => {
                let large = self.period.large.iter().find(|large| large.shard_id == shard_id);
                let bytes = large.map_or(0, |large| large.bytes);
                let split = say("is split", "would be split");
                let filler = self.filler(shard_id);
                format!(
                    "shard {shard_id} on {from} has {bytes} bytes{filler} and {split}, onto {first} and {second}"
                )
            }
            Action::Spread { from, to } => format!(
                "{from} has too much to do and no tenant is to blame: it {} its load with {to}",
                say("should share", "would share")
            ),
            Action::Retarget { tenant, from, to } => {
                format!("{from} leaves: {} is pinned to {to}", self.name(tenant))
            }
            Action::Release { tenant } => format!(
                "{} {} and {} one like the others again",
                self.name(tenant),
                if self.period.empty.contains(&tenant) {
                    "has no rows any more"
                } else {
                    "has been quiet for long"
                },
                say("is", "would be")
            ),
        }
    }

    /// The tenants that are pinned and take most of a node.
    fn pinned(&self, node: Group) -> String {
        let Period { tenants, pins, nodes, .. } = self.period;
        let own = |load: &&TenantLoad| {
            load.node == node && load.cpu > 0 && pins.iter().any(|pin| Tenant::from(pin) == load.tenant)
        };
        let mut loads: Vec<&TenantLoad> = tenants.iter().filter(own).collect();
        loads.sort_by_key(|load| (Reverse(load.cpu), load.tenant));
        let whole = nodes.get(&node).map_or(0, |node| node.cpu_limit);
        let part = |load: &TenantLoad| {
            let percent = (u128::from(load.cpu) * 100).checked_div(u128::from(whole)).unwrap_or(0);
            format!("{} ({percent} % of its CPU time)", self.name(load.tenant))
        };
        let named: Vec<String> = loads.iter().take(CROWD).map(|load| part(load)).collect();
        named.join(" and ")
    }

    fn refused(&self, refused: &Refused) -> Refusal {
        let reason = refused.reason;
        let whose = match (refused.tenant, refused.shard_id, refused.node) {
            (Some(tenant), ..) => format!("{} stays where it is", self.name(tenant)),
            (_, Some(shard_id), _) => {
                format!("shard {shard_id}{} is too large and stays as it is", self.filler(shard_id))
            }
            (_, _, Some(node)) if reason == Reason::Crowded => {
                format!("{node} has too much to do with those that are pinned to it, {}", self.pinned(node))
            }
            (_, _, Some(node)) => format!("{node} has too much to do and no tenant is to blame"),
            (None, None, None) => "nothing is done".to_owned(),
        };
        Refusal { reason, message: format!("{whose}: {reason}") }
    }
}
