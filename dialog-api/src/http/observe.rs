//! What surrounds every request: its id, its time limit, its place in metrics and log, the body of its errors,
//! and that a panic in it stays in it.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody as _},
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{ApiError, App, Problem, answer::Answer};
use crate::metrics::{ByClass, CLASSES, RequestLabels, RouteLabel};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken over from a client, in bytes.
const REQUEST_ID_LIMIT: usize = 128;

/// An answer up to this size, in bytes, is given in any case: as many as there may be connections fit into memory.
const LARGE_ANSWER: u64 = 16 * 1024;
/// What larger answers may occupy together until they are taken, in KiB.
pub(crate) const LARGE_ANSWERS: usize = 64 * 1024;

/// What is known of a request that is about to be handled.
pub(super) struct Asked<'a> {
    started: Instant,
    limit: Option<Duration>,
    request_id: RequestId,
    route: RouteLabel,
    method: &'static str,
    by_class: Option<&'a ByClass>,
}

impl<'a> Asked<'a> {
    /// It was asked now, and may take this long, unless it ends by itself.
    pub(super) fn new(
        headers: &HeaderMap,
        method: &Method,
        route: RouteLabel,
        limit: Option<Duration>,
    ) -> Self {
        let (request_id, method) = (RequestId::of(headers), method_label(method));
        Self { started: Instant::now(), limit, request_id, route, method, by_class: None }
    }

    /// The same, whose histograms are remembered there.
    pub(super) fn counted_in(self, by_class: &'a ByClass) -> Self {
        Self { by_class: Some(by_class), ..self }
    }
}

/// Surrounds every request of the router.
pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or(RouteLabel::Fixed("unmatched"), |path| RouteLabel::Matched(path.clone()));
    let asked = Asked::new(request.headers(), request.method(), route, Some(app.request_timeout));
    surround(&app, asked, next.run(request)).await
}

/// Surrounds a request.
pub(super) async fn surround(
    app: &App,
    asked: Asked<'_>,
    handled: impl Future<Output = Response>,
) -> Response {
    let Asked { started, limit, request_id, route, method, by_class } = asked;
    let in_time = async {
        match limit {
            Some(limit) => timeout(limit, handled).await,
            None => Ok(handled.await),
        }
    };
    let handled = AssertUnwindSafe(in_time).catch_unwind().await;
    let mut response = match handled {
        Ok(Ok(response)) => response,
        Ok(Err(_elapsed)) => {
            ApiError::unavailable(Problem::TimedOut, "the request took too long", 1).into_response()
        }
        Err(panic) => {
            app.metrics.panics.inc();
            ApiError::internal(format!("panic: {}", panic_message(panic.as_ref()))).into_response()
        }
    };

    if let Some(size) = response.body().size_hint().exact().filter(|size| *size > LARGE_ANSWER) {
        // A permit for each KiB, until a slow client has taken the last one.
        let permits = u32::try_from(size.div_ceil(1024)).unwrap_or(u32::MAX);
        response = match Arc::clone(&app.large_answers).try_acquire_many_owned(permits) {
            Ok(held) => response.map(|body| Body::new(Answer::new(body, held))),
            Err(_) => {
                ApiError::unavailable(Problem::SlowClients, "too much waits to be taken by slow clients", 1)
                    .into_response()
            }
        };
    }

    let error = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = &error {
        // Headers that a handler set, such as Allow, stay.
        let headers = std::mem::take(response.headers_mut());
        response = error.respond(request_id.as_str());
        for (name, value) in headers.iter().filter(|(name, _)| **name != header::CONTENT_LENGTH) {
            response.headers_mut().entry(name).or_insert(value.clone());
        }
    }
    if app.readiness.is_draining() {
        // Clients that keep connections open have to learn that this one ends, before it does.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }

    let status = response.status();
    let elapsed = started.elapsed();
    log(&request_id, route.as_str(), method, status, elapsed, error.as_ref().and_then(ApiError::detail));
    let class = class(status);
    let labels = RequestLabels { route, method, status: CLASSES[class] };
    match by_class {
        Some(by_class) => by_class[class]
            .get_or_init(|| app.metrics.request_histogram(&labels))
            .observe(elapsed.as_secs_f64()),
        None => app.metrics.request_histogram(&labels).observe(elapsed.as_secs_f64()),
    }
    response.headers_mut().insert(REQUEST_ID, request_id.0);
    response
}

fn log(
    request_id: &RequestId,
    route: &str,
    method: &str,
    status: StatusCode,
    elapsed: Duration,
    detail: Option<&str>,
) {
    let (status, milliseconds) = (status.as_u16(), elapsed.as_secs_f64() * 1000.0);
    // What is made in the macros is made only if the line is written.
    if status == 503 {
        tracing::warn!(
            request_id = request_id.as_str(),
            route,
            method,
            status,
            milliseconds,
            detail,
            "request"
        );
    } else if status >= 500 {
        tracing::error!(
            request_id = request_id.as_str(),
            route,
            method,
            status,
            milliseconds,
            detail,
            "request"
        );
    } else {
        tracing::debug!(
            request_id = request_id.as_str(),
            route,
            method,
            status,
            milliseconds,
            detail,
            "request"
        );
    }
}

/// The id of a request, ready to be a header.
struct RequestId(HeaderValue);

impl RequestId {
    /// The client's own id if it can be used in logs and headers as it is, otherwise a new one.
    fn of(headers: &HeaderMap) -> Self {
        let usable = |value: &&HeaderValue| {
            (1..=REQUEST_ID_LIMIT).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
        };
        headers.get(REQUEST_ID).filter(usable).cloned().map_or_else(Self::new, Self)
    }

    fn new() -> Self {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::now_v7().hyphenated().encode_lower(&mut text);
        // The text of a UUID is a header in any case.
        Self(HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none")))
    }

    fn as_str(&self) -> &str {
        // Only visible ASCII comes in here.
        self.0.to_str().unwrap_or_default()
    }
}

/// Anybody can invent methods; metrics have a place for the known ones.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

/// The number of its class in [`CLASSES`].
fn class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_request_ids_are_taken_over() {
        let of = |headers: &HeaderMap| RequestId::of(headers).as_str().to_owned();
        let with =
            |value: &str| of(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(value).unwrap())]));
        assert_eq!(with("abc-123"), "abc-123");
        for value in ["", "two words", &"x".repeat(129)] {
            assert!(Uuid::try_parse(&with(value)).is_ok(), "{value:?}");
        }
        assert!(Uuid::try_parse(&of(&HeaderMap::new())).is_ok());
    }

    #[test]
    fn invented_methods_share_a_label() {
        assert_eq!(method_label(&Method::from_bytes(b"BREW").unwrap()), "OTHER");
        assert_eq!(CLASSES[class(StatusCode::IM_A_TEAPOT)], "4xx");
    }
}
