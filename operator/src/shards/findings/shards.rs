//! Whether the shards are where they belong, and who may leave.

use std::collections::{BTreeMap, BTreeSet};

use super::NO_CITUS;
use crate::condition::{BALANCED, Finding, Holds, SCALE_IN_BLOCKED, first_of};
use crate::names::Group;
use crate::shards::act::CLEANUP_BLOCKED;
use crate::shards::heat::ENOUGH;
use crate::shards::observed::{Catalog, Foreign, Operation, Stall};
use crate::shards::plan::{Cramped, Draft, Moves, Report, UPDATED_FIRST, obstacle};
use crate::shards::rebalance::Cause;
use crate::shards::retire::LEFT_BEHIND;
use crate::shards::step::Step;
use crate::shards::strategy::{NAME, Seen};
use crate::shards::wanted::Gate;
use crate::shards::world::{Support, World};

/// Moves that one message names.
const NAMED: usize = 3;

/// Where the shards are, with what Citus cannot take away: they are where they belong all the same, and where they are not,
/// that is what there is to say.
pub(super) fn balanced(world: &World<'_>, moves: Option<&Moves>, draft: &Draft) -> Finding {
    let spread = spread(world, moves, draft);
    match uncleaned(world) {
        Some(left) if spread.holds == Holds::True => {
            Finding::new(BALANCED, true, CLEANUP_BLOCKED, format!("{}; {left}", spread.message))
        }
        _ => spread,
    }
}

fn spread(world: &World<'_>, moves: Option<&Moves>, draft: &Draft) -> Finding {
    let finding = |holds: Holds, reason, message: String| Finding::new(BALANCED, holds, reason, message);
    let (catalog, moves) = match (world.support(), &world.observed.catalog, moves) {
        (Support::NotInImage | Support::NotPreloaded, ..) => {
            return finding(Holds::Unknown, "CitusUnavailable", NO_CITUS.to_owned());
        }
        (_, Some(catalog), Some(moves)) => (catalog, moves),
        _ => {
            let message = "the coordinator's catalogs could not be read".to_owned();
            return finding(Holds::Unknown, "NotObserved", message);
        }
    };
    if catalog.placements.is_empty() {
        return finding(Holds::Unknown, "NoShards", "there are no shards yet".to_owned());
    }
    if let [first, ..] = world.observed.stalls.as_slice() {
        return stalled(first);
    }
    let left = moves.plan.moves.len();
    if let [check, ..] = moves.checks.as_slice() {
        let message = format!("{left} moves of shards wait: {}", check.message);
        return finding(Holds::False, check.reason, message);
    }
    if let Some(foreign) = foreign(catalog) {
        return foreign;
    }
    let begun = moves.running.iter().map(|running| (running.shard_id, running.from, running.to));
    let next = draft.steps.iter().filter_map(|step| match step {
        Step::MoveShard { shard_id, from, to } => Some((*shard_id, *from, *to)),
        _ => None,
    });
    let named: Vec<String> = begun
        .chain(next)
        .take(NAMED)
        .map(|(shard, from, to)| format!("shard {shard} from {from} to {to}"))
        .collect();
    if !named.is_empty() {
        let total = left + moves.running.len();
        return finding(
            Holds::False,
            "Moving",
            format!("moves that are left: {total}; now: {}", named.join(", ")),
        );
    }
    if let Some(unknown) = not_measured(moves) {
        return unknown;
    }
    let missing: Vec<String> = (0..world.wanted.workers)
        .map(Group::Worker)
        .filter(|group| world.member(*group).is_none())
        .map(|group| group.to_string())
        .collect();
    if left == 0 && !missing.is_empty() {
        let message = format!(
            "the shards are spread again when these have joined: {}; if there is no place for them, lower spec.workers.count",
            first_of(&missing)
        );
        return finding(Holds::False, "WorkersMissing", message);
    }
    let unsettled = || not_weighed(moves).or_else(|| kept_by_leaving(world, draft)).filter(|_| left == 0);
    if let Some(found) = no_place(moves).or_else(unsettled) {
        return found;
    }
    let even = moves.plan.moves.iter().all(|next| next.cause == Cause::Balance);
    match &world.wanted.rebalance.gate {
        _ if left == 0 => {
            let message = even_message(&catalog.strategies);
            match left_behind(world) {
                None => finding(Holds::True, "Balanced", message),
                Some(orphans) => finding(Holds::True, "LeftBehind", format!("{message}; {orphans}")),
            }
        }
        Gate::Closed { reason, message } if even => {
            let bytes = moves.plan.bytes;
            let hash = &moves.plan.hash;
            let message =
                format!("{left} moves ({bytes} bytes, plan {hash}) would make the spread even: {message}");
            finding(Holds::False, reason, message)
        }
        Gate::Approved(hash) if even => {
            let why = moves.overtaken.as_ref().filter(|dropped| dropped.hash == *hash);
            let why = why.map_or_else(|| "it is not what is to be done".to_owned(), |it| it.why.clone());
            let message = format!(
                "the plan {hash} was approved, and nothing of it is done any more: {why}; look at the new one in status.plan \
                 ({}), and approve that",
                moves.plan.hash
            );
            finding(Holds::False, "ApprovalOutdated", message)
        }
        _ => {
            let message = format!("{left} moves are left, and wait: {}", first_of(&draft.waits));
            finding(Holds::False, "Waiting", message)
        }
    }
}

/// What is said where nothing is left to move.
fn even_message(strategies: &Seen) -> String {
    let message = "the shards are where they belong, evenly spread".to_owned();
    match strategies.chosen().filter(|_| strategies.own.is_some()) {
        None => message,
        Some(name) => format!(
            "{message}; who rebalances by hand goes by the strategy {name}, which knows nothing of pins: call \
             citus_rebalance_start('{NAME}'), or set spec.sharding.rebalance.foreignStrategy to Replace"
        ),
    }
}

/// What is said of what Citus has noted and cannot take away: it was asked to, or is not, as the node does not answer.
fn uncleaned(world: &World<'_>) -> Option<String> {
    let silent = |group: Group| {
        let records = world.catalog()?.cleanup_of(world.member(group)?.group_id);
        let why = world.server(group).err().filter(|_| records > 0)?;
        Some(format!(
            "{why}; {records} objects that moves or splits have left there are taken away when it answers again"
        ))
    };
    let silent = || world.groups().into_iter().find_map(silent);
    world.observed.uncleaned.clone().or_else(silent)
}

/// What is said of what somebody's moves or splits have left.
fn left_behind(world: &World<'_>) -> Option<String> {
    let orphans = world.groups().into_iter().filter_map(|group| Some((group, world.observed.facts(group)?)));
    let orphans = orphans.flat_map(|(group, facts)| facts.left_behind().map(move |orphan| (group, orphan)));
    let each: Vec<String> = orphans.map(|(group, orphan)| format!("on {group} {orphan}")).collect();
    let named = first_of(&each);
    (!each.is_empty()).then(|| {
        format!(
            "a move or a split has left what Citus does not know of, and nobody takes away: {named}. The operator deletes \
             nothing that may be somebody's: if nobody needs it, run there what is in brackets"
        )
    })
}

/// What is said while somebody else moves shards.
fn foreign(catalog: &Catalog) -> Option<Finding> {
    let foreign = catalog.foreign.first()?;
    let reason = match foreign {
        Foreign::Job { .. } => "OtherRebalance",
        Foreign::Statement { .. } => "OtherMove",
    };
    Some(Finding::new(BALANCED, Holds::False, reason, format!("the operator waits: {foreign}")))
}

/// What is said of what does not get on: no shard moves before it has ended.
fn stalled(stall: &Stall) -> Finding {
    Finding::new(BALANCED, Holds::False, stall.reason(), stall.to_string())
}

/// What is said of a shard group that finds no place.
fn no_place(moves: &Moves) -> Option<Finding> {
    let message = match (moves.plan.stuck.as_slice(), moves.cramped) {
        ([first, ..], _) => obstacle(first),
        ([], Some(Cramped { next, room })) => format!(
            "shard {} ({} bytes) belongs on {}, which can take {room} bytes more with a tenth of its volume kept free: delete \
             what takes the room there, or add a worker",
            next.shard_id, next.bytes, next.to
        ),
        ([], None) => return None,
    };
    Some(Finding::new(BALANCED, Holds::False, "NoPlace", message))
}

/// What is said while a worker that is to leave still has shards and cannot give them away.
fn kept_by_leaving(world: &World<'_>, draft: &Draft) -> Option<Finding> {
    let group = world.surplus().into_iter().find(|group| world.shards_on(*group) > 0)?;
    let shards = world.shards_on(group);
    let message = format!(
        "{shards} shards wait on {group}, which is to leave and cannot take part now: {}",
        first_of(&draft.waits)
    );
    Some(Finding::new(BALANCED, Holds::False, "Waiting", message))
}

/// What is said while the size of a shard group is unknown.
fn not_measured(moves: &Moves) -> Option<Finding> {
    let nodes: Vec<String> = moves.unmeasured.iter().map(Group::to_string).collect();
    let message = format!(
        "the sizes of the shards on {} are not known yet, and nothing is moved before they were measured",
        first_of(&nodes)
    );
    (!nodes.is_empty()).then(|| Finding::new(BALANCED, Holds::Unknown, "NotMeasured", message))
}

/// What is said while the load of a shard group is unknown.
fn not_weighed(moves: &Moves) -> Option<Finding> {
    let message = format!(
        "shard groups whose load is not known yet: {}; nothing is moved for the sake of load before each was watched for \
         {ENOUGH} periods of spec.sharding.hotTenants.statistics at its place",
        moves.unweighed
    );
    (moves.unweighed > 0).then(|| Finding::new(BALANCED, Holds::Unknown, "LoadNotMeasured", message))
}

pub(super) fn scale_in_blocked(
    world: &World<'_>,
    moves: Option<&Moves>,
    tables: &Report,
    draft: &Draft,
) -> Finding {
    let finding =
        |holds: bool, reason, message: String| Finding::new(SCALE_IN_BLOCKED, holds, reason, message);
    let surplus = world.surplus();
    if surplus.is_empty() {
        let message = "no more workers than asked for".to_owned();
        return finding(false, "NothingToRemove", message);
    }
    if world.catalog().is_none() {
        let message = "the coordinator's catalogs could not be read: nobody leaves".to_owned();
        return Finding::new(SCALE_IN_BLOCKED, Holds::Unknown, "NotObserved", message);
    }
    let list = |groups: &[Group]| first_of(&groups.iter().map(Group::to_string).collect::<Vec<_>>());
    let registered: Vec<Group> =
        surplus.iter().copied().filter(|group| world.member(*group).is_some()).collect();
    // Who is away may have room.
    if let Some(away) = staying_away(world, &surplus) {
        let message = format!("{} cannot leave: {away}", list(&registered));
        // One that is updated comes back by itself.
        return if world.wanted.rebalance.hold {
            finding(false, "Draining", format!("{message}; {UPDATED_FIRST}"))
        } else {
            finding(
                true,
                "NodeUnreachable",
                format!("{message}; no shard moves while a node is away that is registered"),
            )
        };
    }
    if let Some(refused) = moves.and_then(|moves| moves.refused.as_ref()) {
        return finding(true, "NoPlace", format!("{} cannot leave: {refused}", list(&registered)));
    }
    let keeps =
        |group: &Group| Some((*group, world.server(*group).err()?)).filter(|_| world.shards_on(*group) > 0);
    let away: BTreeMap<Group, String> = registered.iter().filter_map(keeps).collect();
    // Where Kubernetes does not answer, nobody has any.
    let existing = &world.observed.existing;
    let gone = away.keys().filter(|group| !existing.is_empty() && !existing.contains(group)).max();
    if let Some(group @ Group::Worker(number)) = gone {
        let message = format!(
            "{group} holds shards and has no StatefulSet, so that nothing brings it back: raise spec.workers.count to {} or more, \
             and its volumes are taken up again where they are still there; when it answers, lower the count again",
            number + 1
        );
        return finding(true, "NodeUnreachable", message);
    }
    let away: Vec<String> = away.into_values().collect();
    if !away.is_empty() {
        let message = format!(
            "{}; it holds shards, and nothing but this server has them: bring it back, then it can leave",
            first_of(&away)
        );
        return finding(true, "NodeUnreachable", message);
    }
    let stuck = moves.into_iter().flat_map(|moves| &moves.plan.stuck);
    if let Some(stuck) = stuck.clone().find(|stuck| surplus.contains(&stuck.node)) {
        return finding(true, "NoPlace", obstacle(stuck));
    }
    if let Some(group) = registered.iter().find(|group| !world.immovable_on(**group).is_empty()) {
        let message = format!(
            "{group} has tables that are not cut by a hash, which nothing here moves: {}; SELECT undistribute_table('TABLE'), \
             or move their shards with citus_move_shard_placement, and it can leave",
            world.immovable_on(*group).join(", ")
        );
        return finding(true, "TableNotMovable", message);
    }
    if let Some(check) = moves.and_then(|moves| moves.checks.first()) {
        return finding(true, check.reason, check.message.clone());
    }
    let unregistered = world.leftover_servers();
    let out_of_reach = world.shards_out_of_reach();
    if !unregistered.is_empty() && out_of_reach > 0 {
        let message = format!(
            "{} have servers and are not registered, and the catalogs place {out_of_reach} shards on nodes that are not registered: \
             these servers may be the only ones that have them, and nothing of them is deleted; raise spec.workers.count, so \
             that they are registered again",
            list(&unregistered)
        );
        return finding(true, "NotRegistered", message);
    }
    if let Some((reason, message)) = kept_by_servers(world, &unregistered) {
        return finding(true, reason, message);
    }
    if registered.is_empty() {
        let message = format!(
            "no shard is placed on {} any more; servers and volumes are deleted as soon as the servers say the same, and \
             until then the condition Progressing says what keeps them",
            list(&unregistered)
        );
        return finding(false, "Removing", message);
    }
    draining(world, tables, draft, &surplus, &registered)
}

/// What is said of workers that leave and that nothing of their own keeps.
fn draining(
    world: &World<'_>,
    tables: &Report,
    draft: &Draft,
    surplus: &BTreeSet<Group>,
    registered: &[Group],
) -> Finding {
    let finding =
        |holds: bool, reason, message: String| Finding::new(SCALE_IN_BLOCKED, holds, reason, message);
    if let Some(message) = kept_by_objects(world, registered) {
        return finding(true, CLEANUP_BLOCKED, message);
    }
    let stored: Vec<String> =
        world.kept_by_tables().map(|(group, stored)| format!("{group} cannot leave: {stored}")).collect();
    if !stored.is_empty() {
        return finding(true, LEFT_BEHIND, first_of(&stored));
    }
    let shards: i64 = registered.iter().map(|group| world.shards_on(*group)).sum();
    let message = format!(
        "{} leave; shards still to be moved from there: {shards}",
        first_of(&registered.iter().map(Group::to_string).collect::<Vec<_>>())
    );
    if let Some((reason, why)) = kept_by_others(world, tables) {
        return finding(true, reason, format!("{message}; {why}"));
    }
    if let Some(first) = comes_first(world) {
        return finding(false, "Draining", format!("{message}; {first}"));
    }
    if world.wanted.rebalance.hold && (shards > 0 || draft.steps.is_empty()) {
        // That ends by itself.
        return finding(false, "Draining", format!("{message}; {UPDATED_FIRST}"));
    }
    if let Some((reason, why)) = failed_last(world, surplus) {
        return finding(true, reason, format!("{message}; {why}"));
    }
    if let Some(waits) = waits_for_others(world, draft) {
        return finding(
            true,
            "Waiting",
            format!("{message}; nothing can be done before this has changed: {waits}"),
        );
    }
    finding(false, "Draining", message)
}

/// What is waited for where nothing is done, and nothing is under way that will have ended.
fn waits_for_others(world: &World<'_>, draft: &Draft) -> Option<String> {
    let rests = draft.steps.is_empty() && world.catalog()?.operations.is_empty();
    (rests && !draft.waits.is_empty()).then(|| first_of(&draft.waits))
}

/// Why servers stay that nobody has registered, where that does not pass by itself.
fn kept_by_servers(world: &World<'_>, unregistered: &[Group]) -> Option<(&'static str, String)> {
    let stay = |group: &Group| {
        let stay = world.observed.staying.get(group)?;
        Some((stay.reason?, format!("{group} stays: {stay}")))
    };
    let (reasons, each): (Vec<_>, Vec<_>) = unregistered.iter().filter_map(stay).unzip();
    Some((*reasons.first()?, first_of(&each)))
}

/// A node that stays, is registered and does not answer.
fn staying_away(world: &World<'_>, surplus: &BTreeSet<Group>) -> Option<String> {
    let mut staying = world.groups().into_iter().filter(|group| !surplus.contains(group));
    staying.find_map(|group| world.server(group).err().filter(|_| world.member(group).is_some()))
}

/// Why no shard moves, where it is none of those that are to move: something that does not get on, somebody else's move, or reference
/// tables that cannot be copied.
fn kept_by_others(world: &World<'_>, tables: &Report) -> Option<(&'static str, String)> {
    let stalled = world.observed.stalls.first().map(stalled);
    let found = stalled.or_else(|| foreign(world.catalog()?)).map(|found| (found.reason, found.message));
    found.or_else(|| tables.uncopied.as_ref().map(|problem| (problem.reason, problem.message.clone())))
}

/// What is said while a table is being spread: that ends by itself, or it is cancelled.
fn comes_first(world: &World<'_>) -> Option<String> {
    let mut operations = world.catalog()?.operations.iter();
    let Operation { pid, application } = operations.find(|operation| operation.spreads())?;
    Some(format!("{application} (pid {pid} on the coordinator) comes to its end first"))
}

/// What failed last of the moves from those that leave. One that is tried again may fail once more: only one that is made says that
/// they leave.
fn failed_last(world: &World<'_>, surplus: &BTreeSet<Group>) -> Option<(&'static str, String)> {
    let leaves = |step: &Step| matches!(step, Step::MoveShard { from, .. } if surplus.contains(from));
    let (step, failure) = world.observed.failed_moves.iter().find(|(step, _)| leaves(step))?;
    Some((failure.reason, format!("could not {step}: {}", failure.message)))
}

/// What is said of a node that only waits for what Citus was asked to take away there and could not.
fn kept_by_objects(world: &World<'_>, leaving: &[Group]) -> Option<String> {
    let left = uncleaned(world)?;
    let records = |group: &Group| {
        let member = world.member(*group)?;
        Some((*group, world.catalog()?.cleanup_of(member.group_id)))
    };
    let empty = leaving.iter().filter(|group| world.shards_on(**group) == 0);
    let (group, records) = empty.filter_map(records).find(|(_, records)| *records > 0)?;
    Some(format!(
        "{group} has no shards any more and cannot leave before {records} objects are taken away there that moves have left: \
         {left}"
    ))
}
