//! This service's own client of PostgreSQL: prepared statements, pipelined on a connection that many share.
//!
//! It can do less than a general one, for less: what is asked is encoded once, into the one buffer that is sent; of
//! what is answered each answer is copied out whole, and its values are looked up where they are; statements that only
//! read share a transaction with those asked for in the same moment, or while the ones before them are not answered, so
//! that one packet carries all and the server sends its answers in one. Migrations, jobs and the routing's look at the
//! catalogs, which are rare, have a general client.
//!
//! - `startup`: from an address to a session with statements prepared, over a `stream`.
//! - `outbox`: what waits to be sent. `traffic`: sends and receives. `answers`: which answer is whose.
//! - [`rows`]: what an answer holds.

mod answers;
pub mod error;
mod messages;
mod outbox;
pub mod rows;
mod startup;
mod stream;
mod traffic;

use std::sync::Arc;

use anyhow::Result;
use tokio_postgres::types::Type;

use self::{answers::Unanswered, error::StatementError, outbox::Outbox, rows::Rows, startup::Prepared};
pub use self::{startup::Target, stream::Keepalive, traffic::Traffic};

/// Whether a statement may share its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// It has a transaction to itself: when it is answered it is committed.
    Alone,
    /// It only reads, and soon: it may be executed twice, and whoever shares the transaction waits for it. It sees what
    /// was committed before it began, as if it were alone.
    Shared,
}

/// A connection, for as many as want to use it at a time.
pub struct Client {
    outbox: Arc<Outbox>,
    statements: Vec<Prepared>,
}

impl Client {
    /// Most statements that share a transaction. The server sends what it has when a transaction ends: the first waits
    /// for the last, and an error of one has all behind it executed again.
    pub const TOGETHER: usize = 8;

    /// Connects and prepares these statements, which are known by their numbers from then on. The traffic has to be
    /// driven for the connection to work. [`Target::address_limit`] bounds how long each address may take to be reached, and
    /// nothing how long the login and preparing may take.
    ///
    /// # Errors
    /// When no address of the server can be reached, the login fails, the server does not allow writes, or a statement
    /// cannot be prepared.
    pub async fn connect(target: &Target, statements: &[&str]) -> Result<(Self, Traffic)> {
        let opened = startup::open(target, statements).await?;
        let outbox = Arc::<Outbox>::default();
        let traffic = Traffic::new(opened.stream, Arc::clone(&outbox), &opened.received);
        Ok((Self { outbox, statements: opened.statements }, traffic))
    }

    /// Types of a statement's parameters, as the server has them; nothing if there is no such statement.
    #[must_use]
    pub fn parameter_types(&self, statement: usize) -> Option<&[Type]> {
        Some(&self.statements.get(statement)?.parameters)
    }

    /// Executes a statement with these values of its parameters, each with its length before it (four bytes, -1 for
    /// null). The future can be dropped at any time; the statement may then be executed or not.
    ///
    /// # Errors
    /// When the server refuses it or the connection ends. Whether it was executed is known only of an error that the
    /// server reports.
    pub async fn execute(
        &self,
        statement: usize,
        values: &[u8],
        company: Company,
    ) -> Result<Rows, StatementError> {
        let statement =
            self.statements.get(statement).ok_or(StatementError::Protocol("no statement has this number"))?;
        let answer = |company| async move {
            self.outbox.ask(statement, values, company)?.await.map_err(|_| StatementError::Closed)
        };
        match answer(company).await? {
            Ok(rows) => Ok(rows),
            Err(Unanswered::Failed(error)) => Err(error),
            // On its own it is skipped because of nobody.
            Err(Unanswered::Skipped) => match answer(Company::Alone).await? {
                Ok(rows) => Ok(rows),
                Err(Unanswered::Failed(error)) => Err(error),
                Err(Unanswered::Skipped) => Err(StatementError::Protocol("skipped after no error")),
            },
        }
    }
}
