//! HTTP: routes, what surrounds every request ([`observe`]), and the server itself ([`serve`]).

mod dialogs;
mod error;
mod extract;
mod observe;
mod operations;
pub mod serve;
mod users;

use std::{sync::Arc, time::Duration};

use axum::{
    Router, middleware,
    routing::{get, post},
};

use self::error::{ApiError, Problem};
use crate::{
    database::Database, dialogs::Dialogs, metrics::Metrics, readiness::Readiness, tokens::Tokens,
    users::Users,
};

/// What handlers work with.
pub struct App {
    /// The database, for `/ready`.
    pub database: Arc<Database>,
    /// Registration and login.
    pub users: Arc<Users>,
    /// Sending and listing.
    pub dialogs: Dialogs,
    /// Who is asking.
    pub tokens: Arc<Tokens>,
    /// The stage of the process.
    pub readiness: Arc<Readiness>,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Largest body, in bytes.
    pub body_limit: usize,
    /// Longest time for a body.
    pub body_timeout: Duration,
    /// Longest time for a request.
    pub request_timeout: Duration,
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/user/register", post(users::register))
        .route("/login", post(users::login))
        .route("/dialog/{user_id}/send", post(dialogs::send))
        .route("/dialog/{user_id}/list", get(dialogs::list))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe::gate));
    Router::new()
        .merge(api)
        .route("/health", get(operations::health))
        .route("/ready", get(operations::ready))
        .route("/metrics", get(operations::metrics))
        .fallback(operations::no_such_path)
        .method_not_allowed_fallback(operations::no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe::observe))
        .with_state(app)
}
