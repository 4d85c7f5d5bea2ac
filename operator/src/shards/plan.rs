//! From what is there to what is wanted: a pure function. It reads nothing, knows no time, and has an answer for every
//! observation.

use super::findings;
use super::observed::{Observed, Stall};
use super::step::Step;
use super::topology::Topology;
use super::wanted::Wanted;
use super::world::{Support, World};
use crate::condition::{CITUS_AVAILABLE, Finding};
use crate::names::Group;
use membership::Nodes;

mod actions;
mod by_hand;
mod membership;
mod moves;
mod pins;
mod prepare;
mod strategy;
mod tables;

pub(super) use actions::{held_by_others, relief};
pub use moves::{Cramped, Moves};
pub(super) use moves::{UPDATED_FIRST, layout, obstacle};
pub use tables::{Problem, Report};

/// What is to be done, what is waited for, and what is so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in this order. Later steps assume the earlier ones, so the first is performed and the rest is planned
    /// again from what is then observed. Moves can be made at the same time.
    pub steps: Vec<Step>,
    /// Why not everything that is wanted is among the steps.
    pub waits: Vec<String>,
    /// The shards that are to be moved; `None` where there are no catalogs to tell.
    pub moves: Option<Moves>,
    /// The conditions of this controller.
    pub findings: Vec<Finding>,
}

/// Plans the way from `observed` to `wanted`.
#[must_use]
pub fn plan(wanted: &Wanted, topology: &Topology, observed: &Observed) -> Plan {
    let world = World { wanted, topology, observed };
    let mut draft = Draft::default();
    for stall in &observed.stalls {
        let Stall { pid, application, .. } = stall;
        match stall.end {
            Some(end) => draft.step(Step::CancelMove { pid: *pid, application: application.clone(), end }),
            None => draft.wait(format!("{application} (pid {pid}) was cancelled, and has not ended yet")),
        }
    }
    prepare::plan(&world, &mut draft);
    let unprepared = draft.steps.iter().find(|step| step.condition() == CITUS_AVAILABLE).cloned();
    if world.support() != Support::Citus || world.catalog().is_none() {
        let report = tables::inspect(&world);
        return draft.finish(&world, &report, None);
    }
    let complete = wanted_are_registered(&world);
    let moves = moves::decide(&world, complete);
    let before = draft.steps.len();
    // Whether the shards of one that is told to go find a place is not known while their sizes are not.
    let unmeasured = world.surplus().iter().any(|group| moves.unmeasured.contains(group));
    let nodes = membership::plan(&world, moves.refused.is_none() && !unmeasured, &mut draft);
    // Who cannot leave keeps all that it has.
    draft.hold_moves = nodes == Nodes::Unsettled || draft.steps.len() > before || moves.refused.is_some();
    if let Some(step) = unprepared.filter(|_| !moves.plan.moves.is_empty()) {
        // Of a server that is not yet as a node has to be, its room is not known either.
        draft.hold_moves = true;
        draft.wait(format!("no shard moves before this is done: {step}"));
    }
    let report = match nodes {
        Nodes::Complete | Nodes::Incomplete => tables::plan(&world, nodes == Nodes::Complete, &mut draft),
        Nodes::Unsettled => tables::inspect(&world),
    };
    // Who is yet to come keeps nobody waiting: nothing goes there before it has.
    let takes_part = nodes == Nodes::Incomplete && membership::only_newcomers_are_missing(&world);
    if nodes == Nodes::Complete || takes_part {
        strategy::plan(&world, &mut draft);
        actions::plan(&world, &moves, &mut draft);
    }
    let moves = moves::plan(&world, moves, &mut draft);
    draft.waits.extend(moves.refused.clone());
    draft.finish(&world, &report, Some(moves))
}

/// Whether every worker that is asked for is part of the cluster: an even spread over fewer would be undone again.
fn wanted_are_registered(world: &World<'_>) -> bool {
    (0..world.wanted.workers)
        .all(|number| world.member(Group::Worker(number)).is_some_and(|member| member.active))
}

/// A plan in the making.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) steps: Vec<Step>,
    pub(super) waits: Vec<String>,
    /// No move may begin: something else waits for those that are under way.
    pub(super) hold_moves: bool,
    /// Why what somebody has decided about tenants is not so, and what to do.
    pub(super) problems: Vec<String>,
    /// What keeps what is to be done about load or size from being begun.
    pub(super) action_waits: Option<String>,
}

impl Draft {
    fn finish(self, world: &World<'_>, tables: &Report, moves: Option<Moves>) -> Plan {
        let findings = findings::of(world, tables, moves.as_ref(), &self);
        Plan { steps: self.steps, waits: self.waits, moves, findings }
    }

    fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn wait(&mut self, reason: impl Into<String>) {
        self.waits.push(reason.into());
    }

    fn adds(&self, group: Group) -> bool {
        self.steps.contains(&Step::AddNode { group })
    }
}

#[cfg(test)]
mod properties;
