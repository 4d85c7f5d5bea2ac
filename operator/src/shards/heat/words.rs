//! What was seen and decided, in the words of the status. Pure.

use std::cmp::Reverse;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::period::{Names, Seen, group_name, sizes};
use super::sample::too_large;
use super::{Heat, Refusal, Turn};
use crate::api::{DecisionStatus, HotTenant, LargeShardStatus, SizeStatus};
use crate::heat::{
    Action, Decision, History, Hot, Mode, Period, Reason, Refused, Streak, Tenant, TenantLoad,
};
use crate::names::Group;
use crate::shards::rebalance::{Pin, Role, ShardGroup};

/// Sizes are shown in steps of this: each write of the status is one more that others are told of.
const STEP: i64 = 1 << 20;
/// Shard groups that are too large of which the status shows this many: as many as its schema takes.
const SHOWN_LARGE: usize = 20;
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
        pinned: pinned(period),
        hot: hot.iter().map(|hot| speaker.hot(hot)).collect(),
        heated: None,
        turned: Vec::new(),
        last: decided.or_else(|| before.last.clone()),
        refused: decision.refused.iter().map(|refused| speaker.refused(refused)).collect(),
        cooling_until: decision.cooling_until,
        urgent: decision.urgent,
        sizes: shown_sizes(seen, before),
        large: speaker.large(),
        loads: before.loads.clone(),
        failure: None,
    }
}

/// What each tenant with a pinned shard spent, on all nodes together.
fn pinned(period: &Period) -> Vec<(Tenant, u64)> {
    let spent = |pin: &Pin| {
        let loads = period.tenants.iter().filter(|load| load.tenant == Tenant::from(pin));
        (Tenant::from(pin), loads.map(|load| load.cpu).fold(0, u64::saturating_add))
    };
    period.pins.iter().map(spent).filter(|(_, cpu)| *cpu > 0).collect()
}

/// Who became hot, and who has cooled down: one that wavers around the limit does neither, nor does one whose node told
/// nothing of `period`. `hot` are those that are hot now.
pub(super) fn turned(
    seen: &Seen<'_>,
    period: &Period,
    names: &Names,
    before: &History,
    hot: &[Hot],
    now: &History,
) -> Vec<Turn> {
    let name =
        |tenant: Tenant| format!("{} {}", group_name(seen.world, tenant.colocation_id), names.of(tenant));
    let came = hot.iter().filter(|hot| !before.hot.contains_key(&hot.tenant)).map(|hot| Turn {
        hot: true,
        message: format!("{} takes {} % of the {} of {}", name(hot.tenant), hot.share, hot.of, hot.node),
    });
    let told =
        |streak: &Streak| period.nodes.get(&streak.node).is_some_and(|node| node.role != Role::Unavailable);
    let gone = before.hot.iter().filter(|(tenant, streak)| told(streak) && !now.hot.contains_key(tenant));
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
            share_of: hot.of,
            queries_per_second: per_second(loads().map(|load| load.queries).sum()),
            writes_per_second: per_second(loads().map(|load| load.writes).sum()),
            // Microseconds in a second are thousandths of a core, a thousand times.
            cpu_millicores: per_second(loads().map(|load| load.cpu / 1000).sum()),
            periods: i32::try_from(hot.periods).unwrap_or(i32::MAX),
            pinned: self.period.pins.iter().any(|pin| Tenant::from(pin) == hot.tenant),
            left_alone: self
                .seen
                .world
                .decisions()
                .about(hot.tenant)
                .is_some_and(|decided| decided.to.is_none()),
        }
    }

    /// The shard groups that are too large, looked into or not.
    fn large(&self) -> Vec<LargeShardStatus> {
        let all = too_large(self.seen.layout, self.seen.watch);
        let shown = |group: &ShardGroup| {
            let sampled = self.period.large.iter().find(|large| large.shard_id == group.shard_id);
            let heaviest = sampled.and_then(|large| large.heaviest);
            LargeShardStatus {
                shard: group.shard_id,
                group: group_name(self.seen.world, group.colocation_id),
                node: group.node.to_string(),
                bytes: i64::try_from(group.bytes).unwrap_or(i64::MAX) / STEP * STEP,
                tenant: heaviest.map(|heaviest| self.names.of(heaviest.tenant)),
                tenant_percent: heaviest.map(|heaviest| i32::try_from(heaviest.percent).unwrap_or(100)),
            }
        };
        all.into_iter().take(SHOWN_LARGE).map(shown).collect()
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
                let why = hot.map_or_else(String::new, |hot| {
                    format!(" takes {} % of the {} of {from} and", hot.share, hot.of)
                });
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::heat::{Heaviest, LargeShard};
    use crate::shards::observed::Observed;
    use crate::shards::rebalance::{HashRange, Layout};
    use crate::shards::wanted::Wanted;
    use crate::shards::world::World;

    #[test]
    fn every_shard_that_is_too_large_is_shown_whether_or_not_anybody_looked_into_it() {
        let spec = serde_json::from_value(json!({"workers": {"count": 1}})).unwrap();
        let (wanted, observed) = (Wanted::from(&spec), Observed::default());
        let world = World { wanted: &wanted, topology: &[].into_iter().collect(), observed: &observed };
        let group = |shard_id: i64| ShardGroup {
            colocation_id: 1,
            shard_id,
            range: HashRange { min: 0, max: 9 },
            node: Group::Worker(0),
            bytes: u64::try_from(shard_id).unwrap() << 30,
            load: 0,
        };
        let layout = Layout { groups: (1..50).map(group).collect(), ..Layout::default() };
        let heaviest = Some(Heaviest { tenant: Tenant { colocation_id: 1, hash: 7 }, percent: 60 });
        let ShardGroup { colocation_id, shard_id, node, bytes, .. } = group(49);
        let sampled = LargeShard { colocation_id, shard_id, node, bytes, median: Some(5), heaviest };
        let seen = Seen {
            world: &world,
            watch: wanted.watch.as_ref().unwrap(),
            end: Timestamp::UNIX_EPOCH,
            layout: &layout,
            readings: &BTreeMap::new(),
            large: vec![sampled],
            fillers: Names::default(),
            empty: Vec::new(),
        };
        let (period, _, names) = super::super::period::period(&seen, &BTreeMap::new(), &[]);
        let shown = heat(&seen, &period, &names, &Decision::default(), &[], &Heat::default()).large;
        // Above 20Gi there are 29, of which the status takes 20.
        let shards: Vec<i64> = shown.iter().map(|large| large.shard).collect();
        assert_eq!(shards, (30..50).rev().collect::<Vec<_>>());
        assert_eq!((shown[0].tenant.as_deref(), shown[0].tenant_percent), (Some("hash 7"), Some(60)));
        assert_eq!((shown[1].bytes, &shown[1].tenant, shown[1].tenant_percent), (48 << 30, &None, None));
    }
}
