//! What is said of an object that is not what its schema says. Only its metadata and conditions are looked at.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, api::Patch, api::PatchParams};
use serde_json::json;
use tracing::debug;

use crate::api::DialogCluster;
use crate::condition::{CLUSTER_MANAGER, Finding, READY, find};
use crate::context::Context;
use crate::error::Error;

/// Writes the condition `Ready=False`, where the API server takes it.
pub async fn report(context: &Context, key: &ObjectRef<DialogCluster>, error: &Error) {
    if let Err(error) = write(context, key, error).await {
        debug!(cluster = %key, %error, "could not report on the object itself");
    }
}

async fn write(context: &Context, key: &ObjectRef<DialogCluster>, error: &Error) -> Result<(), kube::Error> {
    let kind = ApiResource::erase::<DialogCluster>(&());
    let namespace = key.namespace.as_deref().unwrap_or_default();
    let clusters: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &kind);
    let Some(object) = clusters.get_opt(&key.name).await? else { return Ok(()) };
    let before: Vec<Condition> = object
        .data
        .pointer("/status/conditions")
        .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
        .unwrap_or_default();
    let condition = Finding::new(READY, false, error.reason(), error.to_string()).into_condition(
        &before,
        object.metadata.generation,
        Timestamp::now(),
    );
    if find(&before, READY) == Some(&condition) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "status": { "conditions": [condition] },
    });
    let how = PatchParams::apply(CLUSTER_MANAGER).force();
    clusters.patch_status(&key.name, &how, &Patch::Apply(&patch)).await.map(drop)
}
