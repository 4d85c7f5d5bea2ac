//! Which shards move next.

use std::collections::{BTreeMap, BTreeSet};

use super::Draft;
use crate::condition::first_of;
use crate::names::Group;
use crate::shards::observed::{Dropped, RunningMove};
use crate::shards::preflight::{self, Check};
use crate::shards::rebalance::{
    self, Cause, Goal, Layout, Move, MovePlan, Node, Policy, Role, ShardGroup, Strategy,
};
use crate::shards::step::Step;
use crate::shards::wanted::Gate;
use crate::shards::world::World;

/// What moves wait for while servers are updated.
pub(in crate::shards) const UPDATED_FIRST: &str = "servers are updated first: see the condition Progressing";

/// A node is left with this share of its volume free, as Citus asks before each move
/// (`citus.desired_percent_disk_available_after_move`).
const HEADROOM_PERCENT: u64 = 10;

/// What is to be moved, what is moving, and what stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// The moves that are left, those under way excepted.
    pub plan: MovePlan,
    /// The ones of these that may be made now; the others wait for what the gate says.
    pub open: MovePlan,
    /// The moves under way.
    pub running: Vec<RunningMove>,
    /// Why moves that could begin now do not.
    pub checks: Vec<Check>,
    /// The plan that was being carried out, if nothing of it is left to do.
    pub ended: Option<String>,
    /// The last plan that could not be carried on with.
    pub overtaken: Option<Dropped>,
    /// The plan that is being carried out, as it was before the last moves: those under way are part of it.
    pub carried: Option<MovePlan>,
    /// A shard group that belongs on a node that has no room for it, where nothing else is left to move.
    pub cramped: Option<Cramped>,
    /// Why surplus workers cannot leave, if nobody can take their shards: nothing of the plan begins.
    pub refused: Option<String>,
    /// The nodes with shard groups of unknown size: nothing is moved by guesses.
    pub unmeasured: BTreeSet<Group>,
    /// Shard groups of unknown load, where they are spread by load: until it is known nothing new is planned for its sake.
    pub unweighed: usize,
}

/// A shard group that stays where it is because its place is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cramped {
    /// What would make the spread more even.
    pub next: Move,
    /// Bytes that may still be placed on the target.
    pub room: u64,
}

impl Moves {
    /// The plan that is to be carried on with, those under way among it until they were made; `None` if nothing is left of it. One
    /// of a shrink that is refused is not: nothing of it begins, and there may be room by the next look.
    #[must_use]
    pub fn held(&self) -> Option<MovePlan> {
        let Self { plan: rest, running, carried, refused: None, .. } = self else { return None };
        let is_under_way = |next: &Move| {
            let under_way =
                |one: &RunningMove| (one.shard_id, one.from, one.to) == (next.shard_id, next.from, next.to);
            running.iter().any(under_way)
        };
        let mut held = rest.clone();
        if let Some(before) = carried
            && (rest.moves.is_empty() || rest.hash == before.hash)
            && before.moves.iter().any(is_under_way)
        {
            let left = |next: &&Move| {
                is_under_way(next) || rest.moves.iter().any(|one| one.shard_id == next.shard_id)
            };
            held.moves = before.moves.iter().filter(left).copied().collect();
            held.bytes = held.moves.iter().map(|next| next.bytes).fold(0, u64::saturating_add);
            held.hash.clone_from(&before.hash);
            held.over.clone_from(&before.over);
        }
        (!held.moves.is_empty()).then_some(held)
    }
}

/// Where the shards are once the moves under way have ended, and where they may go.
pub(crate) fn layout(world: &World<'_>) -> Layout {
    let Some(catalog) = world.catalog() else { return Layout::default() };
    let sizes = world.observed.sizes();
    let loads = world.observed.heat.as_ref().map(|heat| &heat.loads);
    let mut siblings: BTreeMap<i32, u64> = BTreeMap::new();
    for at in &catalog.placements {
        *siblings.entry(at.colocation_id).or_default() += 1;
    }
    let running: Vec<RunningMove> = catalog.moves().collect();
    let groups_of: BTreeMap<i32, Group> = catalog
        .members
        .iter()
        .filter_map(|member| Some((member.group_id, world.topology.group(&member.endpoint)?)))
        .collect();
    let mut arriving: BTreeMap<Group, u64> = BTreeMap::new();
    let mut groups = Vec::new();
    for at in &catalog.placements {
        // A shard on a node that is not ours is out of reach.
        let Some(node) = groups_of.get(&at.group_id) else { continue };
        let bytes = sizes.get(&at.shard_id).map_or(0, |bytes| u64::try_from(*bytes).unwrap_or(0));
        let underway = running.iter().find(|running| running.shard_id == at.shard_id);
        if let Some(running) = underway {
            // What was copied is missing from the free bytes already.
            let own = catalog.progress.iter().filter(|progress| progress.pid == running.pid);
            let there: i64 = own.map(|progress| progress.target_bytes.max(0)).sum();
            *arriving.entry(running.to).or_default() +=
                bytes.saturating_sub(u64::try_from(there).unwrap_or(0));
        }
        groups.push(ShardGroup {
            colocation_id: at.colocation_id,
            shard_id: at.shard_id,
            range: at.range,
            node: underway.map_or(*node, |running| running.to),
            bytes,
            load: loads.map_or(0, |loads| {
                loads.of(at.shard_id, siblings.get(&at.colocation_id).copied().unwrap_or(1))
            }),
        });
    }
    let node = |group: &Group| {
        let member = world.member(*group)?;
        let facts = world.observed.facts(*group);
        let role = match facts {
            Some(_) if !(member.active && member.synced) => Role::Unavailable,
            None => Role::Unavailable,
            Some(_) => world.role(*group),
        };
        let free_bytes = facts.and_then(|facts| facts.resources.as_ref()).map(|resources| {
            let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
            bytes(resources.free_bytes)
                .saturating_sub(bytes(resources.total_bytes) / 100 * HEADROOM_PERCENT)
                .saturating_sub(arriving.get(group).copied().unwrap_or(0))
        });
        Some((*group, Node { role, free_bytes }))
    };
    let mut layout =
        Layout { nodes: groups_of.values().filter_map(node).collect(), groups, pins: Vec::new() };
    layout.pins = super::pins::pins(world, &layout);
    layout
}

/// `layout` as it is once every node that is away has come back.
fn with_all_back(world: &World<'_>, layout: &Layout) -> Layout {
    let mut back = layout.clone();
    for (group, node) in &mut back.nodes {
        if node.role == Role::Unavailable {
            node.role = world.role(*group);
        }
    }
    back
}

/// Decides what is to be moved, in the world as it will be once everybody has left who is not asked for.
pub(super) fn decide(world: &World<'_>, complete: bool) -> Moves {
    let layout = layout(world);
    let policy = |goal| Policy { goal, ..world.wanted.rebalance.policy };
    let unmeasured = world.unmeasured();
    let unweighed = unweighed(world, &layout);
    let goal = if complete && unmeasured.is_empty() && unweighed == 0 { Goal::Balance } else { Goal::Settle };
    let fresh = || rebalance::plan(&layout, &policy(goal));
    // A plan that has begun is carried out as it was made, unless the world is no longer what it was made for. A node that
    // is away for a moment is no reason: nothing moves until it is back.
    let back = with_all_back(world, &layout);
    let resumed = || MovePlan::resumed(world.observed.shown.as_ref()?, &back, &policy(goal));
    let held = world.observed.held.clone().or_else(resumed);
    // Nor is a size that nobody knows.
    let judge = |held: &MovePlan| {
        if unmeasured.is_empty() { held.rest(&back, &policy(goal)) } else { Ok(held.clone()) }
    };
    let (rest, carried, mut overtaken) = match held.map(|held| (judge(&held), held)) {
        Some((Ok(rest), held)) => (Some(rest), Some(held), None),
        Some((Err(why), held)) => (None, None, Some(Dropped { hash: held.hash, why: why.to_string() })),
        None => (None, None, None),
    };
    if overtaken.is_none() {
        overtaken.clone_from(&world.observed.overtaken);
    }
    let whole = |rest: &MovePlan| rest.moves.is_empty();
    let ended = rest.as_ref().filter(|rest| whole(rest)).map(|rest| rest.hash.clone());
    let plan = rest.filter(|rest| !whole(rest)).unwrap_or_else(fresh);
    let allowed = match &world.wanted.rebalance.gate {
        Gate::Open => true,
        Gate::Approved(hash) => *hash == plan.hash,
        Gate::Closed { .. } => false,
    };
    let (plan, open) = if allowed || plan.moves.iter().all(|next| next.cause != Cause::Balance) {
        (plan.clone(), plan)
    } else {
        // Who leaves is asked for by the count, and needs no other word. What is made is what is shown: nobody is to approve
        // a plan that these moves overtake.
        let forced = rebalance::plan(&layout, &policy(Goal::Settle));
        (if whole(&forced) { plan } else { forced.clone() }, forced)
    };
    let running: Vec<RunningMove> =
        world.catalog().map(|catalog| catalog.moves().collect()).unwrap_or_default();
    let ended = ended.filter(|_| running.is_empty());
    let settled = plan.moves.is_empty() && running.is_empty();
    let cramped = if settled { cramped(&layout, &policy(goal)) } else { None };
    let refused = refusal(world, &plan);
    let checks = Vec::new();
    Moves { plan, open, running, checks, ended, overtaken, carried, cramped, refused, unmeasured, unweighed }
}

/// Shard groups of unknown load, if that is what they are spread by.
fn unweighed(world: &World<'_>, layout: &Layout) -> usize {
    if world.wanted.rebalance.policy.strategy != Strategy::ByLoad {
        return 0;
    }
    let heat = world.observed.heat.as_ref();
    heat.map_or(layout.groups.len(), |heat| heat.loads.unknown(&layout.groups))
}

/// What would move if there were room for it.
fn cramped(layout: &Layout, policy: &Policy) -> Option<Cramped> {
    let largest = layout.groups.iter().map(|group| group.bytes).max()?;
    let short = |node: &Node| node.role == Role::Shared && node.free_bytes.is_some_and(|free| free < largest);
    if !layout.nodes.values().any(short) {
        return None;
    }
    let mut roomy = layout.clone();
    for node in roomy.nodes.values_mut() {
        node.free_bytes = None;
    }
    rebalance::plan(&roomy, policy).moves.into_iter().find_map(|next| {
        let room = layout.nodes.get(&next.to)?.free_bytes?;
        (room < next.bytes).then_some(Cramped { next, room })
    })
}

/// Why surplus workers cannot leave, if nobody can take their shards. It is asked before any of them is told to go.
fn refusal(world: &World<'_>, plan: &MovePlan) -> Option<String> {
    let surplus = world.surplus();
    // Those that were told earlier are no reason to tell more.
    let told = surplus.iter().all(|group| world.member(*group).is_none_or(|it| !it.should_have_shards));
    let stuck: Vec<_> = plan.stuck.iter().filter(|stuck| surplus.contains(&stuck.node)).collect();
    let first = stuck.first().filter(|_| !told)?;
    let bytes: u64 = stuck.iter().map(|stuck| stuck.bytes).sum();
    Some(format!(
        "{} shard groups with {bytes} bytes of the workers that are to leave find no place: {}; raise spec.workers.count, \
         or make room on the others",
        stuck.len(),
        obstacle(first)
    ))
}

/// Why a shard group stays where it should not be, in words.
pub(crate) fn obstacle(stuck: &rebalance::Stuck) -> String {
    use crate::shards::rebalance::Obstacle;
    let what = format!("shard {} ({} bytes) on {}", stuck.shard_id, stuck.bytes, stuck.node);
    match stuck.obstacle {
        Obstacle::NoTarget => format!("{what} has no node to go to"),
        Obstacle::NoRoom { largest } => {
            format!(
                "{what} finds no room: the roomiest node can take {largest} bytes more, with {HEADROOM_PERCENT} % of its \
                 volume kept free"
            )
        }
        Obstacle::PinnedTo { node } => format!("{what} is pinned to {node}, which cannot take it"),
    }
}

/// Plans the moves that can begin now.
pub(super) fn plan(world: &World<'_>, mut moves: Moves, draft: &mut Draft) -> Moves {
    if !moves.running.is_empty() {
        draft.wait(format!("moves of shards are under way ({})", moves.running.len()));
    }
    if !moves.unmeasured.is_empty() {
        let nodes: Vec<String> = moves.unmeasured.iter().map(Group::to_string).collect();
        if !moves.plan.moves.is_empty() {
            draft.wait(format!("the sizes of the shards on {} are not known yet", first_of(&nodes)));
        }
        return moves;
    }
    if world.wanted.rebalance.hold {
        draft.wait(UPDATED_FIRST);
        return moves;
    }
    if draft.hold_moves {
        return moves;
    }
    let step_of = |next: &Move| Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to };
    let put_off = |step: &Step| world.observed.deferred.contains(step);
    // They are still to be done, and nothing waits for them.
    draft.steps.extend(moves.open.moves.iter().map(step_of).filter(put_off));
    let mut checks: Vec<Check> = Vec::new();
    let may = |next: &Move| {
        if put_off(&step_of(next)) {
            return false;
        }
        let failed = preflight::checks(world, next);
        let may = failed.is_empty();
        for check in failed {
            if !checks.contains(&check) {
                checks.push(check);
            }
        }
        may
    };
    if !moves.open.moves.is_empty() {
        let under_way: Vec<(Group, Group)> =
            moves.running.iter().map(|running| (running.from, running.to)).collect();
        let layout = with_all_back(world, &layout(world));
        // What was approved is what runs: no move begins after which it would be another plan.
        let binding =
            matches!(&world.wanted.rebalance.gate, Gate::Approved(hash) if *hash == moves.open.hash);
        let ready = moves.open.ready(&layout, &world.wanted.rebalance.policy, &under_way, binding, may);
        draft.steps.extend(ready.iter().map(step_of));
    }
    moves.checks = checks;
    draft.waits.extend(moves.checks.iter().map(|check| check.message.clone()));
    draft.waits.extend(moves.plan.stuck.first().map(obstacle));
    if moves.running.is_empty() && draft.steps.iter().all(put_off) {
        clean_up(world, draft);
    }
    moves
}

/// Plans to take away what moves have left behind: Citus does so by itself every few seconds, and a node that is to leave
/// does not wait for that. Of a node that does not answer nothing can be taken away.
fn clean_up(world: &World<'_>, draft: &mut Draft) {
    let Some(catalog) = world.catalog() else { return };
    let silent: Vec<i32> = world
        .groups()
        .into_iter()
        .filter(|group| world.server(*group).is_err())
        .filter_map(|group| Some(world.member(group)?.group_id))
        .collect();
    let left = catalog.cleanup.iter().any(|record| !silent.contains(&record.group_id));
    if left && catalog.operations.is_empty() {
        draft.step(Step::CleanUp);
    }
}
