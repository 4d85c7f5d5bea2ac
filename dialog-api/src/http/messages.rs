//! `PATCH` and `DELETE /dialog/{user_id}/messages/{message_id}`.

use axum::Json as JsonResponse;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    ApiError,
    dialogs::DialogMessage,
    error::Body,
    extract::{Caller, Json, MessageInPath, Serving},
    openapi::WithToken,
};

/// What the message should say.
#[derive(Deserialize, ToSchema)]
pub(super) struct EditRequest {
    #[schema(min_length = 1, max_length = 4096)]
    text: String,
}

/// Change a message of one's own
#[utoipa::path(
    patch, path = "/dialog/{user_id}/messages/{message_id}", tag = "dialogs", operation_id = "editMessage",
    security(("bearerAuth" = [])),
    params(
        ("user_id" = Uuid, Path, description = "The other user's id"),
        ("message_id" = Uuid, Path, description = "The message's id")
    ),
    request_body = EditRequest,
    responses(
        (status = 200, description = "The message with its new text", body = DialogMessage),
        (status = 403, description = "Somebody else wrote the message", body = Body),
        (status = 404, description = "There is no such message in the dialog", body = Body),
        (status = 410, description = "The message was deleted", body = Body),
        WithToken
    )
)]
pub(super) async fn edit(
    Serving(app): Serving,
    Caller(author): Caller,
    MessageInPath { peer, message }: MessageInPath,
    Json(request): Json<EditRequest>,
) -> Result<JsonResponse<DialogMessage>, ApiError> {
    let message = app.dialogs.edit(author, peer, message, &request.text).await?;
    Ok(JsonResponse(message.into()))
}

/// Delete a message of one's own
///
/// A tombstone stays: the message without its text, with `deleted_at`.
#[utoipa::path(
    delete, path = "/dialog/{user_id}/messages/{message_id}", tag = "dialogs", operation_id = "deleteMessage",
    security(("bearerAuth" = [])),
    params(
        ("user_id" = Uuid, Path, description = "The other user's id"),
        ("message_id" = Uuid, Path, description = "The message's id")
    ),
    responses(
        (status = 204, description = "It is deleted, perhaps since before"),
        (status = 403, description = "Somebody else wrote the message", body = Body),
        (status = 404, description = "There is no such message in the dialog", body = Body),
        WithToken
    )
)]
pub(super) async fn delete(
    Serving(app): Serving,
    Caller(author): Caller,
    MessageInPath { peer, message }: MessageInPath,
) -> Result<StatusCode, ApiError> {
    app.dialogs.delete(author, peer, message).await?;
    Ok(StatusCode::NO_CONTENT)
}
