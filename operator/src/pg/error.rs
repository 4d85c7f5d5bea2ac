//! What went wrong with a database, where, and what to do about it.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::Login;

/// A failure of one session; it says where it was, as whom, and what to do.
#[derive(Debug)]
pub struct Error {
    login: Box<Login>,
    cause: Cause,
}

/// Why a session or a statement failed.
#[derive(Debug)]
pub enum Cause {
    /// The server did not answer for this long.
    Silent(Duration),
    /// The session has ended, and with it what it held.
    Over,
    /// The server, TLS or the network said no.
    Postgres(tokio_postgres::Error),
}

impl Error {
    pub(super) fn new(login: &Login, cause: Cause) -> Self {
        Self { login: Box::new(login.clone()), cause }
    }

    /// A session that has to be the one that it was is over.
    #[must_use]
    pub fn over(login: &Login) -> Self {
        Self::new(login, Cause::Over)
    }

    /// Where it happened.
    #[must_use]
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// The server's SQLSTATE; `None` when the failure was not the server's answer.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match &self.cause {
            Cause::Silent(_) | Cause::Over => None,
            Cause::Postgres(error) => error.code(),
        }
    }

    /// Whether the server could not be asked at all: it does not answer, does not let the operator in, or is starting or
    /// stopping. Otherwise it has answered, and what failed is the statement.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        let Some(code) = self.sqlstate() else { return true };
        // The classes are those of connections and of who may connect.
        ["08", "28", "57P"].iter().any(|class| code.code().starts_with(class))
            || [SqlState::TOO_MANY_CONNECTIONS, SqlState::INVALID_CATALOG_NAME].contains(code)
    }

    /// Whether the statement was cancelled, by its time limit or by somebody.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.sqlstate() == Some(&SqlState::QUERY_CANCELED)
    }

    /// Whether the server has no database of this name.
    #[must_use]
    pub fn is_database_missing(&self) -> bool {
        self.sqlstate() == Some(&SqlState::INVALID_CATALOG_NAME)
    }

    /// Whether the thing to be made was there already.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(
            self.sqlstate(),
            Some(code) if *code == SqlState::DUPLICATE_OBJECT || *code == SqlState::DUPLICATE_DATABASE
                // Two sessions that make the same thing at once meet in a catalog's index.
                || *code == SqlState::UNIQUE_VIOLATION
        )
    }

    fn remedy(&self) -> &'static str {
        let error = match &self.cause {
            Cause::Silent(_) => {
                return "check that the pod is running and that no network policy drops the connection";
            }
            Cause::Over => return "it is tried again in another one; the server's log says why if it goes on",
            Cause::Postgres(error) => error,
        };
        let Some(code) = error.code() else {
            return if tls_failed(error) {
                "one side does not accept the other's certificate: compare the Secrets' ca.crt, and the names in the \
                 server's certificate"
            } else {
                "check that the group's primary is running and its Service has an endpoint"
            };
        };
        match code {
            &SqlState::INVALID_AUTHORIZATION_SPECIFICATION | &SqlState::INVALID_PASSWORD => {
                "check that the role exists, may log in, and is in the server's ident map for this certificate"
            }
            &SqlState::INVALID_CATALOG_NAME => {
                "the operator creates the database; wait, or look for its last error"
            }
            &SqlState::QUERY_CANCELED => {
                "the statement was cancelled, by its time limit, the watch over moves that stall, or by hand: look for a lock or a \
                 long transaction in pg_stat_activity"
            }
            &SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED => {
                "another session holds the lock: see pg_locks; it is tried again"
            }
            &SqlState::TOO_MANY_CONNECTIONS => "all connections are taken: raise max_connections",
            &SqlState::CANNOT_CONNECT_NOW => "the server is starting or stopping; it is tried again",
            &SqlState::INSUFFICIENT_PRIVILEGE => {
                "the role lacks a privilege: dialog_operator must be a superuser"
            }
            &SqlState::READ_ONLY_SQL_TRANSACTION => "this is not the primary: wait for the failover to end",
            &SqlState::DISK_FULL => {
                "the volume is full: free some space, or enlarge its PersistentVolumeClaim if the class allows that"
            }
            _ => "see the server's log for the statement",
        }
    }
}

/// Whether it was the handshake: rustls' own error is at the bottom of the chain.
fn tls_failed(error: &tokio_postgres::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if error.is::<rustls::Error>()
            || wrapped.is_some_and(<dyn StdError + Send + Sync>::is::<rustls::Error>)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.login)?;
        match &self.cause {
            Cause::Silent(limit) => write!(f, "no answer within {} s", limit.as_secs())?,
            Cause::Over => f.write_str("the session that held the topology lock for this has ended")?,
            Cause::Postgres(error) => {
                if let Some(server) = error.as_db_error() {
                    f.write_str(server.message())?;
                    for more in [server.detail(), server.hint()].into_iter().flatten() {
                        write!(f, " ({more})")?;
                    }
                    write!(f, " (SQLSTATE {})", server.code().code())?;
                } else {
                    f.write_str(&crate::error::chain(error))?;
                }
            }
        }
        write!(f, "; {}", self.remedy())
    }
}

impl StdError for Error {}
