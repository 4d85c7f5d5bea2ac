//! The service end to end: the real program, over HTTP, on a real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "what cannot go on fails its test")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod connections;
mod documentation;
mod logins;
mod migrations;
mod outages;
mod shutdown;
mod specification;
mod tls;
