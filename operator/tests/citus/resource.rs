//! A resource as it is stored in Kubernetes, which changes while an operator is at work.

use std::sync::{Arc, Mutex};

use dialog_operator::api::DialogCluster;
use dialog_operator::shards::jobs::Present;
use dialog_operator::shards::wanted::Wanted;
use futures::future::ready;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::world::SHARDS;

/// What is stored in Kubernetes of a cluster, with two workers at first.
#[derive(Clone)]
pub struct Resource(Arc<Mutex<DialogCluster>>);

impl Resource {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Self::automatic())))
    }

    /// As it is where nothing is said.
    pub fn automatic() -> DialogCluster {
        let spec = json!({"workers": {"count": 2}, "sharding": {"shardCount": SHARDS}});
        DialogCluster::new("chat", serde_json::from_value(spec).unwrap())
    }

    pub fn change(&self, change: impl FnOnce(&mut DialogCluster)) {
        change(&mut self.0.lock().unwrap());
    }

    /// What there is of it now.
    pub fn read(&self) -> DialogCluster {
        self.0.lock().unwrap().clone()
    }

    /// What a round is given.
    pub fn wanted(&self) -> Wanted {
        Wanted::of(&self.0.lock().unwrap(), Timestamp::now())
    }

    /// What is asked before a step begins.
    pub fn present(&self) -> Present {
        let resource = self.clone();
        Arc::new(move || Box::pin(ready(Wanted::to_begin(&resource.0.lock().unwrap(), Timestamp::now()))))
    }
}
