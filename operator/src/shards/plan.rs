//! From what is there to what is wanted: a pure function. It reads nothing, knows no time, and has an answer for every
//! observation.

use super::findings;
use super::observed::Observed;
use super::step::Step;
use super::topology::Topology;
use super::wanted::Wanted;
use super::world::{Support, World};
use crate::condition::Finding;
use crate::names::Group;

mod membership;
mod prepare;
mod tables;

pub use tables::{Problem, Report};

/// What is to be done, what is waited for, and what is so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in this order. Later steps assume the earlier ones, so the first is performed and the rest is planned
    /// again from what is then observed.
    pub steps: Vec<Step>,
    /// Why not everything that is wanted is among the steps.
    pub waits: Vec<String>,
    /// The conditions of this controller.
    pub findings: Vec<Finding>,
}

/// Plans the way from `observed` to `wanted`.
#[must_use]
pub fn plan(wanted: &Wanted, topology: &Topology, observed: &Observed) -> Plan {
    let world = World { wanted, topology, observed };
    let mut draft = Draft::default();
    prepare::plan(&world, &mut draft);
    let tables = if world.support() == Support::Citus && membership::plan(&world, &mut draft) {
        tables::plan(&world, &mut draft)
    } else {
        tables::inspect(&world)
    };
    let findings = findings::of(&world, &tables, &draft);
    Plan { steps: draft.steps, waits: draft.waits, findings }
}

/// A plan in the making.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) steps: Vec<Step>,
    pub(super) waits: Vec<String>,
}

impl Draft {
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
