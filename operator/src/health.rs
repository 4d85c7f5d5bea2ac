//! `/health`, `/ready` and `/metrics`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Not ready any more after this time without an answer of the API server.
const STALE: Duration = Duration::from_mins(1);

/// When the API server answered last; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Option<Instant>>>);

impl Health {
    /// The API server has just answered.
    pub fn reached(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_ready(&self, now: Instant) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|reached| now.saturating_duration_since(reached) < STALE)
    }
}

#[derive(Clone)]
struct Served {
    health: Health,
    metrics: Metrics,
}

/// Serves on `address` until `stop` is cancelled.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    axum::serve(listener, router(health, metrics))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("the HTTP server failed")
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        // The process answers, so it is alive; a leader that cannot go on exits by itself.
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(encoded))
        .with_state(Served { health, metrics })
}

async fn ready(State(served): State<Served>) -> impl IntoResponse {
    if served.health.is_ready(Instant::now()) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered for a minute\n")
    }
}

async fn encoded(State(served): State<Served>) -> Result<impl IntoResponse, StatusCode> {
    let text = served.metrics.encode().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, format)], text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_ready_while_the_api_server_answers() {
        let health = Health::default();
        let served = || State(Served { health: health.clone(), metrics: Metrics::new() });
        assert_eq!(ready(served()).await.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
        health.reached();
        assert_eq!(ready(served()).await.into_response().status(), StatusCode::OK);

        let later = |seconds| health.is_ready(Instant::now() + Duration::from_secs(seconds));
        assert!(later(50) && !later(60), "one answer is enough for a minute");
        health.reached();
        assert!(health.is_ready(Instant::now()), "and the next one for another");
    }
}
