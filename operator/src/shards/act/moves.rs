//! Moves the shards that cover one range from one node to another.

use futures::future::try_join;
use tokio_postgres::types::Type;

use super::awake::awake;
use super::{Error, endpoint};
use crate::names::Group;
use crate::pg::Parameter;
use crate::shards::sessions::{Door, Sessions};

/// Moves the shard group of `shard_id` from node to node. The coordinator's session of `sessions` has no time limit, and
/// its name says what it is for.
pub(super) async fn perform(sessions: &Sessions, shard_id: i64, from: Group, to: Group) -> Result<(), Error> {
    // The target fetches from the source, and either may ask the other.
    Box::pin(try_join(reaches(sessions, to, from), reaches(sessions, from, to))).await?;
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let (from, to) = (endpoint(sessions, from)?, endpoint(sessions, to)?);
    let (from_port, to_port) = (i32::from(from.port), i32::from(to.port));
    let parameters: [Parameter<'_>; 5] = [
        (&shard_id, Type::INT8),
        (&from.host, Type::TEXT),
        (&from_port, Type::INT4),
        (&to.host, Type::TEXT),
        (&to_port, Type::INT4),
    ];
    let _awake = awake(sessions, &session).await?;
    // While they are written to, whatever else there may be a way to do.
    let statement = "SELECT citus_move_shard_placement($1, source.nodeid, target.nodeid, 'force_logical')
                     FROM pg_dist_node AS source, pg_dist_node AS target
                     WHERE source.nodename = $2 AND source.nodeport = $3
                       AND target.nodename = $4 AND target.nodeport = $5";
    if session.query(statement, &parameters).await?.is_empty() {
        return Err(Error::Moved(format!("{from} or {to} is not registered any more")));
    }
    Ok(())
}

/// Whether the server of the session reaches another; one that is silent is waited for no longer than this, in
/// milliseconds.
const REACHES: &str = "
    SELECT citus_check_connection_to_node($1, $2)
    FROM set_config('citus.node_connection_timeout', '5000', true)";

/// Makes sure that `group`'s server reaches `other`'s.
pub(in crate::shards) async fn reaches(sessions: &Sessions, group: Group, other: Group) -> Result<(), Error> {
    let session = sessions.session(group, Door::Dialog).await?;
    let endpoint = endpoint(sessions, other)?;
    let port = i32::from(endpoint.port);
    let address: [Parameter<'_>; 2] = [(&endpoint.host, Type::TEXT), (&port, Type::INT4)];
    if session.query_one(REACHES, &address).await?.get(0) {
        return Ok(());
    }
    let message =
        format!("{group} cannot connect to {other} at {endpoint}: look at its log, and for a NetworkPolicy");
    Err(Error::Unreachable(message))
}
