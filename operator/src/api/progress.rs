//! How far the moves of shards are, for the status.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The moves of shards that are under way or were made last.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceStatus {
    /// Moves that were made since the shards were last where they belong.
    pub moves_done: i64,
    /// These, those under way and those that are left.
    pub moves_total: i64,
    /// Bytes that are still to be moved.
    pub bytes_left: i64,
    /// The moves under way, at most 16 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub current: Vec<MoveStatus>,
}

/// One move that is under way.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveStatus {
    /// The lowest id of the shards that move together.
    pub shard_id: i64,
    /// The group that they leave.
    pub from: String,
    /// The group that they come to.
    pub to: String,
    /// What Citus is doing, for example `Copying Data`; empty before it says so.
    pub phase: String,
    /// Bytes that have arrived.
    pub bytes_done: i64,
    /// Bytes to copy.
    pub bytes_total: i64,
}
