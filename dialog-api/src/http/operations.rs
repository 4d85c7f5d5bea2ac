//! Paths for operating the service, and the answers for paths and methods that do not exist.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::{ApiError, App, Problem};
use crate::readiness::Stage;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the process is alive
///
/// Says nothing about the database: restarting this process would not mend that.
#[utoipa::path(
    get, path = "/health", tag = "operation", operation_id = "health",
    responses((status = 200, description = "It is", body = String, content_type = "text/plain"))
)]
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// Whether requests can be handled.
#[derive(Serialize, ToSchema)]
struct Ready {
    ready: bool,
    /// What is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    waiting_for: Option<String>,
}

/// Whether requests can be handled now
///
/// The schema is ready, the database is there or was a few seconds ago, and the process is not about to end.
#[utoipa::path(
    get, path = "/ready", tag = "operation", operation_id = "ready",
    responses(
        (status = 200, description = "They can", body = Ready),
        (status = 503, description = "They cannot; `waiting_for` says what is missing", body = Ready)
    )
)]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let waiting_for = missing(&app);
    let status = if waiting_for.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready: waiting_for.is_none(), waiting_for })).into_response()
}

fn missing(app: &App) -> Option<String> {
    match app.readiness.stage() {
        Stage::Starting(what) => Some(what),
        Stage::Draining => Some("nothing: the process is ending".into()),
        Stage::Serving if !app.database.is_available() => Some("a connection to the database".into()),
        Stage::Serving => None,
    }
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "operation", operation_id = "metrics",
    responses((
        status = 200, description = "OpenMetrics", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    ))
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app
        .metrics
        .render(app.database.live_connections(), app.streams.open(), missing(&app).is_none())
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

pub(super) async fn no_such_path() -> ApiError {
    ApiError::no_route(StatusCode::NOT_FOUND, Problem::UnknownPath, "there is no such path")
}

pub(super) async fn no_such_method() -> ApiError {
    ApiError::no_route(
        StatusCode::METHOD_NOT_ALLOWED,
        Problem::UnknownMethod,
        "this path does not know this method",
    )
}
