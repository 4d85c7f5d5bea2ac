//! Watches what tenants do: reads what the servers have counted, has [`crate::heat`] decide, and keeps what it needs to
//! go on.
//!
//! Citus counts in periods that begin at the same times on every server, and shows the figures of the last whole one. So
//! it does not matter when in the next one they are read, or by whom: a period is looked at once, and what came of it is
//! stored before anybody acts on it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::plan::{layout, relief};
use super::rebalance::Strategy;
use super::sessions::{Door, Sessions};
use super::wanted::Watch;
use super::world::World;
use crate::api::{ActionStatus, DecisionStatus, HeatStatus, HotTenant, LargeShardStatus, SizeStatus};
use crate::heat::{History, Mode, NodeLoad, Reason, Tenant, decide};
use crate::names::Group;
use crate::pg;

pub mod actions;
mod empty;
mod figures;
mod load;
mod period;
pub(in crate::shards) mod pins;
mod read;
mod sample;
pub mod store;
mod words;

use actions::{Begun, Standing};
pub use load::{ENOUGH, Loads};
use period::{Mark, Names, Seen};
pub(in crate::shards) use period::{group_name, is_underway};
use read::Reading;
use store::Judged;

/// Servers that are asked at the same time.
const AT_ONCE: usize = 16;
/// Groups of tables whose sizes the status shows: as many as its schema takes.
const SHOWN_SIZES: usize = 64;
/// How long after the end of a period its figures are read: clocks differ a little.
const SETTLED: SignedDuration = SignedDuration::from_secs(1);
/// So many periods whoever looked last may be ahead of who looks now.
const AHEAD: i32 = 2;

/// What is known of load: of the last period that was looked at, and what follows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heat {
    /// The end of that period.
    pub end: Option<Timestamp>,
    /// How long it was.
    pub length: SignedDuration,
    /// What each node did in it.
    pub nodes: BTreeMap<Group, NodeLoad>,
    /// CPU time in microseconds that each tenant with a pinned shard spent in it, if any.
    #[serde(default)]
    pub pinned: Vec<(Tenant, u64)>,
    /// The hot tenants, the hottest first.
    pub hot: Vec<HotTenant>,
    /// Those that are hot, or were when somebody could tell last; `None` where that was not written down.
    #[serde(default)]
    pub heated: Option<Vec<Tenant>>,
    /// Who became hot in that period, or has cooled down.
    #[serde(default)]
    pub turned: Vec<Turn>,
    /// What was decided last.
    pub last: Option<DecisionStatus>,
    /// What should be done and is not.
    pub refused: Vec<Refusal>,
    /// When the cooldown ends, if something would be done without it.
    pub cooling_until: Option<Timestamp>,
    /// Whether a tenant would be isolated if no shards were being moved or split.
    #[serde(default)]
    pub urgent: bool,
    /// How large the groups of tables are.
    pub sizes: Vec<SizeStatus>,
    /// The shard groups that are too large, as far as they were looked into.
    #[serde(default)]
    pub large: Vec<LargeShardStatus>,
    /// What each shard group has to do, where shards are spread by that.
    #[serde(default)]
    pub loads: Loads,
    /// Why the period after it could not be looked at.
    #[serde(skip)]
    pub failure: Option<String>,
}

/// A tenant that became hot, or has cooled down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Turn {
    /// Whether it is hot now.
    pub hot: bool,
    /// Who, and how hot.
    pub message: String,
}

/// Something that should be done and is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Why not.
    pub reason: Reason,
    /// For whose sake, why not, and what would help.
    pub message: String,
}

impl Heat {
    /// What the status shows beside the hot tenants, with `actions`, newest first.
    #[must_use]
    pub fn status(&self, actions: Vec<ActionStatus>) -> HeatStatus {
        let mut sizes: Vec<&SizeStatus> = self.sizes.iter().collect();
        sizes.sort_by_key(|size| (Reverse(size.bytes), &size.group));
        HeatStatus {
            actions,
            last: self.last.clone(),
            refused: self.refused.iter().map(|refusal| refusal.message.clone()).collect(),
            cooling_until: self.cooling_until.map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time),
            sizes: sizes.into_iter().take(SHOWN_SIZES).cloned().collect(),
            large: self.large.clone(),
        }
    }

    /// Whether the last decision was made after the last period.
    #[must_use]
    pub fn is_decided_now(&self) -> bool {
        self.last.as_ref().is_some_and(|last| Some(last.at.0) == self.end)
    }

    /// Whether there is a whole period at `now` that was not looked at.
    #[must_use]
    pub fn is_due(&self, watch: &Watch, now: Timestamp) -> bool {
        last_end(watch, now).is_none_or(|end| !self.has_seen(watch.period, end))
    }

    /// Whether the period that ends at `end` was looked at, or one a little later, by somebody whose clock is ahead: what the
    /// servers show is of that one. A clock that was set back by more begins anew.
    fn has_seen(&self, length: SignedDuration, end: Timestamp) -> bool {
        self.end.is_some_and(|seen| {
            let ahead = seen.duration_since(end);
            !ahead.is_negative() && ahead <= length.saturating_mul(AHEAD)
        })
    }
}

/// What is stored between periods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// What decisions are made from.
    history: History,
    /// How long tenants have really been hot, whatever would have been done about them.
    real: History,
    /// What each server had counted when it was read last.
    marks: BTreeMap<Group, Mark>,
    /// What the tenants of the histories are called.
    names: Names,
    /// What is shown.
    heat: Heat,
}

/// Looks at the last whole period, unless somebody has; `None` while there is nowhere to keep what is seen.
///
/// A server that does not answer is part of what is seen.
///
/// # Errors
/// When the coordinator does not answer, or what was seen cannot be stored.
pub async fn look(
    sessions: &Sessions,
    world: &World<'_>,
    watch: &Watch,
    now: Timestamp,
) -> Result<Option<Heat>, pg::Error> {
    let kept = world.observed.facts(Group::Coordinator).is_some_and(|facts| facts.own_tables);
    let Some(end) = last_end(watch, now).filter(|_| kept) else { return Ok(None) };
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let before = store::read(&session).await?;
    if before.heat.has_seen(watch.period, end) {
        return Ok(Some(before.heat));
    }
    let layout = layout(world);
    let by_load = world.wanted.rebalance.policy.strategy == Strategy::ByLoad;
    let holds = |group: Group| layout.groups.iter().any(|shard| shard.node == group);
    let asked: Vec<(Group, bool)> =
        layout.nodes.keys().map(|group| (*group, by_load && holds(*group))).collect();
    let readings: BTreeMap<Group, Reading> =
        stream::iter(asked)
            .map(|(group, by_shard)| async move {
                Some((group, read::read(sessions, group, by_shard).await.ok()?))
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
    let (large, fillers) = sample::large(sessions, &layout, watch, &before.history.imagined.split).await;
    let quiet: Vec<Tenant> = before.history.quiet.keys().copied().collect();
    let empty = empty::empty(sessions, &layout, &quiet).await;
    let seen = Seen { world, watch, end, layout: &layout, readings: &readings, large, fillers, empty };
    let stored = store::exchange(
        &session,
        (watch.period, end),
        |state, standing| judge(state, standing, &seen),
        &period::sizes(&seen),
    )
    .await;
    if stored.is_err() && session.run("ROLLBACK").await.is_err() {
        sessions.close(Group::Coordinator, Door::Dialog).await;
    }
    stored.map(Some)
}

/// What was known when somebody looked last: for an operator that has just started; `None` if nobody has looked, or the
/// coordinator does not say.
pub async fn recall(sessions: &Sessions) -> Option<Heat> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await.ok()?;
    let state = store::read(&session).await.ok()?;
    state.heat.end.is_some().then_some(state.heat)
}

/// The end of the last whole period.
fn last_end(watch: &Watch, now: Timestamp) -> Option<Timestamp> {
    let length = watch.period.as_secs().max(1);
    let now = now.checked_sub(SETTLED).ok()?;
    Timestamp::from_second(now.as_second().div_euclid(length) * length).ok()
}

/// How long it is from `now` until there is something to look at for whoever did so at `looked`: at the end of each period,
/// since a tenant has to be hot for periods in a row.
#[must_use]
pub fn until_next(watch: &Watch, looked: Timestamp, now: Timestamp) -> Duration {
    let last = last_end(watch, looked).unwrap_or(looked);
    let next = last.checked_add(watch.period.saturating_add(SETTLED)).unwrap_or(Timestamp::MAX);
    Duration::try_from(next.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// From what was stored and what is seen to what is to be stored.
fn judge(before: &State, standing: Standing, seen: &Seen<'_>) -> Judged {
    let (decided_from, real) = (&before.history, &before.real);
    let remembered =
        decided_from.hot.keys().chain(real.hot.keys()).chain(decided_from.imagined.pins.keys()).copied();
    // One that is pinned is not among the busiest for ever, and is not quiet for that.
    let kept: Vec<Tenant> = remembered.chain(seen.layout.pins.iter().map(Tenant::from)).collect();
    let (mut period, marks, mut names) = period::period(seen, &before.marks, &kept);
    let was_hot = decided_from.hot.iter().chain(&real.hot).map(|(tenant, streak)| (*tenant, streak.node));
    period::add_silent(&mut period, seen, &was_hot.collect());
    let loads = load::loads(&before.heat.loads, seen, &period, &before.marks);
    period.underway |= standing.open;
    if seen.watch.policy.strategy == Strategy::ByLoad && !period.underway {
        period.relief = relief(seen.world);
    }
    let policy = &seen.watch.policy;
    let mut known = before.history.clone();
    if standing.undone {
        known.undo();
    }
    let (decision, history) = decide(policy, &known, &period);
    let (real, mut real_history) = decide(&period::only_watching(policy), &before.real, &period);
    // Who was not seen for longer than it takes to be found is found anew.
    real_history.hot.retain(|_, streak| streak.unseen <= policy.consecutive_periods);
    // Who is not seen now may still be spoken of.
    names.add(&before.names, &kept);
    let heaviest: Vec<Tenant> = seen.large.iter().filter_map(|large| Some(large.heaviest?.tenant)).collect();
    names.add(&seen.fillers, &heaviest);
    let turned = words::turned(seen, &period, &names, &before.real, &real.hot, &real_history);
    let heat = words::heat(seen, &period, &names, &decision, &real.hot, &before.heat);
    let heated = Some(real_history.hot.keys().copied().collect());
    let heat = Heat { heated, turned, loads, ..heat };
    let begun = decision.action.filter(|_| policy.mode == Mode::Isolate).map(|action| Begun {
        action,
        tenant: action.tenant().map(|tenant| names.of(tenant)),
        why: heat.last.as_ref().map(|last| last.message.clone()).unwrap_or_default(),
    });
    names.keep([&history, &real_history], &period);
    Judged { state: State { history, real: real_history, marks, names, heat }, period, begun }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;
    use crate::api::DialogCluster;
    use crate::heat::Policy;
    use crate::reconcile::{Outcome, Pace, Reconciler};
    use crate::shards::controller::Controller;

    fn watch(period: SignedDuration) -> Watch {
        Watch { policy: Policy::default(), period, worker_cpu: None, coordinator_cpu: None }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// How many items the schema lets a list of `status.heat` have.
    fn most(list: &str) -> usize {
        let schema = serde_json::to_value(DialogCluster::crd()).unwrap();
        let heat = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/heat/properties";
        let most = schema.pointer(&format!("{heat}/{list}/maxItems")).and_then(serde_json::Value::as_u64);
        usize::try_from(most.unwrap()).unwrap()
    }

    #[test]
    fn the_status_has_no_more_sizes_than_its_schema_takes_and_the_largest_of_them() {
        let size = |number: i64| SizeStatus {
            group: format!("group-{number}"),
            shards: 1,
            bytes: number << 20,
            largest_bytes: number << 20,
            growth_per_hour: None,
        };
        let heat = Heat { sizes: (0..66).map(size).collect(), ..Heat::default() };
        let shown = heat.status(Vec::new()).sizes;
        assert_eq!(shown.len(), most("sizes"));
        assert_eq!((shown[0].bytes, shown[63].bytes), (65 << 20, 2 << 20));
    }

    #[test]
    fn whoever_has_nothing_else_to_do_looks_at_every_period() {
        for seconds in [5, 6, 8, 10, 15, 60, 3600] {
            let watch = watch(SignedDuration::from_secs(seconds));
            let (start, begun) = (at("2026-01-05T09:00:03.7Z"), std::time::Instant::now());
            let (mut now, mut pace) = (start, Pace::default());
            let mut looked: Vec<Timestamp> = Vec::new();
            while looked.len() < 50 {
                let instant = begun + Duration::try_from(now.duration_since(start)).unwrap();
                if let Some(early) = pace.begin(instant) {
                    now += SignedDuration::try_from(early).unwrap();
                    continue;
                }
                let end = last_end(&watch, now).unwrap();
                if looked.last() != Some(&end) {
                    looked.push(end);
                }
                // A round takes its time.
                let after = now + SignedDuration::from_millis(1300);
                let rest = Outcome::Rest(until_next(&watch, now, after));
                let again = pace.end(&rest, Controller::REST, instant + Duration::from_millis(1300));
                now = after + SignedDuration::try_from(again).unwrap();
            }
            let apart = looked.windows(2).map(|two| two[1].duration_since(two[0]));
            assert_eq!(apart.filter(|apart| *apart != watch.period).count(), 0, "{seconds} s: {looked:?}");
        }
    }

    #[test]
    fn a_period_is_over_a_moment_after_its_end() {
        let watch = watch(SignedDuration::from_mins(1));
        for (now, end) in [
            ("2026-01-05T09:01:00Z", "2026-01-05T09:00:00Z"),
            ("2026-01-05T09:01:01Z", "2026-01-05T09:01:00Z"),
            ("2026-01-05T09:01:59.999Z", "2026-01-05T09:01:00Z"),
        ] {
            assert_eq!(last_end(&watch, at(now)), Some(at(end)), "{now}");
        }
        for (looked, now, seconds) in [
            ("2026-01-05T09:01:01Z", "2026-01-05T09:01:02Z", 59),
            ("2026-01-05T09:01:59Z", "2026-01-05T09:02:00Z", 1),
            // It has ended since.
            ("2026-01-05T09:01:59Z", "2026-01-05T09:02:07Z", 0),
        ] {
            assert_eq!(until_next(&watch, at(looked), at(now)), Duration::from_secs(seconds), "{looked}");
        }
        let seen = Heat { end: Some(at("2026-01-05T09:01:00Z")), ..Heat::default() };
        assert!(!seen.is_due(&watch, at("2026-01-05T09:01:59Z")));
        assert!(seen.is_due(&watch, at("2026-01-05T09:02:01Z")));
        // Whoever looked last may have a clock that is ahead: that period is over already.
        for behind in ["2026-01-05T09:00:59Z", "2026-01-05T08:59:01Z"] {
            assert!(!seen.is_due(&watch, at(behind)), "{behind}");
        }
        // A clock that was set back has periods of its own.
        for back in ["2026-01-05T08:59:00Z", "2026-01-05T08:01:59Z"] {
            assert!(seen.is_due(&watch, at(back)), "{back}");
        }
    }
}
