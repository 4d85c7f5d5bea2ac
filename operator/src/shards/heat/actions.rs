//! What is being done, what was done, and where tenants are pinned, as it is written down on the coordinator.
//!
//! A decision to do something is a row of `dialog_operator.actions` from the moment it is made until it has an outcome, and
//! there is one such row at most. Whoever reads it does what is left of it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{Json, Type};

use crate::api::ActionStatus;
use crate::heat::{Action, Period, Tenant};
use crate::names::Group;
use crate::pg::{self, Endpoint, Session};

/// Who asks for what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Author {
    /// It follows from `spec.sharding.hotTenants`.
    Policy,
    /// `spec.sharding.pins` says so.
    Spec,
}

impl Author {
    /// As it is written down.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Spec => "spec",
        }
    }
}

/// What is written down.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// Where shard groups of one hash belong.
    pub pins: Vec<KeptPin>,
    /// The last actions, oldest first.
    pub acts: Vec<Act>,
    /// When it was read, by the coordinator's clock.
    pub now: Option<Timestamp>,
}

impl Kept {
    /// What is still to be done.
    #[must_use]
    pub fn open(&self) -> Option<&Act> {
        self.acts.iter().find(|act| act.ended.is_none())
    }
}

/// Where a shard group of one hash belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPin {
    /// Whose it is.
    pub tenant: Tenant,
    /// The node.
    pub endpoint: Endpoint,
    /// Who has asked for it.
    pub author: Author,
}

/// Something that was decided, and what became of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Act {
    /// Its number.
    pub id: i64,
    /// The end of the period that it was decided after.
    pub decided: Timestamp,
    /// When somebody began to do it.
    pub begun: Option<Timestamp>,
    /// When it had an outcome.
    pub ended: Option<Timestamp>,
    /// What it is.
    pub action: Action,
    /// What the tenant is called.
    pub tenant: Option<String>,
    /// Who asked for it.
    pub asked_by: String,
    /// Why it is done.
    pub why: String,
    /// Attempts that were begun, whatever became of them.
    pub attempts: i32,
    /// What became of it.
    pub outcome: Option<Outcome>,
    /// Why it failed or was dropped; while it is being done, why the last attempt that came to an end failed.
    pub note: Option<String>,
    /// Figures of the period before it.
    pub before: Option<Figures>,
    /// Figures of the first whole period after it.
    pub after: Option<Figures>,
}

impl Act {
    /// Whether `spec.sharding.pins` has asked for it.
    #[must_use]
    pub fn is_by_hand(&self) -> bool {
        self.asked_by == Author::Spec.name()
    }

    /// How long it took, from the first attempt to its end.
    #[must_use]
    pub fn lasted(&self) -> Option<SignedDuration> {
        self.begun.zip(self.ended).map(|(begun, ended)| ended.duration_since(begun))
    }

    /// As the status shows it.
    #[must_use]
    pub fn status(&self) -> ActionStatus {
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        ActionStatus {
            id: self.id,
            decided: time(self.decided),
            ended: self.ended.map(time),
            kind: self.action.kind().to_owned(),
            tenant: self.tenant.clone(),
            asked_by: self.asked_by.clone(),
            why: self.why.clone(),
            outcome: self.outcome.map(|outcome| outcome.name().to_owned()),
            note: self.note.clone(),
            milliseconds: self.lasted().and_then(|lasted| i64::try_from(lasted.as_millis()).ok()),
            before: self.before.map(Figures::status),
            after: self.after.map(Figures::status),
        }
    }
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was tried, and could not be done.
    Failed,
    /// It was not to be done any more.
    Dropped,
}

impl Outcome {
    /// Its name, as it is written down.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::Failed => "Failed",
            Self::Dropped => "Dropped",
        }
    }
}

/// What the nodes of an action and its tenant did in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Figures {
    /// CPU time of the source of what it may spend, in percent; `None` where nobody knows, here and below.
    source_cpu_percent: Option<u64>,
    /// The same of the target.
    target_cpu_percent: Option<u64>,
    /// Queries per second of the tenant.
    tenant_queries_per_second: Option<u64>,
    /// Those of them that write.
    tenant_writes_per_second: Option<u64>,
}

impl Figures {
    fn of(period: &Period, action: Action) -> Self {
        let (source, target, tenant) = match action {
            Action::Isolate { tenant, from, to, .. } => (Some(from), Some(to), Some(tenant)),
            Action::Split { from, to: [to, _], .. } | Action::Spread { from, to } => {
                (Some(from), Some(to), None)
            }
            Action::Release { tenant } => (None, None, Some(tenant)),
        };
        let percent = |group: Option<Group>| {
            let node = period.nodes.get(&group?)?;
            u64::try_from((u128::from(node.cpu) * 100).checked_div(u128::from(node.cpu_limit))?).ok()
        };
        let seconds = u64::try_from(period.length.as_secs()).unwrap_or(1).max(1);
        let sum = |of: fn(&crate::heat::TenantLoad) -> u64| {
            let tenant = tenant?;
            let loads = period.tenants.iter().filter(|load| load.tenant == tenant);
            Some(loads.map(of).fold(0, u64::saturating_add) / seconds)
        };
        Self {
            source_cpu_percent: percent(source),
            target_cpu_percent: percent(target),
            tenant_queries_per_second: sum(|load| load.queries),
            tenant_writes_per_second: sum(|load| load.writes),
        }
    }

    fn status(self) -> crate::api::ActionFigures {
        let number = |figure: Option<u64>| figure.and_then(|figure| i64::try_from(figure).ok());
        crate::api::ActionFigures {
            source_cpu_percent: number(self.source_cpu_percent),
            target_cpu_percent: number(self.target_cpu_percent),
            tenant_queries_per_second: number(self.tenant_queries_per_second),
            tenant_writes_per_second: number(self.tenant_writes_per_second),
        }
    }
}

/// Something that was just decided.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Begun {
    pub(super) action: Action,
    pub(super) tenant: Option<String>,
    pub(super) why: String,
    /// Whether shards are spread by load.
    pub(super) by_load: bool,
}

/// A row of `dialog_operator.pins`.
#[derive(Deserialize)]
struct PinRow {
    colocation_id: i32,
    hash: i32,
    nodename: String,
    nodeport: u16,
    asked_by: Author,
}

/// An expression for what is written down, as text. The tables are there. It is a part of another statement: each look at
/// a cluster is to cost few.
pub(in crate::shards) const KEPT: &str = "(
    SELECT jsonb_build_object(
        'now', now(),
        'pins', (SELECT jsonb_agg(to_jsonb(pin) ORDER BY colocation_id, hash) FROM dialog_operator.pins AS pin),
        'acts', (SELECT jsonb_agg(to_jsonb(act) ORDER BY id)
                 FROM (SELECT * FROM dialog_operator.actions ORDER BY id DESC LIMIT 10) AS act)))::text";

impl Kept {
    /// Understands the value of [`KEPT`]. What another version has written in another form is none of this one's; it is
    /// dropped when its time is over.
    pub(in crate::shards) fn parse(text: &str) -> Self {
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let list =
            |name: &str| value.get(name).and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
        let pins = list("pins").into_iter().filter_map(|pin| serde_json::from_value::<PinRow>(pin).ok());
        let pins = pins.map(|pin| KeptPin {
            tenant: Tenant { colocation_id: pin.colocation_id, hash: pin.hash },
            endpoint: Endpoint::new(pin.nodename, pin.nodeport),
            author: pin.asked_by,
        });
        let acts = list("acts").into_iter().filter_map(|act| serde_json::from_value(act).ok());
        let now = value.get("now").and_then(|now| serde_json::from_value(now.clone()).ok());
        Self { pins: pins.collect(), acts: acts.collect(), now }
    }
}

/// Whether something is still to be done.
pub(super) async fn is_open(session: &Session) -> Result<bool, pg::Error> {
    let open = "SELECT EXISTS (SELECT FROM dialog_operator.actions WHERE ended IS NULL)";
    Ok(session.query_one(open, &[]).await?.get(0))
}

/// Writes down what is to be done from now on. What needs no change of shards is done with it.
pub(super) async fn begin(session: &Session, period: &Period, begun: &Begun) -> Result<(), pg::Error> {
    let (outcome, note) = match begun.action {
        Action::Isolate { .. } | Action::Split { .. } => (None, None),
        Action::Release { tenant } => {
            unpin(session, tenant).await?;
            (Some(Outcome::Done), None)
        }
        // The planner needs no other word: it goes by the same load, and moves what is worth it.
        Action::Spread { .. } if begun.by_load => (
            Some(Outcome::Done),
            Some("shards are spread by load: see status.plan and the condition Balanced"),
        ),
        Action::Spread { .. } => {
            let note = "shards are not spread by load: set spec.sharding.rebalance.strategy to ByLoad, or add a worker";
            (Some(Outcome::Dropped), Some(note))
        }
    };
    let figures = Figures::of(period, begun.action);
    session
        .query(
            "INSERT INTO dialog_operator.actions (decided, action, tenant, asked_by, why, before, begun, ended, outcome, note)
             SELECT $1, $2, $3, $4, $5, $6, moment, moment, $7, $8
             FROM (SELECT CASE WHEN $7 IS NOT NULL THEN clock_timestamp() END AS moment) AS moments",
            &[
                (&period.end, Type::TIMESTAMPTZ),
                (&Json(begun.action), Type::JSONB),
                (&begun.tenant, Type::TEXT),
                (&Author::Policy.name(), Type::TEXT),
                (&begun.why, Type::TEXT),
                (&Json(figures), Type::JSONB),
                (&outcome.map(Outcome::name), Type::TEXT),
                (&note, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Adds what is so after an action, once a whole period has passed since.
pub(super) async fn compare(session: &Session, period: &Period) -> Result<(), pg::Error> {
    let start = period.end.checked_sub(period.length).unwrap_or(period.end);
    let rows = session
        .query(
            "SELECT id, action FROM dialog_operator.actions
             WHERE outcome = 'Done' AND after IS NULL AND ended <= $1 ORDER BY id DESC LIMIT 1",
            &[(&start, Type::TIMESTAMPTZ)],
        )
        .await?;
    for row in &rows {
        let Ok(Json(action)) = row.try_get::<_, Json<Action>>(1) else { continue };
        let (id, figures): (i64, _) = (row.get(0), Figures::of(period, action));
        session
            .query(
                "UPDATE dialog_operator.actions SET after = $2 WHERE id = $1",
                &[(&id, Type::INT8), (&Json(figures), Type::JSONB)],
            )
            .await?;
    }
    Ok(())
}

/// Ends what was decided more than an hour before `now` and has had no outcome, readable or not: it would be in the way of
/// every other decision. A clock that jumps ahead lets no hour pass: the coordinator's has to say the same.
pub(super) async fn give_up(session: &Session, now: Timestamp) -> Result<(), pg::Error> {
    let late = "UPDATE dialog_operator.actions
                SET ended = clock_timestamp(), outcome = 'Failed',
                    note = coalesce(note, 'what it needs did not come within an hour')
                WHERE ended IS NULL AND decided < least($1, clock_timestamp()) - interval '1 hour'";
    session.query(late, &[(&now, Type::TIMESTAMPTZ)]).await.map(drop)
}

/// Notes that an attempt begins: it counts from now on, so that one that nobody lives to see the end of does, too.
pub(in crate::shards) async fn note_begin(session: &Session, id: i64) -> Result<(), pg::Error> {
    let begun = "UPDATE dialog_operator.actions
                 SET begun = coalesce(begun, clock_timestamp()), attempts = attempts + 1 WHERE id = $1";
    session.query(begun, &[(&id, Type::INT8)]).await.map(drop)
}

/// Notes why an attempt has failed.
pub(in crate::shards) async fn note_failure(session: &Session, id: i64, why: &str) -> Result<(), pg::Error> {
    let failed = "UPDATE dialog_operator.actions SET note = $2 WHERE id = $1 AND ended IS NULL";
    session.query(failed, &[(&id, Type::INT8), (&why, Type::TEXT)]).await.map(drop)
}

/// Notes what became of it, unless somebody has. The figures after it follow.
pub(in crate::shards) async fn end(
    session: &Session,
    id: i64,
    outcome: Outcome,
    note: Option<&str>,
) -> Result<(), pg::Error> {
    let statement = "UPDATE dialog_operator.actions
                     SET ended = clock_timestamp(), begun = coalesce(begun, clock_timestamp()), outcome = $2, note = $3
                     WHERE id = $1 AND ended IS NULL";
    let parameters: [pg::Parameter<'_>; 3] =
        [(&id, Type::INT8), (&outcome.name(), Type::TEXT), (&note, Type::TEXT)];
    session.query(statement, &parameters).await.map(drop)
}

/// Pins a tenant to a node.
pub(in crate::shards) async fn pin(
    session: &Session,
    tenant: Tenant,
    endpoint: &Endpoint,
    author: Author,
) -> Result<(), pg::Error> {
    let port = i32::from(endpoint.port);
    session
        .query(
            "INSERT INTO dialog_operator.pins (colocation_id, hash, nodename, nodeport, asked_by)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (colocation_id, hash) DO UPDATE
             SET nodename = excluded.nodename, nodeport = excluded.nodeport, asked_by = excluded.asked_by",
            &[
                (&tenant.colocation_id, Type::INT4),
                (&tenant.hash, Type::INT4),
                (&endpoint.host, Type::TEXT),
                (&port, Type::INT4),
                (&author.name(), Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Writes down what somebody has asked for, unless something else is still to be done.
pub(in crate::shards) async fn ask(
    session: &Session,
    action: Action,
    name: &str,
    why: &str,
) -> Result<(), pg::Error> {
    let statement = "INSERT INTO dialog_operator.actions (decided, action, tenant, asked_by, why)
                     VALUES (clock_timestamp(), $1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let parameters: [pg::Parameter<'_>; 4] = [
        (&Json(action), Type::JSONB),
        (&name, Type::TEXT),
        (&Author::Spec.name(), Type::TEXT),
        (&why, Type::TEXT),
    ];
    session.query(statement, &parameters).await.map(drop)
}

/// Takes a tenant's pin away because the resource says so, and writes that down.
pub(in crate::shards) async fn release(
    session: &Session,
    tenant: Tenant,
    name: &str,
    why: &str,
) -> Result<(), pg::Error> {
    session
        .query(
            "WITH released AS (DELETE FROM dialog_operator.pins WHERE colocation_id = $1 AND hash = $2 RETURNING hash)
             INSERT INTO dialog_operator.actions (decided, action, tenant, asked_by, why, begun, ended, outcome)
             SELECT moment, $3, $4, $5, $6, moment, moment, 'Done'
             FROM released, (SELECT clock_timestamp() AS moment) AS moments",
            &[
                (&tenant.colocation_id, Type::INT4),
                (&tenant.hash, Type::INT4),
                (&Json(Action::Release { tenant }), Type::JSONB),
                (&name, Type::TEXT),
                (&Author::Spec.name(), Type::TEXT),
                (&why, Type::TEXT),
            ],
        )
        .await
        .map(drop)
}

/// Takes a tenant's pin away.
pub(in crate::shards) async fn unpin(session: &Session, tenant: Tenant) -> Result<(), pg::Error> {
    let statement = "DELETE FROM dialog_operator.pins WHERE colocation_id = $1 AND hash = $2";
    let parameters: [pg::Parameter<'_>; 2] =
        [(&tenant.colocation_id, Type::INT4), (&tenant.hash, Type::INT4)];
    session.query(statement, &parameters).await.map(drop)
}
