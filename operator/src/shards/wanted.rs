//! What the resource asks of the database, and nothing of the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rebalance;
use crate::api::{DialogClusterSpec, Table};

/// The part of a `DialogCluster` that this controller acts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Worker groups.
    pub workers: u32,
    /// Shards of each colocation group.
    pub shard_count: i32,
    /// The shard policy: the tables of dialog-api, and those that the resource adds.
    pub tables: Vec<Table>,
    /// PostgreSQL's own parameters on every node.
    pub parameters: BTreeMap<String, String>,
    /// How shards are spread.
    pub rebalance: Rebalance,
}

/// How shards are spread, and whether they may be moved now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebalance {
    /// What is to be even, and how many moves are made at the same time.
    pub policy: rebalance::Policy,
    /// Whether moves that only make the spread more even may be made now.
    pub gate: Gate,
    /// How long a move may make no progress.
    pub stall_timeout: Duration,
}

/// Whether moves that only make the spread more even may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// The ones of the plan with this hash may.
    Approved(String),
    /// They may not.
    Closed {
        /// For programs.
        reason: &'static str,
        /// For people: why, and what to do.
        message: String,
    },
}

impl From<&DialogClusterSpec> for Wanted {
    fn from(spec: &DialogClusterSpec) -> Self {
        Self {
            // The schema keeps the count within 0 and 99.
            workers: u32::try_from(spec.workers.count).unwrap_or(0),
            shard_count: spec.sharding.shard_count,
            tables: [Table::dialog_api(), spec.sharding.tables.clone()].concat(),
            parameters: spec.postgres.parameters.clone(),
            rebalance: Rebalance {
                policy: rebalance::Policy {
                    strategy: rebalance::Strategy::BySize,
                    threshold: 100,
                    max_parallel_moves: 1,
                    moves_per_node: 1,
                    goal: rebalance::Goal::Balance,
                },
                gate: Gate::Open,
                stall_timeout: Duration::from_mins(10),
            },
        }
    }
}
