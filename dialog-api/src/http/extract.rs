//! What handlers take from a request. Whatever is wrong with it is a 400 or 401 with a sentence, never one of
//! the framework's own answers, which the specification does not know.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Path, Request},
};
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, header, request::Parts};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use uuid::Uuid;

use super::{ApiError, App, Problem};

/// A body up to this size, in bytes, is taken in any case. Of larger ones only [`LARGE_BODIES`] are held at a time.
const LARGE_BODY: usize = 4 * 1024;
/// Larger bodies held at a time: with the default limit of a body 64 MiB, however many clients there are.
pub(crate) const LARGE_BODIES: usize = 1_024;
/// Who the client says it is, where the configuration allows to believe it.
const USER_HEADER: HeaderName = HeaderName::from_static("x-user-id");

/// What handlers of the API work with. Until the schema is ready their requests are turned away.
pub(super) struct Serving(pub(super) Arc<App>);

impl FromRequestParts<Arc<App>> for Serving {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        if app.readiness.handles_requests() {
            Ok(Self(Arc::clone(app)))
        } else {
            Err(ApiError::unavailable(Problem::Starting, "the service is starting", 1))
        }
    }
}

/// The user whose token came with the request.
pub(super) struct Caller(pub(super) Uuid);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        Session::from_request_parts(parts, app).await.map(|session| Self(session.user))
    }
}

/// The user whose token came with the request, for answers that may last longer than the token.
pub(super) struct Session {
    pub(super) user: Uuid,
    /// When the token ends, if there is one.
    pub(super) until: Option<Timestamp>,
}

impl FromRequestParts<Arc<App>> for Session {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        if app.trust_user_header
            && !parts.headers.contains_key(header::AUTHORIZATION)
            && let Some(claimed) = parts.headers.get(USER_HEADER)
        {
            let claimed = claimed.to_str().unwrap_or_default();
            let user = user_id("X-User-Id", claimed)?;
            return Self::existing(app, user, None);
        }
        let token = bearer(&parts.headers)
            .ok_or_else(|| ApiError::unauthorized("a token is needed: Authorization: Bearer TOKEN"))?;
        let verified = app
            .tokens
            .verify(token, app.clock.now())
            .map_err(|error| ApiError::unauthorized(&error.to_string()))?;
        Self::existing(app, verified.user, Some(verified.until))
    }
}

impl Session {
    fn existing(app: &App, user: Uuid, until: Option<Timestamp>) -> Result<Self, ApiError> {
        if app.users.erased().contains(user) {
            return Err(ApiError::unauthorized("the user of this token does not exist any more"));
        }
        Ok(Self { user, until })
    }
}

/// The token of `Authorization: Bearer TOKEN`; the scheme's case does not matter.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The user named in the path.
pub(super) struct UserInPath(pub(super) Uuid);

impl FromRequestParts<Arc<App>> for UserInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, app)
            .await
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
        user_id("the user in the path", &text).map(Self)
    }
}

/// The parameters behind the question mark.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        // The decoder of forms would put a replacement in place of what is no text.
        let text = percent_decode_str(parts.uri.query().unwrap_or_default()).decode_utf8();
        if text.is_err() {
            return Err(ApiError::bad_request("the query is not UTF-8"));
        }
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(parameters)| Self(parameters))
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))
    }
}

/// Reads a user's id.
pub(super) fn user_id(field: &str, text: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(text).map_err(|_| ApiError::bad_request(format!("{field} is not the id of a user")))
}

/// The user and the message named in the path.
pub(super) struct MessageInPath {
    pub(super) peer: Uuid,
    pub(super) message: Uuid,
}

impl FromRequestParts<Arc<App>> for MessageInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Path((peer, message)) = Path::<(String, String)>::from_request_parts(parts, app)
            .await
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
        let message = Uuid::try_parse(&message)
            .map_err(|_| ApiError::bad_request("the message in the path is not the id of a message"))?;
        Ok(Self { peer: user_id("the user in the path", &peer)?, message })
    }
}

/// A JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        parse(&read(request, app).await?).map(Self)
    }
}

/// A JSON body, or none.
pub(super) struct OptionalJson<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<App>> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let kind = require_json(request.headers());
        let bytes = read(request, app).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        kind?;
        parse(&bytes).map(Self)
    }
}

/// The whole body.
async fn read(request: Request, app: &App) -> Result<Bytes, ApiError> {
    timeout(app.body_timeout, collect(request.into_body(), app))
        .await
        .map_err(|_| ApiError::bad_request("the body did not arrive in time"))?
}

async fn collect(mut body: Body, app: &App) -> Result<Bytes, ApiError> {
    let mut whole = Bytes::new();
    let mut large = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::bad_request("the body did not arrive as announced"))?;
        // Trailers say nothing that is wanted here.
        let Ok(more) = frame.into_data() else { continue };
        let length = whole.len() + more.len();
        if length > app.body_limit {
            return Err(ApiError::bad_request(format!("the body is larger than {} bytes", app.body_limit)));
        }
        if length > LARGE_BODY && large.is_none() {
            let place = app.large_bodies.try_acquire();
            large = Some(place.map_err(|_| {
                ApiError::unavailable(Problem::Overloaded, "too many large bodies at the moment", 1)
            })?);
        }
        // Most bodies arrive whole, and stay where they arrived.
        whole = if whole.is_empty() { more } else { join(whole, &more) };
    }
    Ok(whole)
}

/// Two parts of a body as one.
fn join(whole: Bytes, more: &[u8]) -> Bytes {
    let mut joined = whole.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    joined.extend_from_slice(more);
    joined.freeze()
}

/// Reads an object. What it is read into could be read from an array of its fields as well, which nobody means.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::bad_request("the body must be a JSON object"));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not what is expected: {error}")))
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_json(headers) {
        Ok(())
    } else {
        Err(ApiError::bad_request("the body must be JSON, with Content-Type: application/json"))
    }
}

/// Whether the content type is JSON in a wider sense: `application/json`, `application/json-patch+json`, which
/// some generated clients send, and any other `application/*+json`. No content type at all passes as well.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/").is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn json_has_many_names() {
        for value in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON",
            "application/json-patch+json",
            "application/problem+json;x=y",
        ] {
            assert!(is_json(&with(header::CONTENT_TYPE, value)), "{value}");
        }
        assert!(is_json(&HeaderMap::new()));
        for value in ["text/plain", "application/x-www-form-urlencoded", "text/json", "json", ""] {
            assert!(!is_json(&with(header::CONTENT_TYPE, value)), "{value}");
        }
    }

    #[test]
    fn the_token_is_found_behind_its_scheme() {
        assert_eq!(bearer(&with(header::AUTHORIZATION, "Bearer abc")), Some("abc"));
        assert_eq!(bearer(&with(header::AUTHORIZATION, "bearer  abc ")), Some("abc"));
        assert_eq!(bearer(&with(header::AUTHORIZATION, "Basic abc")), None);
        assert_eq!(bearer(&with(header::AUTHORIZATION, "abc")), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
