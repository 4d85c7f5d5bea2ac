//! `POST /dialog/{user_id}/send` and `GET /dialog/{user_id}/list`.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{AppendHeaders, IntoResponse},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ApiError, App,
    extract::{Caller, Json, Query, UserInPath},
};
use crate::dialogs::{
    ClientId, Draft,
    page::{Message, PAGE_LIMIT, Range},
};

/// The client's own id for what it sends, as the draft of the IETF calls it.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The id of the message that was sent.
const MESSAGE_ID: HeaderName = HeaderName::from_static("x-message-id");
/// Whether an earlier request had sent the message already.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Where the next page begins.
pub(super) const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

#[derive(Deserialize)]
pub(super) struct SendRequest {
    text: String,
    client_msg_id: Option<String>,
}

/// 200 without a body, as the specification has it; what there is to tell is in headers.
pub(super) async fn send(
    State(app): State<Arc<App>>,
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
    let in_header = headers
        .get(IDEMPOTENCY_KEY)
        .map(|value| value.to_str().map_err(|_| "Idempotency-Key is not visible ASCII".to_owned()))
        .transpose()?;
    match (in_header, in_body) {
        (Some(header), Some(body)) if header != body => {
            Err("Idempotency-Key and client_msg_id differ: give one of them".into())
        }
        (None, None) => Ok(None),
        (Some(text), _) | (None, Some(text)) => ClientId::new(text).map(Some),
    }
}

/// A message as the specification has it, with fields added.
#[derive(Serialize)]
pub(super) struct DialogMessage {
    from: Uuid,
    to: Uuid,
    text: String,
    id: Uuid,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    edited_at: Option<Timestamp>,
    /// A deleted message keeps its place and has no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<Timestamp>,
}

impl From<Message> for DialogMessage {
    fn from(message: Message) -> Self {
        let Message { id, from, to, text, created_at, edited_at, deleted_at } = message;
        Self { from, to, text, id, created_at, edited_at, deleted_at }
    }
}

#[derive(Deserialize)]
pub(super) struct ListParameters {
    limit: Option<u16>,
    before: Option<Uuid>,
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

/// Messages as a bare array, newest first.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(reader): Caller,
    UserInPath(peer): UserInPath,
    Query(parameters): Query<ListParameters>,
) -> Result<impl IntoResponse, ApiError> {
    let limit = parameters.limit.unwrap_or(PAGE_LIMIT);
    let page = app.dialogs.list(reader, peer, parameters.range()?, limit).await?;
    let next = page.next.map(|id| (NEXT_CURSOR, id.to_string()));
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((AppendHeaders(next), json, super::page::json(&page.messages)))
}
