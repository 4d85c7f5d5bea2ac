//! JSON schemas of Kubernetes' objects, from a server's own description of its API.
//!
//! kubeconform would download schemas that others derive from the same source.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::apiserver::ApiServer;

/// How kubeconform finds the schema of an object among the files that [`write()`] makes.
pub(super) const TEMPLATE: &str = "{{ .ResourceKind }}{{ .KindSuffix }}.json";

/// Writes a schema for every kind that the server knows into `folder`.
pub(super) fn write(server: &ApiServer, folder: &Path) -> Result<()> {
    let index = server.get("/openapi/v3")?;
    let paths = index["paths"].as_object().context("the API server lists no descriptions")?;
    for path in paths.keys().filter(|path| path.contains("/v")) {
        let mut description = server.get(&format!("/openapi/v3/{path}"))?;
        let mut components = description["components"].take();
        strict(&mut components);
        for (name, schema) in components["schemas"].as_object().into_iter().flatten() {
            for kind in schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                let part = |key: &str| kind[key].as_str().unwrap_or_default();
                let file = file_name(part("kind"), part("group"), part("version"));
                // One object among those that share a schema, such as DeleteOptions, is as good as the other.
                let schema =
                    json!({"$ref": format!("#/components/schemas/{name}"), "components": components});
                fs::write(folder.join(&file), schema.to_string())
                    .with_context(|| format!("cannot write {file}"))?;
            }
        }
    }
    Ok(())
}

/// As kubeconform names it: `deployment-apps-v1.json`, `service-v1.json`; of a group's name the first part.
fn file_name(kind: &str, group: &str, version: &str) -> String {
    let group = group.split('.').next().filter(|group| !group.is_empty());
    let group = group.map(|group| format!("-{group}")).unwrap_or_default();
    format!("{}{group}-{version}.json", kind.to_lowercase())
}

/// Refuses, in every object of `schema`, the properties it does not name.
fn strict(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("properties").is_some_and(Value::is_object)
                && !object.contains_key("additionalProperties")
            {
                object.insert("additionalProperties".to_owned(), false.into());
            }
            object.values_mut().for_each(strict);
        }
        Value::Array(list) => list.iter_mut().for_each(strict),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_group_has_no_name() {
        assert_eq!(file_name("Service", "", "v1"), "service-v1.json");
        assert_eq!(file_name("Role", "rbac.authorization.k8s.io", "v1"), "role-rbac-v1.json");
    }

    #[test]
    fn unknown_properties_are_refused_at_every_depth_and_maps_stay_open() {
        let mut schema = json!({
            "properties": {
                "inner": {"type": "object", "properties": {"a": {"type": "string"}}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object"},
            },
        });
        strict(&mut schema);
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["inner"]["additionalProperties"], false);
        assert_eq!(schema["properties"]["labels"]["additionalProperties"]["type"], "string");
        assert_eq!(schema["properties"]["free"], json!({"type": "object"}));
    }
}
