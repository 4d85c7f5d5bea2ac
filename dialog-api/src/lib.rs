//! Chat HTTP service on PostgreSQL.
//!
//! It speaks the public OTUS Highload specification, keeps one dialog on one shard, and knows nothing of
//! Kubernetes: any PostgreSQL will do, with Citus or without. How a request travels:
//! [`http`] checks what came in, [`users`] and [`dialogs`] decide what it means,
//! [`database`] runs prepared statements on a few shared connections.
//! [`startup`] migrates the schema and waits until its tables are distributed, [`server`] puts all together.

pub mod clock;
pub mod config;
pub mod database;
pub mod dialogs;
pub mod erased;
pub mod http;
pub mod inbox;
pub mod jobs;
pub mod metrics;
pub mod migrations;
pub mod passwords;
pub mod rate;
pub mod readiness;
pub mod recent;
pub mod server;
pub mod startup;
pub mod streams;
pub mod telemetry;
pub mod tokens;
pub mod users;
