//! `PATCH` and `DELETE /dialog/{user_id}/messages/{message_id}`.

use std::sync::Arc;

use axum::{Json as JsonResponse, extract::State};
use http::StatusCode;
use serde::Deserialize;

use super::{
    ApiError, App,
    dialogs::DialogMessage,
    extract::{Caller, Json, MessageInPath},
};

#[derive(Deserialize)]
pub(super) struct EditRequest {
    text: String,
}

/// The message with its new text.
pub(super) async fn edit(
    State(app): State<Arc<App>>,
    Caller(author): Caller,
    MessageInPath { peer, message }: MessageInPath,
    Json(request): Json<EditRequest>,
) -> Result<JsonResponse<DialogMessage>, ApiError> {
    let message = app.dialogs.edit(author, peer, message, &request.text).await?;
    Ok(JsonResponse(message.into()))
}

/// 204, also when it was deleted before.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Caller(author): Caller,
    MessageInPath { peer, message }: MessageInPath,
) -> Result<StatusCode, ApiError> {
    app.dialogs.delete(author, peer, message).await?;
    Ok(StatusCode::NO_CONTENT)
}
