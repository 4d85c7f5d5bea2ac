//! What is said of an object of which nothing else can be said: it is not what its schema says, or what there is of it
//! could not be read. Only its metadata and status are looked at.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::runtime::reflector::ObjectRef;
use serde_json::{Map, Value, json};
use tracing::debug;

use super::report::PART;
use super::rollout::Hold;
use crate::api::DialogCluster;
use crate::condition::{Finding, READY};
use crate::context::Context;
use crate::error::Error;
use crate::status;

/// The fields in which a [`Hold`] is.
const HOLD: [&str; 2] = ["holdMoves", "holdMovesUntil"];

/// Writes the condition `Ready=False`, where the API server takes it; what this controller said else stays, but moves of shards
/// are held for an update for minutes only while nobody knows what that does next.
pub async fn report(context: &Context, key: &ObjectRef<DialogCluster>, error: &Error) {
    if let Err(error) = write(context, key, error).await {
        debug!(cluster = %key, %error, "could not report on the object itself");
    }
}

async fn write(context: &Context, key: &ObjectRef<DialogCluster>, error: &Error) -> Result<(), Error> {
    let kind = ApiResource::erase::<DialogCluster>(&());
    let namespace = key.namespace.as_deref().unwrap_or_default();
    let clusters: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &kind);
    let found = clusters.get_opt(&key.name).await;
    let found = found.map_err(Error::kubernetes("read", format!("DialogCluster {key}")))?;
    let Some(object) = found else { return Ok(()) };
    let finding = Finding::new(READY, false, error.reason(), error.to_string());
    let before = object.data.get("status").cloned().unwrap_or_default();
    let after = with(&before, finding, object.metadata.generation, Timestamp::now());
    let said = |status: &Value| {
        let mut conditions = status.get("conditions").and_then(Value::as_array).into_iter().flatten();
        let ready = conditions.find(|condition| condition["type"] == READY).cloned();
        (ready, HOLD.map(|field| status.get(field).cloned()))
    };
    if said(&before) == said(&after) {
        return Ok(());
    }
    let uid = object.metadata.uid.as_deref();
    status::apply(context, namespace, &key.name, uid, PART.manager, after).await
}

/// This controller's part of a status, with one finding in it.
fn with(status: &Value, finding: Finding, generation: Option<i64>, now: Timestamp) -> Value {
    let before: Vec<Condition> = status
        .get("conditions")
        .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
        .unwrap_or_default();
    let mut part: Map<String, Value> = PART
        .fields
        .iter()
        .filter_map(|field| Some(((*field).to_owned(), status.get(*field)?.clone())))
        .collect();
    let kept = before
        .iter()
        .filter(|found| found.type_ != finding.kind && PART.conditions.contains(&found.type_.as_str()));
    let mut conditions: Vec<Condition> = kept.cloned().collect();
    conditions.push(finding.into_condition(&before, generation, now));
    part.insert("conditions".to_owned(), json!(conditions));
    let [since, until] = HOLD.map(|field| part.remove(field));
    let since = since.and_then(|since| serde_json::from_value(since).ok());
    let until = until.and_then(|until| serde_json::from_value(until).ok());
    if let Some(Hold { since, until }) = since.and_then(|since| Hold { since, until }.in_doubt(now)) {
        part.extend(HOLD.map(str::to_owned).into_iter().zip([json!(since), json!(until)]));
    }
    Value::Object(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_else_was_said_stays() {
        let condition = |kind: &str| {
            json!({
                "type": kind, "status": "True", "reason": "Some", "message": "",
                "lastTransitionTime": "2026-03-01T00:00:00Z",
            })
        };
        let before = json!({
            "phase": "Ready", "workers": 2, "shards": 48,
            "conditions": [condition("Ready"), condition("CertificatesValid"), condition("Balanced")],
        });
        let finding = || Finding::new(READY, false, "Malformed", "no");
        let after = with(&before, finding(), Some(2), Timestamp::UNIX_EPOCH);
        assert_eq!(
            (&after["phase"], &after["workers"], after.get("shards")),
            (&json!("Ready"), &json!(2), None)
        );
        let types: Vec<_> =
            after["conditions"].as_array().unwrap().iter().map(|one| one["type"].clone()).collect();
        assert_eq!(types, ["CertificatesValid", "Ready"]);
        assert_eq!(after["conditions"][1]["reason"], "Malformed");
    }

    #[test]
    fn what_cannot_be_looked_at_holds_moves_for_minutes_only() {
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let finding = || Finding::new(READY, false, "KubernetesUnavailable", "no");
        let after = |status: &Value, time| with(status, finding(), Some(2), at(time));
        let since = "2026-03-01T09:00:00.000001Z";
        let before = json!({ "holdMoves": since, "phase": "Updating" });
        let first = after(&before, "2026-03-01T10:00:00Z");
        assert_eq!(
            (&first["holdMoves"], &first["holdMovesUntil"]),
            (&json!(since), &json!("2026-03-01T10:03:00Z"))
        );
        let later = after(&first, "2026-03-01T10:02:59Z");
        assert_eq!(
            (&later["holdMoves"], &later["holdMovesUntil"]),
            (&json!(since), &first["holdMovesUntil"])
        );
        let over = after(&later, "2026-03-01T10:03:00Z");
        assert_eq!((over.get("holdMoves"), over.get("holdMovesUntil")), (None, None));
        assert_eq!(over["phase"], "Updating");
        assert_eq!(after(&over, "2026-03-01T10:03:10Z").get("holdMovesUntil"), None, "nothing is held");
    }
}
