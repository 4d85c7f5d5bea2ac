//! Operators that are killed between any two statements of a step.

use std::collections::BTreeSet;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::names::Group;
use dialog_operator::shards::act::perform;
use dialog_operator::shards::lock;
use dialog_operator::shards::observed::Stall;
use dialog_operator::shards::round::{Brief, Round, round};
use dialog_operator::shards::sessions::{Door, Sessions};
use dialog_operator::shards::step::{Hold, Step};
use dialog_operator::shards::wanted::Wanted;
use futures::future::{BoxFuture, ready};

use crate::world::{World, brief};

/// Longest time that the steps of one [`Killer::settle`] may take.
const LIMIT: Duration = Duration::from_mins(10);

/// Kills operators, and remembers in which steps.
#[derive(Default)]
pub struct Killer {
    /// The kinds of steps in which operators were killed after ever more statements, until one came through.
    pub kinds: BTreeSet<&'static str>,
    /// Operators that were killed.
    pub killed: usize,
    /// What the operators know of moves that do not get on.
    pub stalls: Vec<Stall>,
}

impl Killer {
    /// Lets operators work, each at one step, until nothing is left to do or to wait for. The first step of each kind is
    /// begun by as many operators as it takes until one of them is quick enough.
    pub async fn settle(&mut self, world: &World, wanted: &Wanted) -> Result<Vec<Step>> {
        let (started, mut done) = (Instant::now(), Vec::new());
        loop {
            let round = self.look(world, wanted).await?;
            ensure!(started.elapsed() < LIMIT, "not at rest: {:?}, {:?}", round.plan.steps, round.plan.waits);
            if let Some(step) = round.plan.steps.first() {
                self.carry_out(world, wanted, step).await?;
                done.push(step.clone());
            } else if round.is_settled() {
                return Ok(done);
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// What an operator sees and plans that does nothing.
    pub async fn look(&self, world: &World, wanted: &Wanted) -> Result<Round> {
        let existing = world.existing();
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
        let brief = Brief { most: 0, stalls: &self.stalls, ..brief(wanted, &ask) };
        Ok(round(&brief, &world.sessions()?).await)
    }

    /// Has one step done.
    pub async fn carry_out(&mut self, world: &World, wanted: &Wanted, step: &Step) -> Result<()> {
        let is_new = self.kinds.insert(step.kind());
        for statements in 0.. {
            let sessions = world.long_sessions(step)?;
            wait_for_lock(step, &sessions).await?;
            // What the last operator had begun may have come to its end.
            if is_new && !self.look(world, wanted).await?.plan.steps.contains(step) {
                return Ok(());
            }
            let limit = if is_new { statements } else { usize::MAX };
            match killed_after(perform(step, &sessions), limit).await {
                Some(done) => return done.with_context(|| format!("could not {step}")),
                None => self.killed += 1,
            }
        }
        Ok(())
    }
}

/// Takes the topology lock as the step wants it. It is given back when the session ends.
async fn wait_for_lock(step: &Step, sessions: &Sessions) -> Result<()> {
    loop {
        if step.hold() == Hold::Nothing {
            return Ok(());
        }
        let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
        let holder = match step.hold() {
            Hold::Shared => lock::try_share(&session).await?,
            Hold::Alone | Hold::Nothing => lock::try_acquire(&session).await?,
        };
        if holder.is_none() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What `future` gives if it waits no more than `waits` times; it is dropped otherwise.
pub async fn killed_after<T>(future: impl Future<Output = T>, waits: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = waits;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}
