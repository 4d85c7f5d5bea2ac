//! What the operator keeps on the coordinator, in a schema of its own: small, bounded, and enough to go on from.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use tokio_postgres::types::{Json, Type};

use super::actions::{self, Begun, Standing};
use super::period::Size;
use super::{Heat, State};
use crate::heat::{Action, Period, Tenant};
use crate::pg::{self, Session};

/// Makes the schema and the tables that are not there; one message, so that all of it is done or nothing. They are of the
/// coordinator alone.
pub const CREATE: &str = "SET LOCAL citus.enable_ddl_propagation = off;
CREATE SCHEMA IF NOT EXISTS dialog_operator;
COMMENT ON SCHEMA dialog_operator IS 'Of dialog-operator: what it has seen of load and sizes, and what it did about them';
CREATE TABLE IF NOT EXISTS dialog_operator.heat (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    state jsonb   NOT NULL
);
COMMENT ON TABLE dialog_operator.heat IS 'What the next decision about load is made from';
INSERT INTO dialog_operator.heat (state) VALUES ('{}') ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS dialog_operator.periods (
    ended  timestamptz PRIMARY KEY,
    period jsonb       NOT NULL,
    seen   timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE dialog_operator.periods ADD COLUMN IF NOT EXISTS seen timestamptz NOT NULL DEFAULT clock_timestamp();
COMMENT ON TABLE dialog_operator.periods IS 'The last periods, as they were decided about';
CREATE TABLE IF NOT EXISTS dialog_operator.sizes (
    hour          timestamptz NOT NULL,
    colocation_id integer     NOT NULL,
    measured      timestamptz NOT NULL,
    bytes         bigint      NOT NULL,
    PRIMARY KEY (hour, colocation_id)
);
COMMENT ON TABLE dialog_operator.sizes IS 'Bytes of colocation groups, hour by hour';
CREATE TABLE IF NOT EXISTS dialog_operator.pins (
    colocation_id integer NOT NULL,
    hash          integer NOT NULL,
    nodename      text    NOT NULL,
    nodeport      integer NOT NULL,
    asked_by      text    NOT NULL DEFAULT 'policy',
    tenant        text,
    since         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (colocation_id, hash)
);
ALTER TABLE dialog_operator.pins
    ADD COLUMN IF NOT EXISTS asked_by text NOT NULL DEFAULT 'policy',
    ADD COLUMN IF NOT EXISTS tenant text,
    ADD COLUMN IF NOT EXISTS since timestamptz NOT NULL DEFAULT now();
COMMENT ON TABLE dialog_operator.pins IS 'Which shards of one hash belong on which node, by its address in pg_dist_node';
CREATE TABLE IF NOT EXISTS dialog_operator.actions (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    decided  timestamptz NOT NULL,
    begun    timestamptz,
    ended    timestamptz,
    action   jsonb       NOT NULL,
    tenant   text,
    asked_by text        NOT NULL,
    why      text        NOT NULL,
    attempts integer     NOT NULL DEFAULT 0,
    outcome  text CHECK (outcome IN ('Done', 'Failed', 'Dropped')),
    note     text,
    before   jsonb,
    after    jsonb,
    CHECK ((ended IS NULL) = (outcome IS NULL))
);
COMMENT ON TABLE dialog_operator.actions IS 'What was done about load and size, and why; one thing at a time';
CREATE TABLE IF NOT EXISTS dialog_operator.strategy (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    replaced text    NOT NULL
);
COMMENT ON TABLE dialog_operator.strategy IS 'The default strategy of the rebalancer before that of the operator';
CREATE UNIQUE INDEX IF NOT EXISTS actions_one_at_a_time ON dialog_operator.actions ((true)) WHERE ended IS NULL";

/// The tables that [`CREATE`] makes.
pub(in crate::shards) const TABLES: [&str; 6] = ["heat", "periods", "sizes", "pins", "actions", "strategy"];
/// The column that it added last, with its table: without it they were made by an earlier version.
pub(in crate::shards) const LAST_COLUMN: [&str; 2] = ["periods", "seen"];

/// What was stored last.
pub(super) async fn read(session: &Session) -> Result<State, pg::Error> {
    let rows = session.query("SELECT state FROM dialog_operator.heat", &[]).await?;
    Ok(rows.first().map(state).unwrap_or_default())
}

/// What another version has stored in another form is forgotten. A few periods bring back who is hot; cooldowns, the times that
/// pinned tenants have been quiet for and what was imagined begin anew.
fn state(row: &tokio_postgres::Row) -> State {
    row.try_get::<_, Json<State>>(0).map(|state| state.0).unwrap_or_default()
}

/// What is to be stored.
pub(super) struct Judged {
    /// What the next decision is made from.
    pub(super) state: State,
    /// The period, to be recorded.
    pub(super) period: Period,
    /// What is to be done; it is written down in the same transaction as the decision, so that it is done once.
    pub(super) begun: Option<Begun>,
}

/// Replaces what is stored by what `judge` makes of it, and records the period; or does nothing if another operator has
/// seen it before, or a later one. What is shown then. A period is told by its length and its end. `judge` is told how what was decided earlier stands. The caller rolls back
/// after an error.
pub(super) async fn exchange(
    session: &Session,
    (length, end): (SignedDuration, Timestamp),
    judge: impl Fn(&State, Standing) -> Judged,
    sizes: &[Size],
) -> Result<Heat, pg::Error> {
    session.run("BEGIN").await?;
    let rows = session.query("SELECT state FROM dialog_operator.heat FOR UPDATE", &[]).await?;
    let before = rows.first().map(state).unwrap_or_default();
    if before.heat.has_seen(length, end) {
        session.run("COMMIT").await?;
        return Ok(before.heat);
    }
    let standing = actions::standing(session).await?;
    let Judged { state: mut next, period, begun } = judge(&before, standing);
    for size in sizes {
        let growth = grow(session, end, size).await?;
        if let Some(shown) = next.heat.sizes.iter_mut().find(|shown| shown.group == size.group) {
            shown.growth_per_hour = growth;
        }
    }
    session
        .query(
            "INSERT INTO dialog_operator.heat (state) VALUES ($1) ON CONFLICT (one) DO UPDATE SET state = excluded.state",
            &[(&Json(&next), Type::JSONB)],
        )
        .await?;
    session
        .query(
            "INSERT INTO dialog_operator.periods (ended, period) VALUES ($1, $2)
             ON CONFLICT (ended) DO UPDATE SET period = excluded.period, seen = excluded.seen",
            &[(&end, Type::TIMESTAMPTZ), (&Json(&period), Type::JSONB)],
        )
        .await?;
    actions::compare(session, &period).await?;
    if standing.open {
        actions::give_up(session).await?;
    }
    if let Some(begun) = begun {
        actions::begin(session, &period, &begun).await?;
    }
    actions::trim(session).await?;
    // A day of minutes, and two weeks of hours. Those that were seen last stay, by the coordinator's clock: an operator whose
    // clock was ahead for a while has left periods that end later than those of now.
    session
        .run(
            "DELETE FROM dialog_operator.periods WHERE seen <= (
                 SELECT seen FROM dialog_operator.periods ORDER BY seen DESC OFFSET 1440 LIMIT 1);
             DELETE FROM dialog_operator.sizes WHERE hour <= (
                 SELECT DISTINCT hour FROM dialog_operator.sizes ORDER BY hour DESC OFFSET 336 LIMIT 1);
             COMMIT",
        )
        .await?;
    Ok(next.heat)
}

/// Notes a size, and says by how many bytes it has grown in an hour: over the last day, or as long as is known; `None`
/// before an hour has passed.
async fn grow(session: &Session, end: Timestamp, size: &Size) -> Result<Option<i64>, pg::Error> {
    let now = (&end as &(dyn tokio_postgres::types::ToSql + Sync), Type::TIMESTAMPTZ);
    let rows = session
        .query(
            "WITH noted AS (
                 INSERT INTO dialog_operator.sizes (hour, colocation_id, measured, bytes)
                 VALUES (date_trunc('hour', $1), $2, $1, $3)
                 ON CONFLICT (hour, colocation_id) DO UPDATE SET measured = excluded.measured, bytes = excluded.bytes
             )
             SELECT (($3 - bytes) / (extract(epoch FROM $1 - measured) / 3600))::int8 FROM dialog_operator.sizes
             WHERE colocation_id = $2 AND measured BETWEEN $1 - interval '25 hours' AND $1 - interval '1 hour'
             ORDER BY measured LIMIT 1",
            &[now, (&size.colocation_id, Type::INT4), (&size.bytes, Type::INT8)],
        )
        .await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// The recorded periods, in order, as they are: not all of them need to be of this version.
///
/// # Errors
/// When the server does not answer, or has no such table: then nobody has watched yet.
pub async fn periods(session: &Session) -> Result<Vec<Period>, pg::Error> {
    let rows = session.query("SELECT period FROM dialog_operator.periods ORDER BY ended", &[]).await?;
    let period = |row: &tokio_postgres::Row| row.try_get::<_, Json<Period>>(0).ok().map(|period| period.0);
    Ok(rows.iter().filter_map(period).collect())
}

/// What the tenants are called that something was done about, or that are spoken of now.
///
/// # Errors
/// When the server does not answer, or has no such tables.
pub async fn names(session: &Session) -> Result<Vec<(Tenant, String)>, pg::Error> {
    let acts = session
        .query("SELECT action, tenant FROM dialog_operator.actions WHERE tenant IS NOT NULL ORDER BY id", &[])
        .await?;
    let mut names: BTreeMap<Tenant, String> = BTreeMap::new();
    for row in &acts {
        let action = row.try_get::<_, Json<Action>>(0).ok().and_then(|action| action.0.tenant());
        names.extend(action.map(|tenant| (tenant, row.get(1))));
    }
    names.extend(read(session).await?.names.list());
    Ok(names.into_iter().collect())
}
