//! The part of the status that this controller writes.

use super::observed::Observed;
use super::topology::Topology;
use super::wanted::Wanted;
use super::world::{World, members};
use crate::api::{DialogClusterStatus, NodeState, NodeStatus};
use crate::condition::{
    BALANCED, CITUS_AVAILABLE, METADATA_SYNCED, PARAMETERS_APPLIED, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED,
    SHARDS_MANAGER, WAL_LEVEL_LOGICAL,
};
use crate::names::Group;
use crate::status::Part;

/// What of the status is written here.
pub const PART: Part = Part {
    manager: SHARDS_MANAGER,
    fields: &["postgresVersion", "citusVersion", "shards", "nodes"],
    conditions: &[
        CITUS_AVAILABLE,
        METADATA_SYNCED,
        WAL_LEVEL_LOGICAL,
        PARAMETERS_APPLIED,
        SCHEMA_DISTRIBUTED,
        BALANCED,
        SCALE_IN_BLOCKED,
    ],
};

/// The facts for the status, conditions aside. What could not be asked this time is as it was `before`.
#[must_use]
pub fn status(
    wanted: &Wanted,
    topology: &Topology,
    observed: &Observed,
    before: Option<&DialogClusterStatus>,
) -> DialogClusterStatus {
    let world = World { wanted, topology, observed };
    let first = observed.facts(Group::Coordinator);
    let before_nodes = before.map_or(&[][..], |status| &status.nodes);
    let node = |group: Group| -> Option<NodeStatus> {
        let member = world.member(group);
        let facts = observed.facts(group);
        let last = before_nodes.iter().find(|node| node.group == group.to_string());
        let state = match (facts, member) {
            (None, _) => NodeState::Unreachable,
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
        let bytes = facts.and_then(|facts| facts.bytes).or(last.and_then(|node| node.bytes));
        Some(NodeStatus {
            group: group.to_string(),
            host: topology.endpoint(group)?.host.clone(),
            state,
            shards,
            bytes,
        })
    };
    let asked = first.is_some();
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
        ..DialogClusterStatus::default()
    }
}
