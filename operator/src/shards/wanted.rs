//! What the resource asks of the database, and nothing of the rest.

use std::collections::BTreeMap;

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
}

impl From<&DialogClusterSpec> for Wanted {
    fn from(spec: &DialogClusterSpec) -> Self {
        Self {
            // The schema keeps the count within 0 and 99.
            workers: u32::try_from(spec.workers.count).unwrap_or(0),
            shard_count: spec.sharding.shard_count,
            tables: [Table::dialog_api(), spec.sharding.tables.clone()].concat(),
            parameters: spec.postgres.parameters.clone(),
        }
    }
}
