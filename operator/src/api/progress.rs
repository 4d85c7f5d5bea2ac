//! How far nodes and the moves of shards are, for the status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One database group as Citus sees it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// `coordinator`, `worker-0`, …
    pub group: String,
    /// The address in `pg_dist_node`: the group's Service.
    pub host: String,
    /// How far it is.
    pub state: NodeState,
    /// Shards of distributed tables that are placed here.
    pub shards: i64,
    /// Bytes of these shards, indexes and TOAST included; absent until they have been measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

/// How far a node is.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum NodeState {
    /// It is asked for, and has neither answered nor been part of the Citus cluster yet: none of the data is there.
    Awaited,
    /// It does not answer.
    Unreachable,
    /// It answers and is not part of the Citus cluster (yet, or because the image has no Citus).
    Standalone,
    /// It is registered, and its metadata is not in sync.
    Syncing,
    /// It is registered, active and in sync.
    Active,
}

/// The moves of shards that are under way or were made last.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceStatus {
    /// Moves that were made since the shards were last where they belong.
    pub moves_done: i64,
    /// These, those under way and those that are left.
    pub moves_total: i64,
    /// Bytes of the moves that were made, as large as they were measured last.
    #[serde(default)]
    pub bytes_done: i64,
    /// Bytes that are still to be moved.
    pub bytes_left: i64,
    /// When the first of these moves began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When a move got on last: it ended, or more of its bytes or of the changes meanwhile had arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_progress_at: Option<Time>,
    /// When the last move will have ended if they go on as fast as they were while any was under way; absent while none is, and
    /// before anything has arrived that this operator has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<Time>,
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

/// The split of a shard that is under way.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SplitStatus {
    /// The lowest id of the shards that are split together.
    pub shard_id: i64,
    /// The group that they leave.
    pub from: String,
    /// The groups that the parts come to, at most three of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub to: Vec<String>,
    /// When it began.
    pub since: Time,
    /// What it is doing: `Setting Up`, `Copying Data`, `Creating Constraints` or `Catching Up`.
    pub phase: String,
}

/// What is under way since no move or split of a shard begins any more.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldMovesStatus {
    /// The `holdMoves` that this answers.
    pub since: MicroTime,
    /// The groups that moves and splits under way need: none of their servers that serves is restarted before these have ended.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub busy: Vec<String>,
}
