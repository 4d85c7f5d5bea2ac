//! `cargo xtask demo`: from nothing to a message listed through the ingress.

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use crate::cache::Cache;
use crate::cluster::{Cluster, INGRESS};
use crate::command::{self, Log};
use crate::progress::Progress;
use crate::tools::Tool;
use crate::{release, repository, table};

mod conversation;
mod watch;

use conversation::{Conversation, Service};

/// Where the example is applied.
const NAMESPACE: &str = "dialog";
/// The name of the cluster in every example.
const CLUSTER: &str = "chat";
/// The host of the examples' ingress.
const HOST: &str = "chat.localhost";

/// What a run ends with.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The table of nodes and shards.
    pub(crate) nodes: String,
    /// One JSON object, the last line of a run.
    pub(crate) summary: String,
}

#[derive(Debug, Serialize)]
struct Summary {
    demo: &'static str,
    kubernetes: String,
    citus: Option<String>,
    workers: i64,
    sent: usize,
    listed: usize,
    url: String,
}

/// Brings everything up and uses it. Repeating it keeps what is there and adds two users and a message.
pub(crate) fn run(cache: &Cache, progress: &Progress) -> Result<Outcome> {
    let cluster = Cluster::up(cache, progress)?;
    let images = release::install(cache, &cluster, progress)?;
    let example = if images.has_citus {
        "examples/two-workers.yaml"
    } else {
        eprintln!(
            "          No Citus: no registry with a published image is in reach, and this machine's PostgreSQL does not \
             have the extension. One node serves: examples/single-node.yaml"
        );
        "examples/single-node.yaml"
    };
    progress.step(&format!("kubectl apply {example}"), |log| {
        release::namespace(&cluster, NAMESPACE, log)?;
        let mut kubectl = cluster.client(Tool::Kubectl);
        kubectl.args(["apply", "--namespace", NAMESPACE, "--filename"]).arg(repository().join(example));
        command::run(&mut kubectl, log)
    })?;
    let object = progress.step("DialogCluster", |log| {
        watch::until_ready(&cluster, NAMESPACE, CLUSTER, images.has_citus, log)
            .map_err(|error| explain(&cluster, &error, log))
    })?;
    let Conversation { sent, listed } = progress.step("A message through the ingress", |log| {
        Service::at(INGRESS, HOST, log)
            .and_then(|service| service.converse())
            .map_err(|error| explain(&cluster, &error, log))
    })?;

    let status = &object["status"];
    let (_, port) = INGRESS.rsplit_once(':').context("the ingress has no port")?;
    let summary = Summary {
        demo: "ok",
        kubernetes: kubernetes(&cluster)?,
        citus: status["citusVersion"].as_str().map(str::to_owned),
        workers: object["spec"]["workers"]["count"].as_i64().unwrap_or_default(),
        sent,
        listed,
        url: format!("http://{HOST}:{port}"),
    };
    let summary = serde_json::to_string(&summary).context("cannot write the summary")?;
    Ok(Outcome { nodes: table::nodes(status), summary })
}

/// The version that the API server reports.
fn kubernetes(cluster: &Cluster) -> Result<String> {
    let version = command::output(cluster.client(Tool::Kubectl).args(["version", "--output", "json"]))?;
    let version: Value = serde_json::from_str(&version).context("kubectl printed no JSON")?;
    version["serverVersion"]["gitVersion"]
        .as_str()
        .map(str::to_owned)
        .context("the API server reports no version")
}

/// The failure with what one would look at next: the last lines here, all of it in the log.
fn explain(cluster: &Cluster, error: &anyhow::Error, log: &Log) -> anyhow::Error {
    let operator = format!("deployment/{}", release::NAME);
    let ours = ["--namespace", NAMESPACE];
    let questions: [&[&str]; 6] = [
        &["logs", "--selector", "dialogcluster.io/cluster", "--all-containers", "--prefix", "--tail", "40"],
        &["logs", &operator, "--namespace", release::NAMESPACE, "--tail", "100"],
        &["get", "pods,statefulsets,persistentvolumeclaims,services,ingresses", "--output", "wide"],
        &["describe", "pods"],
        &["events"],
        &["describe", "dialogcluster", CLUSTER],
    ];
    for question in questions {
        // Whatever cannot be found out must not hide the failure itself.
        let _ = command::run(cluster.client(Tool::Kubectl).args(ours).args(question), log);
    }
    anyhow::anyhow!(
        "{error:#}\n\n    {}\n\nthe pods, events and logs: {}",
        log.tail(20).join("\n    "),
        log.path().display()
    )
}
