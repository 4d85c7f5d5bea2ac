//! Puts the parts together and runs them from start to end.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, UdpSocket},
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{Config, Limits, LoginConfig},
    database::{Database, connect::Connector},
    dialogs::{Dialogs, SendLimits},
    http::{App, EXPORTS, Front, LARGE_ANSWERS, LARGE_BODIES, serve},
    inbox::Inbox,
    jobs::Jobs,
    metrics::Metrics,
    passwords::Passwords,
    rate::RateLimit,
    readiness::Readiness,
    startup,
    streams::{
        Settings, Streams,
        peers::{self, Seal},
    },
    tokens::{Tokens, read_key},
    users::Users,
};

/// By how much the clocks of two replicas may differ without a stream missing a message.
const CLOCKS: Duration = Duration::from_secs(5);
/// Users, and pairs of them, whose sending is remembered, at least; about 60 bytes each.
const LIMITED: usize = 50_000;
/// How long inboxes may take to follow the last messages before the process ends.
const LAST_UPDATES: Duration = Duration::from_secs(2);

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration cannot be used, the port cannot be bound, an applied migration differs from this
/// program's, or accepted requests did not finish in time at the end.
pub async fn run(config: Config) -> Result<()> {
    // First of all: from now on a signal ends the process in order.
    let signals = Signals::new()?;
    let app = Arc::new(build(&config)?);
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let address = listener.local_addr().context("the address listened on")?;
    tracing::info!(%address, database = app.database.connector().target(), "listening");

    let peers = match config.streams.peer_listen {
        Some(address) => {
            Some(UdpSocket::bind(address).await.with_context(|| format!("listen on {address} (UDP)"))?)
        }
        None => None,
    };

    let (stop_accepting, stop_database) = (CancellationToken::new(), CancellationToken::new());
    let front = Arc::new(Front::new(Arc::clone(&app)));
    let serving = serve::serve(listener, front, &config.limits, &app.metrics, &stop_accepting);
    let life = async {
        let lived = live(&app, &config, signals, &stop_database).await;
        stop_accepting.cancel();
        app.streams.close();
        lived
    };
    if let Some(socket) = peers {
        let seal = Seal::new(&read_key(&config.login.token_key_file)?)?;
        let (streams, names) = (Arc::clone(&app.streams), config.streams.peers.clone());
        tokio::spawn(peers::run(streams, socket, seal, names, stop_database.clone()));
    }
    let (finished, lived) = futures::future::join(serving, life).await;
    // What is not done in time is found by the sweep of another replica.
    let _ = tokio::time::timeout(LAST_UPDATES, app.inbox.catch_up()).await;
    stop_database.cancel();
    lived?;
    if !finished {
        anyhow::bail!("accepted requests did not finish within {:?}", config.limits.shutdown_timeout);
    }
    tracing::info!("every accepted request has been answered");
    Ok(())
}

/// The signals that tell the process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("wait for SIGINT")?,
        })
    }

    /// Waits for one of them and returns its name.
    async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Makes all parts, without connecting to anything.
pub(crate) fn build(config: &Config) -> Result<App> {
    let LoginConfig {
        token_key_file, token_lifetime, password_queue, password_wait, password_memory, ..
    } = &config.login;
    config.database.check()?;
    let metrics = Metrics::new(config.database.connections);
    let database = Arc::new(Database::new(
        Connector::new(&config.database)?,
        &config.database,
        config.limits.waiting(),
        Arc::clone(&metrics),
    ));
    let passwords = Passwords::new(
        config.login.concurrency(),
        usize::from(*password_queue),
        *password_wait,
        *password_memory,
    )?;
    let tokens = Arc::new(Tokens::new(&read_key(token_key_file)?, *token_lifetime));
    let streams = Arc::new(Streams::new(Settings {
        limit: config.streams.max_streams as usize,
        reader_limit: config.streams.user_streams as usize,
        poll: config.streams.stream_poll,
        overlap: config.database.timeout + CLOCKS,
    }));
    if config.login.insecure_user_header {
        tracing::warn!("X-User-Id is believed without a token: anybody can be anybody (development only)");
    }
    let clock = Arc::new(Clock::new(Timestamp::now()));
    let users =
        Arc::new(Users::new(Arc::clone(&database), passwords, Arc::clone(&tokens), Arc::clone(&clock)));
    let inbox = Arc::new(Inbox::new(Arc::clone(&database), Arc::clone(&metrics)));
    Ok(App {
        dialogs: Arc::new(Dialogs::new(
            Arc::clone(&database),
            Arc::clone(&users),
            Arc::clone(&inbox),
            Arc::clone(&streams),
            Arc::clone(&clock),
            send_limits(&config.limits),
        )),
        streams,
        clock,
        inbox,
        database,
        users,
        tokens,
        trust_user_header: config.login.insecure_user_header,
        readiness: Arc::new(Readiness::default()),
        metrics,
        body_limit: config.limits.body_limit,
        large_bodies: Semaphore::new(LARGE_BODIES),
        large_answers: Arc::new(Semaphore::new(LARGE_ANSWERS)),
        exports: Arc::new(Semaphore::new(EXPORTS)),
        body_timeout: config.limits.body_timeout,
        request_timeout: config.limits.request_timeout,
    })
}

fn send_limits(limits: &Limits) -> SendLimits {
    SendLimits {
        sender: RateLimit::new(limits.sender_rate, limits.sender_burst, LIMITED),
        pair: RateLimit::new(limits.pair_rate, limits.pair_burst, LIMITED),
    }
}

/// Starts what goes on beside requests.
fn work_in_background(app: &App, config: &Config, stop: &CancellationToken) {
    let (inbox, until) = (Arc::clone(&app.inbox), stop.clone());
    tokio::spawn(async move { inbox.keep_up(&until).await });
    let (users, interval, until) = (Arc::clone(&app.users), config.jobs.jobs_interval, stop.clone());
    tokio::spawn(async move { users.erased().keep_up(interval, &until).await });
    let jobs = Jobs {
        database: Arc::clone(&app.database),
        inbox: Arc::clone(&app.inbox),
        clock: Arc::clone(&app.clock),
        interval: config.jobs.jobs_interval,
        archive_after: config.jobs.archive_after,
        token_lifetime: config.login.token_lifetime,
    };
    let until = stop.clone();
    tokio::spawn(async move { jobs.run(&until).await });
}

/// The life of the process up to the moment when it no longer accepts connections.
async fn live(
    app: &App,
    config: &Config,
    mut signals: Signals,
    stop_database: &CancellationToken,
) -> Result<()> {
    let mut told_to_end = std::pin::pin!(signals.received());
    let connector = app.database.connector();
    let prepare = startup::prepare(connector, config.database.distribution, &app.readiness, &app.clock);
    let reason = tokio::select! {
        prepared = prepare => {
            prepared.context("the schema of the database is not this program's")?;
            app.database.open(stop_database);
            work_in_background(app, config, stop_database);
            app.readiness.serving();
            tracing::info!("the schema is ready, requests are served");
            told_to_end.await
        }
        reason = &mut told_to_end => reason,
    };
    tracing::info!(reason, delay = ?config.limits.drain_delay, "ending: not ready any more, still serving");
    app.readiness.draining();
    tokio::time::sleep(config.limits.drain_delay).await;
    Ok(())
}
