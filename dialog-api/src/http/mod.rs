//! HTTP: routes, what surrounds every request (`observe`), and the server itself ([`serve`]).

mod account;
mod answer;
mod dialogs;
mod error;
mod extract;
mod guard;
mod hot;
mod inbox;
mod messages;
mod observe;
mod openapi;
mod operations;
mod page;
mod places;
pub mod serve;
mod stream;
mod users;

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware};
use tokio::sync::Semaphore;
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::error::{ApiError, Problem};
pub use self::hot::Front;
pub(crate) use self::{account::EXPORTS, extract::LARGE_BODIES, observe::LARGE_ANSWERS};
use crate::{
    clock::Clock, database::Database, dialogs::Dialogs, inbox::Inbox, metrics::Metrics, readiness::Readiness,
    streams::Streams, tokens::Tokens, users::Users,
};

/// What handlers work with.
pub struct App {
    /// The database, for `/ready`.
    pub database: Arc<Database>,
    /// Registration and login.
    pub users: Arc<Users>,
    /// Sending and listing.
    pub dialogs: Arc<Dialogs>,
    /// Who talks to whom.
    pub inbox: Arc<Inbox>,
    /// Who listens.
    pub streams: Arc<Streams>,
    /// What time it is.
    pub clock: Arc<Clock>,
    /// Who is asking.
    pub tokens: Arc<Tokens>,
    /// Whether `X-User-Id` is believed where no token came: for development only.
    pub trust_user_header: bool,
    /// The stage of the process.
    pub readiness: Arc<Readiness>,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Largest body, in bytes.
    pub body_limit: usize,
    /// Places for bodies that are large.
    pub large_bodies: Semaphore,
    /// A permit for each KiB of large answers that are on their way.
    pub large_answers: Arc<Semaphore>,
    /// Places for exports.
    pub exports: Arc<Semaphore>,
    /// Longest time for a body.
    pub body_timeout: Duration,
    /// Longest time for a request.
    pub request_timeout: Duration,
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let api = OpenApiRouter::new()
        .routes(routes!(users::register))
        .routes(routes!(users::login))
        .routes(routes!(users::get))
        .routes(routes!(users::search))
        .routes(routes!(account::export))
        .routes(routes!(account::erase))
        .routes(routes!(dialogs::send))
        .routes(routes!(dialogs::list))
        .routes(routes!(messages::edit, messages::delete))
        .routes(routes!(inbox::read))
        .routes(routes!(stream::stream))
        .routes(routes!(inbox::unread))
        .routes(routes!(inbox::list));
    let (router, document) = OpenApiRouter::with_openapi(openapi::Document::openapi())
        .merge(api)
        .routes(routes!(operations::health))
        .routes(routes!(operations::ready))
        .routes(routes!(operations::metrics))
        .split_for_parts();
    router
        .merge(openapi::router(document))
        .fallback(operations::no_such_path)
        .method_not_allowed_fallback(operations::no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe::observe))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use clap::Parser as _;
    use http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::{config::Config, server};

    /// The whole application, with nothing behind it.
    pub(super) fn app() -> Arc<App> {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        std::fs::write(&key, [7; 32]).unwrap();
        let key = key.to_str().unwrap();
        let flags = ["dialog-api", "--database-host", "localhost", "--token-key-file", key];
        Arc::new(server::build(&Config::parse_from(flags)).unwrap())
    }

    #[tokio::test]
    async fn a_panic_is_a_500_with_a_body_and_is_counted() {
        let app = app();
        let router = Router::new()
            .route("/panic", get(async || -> &'static str { panic!("on purpose") }))
            .layer(middleware::from_fn_with_state(Arc::clone(&app), observe::observe));
        for _ in 0..2 {
            let request = Request::get("/panic").header("x-request-id", "seven").body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 500);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                body,
                serde_json::json!({"message": "internal error", "request_id": "seven", "code": 1000})
            );
        }
        assert_eq!(app.metrics.panics.get(), 2);
    }

    #[tokio::test]
    async fn until_the_schema_is_ready_the_api_says_so_and_the_process_is_healthy() {
        let router = router(app());
        for (path, status) in
            [("/health", 200), ("/ready", 503), ("/metrics", 200), ("/dialog/x/list", 503), ("/", 404)]
        {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers().contains_key("retry-after"), path.starts_with("/dialog"), "{path}");
        }
    }

    #[tokio::test]
    async fn what_slow_clients_have_not_taken_is_bounded() {
        let app = app();
        let router = Router::new()
            .route("/large", get(async || vec![7; 1 << 20]))
            .route("/small", get(async || "small"))
            .layer(middleware::from_fn_with_state(Arc::clone(&app), observe::observe));
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap()
        };
        let mut waiting = Vec::new();
        for _ in 0..64 {
            let response = ask("/large").await;
            assert_eq!(response.status(), 200);
            waiting.push(response);
        }
        let refused = ask("/large").await;
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        assert_eq!(ask("/small").await.status(), 200);
        let taken = waiting.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(taken.len(), 1 << 20);
        assert_eq!(ask("/large").await.status(), 200);
    }

    #[tokio::test]
    async fn a_wrong_method_is_told_which_ones_there_are() {
        let router = router(app());
        let request = Request::get("/login").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["allow"]),
            (405, &"POST".parse().unwrap())
        );
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}
