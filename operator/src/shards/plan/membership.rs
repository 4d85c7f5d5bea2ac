//! Which nodes Citus knows, under which addresses, and which of them may hold new shards.

use super::Draft;
use crate::names::Group;
use crate::shards::observed::Catalog;
use crate::shards::step::Step;
use crate::shards::world::World;

/// Plans the registration of the nodes; whether the tables can be looked at once these steps are done.
pub(super) fn plan(world: &World<'_>, draft: &mut Draft) -> bool {
    let Some(catalog) = world.catalog() else {
        draft.wait("Citus' catalogs on the coordinator cannot be read");
        return false;
    };
    let obstacles = obstacles(world, catalog);
    if !obstacles.is_empty() {
        draft.waits.extend(obstacles);
        return false;
    }

    if world.member(Group::Coordinator).is_none_or(|member| member.group_id != 0) {
        draft.step(Step::SetCoordinatorHost);
    }
    let mut complete = true;
    for group in world.groups() {
        let step = match world.member(group) {
            Some(member) if !member.active => Step::ActivateNode { group },
            None if group != Group::Coordinator => Step::AddNode { group },
            _ => continue,
        };
        let ready = usable(world, group);
        complete &= ready;
        if ready {
            draft.step(step);
        }
    }
    // Who may hold shards from now on comes before who may not: at no time there is nobody.
    let (holders, others): (Vec<_>, Vec<_>) =
        world.groups().into_iter().partition(|group| world.holds_shards(*group));
    for group in holders.into_iter().chain(others) {
        shards_allowed(world, group, draft);
    }
    complete
}

/// What makes every change of the topology fail, or unsafe.
fn obstacles(world: &World<'_>, catalog: &Catalog) -> Vec<String> {
    let running = catalog
        .operations
        .iter()
        .map(|operation| format!("{} is still running (pid {})", operation.application, operation.pid));
    let registered = || catalog.members.iter().filter(|member| member.active);
    // Citus sends every change of the catalogs to all nodes it uses, and one that is away fails them all. Why it is away
    // has been said already.
    let away = registered()
        .filter_map(|member| world.topology.group(&member.endpoint))
        .filter(|group| world.server(*group).is_err() || !usable(world, *group))
        .map(|group| format!("{group} is registered and cannot take part in a change of the topology"));
    let behind = registered()
        .filter(|member| !member.synced)
        .map(|member| format!("the catalogs of {} are being brought up to date", member.endpoint));
    running.chain(away).chain(behind).collect()
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
    // The coordinator is not relieved before somebody can take over.
    let someone_else = group != Group::Coordinator || value || world.workers().any(registered);
    let here = group == Group::Coordinator || registered(group);
    if is != value && here && someone_else {
        draft.step(Step::SetShouldHaveShards { group, value });
    }
}
