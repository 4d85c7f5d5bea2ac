//! What is remembered of a cluster between rounds: nothing that a decision to delete or to move is made from alone.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::act;
use super::adopted::Adopted;
use super::heat::Heat;
use super::heat::actions::Act;
use super::jobs::Jobs;
use super::lock::Holder;
use super::observe::Sizes;
use super::observed::{Dropped, Observed, RunningMove, Stall};
use super::rebalance::MovePlan;
use super::round::{Carried, Failure, Round};
use super::sessions::Sessions;
use super::status::Pace;
use super::step::Step;
use super::supervise::{Splits, Spreads, Watch};
use crate::condition::{Finding, Holds};
use crate::pg::{self, Limits};

/// How often shards are measured.
const MEASURE: Duration = Duration::from_mins(1);
/// A step that takes long and failed is put off for this long at first, and for twice as long each time after.
const FIRST_RETRY: Duration = Duration::from_secs(10);
/// And for no longer than this.
const LAST_RETRY: Duration = Duration::from_mins(10);

/// How long a step that takes long and has failed is put off.
#[derive(Clone, Copy)]
struct Retries {
    first: Duration,
    last: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { first: FIRST_RETRY, last: LAST_RETRY }
    }
}

impl Retries {
    /// How long after the failure of this number, from 1.
    fn delay(self, count: u32) -> Duration {
        self.first.saturating_mul(1 << count.saturating_sub(1).min(8)).min(self.last)
    }
}

/// What is remembered of one cluster.
#[derive(Default)]
pub struct Memory {
    /// When shards were measured last.
    measured: Option<Instant>,
    /// A server that answers has shards of unknown size.
    unmeasured: bool,
    retries: Retries,
    /// The step that could not begin, since somebody else has the topology lock, and who.
    locked: Option<(Step, Holder)>,
    /// Since when nothing was done, and nothing goes on.
    idle: Option<Instant>,
    /// The groups shown in metrics.
    pub(super) shown: Vec<String>,
    /// The steps that take long and are being carried out by this process.
    pub jobs: Jobs,
    /// Those that go on without it, and that it wakes up.
    adopted: Adopted,
    /// The long steps that were done and not told of yet, and how long each lasted.
    done: Vec<(Step, Duration)>,
    /// Those that were told of and that no status counts yet: it could not be written, or the catalogs not be read.
    uncounted: Vec<Step>,
    /// The steps that take long and failed, until they are tried again.
    failures: BTreeMap<Step, Setback>,
    /// The sessions that were cancelled as they did not get on, by name, and why they did not: until their steps have ended.
    cancelled: BTreeMap<String, Stall>,
    /// When a move was made last.
    moved: Option<Instant>,
    /// Of the steps of a plan that were begun and have not ended, which of which plan each is.
    begun: BTreeMap<Step, Place>,
    /// How far the moves were when they were seen to get on.
    pub watch: Watch,
    /// How far the splits were.
    pub splits: Splits,
    /// How far the steps that spread tables were.
    pub spreads: Spreads,
    /// How fast they are.
    pub(super) pace: Pace,
    /// What was seen last: the sizes in it count until they are measured again.
    pub last: Option<Arc<Observed>>,
    /// The plan of moves that is being carried out.
    pub held: Option<MovePlan>,
    /// The last plan that could not be carried on with.
    pub(super) overtaken: Option<Dropped>,
    /// What is known of load.
    pub(super) heat: Option<Heat>,
    /// The last actions, as they were counted.
    pub(super) acts: Option<Vec<Act>>,
}

/// What has come of the steps that take long and have ended.
#[derive(Debug, Default)]
pub struct Results {
    /// Those that were done, in the order in which they began, and how long each lasted: until [`Memory::told`], as a round may
    /// not come to its end.
    pub done: Vec<(Step, Duration)>,
    /// Those that were told of earlier and that no status counts yet: until [`Memory::counted`], as it may not be written, or
    /// be one of a round that could not read the catalogs.
    pub uncounted: Vec<Step>,
    /// Those that have failed and are put off, why, and how often they have by now.
    pub failed: Vec<(Step, act::Error, u32)>,
}

/// Which of which plan a step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The plan's name.
    pub hash: String,
    /// Its number in the plan, from 1.
    pub number: u32,
}

impl Place {
    /// That of `step` in the first of `plans` that has it.
    fn of(step: &Step, plans: &[&MovePlan]) -> Option<Self> {
        let place = |plan: &&MovePlan| Some(Self { hash: plan.hash.clone(), number: step.number_in(plan)? });
        plans.iter().find_map(place)
    }
}

/// A step that takes long and failed.
struct Setback {
    count: u32,
    /// When it failed last.
    at: Instant,
    not_before: Instant,
    failure: Failure,
}

impl Memory {
    /// That of an operator which tries again this long after each failure.
    #[must_use]
    pub fn trying_again_after(delay: Duration) -> Self {
        Self { retries: Retries { first: delay, last: delay }, ..Self::default() }
    }

    /// Takes what has come of the long steps that have ended.
    pub fn take_results(&mut self) -> Results {
        let mut results = Results::default();
        for (step, ended, lasted) in self.jobs.ended() {
            self.locked = None;
            let stall = self.cancelled.remove(&Limits::long(&step.purpose()).application);
            match ended {
                Ok(Carried::Out) => {
                    self.made(&step);
                    self.done.push((step, lasted));
                }
                Ok(Carried::Needless) => debug!(%step, "not asked for any more"),
                Ok(Carried::Held(holder)) => {
                    debug!(%step, %holder, "put off");
                    self.locked = Some((step, holder));
                }
                Err(error) => {
                    let error = why(error, stall);
                    let failures = self.put_off(&step, &error);
                    results.failed.push((step, error, failures));
                }
            }
        }
        results.done.clone_from(&self.done);
        results.uncounted.clone_from(&self.uncounted);
        results
    }

    /// Remembers when a move was made.
    fn made(&mut self, step: &Step) {
        if matches!(step, Step::MoveShard { .. }) {
            self.moved = Some(Instant::now());
        }
    }

    /// Notes that the long steps that were done are in log and Events: they are not told of again.
    pub fn told(&mut self) {
        self.uncounted.extend(self.done.drain(..).map(|(step, _)| step));
    }

    /// Forgets those that were told of: the status after `round` was written, which counts them. Where that could not read the
    /// catalogs it says what was said before, and they are for a later one.
    pub fn counted(&mut self, round: &Round) {
        if round.plan.moves.is_some() {
            self.uncounted.clear();
        }
    }

    /// How long nothing was done, and nothing has gone on.
    pub(super) fn idle(&self) -> Duration {
        self.idle.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether it is time to measure shards again.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        if !self.unmeasured && self.measured.is_some_and(|instant| instant.elapsed() < MEASURE) {
            Sizes::Skip
        } else {
            Sizes::Measure
        }
    }

    /// Remembers that shards were measured, if there were any: until then the next round asks again.
    pub fn measured(&mut self, observed: &Observed) {
        let any = observed.catalog.as_ref().is_some_and(|catalog| !catalog.placements.is_empty());
        self.measured = any.then(Instant::now);
    }

    /// Puts off a step that could be done in part only; whether that is a failure. Others that are about what it is for are none.
    pub fn postpone(&mut self, step: &Step, error: &act::Error) -> bool {
        let failed = !matches!(error, act::Error::Kept(_));
        if failed {
            self.put_off(step, error);
        } else {
            self.put_off_again(step, error);
        }
        failed
    }

    /// Remembers that a step found others about what it is for, and puts it off as it was put off last.
    fn put_off_again(&mut self, step: &Step, error: &act::Error) {
        match self.failures.get_mut(step) {
            Some(setback) => setback.not_before = Instant::now() + self.retries.delay(setback.count),
            None => drop(self.put_off(step, error)),
        }
    }

    /// Remembers that a long step failed, and puts it off: the others go first. How often it has failed by now.
    fn put_off(&mut self, step: &Step, error: &act::Error) -> u32 {
        let count = self.failures.get(step).map_or(0, |setback| setback.count).saturating_add(1);
        let at = Instant::now();
        let not_before = at + self.retries.delay(count);
        self.failures.insert(step.clone(), Setback { count, at, not_before, failure: error.into() });
        count
    }

    /// The moves that have failed since one was made, the last one first: those, too, that are being tried again.
    #[must_use]
    pub fn failed_moves(&self) -> Vec<(Step, Failure)> {
        let since = |(step, setback): &(&Step, &Setback)| {
            matches!(step, Step::MoveShard { .. }) && self.moved.is_none_or(|moved| moved < setback.at)
        };
        let mut failed: Vec<(&Step, &Setback)> = self.failures.iter().filter(since).collect();
        failed.sort_by_key(|(_, setback)| Reverse(setback.at));
        failed.into_iter().map(|(step, setback)| (step.clone(), setback.failure.clone())).collect()
    }

    /// The long steps that are put off, and why.
    #[must_use]
    pub fn deferred(&self) -> Vec<(Step, Failure)> {
        let now = Instant::now();
        let off = self.failures.iter().filter(|(_, setback)| setback.not_before > now);
        off.map(|(step, setback)| (step.clone(), setback.failure.clone())).collect()
    }

    /// Wakes up what `observed` shows to be under way and no step of this process carries out, each by `sessions` of its own. While
    /// catalogs cannot be read it is what it was.
    pub fn adopt(&mut self, observed: &Observed, sessions: impl Fn() -> Sessions) {
        if let Some(catalog) = &observed.catalog {
            self.adopted.look(&catalog.operations, |operation| self.jobs.is_own(operation), sessions);
        }
    }

    /// Which of `plan` a step is that was begun by it.
    pub fn begin(&mut self, step: &Step, plan: Option<&MovePlan>) -> Option<Place> {
        self.locked = None;
        let place = Place::of(step, plan.as_slice())?;
        self.begun.insert(step.clone(), place.clone());
        Some(place)
    }

    /// Which of which plan a step is that is under way. Of one that another operator has begun, `plans` tell.
    #[must_use]
    pub fn place(&self, step: &Step, plans: &[&MovePlan]) -> Option<Place> {
        self.begun.get(step).cloned().or_else(|| Place::of(step, plans))
    }

    /// Which of which plan a step is that has ended: what it was when it was begun, since a plan that was made meanwhile need not
    /// have it any more. Of one that another operator has begun, `plans` tell.
    pub fn end(&mut self, step: &Step, plans: &[&MovePlan]) -> Option<Place> {
        self.begun.remove(step).or_else(|| Place::of(step, plans))
    }

    /// Remembers what was seen: how far moves are, sizes, and which failures are still of interest. Says in `round` for whom a
    /// long step waits that could not begin before it.
    pub fn remember(&mut self, round: &mut Round) {
        let now = Instant::now();
        self.locked = self.locked.take().filter(|(step, _)| is_asked_for(step, round));
        if let Some(locked) = &self.locked {
            round.held.get_or_insert_with(|| locked.clone());
        }
        let goes_on = round.observed.catalog.as_ref().is_some_and(|catalog| !catalog.operations.is_empty());
        if goes_on || !round.performed.is_empty() || !round.long.is_empty() {
            self.idle = None;
        } else {
            self.idle.get_or_insert(now);
        }
        self.watch.look(round.observed.catalog.as_ref(), now);
        self.splits.look(round.observed.catalog.as_ref(), now);
        self.spreads.look(round.observed.catalog.as_ref(), now);
        for step in &round.performed {
            if let Step::CancelMove { pid, application, .. } = step {
                self.watch.ended(*pid, now);
                self.splits.ended(*pid, now);
                self.spreads.ended(*pid, now);
                // Nobody waits here for the end of what an earlier operator has begun.
                let own = |stall: &&Stall| stall.pid == *pid && self.jobs.is_own(&stall.operation());
                let stall = round.observed.stalls.iter().find(own);
                self.cancelled.extend(stall.map(|stall| (application.clone(), stall.clone())));
            }
        }
        // One that is tried again just now is of interest, too: it may fail once more.
        let round = &*round;
        self.failures.retain(|step, _| is_left(step, round) || self.jobs.has(step));
        self.last = Some(Arc::new(round.observed.clone()));
        // Catalogs that could not be read say nothing about the plan.
        if let Some(moves) = &round.plan.moves {
            self.held = round.held_plan();
            self.unmeasured = moves.unmeasured.iter().any(|group| round.observed.facts(*group).is_some());
            self.overtaken.clone_from(&moves.overtaken);
        }
    }
}

/// Why a step has ended that failed with `error`, if it was cancelled since `stall`: what the server says of a cancelled statement
/// is not what kept it.
fn why(error: act::Error, stall: Option<Stall>) -> act::Error {
    let is_end = |error: &pg::Error| error.is_cancelled() || error.is_out_of_reach();
    match (stall, error) {
        (Some(stall), act::Error::Database(error)) if is_end(&error) => act::Error::Stalled(stall),
        (_, error) => error,
    }
}

/// Whether `step` may begin by what `round` saw, or has.
fn is_asked_for(step: &Step, round: &Round) -> bool {
    let is_it = |one: &RunningMove| matches!(step, Step::MoveShard { shard_id, from, to } if (one.shard_id, one.from, one.to) == (*shard_id, *from, *to));
    round.plan.steps.contains(step)
        || round.plan.moves.as_ref().is_some_and(|moves| moves.running.iter().any(is_it))
}

/// Whether `step`, which has failed, is still to be done, now or later, by what `round` saw: how often it failed counts until
/// then, whatever goes first or holds it up meanwhile.
fn is_left(step: &Step, round: &Round) -> bool {
    // Who could not read the catalogs does not know.
    let Some(moves) = &round.plan.moves else { return true };
    if round.plan.steps.contains(step) {
        return true;
    }
    let kept = &round.observed.kept;
    match step {
        Step::MoveShard { shard_id, from, to } => {
            let is_it = |one: &RunningMove| (one.shard_id, one.from, one.to) == (*shard_id, *from, *to);
            step.number_in(&moves.plan).is_some() || moves.running.iter().any(is_it)
        }
        Step::SplitShard(split) => {
            kept.now.is_none() || kept.open().is_some_and(|act| act.id == split.action)
        }
        // Nothing is done about tables while a node is away.
        step if step.is_long() => {
            let open = |finding: &Finding| finding.kind == step.condition() && finding.holds != Holds::True;
            round.plan.findings.iter().any(open)
        }
        // One that is short is tried again as soon as it is asked for again.
        _ => false,
    }
}

#[cfg(test)]
mod tests;
