//! The controller's connection to Kubernetes: what it reads there, what it writes, and what it remembers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, ObjectMeta, PartialObjectMeta};
use kube::runtime::predicates;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt};
use tracing::debug;

use super::heat;
use super::jobs::{Existing, Job, Present, Wake};
use super::memory::{Memory, Results};
use super::observe::{Sizes, splits, spreads, stall};
use super::observed::Stall;
use super::rebalance::MovePlan;
use super::round::{Brief, Handover, round};
use super::sessions::Sessions;
use super::status::{PART, got_on, held_moves, status};
use super::step::Step;
use super::topology::Topology;
use super::wanted::Wanted;
use crate::api::{DialogCluster, DialogClusterStatus};
use crate::cluster::certificates::identity;
use crate::cluster::{observe, report};
use crate::condition::{Finding, Holds, SHARDS_MANAGER};
use crate::context::Context;
use crate::error::Error;
use crate::names::{CLUSTER_LABEL, GROUP_LABEL, Group, Names};
use crate::pg::Identity;
use crate::reconcile::{Outcome, Reconciler, owners};
use crate::status;
use again::{SOON, outcome};

mod again;
mod telling;
mod watching;

/// Steps after which the status is written, however many are left.
const MOST_STEPS: usize = 32;

/// The controller.
pub struct Controller {
    context: Context,
    memories: Mutex<HashMap<ObjectRef<DialogCluster>, Memory>>,
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

    /// Does something with what is remembered of a cluster. A panic elsewhere leaves nothing half remembered, so its
    /// poison is ignored.
    fn memory<T>(&self, key: &ObjectRef<DialogCluster>, act: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        act(memories.entry(key.clone()).or_default())
    }

    /// The operator's certificate for the databases of a cluster; `None` while it is not there yet.
    async fn identity(&self, names: &Names) -> Result<Option<Identity>, Error> {
        let name = names.operator_certificate();
        let secrets: Api<Secret> = Api::namespaced(self.context.client.clone(), names.namespace());
        let read = Error::kubernetes("read", format!("Secret {name}"));
        let secret = secrets.get_opt(&name).await.map_err(read)?.filter(|secret| secret.data.is_some());
        let identity = secret.as_ref().map(identity).transpose();
        identity.map_err(|source| Error::Identity { secret: name, source })
    }

    /// Tells the groups of a cluster that have servers in Kubernetes; nobody if that does not answer.
    fn existing(&self, names: &Names) -> Existing {
        let (client, names) = (self.context.client.clone(), names.clone());
        Arc::new(move || {
            let (client, names) = (client.clone(), names.clone());
            async move { existing(&client, &names).await.unwrap_or_default() }.boxed()
        })
    }

    /// Tells whether a cluster asks for the same as when it was read; so it does while nobody can tell.
    fn unchanged(
        &self,
        cluster: &DialogCluster,
    ) -> impl Fn() -> BoxFuture<'static, bool> + Send + Sync + use<> {
        let namespace = cluster.namespace().unwrap_or_default();
        let clusters: Api<DialogCluster> = Api::namespaced(self.context.client.clone(), &namespace);
        // What is approved or requested is in annotations.
        let asks = |meta: &ObjectMeta| (meta.generation, meta.annotations.clone());
        let (name, read) = (cluster.name_any(), asks(&cluster.metadata));
        move || {
            let (clusters, name, read) = (clusters.clone(), name.clone(), read.clone());
            async move {
                let now = clusters.get_metadata_opt(&name).await;
                now.map_or(true, |now| now.is_some_and(|now| asks(&now.metadata) == read))
            }
            .boxed()
        }
    }

    /// Tells what the resource asks for now; nothing while Kubernetes does not answer.
    fn present(&self, names: &Names) -> Present {
        let clusters: Api<DialogCluster> = Api::namespaced(self.context.client.clone(), names.namespace());
        let name = names.cluster().to_owned();
        Arc::new(move || {
            let (clusters, name) = (clusters.clone(), name.clone());
            async move {
                let cluster = clusters.get_opt(&name).await.unwrap_or_else(|error| {
                    debug!(cluster = name, %error, "could not be read: nothing begins before the next round");
                    None
                })?;
                Wanted::to_begin(&cluster, Timestamp::now())
            }
            .boxed()
        })
    }

    /// Has every controller look at a cluster.
    fn wake(&self, key: &ObjectRef<DialogCluster>) -> Wake {
        let (context, key) = (self.context.clone(), key.clone());
        Arc::new(move || context.wake(key.clone()))
    }

    /// What has made no progress for too long, and what keeps it: moves, splits, and steps that spread tables.
    async fn stalls(
        &self,
        key: &ObjectRef<DialogCluster>,
        sessions: &Sessions,
        limit: Duration,
    ) -> Vec<Stall> {
        let stalled = self.memory(key, |memory| memory.watch.stalled(limit));
        let mut stalls = Vec::new();
        for stalled in stalled {
            stalls.extend(stall::diagnose(sessions, &stalled).await);
        }
        let stalled = self.memory(key, |memory| memory.splits.stalled(limit));
        for stalled in stalled {
            stalls.extend(splits::diagnose(sessions, &stalled).await);
        }
        let stalled = self.memory(key, |memory| memory.spreads.stalled(limit));
        for stalled in stalled {
            stalls.extend(spreads::diagnose(sessions, &stalled).await);
        }
        stalls
    }

    /// Adds when moves got on last, and when they will have ended.
    fn foresee(&self, key: &ObjectRef<DialogCluster>, facts: &mut DialogClusterStatus, now: Timestamp) {
        if self.memory(key, |memory| memory.watch.got_on()) {
            got_on(facts, now);
        }
        let eta = self.memory(key, |memory| memory.pace.look(facts.rebalance.as_ref(), now));
        if let Some(rebalance) = &mut facts.rebalance {
            rebalance.eta = eta;
        }
    }

    /// Shows nodes and moves in the metrics.
    fn show(&self, key: &ObjectRef<DialogCluster>, status: &DialogClusterStatus) {
        let nodes = &status.nodes;
        let now = nodes.iter().map(|node| node.group.clone()).collect();
        let (shown, idle) = self
            .memory(key, |memory| (std::mem::replace(&mut memory.shown, now), memory.watch.longest_idle()));
        let namespace = key.namespace.as_deref().unwrap_or_default();
        self.context.metrics.shards.nodes(namespace, &key.name, &shown, nodes);
        self.context.metrics.shards.moves(namespace, &key.name, status.rebalance.as_ref(), idle);
    }

    /// Says that nothing can be known yet.
    async fn wait_for(&self, cluster: &DialogCluster, why: String) -> Result<Outcome, Error> {
        let finding = |kind: &&'static str| Finding::new(kind, Holds::Unknown, "NotObserved", why.clone());
        let mut before = cluster.status.clone().unwrap_or_default();
        before.held_moves = held_moves(cluster.status.as_ref(), None, &[]);
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
    /// controller has taken it up, it is named within 30 s. More often would cost a coordinator that has nothing to do more
    /// than a statement per second. Where load is watched, the end of each period is looked at, too.
    const REST: Duration = Duration::from_secs(18);

    async fn reconcile(&self, cluster: Arc<DialogCluster>) -> Result<Outcome, Error> {
        let cluster = cluster.as_ref();
        let key = ObjectRef::from_obj(cluster);
        if cluster.metadata.deletion_timestamp.is_some() {
            self.memory(&key, |memory| memory.jobs.set(None));
            return Ok(Outcome::Done);
        }
        let names = Names::new(cluster.name_any(), cluster.namespace().unwrap_or_default());
        let Some(identity) = self.identity(&names).await? else {
            let why = format!(
                "the Secret {} with the operator's certificate is not there yet",
                names.operator_certificate()
            );
            return self.wait_for(cluster, why).await;
        };
        let now = Timestamp::now();
        let wanted = Wanted::of(cluster, now);
        let topology = Topology::of_services(&names);
        let sessions = Sessions::new(topology.clone(), identity.clone());
        let jobs = self.memory(&key, |memory| memory.jobs.clone());
        // Without the list nothing can be decided; later it is only asked again. Results are taken after it: they are not
        // there a second time.
        existing(&self.context.client, &names).await?;
        let before = self.memory(&key, |memory| memory.held.clone());
        let Results { done, uncounted, failed } = self.memory(&key, Memory::take_results);
        let (done, lasted): (Vec<Step>, BTreeMap<Step, Duration>) =
            done.into_iter().map(|(step, lasted)| (step.clone(), (step, lasted))).unzip();
        // What was begun since the last round was of its plan; and what has ended was begun before.
        self.tell_begun(cluster, &key, &jobs.begun(), &done, before.as_ref()).await;
        for (step, error, failures) in &failed {
            self.complain(cluster, &key, step, error, *failures).await;
        }
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> {
            async { existing(&self.context.client, &names).await.unwrap_or_default() }.boxed()
        };
        let ask_blank = || -> BoxFuture<'_, Option<BTreeSet<Group>>> {
            async { blank(&self.context.client, &names).await.ok() }.boxed()
        };
        let unchanged = self.unchanged(cluster);
        let asks_the_same = || -> BoxFuture<'_, bool> { unchanged() };
        let last = self.memory(&key, |memory| memory.last.clone());
        let heat = self.watch(cluster, &key, &wanted, &sessions).await;
        // Shards that a long step has made were never measured.
        let made = done.iter().any(Step::makes_shards);
        let sizes = if made { Sizes::Measure } else { self.memory(&key, |memory| memory.sizes()) };
        let brief = Brief {
            wanted: &wanted,
            unchanged: &asks_the_same,
            existing: &ask,
            blank: &ask_blank,
            sizes,
            before: last.as_deref(),
            most: MOST_STEPS,
            paused: cluster.spec.paused,
            deferred: &self.memory(&key, |memory| memory.deferred()),
            failed_moves: &self.memory(&key, |memory| memory.failed_moves()),
            stalls: &self.stalls(&key, &sessions, wanted.rebalance.stall_timeout).await,
            held: before.clone(),
            shown: cluster.status.as_ref().and_then(|status| status.plan.as_ref()),
            overtaken: self.memory(&key, |memory| memory.overtaken.clone()),
            heat: heat.as_ref(),
        };
        let mut round = round(&brief, &sessions).await;
        drop(sessions);
        self.memory(&key, |memory| {
            if sizes == Sizes::Measure {
                memory.measured(&round.observed);
            }
            memory.remember(&mut round);
        });
        round.performed.extend(done);
        let sessions = || Sessions::new(topology.clone(), identity.clone());
        self.memory(&key, |memory| memory.adopt(&round.observed, sessions));
        jobs.set((!cluster.spec.paused).then(|| Job {
            existing: self.existing(&names),
            wake: self.wake(&key),
            topology: topology.clone(),
            identity: identity.clone(),
            handover: Handover::of(&wanted, &round),
            present: self.present(&names),
            stop: self.context.stop.clone(),
        }));
        jobs.start(&round.long);

        // What no status counts yet is counted in this one; it was told of before.
        let news = round.performed.len();
        round.performed.extend(uncounted);
        let mut facts = status(&wanted, &topology, &round, cluster.status.as_ref(), now);
        round.performed.truncate(news);
        self.foresee(&key, &mut facts, now);
        // A step that has ended since the look has had the next begin before it ended.
        facts.held_moves = held_moves(cluster.status.as_ref(), Some(&round.observed), &jobs.under_way());
        let held = round.held_plan();
        let plans: Vec<&MovePlan> = [&held, &before].into_iter().flatten().collect();
        self.account(cluster, &key, &round, &plans, &lasted, facts.rebalance.as_ref()).await;
        self.memory(&key, Memory::told);
        self.tell_phases(cluster, &key, &plans, facts.rebalance.as_ref(), now).await;
        self.tell_of(cluster, facts.plan.as_ref()).await;
        self.show(&key, &facts);
        self.show_actions(&key, &wanted, &round.observed);
        status::write(&self.context, cluster, PART, &facts, round.findings()).await?;
        self.memory(&key, |memory| memory.counted(&round));
        let rest = wanted.watch.as_ref().map(|watch| heat::until_next(watch, now, Timestamp::now()));
        outcome(cluster, round, self.memory(&key, |memory| memory.idle()), rest)
    }

    fn gone(&self, key: &ObjectRef<DialogCluster>) {
        for part in [PART, report::PART] {
            status::forget(&self.context, key, part);
        }
        self.show(key, &DialogClusterStatus::default());
        self.show_heat(key, None);
        let namespace = key.namespace.as_deref().unwrap_or_default();
        self.context.metrics.shards.heat.budget(namespace, &key.name, None);
        self.context.metrics.shards.heat.isolated(namespace, &key.name, None);
        // A step under way is left to the database; its session has nobody to report to any more.
        self.memory(key, |memory| memory.jobs.set(None));
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
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

/// The groups whose volumes cannot hold a database.
async fn blank(client: &Client, names: &Names) -> Result<BTreeSet<Group>, Error> {
    let observed = observe::observe(client, names).await?;
    let groups = observed.groups.keys().copied();
    Ok(groups.filter(|group| !observed.may_have_database(*group)).collect())
}
