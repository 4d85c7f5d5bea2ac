//! What is so, as conditions: each with a reason for programs and a sentence that says what to do.

use std::collections::BTreeMap;

use super::observed::Stall;
use super::plan::{Draft, Moves, Report};
use super::settings;
use super::step::Step;
use super::world::{Support, World};
use crate::condition::{
    CITUS_AVAILABLE, Finding, Holds, METADATA_SYNCED, SCHEMA_DISTRIBUTED, WAL_LEVEL_LOGICAL, first_of,
};
use crate::names::Group;

mod heat;
mod parameters;
mod shards;

const NO_CITUS: &str = "the cluster has no Citus: see the condition CitusAvailable";

/// The conditions of this controller, in a fixed order.
pub(super) fn of(world: &World<'_>, tables: &Report, moves: Option<&Moves>, draft: &Draft) -> Vec<Finding> {
    vec![
        citus_available(world, draft),
        metadata_synced(world, draft),
        wal_level_logical(world),
        parameters::applied(world),
        schema_distributed(world, tables, draft),
        shards::balanced(world, moves, draft),
        shards::scale_in_blocked(world, moves, tables, draft),
        heat::hot_tenant(world, draft),
    ]
}

fn citus_available(world: &World<'_>, draft: &Draft) -> Finding {
    let finding =
        |holds: Holds, reason, message: String| Finding::new(CITUS_AVAILABLE, holds, reason, message);
    let alone = match world.wanted.workers {
        0 => "the tables stay plain and the coordinator serves them".to_owned(),
        count => format!(
            "the tables stay plain, and the coordinator serves them without the workers asked for ({count})"
        ),
    };
    match world.support() {
        Support::Unknown => {
            let why = world.server(Group::Coordinator).err().unwrap_or_default();
            return finding(Holds::Unknown, "NotObserved", why);
        }
        Support::NotInImage => {
            let message = format!(
                "the image has no Citus extension: {alone}; for shards set spec.image to one that has it"
            );
            return finding(Holds::False, "NotInImage", message);
        }
        Support::NotPreloaded => {
            let message = format!(
                "the image has the Citus extension, and the server did not load it: {alone}; for shards put citus first \
                 in shared_preload_libraries of the image's configuration"
            );
            return finding(Holds::False, "NotPreloaded", message);
        }
        Support::Citus => {}
    }
    let away: Vec<String> =
        world.groups().into_iter().filter_map(|group| world.server(group).err()).collect();
    if !away.is_empty() {
        return finding(Holds::Unknown, "NotObserved", first_of(&away));
    }
    let facts = || world.groups().into_iter().filter_map(|group| Some((group, world.observed.facts(group)?)));
    let without: Vec<String> = facts()
        .filter(|(_, facts)| facts.citus.available.is_none() || !facts.citus.preloaded)
        .map(|(group, _)| group.to_string())
        .collect();
    if !without.is_empty() {
        let message =
            format!("{} run an image without Citus: wait for the update to reach them", first_of(&without));
        return finding(Holds::False, "NotInImage", message);
    }
    let versions: BTreeMap<&str, Vec<String>> =
        facts().fold(BTreeMap::new(), |mut versions, (group, facts)| {
            if let Some(version) = &facts.citus.installed {
                versions.entry(version.as_str()).or_default().push(group.to_string());
            }
            versions
        });
    if versions.len() > 1 {
        let each: Vec<String> =
            versions.iter().map(|(version, groups)| format!("{version} on {}", first_of(groups))).collect();
        let message = format!(
            "the extension has different versions: {}; run ALTER EXTENSION citus UPDATE on the workers, then on the \
             coordinator",
            first_of(&each)
        );
        return finding(Holds::False, "VersionsDiffer", message);
    }
    let preparing: Vec<String> = draft
        .steps
        .iter()
        .filter(|step| step.condition() == CITUS_AVAILABLE && !matches!(step, Step::AllowLogin { .. }))
        .map(ToString::to_string)
        .collect();
    if facts().any(|(_, facts)| facts.citus.installed.is_none()) {
        return finding(Holds::False, "Preparing", format!("still to do: {}", first_of(&preparing)));
    }
    let differing = settings_that_differ(world);
    if !differing.is_empty() {
        let message = format!(
            "every node has Citus, and some settings are not as declared: {}; moving shards may fail: compare with \
             Patroni's dynamic configuration, and look for a pending restart",
            first_of(&differing)
        );
        return finding(Holds::True, "SettingsDiffer", message);
    }
    let release = world
        .observed
        .facts(Group::Coordinator)
        .and_then(|facts| facts.citus.release.as_deref().or(facts.citus.installed.as_deref()));
    finding(Holds::True, "Installed", format!("every node has Citus {}", release.unwrap_or_default()))
}

fn settings_that_differ(world: &World<'_>) -> Vec<String> {
    let mut differing = Vec::new();
    for group in world.groups() {
        let Some(facts) = world.observed.facts(group) else { continue };
        for (name, _) in settings::REQUIRED {
            // wal_level has a condition of its own.
            if name != settings::WAL_LEVEL && !settings::is_met(&facts.settings, name) {
                let value = facts.settings.get(name).map_or("", String::as_str);
                // The value of this one names files, and is long.
                let value = if name == "citus.node_conninfo" { "without sslmode=verify-full" } else { value };
                differing.push(format!("{name} is {value} on {group}"));
            }
        }
    }
    differing
}

fn metadata_synced(world: &World<'_>, draft: &Draft) -> Finding {
    let finding =
        |holds: Holds, reason, message: String| Finding::new(METADATA_SYNCED, holds, reason, message);
    let catalog = match (world.support(), &world.observed.catalog) {
        (Support::NotInImage | Support::NotPreloaded, _) => {
            return finding(Holds::Unknown, "CitusUnavailable", NO_CITUS.to_owned());
        }
        (Support::Unknown, _) => {
            let why = world.server(Group::Coordinator).err().unwrap_or_default();
            return finding(Holds::Unknown, "NotObserved", why);
        }
        (Support::Citus, None) => {
            let message = "the coordinator's catalogs are not there yet".to_owned();
            return finding(Holds::False, "Preparing", message);
        }
        (Support::Citus, Some(catalog)) => catalog,
    };
    let away: Vec<String> =
        world.groups().into_iter().filter_map(|group| world.server(group).err()).collect();
    if !away.is_empty() {
        return finding(Holds::False, "NodeUnreachable", first_of(&away));
    }
    let missing: Vec<String> = world
        .groups()
        .into_iter()
        .filter(|group| world.member(*group).is_none())
        .map(|group| group.to_string())
        .collect();
    if !missing.is_empty() {
        let why =
            if draft.waits.is_empty() { String::new() } else { format!(": {}", first_of(&draft.waits)) };
        return finding(
            Holds::False,
            "NotRegistered",
            format!("not registered yet: {}{why}", first_of(&missing)),
        );
    }
    let hosts = |wrong: &dyn Fn(&&super::observed::Member) -> bool| -> Vec<String> {
        catalog.members.iter().filter(wrong).map(|member| member.endpoint.to_string()).collect()
    };
    let strangers = hosts(&|member| world.topology.group(&member.endpoint).is_none());
    if !strangers.is_empty() {
        let message = format!(
            "pg_dist_node holds addresses that are no Service of this cluster: {}; if they hold no shard, remove them \
             with SELECT citus_remove_node(host, port)",
            first_of(&strangers)
        );
        return finding(Holds::False, "UnknownNode", message);
    }
    let inactive = hosts(&|member| !member.active);
    if !inactive.is_empty() {
        return finding(
            Holds::False,
            "NotActive",
            format!(
                "not active: {}; the operator activates them, and what keeps it from that is in the coordinator's log",
                first_of(&inactive)
            ),
        );
    }
    let behind = hosts(&|member| !member.synced);
    if !behind.is_empty() {
        let message = format!("Citus is bringing the catalogs up to date of {}", first_of(&behind));
        return finding(Holds::False, "OutOfSync", message);
    }
    finding(
        Holds::True,
        "Synced",
        format!("every node is registered and in sync ({})", catalog.members.len()),
    )
}

fn wal_level_logical(world: &World<'_>) -> Finding {
    let finding =
        |holds: Holds, reason, message: String| Finding::new(WAL_LEVEL_LOGICAL, holds, reason, message);
    let mut wrong = Vec::new();
    let mut unknown = Vec::new();
    for group in world.groups() {
        // Without Citus the workers are of no use, and nobody looks at them.
        if group != Group::Coordinator && world.support() != Support::Citus {
            continue;
        }
        match world.server(group) {
            Err(why) => unknown.push(why),
            Ok(facts) => match facts.settings.get(settings::WAL_LEVEL).map(String::as_str) {
                Some("logical") => {}
                Some(level) => wrong.push(format!("{level} on {group}")),
                None => unknown.push(format!("{group} does not say")),
            },
        }
    }
    if !wrong.is_empty() {
        let message = format!(
            "wal_level is {}: shards cannot be moved while they are written to; the operator declares logical in Patroni's \
             dynamic configuration and restarts these servers one after the other: if that does not come, see the \
             conditions Ready and Progressing",
            first_of(&wrong)
        );
        return finding(Holds::False, "NotLogical", message);
    }
    if !unknown.is_empty() {
        return finding(Holds::Unknown, "NotObserved", first_of(&unknown));
    }
    finding(Holds::True, "Logical", "wal_level is logical on every node".to_owned())
}

fn schema_distributed(world: &World<'_>, tables: &Report, draft: &Draft) -> Finding {
    let finding =
        |holds: Holds, reason, message: String| Finding::new(SCHEMA_DISTRIBUTED, holds, reason, message);
    match world.support() {
        Support::NotInImage | Support::NotPreloaded => {
            return finding(Holds::Unknown, "CitusUnavailable", NO_CITUS.to_owned());
        }
        Support::Unknown => {
            let why = world.server(Group::Coordinator).err().unwrap_or_default();
            return finding(Holds::Unknown, "NotObserved", why);
        }
        Support::Citus => {}
    }
    let of_tables = |stall: &&Stall| stall.operation().spreads();
    if let Some(stall) = world.observed.stalls.iter().find(of_tables) {
        return finding(Holds::False, stall.reason(), stall.to_string());
    }
    if let [first, ..] = tables.problems.as_slice() {
        let each: Vec<&str> = tables.problems.iter().map(|problem| problem.message.as_str()).collect();
        return finding(Holds::False, first.reason, each.join("; "));
    }
    let mut running = world.observed.catalog.iter().flat_map(|catalog| &catalog.operations);
    if let Some(operation) = running.find(|operation| operation.spreads()) {
        let message = format!("{} (pid {} on the coordinator)", operation.application, operation.pid);
        return finding(Holds::False, "Distributing", message);
    }
    if !tables.pending.is_empty() {
        let pending = tables.pending.join(", ");
        return if draft.waits.is_empty() {
            finding(Holds::False, "Distributing", format!("still to distribute: {pending}"))
        } else {
            let message = format!("{pending} wait until the nodes are complete: {}", first_of(&draft.waits));
            finding(Holds::False, "NodesIncomplete", message)
        };
    }
    if !tables.missing.is_empty() {
        let message = format!("waiting for the migrations to create {}", tables.missing.join(", "));
        return finding(Holds::False, "TablesMissing", message);
    }
    let count = world.wanted.tables.len();
    finding(
        Holds::True,
        "Distributed",
        format!("all {count} tables of the policy are distributed as it says"),
    )
}

#[cfg(test)]
pub(crate) mod tests;
