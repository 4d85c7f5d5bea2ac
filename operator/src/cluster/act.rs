//! What is done to running databases: Patroni's dynamic configuration, and one step of an update at a time.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::bootstrap::{Bootstrap, bootstrap};
use super::certificates::Certificates;
use super::instance::Instance;
use super::observe::{Observed, ObservedGroup};
use super::patroni::client::{Address, Client};
use super::patroni::config;
use super::rollout::{self, Hold, Step};
use super::target::Target;
use crate::api::DialogClusterStatus;
use crate::condition::CLUSTER_MANAGER;
use crate::context::Context;
use crate::error::Error;
use crate::names::{BEGUN_ANEW, Group, Names};

/// A change and a restart are this far apart at least before the one is said not to have helped the other.
const APART: SignedDuration = SignedDuration::from_secs(5);

/// After this time Patroni has noticed a change of its configuration.
const NOTICED: SignedDuration = SignedDuration::from_secs(15);

/// Groups that are spoken to at the same time.
const PARALLEL: usize = 8;

/// The next step of an update, by what the status says of shards that move.
#[must_use]
pub fn next(
    target: &Target,
    observed: &Observed,
    status: Option<&DialogClusterStatus>,
    now: Timestamp,
) -> Step {
    rollout::next(&groups(target, observed), rollout::busy(status, now).as_ref(), now)
}

/// Whether no shard may begin to move for the sake of the `step` that is under way, and until when; `None` where any may.
#[must_use]
pub fn hold(
    target: &Target,
    observed: &Observed,
    status: Option<&DialogClusterStatus>,
    step: &Step,
    now: Timestamp,
) -> Option<Hold> {
    Hold::next(Hold::of(status), step, &groups(target, observed), now)
}

/// The groups, each with the instances that are asked for.
fn groups<'a>(target: &Target, observed: &'a Observed) -> BTreeMap<Group, (&'a ObservedGroup, i32)> {
    let there = observed.groups.iter();
    there.map(|(&group, there)| (group, (there, target.group(group).instances))).collect()
}

/// Brings Patroni's dynamic configuration up to date, or else takes the step; where there is none and a server is behind what
/// is declared nevertheless ([`rollout::is_behind`]), has Patroni look again. Returns what is under way.
///
/// # Errors
/// If Kubernetes or Patroni refuses.
pub async fn act(
    context: &Context,
    target: &Target,
    observed: &Observed,
    certificates: &Certificates,
    step: Step,
    is_behind: bool,
    now: Timestamp,
) -> Result<Step, Error> {
    let names = &target.names;
    if let Some(step) = begin_anew(context, target, observed, now).await? {
        return Ok(step);
    }
    // Needs no Patroni, and may be what it takes to be understood by it: its certificates are mounted at the start.
    if let Step::Replace { pod, why } = &step {
        replace(context, names, pod, why).await?;
        return Ok(step);
    }
    let patroni = Client::new(certificates)?;
    if let Step::SwitchOver { group, from, to } = &step {
        info!(%group, %from, %to, namespace = names.namespace(), "switching over");
        let switched = patroni.switch_over(&address(names, *group, from), to).await;
        let outdated = observed.groups.get(group).is_some_and(|group| group.is_outdated(from));
        return match switched {
            // A standby that has come back catches up first, or else writes would be lost or wait for it.
            Ok(Err(refusal)) => Ok(Step::CatchUp { to: to.clone(), refusal: refusal.to_string() }),
            // It is to be restarted anyway, and hands over when it is stopped.
            Err(error) if outdated => {
                warn!(%error, "cannot switch over first");
                replace(context, names, from, "it does not take orders").await.map(|()| step)
            }
            result => result.map(|_| step),
        };
    }
    let changed = configure(&patroni, target, observed).await?;
    if changed || step == Step::Nothing && observed.groups.values().any(|group| is_new(group.configured, now))
    {
        return Ok(Step::Wait("Patroni to take up its configuration".to_owned()));
    }
    if step == Step::Nothing && is_behind {
        // Nothing else waits for this. It is asked again as long as it has not helped.
        if let Err(error) = reload(&patroni, target, observed).await {
            warn!(%error, namespace = names.namespace(), "Patroni could not be told to look again");
        }
    }
    let next = if let Step::AfterMoves { then, .. } = &step { then.as_ref() } else { &step };
    if let Step::Restart { group, pod, parameters } = next {
        let instance = address(names, *group, pod);
        let report = patroni.report(&instance).await?;
        let configured = observed.groups.get(group).and_then(|group| group.configured);
        if report.pending_restart && restarted_since(report.started(), configured) {
            return Ok(Step::Helpless { pod: pod.clone(), parameters: parameters.clone() });
        }
        if report.pending_restart && *next == step {
            info!(%pod, namespace = names.namespace(), ?parameters, "restarting PostgreSQL");
            patroni.restart(&instance).await?;
        }
    }
    Ok(step)
}

/// Lets a group whose first attempt to make its database was interrupted try again, where that can lose nothing.
async fn begin_anew(
    context: &Context,
    target: &Target,
    observed: &Observed,
    now: Timestamp,
) -> Result<Option<Step>, Error> {
    let names = &target.names;
    let interrupted = observed
        .groups
        .iter()
        .find(|(group, there)| bootstrap(there, observed.claims_of(**group), now) == Bootstrap::Interrupted);
    let Some((&group, there)) = interrupted else { return Ok(None) };
    let name = names.patroni_state(group, "config");
    info!(%group, namespace = names.namespace(), "the making of the database was interrupted; it begins anew");
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), names.namespace());
    // Only if it is still as it was seen; otherwise it is looked at again.
    let change = json!({ "metadata": {
        "resourceVersion": there.configuration_version,
        "annotations": { "initialize": null, BEGUN_ANEW: now.to_string() },
    } });
    let ours = PatchParams { field_manager: Some(CLUSTER_MANAGER.to_owned()), ..PatchParams::default() };
    match maps.patch(&name, &ours, &Patch::Merge(&change)).await {
        Err(kube::Error::Api(status)) if status.is_conflict() => {}
        result => drop(result.map_err(Error::kubernetes("change", format!("ConfigMap {name}")))?),
    }
    Ok(Some(Step::Wait(format!("{group} to make its database anew: the first attempt was interrupted"))))
}

/// Deletes a pod; its StatefulSet makes it anew.
async fn replace(context: &Context, names: &Names, pod: &str, why: &str) -> Result<(), Error> {
    info!(%pod, namespace = names.namespace(), why, "replacing an instance");
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), names.namespace());
    match pods.delete(pod, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result.map(drop).map_err(Error::kubernetes("delete", format!("Pod {pod}"))),
    }
}

/// Whether Patroni may not have said yet what a change of its configuration asks for: it looks every few seconds.
fn is_new(configured: Option<Timestamp>, now: Timestamp) -> bool {
    configured.is_some_and(|at| now.duration_since(at).abs() < NOTICED)
}

/// Whether PostgreSQL was started after its configuration was changed last.
fn restarted_since(started: Option<Timestamp>, configured: Option<Timestamp>) -> bool {
    let (Some(started), Some(configured)) = (started, configured) else { return false };
    started.duration_since(configured) > APART
}

/// Has every primary that serves read its configuration anew. What somebody wrote on the volume of a standby is taken back when
/// that is primary: until then nothing would come of it but a restart in vain.
async fn reload(patroni: &Client, target: &Target, observed: &Observed) -> Result<(), Error> {
    let mut instances = Vec::new();
    for (&group, there) in &observed.groups {
        let serving = there.primary().filter(|primary| primary.is_ready);
        instances.extend(serving.map(|primary| address(&target.names, group, &primary.pod)));
    }
    let results: Vec<Result<(), Error>> = stream::iter(instances)
        .map(|instance| async move { patroni.reload(&instance).await })
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    results.into_iter().collect()
}

/// Sends to each group what its dynamic configuration lacks; says whether there was anything.
async fn configure(patroni: &Client, target: &Target, observed: &Observed) -> Result<bool, Error> {
    let lacking = lacking(target, observed);
    let any = !lacking.is_empty();
    // One group that does not answer must not keep the others from what they need.
    let results: Vec<Result<(), Error>> = stream::iter(lacking)
        .map(|(instance, change)| async move { patroni.configure(&instance, &change).await })
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    results.into_iter().collect::<Result<(), Error>>().map(|()| any)
}

/// What the dynamic configuration of groups lacks, and whom to tell.
fn lacking(target: &Target, observed: &Observed) -> Vec<(Address, Value)> {
    let mut all = Vec::new();
    for (&group, there) in &observed.groups {
        // Any Patroni takes it, even while PostgreSQL does not start: so a value that it does not start with can be
        // taken back. One that is to be replaced may have certificates that do not match any more.
        let listens = |instance: &&Instance| {
            !instance.is_terminating
                && !instance.patroni.state.is_empty()
                && !there.is_outdated(&instance.pod)
        };
        let primary = there.primary().filter(listens);
        let Some(instance) = primary.or_else(|| there.instances.iter().find(listens)) else { continue };
        let Some(current) = &there.configuration else { continue };
        if let Some(change) = config::difference(current, &config::dynamic(target, group)) {
            // Names only: a value may be somebody's secret.
            let keys = config::keys(&change);
            info!(%group, namespace = target.names.namespace(), ?keys, "changing the dynamic configuration");
            all.push((address(&target.names, group, &instance.pod), change));
        }
    }
    all
}

fn address(names: &Names, group: Group, pod: &str) -> Address {
    Address { pod: pod.to_owned(), host: names.instance_host(group, pod) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_helps_only_what_was_changed_before_it() {
        let at = |second| Timestamp::from_second(second).ok();
        assert!(!restarted_since(at(100), at(200)));
        assert!(!restarted_since(at(202), at(200)));
        assert!(restarted_since(at(206), at(200)));
        assert!(is_new(at(190), at(200).unwrap()) && !is_new(at(180), at(200).unwrap()));
        assert!(!restarted_since(None, at(200)) && !restarted_since(at(200), None));
    }
}
