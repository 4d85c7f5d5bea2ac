//! The service end to end: the real program, over HTTP, on a real PostgreSQL.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod connections;
mod contract;
mod documentation;
mod idempotency;
mod inbox;
mod logins;
mod messages;
mod migrations;
mod outages;
mod paging;
mod rates;
mod shutdown;
mod specification;
mod streams;
mod tls;
