//! How a controller is driven: what wakes it, how many clusters it works on at once, how long it may take, and when it
//! looks again.
//!
//! Only metadata is watched. The object itself is read afresh at the start of each reconciliation, so nothing is
//! decided on a stale copy, memory does not grow with what clusters contain, and one malformed object cannot stop the
//! watch of the others.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::controller::{Action, Error as ControllerError, ReconcileRequest};
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{Config, Predicate, PredicateConfig, WatchStreamExt, applier, predicates, watcher};
use kube::{Api, Resource, ResourceExt};
use rand::RngExt;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::api::DialogCluster;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::Ended;

mod pace;

pub use pace::{Pace, RESYNC};

/// Clusters that one controller works on at the same time.
const CONCURRENCY: u16 = 8;
/// Changes that come within this time are answered by one reconciliation.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// The result of a reconciliation that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do until something changes.
    Done,
    /// Nothing is left to do; look again after this time all the same.
    Rest(Duration),
    /// Something outside has to happen first; look again after this time at the latest.
    Wait(Duration, String),
    /// Somebody is kept waiting by what is under way, as this says: look again as soon as may be.
    Urgent(String),
}

/// One controller of `DialogCluster`s.
pub trait Reconciler: Send + Sync + 'static {
    /// Its name in logs and metrics.
    const NAME: &'static str;
    /// Its field manager, by which controllers wake each other.
    const MANAGER: &'static str;
    /// How long one reconciliation may take.
    const DEADLINE: Duration;
    /// How long a cluster that needs nothing is left alone if nothing wakes us.
    const REST: Duration = RESYNC;

    /// Brings one cluster a step nearer to what it should be. Idempotent.
    fn reconcile(&self, cluster: Arc<DialogCluster>) -> impl Future<Output = Result<Outcome, Error>> + Send;

    /// Reports that a cluster could not be reconciled, where that can be seen on the object. The error is logged,
    /// counted and published as an Event already.
    fn failed(&self, key: &ObjectRef<DialogCluster>, error: &Error) -> impl Future<Output = ()> + Send {
        let _ = (key, error);
        std::future::ready(())
    }

    /// Forgets a cluster that is there no more.
    fn gone(&self, key: &ObjectRef<DialogCluster>) {
        let _ = key;
    }
}

/// The metadata of a cluster: all that is kept in memory.
type Watched = PartialObjectMeta<DialogCluster>;
/// Things that ask for a reconciliation.
type Triggers = BoxStream<'static, Result<ReconcileRequest<Watched>, watcher::Error>>;
/// What is remembered of each cluster, to pace its reconciliations.
type Paces = Mutex<HashMap<ObjectRef<Watched>, Pace>>;

/// The metadata of every `DialogCluster` or of their objects, in the namespace that the operator looks at.
#[must_use]
pub fn metadata<K>(context: &Context) -> Api<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match &context.settings.namespace {
        Some(namespace) => Api::namespaced(context.watcher.clone(), namespace),
        None => Api::all(context.watcher.clone()),
    }
}

/// Runs a controller until `stop` is cancelled, and then until the reconciliations under way have ended.
///
/// `related` yields the clusters of which something else has changed.
pub async fn run<R: Reconciler>(
    reconciler: Arc<R>,
    context: Context,
    related: Vec<BoxStream<'static, ObjectRef<DialogCluster>>>,
    stop: CancellationToken,
) {
    let (store, writer) = reflector::store::<Watched>();
    let clusters = reflector::reflector(
        writer,
        watcher(metadata::<DialogCluster>(&context), watcher::Config::default()).default_backoff(),
    )
    .touched_objects()
    // The status is left out: who wants to know of a change there is woken by the controller that made it.
    .predicate_filter(
        predicates::generation.combine(predicates::labels).combine(predicates::annotations),
        PredicateConfig::default(),
    )
    .map(|result| result.map(|object| ReconcileRequest::from(ObjectRef::from_obj(&object))));

    let mut triggers: Vec<Triggers> = vec![clusters.boxed()];
    let wakes = context.wakes(R::MANAGER);
    triggers.extend(related.into_iter().chain([wakes]).map(|keys| {
        keys.map(|key| Ok(ReconcileRequest::from(key.into_kind_unchecked::<Watched>(())))).boxed()
    }));

    let paces: Arc<Paces> = Arc::default();
    let steps = Arc::new(Step { reconciler: reconciler.clone(), context, paces: paces.clone() });
    info!(controller = R::NAME, "started");
    applier(
        |object, step: Arc<Step<R>>| Box::pin(step.run(object)),
        |_, error: &std::convert::Infallible, _| match *error {},
        steps,
        store,
        stream::select_all(triggers).take_until(stop.cancelled_owned()),
        Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE),
    )
    .for_each(|result| {
        match result {
            Ok(_) => {}
            // Deleted meanwhile: there is nothing to pace any more.
            Err(ControllerError::ObjectNotFound(key)) => {
                let key = key.into_kind_unchecked::<Watched>(());
                lock(&paces).remove(&key);
                reconciler.gone(&key.into_kind_unchecked(()));
            }
            Err(ControllerError::QueueError(error)) => {
                warn!(controller = R::NAME, %error, "a watch was interrupted; it starts again");
            }
            Err(error) => error!(controller = R::NAME, %error, "unexpected"),
        }
        std::future::ready(())
    })
    .await;
    info!(controller = R::NAME, "stopped");
}

/// The clusters that own the objects of kind `K` whose metadata changes.
pub fn owners<K>(
    context: &Context,
    labels: &str,
    predicate: impl Predicate<PartialObjectMeta<K>> + Send + 'static,
) -> BoxStream<'static, ObjectRef<DialogCluster>>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    watcher(metadata::<K>(context), watcher::Config::default().labels(labels))
        .default_backoff()
        .touched_objects()
        .predicate_filter(predicate, PredicateConfig::default())
        .filter_map(|result| {
            let key = match result {
                Ok(object) => cluster_of(object.meta()),
                Err(error) => {
                    warn!(kind = %K::kind(&()), %error, "a watch was interrupted; it starts again");
                    None
                }
            };
            std::future::ready(key)
        })
        .boxed()
}

/// The cluster that an object belongs to, by its label: pods belong to a StatefulSet first.
fn cluster_of(meta: &kube::core::ObjectMeta) -> Option<ObjectRef<DialogCluster>> {
    let name = meta.labels.as_ref()?.get(crate::names::CLUSTER_LABEL)?;
    Some(ObjectRef::new(name).within(meta.namespace.as_ref()?))
}

struct Step<R> {
    reconciler: Arc<R>,
    context: Context,
    paces: Arc<Paces>,
}

impl<R: Reconciler> Step<R> {
    /// One reconciliation: never fails, but says when to look again.
    async fn run(self: Arc<Self>, object: Arc<Watched>) -> Result<Action, std::convert::Infallible> {
        let key = ObjectRef::from_obj(object.as_ref());
        let started = Instant::now();
        if let Some(early) = lock(&self.paces).entry(key.clone()).or_default().begin(started) {
            return Ok(Action::requeue(early));
        }
        let result = tokio::time::timeout(R::DEADLINE, contained(self.attempt(&key)))
            .await
            .unwrap_or(Err(Error::Deadline(R::DEADLINE)));
        let ended = match &result {
            Ok(Outcome::Done | Outcome::Rest(_)) => Ended::Done,
            Ok(Outcome::Wait(..) | Outcome::Urgent(_)) => Ended::Waiting,
            Err(_) => Ended::Failed,
        };
        let waits_for = match &result {
            Ok(Outcome::Wait(_, why) | Outcome::Urgent(why)) => Some(why),
            Ok(Outcome::Done | Outcome::Rest(_)) | Err(_) => None,
        };
        let again = match &result {
            Ok(outcome) => {
                lock(&self.paces).entry(key.clone()).or_default().end(outcome, R::REST, Instant::now())
            }
            Err(error) => self.report(&object, &key, error).await,
        };
        let milliseconds = started.elapsed().as_millis();
        debug!(controller = R::NAME, cluster = %key, ?ended, waits_for, milliseconds, "reconciled");
        self.context.metrics.reconciled(R::NAME, ended, started.elapsed());
        Ok(Action::requeue(again))
    }

    async fn attempt(&self, key: &ObjectRef<Watched>) -> Result<Outcome, Error> {
        let namespace = key.namespace.as_deref().unwrap_or_default();
        let clusters: Api<DeserializeGuard<DialogCluster>> =
            Api::namespaced(self.context.client.clone(), namespace);
        let found = clusters
            .get_opt(&key.name)
            .await
            .map_err(Error::kubernetes("read", format!("DialogCluster {key}")))?;
        match found {
            None => {
                self.reconciler.gone(&key.clone().into_kind_unchecked(()));
                Ok(Outcome::Done)
            }
            Some(DeserializeGuard(Err(invalid))) => Err(Error::Malformed { reason: invalid.error }),
            Some(DeserializeGuard(Ok(cluster))) => self.reconciler.reconcile(Arc::new(cluster)).await,
        }
    }

    /// Makes a failure known everywhere, and says when to try again.
    async fn report(&self, object: &Watched, key: &ObjectRef<Watched>, error: &Error) -> Duration {
        let jitter: f64 = rand::rng().random_range(0.0..1.0);
        let (failures, again) = lock(&self.paces).entry(key.clone()).or_default().failed(jitter);
        warn!(controller = R::NAME, cluster = %key, failures, again_s = again.as_secs(), %error, "failed");
        self.context.metrics.failed(R::NAME, error.class());
        let event = Event {
            type_: EventType::Warning,
            reason: error.reason().to_owned(),
            note: Some(shorten(&error.to_string(), NOTE)),
            action: format!("Reconcile{}", R::NAME),
            secondary: None,
        };
        if let Err(error) = self.context.recorder.publish(&event, &object.object_ref(&())).await {
            debug!(cluster = %object.name_any(), %error, "could not publish an Event");
        }
        self.reconciler.failed(&key.clone().into_kind_unchecked(()), error).await;
        again
    }
}

/// Makes a panic an error: a bug that one object brings out must not stop the work on the others.
///
/// What it leaves behind is consistent: what is remembered of an object is changed in one go, and not while anything is waited for.
async fn contained(attempt: impl Future<Output = Result<Outcome, Error>>) -> Result<Outcome, Error> {
    AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::Panicked(text.unwrap_or_else(|| "it panicked without a message".to_owned())))
    })
}

/// Bytes that the note of an Event may have.
pub const NOTE: usize = 1024;
/// Bytes that the action of an Event may have.
pub const ACTION: usize = 128;

/// At most `limit` bytes of `text`.
#[must_use]
pub fn shorten(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit - '…'.len_utf8()).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// A panic elsewhere while pacing leaves nothing half done, so its poison is ignored.
fn lock(paces: &Paces) -> std::sync::MutexGuard<'_, HashMap<ObjectRef<Watched>, Pace>> {
    paces.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_of_one_reconciliation() {
        let Err(Error::Panicked(text)) = contained(async { panic!("no {}", "shards") }).await else {
            panic!("a panic went through");
        };
        assert_eq!(text, "no shards");
        assert_eq!(contained(async { Ok(Outcome::Done) }).await.unwrap(), Outcome::Done);
    }

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        let note = shorten(&"ж".repeat(1000), NOTE);
        assert!(note.len() <= NOTE && note.ends_with("ж…"), "{} bytes", note.len());
        assert_eq!(shorten("short", ACTION), "short");
    }
}
