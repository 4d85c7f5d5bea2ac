//! Where tenants are pinned, as it is written down on the coordinator, and how that changes.

use tokio_postgres::types::{Json, Type};

use super::actions::{Author, Called, before, trim};
use crate::heat::{Action, Tenant};
use crate::names::Group;
use crate::pg::{self, Endpoint, Session};
use crate::shards::rebalance::Pin;

/// Pins a tenant to a node; `key` is what it is called. One that is pinned already has been since then. What is being done
/// about it has begun with that: where nothing is cut out, its shard is moved next.
pub(in crate::shards) async fn pin(
    session: &Session,
    tenant: Tenant,
    endpoint: &Endpoint,
    author: Author,
    key: Option<&str>,
) -> Result<(), pg::Error> {
    let port = i32::from(endpoint.port);
    session
        .query(
            "WITH begun AS (
                 UPDATE dialog_operator.actions SET begun = coalesce(begun, clock_timestamp()) WHERE ended IS NULL)
             INSERT INTO dialog_operator.pins AS known (colocation_id, hash, nodename, nodeport, asked_by, tenant)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (colocation_id, hash) DO UPDATE
             SET nodename = excluded.nodename, nodeport = excluded.nodeport, asked_by = excluded.asked_by,
                 tenant = coalesce(excluded.tenant, known.tenant)",
            &[
                (&tenant.colocation_id, Type::INT4),
                (&tenant.hash, Type::INT4),
                (&endpoint.host, Type::TEXT),
                (&port, Type::INT4),
                (&author.name(), Type::TEXT),
                (&key, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Pins a tenant to another node, as its own leaves, and writes that down.
pub(in crate::shards) async fn retarget(
    session: &Session,
    pin: &Pin,
    from: Group,
    endpoint: &Endpoint,
    author: Author,
    called: &Called,
) -> Result<(), pg::Error> {
    let (tenant, to) = (Tenant::from(pin), pin.node);
    let action = Action::Retarget { tenant, from, to };
    let (port, why) = (i32::from(endpoint.port), format!("{from} leaves: {called} is pinned to {to}"));
    let before = before(session, action).await?;
    session
        .query(
            "WITH moved AS (
                 UPDATE dialog_operator.pins SET nodename = $3, nodeport = $4
                 WHERE colocation_id = $1 AND hash = $2 AND (nodename, nodeport) <> ($3, $4) RETURNING hash)
             INSERT INTO dialog_operator.actions
                 (decided, action, tenant, asked_by, why, before, begun, ended, outcome)
             SELECT moment, $5, $6, $7, $8, $9, moment, moment, 'Done'
             FROM moved, (SELECT clock_timestamp() AS moment) AS moments",
            &[
                (&tenant.colocation_id, Type::INT4),
                (&tenant.hash, Type::INT4),
                (&endpoint.host, Type::TEXT),
                (&port, Type::INT4),
                (&Json(action), Type::JSONB),
                (&called.tenant(), Type::TEXT),
                (&author.name(), Type::TEXT),
                (&why, Type::TEXT),
                (&before.map(Json), Type::JSONB),
            ],
        )
        .await?;
    trim(session).await
}

/// Takes a tenant's pin away because the resource says so, and writes that down.
pub(in crate::shards) async fn release(
    session: &Session,
    tenant: Tenant,
    called: &Called,
    why: &str,
) -> Result<(), pg::Error> {
    let action = Action::Release { tenant };
    let before = before(session, action).await?;
    session
        .query(
            "WITH released AS (DELETE FROM dialog_operator.pins WHERE colocation_id = $1 AND hash = $2 RETURNING hash)
             INSERT INTO dialog_operator.actions
                 (decided, action, tenant, asked_by, why, before, begun, ended, outcome)
             SELECT moment, $3, $4, $5, $6, $7, moment, moment, 'Done'
             FROM released, (SELECT clock_timestamp() AS moment) AS moments",
            &[
                (&tenant.colocation_id, Type::INT4),
                (&tenant.hash, Type::INT4),
                (&Json(action), Type::JSONB),
                (&called.tenant(), Type::TEXT),
                (&Author::Spec.name(), Type::TEXT),
                (&why, Type::TEXT),
                (&before.map(Json), Type::JSONB),
            ],
        )
        .await?;
    trim(session).await
}

/// Takes a tenant's pin away.
pub(super) async fn unpin(session: &Session, tenant: Tenant) -> Result<(), pg::Error> {
    let statement = "DELETE FROM dialog_operator.pins WHERE colocation_id = $1 AND hash = $2";
    let parameters: [pg::Parameter<'_>; 2] =
        [(&tenant.colocation_id, Type::INT4), (&tenant.hash, Type::INT4)];
    session.query(statement, &parameters).await.map(drop)
}
