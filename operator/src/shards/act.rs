//! Performs one step. Each can be repeated, by this operator or the next, whatever became of the first attempt.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::heat::{self, actions, pins};
use super::observed::{End, Stall};
use super::sessions::{Door, Sessions};
use super::step::{API_ROLE, Beside, Distribution, OPERATOR_ROLE, Step};
use super::strategy;
use crate::heat::Action;
use crate::names::{DATABASE, Group, MAP_CHANNEL};
use crate::pg::{self, Endpoint, Parameter, Session, identifier};

pub(in crate::shards) mod awake;
mod cleanup;
pub(in crate::shards) mod moves;
pub(in crate::shards) mod split;

/// How long a change of Citus' catalogs may take: a new node is sent all of them. What copies rows has no limit, in
/// sessions of its own.
const CHANGE_LIMIT: Duration = Duration::from_mins(2);

/// The reason where Citus cannot take away what is left of a move or a split.
pub(in crate::shards) const CLEANUP_BLOCKED: &str = "CleanupBlocked";

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused or did not answer.
    #[error(transparent)]
    Database(#[from] pg::Error),
    /// The world is no longer as it was planned for.
    #[error("{0}")]
    Moved(String),
    /// A server that takes part does not reach another.
    #[error("{0}")]
    Unreachable(String),
    /// Citus did what it could; the rest has to wait for something else.
    #[error("{0}")]
    Left(String),
    /// It did not get on, and was cancelled for it.
    #[error("it {}; it was cancelled, and is tried again", .0.what())]
    Stalled(Stall),
    /// Other sessions are about what is left, so that nobody knows whether it has to wait.
    #[error("{0}")]
    Kept(String),
}

impl Error {
    /// The reason, for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "NodeUnreachable",
            Self::Left(_) | Self::Kept(_) => CLEANUP_BLOCKED,
            Self::Stalled(stall) => stall.reason(),
            Self::Database(_) | Self::Moved(_) => "StepFailed",
        }
    }
}

/// Performs `step`. The caller holds the topology lock in the coordinator's session of `sessions`, if there is a database
/// to hold it in; a step that takes long needs sessions made for it.
///
/// # Errors
/// When the database refuses, or is no longer as it was when the step was planned.
pub async fn perform(step: &Step, sessions: &Sessions) -> Result<(), Error> {
    match step {
        Step::CreateOperatorRole { group } => {
            role(sessions, *group, Door::Bootstrap, OPERATOR_ROLE, "LOGIN SUPERUSER").await?;
        }
        Step::CreateApiRole { group } => {
            let login = if *group == Group::Coordinator { "NOLOGIN" } else { "LOGIN" };
            role(sessions, *group, Door::Server, API_ROLE, login).await?;
        }
        Step::AllowLogin { group } => {
            sessions
                .session(*group, Door::Server)
                .await?
                .run(&format!("ALTER ROLE {API_ROLE} LOGIN"))
                .await?;
        }
        Step::CreateDatabase { group } => create_database(sessions, *group).await?,
        Step::SetDatabaseOwner { group } => {
            let statement = format!("ALTER DATABASE {DATABASE} OWNER TO {API_ROLE}");
            sessions.session(*group, Door::Server).await?.run(&statement).await?;
        }
        Step::CreateExtension { group } => {
            let session = sessions.session(*group, Door::Dialog).await?;
            session.run("CREATE EXTENSION IF NOT EXISTS citus").await?;
        }
        Step::CreateOwnTables => coordinator(sessions).await?.run(heat::store::CREATE).await?,
        Step::ResetSetting { group, name } => {
            let session = sessions.session(*group, Door::Server).await?;
            // ALTER SYSTEM wants a transaction to itself.
            session.run(&format!("ALTER SYSTEM RESET {name}")).await?;
            session.query("SELECT pg_reload_conf()", &[]).await?;
        }
        Step::SetCoordinatorHost => {
            node(sessions, Group::Coordinator, "SELECT citus_set_coordinator_host($1, $2)").await?;
        }
        Step::AddNode { group } => node(sessions, *group, "SELECT citus_add_node($1, $2)").await?,
        Step::ActivateNode { group } => node(sessions, *group, "SELECT citus_activate_node($1, $2)").await?,
        Step::UpdateNode { group, node_id } => update_node(sessions, *group, *node_id).await?,
        Step::RestoreNode { group, group_id } => restore_node(sessions, *group, *group_id).await?,
        Step::SyncMetadata { group } => {
            node(sessions, *group, "SELECT start_metadata_sync_to_node($1, $2)").await?;
        }
        Step::RemoveNode { group } => remove_node(sessions, *group).await?,
        Step::ForgetCleanup { group_id } => {
            let statement = "DELETE FROM pg_dist_cleanup WHERE node_group_id = $1
                             AND NOT EXISTS (SELECT FROM pg_dist_node WHERE groupid = $1)";
            catalogs(sessions).await?.query(statement, &[(group_id, Type::INT4)]).await?;
        }
        Step::CleanUp => cleanup::perform(sessions).await?,
        Step::MoveShard { shard_id, from, to } => moves::perform(sessions, *shard_id, *from, *to).await?,
        Step::SplitShard(split) => split::perform(sessions, split).await?,
        Step::BeginIsolation { .. }
        | Step::RemovePin { .. }
        | Step::SetPin { .. }
        | Step::Retarget { .. } => {
            bind(step, sessions).await?;
        }
        Step::SetStrategy { strategy, default } => {
            coordinator(sessions).await?.run(&strategy.create(*default)).await?;
        }
        Step::DropStrategy => {
            // Somebody may have taken the tables away, which it reads.
            coordinator(sessions).await?.run(heat::store::CREATE).await?;
            coordinator(sessions).await?.run(strategy::DROP).await?;
        }
        Step::EndAction { id, outcome, note } => split::end(sessions, *id, *outcome, note.as_deref()).await?,
        Step::CancelMove { pid, application, end } => cancel(sessions, *pid, application, *end).await?,
        Step::SetShouldHaveShards { group, value } => {
            set_should_have_shards(sessions, *group, *value).await?;
        }
        Step::CreateReferenceTable { table, .. } => {
            let statement = "SELECT create_reference_table($1::text::regclass)";
            let table = qualified(table);
            catalogs(sessions).await?.query(statement, &[(&table, Type::TEXT)]).await?;
        }
        Step::ReplicateReferenceTables => {
            catalogs(sessions).await?.query("SELECT replicate_reference_tables('auto')", &[]).await?;
        }
        Step::DistributeTable(distribution) => {
            let session = catalogs(sessions).await?;
            let done = distribute_empty(sessions, &session, distribution).await;
            if done.is_err() && session.run("ROLLBACK").await.is_err() {
                sessions.close(Group::Coordinator, Door::Dialog).await;
            }
            done?;
        }
        Step::DistributeConcurrently(distribution) => {
            distribute(&*catalogs(sessions).await?, "create_distributed_table_concurrently", distribution)
                .await?;
        }
    }
    if step.changes_map() {
        tell(sessions).await;
    }
    Ok(())
}

/// Performs a step that binds a tenant to a node, or sets it free.
async fn bind(step: &Step, sessions: &Sessions) -> Result<(), Error> {
    match step {
        Step::BeginIsolation { tenant, name, from, to, rest, why } => {
            let action = Action::Isolate { tenant: *tenant, from: *from, to: *to, rest: *rest };
            actions::ask(&*coordinator(sessions).await?, action, name, why).await?;
        }
        Step::RemovePin { tenant, called, why } => {
            pins::release(&*coordinator(sessions).await?, *tenant, called, why).await?;
        }
        Step::SetPin { pin, called, author } => {
            let endpoint = endpoint(sessions, pin.node)?;
            let (session, key) = (coordinator(sessions).await?, called.key.as_deref());
            pins::pin(&session, pin.into(), endpoint, *author, key).await?;
        }
        Step::Retarget { pin, from, called, author } => {
            let endpoint = endpoint(sessions, pin.node)?;
            pins::retarget(&*coordinator(sessions).await?, pin, *from, endpoint, *author, called).await?;
        }
        _ => {}
    }
    Ok(())
}

/// Ends the session `pid` on the coordinator, if it still is `application` and at work.
async fn cancel(sessions: &Sessions, pid: i32, application: &str, end: End) -> Result<(), Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let function = match end {
        End::Cancel => "pg_cancel_backend",
        End::Terminate => "pg_terminate_backend",
    };
    let statement = format!(
        "SELECT {function}(pid) FROM pg_stat_activity
         WHERE pid = $1 AND application_name = $2 AND state <> 'idle'"
    );
    session.query(&statement, &[(&pid, Type::INT4), (&application, Type::TEXT)]).await?;
    Ok(())
}

/// Tells those who keep a map of the shards that it has changed. They look by themselves as well, if somewhat later: so the
/// step is done whether or not they hear of it.
async fn tell(sessions: &Sessions) {
    let told = async {
        let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
        session.run(&format!("NOTIFY {MAP_CHANNEL}")).await
    };
    if let Err(error) = told.await {
        tracing::debug!(%error, "nobody was told that the map of shards has changed");
    }
}

/// The session in which the operator's own tables are changed.
async fn coordinator(sessions: &Sessions) -> Result<Arc<Session>, pg::Error> {
    sessions.session(Group::Coordinator, Door::Dialog).await
}

/// The session in which Citus' catalogs are changed.
async fn catalogs(sessions: &Sessions) -> Result<Arc<Session>, pg::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    session.allow(CHANGE_LIMIT).await?;
    Ok(session)
}

/// Makes a role, or gives it back its attributes.
async fn role(
    sessions: &Sessions,
    group: Group,
    door: Door,
    name: &str,
    attributes: &str,
) -> Result<(), pg::Error> {
    let session = sessions.session(group, door).await?;
    match session.run(&format!("CREATE ROLE {name} {attributes}")).await {
        Err(error) if error.is_duplicate() => session.run(&format!("ALTER ROLE {name} {attributes}")).await,
        done => done,
    }
}

async fn create_database(sessions: &Sessions, group: Group) -> Result<(), pg::Error> {
    let session = sessions.session(group, Door::Server).await?;
    // template0, because nobody knows what was done to template1.
    let statement = format!("CREATE DATABASE {DATABASE} OWNER {API_ROLE} TEMPLATE template0 ENCODING 'UTF8'");
    match session.run(&statement).await {
        Err(error) if error.is_duplicate() => Ok(()),
        done => done,
    }
}

/// Calls one of Citus' functions that take a node's address.
async fn node(sessions: &Sessions, group: Group, statement: &str) -> Result<(), Error> {
    let endpoint = endpoint(sessions, group)?;
    let port = i32::from(endpoint.port);
    let parameters: [Parameter<'_>; 2] = [(&endpoint.host, Type::TEXT), (&port, Type::INT4)];
    catalogs(sessions).await?.query(statement, &parameters).await?;
    Ok(())
}

/// Corrects the address of a node that is registered under another one.
async fn update_node(sessions: &Sessions, group: Group, node_id: i32) -> Result<(), Error> {
    let endpoint = endpoint(sessions, group)?;
    let port = i32::from(endpoint.port);
    let parameters: [Parameter<'_>; 3] =
        [(&node_id, Type::INT4), (&endpoint.host, Type::TEXT), (&port, Type::INT4)];
    catalogs(sessions).await?.query("SELECT citus_update_node($1, $2, $3)", &parameters).await?;
    Ok(())
}

/// Writes the row of a node whose placements are there. The other nodes may still have the row as it was, so all of them
/// are sent the list anew, by Citus itself.
async fn restore_node(sessions: &Sessions, group: Group, group_id: i32) -> Result<(), Error> {
    let endpoint = endpoint(sessions, group)?;
    let port = i32::from(endpoint.port);
    let parameters: [Parameter<'_>; 3] =
        [(&group_id, Type::INT4), (&endpoint.host, Type::TEXT), (&port, Type::INT4)];
    let statement = "
        WITH restored AS (
            INSERT INTO pg_dist_node (nodeid, groupid, nodename, nodeport, isactive, hasmetadata, metadatasynced, shouldhaveshards)
            -- The coordinator is where this runs; a worker is activated next.
            SELECT nextval('pg_dist_node_nodeid_seq'), $1, $2, $3, $1 = 0, $1 = 0, $1 = 0, $1 <> 0
            WHERE NOT EXISTS (SELECT FROM pg_dist_node WHERE groupid = $1)
            RETURNING groupid)
        UPDATE pg_dist_node SET metadatasynced = false
        WHERE hasmetadata AND groupid <> 0 AND EXISTS (SELECT FROM restored)";
    catalogs(sessions).await?.query(statement, &parameters).await?;
    Ok(())
}

/// Takes a node out of the catalogs in one transaction that has made sure of its being empty.
async fn remove_node(sessions: &Sessions, group: Group) -> Result<(), Error> {
    let endpoint = endpoint(sessions, group)?;
    let port = i32::from(endpoint.port);
    let address: [Parameter<'_>; 2] = [(&endpoint.host, Type::TEXT), (&port, Type::INT4)];
    let session = catalogs(sessions).await?;
    let removal = async {
        session.run("BEGIN").await?;
        // Nobody places a shard or leaves a record between the question and the answer.
        session.run("LOCK TABLE pg_dist_placement, pg_dist_cleanup IN SHARE ROW EXCLUSIVE MODE").await?;
        let row = session
            .query_one(
                "SELECT (SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
                         JOIN pg_dist_partition USING (logicalrelid) WHERE groupid = node.groupid AND partmethod = 'h'),
                        (SELECT count(*) FROM pg_dist_cleanup WHERE node_group_id = node.groupid)
                 FROM (SELECT max(groupid) AS groupid FROM pg_dist_node WHERE nodename = $1 AND nodeport = $2) AS node",
                &address,
            )
            .await?;
        let (shards, records): (i64, i64) = (row.get(0), row.get(1));
        if (shards, records) != (0, 0) {
            let message = format!(
                "{group} holds {shards} shards by now, and {records} records of what is to be taken away there"
            );
            return Err(Error::Moved(message));
        }
        session
            .query(
                "SELECT citus_remove_node(nodename, nodeport) FROM pg_dist_node WHERE nodename = $1 AND nodeport = $2",
                &address,
            )
            .await?;
        session.run("COMMIT").await?;
        Ok(())
    };
    let done = removal.await;
    if done.is_err() && session.run("ROLLBACK").await.is_err() {
        sessions.close(Group::Coordinator, Door::Dialog).await;
    }
    done
}

fn endpoint(sessions: &Sessions, group: Group) -> Result<&Endpoint, Error> {
    let endpoint = sessions.topology().endpoint(group);
    endpoint.ok_or_else(|| Error::Moved(format!("{group} has no address")))
}

/// Distributes a table in one transaction that has made sure of its being empty.
async fn distribute_empty(
    sessions: &Sessions,
    session: &Session,
    distribution: &Distribution,
) -> Result<(), Error> {
    let table = qualified(&distribution.table);
    session.run(&format!("BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")).await?;
    if session.query_one(&format!("SELECT EXISTS (SELECT FROM {table})"), &[]).await?.get(0) {
        let message = format!("{} has got rows since it was found empty", distribution.table);
        return Err(Error::Moved(message));
    }
    // Nobody else sees that some nodes may not hold shards meanwhile.
    hold_shards(sessions, distribution, false).await?;
    distribute(session, "create_distributed_table", distribution).await?;
    hold_shards(sessions, distribution, true).await?;
    session.run("COMMIT").await?;
    Ok(())
}

/// Says whether new shards may be placed on the nodes that get none of this distribution.
async fn hold_shards(sessions: &Sessions, distribution: &Distribution, value: bool) -> Result<(), Error> {
    let Beside::Nothing { apart, .. } = &distribution.beside else { return Ok(()) };
    for group in apart {
        set_should_have_shards(sessions, *group, value).await?;
    }
    Ok(())
}

async fn set_should_have_shards(sessions: &Sessions, group: Group, value: bool) -> Result<(), Error> {
    let statement = format!("SELECT citus_set_node_property($1, $2, 'shouldhaveshards', {value})");
    node(sessions, group, &statement).await
}

async fn distribute(session: &Session, function: &str, distribution: &Distribution) -> Result<(), pg::Error> {
    let (beside, shard_count) = match &distribution.beside {
        Beside::Nothing { shard_count, .. } => ("none".to_owned(), Some(*shard_count)),
        Beside::Table(table) => (qualified(table), None),
    };
    let table = qualified(&distribution.table);
    session.run("SET citus.shard_replication_factor = 1").await?;
    session
        .query(
            &format!("SELECT {function}($1::text::regclass, $2, colocate_with => $3, shard_count => $4)"),
            &[
                (&table, Type::TEXT),
                (&distribution.column, Type::TEXT),
                (&beside, Type::TEXT),
                (&shard_count, Type::INT4),
            ],
        )
        .await?;
    Ok(())
}

/// A table of the policy, as the session finds it whatever its search path.
fn qualified(table: &str) -> String {
    format!("public.{}", identifier(table))
}
