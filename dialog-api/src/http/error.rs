//! What goes wrong, as clients see it: a status, a JSON body, and `Retry-After` where trying again helps.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    database::error::DatabaseError,
    dialogs::DialogError,
    passwords::PasswordError,
    streams::TooManyStreams,
    users::{SearchError, UserError},
};

/// What went wrong; the number is the `code` of the body and never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Problem {
    /// A bug: a panic or something that cannot be.
    Internal = 1000,
    /// The database is not available.
    DatabaseUnavailable = 1001,
    /// The schema is not ready yet.
    Starting = 1002,
    /// Too many logins, registrations or exports at the moment.
    Overloaded = 1003,
    /// The request took too long.
    TimedOut = 1004,
    /// Too many streams are open.
    TooManyStreams = 1005,
    /// Too much waits to be taken by slow clients.
    SlowClients = 1006,
    /// The request is not understood or not allowed.
    BadRequest = 2000,
    /// The token is missing or not valid.
    Unauthorized = 2001,
    /// The password is wrong.
    WrongPassword = 2002,
    /// There is no such user.
    UnknownUser = 2003,
    /// There is no such path.
    UnknownPath = 2004,
    /// The path does not know this method.
    UnknownMethod = 2005,
    /// The client's own id for a message was used for another text.
    OtherText = 2006,
    /// There is no such message in the dialog.
    UnknownMessage = 2007,
    /// Somebody else wrote the message.
    NotTheAuthor = 2008,
    /// The message was deleted.
    Deleted = 2009,
    /// The sender sends too much.
    TooMany = 2010,
    /// The reader has too many streams open.
    TooManyStreamsOfReader = 2011,
}

/// An error on its way to the client. The body is written where the request's id is known (`observe`).
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    problem: Problem,
    message: String,
    /// For the log, not for the client.
    detail: Option<String>,
    retry_after: Option<u32>,
}

/// The JSON body of every error, as the specification has it for 5xx.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct Body<'a> {
    /// What went wrong, for people.
    message: &'a str,
    /// The request's id, as in the header `X-Request-Id` and in the log.
    request_id: &'a str,
    /// What went wrong, for programs; never changes its meaning.
    code: u16,
}

impl ApiError {
    fn new(status: StatusCode, problem: Problem, message: impl Into<String>) -> Self {
        Self { status, problem, message: message.into(), detail: None, retry_after: None }
    }

    /// 400: what the client sent is not understood or not allowed; the message says why.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Problem::BadRequest, message)
    }

    /// 401: no token, or none that is valid.
    pub(super) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Problem::Unauthorized, message)
    }

    /// 404 or 405, outside of the specification.
    pub(super) fn no_route(status: StatusCode, problem: Problem, message: &str) -> Self {
        Self::new(status, problem, message)
    }

    /// 503: trying again after this many seconds makes sense.
    pub(super) fn unavailable(problem: Problem, message: &str, retry_after: u32) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, problem, message)
        }
    }

    /// 500: a bug. The detail is logged and not shown.
    pub(super) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Problem::Internal, "internal error").with_detail(detail)
    }

    fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What is logged beside the request's id.
    pub(super) fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The response with its body.
    pub(super) fn respond(&self, request_id: &str) -> Response {
        let body = Body { message: &self.message, request_id, code: self.problem as u16 };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Seconds for `Retry-After`, which knows only whole ones: rounded up, so that who waits is not refused again.
fn whole_seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

/// Hands the error on to `observe`, which knows the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<DatabaseError> for ApiError {
    fn from(error: DatabaseError) -> Self {
        if error.is_bad_value() {
            return Self::bad_request("the database does not accept a value of this request")
                .with_detail(error.to_string());
        }
        match error {
            DatabaseError::Unavailable(detail) => {
                Self::unavailable(Problem::DatabaseUnavailable, "the database is not available", 1)
                    .with_detail(detail)
            }
            DatabaseError::Refused(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Overloaded => {
                Self::unavailable(Problem::Overloaded, "too many logins at the moment", 2)
            }
            PasswordError::Failed(detail) => Self::internal(detail),
        }
    }
}

impl From<UserError> for ApiError {
    fn from(error: UserError) -> Self {
        match error {
            UserError::Unknown => Self::new(StatusCode::NOT_FOUND, Problem::UnknownUser, error.to_string()),
            // The specification knows no 401 here.
            UserError::WrongPassword => {
                Self::new(StatusCode::BAD_REQUEST, Problem::WrongPassword, error.to_string())
            }
            UserError::Password(error) => error.into(),
            UserError::Database(error) => error.into(),
            UserError::Token(error) => Self::internal(error.to_string()),
        }
    }
}

impl From<TooManyStreams> for ApiError {
    fn from(error: TooManyStreams) -> Self {
        match error {
            TooManyStreams::Here => Self::unavailable(Problem::TooManyStreams, &error.to_string(), 5),
            TooManyStreams::OfReader => Self {
                retry_after: Some(5),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, Problem::TooManyStreamsOfReader, error.to_string())
            },
        }
    }
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::BadName(message) => Self::bad_request(message),
            SearchError::Database(error) => error.into(),
        }
    }
}

impl From<DialogError> for ApiError {
    fn from(error: DialogError) -> Self {
        match error {
            DialogError::BadText(message) | DialogError::BadRange(message) => Self::bad_request(message),
            DialogError::TooMany(wait) => Self {
                retry_after: Some(whole_seconds(wait)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, Problem::TooMany, error.to_string())
            },
            DialogError::UnknownMessage => {
                Self::new(StatusCode::NOT_FOUND, Problem::UnknownMessage, error.to_string())
            }
            DialogError::NotTheAuthor => {
                Self::new(StatusCode::FORBIDDEN, Problem::NotTheAuthor, error.to_string())
            }
            DialogError::Deleted => Self::new(StatusCode::GONE, Problem::Deleted, error.to_string()),
            DialogError::OtherText => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, Problem::OtherText, error.to_string())
            }
            // The specification knows no 404 for dialogs.
            DialogError::UnknownPeer => {
                Self::new(StatusCode::BAD_REQUEST, Problem::UnknownUser, error.to_string())
            }
            DialogError::Collision(_) | DialogError::Vanished(_) => Self::internal(error.to_string()),
            DialogError::Database(error) => error.into(),
        }
    }
}
