//! What is generated from the types of the operator: the custom resource definition and its reference.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_yaml_ng::{Mapping, Value};

use crate::{command, docs, repository};

/// Helm leaves an object with this annotation alone when the chart is uninstalled: deleting the definition would delete
/// every `DialogCluster` with it.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// Writes `crds/` and the API reference; with `check`, fails if they are not what would be written.
pub(crate) fn run(check: bool) -> Result<()> {
    // On its own, with cargo's progress on the terminal: on a fresh machine it takes minutes.
    let built = cargo(&["build", "--package", "dialog-operator"]).status().context("cannot run cargo")?;
    ensure!(
        built.success(),
        "the operator, whose types the definitions come from, does not compile: see above"
    );
    let printed =
        command::output(&mut cargo(&["run", "--quiet", "--package", "dialog-operator", "--", "crd"]))
            .context("cannot ask the operator for its definitions")?;
    let mut definition: Value = serde_yaml_ng::from_str(&printed).context("the operator printed no YAML")?;
    keep(&mut definition).context("the definition has no metadata")?;
    let name = definition["metadata"]["name"].as_str().context("the definition has no name")?.to_owned();
    let yaml = serde_yaml_ng::to_string(&definition).context("cannot write the definition as YAML")?;
    let outdated = [
        (repository().join("crds").join(format!("{name}.yaml")), yaml),
        (repository().join("docs/api-reference.md"), docs::reference(&definition)?),
    ]
    .into_iter()
    .filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(text))
    .collect::<Vec<(PathBuf, String)>>();
    if check && !outdated.is_empty() {
        let names: Vec<_> = outdated.iter().map(|(path, _)| path.display().to_string()).collect();
        bail!(
            "not what the operator's types say: {}; run `cargo xtask crds` and commit the result",
            names.join(", ")
        );
    }
    for (path, text) in outdated {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// `cargo` in this clone, the one that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository()).args(arguments);
    // What it told us about our own package would look like a change to build scripts that read these variables for
    // theirs: they and all that needs them would be built again, and once more by the next `cargo build`.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn keep(definition: &mut Value) -> Option<()> {
    let metadata = definition.get_mut("metadata")?.as_mapping_mut()?;
    let annotations = metadata.entry("annotations".into()).or_insert_with(|| Mapping::new().into());
    annotations.as_mapping_mut()?.insert(KEEP.0.into(), KEEP.1.into());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_joins_what_is_there() {
        let mut definition: Value =
            serde_yaml_ng::from_str("metadata: {name: x, annotations: {a: b}}").unwrap();
        keep(&mut definition).unwrap();
        let annotations = &definition["metadata"]["annotations"];
        assert_eq!((annotations["a"].as_str(), annotations[KEEP.0].as_str()), (Some("b"), Some("keep")));
    }
}
