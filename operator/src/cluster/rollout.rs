//! The order in which instances are restarted. Pure: one step at a time, derived anew from what is there.
//!
//! One group at a time, workers before the coordinator, standbys before their primary, and a primary only after a
//! standby has taken over, if there is one. An instance that serves is touched only while everything else is ready;
//! one that does not serve and is out of date is replaced at once, so that a mistake can be corrected.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::instance::{Change, Instance};
use super::observe::ObservedGroup;
use crate::api::DialogClusterStatus;
use crate::condition::{self, BALANCED, Holds, WAL_LEVEL_LOGICAL};
use crate::names::Group;

mod hold;

pub use hold::Hold;

/// An instance that is out of date and not ready for this long is taken for stuck.
const STUCK: Duration = Duration::from_mins(2);
/// How long an update waits for what moves to be known where nobody can say it.
const UNANSWERED: Duration = Duration::from_mins(10);

/// Parameters that a standby must not have smaller than its primary: lowering them begins with the primary.
const PRIMARY_FIRST: [&str; 5] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
];

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything is up to date.
    Nothing,
    /// Something is out of date, and this has to be ready first.
    Wait(String),
    /// A primary is out of date, and Patroni does not let the standby take over yet: it lags.
    CatchUp {
        /// The standby's pod.
        to: String,
        /// What Patroni said.
        refusal: String,
    },
    /// A server is out of date, and moves or splits of shards need its group, or may: a restart would undo what was copied.
    AfterMoves {
        /// The group.
        group: Group,
        /// What follows.
        then: Box<Step>,
    },
    /// Everything is up to date, and groups that are not asked for any more leave; the sentence says how far they are.
    ScaleIn(String),
    /// Delete a pod, so that it comes back as its StatefulSet wants it now.
    Replace {
        /// The pod.
        pod: String,
        /// Why.
        why: &'static str,
    },
    /// Make a standby the primary.
    SwitchOver {
        /// The group.
        group: Group,
        /// The primary's pod.
        from: String,
        /// The standby's pod.
        to: String,
    },
    /// Restart PostgreSQL in its pod, for the parameters that wait for it.
    Restart {
        /// The group.
        group: Group,
        /// The pod.
        pod: String,
        /// The parameters.
        parameters: Vec<String>,
    },
    /// Nothing: a restart after the last change of the parameters did not help.
    Helpless {
        /// The pod.
        pod: String,
        /// The parameters.
        parameters: Vec<String>,
    },
}

impl Step {
    /// The step as a sentence, if there is one.
    #[must_use]
    pub fn describe(&self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Wait(what) => Some(format!("an update waits for {what}")),
            Self::CatchUp { to, refusal } => {
                Some(format!("an update waits for {to} to be able to take over: {refusal}"))
            }
            Self::AfterMoves { group, .. } => Some(format!(
                "an update goes on with {group} once no move or split of a shard is under way that needs it; no other begins \
                 before"
            )),
            Self::ScaleIn(how_far) => Some(how_far.clone()),
            Self::Replace { pod, why } => Some(format!("{pod} is replaced because {why}")),
            Self::SwitchOver { group, from, to } => {
                Some(format!("{group} switches over from {from} to {to}"))
            }
            Self::Restart { pod, parameters, .. } => {
                Some(format!("PostgreSQL of {pod} restarts for {}", parameters.join(", ")))
            }
            Self::Helpless { pod, parameters } => Some(format!(
                "PostgreSQL of {pod} was restarted and still does not use {}; correct them in spec.postgres.parameters",
                parameters.join(", ")
            )),
        }
    }
}

/// The groups that moves and splits of shards still need, as was answered since no other begins; `None` while that is not
/// known. What nobody answers keeps no update for good, nor what was answered before the databases fell silent.
#[must_use]
pub fn busy(status: Option<&DialogClusterStatus>, now: Timestamp) -> Option<BTreeSet<Group>> {
    let status = status?;
    let since = status.hold_moves.as_ref()?;
    let is_long = |at: Timestamp| now.duration_since(at).unsigned_abs() > UNANSWERED;
    let silent = condition::find(&status.conditions, BALANCED)
        .filter(|found| found.status == Holds::Unknown.as_str())
        .map(|found| found.last_transition_time.0);
    match status.held_moves.as_ref().filter(|held| held.since == *since) {
        Some(_) if silent.is_some_and(is_long) => Some(BTreeSet::new()),
        Some(held) => Some(held.busy.iter().filter_map(|group| Group::parse(group)).collect()),
        None => is_long(since.0).then(BTreeSet::new),
    }
}

/// Whether a server was found at another `wal_level` than the declared one, by what is known of the databases. Where the
/// declaration is right and no instance says that it waits for a restart, Patroni has to look again: it does so when its
/// configuration changes, and a value that somebody had written by `ALTER SYSTEM` and that was taken back after that is one
/// of which it does not know.
#[must_use]
pub fn is_behind(status: Option<&DialogClusterStatus>) -> bool {
    let found = status.and_then(|status| condition::find(&status.conditions, WAL_LEVEL_LOGICAL));
    found.is_some_and(|found| found.status == Holds::False.as_str())
}

/// The next step for groups, each with the instances that are asked for; nothing that works is touched in groups that are
/// `busy` moving shards, or may be.
#[must_use]
pub fn next(
    groups: &BTreeMap<Group, (&ObservedGroup, i32)>,
    busy: Option<&BTreeSet<Group>>,
    now: Timestamp,
) -> Step {
    let broken = groups.values().find_map(|(group, _)| {
        group
            .instances
            .iter()
            .find(|instance| group.is_outdated(&instance.pod) && is_stuck(group, instance, now))
    });
    if let Some(instance) = broken {
        return Step::Replace { pod: instance.pod.clone(), why: "it is out of date and does not serve" };
    }
    // Workers are greater than the coordinator; among themselves they go by number.
    let workers = groups.iter().filter(|(group, _)| **group != Group::Coordinator);
    let ordered = workers.chain(groups.get_key_value(&Group::Coordinator));
    let step_of = |(group, (observed, asked)): (&Group, &(&ObservedGroup, i32))| {
        Some((*group, in_group(*group, observed, *asked)?))
    };
    let mut steps: Vec<(Group, Step)> = ordered.filter_map(step_of).collect();
    // Replacing a pod restarts its server as well.
    steps.sort_by_key(|(_, step)| matches!(step, Step::Restart { .. }));
    let Some((group, step)) = steps.into_iter().next() else {
        return Step::Nothing;
    };
    match groups.iter().find_map(|(group, (observed, _))| unready(*group, observed)) {
        Some(unready) => Step::Wait(unready),
        None if matches!(step, Step::Wait(_)) => step,
        None if busy.is_none_or(|busy| busy.contains(&group)) => {
            Step::AfterMoves { group, then: Box::new(step) }
        }
        None => step,
    }
}

/// What would be done in a group if everything were ready.
fn in_group(name: Group, group: &ObservedGroup, asked: i32) -> Option<Step> {
    let primary = group.primary();
    let is_standby = |instance: &&Instance| primary.is_none_or(|primary| primary.pod != instance.pod);
    let standbys: Vec<&Instance> = group.instances.iter().filter(is_standby).collect();
    // Where writes wait for standbys, Patroni promotes only one that has everything.
    let switch = |suits: &dyn Fn(&Instance) -> bool| {
        let complete =
            |standby: &&&Instance| group.synchronous.is_empty() || group.synchronous.contains(&standby.pod);
        let candidates = || standbys.iter().filter(complete);
        let (from, to) = (primary?, candidates().find(|standby| suits(standby)).or(candidates().next())?);
        Some(Step::SwitchOver { group: name, from: from.pod.clone(), to: to.pod.clone() })
    };
    if primary.is_some_and(|primary| primary.ordinal >= asked) {
        return switch(&|standby| standby.ordinal < asked);
    }
    let replace =
        |instance: &Instance| Step::Replace { pod: instance.pod.clone(), why: "its template has changed" };
    if let Some(standby) = standbys.iter().rev().find(|standby| group.is_outdated(&standby.pod)) {
        return Some(replace(standby));
    }
    if let Some(primary) = primary.filter(|primary| group.is_outdated(&primary.pod)) {
        if standbys.is_empty() {
            return Some(replace(primary));
        }
        // Where none may take over, writes would wait until the primary is back, or be lost with it.
        let waits = || Step::Wait(format!("a standby of {name} that has everything"));
        return switch(&|_| true).or_else(|| Some(waits()));
    }
    let restart = |instance: &Instance| Step::Restart {
        group: name,
        pod: instance.pod.clone(),
        parameters: instance.patroni.pending_restart_reason.keys().cloned().collect(),
    };
    let pending = |instance: &&Instance| instance.patroni.pending_restart;
    let primary = primary.filter(pending);
    if let Some(primary) = primary.filter(|primary| lowers(primary)) {
        return Some(restart(primary));
    }
    standbys.into_iter().rev().find(pending).or(primary).map(restart)
}

fn is_stuck(group: &ObservedGroup, instance: &Instance, now: Timestamp) -> bool {
    if instance.is_ready {
        return false;
    }
    // Without trouble it may be making the database right now: that must not be cut off.
    let old = instance.created.is_some_and(|created| now.duration_since(created).unsigned_abs() > STUCK);
    instance.trouble.is_some() || group.is_initialized() && old && !instance.patroni.is_copying()
}

/// What of a group is not as it should be while something is restarted.
fn unready(name: Group, group: &ObservedGroup) -> Option<String> {
    if let Some(instance) =
        group.instances.iter().find(|instance| !instance.is_ready || instance.is_terminating)
    {
        return Some(format!("{} to be ready", instance.pod));
    }
    if i32::try_from(group.instances.len()) != Ok(group.replicas) {
        return Some(format!("all {} instances of {name}", group.replicas));
    }
    group.primary().is_none().then(|| format!("a primary of {name}"))
}

/// Whether a restart would lower a parameter that standbys must not have smaller.
fn lowers(instance: &Instance) -> bool {
    let number = |text: &str| text.parse::<i64>().ok();
    instance.patroni.pending_restart_reason.iter().any(|(name, Change { old_value, new_value })| {
        PRIMARY_FIRST.contains(&name.as_str()) && number(new_value) < number(old_value)
    })
}

#[cfg(test)]
mod tests;
