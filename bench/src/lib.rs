//! Load for dialog-api, and a ledger that proves what became of every message.
//!
//! A [`population`] of users and dialogs is computed, not stored: [`load`] writes it, and a [`workload`] draws
//! operations from it. [`run`] has them made by [`drive`] (in an open loop by a [`schedule`]), writes every send
//! into the [`ledger`], and has [`audit`] read every shard by SQL and compare. The [`report`] is JSON, the
//! [`chart`] an SVG; what it means [`beside`] something else is a few rows, and what the service keeps up with is what is
//! [`sustained`]. [`standard`] compares the service with others on a [`stand`] of servers of its own, in a
//! [`table`] that says which [`machine`] it was.

pub mod audit;
pub mod beside;
pub mod chart;
pub mod cli;
pub mod client;
pub mod database;
pub mod drive;
pub mod gaps;
pub mod ledger;
pub mod load;
pub mod machine;
pub mod population;
pub mod process;
pub mod report;
pub mod run;
pub mod schedule;
pub mod stand;
pub mod standard;
pub mod stats;
pub mod sustained;
pub mod table;
pub mod workload;
