//! One round of the controller: observe, plan, act, one step at a time and each from a fresh look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::BoxFuture;

use super::act::{self, perform};
use super::heat::Heat;
use super::lock::{self, Holder, TOPOLOGY_LOCKED};
use super::observe::{Sizes, names, observe};
use super::observed::{Dropped, Node, Observed, Stall};
use super::plan::{Plan, held_by_others, plan};
use super::rebalance::{Cause, MovePlan};
use super::sessions::{Door, Sessions};
use super::step::{Hold, Step};
use super::topology::Topology;
use super::wanted::Wanted;
use super::world::World;
use crate::api::PlanStatus;
use crate::condition::{BALANCED, Finding, HOT_TENANT, Holds, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED};
use crate::names::Group;
use crate::pg::{self, Session};

mod handover;
mod staying;

pub use handover::Handover;
use staying::staying;

/// How often the lock is taken in one round: again only where the session that held it broke.
const ATTEMPTS: u32 = 3;

/// What a round is given beside the servers.
pub struct Brief<'a> {
    /// What the resource asks for.
    pub wanted: &'a Wanted,
    /// Tells whether it still asks for that. It is asked after each step: a round of many steps takes long, and what it would
    /// do next may be for workers that nobody wants any more.
    pub unchanged: &'a (dyn Fn() -> BoxFuture<'a, bool> + Send + Sync),
    /// Tells the groups that have servers in Kubernetes now. It is asked again under the topology lock: a group that is
    /// being deleted must not be registered.
    pub existing: &'a (dyn Fn() -> BoxFuture<'a, BTreeSet<Group>> + Send + Sync),
    /// Tells the groups whose volumes cannot hold a database, since none was ever made there; `None` while that cannot be told. It
    /// is asked where servers are left over that nobody has registered.
    pub blank: &'a (dyn Fn() -> BoxFuture<'a, Option<BTreeSet<Group>>> + Send + Sync),
    /// Whether to measure shards.
    pub sizes: Sizes,
    /// What was seen before: the sizes in it count until they are measured again.
    pub before: Option<&'a Observed>,
    /// Steps after which the round ends.
    pub most: usize,
    /// Whether nothing may be begun: then only what is under way is ended where it does not get on.
    pub paused: bool,
    /// Steps that take long and failed lately, and why: the others go first.
    pub deferred: &'a [(Step, Failure)],
    /// Moves that have failed since one was made, the last one first, and why.
    pub failed_moves: &'a [(Step, Failure)],
    /// Moves without progress for longer than is allowed.
    pub stalls: &'a [Stall],
    /// The plan that is being carried out.
    pub held: Option<MovePlan>,
    /// The plan that the status shows.
    pub shown: Option<&'a PlanStatus>,
    /// The last plan that could not be carried on with.
    pub overtaken: Option<Dropped>,
    /// What is known of load.
    pub heat: Option<&'a Heat>,
}

/// Why a step was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl From<&act::Error> for Failure {
    fn from(error: &act::Error) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

/// What became of a round.
#[derive(Debug)]
pub struct Round {
    /// What was seen last.
    pub observed: Observed,
    /// What was left to do then.
    pub plan: Plan,
    /// What was done, in order.
    pub performed: Vec<Step>,
    /// What Citus has done in part, and why no more: it waits for something else.
    pub partly: Vec<(Step, act::Error)>,
    /// What could not be done, and why.
    pub failed: Vec<(Step, act::Error)>,
    /// What failed before this round and is not tried in it, and why.
    pub deferred: Vec<(Step, Failure)>,
    /// The step that had to wait for somebody else's change, and whose.
    pub held: Option<(Step, Holder)>,
    /// The steps that are next and take long: they are for [`carry_out`], all at the same time.
    pub long: Vec<Step>,
}

impl Round {
    /// Whether nothing is left to do and nothing is waited for.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.plan.steps.is_empty() && self.plan.waits.is_empty()
    }

    /// The plan of moves that is to be carried on with, by whoever reads it in the status too. Those under way are part of
    /// it until they were made: one that fails is still to be done.
    #[must_use]
    pub fn held_plan(&self) -> Option<MovePlan> {
        self.plan.moves.as_ref()?.held()
    }

    /// Whether workers are to leave of which nothing worse is known than that they have not yet.
    fn is_draining(&self) -> bool {
        let leaves = |finding: &Finding| finding.kind == SCALE_IN_BLOCKED && finding.reason == "Draining";
        self.plan.findings.iter().any(leaves)
    }

    /// Whether `step` takes a shard from a worker that is to leave, of which nothing worse is known than that it still has some.
    fn drains(&self, step: &Step) -> bool {
        let moves = self.plan.moves.iter().flat_map(|moves| &moves.plan.moves);
        let mut moves = moves.filter(|next| next.cause == Cause::Drain && next.from != Group::Coordinator);
        self.is_draining()
            && moves.any(|next| matches!(step, Step::MoveShard { shard_id, from, .. } if (*shard_id, *from) == (next.shard_id, next.from)))
    }

    /// The conditions, with what could not be done among them.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = self.plan.findings.clone();
        // A failure is what is meant by blocked; a wait that ends by itself is not.
        let mut say = |kind: &'static str, reason, message: String, anyway: bool, blocks: bool| {
            for finding in findings.iter_mut().filter(|finding| finding.kind == kind) {
                if anyway || finding.holds != Holds::True {
                    let holds = kind == SCALE_IN_BLOCKED && blocks;
                    *finding = Finding::new(kind, holds, reason, message.clone());
                }
            }
        };
        if let Some((step, holder)) = &self.held {
            let message = format!("waiting to {step}: {holder}");
            let blocks = holder.is_forgetful();
            let mut operations = self.observed.catalog.iter().flat_map(|catalog| &catalog.operations);
            let gets_on = operations.any(|operation| operation.pid == holder.pid);
            if self.is_draining() && !gets_on {
                // Whoever waits for it, nobody leaves before it is free.
                say(SCALE_IN_BLOCKED, TOPOLOGY_LOCKED, message.clone(), false, blocks);
            }
            say(step.condition(), TOPOLOGY_LOCKED, message, false, blocks);
        }
        // The first failure is the one that the others may follow from.
        let still = self.deferred.iter().filter(|(step, _)| self.plan.steps.contains(step));
        let deferred = still.map(|(step, error)| (step, error.clone()));
        let failed = self.failed.iter().chain(&self.partly);
        let failed = failed.map(|(step, error)| (step, Failure::from(error)));
        // What Citus cannot take away is among what was seen.
        let is_seen = |(step, failure): &(&Step, Failure)| {
            **step == Step::CleanUp && failure.reason == act::CLEANUP_BLOCKED
        };
        let failures: Vec<_> = failed.chain(deferred).filter(|one| !is_seen(one)).collect();
        for (step, Failure { reason, message }) in failures.into_iter().rev() {
            let message = format!("could not {step}: {message}");
            // What fails before everything else keeps all from beginning.
            if self.drains(step) || self.is_draining() && !stands_apart(step) {
                say(SCALE_IN_BLOCKED, reason, message.clone(), true, true);
            }
            say(step.condition(), reason, message, true, true);
        }
        findings
    }
}

/// Observes, plans and acts until nothing more can be done now, or as many steps are done as may be.
pub async fn round(brief: &Brief<'_>, sessions: &Sessions) -> Round {
    let mut observed = Box::pin(look(brief, brief.before, &BTreeMap::new(), sessions, brief.sizes)).await;
    observed.staying = staying(brief, sessions, &observed).await;
    let plan = plan(brief.wanted, sessions.topology(), &observed);
    let mut round = Round {
        observed,
        plan,
        performed: Vec::new(),
        partly: Vec::new(),
        failed: Vec::new(),
        deferred: brief.deferred.to_vec(),
        held: None,
        long: Vec::new(),
    };
    let mut lock: Option<Arc<Session>> = None;
    let mut attempts = 0;
    while round.performed.len() < brief.most
        && attempts < ATTEMPTS
        && let Some(step) = next(&round, brief.paused)
    {
        if step.hold() == Hold::Alone && !still_holds(lock.as_ref(), sessions).await {
            attempts += 1;
            match acquire(sessions).await {
                Ok(Ok(session)) => {
                    lock = Some(session);
                    // What was seen without the lock may have been changed by whoever held it.
                    look_again(&mut round, brief, sessions, Sizes::Skip).await;
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
            round.long = together(&round, step);
            break;
        }
        // Measuring asks for every shard's files: not again in this round, unless there are new ones.
        let again = if step.makes_shards() { Sizes::Measure } else { Sizes::Skip };
        let done = perform(&step, sessions).await;
        match (&step, &done) {
            (Step::CleanUp, Ok(())) => round.observed.uncleaned = None,
            (Step::CleanUp, Err(act::Error::Left(message))) => {
                round.observed.uncleaned = Some(message.clone());
            }
            (Step::EndAction { .. }, Ok(())) => round.observed.unended = None,
            (Step::EndAction { .. }, Err(error @ (act::Error::Left(_) | act::Error::Kept(_)))) => {
                round.observed.unended = Some(format!("could not {step}: {error}"));
            }
            _ => {}
        }
        match done {
            Ok(()) => round.performed.push(step),
            Err(error @ (act::Error::Left(_) | act::Error::Kept(_))) => round.partly.push((step, error)),
            Err(error) => round.failed.push((step, error)),
        }
        look_again(&mut round, brief, sessions, again).await;
        if !(brief.unchanged)().await {
            break;
        }
    }
    if let Some(session) = lock {
        give_back(&session, sessions).await;
    }
    round
}

/// What became of a step that takes long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carried {
    /// It was done.
    Out,
    /// Nothing was done: under the lock the plan did not ask for it any more.
    Needless,
    /// Nothing was done: somebody else has the topology lock.
    Held(Holder),
}

/// Performs one step that takes long, in sessions made for it, if it is still what the plan says under the lock. Then `begins` is
/// called before.
///
/// # Errors
/// When the database refuses.
pub async fn carry_out(
    brief: &Brief<'_>,
    sessions: &Sessions,
    step: &Step,
    begins: impl FnOnce() + Send,
) -> Result<Carried, act::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let holder = match step.hold() {
        Hold::Shared => lock::try_share(&session).await?,
        Hold::Alone | Hold::Nothing => lock::try_acquire(&session).await?,
    };
    if let Some(holder) = holder {
        return Ok(Carried::Held(holder));
    }
    let looking = sessions.looking();
    let observed = Box::pin(look(brief, brief.before, &BTreeMap::new(), &looking, brief.sizes)).await;
    let carried = if plan(brief.wanted, sessions.topology(), &observed).steps.contains(step) {
        begins();
        perform(step, sessions).await.map(|()| Carried::Out)
    } else {
        Ok(Carried::Needless)
    };
    give_back(&session, sessions).await;
    carried
}

/// The moves that can begin now, where nothing else comes first: for who has just made one, and does not wait for the next
/// round. Moves of another plan than the one that is being carried out are none of them: they wait for a round, and so are in
/// the status, an Event and the log before they are made.
pub async fn following(brief: &Brief<'_>, sessions: &Sessions) -> Vec<Step> {
    let observed = Box::pin(look(brief, brief.before, &BTreeMap::new(), sessions, brief.sizes)).await;
    let plan = plan(brief.wanted, sessions.topology(), &observed);
    if !carries_on(brief.held.as_ref(), &plan) {
        return Vec::new();
    }
    let round = Round {
        observed,
        plan,
        performed: Vec::new(),
        partly: Vec::new(),
        failed: Vec::new(),
        deferred: brief.deferred.to_vec(),
        held: None,
        long: Vec::new(),
    };
    match next(&round, brief.paused) {
        Some(step) if step.hold() == Hold::Shared => together(&round, step),
        _ => Vec::new(),
    }
}

/// Whether what `plan` moves is what is left of `held`.
fn carries_on(held: Option<&MovePlan>, plan: &Plan) -> bool {
    held.zip(plan.moves.as_ref()).is_some_and(|(held, moves)| held.hash == moves.plan.hash)
}

/// The next step that can be tried. Of one that is `paused` only those that end what is under way: nobody else would, and
/// writers may wait for it.
fn next(round: &Round, paused: bool) -> Option<Step> {
    if !round.failed.iter().all(|(step, _)| stands_apart(step)) {
        return None;
    }
    let may_be_done = |step: &Step| !paused || matches!(step, Step::CancelMove { .. });
    round.plan.steps.iter().find(|step| may_be_done(step) && !was_tried(round, step)).cloned()
}

/// Whether others can be done though a step has failed: they assume the earlier ones, but for tables and moves, which do not depend
/// on each other, and nothing depends on what is kept of load.
fn stands_apart(step: &Step) -> bool {
    [SCHEMA_DISTRIBUTED, BALANCED, HOT_TENANT].contains(&step.condition())
}

fn was_tried(round: &Round, step: &Step) -> bool {
    // A step that was done and is planned again has no effect; doing it again would have none either.
    round.failed.iter().chain(&round.partly).any(|(failed, _)| failed == step)
        || round.deferred.iter().any(|(failed, _)| failed == step)
        || round.performed.contains(step)
}

/// What can be done at the same time as the long step `first`: moves go together, anything else goes alone.
fn together(round: &Round, first: Step) -> Vec<Step> {
    if first.hold() != Hold::Shared {
        return vec![first];
    }
    let moves = round.plan.steps.iter().filter(|step| step.hold() == Hold::Shared);
    moves.filter(|step| !was_tried(round, step)).cloned().collect()
}

async fn look(
    brief: &Brief<'_>,
    before: Option<&Observed>,
    silent: &BTreeMap<Group, String>,
    sessions: &Sessions,
    sizes: Sizes,
) -> Observed {
    let mut observed = observe(sessions, brief.wanted, sizes, silent).await;
    if let Some(before) = before {
        observed.keep_sizes(before);
        observed.keep_uncleaned(before);
        observed.staying.clone_from(&before.staying);
    }
    let known = before.map(|before| &before.hashes);
    observed.hashes = names::hashes(sessions, brief.wanted, &observed, known).await;
    let existing = (brief.existing)().await;
    remember(&mut observed, brief, existing);
    let world = World { wanted: brief.wanted, topology: sessions.topology(), observed: &observed };
    let held_up = held_by_others(&world);
    observed.keep_held_up(before, held_up);
    observed
}

/// Adds what is not asked of the servers.
fn remember(observed: &mut Observed, brief: &Brief<'_>, existing: BTreeSet<Group>) {
    observed.existing = existing;
    observed.failed_moves = brief.failed_moves.to_vec();
    observed.stalls = brief.stalls.to_vec();
    observed.held.clone_from(&brief.held);
    observed.shown = brief.shown.cloned();
    observed.overtaken.clone_from(&brief.overtaken);
    observed.heat = brief.heat.cloned();
    observed.deferred = brief.deferred.iter().map(|(step, _)| step.clone()).collect();
}

async fn look_again(round: &mut Round, brief: &Brief<'_>, sessions: &Sessions, sizes: Sizes) {
    let silent = silent(&round.observed, sessions.topology());
    round.observed = Box::pin(look(brief, Some(&round.observed), &silent, sessions, sizes)).await;
    round.plan = plan(brief.wanted, sessions.topology(), &round.observed);
}

/// The servers that gave no answer and that Citus does not know, and why: nothing is done with one before it answers. To ask
/// it anew after each step would have all the others wait for its time-out each time, and whoever waits for the topology lock.
fn silent(observed: &Observed, topology: &Topology) -> BTreeMap<Group, String> {
    let Some(catalog) = &observed.catalog else { return BTreeMap::new() };
    let registered: BTreeSet<Group> = catalog.groups(topology).collect();
    let down = |(group, node): (&Group, &Node)| match node {
        Node::Down(reason) => Some((*group, reason.clone())),
        Node::Up(_) => None,
    };
    let down = observed.nodes.iter().filter_map(down);
    down.filter(|(group, _)| *group != Group::Coordinator && !registered.contains(group)).collect()
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

#[cfg(test)]
pub(super) mod tests;
