//! The controller's connection to Kubernetes: what it reads there, what it writes, and what it remembers.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PartialObjectMeta};
use kube::runtime::events::{Event, EventType};
use kube::runtime::predicates;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use super::act;
use super::lock::Holder;
use super::observe::Sizes;
use super::observed::Observed;
use super::round::{Round, carry_out, round};
use super::sessions::Sessions;
use super::status::{PART, status};
use super::step::Step;
use super::topology::Topology;
use super::wanted::Wanted;
use crate::api::{DialogCluster, NodeStatus};
use crate::cluster::certificates::{CA, CERTIFICATE, KEY};
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
    /// The step that takes long and is being carried out by this process.
    long: Option<Long>,
}

struct Long {
    step: Step,
    task: JoinHandle<Result<Option<Holder>, act::Error>>,
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
        Identity::from_pem(part(CA), part(CERTIFICATE), part(KEY))
            .map(Some)
            .map_err(|source| Error::Identity { secret: name, source })
    }

    /// The groups that have a StatefulSet, asked for or not.
    async fn existing(&self, names: &Names) -> Result<BTreeSet<Group>, Error> {
        let sets: Api<StatefulSet> = Api::namespaced(self.context.client.clone(), names.namespace());
        let selector = format!("{CLUSTER_LABEL}={}", names.cluster());
        let list = sets.list_metadata(&ListParams::default().labels(&selector)).await;
        let list = list.map_err(Error::kubernetes("list", format!("StatefulSets with {selector}")))?;
        // Somebody's own object with our label has another name.
        let group = |set: PartialObjectMeta<StatefulSet>| {
            let group = Group::parse(set.labels().get(GROUP_LABEL)?)?;
            (names.group(group) == set.name_any()).then_some(group)
        };
        Ok(list.items.into_iter().filter_map(group).collect())
    }

    /// Whether it is time to measure shards again.
    fn sizes(&self, key: &ObjectRef<DialogCluster>) -> Sizes {
        let memories = self.memories();
        let measured = memories.get(key).and_then(|memory| memory.measured);
        if measured.is_some_and(|instant| instant.elapsed() < MEASURE) { Sizes::Skip } else { Sizes::Measure }
    }

    /// Remembers that shards were measured, if there were any: until then the next round asks again.
    fn measured(&self, key: &ObjectRef<DialogCluster>, observed: &Observed) {
        let any = observed.catalog.as_ref().is_some_and(|catalog| !catalog.placements.is_empty());
        self.memories().entry(key.clone()).or_default().measured = any.then(Instant::now);
    }

    /// The result of a long step that this process carried out, if it has ended.
    fn ended(&self, key: &ObjectRef<DialogCluster>) -> Option<(Step, Result<Option<Holder>, act::Error>)> {
        let mut memories = self.memories();
        let memory = memories.get_mut(key)?;
        let long = memory.long.as_mut()?;
        if !long.task.is_finished() {
            return None;
        }
        let result = (&mut long.task).now_or_never()?;
        let step = memory.long.take()?.step;
        // A task that panicked says nothing; what it left undone is planned again.
        Some((step, result.ok()?))
    }

    /// Starts a step that takes long; it goes on while rounds come and go, and is the only one of its cluster.
    fn start(
        &self,
        key: &ObjectRef<DialogCluster>,
        wanted: &Wanted,
        topology: Topology,
        identity: Identity,
        step: &Step,
    ) {
        let mut memories = self.memories();
        let memory = memories.entry(key.clone()).or_default();
        if memory.long.is_some() {
            return;
        }
        let (wanted, job) = (wanted.clone(), step.clone());
        let task = tokio::spawn(async move {
            let sessions = Sessions::long(topology, identity, job.to_string());
            carry_out(&wanted, &sessions, &job).await
        });
        memory.long = Some(Long { step: step.clone(), task });
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

    /// Shows the nodes in the metrics.
    fn show(&self, key: &ObjectRef<DialogCluster>, nodes: &[NodeStatus]) {
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
    /// A database that stops answering tells nobody: with the time that it is given to answer, and until the cluster
    /// controller has taken it up, it is named within 30 s.
    const REST: Duration = Duration::from_secs(10);

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
        let wanted = Wanted::from(&cluster.spec);
        let topology = Topology::of_services(&names);
        let sessions = Sessions::new(topology.clone(), identity.clone());
        let ended = self.ended(&key);
        let most = if cluster.spec.paused { 0 } else { MOST_STEPS };

        let existing = self.existing(&names).await?;
        let sizes = if ended.is_some() { Sizes::Measure } else { self.sizes(&key) };
        let mut round = round(&wanted, &existing, &sessions, sizes, most).await;
        drop(sessions);
        if sizes == Sizes::Measure {
            self.measured(&key, &round.observed);
        }
        match ended {
            Some((step, Ok(None))) => round.performed.push(step),
            Some((step, Ok(Some(holder)))) => round.held = Some((step, holder)),
            Some((step, Err(error))) => round.failed.push((step, error)),
            None => {}
        }
        for step in &round.performed {
            self.tell(cluster, step).await;
        }
        for (step, _) in &round.failed {
            // Log and Event are made of the error that is returned.
            self.context.metrics.shards.step(step, false);
        }
        // A step that has just failed is not started again before the delay after a failure.
        if let Some(step) = round.long.as_ref().filter(|_| round.failed.is_empty()) {
            self.start(&key, &wanted, topology.clone(), identity, step);
        }

        let facts = status(&wanted, &topology, &round.observed, cluster.status.as_ref());
        self.show(&key, &facts.nodes);
        status::write(&self.context, cluster, PART, &facts, round.findings()).await?;
        outcome(cluster, round)
    }

    fn gone(&self, key: &ObjectRef<DialogCluster>) {
        self.show(key, &[]);
        // A step under way is left to the database; its session has nobody to report to any more.
        self.memories().remove(key);
    }
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
    // Migrations tell nobody when they have run. A single table of the policy that never comes is no reason to hurry.
    if round.observed.catalog.is_some() && round.observed.tables.is_empty() {
        return Ok(Outcome::Wait(SOON, "the tables are not there yet".to_owned()));
    }
    Ok(Outcome::Done)
}
