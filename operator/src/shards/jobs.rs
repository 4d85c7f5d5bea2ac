//! The steps that take long: they go on while rounds come and go.
//!
//! When a move has been made, the next ones begin at once, from a look of their own, and not only with the next round: a
//! rebalance of many small shards would be made of waiting.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::act;
use super::observed::Operation;
use super::round::{Carried, Handover, carry_out, following};
use super::sessions::Sessions;
use super::step::{Hold, Step};
use super::topology::Topology;
use super::wanted::Wanted;
use crate::names::Group;
use crate::pg::{Identity, Limits};

/// What came of a step that takes long.
pub type Ended = Result<Carried, act::Error>;
/// Tells the groups that have servers in Kubernetes now.
pub type Existing = Arc<dyn Fn() -> BoxFuture<'static, BTreeSet<Group>> + Send + Sync>;
/// Tells what the resource asks for now; `None` where nothing may be begun, or where it cannot be read.
pub type Present = Arc<dyn Fn() -> BoxFuture<'static, Option<Wanted>> + Send + Sync>;
/// Is called when a step has ended.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What long steps are carried out with when the round that found them is over.
#[derive(Clone)]
pub struct Job {
    /// Tells the groups that have servers now.
    pub existing: Existing,
    /// Is called when a step has ended.
    pub wake: Wake,
    /// Where the groups listen.
    pub topology: Topology,
    /// The operator's certificate.
    pub identity: Identity,
    /// What the round leaves.
    pub handover: Handover,
    /// Tells what is asked for now, before each step begins and before each look for the next: no round need have been made
    /// since somebody changed the resource.
    pub present: Present,
    /// Once it is cancelled nothing begins any more: this process ends, and with it go who looks after what moves and who wakes
    /// it up.
    pub stop: CancellationToken,
}

impl Job {
    /// The sessions for `step`, with what `others` have open.
    fn sessions(&self, step: &Step, others: Option<&Sessions>) -> Sessions {
        let own = Sessions::long(self.topology.clone(), self.identity.clone(), step.purpose());
        match others {
            Some(others) => own.going_on(others),
            None => own,
        }
    }

    async fn carry_out(&self, sessions: &Sessions, step: &Step, begins: impl FnOnce() + Send) -> Ended {
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { (self.existing)() };
        carry_out(&self.handover.brief(&ask), sessions, step, begins).await
    }

    /// The moves that can begin now.
    async fn following(&self, sessions: &Sessions) -> Vec<Step> {
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { (self.existing)() };
        following(&self.handover.brief(&ask), sessions).await
    }

    /// This, with what is asked for now; `None` where nothing may be begun.
    async fn now(mut self) -> Option<Self> {
        self.handover.ask_for((self.present)().await?);
        (!self.stop.is_cancelled()).then_some(self)
    }
}

/// The steps of one cluster that take long and are carried out by this process; cheap to clone.
#[derive(Clone, Default)]
pub struct Jobs(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    job: Option<Job>,
    under_way: Vec<UnderWay>,
    begun: Vec<Step>,
}

impl State {
    /// The moves that are being carried out, or about to be.
    fn moves(&self) -> usize {
        let moves = |one: &&UnderWay| one.step.hold() == Hold::Shared && !one.over && !one.task.is_finished();
        self.under_way.iter().filter(moves).count()
    }
}

struct UnderWay {
    step: Step,
    /// Whether it was carried out, and only what follows is still looked for.
    over: bool,
    task: JoinHandle<(Ended, Duration)>,
}

impl Jobs {
    /// Takes over what the last round knew; with `None` nothing begins any more.
    pub fn set(&self, job: Option<Job>) {
        self.state().job = job;
    }

    /// Begins steps, but for those that are under way: moves go together; anything else goes alone, and the lock sees to
    /// it. One that has ended begins again only after its result was taken. No more moves begin than may be made at the same time:
    /// where two end together, neither may have seen what the other began.
    pub fn start(&self, steps: &[Step]) {
        self.go_on(steps, None);
    }

    /// As [`Jobs::start`]; the first that begins goes on with what `open` has open.
    fn go_on(&self, steps: &[Step], open: Option<&Sessions>) {
        let mut state = self.state();
        let Some(job) = state.job.clone().filter(|job| !job.stop.is_cancelled()) else { return };
        let mut open = open;
        for step in steps {
            let under_way = state.under_way.iter().any(|one| one.step == *step);
            let is_full = step.hold() == Hold::Shared && state.moves() >= job.handover.parallel_moves();
            if !under_way && !is_full && !job.handover.puts_off(step) {
                let sessions = job.sessions(step, open.take());
                let task = tokio::spawn(self.clone().run(job.clone(), sessions, step.clone()));
                state.under_way.push(UnderWay { step: step.clone(), over: false, task });
            }
        }
    }

    /// Carries out `step`, and has the next moves begin.
    fn run(self, job: Job, sessions: Sessions, step: Step) -> BoxFuture<'static, (Ended, Duration)> {
        async move {
            let (wake, begun) = (Arc::clone(&job.wake), Instant::now());
            let ended = match job.now().await {
                Some(job) => {
                    let begins = || self.state().begun.push(step.clone());
                    job.carry_out(&sessions, &step, begins).await
                }
                None => Ok(Carried::Needless),
            };
            let lasted = begun.elapsed();
            for one in self.state().under_way.iter_mut().filter(|one| one.step == step) {
                one.over = true;
            }
            if step.hold() == Hold::Shared && matches!(ended, Ok(Carried::Out)) {
                // What was asked for may have changed while it was carried out.
                let newest = self.state().job.clone();
                if let Some(newest) = OptionFuture::from(newest.map(Job::now)).await.flatten() {
                    let looking = Sessions::new(newest.topology.clone(), newest.identity.clone());
                    let looking = looking.going_on(&sessions);
                    drop(sessions);
                    self.go_on(&newest.following(&looking).await, Some(&looking));
                }
            }
            wake();
            (ended, lasted)
        }
        .boxed()
    }

    /// Whether `step` is being carried out, or its result was not taken yet.
    #[must_use]
    pub fn has(&self, step: &Step) -> bool {
        self.state().under_way.iter().any(|one| one.step == *step)
    }

    /// Whether the session that carries out `operation` is one of this process: of a step as in [`Jobs::has`].
    #[must_use]
    pub fn is_own(&self, operation: &Operation) -> bool {
        let is_its = |one: &UnderWay| Limits::long(&one.step.purpose()).application == operation.application;
        self.state().under_way.iter().any(is_its)
    }

    /// Whether no step is being carried out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state().under_way.iter().all(|one| one.task.is_finished())
    }

    /// The steps that are being carried out, or about to be.
    #[must_use]
    pub fn under_way(&self) -> Vec<Step> {
        let state = self.state();
        let under_way = state.under_way.iter().filter(|one| !one.task.is_finished());
        under_way.map(|one| one.step.clone()).collect()
    }

    /// Takes the list of the steps that have begun, in order: those that were still asked for under the lock.
    #[must_use]
    pub fn begun(&self) -> Vec<Step> {
        std::mem::take(&mut self.state().begun)
    }

    /// Takes the results of the steps that have ended, in the order in which they began, and how long each lasted. One that has
    /// failed is put off until the next round says how long: what follows another step meanwhile does not begin with it.
    #[must_use]
    pub fn ended(&self) -> Vec<(Step, Ended, Duration)> {
        let mut state = self.state();
        let (over, under_way): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.under_way).into_iter().partition(|one| one.task.is_finished());
        state.under_way = under_way;
        let result = |one: UnderWay| {
            let (ended, lasted) = match one.task.now_or_never()? {
                Ok(ended) => ended,
                // It is put off like any other that fails.
                Err(panic) => {
                    (Err(act::Error::Moved(format!("the operator has a bug: {panic}"))), Duration::ZERO)
                }
            };
            Some((one.step, ended, lasted))
        };
        let results: Vec<(Step, Ended, Duration)> = over.into_iter().filter_map(result).collect();
        if let Some(job) = &mut state.job {
            for (step, ended, _) in &results {
                if let Err(error) = ended {
                    job.handover.put_off(step, error);
                }
            }
        }
        results
    }

    /// A panic elsewhere leaves nothing half remembered, so its poison is ignored.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::future::ready;

    use super::*;
    use crate::pg::Endpoint;
    use crate::shards::findings::tests::wanted;
    use crate::shards::round::tests::{of, uneven};

    /// A job of which the database is out of reach, and the move that it is for.
    fn job() -> (Job, Step) {
        let authority = testbed::certificates::Authority::new().unwrap();
        let own = authority.client("dialog_operator").unwrap();
        let pem = [&authority.certificate(), &own.certificate, &own.key].map(|text| text.as_bytes().to_vec());
        let round = of(&wanted(), &uneven());
        let step = round.plan.steps[0].clone();
        assert!(matches!(step, Step::MoveShard { .. }), "{step}");
        let job = Job {
            existing: Arc::new(|| ready(BTreeSet::new()).boxed()),
            wake: Arc::new(|| {}),
            // Nobody listens there.
            topology: [(Group::Coordinator, Endpoint::new("localhost", 1))].into_iter().collect(),
            identity: Identity::from_pem(&pem[0], &pem[1], &pem[2]).unwrap(),
            handover: Handover::of(&wanted(), &round),
            present: Arc::new(|| ready(Some(wanted())).boxed()),
            stop: CancellationToken::new(),
        };
        (job, step)
    }

    /// What has come of the steps under way, once one has ended.
    async fn ended(jobs: &Jobs) -> Vec<(Step, Ended, Duration)> {
        let ended = tokio::time::timeout(Duration::from_mins(1), async {
            loop {
                let ended = jobs.ended();
                if !ended.is_empty() {
                    return ended;
                }
                tokio::task::yield_now().await;
            }
        });
        ended.await.expect("a port at which nobody listens answers at once")
    }

    #[tokio::test]
    async fn what_has_just_failed_does_not_follow_another_before_the_next_round() {
        let (job, step) = job();
        let jobs = Jobs::default();
        jobs.set(Some(job.clone()));
        jobs.start(std::slice::from_ref(&step));
        let ended = ended(&jobs).await;
        assert!(matches!(&ended[..], [(one, Err(_), _)] if *one == step), "{ended:?}");
        // Another one has ended, and this would be next: the round that has its result has not come to its end.
        jobs.start(std::slice::from_ref(&step));
        assert!(!jobs.has(&step), "it has just failed");
        jobs.set(Some(job));
        jobs.start(std::slice::from_ref(&step));
        assert!(jobs.has(&step), "the round says that it may be tried again");
    }

    #[tokio::test]
    async fn no_more_moves_begin_than_may_be_made_at_the_same_time() {
        let (job, first) = job();
        let Step::MoveShard { shard_id, from, to } = first else { panic!("{first}") };
        let other = |more| Step::MoveShard { shard_id: shard_id + more, from, to };
        let jobs = Jobs::default();
        let most = job.handover.parallel_moves();
        jobs.set(Some(job));
        let all: Vec<Step> = (0..).map(other).take(most + 1).collect();
        let (last, others) = all.split_last().unwrap();
        jobs.start(others);
        jobs.start(std::slice::from_ref(last));
        assert!(others.iter().all(|step| jobs.has(step)) && !jobs.has(last));
        ended(&jobs).await;
        jobs.start(std::slice::from_ref(last));
        assert!(jobs.has(last), "one has ended");
    }

    #[tokio::test]
    async fn once_this_process_is_to_end_nothing_begins_that_takes_long() {
        let (mut job, step) = job();
        let token = job.stop.clone();
        // It is told while the step is about to begin.
        job.present = Arc::new(move || {
            token.cancel();
            ready(Some(wanted())).boxed()
        });
        let jobs = Jobs::default();
        jobs.set(Some(job));
        jobs.start(std::slice::from_ref(&step));
        let ended = ended(&jobs).await;
        assert!(matches!(&ended[..], [(one, Ok(Carried::Needless), _)] if *one == step), "{ended:?}");
        jobs.start(std::slice::from_ref(&step));
        assert!(!jobs.has(&step), "nor does what a round or another step would begin after that");
    }
}
