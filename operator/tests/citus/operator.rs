//! An operator at work: rounds much as its controller makes them, and long steps that go on between them. It makes a round
//! whenever a test asks for one, and puts off what failed for the same short time each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::Heat;
use dialog_operator::shards::jobs::{Existing, Job, Jobs, Present};
use dialog_operator::shards::observe::{splits, stall};
use dialog_operator::shards::observed::Observed;
use dialog_operator::shards::rebalance::MovePlan;
use dialog_operator::shards::round::{Brief, Carried, Failure, Handover, Round, round};
use dialog_operator::shards::step::Step;
use dialog_operator::shards::supervise::{Splits, Watch};
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
#[derive(Default)]
pub struct Operator {
    /// The long steps under way.
    pub jobs: Jobs,
    /// What was done, in order.
    pub done: Vec<Step>,
    /// What was begun and failed, in order.
    pub failed: Vec<Step>,
    /// Whether nothing may be begun.
    pub paused: bool,
    /// What is known of load.
    pub heat: Option<Heat>,
    /// Tells what is asked for before a step begins; `None` where it is what the last round was given.
    pub present: Option<Present>,
    watch: Watch,
    splits: Splits,
    before: Option<Observed>,
    held: Option<MovePlan>,
    put_off: BTreeMap<Step, (Instant, Failure)>,
}

impl Operator {
    /// One round.
    pub async fn round(&mut self, world: &World, wanted: &Wanted) -> Result<Round> {
        self.take_results();
        let sessions = world.sessions()?;
        let mut stalls = Vec::new();
        for stalled in self.watch.stalled(wanted.rebalance.stall_timeout) {
            stalls.extend(stall::diagnose(&sessions, &stalled).await);
        }
        for stalled in self.splits.stalled(wanted.rebalance.stall_timeout) {
            stalls.extend(splits::diagnose(&sessions, &stalled).await);
        }
        let groups = world.existing();
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(groups.clone())) };
        self.put_off.retain(|_, (since, _)| since.elapsed() < RETRY);
        let deferred: Vec<(Step, Failure)> =
            self.put_off.iter().map(|(step, (_, error))| (step.clone(), error.clone())).collect();
        let round = round(
            &Brief {
                before: self.before.as_ref(),
                paused: self.paused,
                deferred: &deferred,
                stalls: &stalls,
                held: self.held.clone(),
                heat: self.heat.as_ref(),
                ..brief(wanted, &ask)
            },
            &sessions,
        )
        .await;
        let now = Instant::now();
        self.watch.look(round.observed.catalog.as_ref(), now);
        self.splits.look(round.observed.catalog.as_ref(), now);
        for step in &round.performed {
            if let Step::CancelMove { pid, .. } = step {
                self.watch.ended(*pid, now);
                self.splits.ended(*pid, now);
            }
        }
        for (step, error) in &round.partly {
            self.put_off.insert(step.clone(), (Instant::now(), Failure::from(error)));
        }
        self.done.extend(round.performed.iter().cloned());
        self.before = Some(round.observed.clone());
        self.held = round.held_plan();
        let groups = world.existing();
        let existing: Existing = Arc::new(move || Box::pin(ready(groups.clone())));
        self.jobs.set((!self.paused).then_some(Job {
            existing,
            wake: Arc::new(|| {}),
            topology: world.topology(),
            identity: world.identity("dialog-operator")?,
            handover: Handover::of(wanted, &round),
            present: self.present.clone().unwrap_or_else(|| always(wanted)),
            stop: CancellationToken::new(),
        }));
        self.jobs.start(&round.long);
        Ok(round)
    }

    /// Looks and remembers, and does nothing.
    pub async fn look(&mut self, world: &World, wanted: &Wanted) -> Result<()> {
        self.before = Some(world.round_of(wanted, 0).await?.observed);
        Ok(())
    }

    /// Rounds until nothing is left to do, for `limit` at most.
    pub async fn settle(&mut self, world: &World, wanted: &Wanted, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let round = self.round(world, wanted).await?;
            if round.is_settled() && round.long.is_empty() {
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
        for (step, ended) in self.jobs.ended() {
            match ended {
                Ok(Carried::Out) => self.done.push(step),
                Ok(Carried::Needless | Carried::Held(_)) => {}
                Err(error) => {
                    println!("could not {step}: {error}");
                    self.put_off.insert(step.clone(), (Instant::now(), Failure::from(&error)));
                    self.failed.push(step);
                }
            }
        }
    }
}
