//! The service end to end: the real program, over HTTP, on a real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "what cannot go on fails its test")]

#[path = "../support/mod.rs"]
mod support;

mod account;
mod archive;
mod bad_input;
mod clock;
mod connections;
mod contract;
mod description;
mod documentation;
mod idempotency;
mod inbox;
mod interruptions;
mod logins;
mod messages;
mod migrations;
mod outages;
mod paging;
mod rates;
mod schemathesis;
mod shutdown;
mod specification;
mod spread;
mod states;
mod stream_contract;
mod streams;
mod tls;
mod twice;
mod wire;
