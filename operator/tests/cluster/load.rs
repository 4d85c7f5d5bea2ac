//! Load on a cluster by dialog-bench in a pod beside it, with its ledger.
//!
//! The pod has the certificates and the key of dialog-api: it signs tokens, and reads every shard where it is.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_bench::audit::GroupReport;
use dialog_bench::report::Report;
use dialog_bench::stats::Latency;
use dialog_operator::names::{API_PORT, Group};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::PostParams;
use serde_json::json;

use crate::bed::{Bed, kubectl_command, object};

/// How long a pod may take to run.
const TO_RUN: Duration = Duration::from_mins(1);
/// Requests of a million that may fail although they were sent again with the same key.
const FAILED: u64 = 100;
/// How often a request is sent again.
pub(crate) const RETRIES: u32 = 3;
/// How long all shards may take to be read once the load has ended, in seconds.
const TO_AUDIT: i64 = 300;

/// People and what they have written: the same numbers are the same people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Population {
    pub(crate) users: u32,
    pub(crate) dialogs: u32,
    /// In each dialog.
    pub(crate) messages: u32,
}

/// A load under way.
pub(crate) struct Load {
    pod: String,
    log: Child,
    output: JoinHandle<std::io::Result<String>>,
}

impl Population {
    /// Writes it.
    pub(crate) async fn write(self, bed: &Bed) -> Result<()> {
        let messages = format!("--messages={}", self.messages);
        let load = Load::begin(bed, &["load", &self.users(), &self.dialogs(), &messages]).await?;
        bed.say(load.ended(bed).await?.trim());
        Ok(())
    }

    /// Has this load made until its time is over.
    pub(crate) async fn run(self, bed: &Bed, load: &[&str]) -> Result<Report> {
        read(&self.start(bed, load).await?.ended(bed).await?)
    }

    /// Has this load made until it is stopped, or its time is over.
    pub(crate) async fn start(self, bed: &Bed, load: &[&str]) -> Result<Load> {
        let service = format!("--target=http://{}:{API_PORT}", bed.names.host_of_service(&bed.names.api()));
        let (users, dialogs) = (self.users(), self.dialogs());
        let retries = format!("--retries={RETRIES}");
        let arguments = ["run", &service, &users, &dialogs, &retries, "--json=-"];
        Load::begin(bed, &[&arguments, load].concat()).await
    }

    fn users(self) -> String {
        format!("--users={}", self.users)
    }

    fn dialogs(self) -> String {
        format!("--dialogs={}", self.dialogs)
    }
}

impl Load {
    async fn begin(bed: &Bed, arguments: &[&str]) -> Result<Self> {
        let image = std::env::var("DIALOG_BENCH_IMAGE").context("DIALOG_BENCH_IMAGE is not set")?;
        let names = &bed.names;
        let pod: Pod = object(json!({
            "metadata": {"generateName": "load-"},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": TO_AUDIT,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "load",
                    "image": image,
                    "args": arguments,
                    "workingDir": "/work",
                    // Whoever makes a load and waits for a processor measures himself.
                    "resources": {"requests": {"cpu": "200m"}},
                    "env": [
                        {"name": "DIALOG_API_DATABASE_HOST", "value": names.host(Group::Coordinator)},
                        {"name": "DIALOG_API_TLS_CA", "value": "/tls/ca.crt"},
                        {"name": "DIALOG_API_TLS_CERT", "value": "/tls/tls.crt"},
                        {"name": "DIALOG_API_TLS_KEY", "value": "/tls/tls.key"},
                        {"name": "DIALOG_API_TOKEN_KEY_FILE", "value": "/token/key"},
                    ],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "work", "mountPath": "/work"},
                        {"name": "tls", "mountPath": "/tls"},
                        {"name": "token", "mountPath": "/token"},
                    ],
                }],
                "volumes": [
                    {"name": "work", "emptyDir": {}},
                    {"name": "tls", "secret": {"secretName": names.api_certificate(), "defaultMode": 0o440}},
                    {"name": "token", "secret": {"secretName": names.api_token(), "defaultMode": 0o440}},
                ],
            },
        }))?;
        let pod = bed.all::<Pod>().create(&PostParams::default(), &pod).await?.name_any();
        bed.eventually(&format!("{pod} runs"), TO_RUN, || async {
            let phase = phase(bed, &pod).await?;
            Ok((phase == "Pending").then_some(phase))
        })
        .await?;
        let mut log = kubectl_command()
            .args(["--namespace", names.namespace(), "logs", "--follow", &pod])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run kubectl")?;
        let mut stdout = log.stdout.take().context("kubectl has no output")?;
        let output = std::thread::spawn(move || {
            let mut output = String::new();
            stdout.read_to_string(&mut output).map(|_| output)
        });
        Ok(Self { pod, log, output })
    }

    /// Ends the load, and reads all shards. Fails if it has ended by itself before.
    pub(crate) async fn stop(self, bed: &Bed) -> Result<Report> {
        let phase = phase(bed, &self.pod).await?;
        ensure!(phase == "Running", "the load has not lasted long enough: {} is {phase}", self.pod);
        bed.kubectl(&["delete", "pod", &self.pod, "--wait=false"])?;
        read(&self.output().await?)
    }

    /// All that it says until it ends by itself. Fails if it did.
    async fn ended(self, bed: &Bed) -> Result<String> {
        let pod = self.pod.clone();
        let output = self.output().await?;
        bed.eventually(&format!("{pod} has ended"), TO_RUN, || async {
            let phase = phase(bed, &pod).await?;
            Ok((phase == "Running").then_some(phase))
        })
        .await?;
        let phase = phase(bed, &pod).await?;
        ensure!(phase == "Succeeded", "{pod} {phase}: {output}");
        Ok(output)
    }

    async fn output(mut self) -> Result<String> {
        let output = tokio::task::spawn_blocking(move || self.output.join()).await?;
        let output = output.ok().context("who reads the log has panicked")??;
        self.log.wait().context("kubectl logs")?;
        Ok(output)
    }
}

/// The longest time, in milliseconds, that sends to one of these shard groups waited for an acknowledgement.
pub(crate) fn longest_wait<'a>(groups: impl IntoIterator<Item = &'a GroupReport>) -> f64 {
    groups.into_iter().map(|group| group.gap.longest_wait_ms).fold(0.0, f64::max)
}

/// Prints what came of a load.
pub(crate) fn say(bed: &Bed, when: &str, report: &Report) {
    for line in report.text().lines() {
        bed.say(format!("{when}: {line}"));
    }
}

/// The p99 of sends as a multiple of what it was at another time.
pub(crate) fn p99(then: &Report, before: &Report) -> f64 {
    then.sends.latency_ms.p99 / before.sends.latency_ms.p99
}

/// The latencies of sends to the shards of one node, `HOST:PORT`.
pub(crate) fn latency_of(report: &Report, node: &str) -> Result<Latency> {
    let found = report.nodes.iter().find(|of| of.node == node);
    found.map(|of| of.latency_ms).with_context(|| format!("no shard is on {node}: {:?}", report.nodes))
}

/// Makes sure that hardly any request failed that was sent again with the same key.
pub(crate) fn ensure_answered(report: &Report) -> Result<()> {
    let Report { sends, lists, .. } = report;
    let requests = sends.requests + lists.requests;
    let failed = requests - sends.succeeded - lists.succeeded;
    ensure!(hardly_any(failed, requests), "{failed} of {requests} failed: {}", report.text());
    Ok(())
}

/// Whether no more of these requests failed than may.
pub(crate) fn hardly_any(failed: u64, requests: u64) -> bool {
    failed * 1_000_000 <= FAILED * requests
}

async fn phase(bed: &Bed, pod: &str) -> Result<String> {
    let pod = bed.all::<Pod>().get(pod).await?;
    Ok(pod.status.and_then(|status| status.phase).unwrap_or_default())
}

/// The report is all of the output but for lines before and after it.
fn read(output: &str) -> Result<Report> {
    let start =
        if output.starts_with('{') { 0 } else { output.find("\n{").map_or(output.len(), |line| line + 1) };
    let mut reports = serde_json::Deserializer::from_str(&output[start..]).into_iter();
    reports.next().and_then(Result::ok).with_context(|| format!("no report: {output}"))
}
