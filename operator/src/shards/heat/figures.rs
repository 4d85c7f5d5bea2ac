//! What the nodes of an action and its tenant did in a period, as it is written down beside the action. Pure.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::api::ActionFigures;
use crate::heat::{Action, NodeLoad, Period, Tenant, TenantLoad};
use crate::names::Group;
use crate::shards::rebalance::{Pin, Role};

/// Periods after an action for which its figures wait for a node that does not answer.
const PATIENCE: i32 = 10;

/// What the nodes of an action and its tenant did in a period; `None` where nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Figures {
    /// CPU time of the source of what it may spend, in percent.
    source_cpu_percent: Option<u64>,
    /// The same of the target.
    target_cpu_percent: Option<u64>,
    /// Queries per second of the tenant.
    tenant_queries_per_second: Option<u64>,
    /// Those of them that write.
    tenant_writes_per_second: Option<u64>,
}

impl Figures {
    pub(super) fn of(period: &Period, action: Action) -> Self {
        let (source, target) = nodes(action);
        let percent = |group: Option<Group>| {
            let node = period.nodes.get(&group?)?;
            u64::try_from((u128::from(node.cpu) * 100).checked_div(u128::from(node.cpu_limit))?).ok()
        };
        let seconds = u64::try_from(period.length.as_secs()).unwrap_or(1).max(1);
        let sum = |of: fn(&TenantLoad) -> u64| {
            let tenant = action.tenant()?;
            let listed = |load: &&TenantLoad| load.tenant == tenant && load.queries > 0;
            let mut loads = period.tenants.iter().filter(listed).peekable();
            // Who is on no list may be missing from one.
            if loads.peek().is_none() && !is_listed_if_active(period, tenant) {
                return None;
            }
            Some(loads.map(of).fold(0, u64::saturating_add) / seconds)
        };
        Self {
            source_cpu_percent: percent(source),
            target_cpu_percent: percent(target),
            tenant_queries_per_second: sum(|load| load.queries),
            tenant_writes_per_second: sum(|load| load.writes),
        }
    }

    pub(super) fn status(self) -> ActionFigures {
        let number = |figure: Option<u64>| figure.and_then(|figure| i64::try_from(figure).ok());
        ActionFigures {
            source_cpu_percent: number(self.source_cpu_percent),
            target_cpu_percent: number(self.target_cpu_percent),
            tenant_queries_per_second: number(self.tenant_queries_per_second),
            tenant_writes_per_second: number(self.tenant_writes_per_second),
        }
    }
}

/// The nodes that an action takes something from, and gives something to.
fn nodes(action: Action) -> (Option<Group>, Option<Group>) {
    match action {
        Action::Isolate { from, to, .. }
        | Action::Split { from, to: [to, _], .. }
        | Action::Spread { from, to }
        | Action::Retarget { from, to, .. } => (Some(from), Some(to)),
        Action::Release { .. } => (None, None),
    }
}

/// Whether a tenant with any query is among those of the period, wherever it is.
fn is_listed_if_active(period: &Period, tenant: Tenant) -> bool {
    let is_pinned = |pin: &Pin| Tenant::from(pin) == tenant;
    let unseen: fn(&NodeLoad) -> u64 = if period.pins.iter().any(is_pinned) {
        |node| node.unlisted
    } else {
        |node| node.unseen.max(node.unlisted)
    };
    period.nodes.values().all(|node| node.role != Role::Unavailable && unseen(node) == 0)
}

/// Whether the figures of `period`, which was looked at when it was `seen`, are those after an action that ended at `ended`: it
/// is a whole one since, and the nodes of the action answered, unless they have not for long. Both times are the
/// coordinator's; what the servers show then is their last whole period, whatever the clock of who looks.
pub(super) fn compares(period: &Period, seen: Timestamp, action: Action, ended: Timestamp) -> bool {
    let length = period.length.as_secs().max(1);
    let start = Timestamp::from_second((seen.as_second().div_euclid(length) - 1) * length).unwrap_or(seen);
    let (source, target) = nodes(action);
    let silent = |group: Group| period.nodes.get(&group).is_some_and(|node| node.role == Role::Unavailable);
    let waited = start.duration_since(ended) > period.length.saturating_mul(PATIENCE);
    ended <= start && (waited || ![source, target].into_iter().flatten().any(silent))
}

/// Whether `period`, which was looked at when it was `seen`, tells what was so before something that is done `now`, by one
/// clock.
pub(super) fn is_recent(period: &Period, seen: Timestamp, now: Timestamp) -> bool {
    let since = now.duration_since(seen);
    since <= period.length.saturating_mul(3).saturating_add(SignedDuration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::Relief;

    const TENANT: Tenant = Tenant { colocation_id: 1, hash: 7 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn node(percent: u64) -> NodeLoad {
        NodeLoad {
            role: Role::Shared,
            queries: 6000,
            writes: 0,
            cpu: 600_000 * percent,
            cpu_limit: 60_000_000,
            free_bytes: None,
            unseen: 0,
            unlisted: 0,
        }
    }

    /// A minute of two workers, in which the tenant made 6000 queries on the first, or nothing was seen of it.
    fn period(queries: Option<u64>) -> Period {
        let load = |queries| TenantLoad {
            tenant: TENANT,
            node: Group::Worker(0),
            queries,
            writes: queries / 2,
            cpu: 0,
            shard_bytes: 0,
            alone: true,
        };
        Period {
            end: at(60),
            length: SignedDuration::from_mins(1),
            nodes: [(Group::Worker(0), node(80)), (Group::Worker(1), node(20))].into_iter().collect(),
            tenants: queries.map(load).into_iter().collect(),
            pins: Vec::new(),
            held: Vec::new(),
            large: Vec::new(),
            empty: Vec::new(),
            uses: Vec::new(),
            shard_groups: 2,
            underway: false,
            relief: Relief::Ready,
            splits_held: false,
        }
    }

    fn isolation() -> Action {
        Action::Isolate { tenant: TENANT, from: Group::Worker(0), to: Group::Worker(1), rest: None }
    }

    #[test]
    fn what_nobody_measured_is_not_taken_for_nothing() {
        let rate = |period: &Period| Figures::of(period, isolation()).tenant_queries_per_second;
        let expected = Figures {
            source_cpu_percent: Some(80),
            target_cpu_percent: Some(20),
            tenant_queries_per_second: Some(100),
            tenant_writes_per_second: Some(50),
        };
        assert_eq!(Figures::of(&period(Some(6000)), isolation()), expected);
        assert_eq!(rate(&period(None)), Some(0), "everybody who does anything is listed");
        let mut short = period(None);
        short.nodes.get_mut(&Group::Worker(0)).unwrap().unseen = 40;
        assert_eq!(rate(&short), None);
        // Of pinned ones all are shown that the server itself lists.
        short.pins = vec![TENANT.pin(Group::Worker(0))];
        assert_eq!(rate(&short), Some(0));
        short.nodes.get_mut(&Group::Worker(0)).unwrap().unlisted = 40;
        assert_eq!(rate(&short), None);
        short.tenants = period(Some(0)).tenants;
        assert_eq!(rate(&short), None, "that it was silent is known but for so many queries");
        let mut silent = period(None);
        *silent.nodes.get_mut(&Group::Worker(1)).unwrap() =
            NodeLoad { role: Role::Unavailable, cpu: 0, cpu_limit: 0, ..node(0) };
        let figures = Figures::of(&silent, isolation());
        assert_eq!((figures.source_cpu_percent, figures.target_cpu_percent), (Some(80), None));
        assert_eq!(figures.tenant_queries_per_second, None);
    }

    #[test]
    fn figures_after_an_action_wait_for_a_whole_period_and_for_its_nodes() {
        // Whose clock is an hour off calls the period by another time.
        for off in [-3600, 0, 3600] {
            let mut period = Period { end: at(60 + off), ..period(None) };
            let compares = |period: &Period, action, ended| compares(period, at(61), action, ended);
            assert!(compares(&period, isolation(), at(0)) && !compares(&period, isolation(), at(1)));
            period.nodes.get_mut(&Group::Worker(1)).unwrap().role = Role::Unavailable;
            assert!(!compares(&period, isolation(), at(0)));
            assert!(compares(&period, Action::Release { tenant: TENANT }, at(0)));
            // Not for ever.
            assert!(!compares(&period, isolation(), at(-600)) && compares(&period, isolation(), at(-601)));
            assert!(is_recent(&period, at(61), at(271)) && !is_recent(&period, at(61), at(272)));
        }
    }
}
