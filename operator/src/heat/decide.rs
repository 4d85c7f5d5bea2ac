//! The decision.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::place::{FLANKS, bearable, is_kept_for, isolate, retarget, split, spread};
use super::watch::{Seen, Untold, few, rest, watch};
use super::{
    Acted, Action, Decision, History, Hot, Imagined, Mode, Period, Policy, Reason, Refused, Tenant,
    TenantLoad,
};

/// Hot tenants that a decision names, and reasons.
const NAMED: usize = 20;

/// Decides what to do after `period`, and what to remember.
///
/// The same input gives the same answer. A period that was seen before changes nothing; after a gap, or if the clock was
/// set back, periods are counted anew, and the cooldowns are kept in full. What pinned tenants have been quiet for is kept
/// over a gap, which is no part of it, and begins anew if the clock was set back.
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
        history.crowded.clear();
    }
    match missed(&history, period) {
        Some(missed) => history.leave_out(missed),
        None => history.quiet.clear(),
    }
    history.seen = Some(now);
    history.acted.set_back(now);
    if let Some(before) = &mut history.acted_before {
        before.set_back(now);
    }
    history.imagined.acted.set_back(now);
    if policy.mode == Mode::Isolate {
        // What was only imagined holds nobody up.
        history.imagined = Imagined::default();
    }
    let few = few(policy, &history, period);
    let period = history.imagined.apply(&few);

    let hot = watch(policy, &mut history, &period);
    let untold = rest(policy, &mut history, &period, &hot);
    let mut decision = Decision { hot: named(&history, &hot), ..Decision::default() };
    decision.retargeted = retarget(&period, &mut decision.refused);
    history.imagined.retarget(&mut decision.retargeted);
    if period.underway {
        let awaited = choose(policy, &history, &period, &hot, &untold, &mut Vec::new());
        decision.urgent = awaited.iter().any(|action| {
            matches!(action, Action::Isolate { .. }) && cools_until(policy, &history, *action, now).is_none()
        });
        decision.refused.truncate(NAMED);
        return (decision, history);
    }
    let actions = choose(policy, &history, &period, &hot, &untold, &mut decision.refused);
    let unlisted = untold.iter().filter(|(_, why)| **why == Untold::Unlisted);
    decision.refused.extend(unlisted.map(|(tenant, _)| Refused::tenant(*tenant, Reason::Unlisted)));
    decision.refused.truncate(NAMED);
    if let Some(action) = actions.iter().find(|action| cools_until(policy, &history, **action, now).is_none())
    {
        remember(policy, &mut history, *action, &period, now);
        decision.action = Some(*action);
    } else {
        let ends = actions.iter().filter_map(|action| cools_until(policy, &history, *action, now));
        decision.cooling_until = ends.min();
    }
    (decision, history)
}

/// When the cooldown before an action ends, if that is not over.
fn cools_until(policy: &Policy, history: &History, action: Action, now: Timestamp) -> Option<Timestamp> {
    let of = |acted: &Acted| acted.cools_until(action, policy.cooldown);
    of(&history.acted).max(of(&history.imagined.acted)).filter(|end| *end > now)
}

/// Whether `period` comes right after the last one.
fn follows(history: &History, period: &Period) -> bool {
    history.seen.is_some_and(|seen| {
        let apart = period.end.duration_since(seen);
        apart.is_positive() && apart <= period.length.saturating_mul(2)
    })
}

/// The time since the last period that is no part of `period`: nobody knows what happened then. `None` if that period did
/// not end before this one.
fn missed(history: &History, period: &Period) -> Option<SignedDuration> {
    let apart = period.end.duration_since(history.seen?);
    apart.is_positive().then(|| apart.saturating_sub(period.length).max(SignedDuration::ZERO))
}

fn named(history: &History, hot: &[Seen]) -> Vec<Hot> {
    let name = |seen: &Seen| Hot {
        tenant: seen.load.tenant,
        node: seen.load.node,
        share: u32::try_from(seen.share / 100).unwrap_or(100),
        of: seen.of,
        periods: history.hot.get(&seen.load.tenant).map_or(0, |streak| streak.periods),
    };
    hot.iter().take(NAMED).map(name).collect()
}

/// What could be done, the best first; what cannot be done that should be goes to `refused`.
fn choose(
    policy: &Policy,
    history: &History,
    period: &Period,
    hot: &[Seen],
    untold: &BTreeMap<Tenant, Untold>,
    refused: &mut Vec<Refused>,
) -> Vec<Action> {
    let own: BTreeSet<Tenant> = period.pins.iter().map(Tenant::from).collect();
    let lasting = |seen: &&Seen| {
        let streak = history.hot.get(&seen.load.tenant);
        streak.is_some_and(|streak| streak.periods >= policy.consecutive_periods.max(1))
    };
    let mut isolations = Vec::new();
    for Seen { load, .. } in hot.iter().filter(lasting) {
        // Whoever pinned it, or does not want it pinned: what harms others is said of it all the same.
        let attempt = if own.contains(&load.tenant) {
            stays(period, load).map(|()| None)
        } else if period.held.contains(&load.tenant) {
            if bearable(period, load) { Ok(None) } else { Err(Reason::TooHot) }
        } else {
            isolate(policy, period, load).map(Some)
        };
        match attempt {
            Ok(found) => isolations.extend(found),
            Err(reason) => refused.push(Refused::tenant(load.tenant, reason)),
        }
    }
    // What keeps a shard large and a worker busy is said whatever is done about others.
    let routine = split(policy, period, refused);
    let relief = spread(policy, history, period, refused);
    let crowded =
        history.crowded.iter().filter(|(_, periods)| **periods >= policy.consecutive_periods.max(1));
    refused.extend(crowded.map(|(group, _)| Refused::node(*group, Reason::Crowded)));
    if !isolations.is_empty() {
        return isolations;
    }
    let routine = routine.or(relief).or_else(|| release(policy, history, period, untold));
    routine.into_iter().collect()
}

/// A tenant that has its own shard already is never moved around; at most there is something to say.
fn stays(period: &Period, load: &TenantLoad) -> Result<(), Reason> {
    if bearable(period, load) {
        return Ok(());
    }
    Err(if is_kept_for(period, load) { Reason::TooHotAlone } else { Reason::TooHotHere })
}

/// The pinned tenant that has been quiet for longest, if it was for long and is known to be now. One without rows was
/// deleted: it need not be quiet for longer than another has to be hot.
fn release(
    policy: &Policy,
    history: &History,
    period: &Period,
    untold: &BTreeMap<Tenant, Untold>,
) -> Option<Action> {
    let quiet = history.quiet.iter().filter(|(tenant, _)| !untold.contains_key(tenant));
    let periods = i32::try_from(policy.consecutive_periods).unwrap_or(i32::MAX);
    let long = |(tenant, since): &(&Tenant, &Timestamp)| {
        let deleted = policy.release_after.min(period.length.saturating_mul(periods));
        let after = if period.empty.contains(tenant) { deleted } else { policy.release_after };
        since.checked_add(after).is_ok_and(|end| end <= period.end)
    };
    let (tenant, _) = quiet.filter(long).min_by_key(|(tenant, since)| (**since, **tenant))?;
    Some(Action::Release { tenant: *tenant })
}

/// Keeps what an action leaves behind that the next period may not show.
fn remember(policy: &Policy, history: &mut History, action: Action, period: &Period, now: Timestamp) {
    match action {
        Action::Isolate { tenant, .. } => {
            history.hot.remove(&tenant);
        }
        Action::Release { tenant } => {
            history.quiet.remove(&tenant);
        }
        Action::Spread { .. } => history.busy.clear(),
        Action::Split { .. } | Action::Retarget { .. } => {}
    }
    if policy.mode == Mode::Isolate {
        let at_once = matches!(action, Action::Release { .. });
        history.acted_before = (!at_once).then_some(history.acted);
        history.acted.note(action, now);
        return;
    }
    let alone = |tenant: Tenant| period.tenants.iter().any(|load| load.tenant == tenant && load.alone);
    history.imagined.acted.note(action, now);
    history.imagined.groups += match action {
        Action::Isolate { tenant, .. } if !alone(tenant) => FLANKS,
        Action::Split { .. } => 1,
        Action::Isolate { .. } | Action::Spread { .. } | Action::Release { .. } | Action::Retarget { .. } => {
            0
        }
    };
    history.imagined.note(action);
}
