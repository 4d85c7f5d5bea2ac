//! What controllers of Kubernetes complain of in Events, and nowhere else.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Event;

/// Two reasons that a controller gives for its attempts.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    /// The kind of the objects.
    pub kind: &'static str,
    /// What it says of one that failed.
    pub failed: &'static str,
    /// What it says of one that succeeded.
    pub succeeded: &'static str,
}

/// Pods for a StatefulSet.
pub const PODS: Attempts =
    Attempts { kind: "StatefulSet", failed: "FailedCreate", succeeded: "SuccessfulCreate" };
/// Volumes for a claim.
pub const VOLUMES: Attempts = Attempts {
    kind: "PersistentVolumeClaim",
    failed: "ProvisioningFailed",
    succeeded: "ProvisioningSucceeded",
};

/// What the last attempt for each object failed for, by the object's UID.
///
/// An Event outlives its cause by an hour, so a success since then takes it back; it outlives its object, too, and
/// another of the same name has nothing to do with it.
#[must_use]
pub fn last(attempts: Attempts, events: Vec<Event>) -> BTreeMap<String, String> {
    let failed = |event: &Event| event.reason.as_deref() == Some(attempts.failed);
    let succeeded = |event: &Event| event.reason.as_deref() == Some(attempts.succeeded);
    let mut events: Vec<Event> =
        events.into_iter().filter(|event| failed(event) || succeeded(event)).collect();
    // Times are whole seconds: of several pods made at once, it is the one that failed that is missing.
    events.sort_by_key(|event| {
        let time = event.last_timestamp.as_ref().map(|time| time.0);
        (time.or(event.event_time.as_ref().map(|time| time.0)), failed(event))
    });
    let mut last = BTreeMap::new();
    for event in events {
        let is_failure = failed(&event);
        let (Some(object), message) = (event.involved_object.uid, event.message) else { continue };
        match message.filter(|_| is_failure) {
            Some(message) => last.insert(object, message),
            None => last.remove(&object),
        };
    }
    last
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(uid: &str, reason: &str, second: u32) -> Event {
        let event = json!({
            "metadata": {},
            "involvedObject": { "kind": "StatefulSet", "name": "chat-coordinator", "uid": uid },
            "reason": reason, "message": format!("{reason} at {second}"),
            "lastTimestamp": format!("2026-03-01T00:00:{second:02}Z"),
        });
        serde_json::from_value(event).unwrap()
    }

    fn last_of(events: &[(&str, u32)]) -> Option<String> {
        let events = events.iter().map(|(reason, second)| event("now", reason, *second)).collect();
        last(PODS, events).remove("now")
    }

    #[test]
    fn the_last_attempt_counts() {
        let (failed, succeeded) = (("FailedCreate", 10), ("SuccessfulCreate", 20));
        assert_eq!(last_of(&[failed]).as_deref(), Some("FailedCreate at 10"));
        assert_eq!(last_of(&[("FailedCreate", 30), failed]).as_deref(), Some("FailedCreate at 30"));
        assert_eq!(last_of(&[failed, succeeded]), None, "what was in the way is gone");
        assert_eq!(last_of(&[succeeded, ("FailedCreate", 30)]).as_deref(), Some("FailedCreate at 30"));
        let at_once = [("FailedCreate", 20), succeeded];
        assert_eq!(last_of(&at_once).as_deref(), Some("FailedCreate at 20"), "one of two pods is missing");
        assert_eq!(last_of(&[failed, ("SuccessfulDelete", 20)]).as_deref(), Some("FailedCreate at 10"));
    }

    #[test]
    fn each_object_has_its_own() {
        let events = vec![event("before", "FailedCreate", 10), event("now", "SuccessfulCreate", 20)];
        assert_eq!(last(PODS, events).into_keys().collect::<Vec<_>>(), ["before"]);
    }
}
