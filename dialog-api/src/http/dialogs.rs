//! `POST /dialog/{user_id}/send` and `GET /dialog/{user_id}/list`.

use axum::{
    body::Body as AnswerBody,
    response::{AppendHeaders, IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    ApiError,
    error::Body,
    extract::{Caller, Json, Query, Serving, UserInPath},
    openapi::WithToken,
};
use crate::dialogs::{
    ClientId, Draft,
    page::{Message, PAGE_LIMIT, Page, Range},
};

/// The client's own id for what it sends, as the draft of the IETF calls it.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The id of the message that was sent.
const MESSAGE_ID: HeaderName = HeaderName::from_static("x-message-id");
/// Whether an earlier request had sent the message already.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Where the next page begins.
pub(super) const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

/// A message to send.
#[derive(Deserialize, ToSchema)]
pub(super) struct SendRequest {
    #[schema(min_length = 1, max_length = 4096)]
    text: String,
    /// The client's own id for the message: sending it again sends nothing twice. The same as `Idempotency-Key`.
    #[schema(min_length = 1, max_length = 255)]
    client_msg_id: Option<String>,
}

/// Send a message
///
/// It is durable when this is answered. There is no body; what there is to tell is in headers.
#[utoipa::path(
    post, path = "/dialog/{user_id}/send", tag = "dialogs", operation_id = "sendMessage",
    security(("bearerAuth" = [])),
    params(
        ("user_id" = Uuid, Path, description = "The recipient's id"),
        ("Idempotency-Key" = Option<String>, Header, nullable = false, min_length = 1, max_length = 255,
            pattern = "^[!-~]+$",
            description = "The client's own id for the message: sending it again sends nothing twice")
    ),
    request_body = SendRequest,
    responses(
        (status = 200, description = "Sent", headers(
            ("X-Message-Id" = Uuid, description = "The message's id"),
            ("Idempotent-Replayed" = bool, description = "Present if an earlier request had sent the message already")
        )),
        (status = 422, description = "The client's own id was used for a message with another text", body = Body),
        (status = 429, description = "Too many messages by this user, altogether or to this one", body = Body, headers(
            ("Retry-After" = u32, description = "Seconds to wait")
        )),
        WithToken
    )
)]
pub(super) async fn send(
    Serving(app): Serving,
    Caller(from): Caller,
    UserInPath(to): UserInPath,
    headers: HeaderMap,
    Json(request): Json<SendRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let client_id = client_id(&headers, request.client_msg_id.as_deref()).map_err(ApiError::bad_request)?;
    let sent = app.dialogs.send(Draft { from, to, text: &request.text, client_id }).await?;
    let mut headers = vec![(MESSAGE_ID, sent.id.to_string())];
    if sent.replayed {
        headers.push((REPLAYED, "true".to_owned()));
    }
    Ok(AppendHeaders(headers))
}

/// The client's own id for the message, from the header or the body.
fn client_id(headers: &HeaderMap, in_body: Option<&str>) -> Result<Option<ClientId>, String> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let in_header = given
        .next()
        .map(|value| value.to_str().map_err(|_| "Idempotency-Key is not visible ASCII".to_owned()))
        .transpose()?;
    if given.next().is_some() {
        return Err("Idempotency-Key is given twice".into());
    }
    match (in_header, in_body) {
        (Some(header), Some(body)) if header != body => {
            Err("Idempotency-Key and client_msg_id differ: give one of them".into())
        }
        (None, None) => Ok(None),
        (Some(text), _) | (None, Some(text)) => ClientId::new(text).map(Some),
    }
}

/// A message as the specification has it, with fields added.
#[derive(Serialize, ToSchema)]
pub(super) struct DialogMessage {
    from: Uuid,
    to: Uuid,
    text: String,
    /// A UUIDv7, rising with time.
    id: Uuid,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    edited_at: Option<Timestamp>,
    /// A deleted message keeps its place and has no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    deleted_at: Option<Timestamp>,
}

impl From<Message> for DialogMessage {
    fn from(message: Message) -> Self {
        let Message { id, from, to, text, created_at, edited_at, deleted_at } = message;
        Self { from, to, text, id, created_at, edited_at, deleted_at }
    }
}

#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParameters {
    /// Messages in the page; 100 if nothing is said.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u16>,
    /// Only messages older than this one. Excludes `after`.
    #[param(nullable = false)]
    before: Option<Uuid>,
    /// Only messages newer than this one, the oldest of them. Excludes `before`.
    #[param(nullable = false)]
    after: Option<Uuid>,
}

impl ListParameters {
    fn range(&self) -> Result<Range, ApiError> {
        match (self.before, self.after) {
            (None, None) => Ok(Range::default()),
            (Some(end), None) => Ok(Range::Before(end)),
            (None, Some(start)) => Ok(Range::After(start)),
            (Some(_), Some(_)) => Err(ApiError::bad_request("before and after exclude each other")),
        }
    }
}

/// A dialog's messages, the newest first
#[utoipa::path(
    get, path = "/dialog/{user_id}/list", tag = "dialogs", operation_id = "listMessages",
    security(("bearerAuth" = [])),
    params(("user_id" = Uuid, Path, description = "The other user's id"), ListParameters),
    responses(
        (status = 200, description = "A page of the dialog", body = [DialogMessage], headers(
            ("X-Next-Cursor" = Uuid, description = "Where the next page in the same direction begins; \
                going back it is absent on the last page")
        )),
        WithToken
    )
)]
pub(super) async fn list(
    serving: Serving,
    caller: Caller,
    peer: UserInPath,
    query: Query<ListParameters>,
) -> Result<Response, ApiError> {
    page(serving, caller, peer, query, HeaderMap::new()).await
}

/// A page of a dialog, with its headers in this map, which is empty.
pub(super) async fn page(
    Serving(app): Serving,
    Caller(reader): Caller,
    UserInPath(peer): UserInPath,
    Query(parameters): Query<ListParameters>,
    mut headers: HeaderMap,
) -> Result<Response, ApiError> {
    let limit = parameters.limit.unwrap_or(PAGE_LIMIT);
    let written = |page: Page<&str>| (page.next, super::page::json(&page.messages));
    let (next, json) = app.dialogs.show(reader, peer, parameters.range()?, limit, written).await?;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // The text of an id is a header in any case.
    if let Some(next) = next.and_then(|id| HeaderValue::try_from(id.to_string()).ok()) {
        headers.insert(NEXT_CURSOR, next);
    }
    let mut response = Response::new(AnswerBody::from(json));
    *response.headers_mut() = headers;
    Ok(response)
}
