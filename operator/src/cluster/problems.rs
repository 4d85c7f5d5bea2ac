//! What keeps a cluster from being ready, each with the object and the remedy. Pure.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::bootstrap::{Bootstrap, bootstrap};
use super::instance::{Instance, Trouble};
use super::observe::{Observed, ObservedGroup};
use super::patroni::config::DATA;
use super::target::{GroupTarget, Target};
use crate::api::DialogCluster;
use crate::condition::{self, CITUS_AVAILABLE, METADATA_SYNCED, SCHEMA_DISTRIBUTED};
use crate::context::Pull;
use crate::error::Error;
use crate::names::Group;

/// An instance that is younger than this is taken to be starting.
const YOUNG: Duration = Duration::from_mins(2);
/// Finding a node and making a volume may take this long before it counts as trouble.
const SCHEDULING: Duration = Duration::from_secs(15);

/// Something that keeps a cluster from being ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For programs.
    pub reason: &'static str,
    /// For people: the object, what is so, what to do.
    pub message: String,
    /// Whether it is expected to pass by itself.
    pub passes: bool,
}

impl Problem {
    /// A change that was refused.
    #[must_use]
    pub fn failed(error: &Error) -> Self {
        Self::lasting(error.reason(), format!("{error}; it is tried again"))
    }

    fn lasting(reason: &'static str, message: String) -> Self {
        Self { reason, message, passes: false }
    }

    fn passing(reason: &'static str, message: String) -> Self {
        Self { reason, message, passes: true }
    }
}

/// Every problem of a cluster; those that need somebody come first.
#[must_use]
pub fn problems(
    cluster: &DialogCluster,
    target: &Target,
    observed: &Observed,
    now: Timestamp,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    // A worker that is not asked for any more and never had a database only waits for its end: nobody is to make room for it.
    let only_goes = |group: Group| target.is_surplus(group) && !observed.may_have_database(group);
    for (&group, wanted) in target.groups.iter().filter(|(group, _)| !only_goes(**group)) {
        claims(target, observed, group, now, &mut problems);
        instances(target, observed, group, *wanted, now, &mut problems);
    }
    if problems.is_empty() {
        problems.extend(database(cluster));
    }
    api(target, observed, now, &mut problems);
    problems.extend(ingress(target, observed));
    problems.sort_by_key(|problem| problem.passes);
    problems
}

fn claims(target: &Target, observed: &Observed, group: Group, now: Timestamp, problems: &mut Vec<Problem>) {
    let classes = &observed.storage_classes;
    let field = match group {
        Group::Coordinator => "spec.coordinator.storage.className",
        Group::Worker(_) => "spec.workers.storage.className",
    };
    let again = format!("or create the DialogCluster anew with another {field}");
    let pending = observed.claims.get(&group).into_iter().flatten().filter(|(_, claim)| !claim.bound);
    for (ordinal, claim) in pending {
        let name = &claim.name;
        let pod = target.names.pod(group, *ordinal);
        let is_old = observed.groups.get(&group).is_some_and(|group| {
            let mut instances = group.instances.iter();
            instances.any(|instance| instance.pod == pod && !is_young(instance, SCHEDULING, now))
        });
        match &claim.class {
            Some(class) if !classes.names.contains(class) => problems.push(Problem::lasting(
                "StorageClassMissing",
                format!("claim {name} asks for StorageClass {class}, which does not exist; create it, {again}"),
            )),
            None if classes.default.is_none() => problems.push(Problem::lasting(
                "StorageClassMissing",
                format!("claim {name} names no StorageClass and there is no default one; make one the default, {again}"),
            )),
            // After the class: that it is missing is an Event of the claim, too, and then says less.
            _ => problems.extend(match &claim.failure {
                Some(failure) => Some(Problem::lasting(
                    "VolumeNotProvisioned",
                    format!("the volume of claim {name} cannot be made: {failure}; correct what it names"),
                )),
                // While a provisioner does nothing, the scheduler waits for it and says nothing of it.
                None if claim.has_node && is_old => Some(Problem::lasting(
                    "VolumePending",
                    format!(
                        "claim {name} has no volume yet; see that the provisioner of its class runs, and what `kubectl \
                         describe pvc {name}` says"
                    ),
                )),
                None => None,
            }),
        }
    }
}

fn instances(
    target: &Target,
    observed: &Observed,
    group: Group,
    wanted: GroupTarget,
    now: Timestamp,
    problems: &mut Vec<Problem>,
) {
    let set = target.names.group(group);
    let Some(there) = observed.groups.get(&group) else {
        problems.push(Problem::passing("Creating", format!("StatefulSet {set} is being created")));
        return;
    };
    let before = problems.len();
    let problem = match bootstrap(there, observed.claims_of(group), now) {
        Bootstrap::Stuck => Some(not_made(target, group, there)),
        Bootstrap::NotRead => Some(not_read(target, group, there)),
        Bootstrap::Underway | Bootstrap::Interrupted => None,
    };
    if let Some(problem) = problem {
        problems.push(problem);
        return;
    }
    for instance in &there.instances {
        problems.extend(unready(target, instance, there, now));
    }
    let count = i32::try_from(there.instances.len()).unwrap_or(i32::MAX);
    if count < wanted.replicas {
        problems.push(match &there.creation_failure {
            Some(reason) => Problem::lasting(
                "PodsNotCreated",
                format!("StatefulSet {set} cannot create its pods: {reason}; correct what it names"),
            ),
            None => Problem::passing(
                "Creating",
                format!("StatefulSet {set} has {count} of {} pods", wanted.replicas),
            ),
        });
    }
    if problems.len() > before {
        return;
    }
    if there.primary().is_none() {
        let message =
            format!("{set} has no primary; `patronictl list` in one of its pods says what Patroni waits for");
        problems.push(Problem::passing("NoPrimary", message));
    } else if there.replicas < target.group(group).instances {
        problems.push(Problem::passing("Creating", format!("{set} gets its standbys")));
    }
}

/// A database that nobody makes, because what may be on a volume would be lost.
fn not_made(target: &Target, group: Group, there: &ObservedGroup) -> Problem {
    let pods: Vec<&str> = there.instances.iter().map(|instance| &*instance.pod).collect();
    let message = format!(
        "{}: Patroni neither finds a whole database nor makes one, because a volume may hold data; `kubectl logs` says \
         what it found; if there is nothing to keep, remove the annotation `initialize` of ConfigMap {}, and delete the \
         claims of {} and its pods",
        pods.join(", "),
        target.names.patroni_state(group, "config"),
        target.names.group(group)
    );
    Problem::lasting("DatabaseNotMade", message)
}

/// A database that was made, and that Patroni reads from no volume. Only who looks into the volume knows what is there.
fn not_read(target: &Target, group: Group, there: &ObservedGroup) -> Problem {
    let names = &target.names;
    let pods: Vec<&str> = there.instances.iter().map(|instance| &*instance.pod).collect();
    let claims: Vec<String> =
        there.instances.iter().map(|instance| names.claim(group, instance.ordinal)).collect();
    let (pod, claims) = (pods.first().copied().unwrap_or_default(), claims.join(" "));
    let remedy = match group {
        Group::Coordinator => {
            "if it is empty, bring back the volume that was there, or restore it from a backup: without \
                               the coordinator's catalogs nobody knows where shards are"
                .to_owned()
        }
        Group::Worker(_) => format!(
            "if it is empty, and pg_dist_node on the coordinator does not have {} (the worker had left, and Kubernetes was \
             restored from a time before), delete the claims and then the StatefulSet, and both are made anew: kubectl \
             delete pvc --wait=false {claims} && kubectl delete statefulset {}; if pg_dist_node has it, bring back the \
             volume that was there, or restore it from a backup",
            names.host(group),
            names.group(group)
        ),
    };
    let message = format!(
        "{}: for minutes Patroni has read no database from the volume ({claims}), and the annotation `initialize` of \
         ConfigMap {} says that one was made; it reads none either from a volume with errors or where pg_control is \
         damaged, so see `kubectl logs {pod}` and look into the volume (kubectl exec {pod} -- ls -A {DATA}): if files are \
         there, mend or restore them and delete nothing; {remedy}",
        pods.join(", "),
        names.patroni_state(group, "config"),
    );
    Problem::lasting("DatabaseNotRead", message)
}

/// Why an instance of the database does not serve, if it does not.
fn unready(target: &Target, instance: &Instance, group: &ObservedGroup, now: Timestamp) -> Option<Problem> {
    let pod = &instance.pod;
    if instance.is_terminating {
        return Some(Problem::passing("Starting", format!("pod {pod} is being replaced")));
    }
    if instance.is_ready {
        return None;
    }
    if let Some(problem) = trouble(instance, "spec.image", &target.pull, now) {
        return Some(problem);
    }
    let state = match instance.patroni.state.as_str() {
        "" => "Patroni has not reported yet".to_owned(),
        state => format!("Patroni reports: {state}"),
    };
    if instance.patroni.is_copying() {
        return Some(Problem::passing("CopyingStandby", format!("pod {pod} copies the data of its primary")));
    }
    let is_starting =
        is_young(instance, YOUNG, now) && instance.stopped.is_none() && !instance.patroni.has_failed();
    Some(if is_starting || !group.is_initialized() {
        Problem::passing("Starting", format!("pod {pod} is starting; {state}"))
    } else {
        let message = format!(
            "PostgreSQL of pod {pod} does not serve; {state}; `kubectl logs {pod}` says why{}",
            parameters(target)
        );
        Problem::lasting("DatabaseUnreachable", message)
    })
}

/// What else to look at where parameters are asked for: PostgreSQL does not start with some values that it takes.
fn parameters(target: &Target) -> String {
    let names: Vec<&str> = target.spec.postgres.parameters.keys().map(String::as_str).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("; if it is one of spec.postgres.parameters ({}), correct it there", names.join(", "))
}

/// Whether an instance exists, or runs, for less than `limit`.
fn is_young(instance: &Instance, limit: Duration, now: Timestamp) -> bool {
    let since = instance.started.or(instance.created);
    since.is_none_or(|since| now.duration_since(since).unsigned_abs() < limit)
}

fn trouble(instance: &Instance, image: &str, pull: &Pull, now: Timestamp) -> Option<Problem> {
    let pod = &instance.pod;
    Some(match instance.trouble.as_ref()? {
        Trouble::Unschedulable(_) if is_young(instance, SCHEDULING, now) => {
            Problem::passing("Starting", format!("pod {pod} is being given a node and a volume"))
        }
        // A claim that binds late waits for its pod's node, so the scheduler's sentence is the cause of both.
        Trouble::Unschedulable(why) => Problem::lasting(
            "Unschedulable",
            format!(
                "no node takes pod {pod}: {why}; add nodes, change resources or placement, or correct what it says of the volume"
            ),
        ),
        Trouble::Image(why) => Problem::lasting(
            "ImagePullFailed",
            format!("pod {pod} cannot get its image: {why}; correct {image}{}", pull_secrets(pull)),
        ),
        Trouble::Container(why) => Problem::lasting(
            "ContainerNotCreated",
            format!("the container of pod {pod} cannot be created: {why}; correct what it names"),
        ),
        Trouble::Crash(why) => Problem::lasting(
            "CrashLooping",
            format!("pod {pod} keeps failing: {why}; `kubectl logs -p {pod}` says more"),
        ),
    })
}

/// What else to look at where images are pulled with credentials.
fn pull_secrets(pull: &Pull) -> String {
    match &pull.secrets[..] {
        [] => String::new(),
        secrets => {
            format!(", or see that the Secrets {} are in this namespace and valid", secrets.join(", "))
        }
    }
}

/// Reasons of the controller of the database that do not go away by themselves.
const NEEDS_SOMEBODY: [&str; 9] = [
    "ColumnMissing",
    "NoReplicaIdentity",
    "NotATable",
    "NotColocated",
    "RowsOnCoordinator",
    "SettingsDiffer",
    "SpreadOtherwise",
    "TypesDiffer",
    "VersionsDiffer",
];

/// What the controller of the database says.
fn database(cluster: &DialogCluster) -> Option<Problem> {
    let conditions = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
    // What was said of an older generation says nothing of this one; nobody speaks of it while it is paused.
    let find = |kind| {
        condition::find(conditions, kind)
            .filter(|found| cluster.spec.paused || found.observed_generation >= cluster.metadata.generation)
    };
    let waits = || Problem::passing("PreparingDatabase", "the database is being prepared".to_owned());
    let Some(citus) = find(CITUS_AVAILABLE) else { return Some(waits()) };
    if citus.status == "False" && ["NotInImage", "NotPreloaded"].contains(&citus.reason.as_str()) {
        // One node serves without Citus.
        return (cluster.spec.workers.count > 0)
            .then(|| Problem::lasting("CitusMissing", citus.message.clone()));
    }
    [CITUS_AVAILABLE, METADATA_SYNCED, SCHEMA_DISTRIBUTED].into_iter().find_map(|kind| match find(kind) {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => {
            let message = format!("{kind}: {}", condition.message);
            Some(match condition.reason.as_str() {
                reason if NEEDS_SOMEBODY.contains(&reason) => {
                    Problem::lasting("DatabaseNotAsDeclared", message)
                }
                "NotObserved" => Problem::passing("DatabaseUnreachable", message),
                _ => Problem::passing("PreparingDatabase", message),
            })
        }
        None => Some(waits()),
    })
}

fn api(target: &Target, observed: &Observed, now: Timestamp, problems: &mut Vec<Problem>) {
    let name = target.names.api();
    let Some(api) = &observed.api else {
        problems.push(Problem::passing("Creating", format!("Deployment {name} is being created")));
        return;
    };
    let short = api.available < target.spec.api.replicas;
    for pod in observed.api_pods.iter().filter(|pod| !pod.is_terminating && !pod.is_ready) {
        problems.extend(trouble(pod, "spec.api.image", &target.pull, now));
    }
    if let Some(failure) = api.creation_failure.as_ref().filter(|_| short) {
        let message = format!("Deployment {name} cannot create its pods: {failure}; correct what it names");
        problems.push(Problem::lasting("PodsNotCreated", message));
    }
    if problems.is_empty() && short {
        let old = observed.api_pods.iter().find(|pod| !pod.is_ready && !is_young(pod, YOUNG, now));
        problems.push(match old {
            Some(pod) => Problem::lasting(
                "ApiUnavailable",
                format!("pod {0} does not get ready; `kubectl logs {0}` says what it waits for", pod.pod),
            ),
            None => Problem::passing(
                "StartingApi",
                format!("{} of {} pods of {name} serve", api.available, api.replicas),
            ),
        });
    }
}

fn ingress(target: &Target, observed: &Observed) -> Option<Problem> {
    let asked = target.spec.api.ingress.as_ref()?;
    let classes = &observed.ingress_classes;
    let name = target.names.api();
    match &asked.class_name {
        Some(class) if !classes.names.contains(class) => Some(Problem::lasting(
            "IngressClassMissing",
            format!(
                "Ingress {name} names IngressClass {class}, which does not exist; install its controller or correct \
                 spec.api.ingress.className"
            ),
        )),
        None if classes.default.is_none() => Some(Problem::lasting(
            "IngressClassMissing",
            format!(
                "Ingress {name} names no IngressClass and there is no default one; set spec.api.ingress.className"
            ),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
