//! The part of the status that this controller writes.

use super::observed::Observed;
use super::topology::Topology;
use super::wanted::Wanted;
use super::world::{World, members};
use crate::api::{NodeState, NodeStatus};
use crate::names::Group;

/// Facts for the status, beside the conditions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// PostgreSQL's version on the coordinator.
    pub postgres_version: Option<String>,
    /// Citus' version on the coordinator.
    pub citus_version: Option<String>,
    /// Shards of all distributed tables.
    pub shards: Option<i64>,
    /// The nodes, coordinator first.
    pub nodes: Vec<NodeStatus>,
}

/// Summarises what was observed.
#[must_use]
pub fn summary(wanted: &Wanted, topology: &Topology, observed: &Observed) -> Summary {
    let world = World { wanted, topology, observed };
    let first = observed.facts(Group::Coordinator);
    let node = |group: Group| -> Option<NodeStatus> {
        let member = world.member(group);
        let facts = observed.facts(group);
        let state = match (facts, member) {
            (None, _) => NodeState::Unreachable,
            (Some(_), None) => NodeState::Standalone,
            (Some(_), Some(member)) if member.active && member.synced => NodeState::Active,
            (Some(_), Some(_)) => NodeState::Syncing,
        };
        let shards = observed.catalog.iter().flat_map(|catalog| &catalog.placements);
        let here = |group_id: i32| shards.filter(|at| at.group_id == group_id).map(|at| at.shards).sum();
        Some(NodeStatus {
            group: group.to_string(),
            host: topology.endpoint(group)?.host.clone(),
            state,
            shards: member.map_or(0, |member| here(member.group_id)),
            bytes: facts.and_then(|facts| facts.bytes).unwrap_or(0),
        })
    };
    Summary {
        postgres_version: first.map(|facts| facts.version.clone()),
        citus_version: first.and_then(|facts| facts.citus.release.clone()),
        shards: observed.catalog.as_ref().map(|catalog| catalog.placements.iter().map(|at| at.shards).sum()),
        nodes: members(wanted, topology, observed.catalog.as_ref()).into_iter().filter_map(node).collect(),
    }
}
