//! The controller of the database: what the nodes and Citus' catalogs hold becomes what the resource says.
//!
//! [`observe`] reads, [`plan`] decides without reading, [`act`] performs one step. Every step is derived again from what
//! the servers say, so an operator that ends between any two statements is continued by the next.

pub mod act;
pub mod adopted;
mod controller;
pub(crate) mod findings;
pub mod heat;
pub mod jobs;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod preflight;
pub mod rebalance;
pub mod retire;
pub mod round;
pub mod sessions;
pub mod settings;
pub mod status;
pub mod step;
pub mod strategy;
pub mod supervise;
pub mod topology;
pub mod wanted;
pub mod world;

pub use controller::Controller;
