//! How a controller writes its part of a status: server-side apply under its own field manager, only if something
//! changed, and an Event for each condition that did.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Map, Value, json};
use tracing::{debug, info};

use crate::api::{DialogCluster, DialogClusterStatus, GROUP};
use crate::condition::{self, Finding, Holds};
use crate::context::Context;
use crate::error::Error;
use crate::reconcile::{NOTE, shorten};

/// The part of the status that one controller owns.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its field manager.
    pub manager: &'static str,
    /// The fields it owns, as they are written in the object, `conditions` aside.
    pub fields: &'static [&'static str],
    /// The types of the conditions it owns.
    pub conditions: &'static [&'static str],
}

impl Part {
    /// The status to apply: of `status` only the fields that this controller owns, with `findings` as conditions.
    fn fragment(
        self,
        cluster: &DialogCluster,
        status: &DialogClusterStatus,
        findings: Vec<Finding>,
    ) -> Value {
        let before = conditions(cluster);
        let generation = cluster.metadata.generation;
        let now = Timestamp::now();
        let mut fragment = self.of(status);
        let findings: Vec<Condition> =
            findings.into_iter().map(|finding| finding.into_condition(before, generation, now)).collect();
        fragment.insert("conditions".to_owned(), json!(findings));
        Value::Object(fragment)
    }

    /// The fields of `status` that this controller owns.
    fn of(self, status: &DialogClusterStatus) -> Map<String, Value> {
        let Ok(Value::Object(mut all)) = serde_json::to_value(status) else { return Map::new() };
        all.retain(|field, _| self.fields.contains(&field.as_str()));
        all
    }

    /// What is there of this controller now, in the form of [`Part::fragment`].
    fn current(self, cluster: &DialogCluster, order: &Value) -> Value {
        let mut current = cluster.status.as_ref().map(|status| self.of(status)).unwrap_or_default();
        let mut own: Vec<&Condition> = conditions(cluster)
            .iter()
            .filter(|condition| self.conditions.contains(&condition.type_.as_str()))
            .collect();
        // Conditions are a map: their order is no difference.
        let position = |kind: &str| {
            order["conditions"]
                .as_array()
                .and_then(|all| all.iter().position(|condition| condition["type"] == kind))
        };
        own.sort_by_key(|condition| position(&condition.type_));
        current.insert("conditions".to_owned(), json!(own));
        Value::Object(current)
    }
}

fn conditions(cluster: &DialogCluster) -> &[Condition] {
    cluster.status.as_ref().map_or(&[], |status| &status.conditions)
}

/// Writes one controller's part of a cluster's status if it differs from what is there; says whether it did.
///
/// Fields of `status` that the controller does not own are left out, whatever they hold; owned ones that are `None`
/// are removed from the object. For each condition whose status or reason changed an Event is published, and the
/// other controllers are woken.
///
/// # Errors
/// If the API server refuses.
pub async fn write(
    context: &Context,
    cluster: &DialogCluster,
    part: Part,
    status: &DialogClusterStatus,
    findings: Vec<Finding>,
) -> Result<bool, Error> {
    let fragment = part.fragment(cluster, status, findings.clone());
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    if part.current(cluster, &fragment) == fragment {
        // An operator that has just started shows what others have written.
        context.metrics.shards.conditions(&namespace, &name, &findings);
        return Ok(false);
    }
    apply(context, &namespace, &name, cluster.metadata.uid.as_deref(), part.manager, fragment).await?;
    context.metrics.shards.conditions(&namespace, &name, &findings);
    context.metrics.status_written(part.manager);
    for finding in &findings {
        announce(context, cluster, finding).await;
    }
    context.wake_others(part.manager, ObjectRef::new(&name).within(&namespace));
    Ok(true)
}

/// Shows nothing any more of the conditions of a cluster that is gone.
pub fn forget(context: &Context, cluster: &ObjectRef<DialogCluster>, part: Part) {
    let unknown = |kind: &&'static str| Finding::new(kind, Holds::Unknown, "NotObserved", "it is gone");
    let unknown: Vec<Finding> = part.conditions.iter().map(unknown).collect();
    let namespace = cluster.namespace.as_deref().unwrap_or_default();
    context.metrics.shards.conditions(namespace, &cluster.name, &unknown);
}

/// Applies `status` to a cluster as the given field manager. With a `uid`, only to that very object.
///
/// # Errors
/// If the API server refuses.
pub async fn apply(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    manager: &str,
    status: Value,
) -> Result<(), Error> {
    let mut metadata = json!({ "name": name, "namespace": namespace });
    if let Some(uid) = uid {
        metadata["uid"] = json!(uid);
    }
    let patch = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": DialogCluster::kind(&()),
        "metadata": metadata,
        "status": status,
    });
    // Read as plain JSON, so that a malformed spec cannot make the report about it fail.
    let clusters: Api<kube::core::PartialObjectMeta<DialogCluster>> =
        Api::namespaced(context.client.clone(), namespace);
    clusters
        .patch_status(name, &PatchParams::apply(manager).force(), &Patch::Apply(&patch))
        .await
        .map_err(Error::kubernetes("write the status of", format!("DialogCluster {namespace}/{name}")))?;
    Ok(())
}

/// Publishes an Event if a condition's status or reason is not what it was.
async fn announce(context: &Context, cluster: &DialogCluster, finding: &Finding) {
    let before = condition::find(conditions(cluster), finding.kind);
    let same =
        |before: &Condition| before.status == finding.holds.as_str() && before.reason == finding.reason;
    if before.is_some_and(same) {
        return;
    }
    info!(
        cluster = %cluster.name_any(), namespace = cluster.namespace(), condition = finding.kind,
        status = finding.holds.as_str(), reason = finding.reason, message = %finding.message, "changed"
    );
    let worse = finding.is_worse_than(before.map(|before| before.status.as_str()));
    let event = Event {
        type_: if worse { EventType::Warning } else { EventType::Normal },
        reason: finding.reason.to_owned(),
        note: Some(shorten(
            &format!("{}={}: {}", finding.kind, finding.holds.as_str(), finding.message),
            NOTE,
        )),
        action: finding.kind.to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &cluster.object_ref(&())).await {
        debug!(cluster = %cluster.name_any(), %error, "could not publish an Event");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{DialogClusterSpec, Phase};

    const PART: Part = Part {
        manager: "test",
        fields: &["phase", "url"],
        conditions: &[condition::READY, condition::PROGRESSING],
    };

    fn findings() -> Vec<Finding> {
        vec![
            Finding::new(condition::READY, true, "Ready", "all"),
            Finding::new(condition::PROGRESSING, false, "Idle", "nothing"),
        ]
    }

    fn cluster(status: Option<DialogClusterStatus>) -> DialogCluster {
        let spec: DialogClusterSpec = serde_json::from_value(json!({})).unwrap();
        let mut cluster = DialogCluster::new("chat", spec);
        cluster.status = status;
        cluster
    }

    #[test]
    fn only_owned_fields_are_written_and_the_same_again_is_no_change() {
        let status =
            DialogClusterStatus { phase: Some(Phase::Ready), workers: Some(3), ..Default::default() };
        let first = PART.fragment(&cluster(None), &status, findings());
        assert!(first.get("workers").is_none(), "{first}");

        let mut written: DialogClusterStatus = serde_json::from_value(first.clone()).unwrap();
        written.conditions.reverse();
        written.conditions.push(Finding::new(condition::BALANCED, true, "Balanced", "").into_condition(
            &[],
            None,
            Timestamp::UNIX_EPOCH,
        ));
        written.shards = Some(48);
        let cluster = cluster(Some(written));
        let again = PART.fragment(&cluster, &status, findings());
        assert_eq!(PART.current(&cluster, &again), again);
    }

    #[test]
    fn a_field_that_went_away_is_a_change() {
        let cluster =
            cluster(Some(DialogClusterStatus { url: Some("http://chat".into()), ..Default::default() }));
        let fragment = PART.fragment(&cluster, &DialogClusterStatus::default(), vec![]);
        assert_ne!(PART.current(&cluster, &fragment), fragment);
    }
}
