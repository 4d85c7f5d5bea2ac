//! What is next of an action that was decided, and where pinned shard groups belong.

use super::moves::{self, Moves, layout};
use super::pins::{astray, written};
use super::{Draft, by_hand};
use crate::heat::{Action, Mode, QUICK_BYTES, Relief, Tenant};
use crate::names::Group;
use crate::shards::heat::actions::{Act, Author, KeptPin, Outcome};
use crate::shards::heat::{Heat, is_underway};
use crate::shards::observed::Placement;
use crate::shards::preflight;
use crate::shards::rebalance::{Cause, HashRange, Layout, Move, MovePlan, Pin, Role, ShardGroup, Strategy};
use crate::shards::step::{Split, Step};
use crate::shards::world::World;

/// Attempts that are begun before an action is given up, whether they failed or whoever began them was gone before their
/// end.
const MOST_ATTEMPTS: i32 = 3;
/// Why what keeps nobody from harming others is dropped.
const URGENT: &str = "a tenant is hot, and comes first";

/// Plans what is next.
pub(super) fn plan(world: &World<'_>, moves: &Moves, draft: &mut Draft) {
    let kept = &world.observed.kept;
    let is_routine = |act: &Act| matches!(act.action, Action::Spread { .. } | Action::Split { .. });
    if kept.open().is_none_or(is_routine) && is_urgent(world) {
        draft.hold_moves = true;
        draft.wait("a hot tenant is to be isolated: no other move of shards begins before that");
    }
    if kept.pins.is_empty() && kept.open().is_none() && world.wanted.pins.is_empty() {
        return;
    }
    let layout = layout(world);
    let written = written(world);
    by_hand::plan(world, &layout, &written, draft);
    for pin in &layout.pins {
        let other = |kept: &&Pin| Tenant::from(*kept) == Tenant::from(pin) && kept.node != pin.node;
        if let Some(Pin { node: from, .. }) = written.iter().find(other).copied() {
            let of = |kept: &&KeptPin| kept.tenant == Tenant::from(pin);
            let author = kept.pins.iter().find(of).map_or(Author::Policy, |kept| kept.author);
            draft.step(Step::Retarget { pin: *pin, from, called: world.called(pin.into()), author });
            draft.hold_moves = true;
        }
    }
    let Some(act) = world.observed.kept.open() else {
        for (pin, author) in astray(world, &layout) {
            draft.step(Step::SetPin { pin, called: world.called((&pin).into()), author });
            draft.hold_moves = true;
        }
        return;
    };
    match next(world, &layout, &written, act, moves) {
        Next::End(outcome, note) => draft.step(Step::EndAction { id: act.id, outcome, note }),
        Next::Pin(pin) => {
            let author = if act.is_by_hand() { Author::Spec } else { Author::Policy };
            draft.step(Step::SetPin { pin, called: world.called((&pin).into()), author });
        }
        Next::Wait(reason) => {
            draft.wait(reason.clone());
            draft.action_waits = Some(reason);
        }
        Next::Move => {}
        Next::Split(split) => {
            let step = Step::SplitShard(split);
            if world.wanted.rebalance.hold {
                draft.wait(format!("servers are updated first; then: {step}"));
                draft.action_waits =
                    Some("servers are updated first: see the condition Progressing".to_owned());
                return;
            }
            if !world.observed.deferred.contains(&step) {
                // Nothing else is begun that it would have to wait for.
                draft.hold_moves = true;
                if let Some(count @ 1..) = world.catalog().map(|catalog| catalog.moves().count()) {
                    draft.wait(format!(
                        "moves that are under way ({count}) come to their end first; then: {step}"
                    ));
                    draft.action_waits =
                        Some(format!("moves that are under way ({count}) come to their end first"));
                    return;
                }
            }
            draft.step(step);
        }
    }
}

/// Whether moves keep a tenant from being isolated: then no other begins, so that it is decided after the next period. What
/// somebody else moves goes on anyway, and where nobody can look nothing would be decided.
pub(super) fn is_urgent(world: &World<'_>) -> bool {
    let acts = world.wanted.watch.is_some_and(|watch| watch.policy.mode == Mode::Isolate);
    let alone = world.catalog().is_some_and(|catalog| catalog.foreign.is_empty());
    let heat = world.observed.heat.as_ref().filter(|heat| heat.failure.is_none());
    acts && alone && heat.is_some_and(|heat| heat.urgent)
}

/// What could be done now to even out load.
pub(in crate::shards) fn relief(world: &World<'_>) -> Relief {
    let moves = moves::decide(world, super::wanted_are_registered(world));
    if moves.unweighed > 0 || !moves.unmeasured.is_empty() {
        return Relief::Unmeasured;
    }
    match (evens_out(&moves.plan), evens_out(&moves.open)) {
        (_, true) => Relief::Ready,
        (true, false) => Relief::Held,
        (false, false) => Relief::Useless,
    }
}

/// Whether any of the moves is only made to even out.
fn evens_out(plan: &MovePlan) -> bool {
    plan.moves.iter().any(|next| next.cause == Cause::Balance)
}

/// What is next of an action.
enum Next {
    End(Outcome, Option<String>),
    Pin(Pin),
    /// The moves do it.
    Move,
    Split(Split),
    Wait(String),
}

fn next(world: &World<'_>, layout: &Layout, written: &[Pin], act: &Act, moves: &Moves) -> Next {
    // Nothing can begin while shards are moved or split, or servers are updated.
    let held_up = is_underway(world) || world.wanted.rebalance.hold;
    let late = || {
        let over = act.given_up(world.observed.held_up);
        !held_up && world.observed.kept.now.zip(over).is_some_and(|(now, over)| now > over)
    };
    let given_up = |why: &str| Next::End(Outcome::Failed, Some(format!("not within an hour: {why}")));
    match (left(world, layout, written, act, moves), act.note.as_deref()) {
        (Next::Wait(why), _) if late() => given_up(&why),
        // What counts as no attempt is tried for an hour. What has never failed has only waited for others, and begins.
        (Next::Split(split), Some(why)) if (split.blocking || act.attempts == 0) && late() => given_up(why),
        (Next::Move, _) if late() && !may_move(world, act, moves) => {
            given_up("what is to be moved was not, see the condition Balanced")
        }
        (next, _) => next,
    }
}

/// Whether others keep what is open from being done: whoever changes shards, but for what is done for its sake, or an update of
/// servers.
pub(in crate::shards) fn held_by_others(world: &World<'_>) -> bool {
    let (Some(act), Some(catalog)) = (world.observed.kept.open(), world.catalog()) else { return false };
    let its_own = |shard_id: i64| match act.action.tenant() {
        Some(tenant) => {
            let range = HashRange { min: tenant.hash, max: tenant.hash };
            let its = |at: &Placement| (at.colocation_id, at.range) == (tenant.colocation_id, range);
            catalog.placements.iter().any(|at| at.shard_id == shard_id && its(at))
        }
        // What evens out load is a move like others.
        None => matches!(act.action, Action::Spread { .. }),
    };
    world.wanted.rebalance.hold
        || !catalog.foreign.is_empty()
        || catalog.moves().any(|running| !its_own(running.shard_id))
}

/// Whether one of the moves that do it may begin now.
fn may_move(world: &World<'_>, act: &Act, moves: &Moves) -> bool {
    let its = |next: &&Move| match act.action.tenant() {
        Some(tenant) => next.colocation_id == tenant.colocation_id && next.range.contains(tenant.hash),
        None => next.cause == Cause::Balance,
    };
    let able = |next: &Move| {
        let step = Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to };
        !world.observed.deferred.contains(&step) && preflight::checks(world, next).is_empty()
    };
    moves.unmeasured.is_empty() && moves.open.moves.iter().filter(its).any(able)
}

/// What is left of it, however long it has taken.
fn left(world: &World<'_>, layout: &Layout, written: &[Pin], act: &Act, moves: &Moves) -> Next {
    let dropped = |why: &str| Next::End(Outcome::Dropped, Some(why.to_owned()));
    // Whoever takes the permission back stops what has not begun.
    let allowed =
        act.is_by_hand() || world.wanted.watch.is_some_and(|watch| watch.policy.mode == Mode::Isolate);
    let forbidden = "spec.sharding.hotTenants.mode is not Isolate any more";
    match act.action {
        Action::Isolate { tenant, to, rest, .. } => {
            let decisions = world.decisions();
            match decisions.about(tenant).map(|decided| decided.to) {
                Some(decided) if decided != Some(to) => {
                    return dropped("spec.sharding.pins says otherwise by now");
                }
                None if act.is_by_hand() && !decisions.may_mean(tenant) => {
                    return dropped("spec.sharding.pins does not have it any more");
                }
                _ => {}
            }
            let covers = |group: &&ShardGroup| {
                group.colocation_id == tenant.colocation_id && group.range.contains(tenant.hash)
            };
            let Some(shard) = layout.groups.iter().find(covers) else {
                return dropped("its tables are gone");
            };
            let pinned = written.contains(&tenant.pin(to));
            if !pinned && has_passed(world, act, tenant, shard.node) {
                return dropped("it could not begin in time, and the tenant is not hot any more");
            }
            if shard.range.min != shard.range.max {
                // What lacks something would keep everybody else waiting for an hour.
                if act.is_by_hand() && act.begun.is_none() && is_urgent(world) {
                    return dropped(URGENT);
                }
                return if allowed {
                    isolate(world, layout, act, shard, (tenant.hash, to, rest))
                } else {
                    dropped(forbidden)
                };
            }
            match (pinned, shard.node == to) {
                (true, true) => Next::End(Outcome::Done, None),
                (true, false) => match layout.nodes.get(&to).map(|node| node.role) {
                    Some(Role::Shared | Role::Dedicated) => Next::Move,
                    // The pin is retargeted.
                    _ => dropped("the worker that it was to go to leaves"),
                },
                (false, _)
                    if !act.is_by_hand()
                        && written.iter().any(|pin| Tenant::from(pin) == tenant)
                        && shard.node != to =>
                {
                    dropped("it is pinned to another worker by now")
                }
                (false, false) if !allowed => dropped(forbidden),
                (false, _) => Next::Pin(tenant.pin(to)),
            }
        }
        Action::Split { colocation_id, shard_id, at, to, .. } => {
            let mut its = layout.groups.iter().filter(|group| group.colocation_id == colocation_id);
            let Some(shard) = its.clone().find(|group| group.shard_id == shard_id) else {
                let there = its.any(|group| group.range.max == at);
                return if there { Next::End(Outcome::Done, None) } else { dropped("the shard is gone") };
            };
            if !allowed {
                return dropped(forbidden);
            }
            if world.catalog().is_some_and(|catalog| catalog.splits.is_empty()) && is_urgent(world) {
                return dropped(URGENT);
            }
            if world.wanted.rebalance.gate.is_outside_windows() && !is_underway(world) {
                return dropped("no window is open any more: it is decided anew in the next");
            }
            if !(shard.range.min..shard.range.max).contains(&at) {
                return dropped("the shard does not cover both halves any more");
            }
            split(world, layout, act, shard, vec![at], to.to_vec())
        }
        Action::Spread { .. } if !allowed => dropped(forbidden),
        Action::Spread { .. } if world.wanted.rebalance.policy.strategy != Strategy::ByLoad => {
            dropped("spec.sharding.rebalance.strategy is not ByLoad any more")
        }
        Action::Spread { .. } if moves.running.is_empty() && is_urgent(world) => dropped(URGENT),
        Action::Spread { .. } => spread(moves),
        Action::Release { .. } | Action::Retarget { .. } => dropped("there is nothing left to do"),
    }
}

/// Whether the reason of what the policy has decided about a tenant on `node` has passed: it has not begun within a cooldown,
/// and the last period tells that the tenant is not hot any more.
fn has_passed(world: &World<'_>, act: &Act, tenant: Tenant, node: Group) -> bool {
    let old = world.wanted.watch.is_some_and(|watch| {
        let over = act.decided.checked_add(watch.policy.cooldown).ok();
        world.observed.kept.now.zip(over).is_some_and(|(now, over)| now > over)
    });
    let told = |heat: &&Heat| {
        let load = heat.nodes.get(&node);
        heat.failure.is_none() && load.is_some_and(|load| load.role != Role::Unavailable)
    };
    let heated = || world.observed.heat.as_ref().filter(told)?.heated.as_ref();
    let cool = || heated().is_some_and(|heated| !heated.contains(&tenant));
    old && !act.is_by_hand() && act.begun.is_none() && cool()
}

/// Load is evened out by the planner's moves. What every shard has to do was known when it was decided: if that is not so any
/// more, shards have moved since.
fn spread(moves: &Moves) -> Next {
    if !moves.running.is_empty() || evens_out(&moves.open) {
        return Next::Move;
    }
    if moves.unweighed > 0 {
        return Next::End(Outcome::Done, None);
    }
    let why = if evens_out(&moves.plan) {
        "moves that even out load may not be made any more: see the condition Balanced"
    } else {
        "no move is worth it any more"
    };
    Next::End(Outcome::Dropped, Some(why.to_owned()))
}

/// Cuts the hash out of its shard group.
fn isolate(
    world: &World<'_>,
    layout: &Layout,
    act: &Act,
    shard: &ShardGroup,
    (hash, to, rest): (i32, Group, Option<Group>),
) -> Next {
    // Where there is no other place the rest stays, which only works while nobody writes.
    let rest = rest.unwrap_or(shard.node);
    let (mut points, mut nodes) = (Vec::new(), Vec::new());
    if shard.range.min < hash {
        points.push(hash - 1);
        nodes.push(rest);
    }
    nodes.push(to);
    if hash < shard.range.max {
        points.push(hash);
        nodes.push(rest);
    }
    split(world, layout, act, shard, points, nodes)
}

/// Cuts a shard group after `points`; the parts go to `nodes`, in order.
fn split(
    world: &World<'_>,
    layout: &Layout,
    act: &Act,
    shard: &ShardGroup,
    points: Vec<i32>,
    nodes: Vec<Group>,
) -> Next {
    if act.attempts >= MOST_ATTEMPTS {
        let note = act.note.clone().unwrap_or_else(|| {
            format!(
                "it was begun {} times, and the operator or the coordinator ended before it did",
                act.attempts
            )
        });
        return Next::End(Outcome::Failed, Some(note));
    }
    if world.unmeasured().contains(&shard.node) {
        return Next::Wait(format!("the sizes of the shards on {} are not known yet", shard.node));
    }
    let quick = shard.bytes <= QUICK_BYTES;
    let stays = nodes.contains(&shard.node);
    if stays && !quick {
        let note = format!("its shard is on {} by now, where a part of it was to go", shard.node);
        return Next::End(Outcome::Dropped, Some(note));
    }
    let role = |group: &Group| layout.nodes.get(group).map(|node| node.role);
    let able =
        |group: &&Group| matches!(role(group), Some(Role::Shared | Role::Dedicated)) || **group == shard.node;
    if let Some(unable) = nodes.iter().find(|group| !able(group)) {
        return match role(unable) {
            Some(Role::Unavailable) => Next::Wait(format!("{unable} cannot take part now")),
            _ => Next::End(Outcome::Dropped, Some(format!("{unable} leaves, or has left"))),
        };
    }
    // Somebody writes so much that the quick way did not come through: then the other one, if there is one.
    let blocking = quick && (act.note.is_none() || stays);
    let mut targets: Vec<Group> = nodes.iter().copied().filter(|group| *group != shard.node).collect();
    targets.sort_unstable();
    targets.dedup();
    for to in targets {
        let next = Move {
            number: 1,
            colocation_id: shard.colocation_id,
            shard_id: shard.shard_id,
            range: shard.range,
            from: shard.node,
            to,
            bytes: shard.bytes,
            cause: Cause::Pin,
            wave: 1,
        };
        let failed = preflight::checks(world, &next);
        if let Some(check) = failed.iter().find(|check| !blocking || check.keeps_everybody()) {
            return Next::Wait(check.message.clone());
        }
        let room = layout.nodes.get(&to).and_then(|node| node.free_bytes);
        if room.is_some_and(|room| room < shard.bytes) {
            return Next::Wait(format!(
                "{to} has no room for shard {} ({} bytes)",
                shard.shard_id, shard.bytes
            ));
        }
    }
    Next::Split(Split { action: act.id, shard_id: shard.shard_id, from: shard.node, points, nodes, blocking })
}

#[cfg(test)]
mod tests;
