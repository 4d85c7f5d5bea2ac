//! Kubernetes operator for Citus with a chat back end on top.

pub mod api;
pub mod cli;
pub mod cluster;
pub mod condition;
pub mod context;
pub mod error;
pub mod health;
pub mod heat;
pub mod lease;
pub mod metrics;
pub mod names;
pub mod pg;
pub mod preview;
pub mod reconcile;
pub mod record;
pub mod run;
pub mod shards;
pub mod simulate;
pub mod status;
pub mod telemetry;
pub mod tls;
