//! Patroni, which makes a group of instances one highly available database: its configuration and its REST API.

pub mod client;
pub mod config;
