//! The running operator: clients, the lead, the controllers, and how they stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kube::{Client, Config};
use rand::RngExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::Run;
use crate::cluster;
use crate::context::{Context, Pull, Settings};
use crate::health::{self, Health};
use crate::lease::Candidate;
use crate::metrics::Metrics;
use crate::{reconcile, shards, telemetry};

/// Time limit of one call to the API server.
const CALL: Duration = Duration::from_secs(15);
/// The API server ends a watch after less than 5 minutes: one that is silent for longer is dead.
const SILENCE: Duration = Duration::from_mins(5);
/// Time that reconciliations under way are given to end.
const GRACE: Duration = Duration::from_secs(20);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, or loses the lead: then nothing is tidied up, because another operator leads already.
pub async fn run(arguments: Run) -> anyhow::Result<()> {
    telemetry::start(arguments.log_format, &arguments.log)?;
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone())?);

    let config =
        Config::infer().await.context("cannot find out how to reach Kubernetes; is KUBECONFIG set?")?;
    let lease_namespace = arguments.lease_namespace.unwrap_or_else(|| config.default_namespace.clone());
    let (client, watcher) = clients(config)?;
    let settings = Settings {
        postgres_image: arguments.postgres_image,
        api_image: arguments.api_image,
        pull: Pull { secrets: arguments.image_pull_secrets, policy: arguments.image_pull_policy },
        namespace: arguments.watch_namespace,
    };
    let (metrics, health) = (Metrics::new(), Health::default());
    let context = Context::new(client.clone(), watcher, settings, metrics.clone(), stop.clone());

    let serving =
        tokio::spawn(health::serve(arguments.listen, health.clone(), metrics.clone(), stop.clone()));
    let identity =
        arguments.identity.unwrap_or_else(|| format!("dialog-operator-{:016x}", rand::rng().random::<u64>()));
    info!(version = env!("CARGO_PKG_VERSION"), %identity, "started");
    let candidate = Candidate::new(client, &lease_namespace, &arguments.lease_name, identity, health);
    let result = tokio::select! {
        result = lead(candidate, context, stop.clone()) => result,
        result = serving => result.context("the HTTP server stopped").flatten(),
    };
    stop.cancel();
    result
}

/// The two clients: one whose calls have a time limit, and one whose watches stay open.
///
/// # Errors
/// If the configuration names certificates that cannot be read.
pub fn clients(config: Config) -> anyhow::Result<(Client, Client)> {
    let mut calls = config.clone();
    calls.read_timeout = Some(CALL);
    calls.write_timeout = Some(CALL);
    // Otherwise the time a connection lay idle would count against the next answer on it.
    calls.reset_reader_on_write = true;
    let mut watches = config;
    watches.read_timeout = Some(SILENCE);
    watches.write_timeout = Some(CALL);
    watches.reset_reader_on_write = true;
    Ok((Client::try_from(calls)?, Client::try_from(watches)?))
}

/// Waits for the lead and runs the controllers until `stop` is cancelled or the lead is lost.
async fn lead(candidate: Candidate, context: Context, stop: CancellationToken) -> anyhow::Result<()> {
    let mut leader = tokio::select! {
        leader = candidate.acquire() => leader,
        () = stop.cancelled() => return Ok(()),
    };
    context.metrics.leads(true);
    let mut controllers = start(&context, &stop);

    let ended = tokio::select! {
        reason = leader.keep() => Err(reason.context("lost the lead")),
        ended = stopped(&mut controllers, &stop) => ended,
    };
    context.metrics.leads(false);
    ended?;
    leader
        .release()
        .await
        .unwrap_or_else(|error| warn!(%error, "could not give the lease back; it will expire"));
    Ok(())
}

/// Starts every controller.
fn start(context: &Context, stop: &CancellationToken) -> JoinSet<()> {
    let mut controllers = JoinSet::new();
    let cluster = Arc::new(cluster::Controller::new(context.clone()));
    let related = cluster::Controller::related(context);
    controllers.spawn(reconcile::run(cluster, context.clone(), related, stop.clone()));
    let shards = Arc::new(shards::Controller::new(context.clone()));
    let related = shards::Controller::related(context);
    controllers.spawn(reconcile::run(shards, context.clone(), related, stop.clone()));
    controllers
}

/// Returns when the controllers have ended after `stop`, or have had time enough to.
///
/// # Errors
/// If a controller ends by itself: the process must then end too, so that another one takes the lead.
async fn stopped(controllers: &mut JoinSet<()>, stop: &CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        ended = controllers.join_next() => {
            return match ended {
                Some(Err(error)) => Err(error).context("a controller failed"),
                _ => Err(anyhow!("a controller ended although nobody asked it to")),
            };
        }
    }
    info!("stopping");
    let all = async { while controllers.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        warn!("a reconciliation did not end within {} s; every step can be repeated", GRACE.as_secs());
    }
    Ok(())
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_controller_that_ends_by_itself_ends_the_process() {
        let stop = CancellationToken::new();
        let mut controllers = JoinSet::new();
        controllers.spawn(std::future::pending());
        controllers.spawn(async {});
        assert!(stopped(&mut controllers, &stop).await.is_err());
    }

    #[tokio::test]
    async fn controllers_that_end_when_asked_to_are_no_error() {
        let stop = CancellationToken::new();
        let mut controllers = JoinSet::new();
        controllers.spawn(stop.clone().cancelled_owned());
        stop.cancel();
        assert!(stopped(&mut controllers, &stop).await.is_ok());
    }
}
