//! A namespace for one test, and the ways to look into it.

use std::fmt::{Debug, Display};
use std::process::Command;
use std::time::{Duration, Instant};

use acceptance::conversation::{Message, Person, Service};
use anyhow::{Context as _, Result, bail, ensure};
use dialog_operator::api::DialogCluster;
use dialog_operator::condition;
use dialog_operator::names::{CLUSTER_LABEL, DATABASE, Group, Names, ROLE_LABEL};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::block_in_place;

/// The name of the `DialogCluster` in every test.
pub(crate) const CLUSTER: &str = "chat";
/// How long a cluster may take to serve on a busy machine; `alone::two_workers` says how long it takes
/// on a quiet one.
pub(crate) const TO_SERVE: Duration = Duration::from_mins(4);
/// How soon an obstacle has to be named, by an operator that has the machine for itself.
pub(crate) const TO_NAME: Duration = Duration::from_secs(30);
/// How soon something has to be named where tests share the operator and the machine.
pub(crate) const TO_NOTICE: Duration = Duration::from_mins(2);
/// How long the ingress controller may take to learn of a new host.
const TO_ANSWER: Duration = Duration::from_mins(1);

/// A namespace that goes with the value, and with it everything that the test made.
pub(crate) struct Bed {
    pub(crate) client: Client,
    pub(crate) names: Names,
    name: &'static str,
    done: bool,
}

impl Bed {
    /// A namespace for the test `name`.
    pub(crate) async fn new(name: &'static str) -> Result<Self> {
        let client = Client::try_default().await.context("no Kubernetes: is KUBECONFIG set?")?;
        let namespace = format!("test-{name}-{:08x}", rand::random::<u32>());
        let object: Namespace = serde_json::from_value(json!({
            "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await?;
        let bed = Self { client, names: Names::new(CLUSTER, namespace), name, done: false };
        bed.say(format!("namespace {}", bed.names.namespace()));
        Ok(bed)
    }

    /// Prints a line that says which test it is of: several may run at the same time.
    pub(crate) fn say(&self, line: impl Display) {
        println!("[{}] {line}", self.name);
    }

    /// Whether the image has Citus, so that there can be workers.
    pub(crate) fn has_citus() -> bool {
        // Only a plain `no` is one: a variable that was forgotten must not look like a machine without Citus.
        std::env::var("DIALOG_CITUS").as_deref() != Ok("no")
    }

    /// How many workers a test asks for that is about something else: one, if there can be any.
    pub(crate) fn workers() -> i32 {
        i32::from(Self::has_citus())
    }

    /// The host by which this test's cluster is reached through the ingress.
    fn host(&self) -> String {
        format!("{}.localhost", self.names.namespace())
    }

    /// dialog-api through the ingress, once it answers.
    pub(crate) fn service(&self) -> Result<Service> {
        let address = std::env::var("DIALOG_INGRESS").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
        let service = Service::new(address, self.host());
        block_in_place(|| service.until_ready(TO_ANSWER))?;
        Ok(service)
    }

    /// Two people who are about to talk.
    pub(crate) fn two_people(&self) -> Result<(Service, Person, Person)> {
        let service = self.service()?;
        let (ada, grace) = block_in_place(|| -> Result<_> {
            Ok((service.register("Ada", "Lovelace")?, service.register("Grace", "Hopper")?))
        })?;
        Ok((service, ada, grace))
    }

    /// One of two people writes, and the other reads it. Returns both, and what was written.
    pub(crate) fn talk(&self) -> Result<(Person, Person, Message)> {
        let (service, ada, grace) = self.two_people()?;
        let text = format!("through the ingress of {}", self.names.namespace());
        block_in_place(|| service.send(&ada, &grace, &text))?;
        let message = Message { from: ada.id.clone(), to: grace.id.clone(), text };
        self.still_listed(&ada, &grace, &message)?;
        Ok((ada, grace, message))
    }

    /// Makes sure that both, who log in anew, see that one message.
    pub(crate) fn still_listed(&self, one: &Person, other: &Person, message: &Message) -> Result<()> {
        let service = self.service()?;
        block_in_place(|| {
            for (reader, with) in [(one, other), (other, one)] {
                let listed = service.list(&service.login(&reader.id)?, with)?;
                ensure!(listed == [message.clone()], "{message:?} is not what is listed: {listed:?}");
            }
            Ok(())
        })
    }

    /// Objects of one kind in the namespace.
    pub(crate) fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.names.namespace())
    }

    /// A small cluster with `workers` workers, changed by `change`.
    pub(crate) async fn create(&self, workers: i32, change: impl FnOnce(&mut Value)) -> Result<()> {
        let group = json!({
            "storage": {"size": "1Gi", "reclaim": "Delete"},
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        });
        let mut spec = json!({
            "coordinator": group,
            "workers": group,
            "api": {"replicas": 1, "ingress": {"host": self.host()}},
        });
        spec["workers"]["count"] = workers.into();
        change(&mut spec);
        let cluster = json!({
            "apiVersion": "dialogcluster.io/v1alpha1",
            "kind": "DialogCluster",
            "metadata": {"name": CLUSTER},
            "spec": spec,
        });
        self.all::<DialogCluster>().create(&PostParams::default(), &serde_json::from_value(cluster)?).await?;
        Ok(())
    }

    /// Merges `spec` into the cluster's.
    pub(crate) async fn patch(&self, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.all::<DialogCluster>().patch(CLUSTER, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The cluster as soon as it is ready as a whole.
    pub(crate) async fn ready(&self) -> Result<DialogCluster> {
        let is_ready = |cluster: &DialogCluster| {
            let current = cluster.status.as_ref().and_then(|status| status.observed_generation);
            current == cluster.metadata.generation
                && ready(cluster).is_some_and(|ready| ready.status == "True")
        };
        self.until("ready", TO_SERVE, is_ready).await
    }

    /// The condition `kind` of the current generation as soon as `holds` of it.
    pub(crate) async fn condition(
        &self,
        kind: &str,
        what: &str,
        limit: Duration,
        holds: impl Fn(&Condition) -> bool,
    ) -> Result<Condition> {
        let found = |cluster: &DialogCluster| {
            let conditions = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
            condition::find(conditions, kind)
                .filter(|found| found.observed_generation == cluster.metadata.generation && holds(found))
                .cloned()
        };
        let cluster = self.until(what, limit, |cluster| found(cluster).is_some()).await?;
        found(&cluster).context("the condition was there a moment ago")
    }

    /// The condition Ready as soon as it is false for `reason`.
    pub(crate) async fn refused(&self, reason: &str, limit: Duration) -> Result<Condition> {
        let is_refused = |cluster: &DialogCluster| {
            ready(cluster).is_some_and(|ready| ready.status == "False" && ready.reason == reason)
        };
        let cluster = self.until(&format!("not ready for {reason}"), limit, is_refused).await?;
        ready(&cluster).cloned().context("the condition was there a moment ago")
    }

    /// The cluster as soon as `holds` of it; fails with its conditions if that takes longer than `limit`.
    pub(crate) async fn until(
        &self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&DialogCluster) -> bool,
    ) -> Result<DialogCluster> {
        let started = Instant::now();
        let only = watcher::Config::default().fields(&format!("metadata.name={CLUSTER}"));
        let mut changes = Box::pin(watcher(self.all::<DialogCluster>(), only).applied_objects());
        let mut last = None;
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let Ok(change) = tokio::time::timeout(left, changes.try_next()).await else {
                let conditions = last.as_ref().map(summary).unwrap_or_default();
                bail!("the cluster was not {what} within {} s:\n{conditions}", limit.as_secs());
            };
            let cluster = change?.context("the watch has ended")?;
            if holds(&cluster) {
                self.say(format!("{what} after {:.1} s", started.elapsed().as_secs_f64()));
                return Ok(cluster);
            }
            last = Some(cluster);
        }
    }

    /// Asks again and again until `missing` finds nothing missing any more.
    pub(crate) async fn eventually<F>(
        &self,
        what: &str,
        limit: Duration,
        mut missing: impl FnMut() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<Option<String>>>,
    {
        let started = Instant::now();
        while let Some(why) = missing().await? {
            ensure!(started.elapsed() < limit, "not so after {} s: {what}: {why}", limit.as_secs());
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        Ok(())
    }

    /// The pod that is the primary of `group`.
    pub(crate) async fn primary(&self, group: Group) -> Result<String> {
        let scope = self.names.group(group);
        let labels = format!("dialogcluster.io/scope={scope},{ROLE_LABEL}=primary");
        let pods = self.all::<Pod>().list(&ListParams::default().labels(&labels)).await?;
        let names: Vec<_> = pods.iter().map(kube::ResourceExt::name_any).collect();
        ensure!(names.len() == 1, "{scope} has {} primaries: {}", names.len(), names.join(", "));
        names.into_iter().next().context("a pod without a name")
    }

    /// What `statement` returns on the primary of `group`, as unaligned text.
    pub(crate) async fn sql(&self, group: Group, statement: &str) -> Result<String> {
        self.sql_in(&self.primary(group).await?, statement)
    }

    /// What `statement` returns on the server in `pod`, as unaligned text.
    pub(crate) fn sql_in(&self, pod: &str, statement: &str) -> Result<String> {
        let psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", DATABASE, "-c"];
        self.exec(pod, &[&psql[..], &[statement]].concat())
    }

    /// The output of a program in `pod`.
    pub(crate) fn exec(&self, pod: &str, program: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", pod, "--"];
        arguments.extend(program);
        self.kubectl(&arguments)
    }

    /// The output of `kubectl` in the namespace.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&[&["--namespace", self.names.namespace()], arguments].concat())
    }

    /// Names of the cluster's objects of one kind.
    pub(crate) async fn left<K>(&self) -> Result<Vec<String>>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let labels = format!("{CLUSTER_LABEL}={CLUSTER}");
        let found = self.all::<K>().list_metadata(&ListParams::default().labels(&labels)).await?;
        let mut names: Vec<_> =
            found.iter().map(|object| format!("{} {}", K::kind(&()), object.name_any())).collect();
        names.sort();
        Ok(names)
    }

    /// Deletes the cluster.
    pub(crate) async fn delete(&self) -> Result<()> {
        self.all::<DialogCluster>().delete(CLUSTER, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The test has come to its end: nothing has to be explained.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !self.done {
            for question in [
                &["get", "pods,persistentvolumeclaims", "--output", "wide"][..],
                &["logs", "--selector", CLUSTER_LABEL, "--all-containers", "--prefix", "--tail", "15"],
                &["events"],
                &["get", "dialogcluster", CLUSTER, "--output", "jsonpath={.status}"],
                &["logs", "deployment/dialog-operator", "--namespace", "dialog-system", "--tail", "30"],
            ] {
                let answer = self.kubectl(question).unwrap_or_else(|error| format!("{error:#}"));
                self.say(format!("--- kubectl {}\n{answer}", question.join(" ")));
            }
        }
        // Pods first: a namespace that finds some looks again after half of the time that they may take to end.
        let running = "dialogclusters,deployments,replicasets,statefulsets,pods";
        if let Err(error) = self.kubectl(&["delete", running, "--all", "--timeout", "120s"]) {
            self.say(format!("{error:#}"));
        }
        let deleted = kubectl(&["delete", "namespace", self.names.namespace(), "--timeout", "120s"]);
        if let Err(error) = deleted {
            self.say(format!("the namespace {} stays: {error:#}", self.names.namespace()));
        }
    }
}

/// The condition Ready.
pub(crate) fn ready(cluster: &DialogCluster) -> Option<&Condition> {
    condition::find(&cluster.status.as_ref()?.conditions, condition::READY)
}

/// The status of the condition `kind`: `True`, `False`, `Unknown`, or nothing.
pub(crate) fn holds<'a>(cluster: &'a DialogCluster, kind: &str) -> &'a str {
    let conditions = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
    condition::find(conditions, kind).map_or("", |condition| &condition.status)
}

fn summary(cluster: &DialogCluster) -> String {
    let conditions = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let line = |condition: &Condition| {
        format!("  {}={} {}: {}\n", condition.type_, condition.status, condition.reason, condition.message)
    };
    conditions.iter().map(line).collect()
}

/// An object written as JSON, as another of its kind would be created.
pub(crate) fn object<K: DeserializeOwned>(json: impl Serialize) -> Result<K> {
    Ok(serde_json::from_value(serde_json::to_value(json)?)?)
}

/// The `kubectl` to use.
pub(crate) fn kubectl_command() -> Command {
    Command::new(std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()))
}

fn kubectl(arguments: &[&str]) -> Result<String> {
    let output = kubectl_command().args(arguments).output().context("cannot run kubectl")?;
    ensure!(
        output.status.success(),
        "`kubectl {}`: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
