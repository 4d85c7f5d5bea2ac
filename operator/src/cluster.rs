//! The controller of Kubernetes objects: observe → validate → build → apply → one step of an update → status.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Predicate, predicates};

use crate::api::{DialogCluster, Phase};
use crate::condition::{self, CLUSTER_MANAGER};
use crate::context::Context;
use crate::error::Error;
use crate::names::{CLUSTER_LABEL, GROUP_LABEL, Names};
use crate::reconcile::{Outcome, Reconciler, owners};
use crate::shards::topology::Topology;
use crate::status;

pub mod act;
pub mod applied;
pub mod apply;
pub mod bootstrap;
pub mod build;
pub mod certificates;
pub mod failure;
pub mod instance;
pub mod memory;
pub mod observe;
pub mod patroni;
pub mod problems;
pub mod report;
pub mod retire;
pub mod rollout;
pub mod target;

use certificates::Certificates;
use observe::{Observed, observe};
use rollout::{Hold, Step};
use target::{Refusal, Target};

/// While something happens by itself.
const SOON: Duration = Duration::from_secs(5);
/// While somebody has to do something.
const LATER: Duration = Duration::from_secs(10);

/// The controller.
pub struct Controller {
    context: Context,
}

impl Controller {
    /// A controller that works with `context`.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// The clusters of which an object has changed.
    #[must_use]
    pub fn related(context: &Context) -> Vec<BoxStream<'static, ObjectRef<DialogCluster>>> {
        // Patroni keeps its state in ConfigMaps and annotations that change every few seconds: these are left out.
        let own = format!("{CLUSTER_LABEL},!{GROUP_LABEL}");
        let labelled = predicates::labels
            .combine(|pod: &PartialObjectMeta<Pod>| pod.metadata.deletion_timestamp.as_ref().map(|_| 1));
        vec![
            owners::<StatefulSet>(context, CLUSTER_LABEL, predicates::resource_version),
            owners::<Deployment>(context, CLUSTER_LABEL, predicates::resource_version),
            owners::<Service>(context, CLUSTER_LABEL, predicates::resource_version),
            owners::<Secret>(context, CLUSTER_LABEL, predicates::resource_version),
            owners::<ConfigMap>(context, &own, predicates::resource_version),
            owners::<Pod>(context, CLUSTER_LABEL, labelled),
        ]
    }

    async fn report(&self, cluster: &DialogCluster, report: report::Report) -> Result<(), Error> {
        let (status, findings) = report;
        status::write(&self.context, cluster, report::PART, &status, findings).await.map(drop)
    }

    /// Brings the objects, and one instance, nearer to what they should be; returns what the next step is.
    async fn change(
        &self,
        target: &Target,
        observed: &Observed,
        certificates: &Certificates,
        step: Step,
        is_behind: bool,
        now: Timestamp,
    ) -> Result<Step, Error> {
        retire::forget(&self.context, target, observed).await?;
        let objects = build::build(target, certificates);
        Box::pin(apply::apply(&self.context.client, target, objects)).await?;
        let acted = act::act(&self.context, target, observed, certificates, step, is_behind, now).await;
        // Nothing is held up by a group that cannot leave yet, nor one that leaves by a server that takes no orders.
        let topology = Topology::of_services(&target.names);
        let stay = retire::step(&self.context, target, observed, topology).await;
        if let (Err(_), Err(error)) = (&acted, &stay) {
            tracing::warn!(cluster = target.names.cluster(), namespace = target.names.namespace(), %error, "no group leaves now");
        }
        let step = acted?;
        match stay? {
            stay if step == Step::Nothing && !stay.is_empty() => Ok(Step::ScaleIn(format!(
                "workers that are not asked for any more are emptied and leave ({}); see the condition ScaleInBlocked and \
                 status.rebalance",
                condition::first_of(&stay)
            ))),
            _ if step == Step::Nothing && !observed.leaving.is_empty() => {
                let groups: Vec<String> = observed.leaving.iter().map(ToString::to_string).collect();
                Ok(Step::ScaleIn(format!(
                    "Kubernetes deletes the StatefulSets, pods and volumes of {}; if that lasts, kubectl describe says what \
                     keeps a pod: on a node that is dead it is deleted with --force",
                    condition::first_of(&groups)
                )))
            }
            _ => Ok(step),
        }
    }

    /// One reconciliation: how it ended, once the status says so; or why it did not come that far.
    async fn round(&self, cluster: &DialogCluster) -> Result<Result<Outcome, Error>, Error> {
        if cluster.metadata.deletion_timestamp.is_some() {
            let message = "the cluster is being deleted; its objects go with it";
            let now = Timestamp::now();
            let report = report::refusal(cluster, Some(Phase::Deleting), "Deleting", message, None, now);
            self.report(cluster, report).await?;
            return Ok(Ok(Outcome::Done));
        }
        let names = Names::new(cluster.name_any(), cluster.namespace().unwrap_or_default());
        let observed = observe(&self.context.client, &names).await?;
        let now = Timestamp::now();
        let target = match Target::new(cluster, &self.context.settings, &observed) {
            Ok(target) => target,
            Err(refusal) => {
                let groups = observed.groups.keys().copied().collect();
                let there = observed.secrets.contains_key(&names.authority());
                let certificates = there
                    .then(|| Certificates::ensure(&observed.secrets, &names, &groups, now))
                    .transpose()?;
                let Refusal { reason, message } = &refusal;
                let report = report::refusal(cluster, None, reason, message, certificates.as_ref(), now);
                self.report(cluster, report).await?;
                return Ok(Ok(Outcome::Wait(LATER, refusal.message)));
            }
        };
        let groups = target.groups.keys().copied().collect();
        let certificates = Certificates::ensure(&observed.secrets, &names, &groups, now)?;
        let next = act::next(&target, &observed, cluster.status.as_ref(), now);
        let is_behind = rollout::is_behind(cluster.status.as_ref());
        let changed = if cluster.spec.paused {
            Ok(next)
        } else {
            self.change(&target, &observed, &certificates, next, is_behind, now).await
        };
        let mut problems = problems::problems(cluster, &target, &observed, now);
        let (step, failure) = match changed {
            Ok(step) => (step, None),
            Err(error) => (Step::Wait("what failed to be tried again".to_owned()), Some(error)),
        };
        if let Some(error) = &failure {
            problems.insert(0, problems::Problem::failed(error));
        }
        let (mut status, findings) =
            report::report(cluster, &target, &observed, &certificates, &problems, &step, now);
        // Nothing is restarted of what is paused.
        if !cluster.spec.paused
            && let Some(Hold { since, until }) =
                act::hold(&target, &observed, cluster.status.as_ref(), &step, now)
        {
            (status.hold_moves, status.hold_moves_until) = (Some(since), until);
        }
        let is_held = status.hold_moves.is_some();
        self.report(cluster, (status, findings)).await?;
        Ok(match failure {
            Some(error) => Err(error),
            None if cluster.spec.paused => Ok(Outcome::Done),
            None => Ok(outcome(problems.first(), step, is_held, is_behind)),
        })
    }
}

/// When to look again at a cluster where nothing has failed; moves of shards may be held meanwhile, or a server be behind what is
/// declared.
fn outcome(problem: Option<&problems::Problem>, step: Step, is_held: bool, is_behind: bool) -> Outcome {
    match (problem, step) {
        (None, Step::Helpless { pod, .. }) => Outcome::Wait(LATER, pod),
        // Nobody else would end that in time.
        (None, Step::Nothing) if is_held => {
            Outcome::Wait(SOON, "moves of shards are held until an update is known to be over".to_owned())
        }
        (None, Step::Nothing) if is_behind => {
            Outcome::Wait(LATER, "Patroni looks again what a restart is needed for".to_owned())
        }
        (None, Step::Nothing) => Outcome::Done,
        (None, step) => Outcome::Wait(SOON, step.describe().unwrap_or_default()),
        (Some(problem), _) => {
            Outcome::Wait(if problem.passes { SOON } else { LATER }, problem.message.clone())
        }
    }
}

impl Reconciler for Controller {
    const NAME: &'static str = "cluster";
    const MANAGER: &'static str = CLUSTER_MANAGER;
    const DEADLINE: Duration = Duration::from_mins(2);

    async fn reconcile(&self, cluster: Arc<DialogCluster>) -> Result<Outcome, Error> {
        match self.round(&cluster).await {
            Ok(outcome) => outcome,
            Err(error) => {
                failure::report(&self.context, &ObjectRef::from_obj(cluster.as_ref()), &error).await;
                Err(error)
            }
        }
    }

    async fn failed(&self, key: &ObjectRef<DialogCluster>, error: &Error) {
        // Other failures are in the report of the reconciliation itself.
        if let Error::Malformed { .. } | Error::Panicked(_) | Error::Deadline(_) = error {
            failure::report(&self.context, key, error).await;
        }
    }
}
