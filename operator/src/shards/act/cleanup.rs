//! Has Citus take away what moves and splits have left, and says what it cannot, and why.
//!
//! Citus notes what it makes in `pg_dist_cleanup`, and keeps the note of what it could not take away: it tries again every
//! few seconds, and tells nobody but its log.

use std::collections::BTreeSet;
use std::fmt;

use tokio_postgres::Row;

use super::{Error, catalogs};
use crate::pg::{self, Endpoint, Session, Warning, literal};
use crate::shards::observe::moves::LOCKED;
use crate::shards::sessions::Sessions;
use crate::shards::topology::Topology;

/// How long Citus waits for a node that is silent: for each object there anew, and topology does not change meanwhile.
const PATIENCE: &str = "SET citus.node_connection_timeout = '5s'";

/// What is said of a note that another session keeps.
const KEPT: &str = "another session is about it, as Citus itself when it tries to take it away";

/// How Citus begins to say that a node was silent.
const SILENT: &str = "could not establish connection";

/// Notes that a message names.
const NAMED: usize = 3;

/// A note of Citus, of an object that is still to be taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    record_id: i64,
    kind: Kind,
    pub(super) object: String,
    /// Where it is; the number of the group if no such node is registered.
    node: Result<Endpoint, i32>,
    /// Whether the node takes part: one that somebody has disabled may never answer again.
    pub(super) active: bool,
    /// Whether another session keeps its operation: one that is under way, or Citus' own daemon, which keeps all that it tries
    /// to take away until it has tried the last of it. Citus then takes it away for nobody else.
    kept: bool,
}

/// What is to be taken away, by `object_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Shard,
    Subscription,
    Slot,
    Publication,
    Role,
    Database,
    /// Of a release that notes more.
    Other(i32),
}

impl Kind {
    fn of(number: i32) -> Self {
        match number {
            1 => Self::Shard,
            2 => Self::Subscription,
            3 => Self::Slot,
            4 => Self::Publication,
            5 => Self::Role,
            6 => Self::Database,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard => f.write_str("the table"),
            Self::Subscription => f.write_str("the subscription"),
            Self::Slot => f.write_str("the replication slot"),
            Self::Publication => f.write_str("the publication"),
            Self::Role => f.write_str("the role"),
            Self::Database => f.write_str("the database"),
            Self::Other(number) => write!(f, "the object of type {number}"),
        }
    }
}

impl Left {
    fn of(row: &Row) -> Self {
        let host: Option<String> = row.get(4);
        let port = row.get::<_, Option<i32>>(5).and_then(|port| u16::try_from(port).ok());
        Self {
            record_id: row.get(0),
            kind: Kind::of(row.get(1)),
            object: row.get(2),
            node: host.zip(port).map(|(host, port)| Endpoint::new(host, port)).ok_or_else(|| row.get(3)),
            active: row.get::<_, Option<_>>(6).unwrap_or_default(),
            kept: row.get(7),
        }
    }

    /// Which it is, where, and what Citus says of it.
    fn describe(&self, topology: &Topology, warnings: &[Warning]) -> String {
        let Self { record_id, kind, object, node, kept, .. } = self;
        let (place, why) = match node {
            Err(group_id) => {
                (format!("the node of group {group_id}"), "pg_dist_node has no such node".to_owned())
            }
            Ok(endpoint) => {
                let place =
                    topology.group(endpoint).map_or_else(|| endpoint.to_string(), |group| group.to_string());
                let why = if *kept { KEPT.to_owned() } else { said(warnings, endpoint) };
                (place, why)
            }
        };
        let who = self.user().map_or_else(String::new, |query| format!("; who uses it: {query}"));
        format!("{kind} {object} on {place} (record {record_id}): {why}{who}")
    }

    /// What tells there who uses the object.
    fn user(&self) -> Option<String> {
        let name = literal(&self.object);
        match self.kind {
            Kind::Shard => {
                Some(format!("SELECT pid, mode FROM pg_locks WHERE relation = to_regclass({name})"))
            }
            Kind::Slot => {
                Some(format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = {name}"))
            }
            _ => None,
        }
    }
}

/// What Citus said of a node. It says with what node it was speaking, and not which object it was about; of a slot that is
/// in use it says nothing.
fn said(warnings: &[Warning], endpoint: &Endpoint) -> String {
    let said: BTreeSet<&str> = warnings
        .iter()
        .filter(|warning| [&warning.message, &warning.context].into_iter().any(|text| names(text, endpoint)))
        .map(|warning| warning.message.as_str())
        .collect();
    if said.is_empty() {
        // Of a node that is silent it does not even say which.
        let silent = warnings.iter().find(|warning| warning.message.starts_with(SILENT));
        return silent.map_or_else(
            || "Citus does not say why, as of what somebody uses".to_owned(),
            |warning| format!("{}, with this node or another", warning.message),
        );
    }
    said.into_iter().collect::<Vec<_>>().join("; ")
}

/// Whether a text of Citus is about a node.
fn names(text: &str, endpoint: &Endpoint) -> bool {
    let address = format!("{}:{}", endpoint.host, endpoint.port);
    text.match_indices(&address).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + address.len()..]);
        let part_of_a_name = |c: char| c.is_alphanumeric() || c == '-' || c == '.';
        !before.ends_with(part_of_a_name) && !after.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// Has Citus take away all that is noted.
///
/// # Errors
/// [`Error::Left`] if it could not, [`Error::Kept`] if nobody knows as other sessions are about what is still there.
pub(super) async fn perform(sessions: &Sessions) -> Result<(), Error> {
    let Attempt { before, after, said } = attempt(sessions).await?;
    // What was noted meanwhile nobody has tried to take away yet.
    let tried = |one: &Left| before.iter().find(|earlier| earlier.record_id == one.record_id);
    let (left, kept): (Vec<_>, Vec<_>) =
        after.into_iter().filter(|one| tried(one).is_some()).partition(|one| {
            // Whom Citus has passed over it says nothing of.
            !one.kept && tried(one).is_some_and(|earlier| !earlier.kept)
        });
    match (left.as_slice(), kept.len()) {
        ([], 0) => Ok(()),
        ([], kept) => Err(Error::Kept(format!("of {kept} notes in pg_dist_cleanup {KEPT}"))),
        _ => Err(Error::Left(message(&left, sessions.topology(), &said))),
    }
}

/// Has Citus take away all that is noted, and makes sure that nothing of it that `matters` is there any more.
///
/// # Errors
/// [`Error::Left`] if something is, whoever is about it.
pub(super) async fn make_sure(sessions: &Sessions, matters: impl Fn(&Left) -> bool) -> Result<(), Error> {
    let Attempt { mut after, said, .. } = attempt(sessions).await?;
    after.retain(matters);
    if after.is_empty() { Ok(()) } else { Err(Error::Left(message(&after, sessions.topology(), &said))) }
}

/// What was noted before Citus was asked to take it away and after, and what it has said meanwhile.
struct Attempt {
    before: Vec<Left>,
    after: Vec<Left>,
    said: Said,
}

/// What Citus has said.
struct Said {
    warnings: Vec<Warning>,
    /// Why it came to no end.
    cancelled: Option<String>,
}

async fn attempt(sessions: &Sessions) -> Result<Attempt, pg::Error> {
    let session = catalogs(sessions).await?;
    let before = noted(&session).await?;
    session.run(PATIENCE).await?;
    let (warnings, done) = session.run_warned("CALL citus_cleanup_orphaned_resources()").await;
    let cancelled = match done {
        Ok(()) => None,
        Err(error) if error.is_cancelled() => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    session.run("RESET citus.node_connection_timeout").await?;
    Ok(Attempt { before, after: noted(&session).await?, said: Said { warnings, cancelled } })
}

async fn noted(session: &Session) -> Result<Vec<Left>, pg::Error> {
    let statement = format!(
        "SELECT record_id, object_type, object_name, node_group_id, nodename::text, nodeport, isactive,
                operation_id IN (SELECT operation_id FROM ({LOCKED}) AS locked)
         FROM pg_dist_cleanup LEFT JOIN pg_dist_node ON groupid = node_group_id AND noderole = 'primary'
         ORDER BY 1"
    );
    Ok(session.query(&statement, &[]).await?.iter().map(Left::of).collect())
}

/// What could not be taken away, and what to do.
fn message(left: &[Left], topology: &Topology, said: &Said) -> String {
    let named: Vec<String> =
        left.iter().take(NAMED).map(|one| one.describe(topology, &said.warnings)).collect();
    let what = said.cancelled.as_ref().map_or_else(
        || "Citus cannot take away".to_owned(),
        |why| format!("Citus was to take away what is left, and came to no end ({why}); there is still"),
    );
    let more = left.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more in pg_dist_cleanup") } else { String::new() };
    format!(
        "{what} {}{more}. It is tried again: bring back a node that does not answer, and end who uses an object. \
         If an object is somebody's own, have Citus forget it, on the coordinator: DELETE FROM pg_dist_cleanup WHERE record_id = \
         RECORD",
        named.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Group;

    #[test]
    fn each_object_is_named_with_its_node_and_what_citus_says_of_that_one() {
        let node = |port| Endpoint::new("chat-worker", port);
        let topology: Topology =
            [(Group::Worker(0), node(5432)), (Group::Worker(1), node(54321))].into_iter().collect();
        let left = |record_id, number, object: &str, node| Left {
            record_id,
            kind: Kind::of(number),
            object: object.to_owned(),
            node,
            active: true,
            kept: false,
        };
        let said = |message: &str, context: &str| Warning {
            message: message.to_owned(),
            context: context.to_owned(),
        };
        let warnings = [
            said("canceling statement due to lock timeout", "while executing command on chat-worker:5432"),
            said("failed to clean up 2 orphaned resources out of 5", ""),
        ];
        let left = [
            left(7, 1, "public.messages_102008", Ok(node(5432))),
            left(8, 3, "citus_shard_split_slot_2_10_7", Ok(node(54321))),
            left(9, 5, "citus_shard_split_subscription_role_10_7", Err(4)),
            left(10, 4, "somewhere", Ok(node(5432))),
        ];
        let said = Said { warnings: warnings.into(), cancelled: None };
        assert_eq!(
            message(&left, &topology, &said),
            "Citus cannot take away the table public.messages_102008 on worker-0 (record 7): canceling statement due to lock \
             timeout; who uses it: SELECT pid, mode FROM pg_locks WHERE relation = to_regclass('public.messages_102008'); \
             the replication slot citus_shard_split_slot_2_10_7 on worker-1 (record 8): Citus does not say why, as of what \
             somebody uses; who uses it: SELECT active_pid FROM pg_replication_slots WHERE slot_name = \
             'citus_shard_split_slot_2_10_7'; the role citus_shard_split_subscription_role_10_7 on the node of group 4 \
             (record 9): pg_dist_node has no such node; and 1 more in pg_dist_cleanup. It is tried again: bring back a node \
             that does not answer, and end who uses an object. If an object is somebody's own, have Citus forget it, on the \
             coordinator: DELETE FROM pg_dist_cleanup WHERE record_id = RECORD"
        );
    }

    #[test]
    fn what_nobody_knows_of_is_not_guessed() {
        let node = Endpoint::new("chat-worker", 5432);
        let left = Left {
            record_id: 7,
            kind: Kind::Subscription,
            object: "citus_shard_split_subscription_10_7".to_owned(),
            node: Ok(node),
            active: true,
            kept: true,
        };
        let said = Said { warnings: Vec::new(), cancelled: Some("statement timeout".to_owned()) };
        let message = message(&[left], &Topology::from_iter([]), &said);
        assert!(
            message
                .starts_with("Citus was to take away what is left, and came to no end (statement timeout); "),
            "{message}"
        );
        assert!(
            message.contains(" on chat-worker:5432 (record 7): another session is about it, as Citus itself"),
            "{message}"
        );
    }
}
