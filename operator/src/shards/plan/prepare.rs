//! What each server needs before it can be part of the cluster: roles, the database, the extension, its settings.

use super::Draft;
use crate::names::Group;
use crate::shards::observed::Facts;
use crate::shards::step::{API_ROLE, Step};
use crate::shards::world::{Support, World};

/// Plans the preparation of every server, coordinator first.
pub(super) fn plan(world: &World<'_>, draft: &mut Draft) {
    let support = world.support();
    for group in world.groups() {
        // Without Citus one node serves; the others have nothing to do.
        if group != Group::Coordinator && support != Support::Citus {
            break;
        }
        match world.server(group) {
            Ok(facts) => server(world, group, facts, draft),
            Err(reason) => {
                draft.wait(reason);
                if group == Group::Coordinator {
                    break;
                }
            }
        }
    }
}

fn server(world: &World<'_>, group: Group, facts: &Facts, draft: &mut Draft) {
    match facts.operator {
        Some(role) if role.login && role.superuser => {}
        None if facts.database_owner.is_none() => draft.step(Step::CreateOperatorRole { group }),
        // Nothing is known yet of what is inside the database, and a lesser role was not shown everything.
        _ => return draft.step(Step::CreateOperatorRole { group }),
    }
    if facts.api.is_none() {
        draft.step(Step::CreateApiRole { group });
    }
    match facts.database_owner.as_deref() {
        None => draft.step(Step::CreateDatabase { group }),
        Some(API_ROLE) => {}
        Some(_) => draft.step(Step::SetDatabaseOwner { group }),
    }
    let ready = world.support() != Support::Citus || extension(world, group, facts, draft);
    let keeps = group == Group::Coordinator && world.wanted.keeps() && world.catalog().is_some();
    if keeps && facts.citus.installed.is_some() && !facts.own_tables {
        draft.step(Step::CreateOwnTables);
    }
    for name in &facts.overrides {
        draft.step(Step::ResetSetting { group, name: name.clone() });
    }
    // On a worker the role may log in from the start: clients come by way of the coordinator.
    let may_log_in = facts.api.map_or(group != Group::Coordinator, |role| role.login);
    if ready && !may_log_in {
        draft.step(Step::AllowLogin { group });
    }
}

/// Plans the extension; whether the server then has it.
fn extension(world: &World<'_>, group: Group, facts: &Facts, draft: &mut Draft) -> bool {
    let citus = &facts.citus;
    let first = world.observed.facts(Group::Coordinator).map(|facts| &facts.citus);
    if citus.available.is_none() || !citus.preloaded {
        draft.wait(format!(
            "{group}'s server has no Citus, and the coordinator's has: wait for its image to change"
        ));
        return false;
    }
    if let Some(installed) = &citus.installed {
        let same = first.and_then(|first| first.installed.as_ref()).is_none_or(|other| other == installed);
        if !same {
            draft.wait(format!("{group} has another version of the extension citus than the coordinator"));
        }
        return same;
    }
    draft.step(Step::CreateExtension { group });
    true
}
