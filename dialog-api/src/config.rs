//! Configuration: flags and environment variables, with defaults and units, as `--help` shows them.

use std::{net::SocketAddr, path::PathBuf, thread, time::Duration};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

/// The longest duration: it can be added to any moment.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);
/// The least age at which messages are archived.
const SHORTEST_ARCHIVE_AGE: Duration = Duration::from_hours(24);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Lines for people.
    Text,
}

/// Whether the tables have to be distributed by Citus before requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// If the citus extension is installed in the database, wait until empty tables are distributed; serve
    /// tables that hold rows already as they are.
    Auto,
    /// Wait for the citus extension and until all tables are distributed.
    Required,
    /// Do not look.
    Off,
}

/// Whether statements go straight to the worker that owns their shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutingChoice {
    /// Yes, where Citus distributes the tables and its hashes are as expected; else through the coordinator.
    Auto,
    /// All statements go through the coordinator.
    Off,
}

/// Chat HTTP service on PostgreSQL, aware of Citus' shards.
///
/// Speaks the public OTUS Highload specification; see docs/http-api.md.
///
/// Every flag can be given as the environment variable named beside it. Durations are written with their
/// unit: 500ms, 5s, 24h.
#[derive(Clone, Debug, Parser)]
#[command(name = "dialog-api", version, max_term_width = 110)]
pub struct Config {
    /// Address and port for HTTP; /health, /ready and /metrics are served there as well
    #[arg(long, env = "DIALOG_API_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show the comment as the program's description")]
    pub database: DatabaseConfig,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show the comment as the program's description")]
    pub login: LoginConfig,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show the comment as the program's description")]
    pub limits: Limits,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show the comment as the program's description")]
    pub streams: StreamsConfig,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show the comment as the program's description")]
    pub jobs: JobsConfig,

    /// Log format
    #[arg(long, env = "DIALOG_API_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json,
          help_heading = "Log")]
    pub log_format: LogFormat,

    /// What is logged, in the syntax of `RUST_LOG`; `debug` logs every request
    #[arg(long, env = "DIALOG_API_LOG_LEVEL", default_value = "info", help_heading = "Log")]
    pub log_level: String,
}

// How the database is reached. (No doc comment: clap would show it as the program's description.)
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Database")]
#[allow(missing_docs, reason = "clap would show the comment as the program's description")]
pub struct DatabaseConfig {
    /// Host name of PostgreSQL or of the Citus coordinator, or the directory of its Unix socket
    #[arg(long = "database-host", env = "DIALOG_API_DATABASE_HOST")]
    pub host: String,

    /// Port of PostgreSQL
    #[arg(long = "database-port", env = "DIALOG_API_DATABASE_PORT", default_value_t = 5432)]
    pub port: u16,

    /// Database with the service's tables
    #[arg(long = "database-name", env = "DIALOG_API_DATABASE_NAME", default_value = "dialog")]
    pub name: String,

    /// Role to connect as; it owns the database
    #[arg(long = "database-user", env = "DIALOG_API_DATABASE_USER", default_value = "dialog_api")]
    pub user: String,

    /// Number of connections to the coordinator, and to each worker that statements go straight to; each is shared
    /// by many requests at a time
    #[arg(long = "database-connections", env = "DIALOG_API_DATABASE_CONNECTIONS", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub connections: u16,

    /// Longest time for one statement, retries included; then the answer is 503
    #[arg(long = "database-timeout", env = "DIALOG_API_DATABASE_TIMEOUT", default_value = "5s",
          value_parser = duration)]
    pub timeout: Duration,

    /// How long statements wait for a worker that was lost, since a switchover or a restart takes a few seconds; after
    /// that its dialogs are answered 503 at once. 0s: at once from the beginning, so that a switchover costs answers
    /// [default: four fifths of --database-timeout]
    #[arg(long = "database-grace", env = "DIALOG_API_DATABASE_GRACE", value_parser = duration)]
    pub grace: Option<Duration>,

    /// Certificate of the authority that signed the server's (PEM). With it the connection is encrypted and
    /// the server's certificate and name are verified
    #[arg(long = "tls-ca", env = "DIALOG_API_TLS_CA", requires_all = ["tls_cert", "tls_key"])]
    pub tls_ca: Option<PathBuf>,

    /// Client certificate (PEM)
    #[arg(long = "tls-cert", env = "DIALOG_API_TLS_CERT", requires_all = ["tls_ca", "tls_key"])]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the client certificate (PEM)
    #[arg(long = "tls-key", env = "DIALOG_API_TLS_KEY", requires_all = ["tls_ca", "tls_cert"])]
    pub tls_key: Option<PathBuf>,

    /// Whether to wait until the operator has distributed the tables
    #[arg(long, env = "DIALOG_API_DISTRIBUTION", value_enum, default_value_t = Distribution::Auto)]
    pub distribution: Distribution,

    /// Whether statements go straight to the worker that owns their shard
    #[arg(long, env = "DIALOG_API_ROUTING", value_enum, default_value_t = RoutingChoice::Auto)]
    pub routing: RoutingChoice,
}

// Passwords and tokens.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logins")]
#[allow(missing_docs, reason = "clap would show the comment as the program's description")]
pub struct LoginConfig {
    /// File with the key that signs tokens: at least 32 random bytes, base64; the same for all replicas
    #[arg(long, env = "DIALOG_API_TOKEN_KEY_FILE")]
    pub token_key_file: PathBuf,

    /// How long a token is valid
    #[arg(long, env = "DIALOG_API_TOKEN_LIFETIME", default_value = "24h", value_parser = duration)]
    pub token_lifetime: Duration,

    /// Passwords checked at a time [default: half of the processors]
    #[arg(long, env = "DIALOG_API_PASSWORD_CONCURRENCY",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub password_concurrency: Option<u16>,

    /// Passwords that may wait to be checked; one more is answered 503
    #[arg(long, env = "DIALOG_API_PASSWORD_QUEUE", default_value_t = 32)]
    pub password_queue: u16,

    /// Longest time a password waits to be checked; then the answer is 503
    #[arg(long, env = "DIALOG_API_PASSWORD_WAIT", default_value = "5s", value_parser = duration)]
    pub password_wait: Duration,

    /// Memory for hashing one password, in KiB
    #[arg(long, env = "DIALOG_API_PASSWORD_MEMORY", default_value_t = 19_456,
          value_parser = clap::value_parser!(u32).range(64..=1_048_576))]
    pub password_memory: u32,

    /// For development only: believe the header X-User-Id of requests without a token. Anybody can be anybody
    #[arg(long, env = "DIALOG_API_INSECURE_USER_HEADER")]
    pub insecure_user_header: bool,
}

// Bounds on what clients can take.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
#[allow(missing_docs, reason = "clap would show the comment as the program's description")]
pub struct Limits {
    /// Messages a second that a user may send through one replica; 0 is no limit
    #[arg(long, env = "DIALOG_API_SENDER_RATE", default_value_t = 100)]
    pub sender_rate: u32,

    /// Messages that a user may send at once
    #[arg(long, env = "DIALOG_API_SENDER_BURST", default_value_t = 1_000)]
    pub sender_burst: u32,

    /// Messages a second that a user may send to one other through one replica; 0 is no limit
    #[arg(long, env = "DIALOG_API_PAIR_RATE", default_value_t = 50)]
    pub pair_rate: u32,

    /// Messages that a user may send to one other at once
    #[arg(long, env = "DIALOG_API_PAIR_BURST", default_value_t = 500)]
    pub pair_burst: u32,

    /// Largest request body, in bytes
    #[arg(long, env = "DIALOG_API_BODY_LIMIT", default_value_t = 65_536)]
    pub body_limit: usize,

    /// Open connections; for one more, the connection that has been idle longest ends, or it waits
    #[arg(long, env = "DIALOG_API_MAX_CONNECTIONS", default_value_t = 8_192,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Longest time for the head of a request, from its first byte
    #[arg(long, env = "DIALOG_API_HEADER_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub header_timeout: Duration,

    /// Longest time for the body of a request
    #[arg(long, env = "DIALOG_API_BODY_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub body_timeout: Duration,

    /// Longest time for a whole request; then the answer is 503
    #[arg(long, env = "DIALOG_API_REQUEST_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub request_timeout: Duration,

    /// How long a connection may be idle; longer than the proxy in front keeps its own (90 s is common)
    #[arg(long, env = "DIALOG_API_IDLE_TIMEOUT", default_value = "100s", value_parser = duration)]
    pub idle_timeout: Duration,

    /// After SIGTERM: how long to go on accepting, /ready saying 503, until load balancers have noticed
    #[arg(long, env = "DIALOG_API_DRAIN_DELAY", default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,

    /// After that: longest time for accepted requests to finish
    #[arg(long, env = "DIALOG_API_SHUTDOWN_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub shutdown_timeout: Duration,
}

// Streams of messages, and how replicas tell each other what happened.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Streams")]
#[allow(missing_docs, reason = "clap would show the comment as the program's description")]
pub struct StreamsConfig {
    /// Names or addresses with UDP ports of all replicas, such as that of a headless service; comma-separated.
    /// Without them, streams see what was sent through other replicas when they poll
    #[arg(long, env = "DIALOG_API_PEERS", value_delimiter = ',', requires = "peer_listen")]
    pub peers: Vec<String>,

    /// Address and UDP port on which this replica is told by the others
    #[arg(long, env = "DIALOG_API_PEER_LISTEN", requires = "peers")]
    pub peer_listen: Option<SocketAddr>,

    /// How often a stream reads its dialog without having been told
    #[arg(long, env = "DIALOG_API_STREAM_POLL", default_value = "5s", value_parser = duration)]
    pub stream_poll: Duration,

    /// Open streams; one more is answered 503
    #[arg(long, env = "DIALOG_API_MAX_STREAMS", default_value_t = 4_096,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_streams: u32,

    /// Open streams of one user; one more is answered 429
    #[arg(long, env = "DIALOG_API_USER_STREAMS", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub user_streams: u32,
}

// What the service does for itself.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Jobs")]
#[allow(missing_docs, reason = "clap would show the comment as the program's description")]
pub struct JobsConfig {
    /// How often one of the replicas looks for what is to be done: inboxes that a crash left behind, users to erase,
    /// messages to archive; and how often each learns who was erased, and what time it is
    #[arg(long, env = "DIALOG_API_JOBS_INTERVAL", default_value = "30s", value_parser = duration)]
    pub jobs_interval: Duration,

    /// Age at which messages are moved to a table of their own, where they still list; at least 24h, such as 8760h
    /// for a year [default: never]
    #[arg(long, env = "DIALOG_API_ARCHIVE_AFTER", value_parser = archive_age)]
    pub archive_after: Option<Duration>,
}

/// How many may wait at a time for servers of the database that were lost a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingLimits {
    /// Statements, for whichever servers. (A few of them are the service's own, which keep inboxes up to date.)
    pub all: usize,
    /// Statements for one server: what is left is for others that are lost beside it.
    pub one_server: usize,
    /// Readers who have waited for long already for an answer to somebody else's identical statement.
    pub readers: usize,
}

impl Limits {
    /// Who may wait. A request that waits keeps a client's connection busy, which then gives way to nobody: with as
    /// many streams as there may be by default, an eighth of all connections is left for others, the probes of
    /// `/health` before all.
    #[must_use]
    pub fn waiting(&self) -> WaitingLimits {
        let connections = self.max_connections as usize;
        let all = (connections / 4).max(1);
        WaitingLimits { all, one_server: (all * 3 / 4).max(1), readers: (connections / 8).max(1) }
    }
}

impl LoginConfig {
    /// Passwords hashed at a time: as configured, else half of the processors, so that messages always have
    /// the other half.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.password_concurrency
            .map_or_else(|| (thread::available_parallelism().map_or(1, usize::from) / 2).max(1), usize::from)
    }
}

impl DatabaseConfig {
    /// How long statements wait for a worker that was lost. By default 4 s of 5: switchovers and restarts took up to
    /// 3.0 s. Others are served meanwhile, so it is not all of the time.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace.unwrap_or(self.timeout * 4 / 5)
    }

    /// Whether the times can be kept.
    ///
    /// # Errors
    /// When statements were to wait for a worker for longer than they may take as a whole. Each would be answered 503
    /// after its whole time, and for as long as the worker is waited for.
    pub fn check(&self) -> Result<()> {
        let (grace, timeout) = (self.grace(), self.timeout);
        ensure!(
            grace <= timeout,
            "--database-grace is {grace:?} and --database-timeout {timeout:?}: no statement can wait for a worker \
             for longer than it may take; make the first as short as the second, or leave it out"
        );
        Ok(())
    }
}

/// Reads a duration with its unit; zero is allowed, negative is not.
fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration =
        text.parse().map_err(|error| format!("{error}; write it with its unit, such as 500ms, 5s or 24h"))?;
    let duration = Duration::try_from(signed).map_err(|_| "a duration cannot be negative".to_owned())?;
    if duration > LONGEST { Err("at most a hundred years".to_owned()) } else { Ok(duration) }
}

/// Reads the age for archiving. Below a day, what clients send again and clocks that differ would reach archived
/// messages.
fn archive_age(text: &str) -> Result<Duration, String> {
    let age = duration(text)?;
    if age < SHORTEST_ARCHIVE_AGE { Err("at least 24h".to_owned()) } else { Ok(age) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMUM: [&str; 5] = ["dialog-api", "--database-host", "db", "--token-key-file", "/key"];

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = Config::try_parse_from(MINIMUM).unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:8080");
        assert_eq!((config.database.port, config.database.name.as_str()), (5432, "dialog"));
        assert_eq!(config.database.distribution, Distribution::Auto);
        assert_eq!(config.limits.drain_delay, Duration::from_secs(5));
        assert!(config.login.concurrency() >= 1);
        assert_eq!(config.database.grace(), Duration::from_secs(4));
    }

    #[test]
    fn durations_need_a_unit_and_a_direction() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(duration("5").is_err());
        assert!(duration("-5s").is_err());
        assert!(duration("soon").is_err());
        assert!(duration("1000000h").is_err(), "moments would overflow");
    }

    #[test]
    fn no_statement_waits_for_a_worker_for_longer_than_it_may_take() {
        let checked = |more: &[&'static str]| {
            Config::try_parse_from(MINIMUM.iter().chain(more))
                .unwrap()
                .database
                .check()
                .map_err(|error| error.to_string())
        };
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&["--database-grace", "5s"]), Ok(()));
        assert_eq!(checked(&["--database-timeout", "100ms"]), Ok(()), "the default follows");
        let error = checked(&["--database-grace", "10m"]).unwrap_err();
        assert!(error.contains("--database-grace is 600s and --database-timeout 5s"), "{error}");
    }

    #[test]
    fn those_who_wait_leave_room_for_others() {
        let limits = Config::try_parse_from(MINIMUM).unwrap().limits;
        assert_eq!(limits.waiting(), WaitingLimits { all: 2048, one_server: 1536, readers: 1024 });
        let one = Limits { max_connections: 1, ..limits };
        assert_eq!(one.waiting(), WaitingLimits { all: 1, one_server: 1, readers: 1 });
    }

    #[test]
    fn nothing_is_archived_on_the_day_it_is_written() {
        assert_eq!(archive_age("24h"), Ok(Duration::from_hours(24)));
        assert!(archive_age("23h").is_err());
    }

    #[test]
    fn certificates_come_all_three_or_not_at_all() {
        let with = |more: &[&'static str]| Config::try_parse_from(MINIMUM.iter().chain(more));
        assert!(with(&["--tls-ca", "a"]).is_err());
        assert!(with(&["--tls-ca", "a", "--tls-cert", "b"]).is_err());
        assert!(with(&["--tls-ca", "a", "--tls-cert", "b", "--tls-key", "c"]).is_ok());
    }

    #[test]
    fn the_help_is_consistent() {
        use clap::CommandFactory as _;
        Config::command().debug_assert();
    }
}
