//! `POST /dialog/{user_id}/send` and `GET /dialog/{user_id}/list`.

use std::sync::Arc;

use axum::{Json as JsonResponse, extract::State};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ApiError, App,
    extract::{Caller, Json, UserInPath},
};
use crate::dialogs::Message;

#[derive(Deserialize)]
pub(super) struct SendRequest {
    text: String,
}

/// 200 without a body, as the specification has it.
pub(super) async fn send(
    State(app): State<Arc<App>>,
    Caller(from): Caller,
    UserInPath(to): UserInPath,
    Json(request): Json<SendRequest>,
) -> Result<StatusCode, ApiError> {
    app.dialogs.send(from, to, &request.text).await?;
    Ok(StatusCode::OK)
}

/// A message as the specification has it, with fields added.
#[derive(Serialize)]
pub(super) struct DialogMessage {
    from: Uuid,
    to: Uuid,
    text: String,
    id: Uuid,
    created_at: Timestamp,
}

impl From<Message> for DialogMessage {
    fn from(message: Message) -> Self {
        let Message { id, from, to, text, created_at } = message;
        Self { from, to, text, id, created_at }
    }
}

/// The newest messages as a bare array, newest first.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(reader): Caller,
    UserInPath(peer): UserInPath,
) -> Result<JsonResponse<Vec<DialogMessage>>, ApiError> {
    let messages = app.dialogs.list(reader, peer).await?;
    Ok(JsonResponse(messages.into_iter().map(DialogMessage::from).collect()))
}
