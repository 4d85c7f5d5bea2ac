//! Which nodes Citus knows, under which addresses, which of them may hold new shards, and who leaves.

use std::collections::BTreeSet;

use super::Draft;
use crate::names::Group;
use crate::shards::observed::{Catalog, Foreign, Member};
use crate::shards::step::Step;
use crate::shards::world::World;

/// How far the nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nodes {
    /// Nothing else can be planned.
    Unsettled,
    /// Every node that is registered can take part; not every node that is asked for is registered.
    Incomplete,
    /// Every node that is asked for takes part.
    Complete,
}

/// Plans who is part of the cluster. Surplus workers are told to go only if they `may_leave`.
pub(super) fn plan(world: &World<'_>, may_leave: bool, draft: &mut Draft) -> Nodes {
    let Some(catalog) = world.catalog() else {
        draft.wait("Citus' catalogs on the coordinator cannot be read");
        return Nodes::Unsettled;
    };
    let obstacles = obstacles(world, catalog);
    if !obstacles.is_empty() {
        // An empty node that is away stands in everybody's way, and may go.
        draft.steps.extend(removals(world).filter(|_| catalog.operations.is_empty()));
        draft.waits.extend(obstacles);
        return Nodes::Unsettled;
    }
    let mut next = Draft::default();
    let complete = registration(world, catalog, &mut next);
    // Who may hold shards from now on comes before who may not: at no time there is nobody.
    let (holders, others): (Vec<_>, Vec<_>) =
        world.groups().into_iter().partition(|group| world.holds_shards(*group));
    for group in holders.into_iter().chain(others) {
        let leaves = group != Group::Coordinator && !world.holds_shards(group);
        if may_leave || !leaves {
            shards_allowed(world, group, &mut next);
        }
    }
    next.steps.extend(removals(world));
    for (group, stored) in world.kept_by_tables() {
        next.wait(format!(
            "{group} stays: its server stores tables that are named like shards and that Citus has no note of there ({}): see \
             the condition ScaleInBlocked",
            stored.count
        ));
    }
    draft.waits.append(&mut next.waits);
    if let Some(first) = next.steps.first()
        && let count @ 1.. = catalog.moves().count()
    {
        // They hold the lock. No new ones are begun, so it is free soon.
        draft.wait(format!("moves that are under way ({count}) come to their end first; then: {first}"));
        return Nodes::Unsettled;
    }
    draft.steps.append(&mut next.steps);
    if complete { Nodes::Complete } else { Nodes::Incomplete }
}

/// Whether all that cannot take part are workers that were never registered.
pub(super) fn only_newcomers_are_missing(world: &World<'_>) -> bool {
    let newcomer = |group: Group| group != Group::Coordinator && world.member(group).is_none();
    world.groups().into_iter().all(|group| usable(world, group) || newcomer(group))
}

/// Plans that every node is registered under its address; whether all that are asked for then are.
fn registration(world: &World<'_>, catalog: &Catalog, draft: &mut Draft) -> bool {
    if world.member(Group::Coordinator).is_none_or(|member| member.group_id != 0) {
        // Citus' own function makes the row for nodes that have none yet, and changes one that there is.
        let lost = !catalog.members.is_empty() && catalog.members.iter().all(|member| member.group_id != 0);
        draft.step(if lost {
            Step::RestoreNode { group: Group::Coordinator, group_id: 0 }
        } else {
            Step::SetCoordinatorHost
        });
    }
    for cleanup in &catalog.cleanup {
        let known = |member: &Member| member.group_id == cleanup.group_id;
        // One that still has shards comes back.
        let gone = !catalog.members.iter().any(known) && !places_on(catalog, cleanup.group_id);
        if cleanup.group_id != 0 && gone {
            draft.step(Step::ForgetCleanup { group_id: cleanup.group_id });
        }
    }
    let mut complete = true;
    for group in world.groups() {
        let ready = usable(world, group);
        match world.member(group) {
            Some(member) if ready && !member.active => draft.step(Step::ActivateNode { group }),
            Some(member) if ready && !member.has_metadata && group != Group::Coordinator => {
                draft.step(Step::SyncMetadata { group });
            }
            None if group != Group::Coordinator && ready => {
                match under_another_address(world, catalog, group) {
                    Some(member) => draft.step(Step::UpdateNode { group, node_id: member.node_id }),
                    None if let Some(group_id) = lost_row(world, catalog, group) => {
                        draft.step(Step::RestoreNode { group, group_id });
                    }
                    None if world.observed.existing.contains(&group) => draft.step(Step::AddNode { group }),
                    None => {
                        complete = false;
                        draft.wait(format!(
                            "{group} answers, and its StatefulSet is being deleted or not there yet"
                        ));
                    }
                }
            }
            _ => {}
        }
        complete &= ready;
    }
    complete
}

/// The row of `group` if it is registered under an address that is none of this cluster's: the server knows its number.
fn under_another_address<'a>(world: &World<'_>, catalog: &'a Catalog, group: Group) -> Option<&'a Member> {
    let number = world.server(group).ok()?.local_group;
    let stranger = |member: &&Member| {
        number > 0 && member.group_id == number && world.topology.group(&member.endpoint).is_none()
    };
    catalog.members.iter().find(stranger)
}

/// Citus' number of `group` if nobody is registered under it any more, and the catalogs place shards or copies there: a
/// new number would leave these behind.
fn lost_row(world: &World<'_>, catalog: &Catalog, group: Group) -> Option<i32> {
    let number = world.server(group).ok()?.local_group;
    let registered = catalog.members.iter().any(|member| member.group_id == number);
    (number > 0 && !registered && places_on(catalog, number)).then_some(number)
}

/// Whether the catalogs place shards, or copies of reference tables, on the node with Citus' number `group_id`.
fn places_on(catalog: &Catalog, group_id: i32) -> bool {
    let copied = |nodes: &BTreeSet<i32>| nodes.contains(&group_id);
    catalog.placements.iter().any(|at| at.group_id == group_id) || catalog.copies.values().any(copied)
}

/// The steps that take out who is not asked for any more and holds nothing, by the catalogs' word and by its own.
fn removals(world: &World<'_>) -> impl Iterator<Item = Step> {
    let empty = |group: &Group| {
        let resources = world.observed.facts(*group).and_then(|facts| facts.resources.as_ref());
        let stores_nothing = match resources {
            Some(resources) => resources.stored_shards.as_ref().is_some_and(|stored| stored.count == 0),
            // It cannot be asked. That it is out of the catalogs takes nothing away from it.
            None => world.server(*group).is_err(),
        };
        stores_nothing && world.may_be_removed(*group)
    };
    let leaving = world.surplus().into_iter().rev().filter(empty).collect::<Vec<_>>();
    leaving.into_iter().map(|group| Step::RemoveNode { group })
}

/// What makes every change of the topology fail, or unsafe.
fn obstacles(world: &World<'_>, catalog: &Catalog) -> Vec<String> {
    let moving = |pid: i32| catalog.moves().any(|running| running.pid == pid);
    let running = catalog
        .operations
        .iter()
        .filter(|operation| !moving(operation.pid))
        .map(|operation| format!("{} is still running (pid {})", operation.application, operation.pid));
    let foreign = catalog.foreign.iter().map(Foreign::to_string);
    let registered = || catalog.members.iter().filter(|member| member.active);
    // Citus sends every change of the catalogs to all nodes it uses, and one that is away fails them all. Why it is away
    // has been said already.
    let away = registered()
        .filter_map(|member| world.topology.group(&member.endpoint))
        .filter(|group| world.server(*group).is_err() || !usable(world, *group))
        .map(|group| format!("{group} is registered and cannot take part in a change of the topology"));
    // One under a wrong address cannot be brought up to date before that is put right.
    let behind = registered()
        .filter(|member| member.has_metadata && !member.synced)
        .filter(|member| world.topology.group(&member.endpoint).is_some())
        .map(|member| format!("the catalogs of {} are being brought up to date", member.endpoint));
    running.chain(foreign).chain(away).chain(behind).collect()
}

/// Whether `group` has, or is about to have, all that a node of the cluster needs; if not, it was said why.
fn usable(world: &World<'_>, group: Group) -> bool {
    let (Ok(facts), Ok(first)) = (world.server(group), world.server(Group::Coordinator)) else {
        return false;
    };
    let (mine, its) = (&facts.citus, &first.citus);
    let loaded = mine.available.is_some() && mine.preloaded;
    let same = mine.installed.is_none() || its.installed.is_none() || mine.installed == its.installed;
    loaded && same && facts.operator.is_none_or(|role| role.login && role.superuser)
}

fn shards_allowed(world: &World<'_>, group: Group, draft: &mut Draft) {
    let value = world.holds_shards(group);
    // Citus registers workers with shards allowed and the coordinator without.
    let is = world.member(group).map_or(group != Group::Coordinator, |member| member.should_have_shards);
    let registered =
        |group: Group| world.member(group).is_some_and(|member| member.active) || draft.adds(group);
    let holds =
        |group: Group| world.holds_shards(group) && (group == Group::Coordinator || registered(group));
    // Nobody is relieved before somebody can take over.
    let someone_else = value || world.groups().into_iter().any(holds);
    let here = group == Group::Coordinator || registered(group);
    if is != value && here && someone_else {
        draft.step(Step::SetShouldHaveShards { group, value });
    }
}
