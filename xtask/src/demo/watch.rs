//! Following a `DialogCluster` until it serves.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::command::Log;
use crate::tools::Tool;

/// How long a cluster may take until it is ready.
const PATIENCE: Duration = Duration::from_mins(5);
/// The conditions to wait for, on a database with Citus and on any.
const WITH_CITUS: &[&str] = &["Ready", "MetadataSynced", "SchemaDistributed"];
const WITHOUT_CITUS: &[&str] = &["Ready"];

/// The object as soon as it is ready; meanwhile each change of a condition is shown.
pub(super) fn until_ready(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    has_citus: bool,
    log: &Log,
) -> Result<Value> {
    let wanted = if has_citus { WITH_CITUS } else { WITHOUT_CITUS };
    let started = Instant::now();
    let mut kubectl = cluster.client(Tool::Kubectl);
    kubectl.args(["get", "dialogcluster", name, "--namespace", namespace, "--watch", "--output", "json"]);
    let watch = Watch::start(&mut kubectl, log)?;
    let mut seen = Conditions::default();
    loop {
        let left = PATIENCE.saturating_sub(started.elapsed());
        let Ok(object) = watch.objects.recv_timeout(left) else {
            if started.elapsed() < PATIENCE {
                bail!("the watch of DialogCluster {name} ended before it was ready: {}", seen.unmet(wanted));
            }
            bail!("DialogCluster {name} is not ready after {} s: {}", PATIENCE.as_secs(), seen.unmet(wanted));
        };
        for line in seen.update(&object) {
            show(started.elapsed(), &line);
            log.note(&line)?;
        }
        if seen.hold(wanted, &object) {
            return Ok(object);
        }
    }
}

/// A line above the one that the step rewrites.
fn show(elapsed: Duration, line: &str) {
    let clear = if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
    eprintln!("{clear}{:>8}    {line}", format!("{:.1} s", elapsed.as_secs_f64()));
}

/// A `kubectl --watch` and the objects it prints.
struct Watch {
    process: Child,
    objects: Receiver<Value>,
}

impl Watch {
    fn start(kubectl: &mut Command, log: &Log) -> Result<Self> {
        let mut process = kubectl
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.append()?)
            .spawn()
            .context("cannot run kubectl")?;
        let output = process.stdout.take().context("kubectl has no output")?;
        let (sender, objects) = mpsc::channel();
        thread::spawn(move || {
            let stream = serde_json::Deserializer::from_reader(output).into_iter::<Value>();
            for object in stream.map_while(Result::ok) {
                if sender.send(object).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, objects })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The conditions last seen, by type.
#[derive(Debug, Default)]
struct Conditions(BTreeMap<String, Condition>);

#[derive(Debug, PartialEq, Eq)]
struct Condition {
    status: String,
    reason: String,
    message: String,
}

impl Conditions {
    /// Takes over what `object` says; one line per condition whose status or reason changed.
    fn update(&mut self, object: &Value) -> Vec<String> {
        let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        let mut lines = Vec::new();
        for condition in object["status"]["conditions"].as_array().into_iter().flatten() {
            let now = Condition {
                status: text(condition, "status"),
                reason: text(condition, "reason"),
                message: text(condition, "message"),
            };
            let kind = text(condition, "type");
            let before = self.0.get(&kind);
            if before.is_none_or(|before| (&before.status, &before.reason) != (&now.status, &now.reason)) {
                lines.push(format!("{kind}={} {}: {}", now.status, now.reason, now.message));
            }
            self.0.insert(kind, now);
        }
        lines
    }

    /// Whether all of `wanted` are true of the object's current generation.
    fn hold(&self, wanted: &[&str], object: &Value) -> bool {
        let is_current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        is_current
            && wanted.iter().all(|kind| self.0.get(*kind).is_some_and(|condition| condition.status == "True"))
    }

    /// What keeps `wanted` from holding.
    fn unmet(&self, wanted: &[&str]) -> String {
        let unmet = wanted.iter().filter_map(|kind| match self.0.get(*kind) {
            Some(condition) if condition.status == "True" => None,
            Some(Condition { status, reason, message }) => {
                Some(format!("{kind}={status} {reason}: {message}"))
            }
            None => Some(format!("{kind} is not reported")),
        });
        unmet.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(generation: i64, ready: &str, reason: &str) -> Value {
        json!({
            "metadata": {"generation": generation},
            "status": {
                "observedGeneration": 1,
                "conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": "m"}],
            },
        })
    }

    #[test]
    fn only_changes_are_shown() {
        let mut conditions = Conditions::default();
        assert_eq!(conditions.update(&object(1, "False", "Starting")), ["Ready=False Starting: m"]);
        assert!(conditions.update(&object(1, "False", "Starting")).is_empty());
        assert_eq!(conditions.update(&object(1, "False", "Waiting")), ["Ready=False Waiting: m"]);
        assert_eq!(conditions.unmet(&["Ready", "Other"]), "Ready=False Waiting: m; Other is not reported");
    }

    #[test]
    fn a_condition_of_an_older_generation_does_not_count() {
        let mut conditions = Conditions::default();
        conditions.update(&object(1, "True", "Ready"));
        assert!(conditions.hold(&["Ready"], &object(1, "True", "Ready")));
        assert!(!conditions.hold(&["Ready"], &object(2, "True", "Ready")));
        assert!(!conditions.hold(&["Ready", "Other"], &object(1, "True", "Ready")));
    }
}
