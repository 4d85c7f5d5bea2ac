//! Operators that are killed, or whose sessions end, between any two statements of a step.

use std::collections::BTreeSet;
use std::pin::{Pin, pin};
use std::process::Command;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dialog_operator::names::Group;
use dialog_operator::pg::APPLICATION;
use dialog_operator::shards::act::{Error, perform};
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

/// Longest time that a step may go on after its sessions have ended.
const TO_FAIL: Duration = Duration::from_mins(1);

/// What befalls who performs a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// The operator is killed, and the servers find out.
    #[default]
    Killed,
    /// The servers end its sessions, and the operator finds out.
    Ended,
}

/// Kills operators or ends their sessions, and remembers in which steps.
#[derive(Default)]
pub struct Killer {
    /// What it does.
    pub fault: Fault,
    /// The kinds of steps in which operators were interrupted after ever more statements, until one came through.
    pub kinds: BTreeSet<&'static str>,
    /// Those in which one was interrupted.
    pub hit: BTreeSet<&'static str>,
    /// Operators that were interrupted.
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
            let done = match self.fault {
                Fault::Ended if is_new => ended_after(world, step, &sessions, limit).await?,
                Fault::Ended | Fault::Killed => killed_after(perform(step, &sessions), limit).await,
            };
            if let Some(done) = done {
                return done.with_context(|| format!("could not {step}"));
            }
            self.killed += 1;
            self.hit.insert(step.kind());
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

/// What comes of a step whose sessions are ended after it has waited `waits` times; `None` if it fails for that.
async fn ended_after(
    world: &World,
    step: &Step,
    sessions: &Sessions,
    waits: usize,
) -> Result<Option<Result<(), Error>>> {
    let mut performing = pin!(perform(step, sessions));
    if waits == 0 {
        // Whatever it uses first is there and does nothing, so that what it is asked to is not done when it ends.
        for group in world.existing() {
            for door in [Door::Dialog, Door::Server, Door::Bootstrap] {
                // Not every door is there yet.
                let _ = sessions.session(group, door).await;
            }
        }
        signal("-STOP", &sessions_of(world, step, "pid").await?)?;
    }
    if let Some(done) = within(performing.as_mut(), waits).await {
        return Ok(Some(done));
    }
    let ended = sessions_of(world, step, "pid, pg_terminate_backend(pid)").await?;
    if waits == 0 {
        signal("-CONT", &ended)?;
    }
    let done = tokio::time::timeout(TO_FAIL, performing).await;
    let done = done.with_context(|| format!("sessions have ended, and not the step: {step}"))?;
    ensure!(waits > 0 || done.is_err(), "it was done by sessions that had ended: {step}");
    Ok(done.is_ok().then_some(done))
}

/// The server processes of the operator that performs `step`, and of nobody else who is at work beside it. `what` is asked of
/// each, the process first.
async fn sessions_of(world: &World, step: &Step, what: &str) -> Result<Vec<i32>> {
    let ask = format!(
        "SELECT {what} FROM pg_stat_activity WHERE application_name IN ($1, left($1 || ': ' || $2, 63))"
    );
    let mut pids = Vec::new();
    for group in world.existing() {
        let client = world.bootstrap(group).await?;
        let rows = client.query(&ask, &[&APPLICATION, &step.purpose()]).await?;
        pids.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
    }
    Ok(pids)
}

/// Sends a signal to processes. One that has gone meanwhile needs none.
fn signal(name: &str, pids: &[i32]) -> Result<()> {
    for pid in pids {
        Command::new("kill").arg(name).arg(pid.to_string()).output().context("run kill")?;
    }
    Ok(())
}

/// What `future` gives if it waits no more than `waits` times; it is dropped otherwise.
pub async fn killed_after<T>(future: impl Future<Output = T>, waits: usize) -> Option<T> {
    within(pin!(future), waits).await
}

/// What `future` gives if it waits no more than `waits` times.
async fn within<T>(mut future: Pin<&mut impl Future<Output = T>>, waits: usize) -> Option<T> {
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
