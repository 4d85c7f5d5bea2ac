//! The controller's connection to Kubernetes: what it reads there, what it writes, and what it remembers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PartialObjectMeta};
use kube::runtime::events::{Event, EventType};
use kube::runtime::predicates;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::act;
use super::lock::Holder;
use super::observe::{Sizes, stall};
use super::observed::{Observed, Stall};
use super::rebalance::MovePlan;
use super::round::{Brief, Round, carry_out, round};
use super::sessions::Sessions;
use super::status::{PART, status};
use super::step::Step;
use super::supervise::Watch;
use super::topology::Topology;
use super::wanted::{Wanted, gate};
use crate::api::{DialogCluster, DialogClusterStatus};
use crate::condition::{Finding, Holds, SHARDS_MANAGER};
use crate::context::Context;
use crate::error::Error;
use crate::names::{CLUSTER_LABEL, GROUP_LABEL, Group, Names};
use crate::pg::Identity;
use crate::reconcile::{Outcome, Reconciler, owners, shorten};
use crate::status;

/// While something happens by itself.
const SOON: Duration = Duration::from_secs(5);
/// How often shards are measured.
const MEASURE: Duration = Duration::from_mins(1);
/// Steps after which the status is written, however many are left.
const MOST_STEPS: usize = 32;
/// A step that takes long and failed is put off for this long at first, and for twice as long each time after.
const FIRST_RETRY: Duration = Duration::from_secs(10);
/// And for no longer than this.
const LAST_RETRY: Duration = Duration::from_mins(10);

/// The controller.
pub struct Controller {
    context: Context,
    memories: Mutex<HashMap<ObjectRef<DialogCluster>, Memory>>,
}

/// What is remembered of a cluster between rounds: nothing that a decision is made from.
#[derive(Default)]
struct Memory {
    /// When shards were measured last.
    measured: Option<Instant>,
    /// The groups shown in metrics.
    shown: Vec<String>,
    /// The steps that take long and are being carried out by this process.
    long: Vec<Long>,
    /// The steps that take long and failed, until they are tried again.
    failures: BTreeMap<Step, Failure>,
    /// How far the moves were when they were seen to get on.
    watch: Watch,
    /// What was seen last: the sizes in it count until they are measured again.
    last: Option<Arc<Observed>>,
    /// The plan of moves that is being carried out.
    held: Option<MovePlan>,
}

struct Long {
    step: Step,
    task: JoinHandle<Result<Option<Holder>, act::Error>>,
}

/// A step that takes long and failed.
struct Failure {
    count: u32,
    not_before: Instant,
    message: String,
}

impl Controller {
    /// A controller that works with `context`.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self { context, memories: Mutex::default() }
    }

    /// The clusters of which an object has changed: a primary that becomes ready is a reason to look.
    #[must_use]
    pub fn related(context: &Context) -> Vec<BoxStream<'static, ObjectRef<DialogCluster>>> {
        vec![owners::<StatefulSet>(context, CLUSTER_LABEL, predicates::resource_version)]
    }

    /// A panic elsewhere leaves nothing half remembered, so its poison is ignored.
    fn memories(&self) -> MutexGuard<'_, HashMap<ObjectRef<DialogCluster>, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operator's certificate for the databases of a cluster; `None` while it is not there yet.
    async fn identity(&self, names: &Names) -> Result<Option<Identity>, Error> {
        let name = names.operator_certificate();
        let secrets: Api<Secret> = Api::namespaced(self.context.client.clone(), names.namespace());
        let read = Error::kubernetes("read", format!("Secret {name}"));
        let Some(data) = secrets.get_opt(&name).await.map_err(read)?.and_then(|secret| secret.data) else {
            return Ok(None);
        };
        let part = |key: &str| data.get(key).map_or(&[][..], |bytes| &bytes.0);
        Identity::from_pem(part("ca.crt"), part("tls.crt"), part("tls.key"))
            .map(Some)
            .map_err(|source| Error::Identity { secret: name, source })
    }

    /// Whether it is time to measure shards again.
    fn sizes(&self, key: &ObjectRef<DialogCluster>) -> Sizes {
        let mut memories = self.memories();
        let memory = memories.entry(key.clone()).or_default();
        if memory.measured.is_some_and(|instant| instant.elapsed() < MEASURE) {
            return Sizes::Skip;
        }
        memory.measured = Some(Instant::now());
        Sizes::Measure
    }

    /// The results of long steps that this process carried out, where they have ended.
    fn ended(&self, key: &ObjectRef<DialogCluster>) -> Vec<(Step, Result<Option<Holder>, act::Error>)> {
        let mut memories = self.memories();
        let Some(memory) = memories.get_mut(key) else { return Vec::new() };
        let (over, under_way): (Vec<_>, Vec<_>) =
            std::mem::take(&mut memory.long).into_iter().partition(|long| long.task.is_finished());
        memory.long = under_way;
        // A task that panicked says nothing; what it left undone is planned again.
        let result = |long: Long| Some((long.step, long.task.now_or_never()?.ok()?));
        over.into_iter().filter_map(result).collect()
    }

    /// Starts a step that takes long; it goes on while rounds come and go.
    fn start(&self, key: &ObjectRef<DialogCluster>, job: &Job, step: &Step) {
        let mut memories = self.memories();
        let memory = memories.entry(key.clone()).or_default();
        // Moves go together; anything else goes alone, and the lock sees to it.
        if memory.long.iter().any(|long| long.step == *step) {
            return;
        }
        let (job, task_step) = (job.clone(), step.clone());
        let (context, key) = (self.context.clone(), key.clone());
        let task = tokio::spawn(async move {
            let done = job.carry_out(&task_step).await;
            // The next step is due now.
            context.wake(key);
            done
        });
        memory.long.push(Long { step: step.clone(), task });
    }

    /// Remembers that a long step failed, and puts it off: the others go first.
    fn put_off(&self, key: &ObjectRef<DialogCluster>, step: &Step, error: &act::Error) -> u32 {
        let mut memories = self.memories();
        let failures = &mut memories.entry(key.clone()).or_default().failures;
        let count = failures.get(step).map_or(0, |failure| failure.count).saturating_add(1);
        let delay = FIRST_RETRY.saturating_mul(1 << count.saturating_sub(1).min(8)).min(LAST_RETRY);
        let not_before = Instant::now() + delay;
        failures.insert(step.clone(), Failure { count, not_before, message: error.to_string() });
        count
    }

    /// The long steps that are put off, and why.
    fn deferred(&self, key: &ObjectRef<DialogCluster>) -> Vec<(Step, String)> {
        let memories = self.memories();
        let Some(memory) = memories.get(key) else { return Vec::new() };
        let now = Instant::now();
        let off = memory.failures.iter().filter(|(_, failure)| failure.not_before > now);
        off.map(|(step, failure)| (step.clone(), failure.message.clone())).collect()
    }

    /// Remembers what was seen: how far moves are, sizes, and which failures are still of interest.
    fn remember(&self, key: &ObjectRef<DialogCluster>, round: &Round) {
        let mut memories = self.memories();
        let memory = memories.entry(key.clone()).or_default();
        memory.watch.look(round.observed.catalog.as_ref(), Instant::now());
        memory.failures.retain(|step, _| round.plan.steps.contains(step));
        memory.last = Some(Arc::new(round.observed.clone()));
        memory.held = round.held_plan();
    }

    fn held(&self, key: &ObjectRef<DialogCluster>) -> Option<MovePlan> {
        self.memories().get(key)?.held.clone()
    }

    fn last(&self, key: &ObjectRef<DialogCluster>) -> Option<Arc<Observed>> {
        self.memories().get(key)?.last.clone()
    }

    /// The moves without progress for too long, and what keeps them.
    async fn stalls(
        &self,
        key: &ObjectRef<DialogCluster>,
        sessions: &Sessions,
        limit: Duration,
    ) -> Vec<Stall> {
        let stalled = self.memories().get(key).map(|memory| memory.watch.stalled(limit, Instant::now()));
        let mut stalls = Vec::new();
        for stalled in stalled.unwrap_or_default() {
            stalls.push(stall::diagnose(sessions, &stalled).await);
        }
        stalls
    }

    /// Makes a step that was done known: log, Event and metric.
    async fn tell(&self, cluster: &DialogCluster, step: &Step) {
        self.context.metrics.shards.step(step, true);
        info!(cluster = %cluster.name_any(), namespace = cluster.namespace(), kind = step.kind(), %step, "done");
        let event = Event {
            type_: EventType::Normal,
            reason: step.kind().to_owned(),
            note: Some(shorten(&format!("done: {step}"))),
            action: "ChangeDatabase".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.context.recorder.publish(&event, &cluster.object_ref(&())).await {
            debug!(cluster = %cluster.name_any(), %error, "could not publish an Event");
        }
    }

    /// Makes known that a long step failed, and puts it off.
    async fn complain(
        &self,
        cluster: &DialogCluster,
        key: &ObjectRef<DialogCluster>,
        step: &Step,
        error: &act::Error,
    ) {
        let failures = self.put_off(key, step, error);
        self.context.metrics.shards.step(step, false);
        warn!(cluster = %key, kind = step.kind(), %step, failures, %error, "failed");
        let event = Event {
            type_: EventType::Warning,
            reason: "StepFailed".to_owned(),
            note: Some(shorten(&format!("could not {step}: {error}"))),
            action: "ChangeDatabase".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.context.recorder.publish(&event, &cluster.object_ref(&())).await {
            debug!(cluster = %key, %error, "could not publish an Event");
        }
    }

    /// Shows the nodes in the metrics.
    fn show(&self, key: &ObjectRef<DialogCluster>, status: &DialogClusterStatus) {
        let nodes = &status.nodes;
        let mut memories = self.memories();
        let memory = memories.entry(key.clone()).or_default();
        let namespace = key.namespace.as_deref().unwrap_or_default();
        self.context.metrics.shards.nodes(namespace, &key.name, &memory.shown, nodes);
        memory.shown = nodes.iter().map(|node| node.group.clone()).collect();
    }

    /// Says that nothing can be known yet.
    async fn wait_for(&self, cluster: &DialogCluster, why: String) -> Result<Outcome, Error> {
        let finding = |kind: &&'static str| Finding::new(kind, Holds::Unknown, "NotObserved", why.clone());
        let before = cluster.status.clone().unwrap_or_default();
        let findings = PART.conditions.iter().map(finding).collect();
        status::write(&self.context, cluster, PART, &before, findings).await?;
        Ok(Outcome::Wait(SOON, why))
    }
}

impl Reconciler for Controller {
    const NAME: &'static str = "shards";
    const MANAGER: &'static str = SHARDS_MANAGER;
    const DEADLINE: Duration = Duration::from_mins(5);

    async fn reconcile(&self, cluster: Arc<DialogCluster>) -> Result<Outcome, Error> {
        let cluster = cluster.as_ref();
        if cluster.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let key = ObjectRef::from_obj(cluster);
        let names = Names::new(cluster.name_any(), cluster.namespace().unwrap_or_default());
        let Some(identity) = self.identity(&names).await? else {
            let why = format!(
                "the Secret {} with the operator's certificate is not there yet",
                names.operator_certificate()
            );
            return self.wait_for(cluster, why).await;
        };
        let mut wanted = Wanted::from(&cluster.spec);
        wanted.rebalance.gate =
            gate(&cluster.spec.sharding.rebalance, cluster.annotations(), Timestamp::now());
        let topology = Topology::of_services(&names);
        let sessions = Sessions::new(topology.clone(), identity.clone());
        let ended = self.ended(&key);
        // Without the list nothing can be decided; later it is only asked again.
        existing(&self.context.client, &names).await?;
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> {
            async { existing(&self.context.client, &names).await.unwrap_or_default() }.boxed()
        };
        let mut done = Vec::new();
        for (step, result) in ended {
            match result {
                Ok(None) => done.push(step),
                Ok(Some(holder)) => debug!(cluster = %key, %step, %holder, "put off"),
                Err(error) => self.complain(cluster, &key, &step, &error).await,
            }
        }
        let last = self.last(&key);
        let brief = Brief {
            wanted: &wanted,
            existing: &ask,
            sizes: self.sizes(&key),
            before: last.as_deref(),
            most: if cluster.spec.paused { 0 } else { MOST_STEPS },
            deferred: &self.deferred(&key),
            stalls: &self.stalls(&key, &sessions, wanted.rebalance.stall_timeout).await,
            held: self.held(&key),
        };
        let mut round = round(&brief, &sessions).await;
        drop(sessions);
        self.remember(&key, &round);
        round.performed.extend(done);
        for step in &round.performed {
            self.tell(cluster, step).await;
        }
        for (step, _) in &round.failed {
            // Log and Event are made of the error that is returned.
            self.context.metrics.shards.step(step, false);
        }
        let job = Job {
            client: self.context.client.clone(),
            names,
            wanted: wanted.clone(),
            topology: topology.clone(),
            identity,
            before: Arc::new(round.observed.clone()),
            held: round.held_plan(),
        };
        for step in &round.long {
            self.start(&key, &job, step);
        }

        let facts = status(&wanted, &topology, &round, cluster.status.as_ref());
        self.show(&key, &facts);
        status::write(&self.context, cluster, PART, &facts, round.findings()).await?;
        outcome(cluster, round)
    }

    fn gone(&self, key: &ObjectRef<DialogCluster>) {
        self.show(key, &DialogClusterStatus::default());
        // A step under way is left to the database; its session has nobody to report to any more.
        self.memories().remove(key);
    }
}

/// What a long step is carried out with, when the round that found it is over.
#[derive(Clone)]
struct Job {
    client: Client,
    names: Names,
    wanted: Wanted,
    topology: Topology,
    identity: Identity,
    before: Arc<Observed>,
    held: Option<MovePlan>,
}

impl Job {
    async fn carry_out(&self, step: &Step) -> Result<Option<Holder>, act::Error> {
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> {
            async { existing(&self.client, &self.names).await.unwrap_or_default() }.boxed()
        };
        let brief = Brief {
            wanted: &self.wanted,
            existing: &ask,
            sizes: Sizes::Skip,
            before: Some(&self.before),
            most: 1,
            deferred: &[],
            stalls: &[],
            held: self.held.clone(),
        };
        let sessions = Sessions::long(self.topology.clone(), self.identity.clone(), step.purpose());
        carry_out(&brief, &sessions, step).await
    }
}

/// The groups that have a StatefulSet, asked for or not. One that is being deleted counts no more.
async fn existing(client: &Client, names: &Names) -> Result<BTreeSet<Group>, Error> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), names.namespace());
    let selector = format!("{CLUSTER_LABEL}={}", names.cluster());
    let list = sets.list_metadata(&ListParams::default().labels(&selector)).await;
    let list = list.map_err(Error::kubernetes("list", format!("StatefulSets with {selector}")))?;
    // Somebody's own object with our label has another name.
    let group = |set: PartialObjectMeta<StatefulSet>| {
        let group = Group::parse(set.labels().get(GROUP_LABEL)?)?;
        (names.group(group) == set.name_any() && set.metadata.deletion_timestamp.is_none()).then_some(group)
    };
    Ok(list.items.into_iter().filter_map(group).collect())
}

/// When to look again.
fn outcome(cluster: &DialogCluster, mut round: Round) -> Result<Outcome, Error> {
    if cluster.spec.paused {
        return Ok(Outcome::Done);
    }
    if !round.failed.is_empty() {
        let (step, source) = round.failed.swap_remove(0);
        return Err(Error::Database { step: step.to_string(), source: Box::new(source) });
    }
    if let Some((step, holder)) = &round.held {
        return Ok(Outcome::Wait(SOON, format!("waiting to {step}: {holder}")));
    }
    if !round.plan.waits.is_empty() {
        return Ok(Outcome::Wait(SOON, round.plan.waits.join("; ")));
    }
    if !round.plan.steps.is_empty() {
        return Ok(Outcome::Wait(SOON, "the next steps follow".to_owned()));
    }
    if !round.deferred.is_empty() {
        return Ok(Outcome::Wait(SOON, "a step that failed is tried again later".to_owned()));
    }
    // Migrations tell nobody when they have run. A single table of the policy that never comes is no reason to hurry.
    if round.observed.catalog.is_some() && round.observed.tables.is_empty() {
        return Ok(Outcome::Wait(SOON, "the tables are not there yet".to_owned()));
    }
    Ok(Outcome::Done)
}
