//! The controller of Kubernetes objects.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use kube::runtime::reflector::ObjectRef;

use crate::api::DialogCluster;
use crate::condition::CLUSTER_MANAGER;
use crate::context::Context;
use crate::error::Error;
use crate::reconcile::{Outcome, Reconciler};

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
    pub fn related(_: &Context) -> Vec<BoxStream<'static, ObjectRef<DialogCluster>>> {
        vec![]
    }
}

impl Reconciler for Controller {
    const NAME: &'static str = "cluster";
    const MANAGER: &'static str = CLUSTER_MANAGER;
    const DEADLINE: Duration = Duration::from_mins(1);

    async fn reconcile(&self, _: Arc<DialogCluster>) -> Result<Outcome, Error> {
        let _ = &self.context;
        Ok(Outcome::Done)
    }
}
