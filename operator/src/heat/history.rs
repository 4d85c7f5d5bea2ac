//! What is remembered between periods. It is stored, so that an operator that is started anew forgets nothing.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Action, Tenant};
use crate::names::Group;

/// What is remembered between periods; bounded by the number of nodes and by the budgets: what was only imagined counts towards
/// [`super::Policy::max_shard_groups`], too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// End of the last period.
    pub seen: Option<Timestamp>,
    /// The tenants that are hot, or were and have not cooled down.
    #[serde(with = "pairs")]
    pub hot: BTreeMap<Tenant, Streak>,
    /// Periods in a row that a node was busy and no tenant of it was hot.
    pub busy: BTreeMap<Group, u32>,
    /// Periods in a row that a node was busy with several tenants that are pinned there.
    #[serde(default)]
    pub crowded: BTreeMap<Group, u32>,
    /// Since when a pinned tenant has been quiet.
    #[serde(with = "pairs")]
    pub quiet: BTreeMap<Tenant, Timestamp>,
    /// What was done last.
    #[serde(default)]
    pub acted: Acted,
    /// The same from before the last action, unless that was done as it was decided.
    #[serde(default)]
    pub acted_before: Option<Acted>,
    /// What [`super::Mode::Isolate`] would have done.
    pub imagined: Imagined,
}

impl History {
    /// Takes `unknown`, in which nobody looked, out of the time for which pinned tenants have been quiet.
    pub(super) fn leave_out(&mut self, unknown: SignedDuration) {
        for since in self.quiet.values_mut() {
            *since = since.checked_add(unknown).unwrap_or(Timestamp::MAX);
        }
    }

    /// Takes the last action never to have been decided: it was dropped before it began, and nobody waits for its sake.
    pub(crate) fn undo(&mut self) {
        if let Some(before) = self.acted_before.take() {
            self.acted = before;
        }
    }
}

/// When something was done last: what the cooldowns count from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acted {
    /// Anything.
    pub last: Option<Timestamp>,
    /// A tenant was isolated.
    pub isolated: Option<Timestamp>,
    /// A tenant was released, and which.
    pub released: Option<(Tenant, Timestamp)>,
}

impl Acted {
    /// Notes that something is done `now`.
    pub(super) fn note(&mut self, action: Action, now: Timestamp) {
        self.last = Some(now);
        match action {
            Action::Isolate { .. } => self.isolated = Some(now),
            Action::Release { tenant } => self.released = Some((tenant, now)),
            Action::Split { .. } | Action::Spread { .. } | Action::Retarget { .. } => {}
        }
    }

    /// Takes what was done after `now` to have been done then: the clock was set back.
    pub(super) fn set_back(&mut self, now: Timestamp) {
        self.last = self.last.map(|at| at.min(now));
        self.isolated = self.isolated.map(|at| at.min(now));
        self.released = self.released.map(|(tenant, at)| (tenant, at.min(now)));
    }

    /// When the cooldown before `action` ends. People wait for an isolation, which therefore waits for no routine, but for the
    /// end of its own tenant's last pin: one that comes and goes is not copied to and fro.
    pub(super) fn cools_until(&self, action: Action, cooldown: SignedDuration) -> Option<Timestamp> {
        let since = match action {
            Action::Isolate { tenant, .. } => {
                let own = self.released.filter(|(released, _)| *released == tenant);
                self.isolated.max(own.map(|(_, at)| at))
            }
            Action::Split { .. }
            | Action::Spread { .. }
            | Action::Release { .. }
            | Action::Retarget { .. } => self.last,
        };
        since.and_then(|since| since.checked_add(cooldown).ok())
    }
}

/// How long a tenant has been hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Streak {
    /// Periods.
    pub periods: u32,
    /// Periods since then in which nobody could tell.
    pub unseen: u32,
    /// Where it was seen.
    pub node: Group,
}

/// What would be different by now if [`super::Mode::Observe`] were [`super::Mode::Isolate`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imagined {
    /// What would have been done last.
    #[serde(default)]
    pub acted: Acted,
    /// Where the tenants would be pinned.
    #[serde(with = "pairs")]
    pub pins: BTreeMap<Tenant, Group>,
    /// Those that would not be pinned any more.
    pub released: BTreeSet<Tenant>,
    /// The shard groups that would have been split.
    pub split: BTreeSet<i64>,
    /// Shard groups that there would be besides those that there are.
    pub groups: usize,
}

/// Maps by tenant as lists of pairs: the keys of a JSON object are text.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::heat::Tenant;

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        map: &BTreeMap<Tenant, T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Tenant, T>, D::Error> {
        Ok(Vec::<(Tenant, T)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::fixture::{at, load, node, period, policy, tenant};
    use crate::heat::{Mode, Policy, decide};
    use crate::shards::rebalance::Role;

    #[test]
    fn what_is_stored_in_every_period_decides_as_what_is_kept() {
        let policy = Policy { mode: Mode::Observe, ..policy() };
        let nodes = [node(Role::Shared, 70), node(Role::Shared, 20), node(Role::Shared, 30)];
        let (mut kept, mut stored) = (History::default(), History::default());
        let mut acted = 0;
        for minute in 0..200 {
            // Hot for a while, then quiet, with another beside it.
            let tenants = [load(1, 0, if minute % 90 < 40 { 40 } else { 1 }), load(2, 1, 15), load(3, 0, 10)];
            let period = period(minute, &nodes, &tenants);
            let (expected, next) = decide(&policy, &kept, &period);
            kept = next;
            let text = serde_json::to_string(&stored).unwrap();
            let (decision, next) = decide(&policy, &serde_json::from_str(&text).unwrap(), &period);
            stored = next;
            assert_eq!((&decision, &stored), (&expected, &kept));
            acted += usize::from(decision.action.is_some());
        }
        assert!(acted > 0, "nothing was decided");
        assert!(!kept.imagined.pins.is_empty() && kept.imagined.pins.contains_key(&tenant(1)));
        assert_eq!(kept.seen, Some(at(199)));
    }
}
