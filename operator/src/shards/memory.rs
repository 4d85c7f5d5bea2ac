//! What is remembered of a cluster between rounds: nothing that a decision to delete or to move is made from alone.

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
use super::observed::{Dropped, Observed, RunningMove};
use super::rebalance::MovePlan;
use super::round::{Carried, Failure, Round};
use super::sessions::Sessions;
use super::status::Pace;
use super::step::Step;
use super::supervise::{Splits, Spreads, Watch};
use crate::condition::{Finding, Holds};

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
    /// Those that were told of and that no status counts yet.
    uncounted: Vec<Step>,
    /// The steps that take long and failed, until they are tried again.
    failures: BTreeMap<Step, Setback>,
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
    /// Those that were told of earlier and that no status counts yet: until [`Memory::counted`], as it may not be written.
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
            match ended {
                Ok(Carried::Out) => self.done.push((step, lasted)),
                Ok(Carried::Needless) => debug!(%step, "not asked for any more"),
                Ok(Carried::Held(holder)) => {
                    debug!(%step, %holder, "put off");
                    self.locked = Some((step, holder));
                }
                Err(error) => {
                    let failures = self.put_off(&step, &error);
                    results.failed.push((step, error, failures));
                }
            }
        }
        results.done.clone_from(&self.done);
        results.uncounted.clone_from(&self.uncounted);
        results
    }

    /// Notes that the long steps that were done are in log and Events: they are not told of again.
    pub fn told(&mut self) {
        self.uncounted.extend(self.done.drain(..).map(|(step, _)| step));
    }

    /// Forgets those that were told of: a status that counts them was written.
    pub fn counted(&mut self) {
        self.uncounted.clear();
    }

    /// How long nothing was done, and nothing has gone on.
    pub(super) fn idle(&self) -> Duration {
        self.idle.map_or(Duration::ZERO, |since| since.elapsed())
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
        let not_before = Instant::now() + self.retries.delay(count);
        self.failures.insert(step.clone(), Setback { count, not_before, failure: error.into() });
        count
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
            if let Step::CancelMove { pid, .. } = step {
                self.watch.ended(*pid, now);
                self.splits.ended(*pid, now);
                self.spreads.ended(*pid, now);
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
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::api::DialogClusterStatus;
    use crate::names::Group;
    use crate::shards::findings::tests::{catalog, topology, wanted};
    use crate::shards::observed::{Node, Operation};
    use crate::shards::rebalance::Move;
    use crate::shards::round::tests::{of, place, uneven};
    use crate::shards::status::status;

    fn step_of(next: &Move) -> Step {
        Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to }
    }

    /// Has `memory` take in a round, and tells how often `step` has failed when it does so once more after it.
    fn failed_again(memory: &mut Memory, observed: &Observed, step: &Step) -> u32 {
        memory.remember(&mut of(&wanted(), observed));
        memory.put_off(step, &act::Error::Moved("once more".to_owned()))
    }

    #[test]
    fn a_move_is_of_the_plan_by_which_it_was_begun_whatever_is_planned_when_it_ends() {
        let whole = of(&wanted(), &uneven()).held_plan().unwrap();
        let step = step_of(&whole.moves[1]);
        let rest = MovePlan { moves: whole.moves[2..].to_vec(), ..whole.clone() };
        let place = Place { hash: whole.hash.clone(), number: whole.moves[1].number };
        let mut memory = Memory::default();
        assert_eq!(memory.begin(&step, Some(&whole)), Some(place.clone()));
        assert_eq!(memory.end(&step, &[&rest]), Some(place.clone()));
        assert_eq!(memory.end(&step, &[&rest]), None, "it has ended");
        // Somebody else has begun it.
        assert_eq!(memory.end(&step, &[&whole]), Some(place));
        let other = Step::CleanUp;
        assert_eq!((memory.begin(&other, Some(&whole)), memory.begun.len()), (None, 0));
    }

    #[test]
    fn a_move_counts_until_the_status_that_counts_it_was_written() {
        let mut observed = uneven();
        let whole = of(&wanted(), &observed).held_plan().unwrap();
        let [first, second, ..] = whole.moves[..] else { panic!("{whole}") };
        observed.held = Some(whole);
        let mut memory = Memory::default();
        let mut written = DialogClusterStatus::default();
        let mut told = Vec::new();
        // A round of the controller: what it tells of and counts, if the status can be written after it.
        let mut round = |made: Option<Move>, is_written: bool| {
            if let Some(made) = made {
                place(&mut observed, made.shard_id, 1);
                memory.done.push((step_of(&made), Duration::from_secs(3)));
            }
            let Results { done, uncounted, .. } = memory.take_results();
            told.extend(done.iter().map(|(step, _)| step.clone()));
            memory.told();
            let mut round = of(&wanted(), &observed);
            round.performed.extend(done.into_iter().map(|(step, _)| step).chain(uncounted));
            let now = Timestamp::from_second(0).unwrap();
            let status = status(&wanted(), &topology(), &round, Some(&written), now);
            let moves_done = status.rebalance.as_ref().unwrap().moves_done;
            if is_written {
                memory.counted();
                written = status;
            }
            moves_done
        };
        assert_eq!(round(Some(first), true), 1);
        assert_eq!(round(Some(second), false), 2);
        assert_eq!(round(None, false), 2, "nobody has written it");
        assert_eq!(round(None, true), 2);
        assert_eq!(round(None, true), 2, "not twice");
        assert_eq!(told, [step_of(&first), step_of(&second)], "each once");
    }

    #[test]
    fn how_often_a_move_failed_counts_until_it_was_made_or_is_not_wanted() {
        let mut observed = uneven();
        let whole = of(&wanted(), &observed).held_plan().unwrap();
        let (first, second) = (whole.moves[0], whole.moves[1]);
        let failed = step_of(&first);
        observed.held = Some(whole);
        let mut memory = Memory::default();
        assert_eq!(failed_again(&mut memory, &observed, &failed), 1);

        // One at a time: while another is made, none is to begin.
        let mut during = observed.clone();
        let application = Operation::name_of(second.shard_id, second.from, second.to);
        catalog(&mut during).operations = vec![Operation { pid: 7, application }];
        assert!(!of(&wanted(), &during).plan.steps.contains(&failed));
        assert_eq!(failed_again(&mut memory, &during, &failed), 2);
        let put_off = memory.deferred();
        assert!(put_off.iter().any(|(step, _)| *step == failed), "{put_off:?}");
        // Nor while a node is away for a moment, or the catalogs cannot be read.
        let mut away = observed.clone();
        away.nodes.insert(Group::Worker(0), Node::Down("connection refused".to_owned()));
        assert!(!of(&wanted(), &away).plan.steps.contains(&failed));
        assert_eq!(failed_again(&mut memory, &away, &failed), 3);
        let unread = Observed { catalog: None, ..observed.clone() };
        assert_eq!(failed_again(&mut memory, &unread, &failed), 4);

        let mut made = observed.clone();
        place(&mut made, first.shard_id, 1);
        assert_eq!(failed_again(&mut memory, &made, &failed), 1, "it was made");
        assert_eq!(failed_again(&mut memory, &observed, &failed), 2);
        let unwanted = crate::shards::findings::tests::at_rest();
        memory.remember(&mut of(&wanted(), &unwanted));
        assert!(memory.failures.is_empty(), "nobody wants it any more");
    }
}
