//! Whether a group's servers and volumes may be deleted: asked of the databases themselves, under the topology lock,
//! immediately before.

use std::collections::BTreeMap;
use std::fmt;

use tokio_postgres::types::Type;

use super::lock::{self, Holder, TOPOLOGY_LOCKED};
use super::observe::moves::stored_shards;
use super::sessions::{Door, Sessions};
use crate::names::{DATABASE, Group};
use crate::pg::{self, Endpoint};

/// Why a group's servers and volumes have to stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stay {
    /// For programs; `None` where it passes by itself.
    pub reason: Option<&'static str>,
    /// For people: what keeps them, and what to do.
    pub message: String,
}

impl Stay {
    /// Until somebody does something.
    fn lasting(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason: Some(reason), message: message.into() }
    }

    /// For a while.
    fn passing(message: impl Into<String>) -> Self {
        Self { reason: None, message: message.into() }
    }
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why `group` has to stay, asked without the topology lock: who stays for a reason of its own is told that, and not who has the lock,
/// which comes and goes with each move; and nobody waits for the lock because of it. One that somebody has forgotten to give back is a
/// reason. `None` where it may go, or nobody knows.
///
/// `has_database` is whether the group's volumes may hold a database; such a server has to say itself that it stores no shard.
pub async fn stays(sessions: &Sessions, group: Group, has_database: bool) -> Option<Stay> {
    match obstacle(sessions, group, has_database).await {
        Ok(None) => forgotten(sessions).await.ok().flatten(),
        asked => asked.ok().flatten(),
    }
}

/// Says who has the topology lock and has done nothing for so long that it will not give it back.
async fn forgotten(sessions: &Sessions) -> Result<Option<Stay>, pg::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let holder = lock::holder(&session).await?.filter(Holder::is_forgetful);
    Ok(holder.map(|holder| Stay::lasting(TOPOLOGY_LOCKED, holder.to_string())))
}

/// Deletes what `delete` deletes if nothing is lost with `group`; otherwise says why it has to stay.
///
/// `has_database` is as with [`stays`]. The topology lock is held throughout, so nothing comes to the group meanwhile.
///
/// # Errors
/// When `delete` fails. A database that cannot be asked is a reason to stay.
pub async fn retire<E>(
    sessions: &Sessions,
    group: Group,
    has_database: bool,
    delete: impl AsyncFnOnce() -> Result<(), E>,
) -> Result<Option<String>, E> {
    let locked = async {
        let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
        Ok::<_, pg::Error>((lock::try_acquire(&session).await?, session))
    };
    let session = match locked.await {
        Ok((None, session)) => session,
        Ok((Some(holder), _)) => return Ok(Some(holder.to_string())),
        Err(error) => return Ok(Some(error.to_string())),
    };
    let outcome = match obstacle(sessions, group, has_database).await {
        // The lock went with the session if that broke meanwhile.
        Ok(None) if session.is_over() => Ok(Some("the coordinator has just ended the session".to_owned())),
        Ok(None) => delete().await.map(|()| None),
        Ok(Some(stay)) => Ok(Some(stay.message)),
        Err(error) => Ok(Some(error.to_string())),
    };
    if lock::release(&session).await.is_err() {
        sessions.close(Group::Coordinator, Door::Dialog).await;
    }
    outcome
}

/// The reason where a server cannot say what it holds.
const UNREACHABLE: &str = "NodeUnreachable";

/// The reason where a server holds, or is, what the catalogs do not know at its address.
pub(super) const LEFT_BEHIND: &str = "LeftBehind";

/// Whether a server is a standby, to which a Service may lead for a moment, and whether it has Citus.
const STATE: &str = "SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')";

/// Why `group` has to stay.
async fn obstacle(sessions: &Sessions, group: Group, has_database: bool) -> Result<Option<Stay>, pg::Error> {
    let Some(endpoint) = sessions.topology().endpoint(group) else {
        return Ok(Some(Stay::lasting(UNREACHABLE, format!("{group} has no address"))));
    };
    let coordinator = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let row = coordinator.query_one(STATE, &[]).await?;
    if row.get(0) {
        // Its catalogs may be old, and a lock there keeps nobody out.
        return Ok(Some(Stay::passing(
            "the coordinator that answers is a standby: wait for the failover to end",
        )));
    }
    let mut registered = BTreeMap::new();
    if row.get(1) {
        let port = i32::from(endpoint.port);
        let row = coordinator
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_dist_node WHERE nodename = $1 AND nodeport = $2),
                        EXISTS (SELECT FROM pg_dist_placement WHERE groupid NOT IN (SELECT groupid FROM pg_dist_node))",
                &[(&endpoint.host, Type::TEXT), (&port, Type::INT4)],
            )
            .await?;
        if row.get(0) {
            return Ok(Some(Stay::passing(format!("{group} is still registered"))));
        }
        if row.get(1) {
            let message = "the catalogs place shards on a node that is not registered: nobody knows which server has them";
            return Ok(Some(Stay::lasting("NotRegistered", message)));
        }
        let nodes = "SELECT groupid, nodename, nodeport FROM pg_dist_node";
        for row in coordinator.query(nodes, &[]).await? {
            let port = u16::try_from(row.get::<_, i32>(2)).unwrap_or_default();
            registered.insert(row.get(0), Endpoint::new(row.get::<_, &str>(1), port));
        }
    }
    // A coordinator that was made anew knows nothing of what the others hold.
    if has_database { holds_something(sessions, group, &registered).await } else { Ok(None) }
}

/// What the group's own server says: it may be registered under another name, or know of shards that the coordinator's
/// catalogs have lost.
async fn holds_something(
    sessions: &Sessions,
    group: Group,
    registered: &BTreeMap<i32, Endpoint>,
) -> Result<Option<Stay>, pg::Error> {
    let silent = |error: &pg::Error| {
        let message = format!(
            "{group} does not answer, so nobody knows what it holds ({error}): bring it back, or, if it is known to be \
             empty, delete its StatefulSet and then its claims"
        );
        Stay::lasting(UNREACHABLE, message)
    };
    let session = match sessions.session(group, Door::Dialog).await {
        Ok(session) => session,
        // A server on which nothing was ever prepared holds nothing.
        Err(error) if error.is_database_missing() => return Ok(None),
        Err(error) if error.sqlstate().is_some() => return fresh(sessions, group, &error).await,
        Err(error) => return Ok(Some(silent(&error))),
    };
    let asked = async {
        let row = session.query_one(STATE, &[]).await?;
        if row.get(0) {
            return Ok(Some(Stay::passing(format!(
                "the server of {group} that answers is a standby: wait for the failover to end"
            ))));
        }
        if !row.get::<_, bool>(1) {
            return Ok(None);
        }
        let number: i32 = session.query_one("SELECT groupid FROM pg_dist_local_group", &[]).await?.get(0);
        if let Some(address) = registered.get(&number).filter(|_| number != 0) {
            let message = match sessions.topology().group(address) {
                None => format!(
                    "{group} is registered under another address, as the node of group {number}: raise spec.workers.count, \
                     and its address is corrected; then lower the count again"
                ),
                Some(other) => format!(
                    "{group} says that it is the node of group {number}, and so does the catalogs' {other} ({address}): one of \
                     both is a copy of the other; if {other} is the one that serves, delete the StatefulSet of {group} and then \
                     its claims"
                ),
            };
            return Ok(Some(Stay::lasting(LEFT_BEHIND, message)));
        }
        let stored = stored_shards(&session).await?;
        Ok((stored.count > 0).then(|| Stay::lasting(LEFT_BEHIND, stored.to_string())))
    };
    Ok(asked.await.unwrap_or_else(|error: pg::Error| Some(silent(&error))))
}

/// A server that does not let the operator in: it is one that was never prepared only if it has no database of ours.
async fn fresh(sessions: &Sessions, group: Group, refused: &pg::Error) -> Result<Option<Stay>, pg::Error> {
    let question = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    let found = async {
        let session = sessions.session(group, Door::Bootstrap).await?;
        Ok::<bool, pg::Error>(session.query_one(question, &[(&DATABASE, Type::TEXT)]).await?.get(0))
    };
    Ok(match found.await {
        Ok(false) => None,
        Ok(true) | Err(_) => Some(Stay::lasting(
            UNREACHABLE,
            format!(
                "{group} does not let the operator in, so nobody knows what it holds ({refused}): see its log, or, if it is \
                 known to be empty, delete its StatefulSet and then its claims"
            ),
        )),
    })
}
