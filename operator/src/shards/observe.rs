//! Reads what the servers say. Nothing here changes anything.
//!
//! A look at a steady cluster is one session and three statements per node, and eight more on the coordinator; once in a
//! while another per node for the sizes of shards, and one per worker for tables that look like shards. A test counts them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;

use super::heat::store;
use super::observed::{Citus, Facts, Node, Observed, Resources, Role, Room, RunningMove};
use super::sessions::{Door, Sessions};
use super::step::{API_ROLE, OPERATOR_ROLE};
use super::wanted::Wanted;
use super::world::members;
use crate::names::{DATABASE, Group};
use crate::pg::{self, Session};
use tokio_postgres::types::Type;

mod catalog;
pub(in crate::shards) mod moves;
pub(in crate::shards) mod names;
mod orphans;
mod parameters;
mod slots;
pub mod splits;
pub mod spreads;
pub mod stall;

/// Servers that are asked at the same time: as many as a cluster can have workers, so that those that give no answer cost one
/// time-out together.
pub(super) const AT_ONCE: usize = 100;

/// Whether to ask for what costs the servers more than a look at a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Measure the shards' files.
    Measure,
    /// Leave them alone.
    Skip,
}

/// Asks the coordinator, then every group that is wanted or registered. A server that does not answer is part of the
/// answer; the `silent` ones are not asked, and are said to be down for the reason that is given.
pub async fn observe(
    sessions: &Sessions,
    wanted: &Wanted,
    sizes: Sizes,
    silent: &BTreeMap<Group, String>,
) -> Observed {
    let mut observed = Observed::default();
    let first = match coordinator(sessions, wanted, sizes, &mut observed).await {
        Ok(node) => node,
        Err(error) => {
            sessions.close(Group::Coordinator, Door::Dialog).await;
            Node::Down(error.to_string())
        }
    };
    let groups = members(wanted, sessions.topology(), observed.catalog.as_ref());
    let others = groups.into_iter().filter(|group| *group != Group::Coordinator);
    observed.nodes = stream::iter(others)
        .map(|group| async move {
            match silent.get(&group) {
                Some(reason) => (group, Node::Down(reason.clone())),
                None => (group, worker(sessions, group, wanted, sizes).await),
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    observed.nodes.insert(Group::Coordinator, first);
    if let Some(catalog) = &mut observed.catalog {
        let answers = |group: Group| matches!(observed.nodes.get(&group), Some(Node::Up(_)));
        let moves: Vec<RunningMove> = catalog.moves().collect();
        if !moves.is_empty() && moves.iter().all(|running| answers(running.from) && answers(running.to)) {
            catalog.progress = moves::progress(sessions).await.unwrap_or_default();
        }
        let reached: Vec<RunningMove> = moves.iter().copied().filter(|running| answers(running.to)).collect();
        catalog.building = stall::building(sessions, &reached).await;
        catalog.rooms = moves.iter().flat_map(|running| rooms(*running, &observed.nodes)).collect();
        catalog.lost_slots = slots::lost(sessions, catalog).await;
        catalog.splits = splits::running(sessions, catalog).await;
        catalog.spreads = spreads::running(sessions, catalog).await;
        orphans::confirm(sessions, &mut observed).await;
    }
    observed
}

/// What is free at both ends of a move.
fn rooms(running: RunningMove, nodes: &BTreeMap<Group, Node>) -> Vec<Room> {
    let room = |group: Group| {
        let Node::Up(facts) = nodes.get(&group)? else { return None };
        let Resources { free_bytes, total_bytes, .. } = *facts.resources.as_ref()?;
        Some(Room { pid: running.pid, group, free_bytes, total_bytes })
    };
    [running.from, running.to].into_iter().filter_map(room).collect()
}

async fn worker(sessions: &Sessions, group: Group, wanted: &Wanted, sizes: Sizes) -> Node {
    match node(sessions, group, wanted, sizes).await {
        Ok((node, _)) => node,
        Err(error) => Node::Down(error.to_string()),
    }
}

async fn coordinator(
    sessions: &Sessions,
    wanted: &Wanted,
    sizes: Sizes,
    observed: &mut Observed,
) -> Result<Node, pg::Error> {
    let (node, session) = node(sessions, Group::Coordinator, wanted, sizes).await?;
    if let (Node::Up(facts), Some(session)) = (&node, session) {
        let citus = facts.citus.preloaded && facts.citus.installed.is_some();
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        observed.tables = catalog::tables(&session, &wanted.tables, citus).await?;
        if citus {
            let (catalog, kept) = catalog::read(&session, facts.own_tables).await?;
            (observed.catalog, observed.kept) = (Some(catalog), kept);
        }
        session.run("COMMIT").await?;
    }
    Ok(node)
}

/// What one server says, and the session inside the database if there is one.
async fn node(
    sessions: &Sessions,
    group: Group,
    wanted: &Wanted,
    sizes: Sizes,
) -> Result<(Node, Option<Arc<Session>>), pg::Error> {
    let Entered { session, door, mut facts, in_recovery, refusal } = enter(sessions, group).await?;
    if in_recovery {
        // A Service may lead to a server that has just become a standby.
        sessions.close(group, door).await;
        let message = format!("{} is a standby now: wait for the failover to end", session.login().endpoint);
        return Ok((Node::Down(message), None));
    }
    let whole = facts.operator.is_some_and(|role| role.login && role.superuser);
    if let (Door::Bootstrap, true, Some(refusal)) = (door, whole, refusal) {
        // The role is as it should be, and is refused all the same.
        return Err(refusal);
    }
    if whole || door == Door::Bootstrap {
        let names: Vec<&str> = wanted.parameters.keys().map(String::as_str).collect();
        parameters::read(&session, &names, &mut facts).await?;
    }
    facts.inside = door == Door::Dialog;
    if !(facts.inside && whole) {
        return Ok((Node::Up(Box::new(facts)), None));
    }
    if facts.citus.preloaded && facts.citus.installed.is_some() {
        let leaving = matches!(group, Group::Worker(number) if number >= wanted.workers);
        let local = moves::local(&session, leaving).await?;
        facts.local_group = local.group_id;
        facts.citus.release = Some(local.release);
        facts.resources = Some(local.resources);
        facts.orphans = local.orphans;
        if sizes == Sizes::Measure {
            // A server that cannot tell sizes in time is not a server that is down.
            facts.sizes = catalog::sizes(&session).await.ok();
            // A coordinator beside workers holds no shards, and people's own tables.
            if group != Group::Coordinator || wanted.workers == 0 {
                facts.strays = orphans::strays(&session).await.ok();
            }
        }
    }
    Ok((Node::Up(Box::new(facts)), Some(session)))
}

/// The door by which a server let the operator in, and what it said there.
struct Entered {
    session: Arc<Session>,
    door: Door,
    facts: Facts,
    in_recovery: bool,
    /// Why it was not the door to the database `dialog`.
    refusal: Option<pg::Error>,
}

/// Enters as close to the database `dialog` as the server allows.
async fn enter(sessions: &Sessions, group: Group) -> Result<Entered, pg::Error> {
    let refusal = match ask(sessions, group, Door::Dialog).await {
        Ok(entered) => return Ok(entered),
        // No answer at all: another door leads to the same silence.
        Err(error) if error.sqlstate().is_none() => return Err(error),
        Err(error) => error,
    };
    // The role may be missing, or not allowed in; and Citus refuses everything in its database, harmless reads
    // included, once its owner is no superuser any more.
    let door = if refusal.is_database_missing() { Door::Server } else { Door::Bootstrap };
    Ok(Entered { refusal: Some(refusal), ..ask(sessions, group, door).await? })
}

async fn ask(sessions: &Sessions, group: Group, door: Door) -> Result<Entered, pg::Error> {
    let session = sessions.session(group, door).await?;
    let (facts, in_recovery) = facts(&session).await?;
    Ok(Entered { session, door, facts, in_recovery, refusal: None })
}

async fn facts(session: &Session) -> Result<(Facts, bool), pg::Error> {
    let row = session
        .query_one(
            "SELECT current_setting('server_version'), pg_is_in_recovery(),
                    me.rolcanlogin, me.rolsuper, api.rolcanlogin, api.rolsuper,
                    (SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = $3),
                    (SELECT default_version::text FROM pg_available_extensions WHERE name = 'citus'),
                    (SELECT extversion FROM pg_extension WHERE extname = 'citus'),
                    (SELECT setting FROM pg_settings WHERE name = 'shared_preload_libraries'),
                    (SELECT count(*) FROM pg_class
                     WHERE relnamespace = to_regnamespace('dialog_operator') AND relname = ANY ($4)
                     AND (relname <> $5
                          OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attname = $6)))
             FROM (VALUES (1)) AS one
             LEFT JOIN pg_roles AS me ON me.rolname = $1
             LEFT JOIN pg_roles AS api ON api.rolname = $2",
            &[
                (&OPERATOR_ROLE, Type::TEXT),
                (&API_ROLE, Type::TEXT),
                (&DATABASE, Type::TEXT),
                (&store::TABLES.as_slice(), Type::TEXT_ARRAY),
                (&store::LAST_COLUMN[0], Type::TEXT),
                (&store::LAST_COLUMN[1], Type::TEXT),
            ],
        )
        .await?;
    let role = |login: usize, superuser: usize| {
        Some(Role {
            login: row.get::<_, Option<bool>>(login)?,
            superuser: row.get::<_, Option<bool>>(superuser)?,
        })
    };
    let libraries: Option<String> = row.get(9);
    let preloaded = libraries
        .is_some_and(|list| list.split(',').any(|library| library.trim().trim_matches('"') == "citus"));
    let version: String = row.get(0);
    let facts = Facts {
        version: version.split_whitespace().next().unwrap_or_default().to_owned(),
        operator: role(2, 3),
        api: role(4, 5),
        database_owner: row.get(6),
        citus: Citus { available: row.get(7), installed: row.get(8), preloaded, release: None },
        own_tables: usize::try_from(row.get::<_, i64>(10)) == Ok(store::TABLES.len()),
        ..Facts::default()
    };
    Ok((facts, row.get(1)))
}
