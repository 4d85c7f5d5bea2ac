//! What the tests with real servers share: the service as a process of its own, and a client.

#![allow(dead_code, unused_imports, reason = "each test program uses its part")]

pub(crate) mod client;
pub(crate) mod crowd;
pub(crate) mod erasure;
pub(crate) mod history;
pub(crate) mod load;
pub(crate) mod proxy;
pub(crate) mod service;

use anyhow::Result;
use testbed::{postgres::Server, wait};

pub(crate) use self::{
    client::{Client, Response, User},
    load::Load,
    service::Service,
};

/// Makes the role and the empty database, as the operator would.
pub(crate) async fn create_database(server: &Server) -> Result<()> {
    let postgres = server.connect("postgres").await?;
    postgres.batch_execute("CREATE ROLE dialog_api LOGIN").await?;
    postgres.batch_execute("CREATE DATABASE dialog OWNER dialog_api").await?;
    Ok(())
}

/// Asks again and again until there is an answer to something that should happen soon.
pub(crate) async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    wait::eventually(what, service::SOON, ask).await
}

/// A server with the empty database.
pub(crate) async fn database() -> Result<Server> {
    let server = Server::builder("api").start()?;
    create_database(&server).await?;
    Ok(server)
}
