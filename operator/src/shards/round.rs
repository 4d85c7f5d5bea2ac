//! One round of the controller: observe, plan, act, one step at a time and each from a fresh look.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::act::{self, perform};
use super::lock::{self, Holder};
use super::observe::{Sizes, observe};
use super::observed::Observed;
use super::plan::{Plan, plan};
use super::sessions::{Door, Sessions};
use super::step::Step;
use super::wanted::Wanted;
use crate::condition::{Finding, SCHEMA_DISTRIBUTED};
use crate::names::Group;
use crate::pg::{self, Session};

/// How often the lock is taken in one round: again only where the session that held it broke.
const ATTEMPTS: u32 = 3;

/// What became of a round.
#[derive(Debug)]
pub struct Round {
    /// What was seen last.
    pub observed: Observed,
    /// What was left to do then.
    pub plan: Plan,
    /// What was done, in order.
    pub performed: Vec<Step>,
    /// What could not be done, and why.
    pub failed: Vec<(Step, act::Error)>,
    /// The step that had to wait for somebody else's change, and whose.
    pub held: Option<(Step, Holder)>,
    /// The step that is next and takes long: it is for [`carry_out`].
    pub long: Option<Step>,
}

impl Round {
    /// Whether nothing is left to do and nothing is waited for.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.plan.steps.is_empty() && self.plan.waits.is_empty()
    }

    /// The conditions, with what could not be done among them.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = self.plan.findings.clone();
        let mut say = |kind: &'static str, reason, message: String, anyway: bool| {
            for finding in findings.iter_mut().filter(|finding| finding.kind == kind) {
                if anyway || finding.holds != crate::condition::Holds::True {
                    *finding = Finding::new(kind, false, reason, message.clone());
                }
            }
        };
        if let Some((step, holder)) = &self.held {
            say(step.condition(), "TopologyLocked", format!("waiting to {step}: {holder}"), false);
        }
        // The first failure is the one that the others may follow from.
        for (step, error) in self.failed.iter().rev() {
            say(step.condition(), "StepFailed", format!("could not {step}: {error}"), true);
        }
        findings
    }
}

/// Observes, plans and acts until nothing more can be done now, or `most` steps are done. `existing` are the groups that
/// have servers in Kubernetes.
pub async fn round(
    wanted: &Wanted,
    existing: &BTreeSet<Group>,
    sessions: &Sessions,
    sizes: Sizes,
    most: usize,
) -> Round {
    let mut observed = observe(sessions, wanted, sizes).await;
    observed.existing.clone_from(existing);
    let plan = plan(wanted, sessions.topology(), &observed);
    let mut round =
        Round { observed, plan, performed: Vec::new(), failed: Vec::new(), held: None, long: None };
    let mut lock: Option<Arc<Session>> = None;
    let mut attempts = 0;
    while round.performed.len() < most
        && attempts < ATTEMPTS
        && let Some(step) = next(&round)
    {
        if !step.precedes_lock() && !still_holds(lock.as_ref(), sessions).await {
            attempts += 1;
            match acquire(sessions).await {
                Ok(Ok(session)) => {
                    lock = Some(session);
                    // What was seen without the lock may have been changed by whoever held it.
                    look_again(&mut round, wanted, sessions, Sizes::Skip).await;
                }
                Ok(Err(holder)) => {
                    round.held = Some((step, holder));
                    break;
                }
                Err(error) => {
                    round.failed.push((step, error.into()));
                    break;
                }
            }
            continue;
        }
        if step.is_long() {
            round.long = Some(step);
            break;
        }
        // Measuring asks for every shard's files: not again in this round, unless there are new ones.
        let again = if step.makes_shards() { Sizes::Measure } else { Sizes::Skip };
        match perform(&step, sessions).await {
            Ok(()) => round.performed.push(step),
            Err(error) => round.failed.push((step, error)),
        }
        look_again(&mut round, wanted, sessions, again).await;
    }
    if let Some(session) = lock {
        give_back(&session, sessions).await;
    }
    round
}

/// Performs one step that takes long, in sessions made for it, if it is still what the plan says under the lock.
///
/// Returns who holds the topology lock if it was not free.
///
/// # Errors
/// When the database refuses.
pub async fn carry_out(
    wanted: &Wanted,
    sessions: &Sessions,
    step: &Step,
) -> Result<Option<Holder>, act::Error> {
    let session = match acquire(sessions).await? {
        Ok(session) => session,
        Err(holder) => return Ok(Some(holder)),
    };
    let observed = observe(sessions, wanted, Sizes::Skip).await;
    if plan(wanted, sessions.topology(), &observed).steps.contains(step) {
        perform(step, sessions).await?;
    }
    give_back(&session, sessions).await;
    Ok(None)
}

/// The next step that can be tried.
fn next(round: &Round) -> Option<Step> {
    // Steps assume the earlier ones; only tables do not depend on each other.
    let tables_only = round.failed.iter().all(|(step, _)| step.condition() == SCHEMA_DISTRIBUTED);
    if !tables_only {
        return None;
    }
    let tried = |step: &&Step| {
        // A step that was done and is planned again has no effect; doing it again would have none either.
        round.failed.iter().any(|(failed, _)| failed == *step) || round.performed.contains(step)
    };
    round.plan.steps.iter().find(|step| !tried(step)).cloned()
}

async fn look_again(round: &mut Round, wanted: &Wanted, sessions: &Sessions, sizes: Sizes) {
    let mut observed = observe(sessions, wanted, sizes).await;
    observed.keep_sizes(&round.observed);
    observed.existing.clone_from(&round.observed.existing);
    round.observed = observed;
    round.plan = plan(wanted, sessions.topology(), &round.observed);
}

/// Takes the topology lock in the coordinator's session, or says who has it.
async fn acquire(sessions: &Sessions) -> Result<Result<Arc<Session>, Holder>, pg::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let holder = lock::try_acquire(&session).await?;
    Ok(holder.map_or(Ok(session), Err))
}

/// Whether the session that holds the lock is the one that steps are performed in: a session that broke was replaced,
/// and the lock went with it.
async fn still_holds(lock: Option<&Arc<Session>>, sessions: &Sessions) -> bool {
    let (Some(lock), Ok(session)) = (lock, sessions.session(Group::Coordinator, Door::Dialog).await) else {
        return false;
    };
    Arc::ptr_eq(lock, &session)
}

async fn give_back(session: &Arc<Session>, sessions: &Sessions) {
    if lock::release(session).await.is_err() {
        sessions.close(Group::Coordinator, Door::Dialog).await;
    }
}
