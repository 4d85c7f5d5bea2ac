//! The service end to end: the real program, over HTTP, on a real PostgreSQL.

#[path = "../support/mod.rs"]
mod support;

mod specification;
