//! What is written into the status. Pure.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::certificates::{Certificates, Expiry};
use super::observe::Observed;
use super::problems::Problem;
use super::rollout::Step;
use super::target::Target;
use crate::api::{DialogCluster, DialogClusterStatus, Phase};
use crate::condition::{self, AFTER_MOVES, CERTIFICATES_VALID, CLUSTER_MANAGER, Finding, PROGRESSING, READY};
use crate::names::{API_PORT, CLUSTER_LABEL, GROUP_LABEL, Group, Names};
use crate::status::Part;

/// The part of the status that this controller owns.
pub const PART: Part = Part {
    manager: CLUSTER_MANAGER,
    fields: &["observedGeneration", "phase", "workers", "selector", "url", "holdMoves", "holdMovesUntil"],
    conditions: &[READY, PROGRESSING, CERTIFICATES_VALID],
};

/// Certificates that expire sooner than this are reported.
const RENEW: SignedDuration = SignedDuration::from_hours(30 * 24);
/// A status and what was found.
pub type Report = (DialogClusterStatus, Vec<Finding>);

/// The report of a cluster whose objects can be built.
#[must_use]
pub fn report(
    cluster: &DialogCluster,
    target: &Target,
    observed: &Observed,
    certificates: &Certificates,
    problems: &[Problem],
    step: &Step,
    now: Timestamp,
) -> Report {
    let ready = match problems.first() {
        None => Finding::new(READY, true, "Ready", all_serves(target)),
        Some(worst) => Finding::new(READY, false, worst.reason, sentences(problems)),
    };
    let underway = problems.iter().find(|problem| problem.passes);
    let progressing = match (step.describe(), underway) {
        _ if cluster.spec.paused => {
            let held = step.describe().map(|step| format!("; then, {step}")).unwrap_or_default();
            Finding::new(
                PROGRESSING,
                false,
                "Paused",
                format!(
                    "until spec.paused is false nothing is begun; shard moves and splits that are under way go on, and are \
                     cancelled if they do not get on{held}"
                ),
            )
        }
        (Some(step_text), _) if matches!(step, Step::Helpless { .. }) => {
            Finding::new(PROGRESSING, false, "RestartDidNotHelp", step_text)
        }
        // While a cluster is made, every part of it waits for others: what it waits for says more.
        (Some(_), Some(problem))
            if matches!(step, Step::Wait(_) | Step::CatchUp { .. }) && !served(cluster) =>
        {
            Finding::new(PROGRESSING, true, problem.reason, problem.message.clone())
        }
        (Some(text), _) if matches!(step, Step::ScaleIn(_)) => {
            Finding::new(PROGRESSING, true, "ScalingIn", text)
        }
        (Some(text), _) if matches!(step, Step::AfterMoves { .. }) => {
            Finding::new(PROGRESSING, true, AFTER_MOVES, text)
        }
        (Some(step), _) => Finding::new(PROGRESSING, true, "Updating", step),
        (None, Some(problem)) => Finding::new(PROGRESSING, true, problem.reason, problem.message.clone()),
        (None, None) if problems.is_empty() && observed.api.as_ref().is_some_and(|api| !api.current) => {
            let message = format!("Deployment {} replaces its pods", target.names.api());
            Finding::new(PROGRESSING, true, "Updating", message)
        }
        (None, None) if problems.is_empty() => {
            Finding::new(PROGRESSING, false, "Idle", "everything is as it was asked for")
        }
        (None, None) => {
            Finding::new(PROGRESSING, false, "Blocked", "it goes on once what Ready names is put right")
        }
    };
    let phase = phase(cluster, problems.is_empty(), progressing.holds == condition::Holds::True, step);
    let workers = observed.groups.iter().filter(|(group, observed)| {
        **group != Group::Coordinator && observed.primary().is_some_and(|primary| primary.is_ready)
    });
    let status = DialogClusterStatus {
        observed_generation: cluster.metadata.generation,
        phase: Some(phase),
        workers: i32::try_from(workers.count()).ok(),
        selector: Some(selector(&target.names)),
        url: Some(url(target)),
        ..DialogClusterStatus::default()
    };
    (status, vec![ready, progressing, validity(certificates, &target.names, now)])
}

/// The report of a cluster for which nothing can be built, or nothing more will be.
#[must_use]
pub fn refusal(
    cluster: &DialogCluster,
    phase: Option<Phase>,
    reason: &'static str,
    message: &str,
    certificates: Option<&Certificates>,
    now: Timestamp,
) -> Report {
    let before = cluster.status.clone().unwrap_or_default();
    let phase = phase.unwrap_or(if served(cluster) { Phase::Degraded } else { Phase::Creating });
    let status = DialogClusterStatus {
        observed_generation: cluster.metadata.generation,
        phase: Some(phase),
        workers: before.workers.or(Some(0)),
        selector: before.selector,
        url: before.url,
        ..DialogClusterStatus::default()
    };
    let mut findings =
        vec![Finding::new(READY, false, reason, message), Finding::new(PROGRESSING, false, reason, message)];
    let names = Names::new(cluster.name_any(), cluster.namespace().unwrap_or_default());
    findings.extend(certificates.map(|certificates| validity(certificates, &names, now)));
    (status, findings)
}

/// Whether the cluster has served before.
fn served(cluster: &DialogCluster) -> bool {
    cluster.status.as_ref().and_then(|status| status.phase).is_some_and(|phase| match phase {
        Phase::Creating | Phase::Deleting => false,
        Phase::Ready | Phase::Updating | Phase::Degraded | Phase::Paused => true,
    })
}

fn phase(cluster: &DialogCluster, ready: bool, progressing: bool, step: &Step) -> Phase {
    match (ready, progressing) {
        _ if cluster.spec.paused => Phase::Paused,
        (true, false) => Phase::Ready,
        (false, _) if !served(cluster) => Phase::Creating,
        (false, _) if *step == Step::Nothing => Phase::Degraded,
        _ => Phase::Updating,
    }
}

fn all_serves(target: &Target) -> String {
    format!(
        "database groups: {}; pods of dialog-api: {}; all serve",
        target.groups.len(),
        target.spec.api.replicas
    )
}

fn sentences(problems: &[Problem]) -> String {
    let each: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    condition::first_of(&each)
}

/// The pods of the workers. `notin`, because `kubectl scale` refuses a selector with `!=`.
fn selector(names: &Names) -> String {
    format!("{CLUSTER_LABEL}={},{GROUP_LABEL},{GROUP_LABEL} notin ({})", names.cluster(), Group::Coordinator)
}

fn url(target: &Target) -> String {
    match &target.spec.api.ingress {
        Some(ingress) if ingress.tls_secret_name.is_some() => format!("https://{}", ingress.host),
        Some(ingress) => format!("http://{}", ingress.host),
        None => format!("http://{}:{API_PORT}", target.names.host_of_service(&target.names.api())),
    }
}

fn validity(certificates: &Certificates, names: &Names, now: Timestamp) -> Finding {
    let Expiry { secret, is_authority, at } = certificates.earliest_expiry(names);
    let remedy = if is_authority {
        "delete it in a quiet hour to have a new authority and with it all its certificates made: pods with old and with \
         new ones refuse each other until the last has been restarted"
    } else {
        "delete it to have a new one made; the pods that use it are restarted in order"
    };
    let date = at.strftime("%Y-%m-%d");
    if at <= now {
        let message = format!("the certificate in Secret {secret} expired on {date}; {remedy}");
        return Finding::new(CERTIFICATES_VALID, false, "Expired", message);
    }
    if at.duration_since(now) < RENEW {
        let message = format!("the certificate in Secret {secret} expires on {date}; {remedy}");
        return Finding::new(CERTIFICATES_VALID, true, "ExpiresSoon", message);
    }
    let message = format!("the first to expire is the certificate in Secret {secret}, on {date}");
    Finding::new(CERTIFICATES_VALID, true, "Valid", message)
}

#[cfg(test)]
mod tests;
