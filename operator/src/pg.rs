//! How the operator connects to a database: the one home for it.
//!
//! Every connection is TLS 1.3 or 1.2 with both sides verified: the server by its name and the cluster's authority, the
//! operator by its certificate. Names are resolved in `pg_catalog` alone, so that no object of a user can step in, and
//! every wait has an end, except where the caller asks for none.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::DbError;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls;

mod error;

pub use crate::tls::Error as IdentityError;
pub use error::{Cause, Error};

/// The name under which the operator's sessions are seen in `pg_stat_activity`; longer ones begin with it.
pub const APPLICATION: &str = "dialog-operator";

/// How long a connection may take, name resolution and TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A connection over which nothing comes for this long is asked whether the other side is there, on either side.
const IDLE: Duration = Duration::from_secs(15);
/// How often it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Questions without an answer after which the other side is gone.
const UNANSWERED: u32 = 3;
/// What is sent and not acknowledged for this long ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// How much longer than the server a caller waits for the server's own time limit to strike.
const GRACE: Duration = Duration::from_secs(5);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The name that the server's certificate must hold.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint of `host` and `port`.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Which database to enter, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Login {
    /// Where the server listens.
    pub endpoint: Endpoint,
    /// The database.
    pub database: String,
    /// The role; the server's ident map must allow it to the operator's certificate.
    pub role: String,
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, database {} as {}", self.endpoint, self.database, self.role)
    }
}

/// Bytes that a server keeps of a session's name: `NAMEDATALEN - 1`.
const LONGEST_NAME: usize = 63;

/// How long one session may take over one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The name in `pg_stat_activity`.
    pub application: String,
    /// Longest statement; `None` for one that takes as long as the data is large.
    pub statement: Option<Duration>,
    /// Longest wait for one lock.
    pub lock: Duration,
}

impl Limits {
    /// For reads, and for changes that are done at once.
    #[must_use]
    pub fn short() -> Self {
        Self {
            application: APPLICATION.to_owned(),
            statement: Some(Duration::from_secs(15)),
            lock: Duration::from_secs(10),
        }
    }

    /// For one statement that moves data, and is to be recognised by `purpose` should the operator end before it does: by as much of
    /// it as the server keeps of a name.
    #[must_use]
    pub fn long(purpose: &str) -> Self {
        let mut application = format!("{APPLICATION}: {purpose}");
        application.truncate(application.floor_char_boundary(LONGEST_NAME));
        Self { application, statement: None, lock: Duration::from_mins(1) }
    }

    /// As command-line options of the session's server process.
    fn options(&self) -> String {
        let statement = self.statement.map_or(0, milliseconds);
        // A statement with a limit ends with its client; one without is to survive the operator.
        let check = self.statement.map_or(0, |_| 5_000);
        // Where the operator's machine has gone, nobody tells the server, and TCP by itself tries for a quarter of an hour. A
        // session that is idle then would hold the topology lock for as long.
        format!(
            "-c search_path=pg_catalog -c statement_timeout={statement} -c lock_timeout={} \
             -c idle_in_transaction_session_timeout=60000 -c client_connection_check_interval={check} \
             -c tcp_keepalives_idle={} -c tcp_keepalives_interval={} -c tcp_keepalives_count={UNANSWERED} \
             -c tcp_user_timeout={}",
            self.lock.as_millis(),
            IDLE.as_secs(),
            ASK_AGAIN.as_secs(),
            UNACKNOWLEDGED.as_millis()
        )
    }
}

/// What the operator shows to servers, and whom it believes.
#[derive(Clone)]
pub struct Identity {
    connector: MakeRustlsConnect,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

impl Identity {
    /// The identity held by three PEM files: the authority's certificate, the operator's, and its key.
    ///
    /// # Errors
    /// When a part is missing, is not PEM, or does not fit the others.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        Ok(Self { connector: MakeRustlsConnect::new(tls::client(authority, certificate, key)?) })
    }
}

/// One session of one database. Its connection ends with it.
pub struct Session {
    login: Login,
    /// Longest wait for an answer, in milliseconds; 0 for no end.
    limit: AtomicU64,
    /// What the server has warned of since somebody asked for it.
    warnings: Warnings,
    client: Client,
    connection: JoinHandle<()>,
    /// Set when an answer never came: the connection cannot be ended in order.
    lost: AtomicBool,
}

/// What a server has warned of, in order.
type Warnings = Arc<Mutex<Vec<Warning>>>;

/// Warnings that are kept: who asks for them does so after one statement.
const MOST_WARNINGS: usize = 100;

/// What a server says beside an answer about something that it could not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What went wrong.
    pub message: String,
    /// In the middle of what; empty if the server does not say.
    pub context: String,
}

impl From<&DbError> for Warning {
    fn from(notice: &DbError) -> Self {
        let of = |text: &str| text.to_owned();
        Self { message: of(notice.message()), context: notice.where_().map_or_else(String::new, of) }
    }
}

/// Keeps what is a warning; a server says much else.
fn keep(notice: &DbError, warnings: &Warnings) {
    if notice.parsed_severity() != Some(tokio_postgres::error::Severity::Warning) {
        return;
    }
    let mut warnings = warnings.lock().unwrap_or_else(PoisonError::into_inner);
    if warnings.len() < MOST_WARNINGS {
        warnings.push(notice.into());
    }
}

/// A parameter of a statement, with its type: statements are sent once, without being prepared first.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Opens a session.
///
/// # Errors
/// When the server cannot be reached, either side does not accept the other's certificate, or the server refuses.
pub async fn connect(identity: &Identity, login: &Login, limits: &Limits) -> Result<Session, Error> {
    let mut config = Config::new();
    config
        .host(&login.endpoint.host)
        .port(login.endpoint.port)
        .dbname(&login.database)
        .user(&login.role)
        .application_name(&limits.application)
        .options(limits.options())
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .connect_timeout(CONNECT_LIMIT)
        .keepalives_idle(IDLE)
        .keepalives_interval(ASK_AGAIN)
        .keepalives_retries(UNANSWERED)
        .tcp_user_timeout(UNACKNOWLEDGED);
    let opening = tokio::time::timeout(CONNECT_LIMIT, config.connect(identity.connector.clone()));
    let (client, connection) = opening
        .await
        .map_err(|_| Error::new(login, Cause::Silent(CONNECT_LIMIT)))?
        .map_err(|error| Error::new(login, Cause::Postgres(error)))?;
    let name = login.clone();
    let warnings = Warnings::default();
    let heard = Arc::clone(&warnings);
    let connection = tokio::spawn(async move {
        let mut connection = pin!(connection);
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            match message {
                Ok(AsyncMessage::Notice(notice)) => {
                    tracing::debug!(session = %name, %notice, "the server says");
                    keep(&notice, &heard);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(session = %name, %error, "connection ended");
                    return;
                }
            }
        }
    });
    Ok(Session {
        login: login.clone(),
        limit: AtomicU64::new(limits.statement.map_or(0, |limit| milliseconds(limit + GRACE))),
        warnings,
        client,
        connection,
        lost: AtomicBool::new(false),
    })
}

impl Session {
    /// Where this session is, and as whom.
    #[must_use]
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Whether the session can take no more statements.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.lost.load(Ordering::Relaxed) || self.client.is_closed()
    }

    /// Gives the statements from now on this much time; a session without an end keeps having none.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn allow(&self, statement: Duration) -> Result<(), Error> {
        if self.limit.load(Ordering::Relaxed) != 0 {
            self.run(&format!("SET statement_timeout = {}", milliseconds(statement))).await?;
            self.limit.store(milliseconds(statement + GRACE), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Runs one statement and returns its rows.
    ///
    /// # Errors
    /// When the server refuses it, or does not answer in time.
    pub async fn query(&self, statement: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Error> {
        self.bounded(self.client.query_typed(statement, parameters)).await
    }

    /// Runs one statement that returns exactly one row.
    ///
    /// # Errors
    /// As [`Session::query`], and when it returns another number of rows.
    pub async fn query_one(&self, statement: &str, parameters: &[Parameter<'_>]) -> Result<Row, Error> {
        self.bounded(self.client.query_typed_one(statement, parameters)).await
    }

    /// Runs statements without parameters, each in a transaction of its own unless the text says otherwise.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub async fn run(&self, statements: &str) -> Result<(), Error> {
        self.bounded(self.client.batch_execute(statements)).await
    }

    /// As [`Session::run`], with what the server has warned of meanwhile, in order, whatever came of it.
    pub async fn run_warned(&self, statements: &str) -> (Vec<Warning>, Result<(), Error>) {
        let take = || std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner));
        take();
        let done = self.run(statements).await;
        // The server says it before it says that the statement has ended.
        (take(), done)
    }

    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        let done = match self.limit.load(Ordering::Relaxed) {
            0 => work.await,
            limit => {
                let limit = Duration::from_millis(limit);
                tokio::time::timeout(limit, work).await.map_err(|_| {
                    self.lost.store(true, Ordering::Relaxed);
                    Error::new(&self.login, Cause::Silent(limit))
                })?
            }
        };
        done.map_err(|error| Error::new(&self.login, Cause::Postgres(error)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Without this the task would go on waiting for an answer that may never come.
        if self.lost.load(Ordering::Relaxed) {
            self.connection.abort();
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `name` as an identifier in a statement.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a string in a statement.
#[must_use]
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_cannot_end_the_quotes() {
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
    }

    #[test]
    fn a_long_session_has_no_time_limit_and_says_what_it_is_for() {
        let long = Limits::long("distribute messages");
        assert_eq!(long.application, "dialog-operator: distribute messages");
        assert!(long.options().contains("-c statement_timeout=0 "));
        assert!(Limits::short().options().contains("-c statement_timeout=15000 "));
        // As the server shows it, which cuts what is longer, and never within a character.
        let long = Limits::long("distribute messages by dialog_id into 48 shards, while it is written to");
        assert_eq!(long.application, "dialog-operator: distribute messages by dialog_id into 48 shard");
        let long = Limits::long(&"ä".repeat(40));
        assert_eq!(long.application, format!("dialog-operator: {}", "ä".repeat(23)));
    }

    #[test]
    fn an_identity_names_the_part_that_is_wrong() {
        let authority = testbed::certificates::Authority::new().unwrap();
        let (root, mine) = (authority.certificate(), authority.client("dialog-operator").unwrap());
        let wrong = |root: &str, certificate: &str, key: &str| {
            Identity::from_pem(root.as_bytes(), certificate.as_bytes(), key.as_bytes()).map(drop)
        };
        let other = authority.client("dialog-operator").unwrap();
        assert!(wrong(&root, &mine.certificate, &mine.key).is_ok());
        for (result, part) in [
            (wrong("", &mine.certificate, &mine.key), "ca.crt"),
            (wrong(&root, "nothing", &mine.key), "tls.crt"),
            (wrong(&root, &mine.certificate, ""), "tls.key"),
            (wrong(&root, &mine.certificate, &other.key), "tls.key"),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.starts_with(part), "{message}");
        }
    }
}
