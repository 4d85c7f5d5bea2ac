//! Kubernetes operator for Citus with a chat back end on top.

// Tests may stop at the first surprise.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod api;
pub mod condition;
pub mod names;
