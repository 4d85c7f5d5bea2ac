//! What is done to running databases: Patroni's dynamic configuration, and one step of an update at a time.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::DeleteParams;
use tracing::{info, warn};

use super::certificates::Certificates;
use super::instance::Instance;
use super::observe::Observed;
use super::patroni::client::{Address, Client};
use super::patroni::config;
use super::rollout::{self, Step};
use super::target::Target;
use crate::context::Context;
use crate::error::Error;
use crate::names::{Group, Names};

/// If a parameter still waits for a restart after one that was this recent, another will not help.
const RESTARTED: Duration = Duration::from_mins(1);

/// The next step of an update.
#[must_use]
pub fn next(target: &Target, observed: &Observed, now: Timestamp) -> Step {
    let groups = observed
        .groups
        .iter()
        .map(|(&group, there)| (group, (there, target.group(group).instances)))
        .collect();
    rollout::next(&groups, now)
}

/// Brings Patroni's dynamic configuration up to date, or else takes the step. Returns what is under way.
///
/// # Errors
/// If Kubernetes or Patroni refuses.
pub async fn act(
    context: &Context,
    target: &Target,
    observed: &Observed,
    certificates: &Certificates,
    step: Step,
    now: Timestamp,
) -> Result<Step, Error> {
    let patroni = Client::new(certificates)?;
    if configure(&patroni, target, observed).await? {
        return Ok(Step::Wait("Patroni to take up its configuration".to_owned()));
    }
    take(context, &target.names, &patroni, &step, now).await?;
    Ok(step)
}

async fn take(
    context: &Context,
    names: &Names,
    patroni: &Client,
    step: &Step,
    now: Timestamp,
) -> Result<(), Error> {
    match step {
        Step::Nothing | Step::Wait(_) => Ok(()),
        Step::Replace { pod, why } => {
            info!(%pod, namespace = names.namespace(), why, "replacing an instance");
            let pods: Api<Pod> = Api::namespaced(context.client.clone(), names.namespace());
            match pods.delete(pod, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                result => result.map(drop).map_err(Error::kubernetes("delete", format!("Pod {pod}"))),
            }
        }
        Step::SwitchOver { group, from, to } => {
            info!(%group, %from, %to, namespace = names.namespace(), "switching over");
            patroni.switch_over(&address(names, *group, from), to).await
        }
        Step::Restart { group, pod, parameters } => {
            let instance = address(names, *group, pod);
            let report = patroni.report(&instance).await?;
            let recent = report.started().is_some_and(|at| now.duration_since(at).unsigned_abs() < RESTARTED);
            if !report.pending_restart {
                return Ok(());
            }
            if recent {
                warn!(%pod, namespace = names.namespace(), ?parameters, "still waits for a restart after a recent one");
                return Ok(());
            }
            info!(%pod, namespace = names.namespace(), ?parameters, "restarting PostgreSQL");
            patroni.restart(&instance).await
        }
    }
}

/// Sends to each group what its dynamic configuration lacks; says whether there was anything.
async fn configure(patroni: &Client, target: &Target, observed: &Observed) -> Result<bool, Error> {
    let mut changed = false;
    for (&group, there) in &observed.groups {
        // Any Patroni takes it, even while PostgreSQL does not start: so a value that it does not start with can be
        // taken back.
        let reachable = |instance: &&Instance| !instance.is_terminating && !instance.patroni.state.is_empty();
        let Some(instance) = there.primary().or_else(|| there.instances.iter().find(reachable)) else {
            continue;
        };
        let Some(current) = &there.configuration else { continue };
        if let Some(change) = config::difference(current, &config::dynamic(target, group)) {
            // Names only: a value may be somebody's secret.
            let keys = config::keys(&change);
            info!(%group, namespace = target.names.namespace(), ?keys, "changing the dynamic configuration");
            patroni.configure(&address(&target.names, group, &instance.pod), &change).await?;
            changed = true;
        }
    }
    Ok(changed)
}

fn address(names: &Names, group: Group, pod: &str) -> Address {
    let host = format!("{pod}.{}", names.host_of_service(&names.instances(group)));
    Address { pod: pod.to_owned(), host }
}
