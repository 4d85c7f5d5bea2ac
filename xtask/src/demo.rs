//! `cargo xtask demo`: from nothing to a message listed through the ingress.

use std::time::{Duration, Instant};

use acceptance::conversation::{Message, Service};
use acceptance::numbers::{self, Number};
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::cache::Cache;
use crate::cluster::{Cluster, INGRESS};
use crate::command::{self, Log};
use crate::images::{self, Images};
use crate::progress::Progress;
use crate::tools::Tool;
use crate::{release, repository, table};

mod watch;

/// Where the example is applied.
const NAMESPACE: &str = "dialog";
/// The name of the cluster in every example.
const CLUSTER: &str = "chat";
/// The host of the examples' ingress.
const HOST: &str = "chat.localhost";
/// How long the ingress may take to send requests on, and the service to accept them.
const TO_ANSWER: Duration = Duration::from_mins(1);
/// How long the kubelet may take to measure a new container.
const TO_MEASURE: Duration = Duration::from_secs(30);

/// What a run ends with.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The tables of nodes and shards, and of what was measured beside its limits.
    pub(crate) tables: String,
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
    let images = release::install(cache, &cluster, &[], progress)?;
    let example = if images.has_citus {
        "examples/two-workers.yaml"
    } else {
        eprintln!(
            "          No Citus: no registry with a published image is in reach, and this machine's PostgreSQL does not \
             have the extension. One node serves: examples/single-node.yaml"
        );
        "examples/single-node.yaml"
    };
    let existed = exists(&cluster)?;
    let applied = Instant::now();
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
    // One that was there before was ready at once.
    let took = (!existed && images.has_citus).then(|| applied.elapsed());
    let numbers = progress.step("Numbers", |_| numbers(&cluster, &images, took))?;
    let (sent, listed) = progress.step("A message through the ingress", |log| {
        let notes = log.clone();
        let service = Service::new(INGRESS, HOST).observed(move |line| {
            // A log that cannot be written is no reason to stop talking.
            let _ = notes.note(line);
        });
        converse(&service).map_err(|error| explain(&cluster, &error, log))
    })?;

    let status = &object["status"];
    let (_, port) = INGRESS.rsplit_once(':').context("the ingress has no port")?;
    let summary = Summary {
        demo: "ok",
        kubernetes: kubernetes(&cluster)?,
        citus: status["citusVersion"].as_str().map(str::to_owned),
        workers: status["workers"].as_i64().unwrap_or_default(),
        sent,
        listed,
        url: format!("http://{HOST}:{port}"),
    };
    let summary = serde_json::to_string(&summary).context("cannot write the summary")?;
    let tables = format!("{}\n{}", table::nodes(status), table::numbers(&numbers));
    Ok(Outcome { tables, summary })
}

/// Whether the example was applied before.
fn exists(cluster: &Cluster) -> Result<bool> {
    let question =
        ["get", "dialogcluster", CLUSTER, "--namespace", NAMESPACE, "--ignore-not-found", "--output", "name"];
    Ok(!command::output(cluster.client(Tool::Kubectl).args(question))?.is_empty())
}

/// Registers two people; the first writes to the second, who reads it. Returns how many messages were sent, and how
/// many of them were listed.
fn converse(service: &Service) -> Result<(usize, usize)> {
    service.until_ready(TO_ANSWER)?;
    let (ada, grace) = (service.register("Ada", "Lovelace")?, service.register("Grace", "Hopper")?);
    let text = format!("Hello, {}", grace.id);
    service.send(&ada, &grace, &text)?;
    let messages = service.list(&grace, &ada)?;
    let expected = Message { from: ada.id, to: grace.id, text };
    let listed = messages.iter().filter(|message| **message == expected).count();
    ensure!(listed == 1, "one message was sent, and the list has {listed} of it: {messages:?}");
    Ok((1, listed))
}

/// What the release is held to, measured here: before anybody talks, because an idle dialog-api is asked for.
fn numbers(cluster: &Cluster, images: &Images, took: Option<Duration>) -> Result<Vec<Number>> {
    let mut numbers: Vec<_> = took.map(Number::to_ready).into_iter().collect();
    let containers =
        [(release::NAMESPACE, "operator", "the operator"), (NAMESPACE, "api", "dialog-api, idle")];
    let measure = || -> Result<Option<Vec<Number>>> {
        let summary = cluster.statistics()?;
        let memory = |(namespace, container, what): &(&str, &str, &str)| {
            Some(Number::memory(what, numbers::working_set(&summary, namespace, container)?))
        };
        Ok(containers.iter().map(memory).collect())
    };
    let mut memory = Ok(None);
    command::wait_until(TO_MEASURE, || {
        memory = measure();
        !matches!(memory, Ok(None))
    });
    numbers.extend(memory?.with_context(|| {
        format!("the kubelet has not measured the containers after {} s", TO_MEASURE.as_secs())
    })?);
    numbers.extend(Number::images(images::sizes(cluster.engine(), images)?));
    Ok(numbers)
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
