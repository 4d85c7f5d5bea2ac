//! What is being done, what was done, and where tenants are pinned, as it is written down on the coordinator.
//!
//! A decision to do something is a row of `dialog_operator.actions` from the moment it is made until it has an outcome, and
//! there is one such row at most. Whoever reads it does what is left of it.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{Json, Type};

use super::figures::{Figures, compares, is_recent};
use super::pins;
use crate::api::ActionStatus;
use crate::heat::{Action, Period, Tenant};
use crate::pg::{self, Endpoint, Session};

/// What waits for longer than this since it was decided, or since it was first tried, is given up: everything else waits for
/// it.
const PATIENCE: SignedDuration = SignedDuration::from_hours(1);
/// What others have kept from being done is not given up within this time after they let go of it: what it lacks may be what
/// they have just used, such as a slot that is about to be free.
const FURTHER: SignedDuration = SignedDuration::from_mins(10);

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
    /// The value of its distribution column, if anybody knew it.
    pub key: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

/// What a tenant is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Called {
    /// The group of tables, as the resource has it.
    pub group: String,
    /// The value of the distribution column, if anybody knows it.
    pub key: Option<String>,
    /// The hash of that.
    pub hash: i32,
}

impl Called {
    /// The tenant without its group: its key; or its hash, if nobody knows more.
    #[must_use]
    pub fn tenant(&self) -> String {
        self.key.clone().unwrap_or_else(|| format!("hash {}", self.hash))
    }
}

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.group, self.tenant())
    }
}

/// Something that was decided, and what became of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Act {
    /// Its number.
    pub id: i64,
    /// When it was decided, by the coordinator's clock as all that follows.
    pub decided: Timestamp,
    /// When somebody began to do it: the first attempt, or the pin.
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

    /// When it is given up if it still lacks something; `held_up` is when others were last seen to keep it from being done.
    #[must_use]
    pub(in crate::shards) fn given_up(&self, held_up: Option<Timestamp>) -> Option<Timestamp> {
        let own = self.begun.unwrap_or(self.decided).checked_add(PATIENCE).ok()?;
        let further = held_up.and_then(|at| at.checked_add(FURTHER).ok());
        Some(further.map_or(own, |further| further.max(own)))
    }

    /// How long it took, from the first attempt, or from the pin where a shard of its own is moved, to its end.
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

/// Something that was just decided.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Begun {
    pub(super) action: Action,
    pub(super) tenant: Option<String>,
    pub(super) why: String,
}

/// A row of `dialog_operator.pins`.
#[derive(Deserialize)]
struct PinRow {
    colocation_id: i32,
    hash: i32,
    nodename: String,
    nodeport: u16,
    asked_by: Author,
    tenant: Option<String>,
    since: Timestamp,
}

/// An expression for what is written down, as text. The tables are there. It is a part of another statement: each look at
/// a cluster is to cost few.
pub(in crate::shards) const KEPT: &str = "(
    SELECT jsonb_build_object(
        'now', now(),
        'pins', (SELECT jsonb_agg(to_jsonb(pin) ORDER BY colocation_id, hash) FROM dialog_operator.pins AS pin),
        'acts', (SELECT jsonb_agg(to_jsonb(act) ORDER BY id)
                 FROM (SELECT * FROM dialog_operator.actions ORDER BY ended IS NULL DESC, id DESC LIMIT 10) AS act)))::text";

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
            key: pin.tenant,
            since: pin.since,
        });
        let acts = list("acts").into_iter().filter_map(|act| serde_json::from_value(act).ok());
        let now = value.get("now").and_then(|now| serde_json::from_value(now.clone()).ok());
        Self { pins: pins.collect(), acts: acts.collect(), now }
    }
}

/// How what was decided earlier stands when something else is to be decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Something is still to be done.
    pub(super) open: bool,
    /// What the policy asked for last was dropped before it began.
    pub(super) undone: bool,
}

/// How what was decided earlier stands. What ended without having begun has both at the same moment, see [`end`].
pub(super) async fn standing(session: &Session) -> Result<Standing, pg::Error> {
    let standing = "SELECT EXISTS (SELECT FROM dialog_operator.actions WHERE ended IS NULL),
                        coalesce((SELECT outcome = 'Dropped' AND begun = ended FROM dialog_operator.actions
                                  WHERE asked_by = $1 AND action->>'kind' IN ('Isolate', 'Split', 'Spread')
                                  ORDER BY id DESC LIMIT 1), false)";
    let row = session.query_one(standing, &[(&Author::Policy.name(), Type::TEXT)]).await?;
    Ok(Standing { open: row.get(0), undone: row.get(1) })
}

/// Writes down what is to be done from now on. What needs no change of shards is done with it.
pub(super) async fn begin(session: &Session, period: &Period, begun: &Begun) -> Result<(), pg::Error> {
    let outcome = match begun.action {
        Action::Isolate { .. } | Action::Split { .. } | Action::Spread { .. } => None,
        Action::Release { tenant } => {
            pins::unpin(session, tenant).await?;
            Some(Outcome::Done)
        }
        // It is never decided: the pin follows at once.
        Action::Retarget { .. } => Some(Outcome::Dropped),
    };
    // To spread, the planner needs no other word: it goes by the same load.
    let begins = outcome.is_some() || matches!(begun.action, Action::Spread { .. });
    let figures = Figures::of(period, begun.action);
    session
        .query(
            "INSERT INTO dialog_operator.actions (decided, action, tenant, asked_by, why, before, begun, ended, outcome)
             SELECT moment, $1, $2, $3, $4, $5, CASE WHEN $7 THEN moment END, CASE WHEN $6 IS NOT NULL THEN moment END, $6
             FROM (SELECT clock_timestamp() AS moment) AS moments",
            &[
                (&Json(begun.action), Type::JSONB),
                (&begun.tenant, Type::TEXT),
                (&Author::Policy.name(), Type::TEXT),
                (&begun.why, Type::TEXT),
                (&Json(figures), Type::JSONB),
                (&outcome.map(Outcome::name), Type::TEXT),
                (&begins, Type::BOOL),
            ],
        )
        .await?;
    Ok(())
}

/// Adds what is so after the last actions, once a whole period has passed since.
pub(super) async fn compare(session: &Session, period: &Period) -> Result<(), pg::Error> {
    let done = "SELECT id, action, ended, clock_timestamp() FROM dialog_operator.actions
                WHERE outcome = 'Done' AND after IS NULL AND ended > clock_timestamp() - interval '1 day'
                ORDER BY id DESC LIMIT 20";
    for row in &session.query(done, &[]).await? {
        let Ok(Json(action)) = row.try_get::<_, Json<Action>>(1) else { continue };
        if !compares(period, row.get(3), action, row.get(2)) {
            continue;
        }
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

/// Ends what was decided longer than [`PATIENCE`] ago and cannot be read, as another version wrote it: the planner knows of
/// everything else that is open. No operator's clock counts, which may jump.
pub(super) async fn give_up(session: &Session) -> Result<(), pg::Error> {
    let late = "SELECT id, to_jsonb(act) FROM dialog_operator.actions AS act
                WHERE ended IS NULL AND decided < clock_timestamp() - make_interval(secs => $1)";
    let rows = session.query(late, &[(&PATIENCE.as_secs_f64(), Type::FLOAT8)]).await?;
    let note = "this version of the operator cannot read it";
    for row in rows.iter().filter(|row| row.try_get::<_, Json<Act>>(1).is_err()) {
        end(session, row.get(0), Outcome::Failed, Some(note)).await?;
    }
    Ok(())
}

/// Notes that an attempt begins: it counts from now on, so that one that nobody lives to see the end of does, too.
pub(in crate::shards) async fn note_begin(session: &Session, id: i64) -> Result<(), pg::Error> {
    let begun = "UPDATE dialog_operator.actions
                 SET begun = coalesce(begun, clock_timestamp()), attempts = attempts + 1 WHERE id = $1";
    session.query(begun, &[(&id, Type::INT8)]).await.map(drop)
}

/// Notes why an attempt has failed, be it one that does not count.
pub(in crate::shards) async fn note_failure(session: &Session, id: i64, why: &str) -> Result<(), pg::Error> {
    let failed = "UPDATE dialog_operator.actions SET note = $2, begun = coalesce(begun, clock_timestamp())
                  WHERE id = $1 AND ended IS NULL";
    session.query(failed, &[(&id, Type::INT8), (&why, Type::TEXT)]).await.map(drop)
}

/// Notes what became of it, unless somebody has. The figures after it follow. What had not begun begins and ends at the same
/// moment.
pub(in crate::shards) async fn end(
    session: &Session,
    id: i64,
    outcome: Outcome,
    note: Option<&str>,
) -> Result<(), pg::Error> {
    let statement = "UPDATE dialog_operator.actions
                     SET ended = moment, begun = coalesce(begun, moment), outcome = $2, note = $3
                     FROM (SELECT clock_timestamp() AS moment) AS moments
                     WHERE id = $1 AND ended IS NULL";
    let parameters: [pg::Parameter<'_>; 3] =
        [(&id, Type::INT8), (&outcome.name(), Type::TEXT), (&note, Type::TEXT)];
    session.query(statement, &parameters).await.map(drop)
}

/// Writes down what somebody has asked for, unless something else is still to be done. What nobody can read is given up
/// first: where nobody watches, nobody else does.
pub(in crate::shards) async fn ask(
    session: &Session,
    action: Action,
    name: &str,
    why: &str,
) -> Result<(), pg::Error> {
    give_up(session).await?;
    let before = before(session, action).await?;
    let statement = "INSERT INTO dialog_operator.actions (decided, action, tenant, asked_by, why, before)
                     VALUES (clock_timestamp(), $1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
    let parameters: [pg::Parameter<'_>; 5] = [
        (&Json(action), Type::JSONB),
        (&name, Type::TEXT),
        (&Author::Spec.name(), Type::TEXT),
        (&why, Type::TEXT),
        (&before.map(Json), Type::JSONB),
    ];
    session.query(statement, &parameters).await?;
    trim(session).await
}

/// Forgets all but the last thousand.
pub(super) async fn trim(session: &Session) -> Result<(), pg::Error> {
    let old = "DELETE FROM dialog_operator.actions WHERE id <= (
                   SELECT id FROM dialog_operator.actions ORDER BY id DESC OFFSET 1000 LIMIT 1)";
    session.query(old, &[]).await.map(drop)
}

/// What was so before something that nobody decided after a period; `None` if nobody has looked for a while. The coordinator's
/// clock says when that was: that of an operator may be far ahead, or behind.
pub(super) async fn before(session: &Session, action: Action) -> Result<Option<Figures>, pg::Error> {
    let last =
        "SELECT period, seen, clock_timestamp() FROM dialog_operator.periods ORDER BY seen DESC LIMIT 1";
    let rows = session.query(last, &[]).await?;
    // What another version has written in another form is not known.
    let read =
        |row: &tokio_postgres::Row| Some((row.try_get::<_, Json<Period>>(0).ok()?.0, row.get(1), row.get(2)));
    let period = rows.first().and_then(read).filter(|(period, seen, now)| is_recent(period, *seen, *now));
    Ok(period.map(|(period, ..)| Figures::of(&period, action)))
}
