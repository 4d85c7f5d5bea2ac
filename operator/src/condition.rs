//! Conditions: their types, who writes which, and how one is made.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The field manager of the controller of Kubernetes objects; it alone writes [`READY`] and the phase.
pub const CLUSTER_MANAGER: &str = "dialog-operator-cluster";
/// The field manager of the controller of the database.
pub const SHARDS_MANAGER: &str = "dialog-operator-shards";

/// Cluster: everything that was asked for serves.
pub const READY: &str = "Ready";
/// Cluster: a change of the objects is under way.
pub const PROGRESSING: &str = "Progressing";
/// A reason of [`PROGRESSING`]: an update waits until no move or split of a shard needs the server that is next.
pub const AFTER_MOVES: &str = "WaitingForMoves";
/// Cluster: every certificate is within its validity.
pub const CERTIFICATES_VALID: &str = "CertificatesValid";

/// Shards: the image has Citus, and every node has the extension.
pub const CITUS_AVAILABLE: &str = "CitusAvailable";
/// Shards: every group is registered under its Service name, active, and its metadata is in sync.
pub const METADATA_SYNCED: &str = "MetadataSynced";
/// Shards: `wal_level` is `logical` on every node.
pub const WAL_LEVEL_LOGICAL: &str = "WalLevelLogical";
/// Shards: every table of the policy is distributed as it says.
pub const SCHEMA_DISTRIBUTED: &str = "SchemaDistributed";
/// Shards: the shards are spread evenly over the nodes that should hold them.
pub const BALANCED: &str = "Balanced";
/// Shards: every node has the parameters of `spec.postgres.parameters`.
pub const PARAMETERS_APPLIED: &str = "ParametersApplied";
/// Shards: fewer workers are asked for than hold shards, and why they are kept.
pub const SCALE_IN_BLOCKED: &str = "ScaleInBlocked";

/// Shards: a tenant takes a large part of its worker; like [`SCALE_IN_BLOCKED`], true is what is to be looked at.
pub const HOT_TENANT: &str = "HotTenant";

/// Whether something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    True,
    /// It does not.
    False,
    /// It could not be found out.
    Unknown,
}

impl Holds {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What a controller found out about one aspect; it has no time yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// One of the types above.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: Holds,
    /// CamelCase, for programs.
    pub reason: &'static str,
    /// A sentence for people: what is so, of which object, and what to do.
    pub message: String,
}

/// Sentences that one message holds.
const NAMED: usize = 3;

/// The first of `sentences`, and how many more there are: fifty workers may have the same to say, and a message is read by
/// people.
#[must_use]
pub fn first_of<T: AsRef<str>>(sentences: &[T]) -> String {
    let text = sentences.iter().take(NAMED).map(AsRef::as_ref).collect::<Vec<_>>().join("; ");
    match sentences.len().saturating_sub(NAMED) {
        0 => text,
        more => format!("{text}; and {more} more"),
    }
}

impl Finding {
    /// A finding of type `kind`.
    #[must_use]
    pub fn new(
        kind: &'static str,
        holds: impl Into<Holds>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, holds: holds.into(), reason, message: message.into() }
    }

    /// Whether this is bad news where the condition's status was `before`.
    #[must_use]
    pub fn is_worse_than(&self, before: Option<&str>) -> bool {
        match self.kind {
            // That something ends or begins is neither good nor bad.
            PROGRESSING => false,
            SCALE_IN_BLOCKED => self.holds == Holds::True,
            _ => before == Some("True") && self.holds != Holds::True,
        }
    }

    /// The condition to write: the time of the last transition is kept where the status has not changed since.
    #[must_use]
    pub fn into_condition(self, before: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
        let status = self.holds.as_str();
        let last_transition_time = before
            .iter()
            .find(|condition| condition.type_ == self.kind && condition.status == status)
            .map_or(Time(now), |condition| condition.last_transition_time.clone());
        Condition {
            type_: self.kind.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message,
            observed_generation: generation,
            last_transition_time,
        }
    }
}

/// The condition of type `kind`, if there is one.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod runbook;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_some_and_counts_the_rest() {
        assert_eq!(first_of::<&str>(&[]), "");
        assert_eq!(first_of(&["a", "b", "c"]), "a; b; c");
        assert_eq!(first_of(&["a", "b", "c", "d", "e"]), "a; b; c; and 2 more");
    }

    #[test]
    fn bad_news_is_what_is_worse_and_not_what_ends() {
        let say = |kind, holds: bool, before| Finding::new(kind, holds, "Reason", "").is_worse_than(before);
        assert!(
            say(READY, false, Some("True")) && !say(READY, false, None) && !say(READY, true, Some("False"))
        );
        assert!(say(SCALE_IN_BLOCKED, true, Some("False")) && !say(SCALE_IN_BLOCKED, false, Some("True")));
        assert!(!say(PROGRESSING, false, Some("True")));
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let (early, late) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let first = Finding::new(READY, false, "Starting", "a").into_condition(&[], Some(1), early);
        let same = Finding::new(READY, false, "Waiting", "b").into_condition(
            std::slice::from_ref(&first),
            Some(1),
            late,
        );
        assert_eq!(same.last_transition_time, Time(early));
        assert_eq!((same.reason.as_str(), same.message.as_str()), ("Waiting", "b"));
        let other = Finding::new(READY, true, "Ready", "c").into_condition(&[same], Some(1), late);
        assert_eq!(other.last_transition_time, Time(late));
    }
}
