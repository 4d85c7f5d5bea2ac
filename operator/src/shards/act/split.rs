//! Cuts the shards that cover one range, and puts the parts where they belong.

use tokio_postgres::types::Type;

use super::awake::awake;
use super::{Error, cleanup, endpoint, moves};
use crate::names::Group;
use crate::pg::{self, Session};
use crate::shards::heat::actions::{self, Outcome};
use crate::shards::sessions::{Door, Sessions};
use crate::shards::step::Split;

/// Citus' name of the quick way, in which writers wait while the shards are copied.
pub(in crate::shards) const BLOCKING: &str = "block_writes";
/// How long the quick way may wait for writers, and all of it may take: writers wait for it meanwhile. The statements of
/// dialog-api end after 2 s, and everything else on its way to that worker soon after: what takes longer goes the other way.
const QUICK: &str = "SET lock_timeout = '1s'; SET statement_timeout = '1500ms'";
/// The same where there is no other way, as a part of the shard stays on its worker.
const ONLY_QUICK: &str = "SET lock_timeout = '1s'; SET statement_timeout = '10s'";
/// How long it may wait for writers on the shards' own server. Citus locks them there by sessions of its own, to which no
/// limit of the coordinator's session applies.
const ON_OWNER: &str = "SET LOCAL lock_timeout = '1s'";

/// Cuts as `split` says. The coordinator's session of `sessions` has no time limit, and its name says what it is for.
pub(super) async fn perform(sessions: &Sessions, split: &Split) -> Result<(), Error> {
    let done = cut(sessions, split).await;
    if let Err(error) = &done {
        // The session may have been ended with the split. If this is not noted either, the coordinator has gone: the attempt
        // counts all the same.
        if let Ok(session) = sessions.looking().session(Group::Coordinator, Door::Dialog).await {
            let _ = actions::note_failure(&session, split.action, &error.to_string()).await;
        }
    }
    done
}

async fn cut(sessions: &Sessions, split: &Split) -> Result<(), Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    for group in &split.nodes {
        if *group != split.from {
            moves::reaches(sessions, *group, split.from).await?;
            moves::reaches(sessions, split.from, *group).await?;
        }
    }
    let mut nodes: Vec<i32> = Vec::with_capacity(split.nodes.len());
    for group in &split.nodes {
        nodes.push(node_id(sessions, &session, *group).await?);
    }
    let points: Vec<String> = split.points.iter().map(ToString::to_string).collect();
    let mode = if split.blocking { BLOCKING } else { "force_logical" };
    if split.blocking {
        session.run(if split.nodes.contains(&split.from) { ONLY_QUICK } else { QUICK }).await?;
        writers_let_go(sessions, &session, split).await?;
    }
    actions::note_begin(&session, split.action).await?;
    let _awake = if split.blocking { None } else { Some(awake(sessions, &session).await?) };
    let done = session
        .query(
            // The mode is in the text of the statement for who looks at it.
            &format!("SELECT citus_split_shard_by_split_points($1, $2, $3, '{mode}')"),
            &[(&split.shard_id, Type::INT8), (&points, Type::TEXT_ARRAY), (&nodes, Type::INT4_ARRAY)],
        )
        .await;
    done.map(drop).map_err(Error::from)
}

/// Fails if somebody who has written to the shards on their own server does not let go of them soon: takes the lock that a
/// split takes there, and gives it back at once. For one who begins to write after that and before the split, the limit of the
/// statement is what counts.
async fn writers_let_go(sessions: &Sessions, coordinator: &Session, split: &Split) -> Result<(), Error> {
    let covering = "SELECT coalesce(array_agg(other.shardid), '{}')
         FROM pg_dist_shard AS shard JOIN pg_dist_partition AS its ON its.logicalrelid = shard.logicalrelid
         JOIN pg_dist_partition AS colocated ON colocated.colocationid = its.colocationid
         JOIN pg_dist_shard AS other ON other.logicalrelid = colocated.logicalrelid
              AND (other.shardminvalue, other.shardmaxvalue) = (shard.shardminvalue, shard.shardmaxvalue)
         WHERE shard.shardid = $1";
    let row = coordinator.query_one(covering, &[(&split.shard_id, Type::INT8)]).await?;
    let shards: Vec<i64> = row.get(0);
    let owner = sessions.session(split.from, Door::Dialog).await?;
    let wait = async {
        owner.run("BEGIN").await?;
        owner.run(ON_OWNER).await?;
        // Mode 7 is EXCLUSIVE; writers have 5, SHARE.
        owner.query("SELECT lock_shard_metadata(7, $1)", &[(&shards, Type::INT8_ARRAY)]).await.map(drop)
    };
    let waited = wait.await;
    if owner.run("ROLLBACK").await.is_err() {
        sessions.close(split.from, Door::Dialog).await;
    }
    waited.map_err(Error::from)
}

/// Citus' number of the node.
async fn node_id(sessions: &Sessions, session: &Session, group: Group) -> Result<i32, Error> {
    let endpoint = endpoint(sessions, group)?;
    let port = i32::from(endpoint.port);
    let address: [pg::Parameter<'_>; 2] = [(&endpoint.host, Type::TEXT), (&port, Type::INT4)];
    let rows = session
        .query("SELECT nodeid FROM pg_dist_node WHERE nodename = $1 AND nodeport = $2", &address)
        .await?;
    let row = rows.first().ok_or_else(|| Error::Moved(format!("{group} is not registered any more")))?;
    Ok(row.get(0))
}

/// Notes what became of an action, once nothing is left behind of its splits: a slot would keep its node's log, a
/// subscription would be in the way of the next.
pub(super) async fn end(
    sessions: &Sessions,
    id: i64,
    outcome: Outcome,
    note: Option<&str>,
) -> Result<(), Error> {
    // What splits have left and Citus has not noted is not the operator's: the condition `Balanced` says so. Nor does anybody
    // wait for a node that was disabled, or is gone.
    let of_splits = |left: &cleanup::Left| left.object.starts_with("citus_shard_split_") && left.active;
    cleanup::make_sure(sessions, of_splits).await?;
    actions::end(&*super::catalogs(sessions).await?, id, outcome, note).await?;
    Ok(())
}
