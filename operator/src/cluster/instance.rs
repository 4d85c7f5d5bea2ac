//! One pod: what its kubelet and, for databases, its Patroni say of it.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::names::ROLE_LABEL;

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    /// Its name.
    pub pod: String,
    /// Its number in the StatefulSet; 0 for pods of a Deployment.
    pub ordinal: i32,
    /// The revision of its template.
    pub revision: Option<String>,
    /// Patroni labels it as the primary; see [`ObservedGroup::primary`](super::observe::ObservedGroup::primary).
    pub is_primary: bool,
    /// It passes its readiness probe.
    pub is_ready: bool,
    /// Since when it does not pass its readiness probe any more, if it has since its container was started.
    pub stopped: Option<Timestamp>,
    /// It is being deleted.
    pub is_terminating: bool,
    /// Since when it exists.
    pub created: Option<Timestamp>,
    /// Since when its container runs, if it does.
    pub started: Option<Timestamp>,
    /// What keeps it from running, if its kubelet or the scheduler says so.
    pub trouble: Option<Trouble>,
    /// What Patroni reports.
    pub patroni: Member,
}

/// What keeps a pod from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No node takes it.
    Unschedulable(String),
    /// Its image cannot be had.
    Image(String),
    /// Its container cannot be made: a missing Secret, a forbidden setting.
    Container(String),
    /// Its container ends again and again.
    Crash(String),
}

/// What Patroni reports of an instance, in an annotation of its pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Member {
    /// `running`, `starting`, `creating replica`, `initializing new cluster`, …
    pub state: String,
    /// `primary`, `replica`, … or `uninitialized` where there is no database.
    pub role: String,
    /// Whether PostgreSQL has to be restarted for a parameter to take effect.
    pub pending_restart: bool,
    /// Which parameters.
    pub pending_restart_reason: BTreeMap<String, Change>,
}

/// A parameter whose change waits for a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Change {
    /// The value that is in force.
    pub old_value: String,
    /// The value that is configured.
    pub new_value: String,
}

impl Member {
    /// Whether PostgreSQL was started in vain, or ended by itself.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state == "crashed" || self.state.ends_with(" failed")
    }

    /// Whether the data of the primary is being copied, which takes as long as it takes.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.state == "creating replica"
    }
}

impl Instance {
    /// What a pod says.
    #[must_use]
    pub fn from_pod(pod: &Pod) -> Self {
        let labels = pod.labels();
        let name = pod.name_any();
        Self {
            ordinal: name.rsplit('-').next().and_then(|ordinal| ordinal.parse().ok()).unwrap_or(0),
            revision: labels.get("controller-revision-hash").cloned(),
            is_primary: labels.get(ROLE_LABEL).is_some_and(|role| role == "primary"),
            is_ready: condition(pod, "Ready").is_some_and(|(status, _)| status == "True"),
            stopped: stopped(pod),
            is_terminating: pod.metadata.deletion_timestamp.is_some(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            started: started(pod),
            trouble: trouble(pod),
            patroni: pod
                .annotations()
                .get("status")
                .and_then(|status| serde_json::from_str(status).ok())
                .unwrap_or_default(),
            pod: name,
        }
    }
}

/// Before a container is started, its pod is not ready. A pod that is not since later than that was ready meanwhile.
fn stopped(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready")?;
    let changed = ready.last_transition_time.as_ref().filter(|_| ready.status == "False")?.0;
    started(pod).filter(|started| changed > *started).map(|_| changed)
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((&condition.status, condition.message.as_deref().unwrap_or_default()))
}

fn started(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let running = containers.iter().filter_map(|container| container.state.as_ref()?.running.as_ref());
    running.filter_map(|running| running.started_at.as_ref().map(|time| time.0)).max()
}

fn trouble(pod: &Pod) -> Option<Trouble> {
    if let Some(("False", message)) = condition(pod, "PodScheduled") {
        return Some(Trouble::Unschedulable(message.to_owned()));
    }
    let status = pod.status.as_ref()?;
    let mut containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    containers.find_map(container)
}

fn container(status: &ContainerStatus) -> Option<Trouble> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let message = waiting.message.clone().unwrap_or_default();
        return match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull"
            | "ErrImageInspect" => Some(Trouble::Image(format!("{}: {message}", status.image))),
            "CrashLoopBackOff" => Some(Trouble::Crash(how_it_ended(status.last_state.as_ref(), &message))),
            reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
                Some(Trouble::Container(format!("{reason}: {message}")))
            }
            _ => None,
        };
    }
    state.terminated.as_ref().map(|_| Trouble::Crash(how_it_ended(Some(state), "")))
}

fn how_it_ended(state: Option<&ContainerState>, otherwise: &str) -> String {
    let Some(ended) = state.and_then(|state| state.terminated.as_ref()) else { return otherwise.to_owned() };
    let reason = ended.reason.as_deref().unwrap_or("ended");
    let message =
        ended.message.as_deref().map(|message| format!(": {}", last_line(message))).unwrap_or_default();
    format!("{reason}, exit code {}{message}", ended.exit_code)
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod whose container was started at 10:00:20, and whose readiness changed last at `changed`.
    fn pod(ready: &str, changed: &str) -> Instance {
        let pod = serde_json::json!({
            "metadata": { "name": "chat-coordinator-0" },
            "status": {
                "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": changed }],
                "containerStatuses": [{
                    "name": "postgres", "image": "postgres", "imageID": "", "ready": ready == "True", "restartCount": 0,
                    "state": { "running": { "startedAt": "2026-11-21T10:00:20Z" } },
                }],
            },
        });
        Instance::from_pod(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_that_stops_serving_is_not_one_that_starts() {
        let starts = pod("False", "2026-11-21T10:00:18Z");
        assert!(!starts.is_ready && starts.stopped.is_none());
        let serves = pod("True", "2026-11-21T10:00:25Z");
        assert!(serves.is_ready && serves.stopped.is_none());
        let stopped = pod("False", "2026-11-21T10:00:50Z");
        assert_eq!(stopped.stopped, "2026-11-21T10:00:50Z".parse().ok());
    }
}
