//! What both controllers are given: clients, settings, metrics and a way to wake each other.

use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::api::DialogCluster;
use crate::metrics::Metrics;

/// Wakes that a slow controller may have outstanding. More are dropped, as every controller also looks by itself.
const WAKES: usize = 256;

/// What the operator was started with.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Image of the database where a cluster names none.
    pub postgres_image: Option<String>,
    /// Image of dialog-api where a cluster names none.
    pub api_image: Option<String>,
    /// How the images of databases and of dialog-api are had.
    pub pull: Pull,
    /// The only namespace to look at; all if absent.
    pub namespace: Option<String>,
}

/// How images are had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pull {
    /// Secrets with credentials, each expected in the namespace of the pod.
    pub secrets: Vec<String>,
    /// When to ask the registry; Kubernetes decides by the tag if absent.
    pub policy: Option<PullPolicy>,
}

/// When to ask the registry for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// At each start of a container.
    Always,
    /// If the node does not have it.
    IfNotPresent,
    /// Never: the node has it.
    Never,
}

impl PullPolicy {
    /// The value in a container.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Shared by the controllers; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// For calls: each has a time limit.
    pub client: Client,
    /// For watches: these stay open.
    pub watcher: Client,
    /// Publishes Events. One for the whole process, because it folds repeated Events into series.
    pub recorder: Recorder,
    /// What the operator was started with.
    pub settings: Settings,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Is cancelled when this operator is to end: nothing that takes long begins any more.
    pub stop: CancellationToken,
    wakes: broadcast::Sender<(&'static str, ObjectRef<DialogCluster>)>,
}

impl Context {
    /// A context around two clients until `stop` is cancelled; see [`Context::client`] and [`Context::watcher`].
    #[must_use]
    pub fn new(
        client: Client,
        watcher: Client,
        settings: Settings,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        let recorder = Recorder::new(client.clone(), Reporter::from("dialog-operator"));
        Self { client, watcher, recorder, settings, metrics, stop, wakes: broadcast::Sender::new(WAKES) }
    }

    /// Tells the other controllers that the controller with this field manager has changed something of a cluster.
    pub fn wake_others(&self, manager: &'static str, cluster: ObjectRef<DialogCluster>) {
        // Nobody listening is fine: the others are not running.
        drop(self.wakes.send((manager, cluster)));
    }

    /// Tells every controller to look at a cluster.
    pub fn wake(&self, cluster: ObjectRef<DialogCluster>) {
        self.wake_others("", cluster);
    }

    /// The clusters that controllers other than the one with this field manager have changed, from now on.
    #[must_use]
    pub fn wakes(&self, manager: &'static str) -> BoxStream<'static, ObjectRef<DialogCluster>> {
        stream::unfold(self.wakes.subscribe(), move |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok((from, cluster)) if from != manager => return Some((cluster, receiver)),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }
}
