//! An operator at work: rounds as its controller makes them, with what that remembers, and long steps that go on between them. It
//! makes a round whenever a test asks for one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::Heat;
use dialog_operator::shards::jobs::{Existing, Job, Jobs, Present};
use dialog_operator::shards::memory::{Memory, Place, Results};
use dialog_operator::shards::observe::{Sizes, splits, spreads, stall};
use dialog_operator::shards::round::{Brief, Handover, Round, round};
use dialog_operator::shards::sessions::Sessions;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::supervise::Entered;
use dialog_operator::shards::wanted::Wanted;
use futures::future::{BoxFuture, ready};
use tokio_util::sync::CancellationToken;

use crate::world::{World, brief, eventually};

/// How long a step that failed is put off.
const RETRY: Duration = Duration::from_secs(2);

/// As long as nobody asks for anything else.
fn always(wanted: &Wanted) -> Present {
    let wanted = wanted.clone();
    Arc::new(move || Box::pin(ready(Some(wanted.clone()))))
}

/// One operator, with what it remembers.
pub struct Operator {
    /// The long steps under way.
    pub jobs: Jobs,
    /// What was done, in order.
    pub done: Vec<Step>,
    /// What was begun and failed, in order.
    pub failed: Vec<Step>,
    /// Why the last of them failed, for programs and for people.
    pub failure: Option<(&'static str, String)>,
    /// Whether nothing may be begun.
    pub paused: bool,
    /// Whether shards are measured as rarely as the controller does it, and not in every round, which spares a test the wait.
    pub measures_rarely: bool,
    /// What is known of load.
    pub heat: Option<Heat>,
    /// Tells what is asked for before a step begins; `None` where it is what the last round was given.
    pub present: Option<Present>,
    /// What was begun of which plan, in order.
    pub begun: Vec<(Step, Option<Place>)>,
    /// The phases of moves that take long, in order.
    pub entered: Vec<Entered>,
    /// The phases in which looks saw what was cut or moved, and when, in order.
    pub phases: Vec<(Instant, String)>,
    memory: Memory,
}

impl Default for Operator {
    fn default() -> Self {
        let memory = Memory::trying_again_after(RETRY);
        let (done, failed) = (Vec::new(), Vec::new());
        Self {
            jobs: memory.jobs.clone(),
            done,
            failed,
            failure: None,
            paused: false,
            measures_rarely: false,
            heat: None,
            present: None,
            begun: Vec::new(),
            entered: Vec::new(),
            phases: Vec::new(),
            memory,
        }
    }
}

impl Operator {
    /// One round.
    pub async fn round(&mut self, world: &World, wanted: &Wanted) -> Result<Round> {
        self.take_results();
        let sessions = world.sessions()?;
        let mut stalls = Vec::new();
        for stalled in self.memory.watch.stalled(wanted.rebalance.stall_timeout) {
            stalls.extend(stall::diagnose(&sessions, &stalled).await);
        }
        for stalled in self.memory.splits.stalled(wanted.rebalance.stall_timeout) {
            stalls.extend(splits::diagnose(&sessions, &stalled).await);
        }
        for stalled in self.memory.spreads.stalled(wanted.rebalance.stall_timeout) {
            stalls.extend(spreads::diagnose(&sessions, &stalled).await);
        }
        let groups = world.existing();
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(groups.clone())) };
        let last = self.memory.last.clone();
        let sizes = if self.measures_rarely { self.memory.sizes() } else { Sizes::Measure };
        let mut round = round(
            &Brief {
                sizes,
                before: last.as_deref(),
                paused: self.paused,
                deferred: &self.memory.deferred(),
                failed_moves: &self.memory.failed_moves(),
                stalls: &stalls,
                held: self.memory.held.clone(),
                heat: self.heat.as_ref(),
                ..brief(wanted, &ask)
            },
            &sessions,
        )
        .await;
        if let Some(catalog) = &round.observed.catalog {
            let splits = catalog.splits.iter().map(|split| split.phase);
            let moves = catalog.progress.iter().map(|progress| progress.phase.as_str());
            let seen = Instant::now();
            self.phases.extend(splits.chain(moves).map(|phase| (seen, phase.to_owned())));
        }
        if sizes == Sizes::Measure {
            self.memory.measured(&round.observed);
        }
        self.memory.remember(&mut round);
        self.memory.counted(&round);
        self.entered.extend(self.memory.watch.entered());
        for (step, error) in &round.partly {
            self.memory.postpone(step, error);
        }
        self.done.extend(round.performed.iter().cloned());
        let (topology, identity) = (world.topology(), world.identity("dialog-operator")?);
        self.memory.adopt(&round.observed, || Sessions::new(topology.clone(), identity.clone()));
        let groups = world.existing();
        let existing: Existing = Arc::new(move || Box::pin(ready(groups.clone())));
        self.jobs.set((!self.paused).then_some(Job {
            existing,
            wake: Arc::new(|| {}),
            topology,
            identity,
            handover: Handover::of(wanted, &round),
            present: self.present.clone().unwrap_or_else(|| always(wanted)),
            stop: CancellationToken::new(),
        }));
        self.jobs.start(&round.long);
        Ok(round)
    }

    /// Looks and remembers, and does nothing.
    pub async fn look(&mut self, world: &World, wanted: &Wanted) -> Result<()> {
        self.memory.last = Some(Arc::new(world.round_of(wanted, 0).await?.observed));
        Ok(())
    }

    /// Rounds until nothing is left to do, for `limit` at most.
    pub async fn settle(&mut self, world: &World, wanted: &Wanted, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let round = self.round(world, wanted).await?;
            if round.is_settled() && round.long.is_empty() && self.jobs.is_idle() {
                // The last step may have ended after this round took what had come of those before it.
                self.take_results();
                return Ok(());
            }
            ensure!(started.elapsed() < limit, "not at rest: {:?}, {:?}", round.plan.steps, round.plan.waits);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Rounds until a session on `group`'s server waits for a lock, and with it the long step that this operator has begun.
    pub async fn until_held(&mut self, world: &World, wanted: &Wanted, group: Group) -> Result<()> {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("a session waits for a lock", async || {
            self.round(world, wanted).await?;
            ensure!(self.failed.is_empty(), "it failed by itself");
            Ok(world.number(group, waits).await? > 0)
        })
        .await
    }

    /// Takes over what has come of long steps.
    pub fn take_results(&mut self) {
        let plan = self.memory.held.clone();
        let Results { done, failed, .. } = self.memory.take_results();
        self.memory.told();
        for step in self.jobs.begun() {
            let place = self.memory.begin(&step, plan.as_ref());
            self.begun.push((step, place));
        }
        self.done.extend(done.into_iter().map(|(step, _)| step));
        for (step, error, _) in failed {
            println!("could not {step}: {error}");
            self.failure = Some((error.reason(), error.to_string()));
            self.failed.push(step);
        }
    }
}
