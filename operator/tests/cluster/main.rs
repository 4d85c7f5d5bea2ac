//! The whole product on a real Kubernetes: what a user applies, what they get, and what happens when things break.
//!
//! Needs a cluster with the operator installed by its chart; `cargo xtask test --tier cluster` brings both up and says
//! where they are. Every test has a namespace of its own, in which only restricted pods are admitted, and takes it away
//! again. The tests in `alone` measure time or memory, count what the operator does, or end it: they take turns
//! (`--test-threads 1`). The others share the operator and run some at a time.

mod alone;
mod bed;
mod commands;
mod creation;
mod deletion;
mod forward;
mod load;
mod parameters;
mod results;
mod streams;
mod writer;
