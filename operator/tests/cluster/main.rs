//! The whole product on a real Kubernetes: what a user applies, what they get, and what happens when things break.
//!
//! Needs a cluster with the operator installed by its chart; `cargo xtask test --tier cluster` brings both up and says
//! where they are. Every test has a namespace of its own, in which only restricted pods are admitted. They take turns
//! (`--test-threads 1`): one of them kills the operator that all share.

mod bed;
mod creation;
mod deletion;
mod http;
mod obstacles;
mod switchover;
