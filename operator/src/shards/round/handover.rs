//! What a round leaves for the steps that follow before the next one.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::{BoxFuture, ready};

use super::{Brief, Failure, Round};
use crate::names::Group;
use crate::shards::act;
use crate::shards::observe::Sizes;
use crate::shards::observed::Observed;
use crate::shards::rebalance::MovePlan;
use crate::shards::step::Step;
use crate::shards::wanted::Wanted;

/// What a round leaves to the steps that take long: they are judged by what it knew.
#[derive(Clone, Debug)]
pub struct Handover {
    wanted: Wanted,
    before: Arc<Observed>,
    deferred: Vec<(Step, Failure)>,
    held: Option<MovePlan>,
}

impl Handover {
    /// What `round` leaves.
    #[must_use]
    pub fn of(wanted: &Wanted, round: &Round) -> Self {
        Self {
            wanted: wanted.clone(),
            before: Arc::new(round.observed.clone()),
            deferred: round.deferred.clone(),
            held: round.held_plan(),
        }
    }

    /// How many moves may be made at the same time; at least one.
    #[must_use]
    pub fn parallel_moves(&self) -> usize {
        self.wanted.rebalance.policy.max_parallel_moves.max(1) as usize
    }

    /// Replaces what is asked for.
    pub fn ask_for(&mut self, wanted: Wanted) {
        self.wanted = wanted;
    }

    /// Puts off a step that has failed since that round.
    pub fn put_off(&mut self, step: &Step, error: &act::Error) {
        if !self.puts_off(step) {
            self.deferred.push((step.clone(), error.into()));
        }
    }

    /// Whether `step` is put off.
    #[must_use]
    pub fn puts_off(&self, step: &Step) -> bool {
        self.deferred.iter().any(|(one, _)| one == step)
    }

    /// What [`carry_out`](super::carry_out) is given. A step that is put off has to stay so: if it counted again, the plan would begin with
    /// it, and not ask for the one that goes first meanwhile.
    #[must_use]
    pub fn brief<'a>(
        &'a self,
        existing: &'a (dyn Fn() -> BoxFuture<'a, BTreeSet<Group>> + Send + Sync),
    ) -> Brief<'a> {
        Brief {
            wanted: &self.wanted,
            // It is for one step. The next round replaces what is left here.
            unchanged: &|| Box::pin(ready(true)),
            existing,
            blank: &|| Box::pin(ready(None)),
            sizes: Sizes::Skip,
            before: Some(&self.before),
            most: 1,
            paused: false,
            deferred: &self.deferred,
            // What is said of them is for who writes conditions.
            failed_moves: &[],
            stalls: &[],
            held: self.held.clone(),
            shown: None,
            overtaken: None,
            heat: self.before.heat.as_ref(),
        }
    }
}
