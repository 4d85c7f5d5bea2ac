//! The operator in the local cluster, by its chart.

use anyhow::Result;

use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::command;
use crate::images::{self, Images};
use crate::progress::Progress;
use crate::repository;
use crate::tools::Tool;

/// The Helm release and its Deployment.
pub(crate) const NAME: &str = "dialog-operator";
/// Its namespace.
pub(crate) const NAMESPACE: &str = "dialog-system";

/// Builds the images, brings them into the cluster and installs or upgrades the chart, with `values` of its own as
/// `name=value`.
pub(crate) fn install(
    cache: &Cache,
    cluster: &Cluster,
    values: &[&str],
    progress: &Progress,
) -> Result<Images> {
    let images = images::ensure(cache, cluster.engine(), progress)?;
    let missing = cluster.missing_images(&images.names())?;
    if !missing.is_empty() {
        progress.step("Images into the cluster", |log| cluster.load_images(&missing, log))?;
    }
    progress.step("Helm chart", |log| {
        namespace(cluster, NAMESPACE, log)?;
        let set = [
            format!("images.operator={}", images.operator),
            format!("images.dialogApi={}", images.dialog_api),
            format!("images.postgres={}", images.postgres),
        ];
        let mut helm = cluster.client(Tool::Helm);
        helm.args(["upgrade", "--install", NAME]).arg(repository().join("charts/dialog-operator")).args([
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            "120s",
        ]);
        for value in set.iter().map(String::as_str).chain(values.iter().copied()) {
            helm.args(["--set", value]);
        }
        if command::run(&mut helm, log).is_err() {
            // Helm says that it waited in vain; what it waited for says why.
            cluster.look_into(NAMESPACE, NAME, log);
            return Err(command::failure("helm upgrade --install", "failed", log));
        }
        Ok(())
    })?;
    Ok(images)
}

/// Makes sure that a namespace exists in which only restricted pods are admitted.
pub(crate) fn namespace(cluster: &Cluster, name: &str, log: &command::Log) -> Result<()> {
    let manifest = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    let mut kubectl = cluster.client(Tool::Kubectl);
    kubectl.args([
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager",
        "xtask",
        "--filename",
        "-",
    ]);
    command::run_with_input(&mut kubectl, manifest.to_string().as_bytes(), log)
}
