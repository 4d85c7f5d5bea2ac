//! Kubernetes operator for Citus with a chat back end on top.

pub mod api;
pub mod condition;
pub mod names;
pub mod pg;
pub mod shards;
