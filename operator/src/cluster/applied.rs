//! Whether an object is still as we applied it, by what the API server says of it. Pure.
//!
//! Two things have to hold. The object carries a hash of the form in which we applied it last, and that is the form that
//! is wanted now. And we still own every field of that form: whoever changes or removes one takes it from us, which the
//! API server writes down in the object's `managedFields`. Then applying it again would change nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::core::{DynamicObject, ObjectMeta};
use serde_json::{Map, Value};

use super::certificates::fingerprint;
use crate::condition::CLUSTER_MANAGER;

/// Annotation with the hash.
const APPLIED: &str = "dialogcluster.io/applied";

/// Writes an object's hash into the object.
///
/// # Errors
/// If the object cannot be written as JSON.
pub fn stamp(object: &mut DynamicObject) -> Result<(), serde_json::Error> {
    let hash = fingerprint(&serde_json::to_string(object)?);
    object.metadata.annotations.get_or_insert_default().insert(APPLIED.to_owned(), hash);
    Ok(())
}

/// Whether applying `wanted`, which [`stamp`] has seen, would change nothing of the object whose metadata is `there`.
///
/// In doubt it says no.
#[must_use]
pub fn is_applied(wanted: &DynamicObject, there: &ObjectMeta) -> bool {
    let hash = |metadata: &ObjectMeta| metadata.annotations.as_ref()?.get(APPLIED).cloned();
    let applied = |entry: &&ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(CLUSTER_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    };
    let owned =
        there.managed_fields.iter().flatten().find(applied).and_then(|entry| entry.fields_v1.as_ref());
    hash(&wanted.metadata).is_some()
        && hash(&wanted.metadata) == hash(there)
        && owned.is_some_and(|owned| fields(wanted).is_some_and(|wanted| covers(&owned.0, &wanted)))
}

/// What of an object can be owned: its identity cannot.
fn fields(object: &DynamicObject) -> Option<Value> {
    let mut object = serde_json::to_value(object).ok()?;
    let all = object.as_object_mut()?;
    all.retain(|field, _| !["apiVersion", "kind"].contains(&field.as_str()));
    let metadata = all.get_mut("metadata")?.as_object_mut()?;
    metadata.retain(|field, _| !["name", "namespace"].contains(&field.as_str()));
    Some(object)
}

/// Whether the set `owned`, in the notation of `managedFields`, has every field of `wanted`.
fn covers(owned: &Value, wanted: &Value) -> bool {
    // A set without members stands for the value as a whole.
    let Some(members) = owned.as_object().filter(|members| !members.is_empty()) else { return true };
    match wanted {
        Value::Object(fields) => fields
            .iter()
            .all(|(name, value)| members.get(&format!("f:{name}")).is_some_and(|owned| covers(owned, value))),
        Value::Array(items) => items
            .iter()
            .all(|item| members.iter().any(|(key, owned)| is_key_of(key, item) && covers(owned, item))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

/// Whether a member of a list's set stands for `item`: `k:` and its key fields, or `v:` and the item itself.
fn is_key_of(member: &str, item: &Value) -> bool {
    if let Some(value) = member.strip_prefix("v:") {
        return serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item);
    }
    let keys =
        member.strip_prefix("k:").and_then(|keys| serde_json::from_str::<Map<String, Value>>(keys).ok());
    // A key field that the item leaves out has its default.
    keys.is_some_and(|keys| keys.iter().all(|(name, value)| item.get(name).is_none_or(|own| own == value)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldsV1;
    use serde_json::json;

    use super::*;

    fn service(port: u16) -> DynamicObject {
        let mut object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "chat", "namespace": "ns", "labels": { "a": "1" } },
            "spec": {
                "ports": [{ "name": "http", "port": port, "protocol": "TCP" }, { "name": "more", "port": 1 }],
                "selector": { "a": "1" },
            },
        }))
        .unwrap();
        stamp(&mut object).unwrap();
        object
    }

    /// What the API server says after `service(80)` was applied.
    fn owned() -> Value {
        json!({
            "f:metadata": {
                "f:annotations": { "f:dialogcluster.io/applied": {} },
                "f:labels": { "f:a": {} },
            },
            "f:spec": {
                "f:ports": {
                    "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {} },
                    "k:{\"port\":1,\"protocol\":\"TCP\"}": { ".": {}, "f:name": {}, "f:port": {} },
                },
                "f:selector": {},
            },
        })
    }

    fn metadata(hash_of: &DynamicObject, manager: &str, fields: Value) -> ObjectMeta {
        let entry = ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some("Apply".to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        };
        ObjectMeta { managed_fields: Some(vec![entry]), ..hash_of.metadata.clone() }
    }

    #[test]
    fn what_was_applied_and_left_alone_is_recognised() {
        assert!(is_applied(&service(80), &metadata(&service(80), CLUSTER_MANAGER, owned())));
    }

    #[test]
    fn another_form_is_a_difference() {
        assert!(!is_applied(&service(81), &metadata(&service(80), CLUSTER_MANAGER, owned())));
        let mut bare = service(80);
        bare.metadata.annotations = None;
        assert!(!is_applied(&bare, &metadata(&bare, CLUSTER_MANAGER, owned())));
    }

    #[test]
    fn a_field_that_somebody_took_is_a_difference() {
        let port = "k:{\"port\":80,\"protocol\":\"TCP\"}";
        for (parent, field) in [
            ("/f:spec", "f:selector"),
            ("/f:spec", "f:ports"),
            ("/f:spec/f:ports", port),
            ("/f:metadata/f:labels", "f:a"),
            ("/f:metadata/f:annotations", "f:dialogcluster.io/applied"),
        ] {
            let mut left = owned();
            // Something else stays, as an emptied set is not written down at all.
            left.pointer_mut(parent).unwrap()["f:other"] = json!({});
            left.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field).unwrap();
            assert!(!is_applied(&service(80), &metadata(&service(80), CLUSTER_MANAGER, left)), "{field}");
        }
        let mut renamed = owned();
        let ports = renamed.pointer_mut("/f:spec/f:ports").unwrap();
        ports[port].as_object_mut().unwrap().remove("f:name");
        assert!(!is_applied(&service(80), &metadata(&service(80), CLUSTER_MANAGER, renamed)));
    }

    #[test]
    fn what_somebody_else_owns_says_nothing() {
        assert!(!is_applied(&service(80), &metadata(&service(80), "kubectl", owned())));
        assert!(!is_applied(&service(80), &service(80).metadata));
    }
}
