//! Watches what tenants do: reads what the servers have counted, has [`crate::heat`] decide, and keeps what it needs to
//! go on.
//!
//! Citus counts in periods that begin at the same times on every server, and shows the figures of the last whole one. So
//! it does not matter when in the next one they are read, or by whom: a period is looked at once, and what came of it is
//! stored before anybody acts on it.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::plan::{is_over, layout};
use super::rebalance::Strategy;
use super::sessions::{Door, Sessions};
use super::wanted::Watch;
use super::world::World;
use crate::api::{DecisionStatus, HeatStatus, HotTenant, SizeStatus};
use crate::heat::{History, Mode, NodeLoad, Reason, Tenant, decide};
use crate::names::Group;
use crate::pg;

pub mod actions;
mod load;
mod period;
mod read;
mod sample;
pub mod store;
mod words;

use actions::{Act, Begun};
pub use load::{ENOUGH, Loads};
use period::{Mark, Names, Seen};
use read::Reading;
use store::Judged;

/// Servers that are asked at the same time.
const AT_ONCE: usize = 16;
/// How long after the end of a period its figures are read: clocks differ a little.
const SETTLED: SignedDuration = SignedDuration::from_secs(1);

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
    /// The hot tenants, the hottest first.
    pub hot: Vec<HotTenant>,
    /// What was decided last.
    pub last: Option<DecisionStatus>,
    /// What should be done and is not.
    pub refused: Vec<Refusal>,
    /// When the cooldown ends, if something would be done without it.
    pub cooling_until: Option<Timestamp>,
    /// How large the groups of tables are.
    pub sizes: Vec<SizeStatus>,
    /// What each shard group has to do, where shards are spread by that.
    #[serde(default)]
    pub loads: Loads,
    /// Why the period after it could not be looked at.
    #[serde(skip)]
    pub failure: Option<String>,
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
    /// What the status shows beside the hot tenants, with what was done.
    #[must_use]
    pub fn status(&self, acts: &[Act]) -> HeatStatus {
        HeatStatus {
            actions: acts.iter().rev().map(Act::status).collect(),
            last: self.last.clone(),
            refused: self.refused.iter().map(|refusal| refusal.message.clone()).collect(),
            cooling_until: self.cooling_until.map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time),
            sizes: self.sizes.clone(),
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
        self.end != last_end(watch, now)
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
    if before.heat.end == Some(end) {
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
    let large = sample::large(sessions, &layout, watch, &before.history.imagined.split).await;
    let seen = Seen { world, watch, end, layout: &layout, readings: &readings, large };
    let stored =
        store::exchange(&session, end, |state, open| judge(state, open, &seen), &period::sizes(&seen)).await;
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

/// From what was stored and what is seen to what is to be stored. `open` is whether something is still to be done.
fn judge(before: &State, open: bool, seen: &Seen<'_>) -> Judged {
    let remembered = before.history.hot.keys().chain(before.history.imagined.pins.keys()).copied();
    // One that is pinned is not among the busiest for ever, and is not quiet for that.
    let kept: Vec<Tenant> = remembered.chain(seen.layout.pins.iter().map(Tenant::from)).collect();
    let (mut period, marks, mut names) = period::period(seen, &before.marks, &kept);
    let at_work = period.underway || is_over(seen.world);
    let loads = load::loads(&before.heat.loads, seen, &period, &before.marks);
    period.underway |= open;
    let policy = &seen.watch.policy;
    let (decision, history) = decide(policy, &before.history, &period);
    let (real, mut real_history) = decide(&period::only_watching(policy), &before.real, &period);
    // Who was not seen for longer than it takes to be found is found anew.
    real_history.hot.retain(|_, streak| streak.unseen <= policy.consecutive_periods);
    // Who is not seen now may still be spoken of.
    names.add(&before.names, &kept);
    let heat = Heat { loads, ..words::heat(seen, &period, &names, &decision, &real.hot, &before.heat) };
    let begun = decision.action.filter(|_| policy.mode == Mode::Isolate).map(|action| Begun {
        action,
        tenant: action.tenant().map(|tenant| names.of(tenant)),
        why: heat.last.as_ref().map(|last| last.message.clone()).unwrap_or_default(),
        by_load: seen.world.wanted.rebalance.policy.strategy == Strategy::ByLoad,
    });
    names.keep(&history, &period);
    Judged { state: State { history, real: real_history, marks, names, heat }, period, at_work, begun }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::Policy;

    #[test]
    fn a_period_is_over_a_moment_after_its_end() {
        let watch = Watch {
            policy: Policy::default(),
            period: SignedDuration::from_mins(1),
            worker_cpu: None,
            coordinator_cpu: None,
        };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for (now, end) in [
            ("2026-01-05T09:01:00Z", "2026-01-05T09:00:00Z"),
            ("2026-01-05T09:01:01Z", "2026-01-05T09:01:00Z"),
            ("2026-01-05T09:01:59.999Z", "2026-01-05T09:01:00Z"),
        ] {
            assert_eq!(last_end(&watch, at(now)), Some(at(end)), "{now}");
        }
        let seen = Heat { end: Some(at("2026-01-05T09:01:00Z")), ..Heat::default() };
        assert!(!seen.is_due(&watch, at("2026-01-05T09:01:59Z")));
        assert!(seen.is_due(&watch, at("2026-01-05T09:02:01Z")));
        // A clock that was set back has periods of its own.
        assert!(seen.is_due(&watch, at("2026-01-05T08:01:59Z")));
    }
}
