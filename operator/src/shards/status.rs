//! The part of the status that this controller writes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::heat::actions::KeptPin;
use super::observed::{Catalog, Facts, Observed, Progress, RunningMove};
use super::round::Round;
use super::step::Step;
use super::topology::Topology;
use super::wanted::{Gate, Wanted};
use super::world::{World, members};
use crate::api::{
    DialogClusterStatus, IsolatedTenant, MoveStatus, NodeState, NodeStatus, PlanStatus, RebalanceStatus,
    SplitStatus,
};
use crate::condition::{
    BALANCED, CITUS_AVAILABLE, Finding, HOT_TENANT, Holds, METADATA_SYNCED, PARAMETERS_APPLIED,
    SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED, SHARDS_MANAGER, WAL_LEVEL_LOGICAL,
};
use crate::heat::Action;
use crate::names::Group;
use crate::status::Part;

mod heat;
mod held;
mod how_far;

pub use held::held_moves;
pub use how_far::{HowFar, in_phase};

/// What of the status is written here.
pub const PART: Part = Part {
    manager: SHARDS_MANAGER,
    fields: &[
        "postgresVersion",
        "citusVersion",
        "shards",
        "nodes",
        "plan",
        "rebalance",
        "split",
        "heldMoves",
        "lastHandledRebalance",
        "hot",
        "isolated",
        "isolatedCount",
        "heat",
    ],
    conditions: &[
        CITUS_AVAILABLE,
        METADATA_SYNCED,
        WAL_LEVEL_LOGICAL,
        PARAMETERS_APPLIED,
        SCHEMA_DISTRIBUTED,
        BALANCED,
        SCALE_IN_BLOCKED,
        HOT_TENANT,
    ],
};

/// Moves under way that the status shows.
const CURRENT: usize = 16;
/// Pinned tenants that it shows.
const ISOLATED: usize = 64;

/// The facts for the status, conditions aside. What could not be asked this time is as it was `before`.
#[must_use]
pub fn status(
    wanted: &Wanted,
    topology: &Topology,
    round: &Round,
    before: Option<&DialogClusterStatus>,
    now: Timestamp,
) -> DialogClusterStatus {
    let observed = &round.observed;
    let world = World { wanted, topology, observed };
    let first = observed.facts(Group::Coordinator);
    let before_nodes = before.map_or(&[][..], |status| &status.nodes);
    let node = |group: Group| -> Option<NodeStatus> {
        let member = world.member(group);
        let facts = observed.facts(group);
        let last = before_nodes.iter().find(|node| node.group == group.to_string());
        let state = match (facts, member) {
            (None, Some(_)) => NodeState::Unreachable,
            (None, None) => absent(observed.catalog.is_some() && group != Group::Coordinator, last),
            (Some(_), None) => NodeState::Standalone,
            (Some(_), Some(member)) if member.active && member.synced => NodeState::Active,
            (Some(_), Some(_)) => NodeState::Syncing,
        };
        let placements = observed.catalog.as_ref().map(|catalog| &catalog.placements);
        let shards = match (placements, member) {
            (None, _) => last.map_or(0, |node| node.shards),
            (Some(_), None) => 0,
            (Some(placements), Some(member)) => {
                placements.iter().filter(|at| at.group_id == member.group_id).map(|at| at.shards).sum()
            }
        };
        let bytes = facts.and_then(Facts::bytes).or(last.and_then(|node| node.bytes));
        Some(NodeStatus {
            group: group.to_string(),
            host: topology.endpoint(group)?.host.clone(),
            state,
            shards,
            bytes,
        })
    };
    let asked = first.is_some();
    let isolated = isolated(&world, before);
    let total = observed.catalog.as_ref().map(|catalog| catalog.placements.iter().map(|at| at.shards).sum());
    DialogClusterStatus {
        postgres_version: match first {
            Some(facts) => Some(facts.version.clone()),
            None => before.and_then(|status| status.postgres_version.clone()),
        },
        citus_version: match first {
            Some(facts) => facts.citus.release.clone(),
            None => before.and_then(|status| status.citus_version.clone()),
        },
        shards: if asked { total } else { before.and_then(|status| status.shards) },
        nodes: members(wanted, topology, observed.catalog.as_ref()).into_iter().filter_map(node).collect(),
        plan: planned(round, before.and_then(|status| status.plan.as_ref())),
        rebalance: rebalance(round, before.and_then(|status| status.rebalance.as_ref()), now),
        split: split(observed, before.and_then(|status| status.split.as_ref())),
        last_handled_rebalance: handled(wanted, round, before),
        hot: observed.heat.as_ref().map(|heat| heat.hot.clone()).unwrap_or_default(),
        isolated_count: isolated.1,
        isolated: isolated.0,
        heat: heat::heat(observed, before),
        ..DialogClusterStatus::default()
    }
}

/// The state of one that does not answer and is not registered, by catalogs that are `known`, or by what it was `last`.
fn absent(known: bool, last: Option<&NodeStatus>) -> NodeState {
    if known || last.is_some_and(|last| last.state == NodeState::Awaited) {
        NodeState::Awaited
    } else {
        NodeState::Unreachable
    }
}

/// Who is pinned, those that have been for longest first, and how many there are. What could not be read is as it was
/// `before`.
pub(in crate::shards) fn isolated(
    world: &World<'_>,
    before: Option<&DialogClusterStatus>,
) -> (Vec<IsolatedTenant>, Option<i64>) {
    let kept = &world.observed.kept;
    if kept.now.is_none() {
        return before
            .map_or_else(Default::default, |status| (status.isolated.clone(), status.isolated_count));
    }
    let mut pins: Vec<&KeptPin> = kept.pins.iter().collect();
    pins.sort_by_key(|pin| (pin.since, pin.tenant));
    let count = i64::try_from(pins.len()).ok().filter(|count| *count > 0);
    let shown = pins.into_iter().take(ISOLATED).map(|pin| {
        let called = world.called(pin.tenant);
        let worker = world.topology.group(&pin.endpoint);
        IsolatedTenant {
            tenant: called.tenant(),
            group: called.group,
            worker: worker.map_or_else(|| pin.endpoint.to_string(), |group| group.to_string()),
            since: Time(pin.since),
            asked_by: pin.author.name().to_owned(),
        }
    });
    (shown.collect(), count)
}

/// The request for a rebalance that was answered. As long as it stays it is not answered again, and once it is taken away
/// it may come again under the same name.
fn handled(wanted: &Wanted, round: &Round, before: Option<&DialogClusterStatus>) -> Option<String> {
    let request = wanted.rebalance.request.as_ref()?;
    if is_answered(wanted, round, request) {
        return Some(request.clone());
    }
    before.and_then(|status| status.last_handled_rebalance.clone())
}

/// Whether all is done that `request` asks for: the plan that it approves, or whatever can be moved at all.
fn is_answered(wanted: &Wanted, round: &Round, request: &str) -> bool {
    let (Some(moves), Some(catalog)) = (&round.plan.moves, &round.observed.catalog) else { return false };
    if moves.ended.as_deref() == Some(request) {
        return true;
    }
    let is_balanced = |finding: &Finding| finding.kind == BALANCED && finding.holds == Holds::True;
    // What finds no place stays where it is, and so does what nothing can follow: waiting would make a rebalance that was
    // asked for once one without an end.
    let for_good = ["NoPlace", "NoReplicaIdentity"];
    let is_over = |finding: &Finding| {
        finding.kind == BALANCED
            && for_good.contains(&finding.reason)
            && moves.plan.moves.iter().all(|next| catalog.unfollowable.contains_key(&next.colocation_id))
    };
    wanted.rebalance.gate == Gate::Open
        && moves.running.is_empty()
        && round.findings().iter().any(|finding| is_balanced(finding) || is_over(finding))
}

/// What is to be moved or being moved; `None` where nothing is.
fn planned(round: &Round, before: Option<&PlanStatus>) -> Option<PlanStatus> {
    match round.plan.moves {
        None => before.cloned(),
        Some(_) => round.held_plan().and_then(|held| held.status()),
    }
}

/// How far the moves are; `None` once nothing is left to move.
fn rebalance(round: &Round, before: Option<&RebalanceStatus>, now: Timestamp) -> Option<RebalanceStatus> {
    let (Some(moves), Some(catalog)) = (&round.plan.moves, &round.observed.catalog) else {
        return before.cloned();
    };
    let left = moves.plan.moves.len() + moves.running.len();
    if left == 0 {
        return None;
    }
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let sizes = round.observed.sizes();
    let made: Vec<i64> = round.performed.iter().filter_map(|step| moved_bytes(step, &sizes)).collect();
    let none = RebalanceStatus::default();
    let before = before.unwrap_or(&none);
    let moves_done = before.moves_done.saturating_add(number(made.len()));
    let bytes_done = before.bytes_done.saturating_add(made.iter().sum());
    // One that waits for the lock is not begun by being tried.
    let held = round.held.as_ref().map(|(step, _)| step);
    let is_held = |running: &&RunningMove| held == Some(&running.step());
    let running = moves.running.iter().filter(|running| !is_held(running));
    let running: Vec<MoveStatus> = running.map(|running| underway(running, catalog)).collect();
    let on_the_way: i64 = running.iter().map(|one| (one.bytes_total - one.bytes_done).max(0)).sum();
    let bytes_left = i64::try_from(moves.plan.bytes).unwrap_or(i64::MAX).saturating_add(on_the_way);
    // Those that begin with this round are of the plan still, and nobody waits for the next round to see them.
    let next = round.long.iter().filter(|_| held.is_none()).filter_map(|step| beginning(step, &sizes));
    let current: Vec<MoveStatus> = running.into_iter().chain(next).take(CURRENT).collect();
    // Whether those under way get on is for who watches them: the size of the source grows by what others write.
    let same = |one: &MoveStatus, other: &MoveStatus| {
        (one.shard_id, &one.from, &one.to) == (other.shard_id, &other.from, &other.to)
    };
    let got_on = !made.is_empty()
        || current.iter().any(|one| !before.current.iter().any(|earlier| same(one, earlier)));
    // A plan may wait for somebody's word for days: time counts from the first move on.
    let begun = !made.is_empty() || !current.is_empty();
    let started_at = before.started_at.clone().or_else(|| begun.then_some(Time(now)));
    Some(RebalanceStatus {
        moves_done,
        moves_total: moves_done.saturating_add(number(left)),
        bytes_done,
        bytes_left,
        // For who has watched them: see `Pace`.
        eta: None,
        started_at,
        last_progress_at: if got_on { Some(Time(now)) } else { before.last_progress_at.clone() },
        current,
    })
}

/// Notes that a move under way got on.
pub fn got_on(status: &mut DialogClusterStatus, now: Timestamp) {
    if let Some(rebalance) = &mut status.rebalance {
        rebalance.last_progress_at = Some(Time(now));
    }
}

/// Bytes of the shards that `step` has moved, if it is a move.
fn moved_bytes(step: &Step, sizes: &BTreeMap<i64, i64>) -> Option<i64> {
    let Step::MoveShard { shard_id, .. } = step else { return None };
    Some(sizes.get(shard_id).copied().unwrap_or(0))
}

/// How fast the moves are of which an operator knows, in the time in which there were any: windows close, plans wait for
/// somebody's word, and clusters are paused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    seconds: i64,
    bytes: i64,
    /// When moves were under way last, and the bytes that had arrived by then.
    last: Option<(Timestamp, i64)>,
}

impl Pace {
    /// Takes in how far `rebalance` is at `now`, and says when it will have ended at this pace; `None` while nothing is under
    /// way, or nothing was seen to arrive.
    pub fn look(&mut self, rebalance: Option<&RebalanceStatus>, now: Timestamp) -> Option<Time> {
        let Some(RebalanceStatus { bytes_done, bytes_left, current, .. }) = rebalance else {
            *self = Self::default();
            return None;
        };
        let arriving = current.iter().map(|one| one.bytes_done).fold(0, i64::saturating_add);
        let arrived = bytes_done.saturating_add(arriving);
        if let Some((then, before)) = self.last {
            self.seconds =
                self.seconds.saturating_add(now.as_second().saturating_sub(then.as_second()).max(0));
            // What a move that failed had copied has to be copied again.
            self.bytes = self.bytes.saturating_add(arrived.saturating_sub(before));
        }
        self.last = (!current.is_empty()).then_some((now, arrived));
        self.last?;
        if self.bytes <= 0 || self.seconds <= 0 {
            return None;
        }
        let seconds = i128::from(self.seconds) * i128::from(*bytes_left) / i128::from(self.bytes);
        let end = now.as_second().saturating_add(i64::try_from(seconds).ok()?);
        Timestamp::from_second(end).ok().map(Time)
    }
}

fn underway(running: &RunningMove, catalog: &Catalog) -> MoveStatus {
    let of = |progress: &&Progress| progress.pid == running.pid;
    let all: Vec<&Progress> = catalog.progress.iter().filter(of).collect();
    MoveStatus {
        shard_id: running.shard_id,
        from: running.from.to_string(),
        to: running.to.to_string(),
        phase: all.first().map(|progress| progress.phase.clone()).unwrap_or_default(),
        bytes_done: all.iter().map(|progress| progress.target_bytes).sum(),
        bytes_total: all.iter().map(|progress| progress.source_bytes).sum(),
    }
}

/// The split that is under way: one at a time. Where its parts go says the action that asks for it.
fn split(observed: &Observed, before: Option<&SplitStatus>) -> Option<SplitStatus> {
    let Some(catalog) = &observed.catalog else { return before.cloned() };
    let running = catalog.splits.first()?;
    let to = parts(observed, running.from);
    Some(SplitStatus {
        shard_id: running.shard_id,
        from: running.from.to_string(),
        to: to.iter().map(Group::to_string).collect(),
        since: Time(running.since),
        phase: running.phase.to_owned(),
    })
}

/// Where the parts go of what is split on `from`.
fn parts(observed: &Observed, from: Group) -> BTreeSet<Group> {
    match observed.kept.open().map(|act| act.action) {
        // Where there is no place for the rest it stays.
        Some(Action::Isolate { to, rest, .. }) => BTreeSet::from([to, rest.unwrap_or(from)]),
        Some(Action::Split { to, .. }) => BTreeSet::from(to),
        _ => BTreeSet::new(),
    }
}

/// A move that is about to begin.
fn beginning(step: &Step, sizes: &BTreeMap<i64, i64>) -> Option<MoveStatus> {
    let Step::MoveShard { shard_id, from, to } = step else { return None };
    Some(MoveStatus {
        shard_id: *shard_id,
        from: from.to_string(),
        to: to.to_string(),
        phase: String::new(),
        bytes_done: 0,
        bytes_total: sizes.get(shard_id).copied().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rebalance(bytes_done: i64, bytes_left: i64, arrived: Option<i64>) -> RebalanceStatus {
        let one = |bytes_done| MoveStatus {
            shard_id: 102_008,
            from: "worker-0".to_owned(),
            to: "worker-1".to_owned(),
            phase: "Copying Data".to_owned(),
            bytes_done,
            bytes_total: 1 << 30,
        };
        RebalanceStatus {
            bytes_done,
            bytes_left,
            current: arrived.map(one).into_iter().collect(),
            ..RebalanceStatus::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_end_is_foreseen_from_what_was_done_so_far() {
        let mut pace = Pace::default();
        assert_eq!(
            pace.look(Some(&rebalance(0, 4 << 30, Some(0))), at(1000)),
            None,
            "nothing was copied yet"
        );
        assert_eq!(pace.look(Some(&rebalance(0, 4 << 30, Some(0))), at(1000)), None, "no time has passed");
        // A quarter took a minute, whether in moves that were made or in what has arrived of others.
        let quarter = rebalance(1 << 29, 3 << 30, Some(1 << 29));
        assert_eq!(pace.look(Some(&quarter), at(1060)), Some(Time(at(1240))));
        let endless = rebalance(1 << 30, i64::MAX, Some(0));
        assert_eq!(pace.look(Some(&endless), at(1060)), None, "beyond the end of time");
        assert_eq!(pace.look(None, at(1070)), None);
        assert_eq!(pace.look(Some(&quarter), at(1080)), None, "another rebalance");
    }

    #[test]
    fn time_in_which_nothing_may_move_is_no_time_of_a_move() {
        let mut pace = Pace::default();
        let (night, hour) = (86_400, 3600);
        assert_eq!(pace.look(Some(&rebalance(0, 4 << 30, Some(0))), at(0)), None);
        // Two hours for a half, then the window closes; the last move has ended by the next look.
        assert_eq!(
            pace.look(Some(&rebalance(1 << 30, 3 << 30, Some(0))), at(hour)),
            Some(Time(at(4 * hour)))
        );
        assert_eq!(
            pace.look(Some(&rebalance(2 << 30, 2 << 30, None)), at(2 * hour)),
            None,
            "nothing is under way"
        );
        assert_eq!(pace.look(Some(&rebalance(2 << 30, 2 << 30, None)), at(9 * hour)), None);
        let again = rebalance(2 << 30, 2 << 30, Some(0));
        assert_eq!(pace.look(Some(&again), at(night)), Some(Time(at(night + 2 * hour))));
        // What a move that failed had copied was for nothing.
        let failed = rebalance(2 << 30, 2 << 30, Some(0));
        pace.look(Some(&rebalance(2 << 30, 1 << 30, Some(1 << 30))), at(night + hour));
        assert_eq!(pace.look(Some(&failed), at(night + 2 * hour)), Some(Time(at(night + 6 * hour))));
    }
}
