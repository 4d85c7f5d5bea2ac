//! What is remembered of a cluster between rounds: nothing that a decision to delete or to move is made from alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::act;
use super::heat::Heat;
use super::heat::actions::Act;
use super::jobs::Jobs;
use super::observe::Sizes;
use super::observed::{Dropped, Observed};
use super::rebalance::MovePlan;
use super::round::{Failure, Round};
use super::status::Pace;
use super::step::Step;
use super::supervise::{Splits, Watch};

/// How often shards are measured.
const MEASURE: Duration = Duration::from_mins(1);
/// A step that takes long and failed is put off for this long at first, and for twice as long each time after.
const FIRST_RETRY: Duration = Duration::from_secs(10);
/// And for no longer than this.
const LAST_RETRY: Duration = Duration::from_mins(10);

/// How long a step that failed is put off at first.
struct FirstRetry(Duration);

impl Default for FirstRetry {
    fn default() -> Self {
        Self(FIRST_RETRY)
    }
}

/// What is remembered of one cluster.
#[derive(Default)]
pub struct Memory {
    /// When shards were measured last.
    measured: Option<Instant>,
    /// A server that answers has shards of unknown size.
    unmeasured: bool,
    /// The groups shown in metrics.
    pub(super) shown: Vec<String>,
    /// The steps that take long and are being carried out by this process.
    pub jobs: Jobs,
    /// The steps that take long and failed, until they are tried again.
    failures: BTreeMap<Step, Setback>,
    first_retry: FirstRetry,
    /// How far the moves were when they were seen to get on.
    pub watch: Watch,
    /// How far the splits were.
    pub splits: Splits,
    /// How fast they are.
    pub(super) pace: Pace,
    /// What was seen last: the sizes in it count until they are measured again.
    pub last: Option<Arc<Observed>>,
    /// The plan of moves that is being carried out.
    pub held: Option<MovePlan>,
    /// The last plan that could not be carried on with.
    pub overtaken: Option<Dropped>,
    /// What is known of load.
    pub(super) heat: Option<Heat>,
    /// The last actions, as they were counted.
    pub(super) acts: Option<Vec<Act>>,
}

/// A step that takes long and failed.
struct Setback {
    count: u32,
    not_before: Instant,
    failure: Failure,
}

impl Setback {
    /// How long the step is put off, after `first` at first.
    fn delay(&self, FirstRetry(first): &FirstRetry) -> Duration {
        first.saturating_mul(1 << self.count.saturating_sub(1).min(8)).min(LAST_RETRY)
    }
}

impl Memory {
    /// A memory that puts a step off for this long when it has failed once.
    #[must_use]
    pub fn with_first_retry(first: Duration) -> Self {
        Self { first_retry: FirstRetry(first), ..Self::default() }
    }

    /// Whether it is time to measure shards again.
    pub(super) fn sizes(&self) -> Sizes {
        if !self.unmeasured && self.measured.is_some_and(|instant| instant.elapsed() < MEASURE) {
            Sizes::Skip
        } else {
            Sizes::Measure
        }
    }

    /// Remembers that shards were measured, if there were any: until then the next round asks again.
    pub(super) fn measured(&mut self, observed: &Observed) {
        let any = observed.catalog.as_ref().is_some_and(|catalog| !catalog.placements.is_empty());
        self.measured = any.then(Instant::now);
    }

    /// Remembers that a step found others about what it is for, and puts it off as it was put off last.
    pub fn put_off_again(&mut self, step: &Step, error: &act::Error) {
        match self.failures.get_mut(step) {
            Some(setback) => setback.not_before = Instant::now() + setback.delay(&self.first_retry),
            None => drop(self.put_off(step, error)),
        }
    }

    /// Remembers that a long step failed, and puts it off: the others go first. How often it has failed by now.
    pub fn put_off(&mut self, step: &Step, error: &act::Error) -> u32 {
        let count = self.failures.get(step).map_or(0, |setback| setback.count).saturating_add(1);
        let now = Instant::now();
        let mut setback = Setback { count, not_before: now, failure: error.into() };
        setback.not_before = now + setback.delay(&self.first_retry);
        self.failures.insert(step.clone(), setback);
        count
    }

    /// The long steps that are put off, and why.
    #[must_use]
    pub fn deferred(&self) -> Vec<(Step, Failure)> {
        let now = Instant::now();
        let off = self.failures.iter().filter(|(_, setback)| setback.not_before > now);
        off.map(|(step, setback)| (step.clone(), setback.failure.clone())).collect()
    }

    /// Remembers what was seen: how far moves are, sizes, and which failures are still of interest.
    pub fn remember(&mut self, round: &Round) {
        let now = Instant::now();
        self.watch.look(round.observed.catalog.as_ref(), now);
        self.splits.look(round.observed.catalog.as_ref(), now);
        for step in &round.performed {
            if let Step::CancelMove { pid, .. } = step {
                self.watch.ended(*pid, now);
                self.splits.ended(*pid, now);
            }
        }
        // One that is tried again just now is of interest, too: it may fail once more.
        self.failures.retain(|step, _| round.plan.steps.contains(step) || self.jobs.has(step));
        self.last = Some(Arc::new(round.observed.clone()));
        // Catalogs that could not be read say nothing about the plan.
        if let Some(moves) = &round.plan.moves {
            self.held = round.held_plan();
            self.unmeasured = moves.unmeasured.iter().any(|group| round.observed.facts(*group).is_some());
            self.overtaken.clone_from(&moves.overtaken);
        }
    }
}
