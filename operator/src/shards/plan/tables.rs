//! Which tables are still to be spread, how, and which cannot be.

use std::collections::BTreeMap;

use super::Draft;
use crate::api::{Table as Policy, TableKind};
use crate::names::Group;
use crate::shards::observed::{Operation, Spread, Table};
use crate::shards::preflight::{self, Check};
use crate::shards::settings;
use crate::shards::step::{Beside, Distribution, Step};
use crate::shards::world::World;

/// How far the policy is carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tables that do not exist.
    pub missing: Vec<String>,
    /// Tables that are not spread yet, and will be.
    pub pending: Vec<String>,
    /// Tables that cannot be spread as the policy says.
    pub problems: Vec<Problem>,
    /// Why the reference tables are not copied to nodes that lack them: no shard moves before. Also among the problems.
    pub uncopied: Option<Problem>,
}

/// Why a table is not spread as the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For programs.
    pub reason: &'static str,
    /// For people: which table, why, and what to do.
    pub message: String,
}

/// What the tables of a colocation group lie beside.
#[derive(Clone, Debug)]
struct Anchor<'a> {
    table: &'a str,
    column_type: &'a str,
    /// The colocation group, once it exists.
    colocation_id: Option<i32>,
}

/// Plans what is to be done about the tables; while not every node that is asked for is there, that is to copy to the others
/// what has to be there before shards come.
pub(super) fn plan(world: &World<'_>, complete: bool, draft: &mut Draft) -> Report {
    let (report, mut steps) = decide(world);
    steps.retain(|step| complete || *step == Step::ReplicateReferenceTables);
    if steps.contains(&Step::ReplicateReferenceTables) {
        // Citus moves no shard before: a move would copy them, and keep their writers waiting for it.
        draft.hold_moves = true;
        draft.wait(format!("no shard moves before this is done: {}", Step::ReplicateReferenceTables));
    }
    if let Some(Problem { message, .. }) = &report.uncopied {
        // Nor is any other table spread: Citus would begin with the copies.
        steps.clear();
        draft.hold_moves = true;
        draft.wait(message.clone());
    }
    let moving = world.catalog().map_or(0, |catalog| catalog.moves().count());
    match steps.first() {
        // They hold the lock. No new ones are begun, so it is free soon.
        Some(first) if moving > 0 => {
            draft.hold_moves = true;
            draft.wait(format!("moves that are under way ({moving}) come to their end first; then: {first}"));
        }
        _ => draft.steps.extend(steps),
    }
    report
}

/// How far the policy is carried out, when nothing can be done about it now.
pub(super) fn inspect(world: &World<'_>) -> Report {
    decide(world).0
}

fn decide(world: &World<'_>) -> (Report, Vec<Step>) {
    let mut report = Report::default();
    let mut steps = Vec::new();
    let mut anchors = existing_anchors(world);
    for policy in in_order(&world.wanted.tables) {
        let Some(table) = world.observed.tables.get(&policy.name) else {
            report.missing.push(policy.name.clone());
            continue;
        };
        let decision = match policy.kind {
            TableKind::Reference => reference(policy, table),
            TableKind::Distributed => distributed(world, policy, table, &mut anchors),
        };
        match decision {
            Ok(None) => {}
            Ok(Some(step)) => {
                // Beside a table that is to be distributed itself, which may fail, it is when that is done.
                let comes_later = beside(&step).is_some_and(|other| report.pending.contains(other));
                report.pending.push(policy.name.clone());
                if !comes_later {
                    steps.push(step);
                }
            }
            Err(problem) => report.problems.push(problem),
        }
    }
    if copies_are_missing(world) {
        match preflight::copies(world).into_iter().next().filter(|_| !is_spreading(world)) {
            // Citus makes up for missing copies before it spreads any other table: in the step that has the time for it.
            None => steps.insert(0, Step::ReplicateReferenceTables),
            Some(Check { reason, message }) => {
                let problem = Problem { reason, message };
                report.problems.insert(0, problem.clone());
                report.uncopied = Some(problem);
            }
        }
    }
    (report, steps)
}

/// Whether a table is being spread, or reference tables are being copied: what has to be so before they begin is no matter then.
fn is_spreading(world: &World<'_>) -> bool {
    world.catalog().is_some_and(|catalog| catalog.operations.iter().any(Operation::spreads))
}

/// The table beside which `step` puts another.
fn beside(step: &Step) -> Option<&String> {
    match step {
        Step::DistributeTable(distribution) | Step::DistributeConcurrently(distribution) => {
            match &distribution.beside {
                Beside::Table(other) => Some(other),
                Beside::Nothing { .. } => None,
            }
        }
        _ => None,
    }
}

/// Reference tables first: a distributed table may have foreign keys to them.
fn in_order(tables: &[Policy]) -> impl Iterator<Item = &Policy> {
    let of = |kind| tables.iter().filter(move |table| table.kind == kind);
    of(TableKind::Reference).chain(of(TableKind::Distributed))
}

/// The colocation groups that exist already, by the policy's names for them.
fn existing_anchors<'a>(world: &World<'a>) -> BTreeMap<&'a str, Anchor<'a>> {
    let mut anchors = BTreeMap::new();
    for policy in &world.wanted.tables {
        let Some(Table {
            spread: Spread::Hash { column, colocation_id },
            column_type: Some(column_type),
            ..
        }) = world.observed.tables.get(&policy.name)
        else {
            continue;
        };
        if let Some(group) = &policy.group
            && policy.column.as_ref() == Some(column)
        {
            anchors.entry(group.as_str()).or_insert(Anchor {
                table: &policy.name,
                column_type,
                colocation_id: Some(*colocation_id),
            });
        }
    }
    anchors
}

/// Whether an active node lacks a copy of a reference table, whoever has made that.
fn copies_are_missing(world: &World<'_>) -> bool {
    world.catalog().is_some_and(|catalog| {
        let mut active = catalog.members.iter().filter(|member| member.active);
        active.any(|member| catalog.copies.values().any(|nodes| !nodes.contains(&member.group_id)))
    })
}

fn reference(policy: &Policy, table: &Table) -> Result<Option<Step>, Problem> {
    ordinary(policy, table)?;
    match &table.spread {
        Spread::Reference => Ok(None),
        Spread::PlainEmpty | Spread::PlainWithRows if !table.replica_identity => {
            let message = "it has no primary key, so that it could not be copied to workers that come later, and these would get no \
                           shards; add a primary key or a REPLICA IDENTITY by a migration";
            Err(problem("NoReplicaIdentity", policy, message))
        }
        // There is no other way to make one than the one that holds writers up while it copies.
        Spread::PlainEmpty | Spread::PlainWithRows => Ok(Some(Step::CreateReferenceTable {
            table: policy.name.clone(),
            holds_rows: table.spread == Spread::PlainWithRows,
        })),
        Spread::Hash { .. } | Spread::Other => Err(otherwise(policy, table)),
    }
}

fn distributed<'a>(
    world: &World<'a>,
    policy: &'a Policy,
    table: &'a Table,
    anchors: &mut BTreeMap<&'a str, Anchor<'a>>,
) -> Result<Option<Step>, Problem> {
    ordinary(policy, table)?;
    let (Some(column), Some(group)) = (policy.column.as_deref(), policy.group.as_deref()) else {
        // The schema refuses such an entry.
        return Err(problem("ColumnMissing", policy, "the policy names no column and group for it"));
    };
    let Some(column_type) = table.column_type.as_deref() else {
        let message = format!("it has no column {column}; add it by a migration");
        return Err(problem("ColumnMissing", policy, message));
    };
    let anchor = anchors.get(group).cloned();
    match &table.spread {
        Spread::Hash { column: actual, .. } if actual != column => Err(otherwise(policy, table)),
        Spread::Hash { colocation_id, .. } => match &anchor {
            Some(Anchor { table: other, colocation_id: Some(expected), .. }) if expected != colocation_id => {
                let message = format!(
                    "it is not colocated with {other}; run SELECT update_distributed_table_colocation('public.{}', \
                     colocate_with => 'public.{other}') while nothing else changes the topology",
                    policy.name
                );
                Err(problem("NotColocated", policy, message))
            }
            _ => Ok(None),
        },
        Spread::PlainEmpty | Spread::PlainWithRows => {
            if let Some(anchor) = &anchor
                && anchor.column_type != column_type
            {
                let message = format!(
                    "its column {column} has the type {column_type}, and {} in the same group is distributed by one of type {}: equal \
                     values would lie apart; give both one type by a migration",
                    anchor.table, anchor.column_type
                );
                return Err(problem("TypesDiffer", policy, message));
            }
            let with_rows = table.spread == Spread::PlainWithRows;
            if with_rows {
                adoptable(world, policy, table, anchor.as_ref())?;
            }
            let beside = match &anchor {
                Some(anchor) => Beside::Table(anchor.table.to_owned()),
                None => Beside::Nothing {
                    shard_count: world.wanted.shard_count,
                    apart: world.dedicated().filter(|group| world.member(*group).is_some()).collect(),
                },
            };
            anchors.entry(group).or_insert(Anchor { table: &policy.name, column_type, colocation_id: None });
            let distribution = Distribution { table: policy.name.clone(), column: column.to_owned(), beside };
            Ok(Some(if with_rows {
                Step::DistributeConcurrently(distribution)
            } else {
                Step::DistributeTable(distribution)
            }))
        }
        Spread::Reference | Spread::Other => Err(otherwise(policy, table)),
    }
}

/// Whether a table that holds rows can be cut while it is written to.
fn adoptable(
    world: &World<'_>,
    policy: &Policy,
    table: &Table,
    anchor: Option<&Anchor<'_>>,
) -> Result<(), Problem> {
    let on_coordinator = match anchor.and_then(|anchor| anchor.colocation_id) {
        None => world.holds_shards(Group::Coordinator),
        Some(id) => world.catalog().is_some_and(|catalog| {
            catalog.placements.iter().any(|at| at.colocation_id == id && at.group_id == 0)
        }),
    };
    if on_coordinator {
        let remedy = if world.wanted.workers == 0 {
            "set spec.workers.count to 1 or more, so that they land on workers"
        } else {
            "it is distributed as soon as the shards of its group have moved to workers"
        };
        let message = format!(
            "it holds rows, and shards of it would land on the coordinator, which holds the table: Citus' copy would \
             hang as soon as a row is updated; {remedy}"
        );
        return Err(problem("RowsOnCoordinator", policy, message));
    }
    if !table.replica_identity {
        let message = "it holds rows and has no primary key, so that changes made during the copy would be lost; add a \
                       primary key or a REPLICA IDENTITY by a migration";
        return Err(problem("NoReplicaIdentity", policy, message));
    }
    let old_writer = preflight::old_writer(world, Group::Coordinator, "the copy of its rows");
    if let Some(Check { reason, message }) = old_writer.filter(|_| !is_spreading(world)) {
        return Err(problem(reason, policy, message));
    }
    let unmet = world.observed.facts(Group::Coordinator).and_then(|facts| {
        [settings::WAL_LEVEL, settings::OUTPUT_PLUGINS]
            .into_iter()
            .find(|name| !settings::is_met(&facts.settings, name))
    });
    match unmet {
        Some(name) => {
            let message = format!(
                "it holds rows, and the coordinator's {name} does not allow to copy them while they change; it is \
                 declared in Patroni's dynamic configuration"
            );
            Err(problem("SettingsDiffer", policy, message))
        }
        None => Ok(()),
    }
}

fn ordinary(policy: &Policy, table: &Table) -> Result<(), Problem> {
    if table.ordinary {
        return Ok(());
    }
    Err(problem("NotATable", policy, "it is not an ordinary table, and nothing else can be distributed"))
}

fn otherwise(policy: &Policy, table: &Table) -> Problem {
    let actual = match &table.spread {
        Spread::Hash { column, .. } => format!("it is distributed by {column}"),
        Spread::Reference => "it is a reference table".to_owned(),
        _ => "Citus holds it in another way".to_owned(),
    };
    let message = format!(
        "{actual}, and the policy says otherwise; run SELECT undistribute_table('public.{}') in a quiet hour, and the \
         operator distributes it anew",
        policy.name
    );
    problem("SpreadOtherwise", policy, message)
}

fn problem(reason: &'static str, policy: &Policy, message: impl AsRef<str>) -> Problem {
    Problem { reason, message: format!("{}: {}", policy.name, message.as_ref()) }
}
