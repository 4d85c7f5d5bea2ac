//! `GET /dialogs`, `POST /dialog/{user_id}/read` and `GET /dialog/{user_id}/unread`.

use axum::{
    Json as JsonResponse,
    response::{AppendHeaders, IntoResponse},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    ApiError,
    dialogs::{DialogMessage, NEXT_CURSOR},
    extract::{Caller, OptionalJson, Query, Serving, UserInPath},
    openapi::WithToken,
};
use crate::dialogs::marks::Standing as Marks;

/// Dialogs in one page, if nothing is said.
const PAGE: u16 = 20;
/// Most dialogs in one page.
const PAGE_LIMIT: u16 = 100;
/// Dialogs of a page that are looked at at a time.
const CONCURRENCY: usize = 16;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct InboxParameters {
    /// Dialogs in the page; 20 if nothing is said.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u16>,
    /// `X-Next-Cursor` of the page before.
    #[param(nullable = false)]
    cursor: Option<Uuid>,
}

/// A dialog of the caller.
#[derive(Serialize, ToSchema)]
pub(super) struct InboxDialog {
    /// The other.
    user_id: Uuid,
    last_message: DialogMessage,
    /// The other's messages behind the mark; 100 stands for as many or more.
    #[schema(maximum = 100)]
    unread: usize,
}

/// One's dialogs, the one with the newest message first
#[utoipa::path(
    get, path = "/dialogs", tag = "dialogs", operation_id = "listDialogs",
    security(("bearerAuth" = [])),
    params(InboxParameters),
    responses(
        (status = 200, description = "A page of the dialogs", body = [InboxDialog], headers(
            ("X-Next-Cursor" = Uuid, description = "The cursor of the next page; absent on the last")
        )),
        WithToken
    )
)]
pub(super) async fn list(
    Serving(app): Serving,
    Caller(reader): Caller,
    Query(parameters): Query<InboxParameters>,
) -> Result<impl IntoResponse, ApiError> {
    let limit = parameters.limit.unwrap_or(PAGE);
    if limit == 0 || limit > PAGE_LIMIT {
        return Err(ApiError::bad_request(format!("limit is {limit}, it can be 1 to {PAGE_LIMIT}")));
    }
    let entries = app.inbox.list(reader, parameters.cursor.unwrap_or(Uuid::max()), limit).await?;
    let next = entries.last().filter(|_| entries.len() == usize::from(limit));
    let next = next.map(|entry| (NEXT_CURSOR, entry.last_message.to_string()));
    // Message and count are read where they are written, so that they are never old.
    let dialogs: Vec<InboxDialog> = stream::iter(entries)
        .map(async |entry| {
            let (newest, standing) = app.dialogs.glance(reader, entry.peer).await?;
            Ok::<_, ApiError>(newest.map(|message| InboxDialog {
                user_id: entry.peer,
                last_message: message.into(),
                unread: standing.unread,
            }))
        })
        .buffered(CONCURRENCY)
        .try_filter_map(async |dialog| Ok(dialog))
        .try_collect()
        .await?;
    Ok((AppendHeaders(next), JsonResponse(dialogs)))
}

/// How a dialog stands for the caller.
#[derive(Serialize, ToSchema)]
pub(super) struct Standing {
    /// The other's messages behind the mark; 100 stands for as many or more.
    #[schema(maximum = 100)]
    unread: usize,
    /// The last message that the caller has read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    last_read_id: Option<Uuid>,
    /// The last message that the other has read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    peer_last_read_id: Option<Uuid>,
}

impl From<Marks> for Standing {
    fn from(marks: Marks) -> Self {
        let Marks { unread, last_read, peer_last_read } = marks;
        Self { unread, last_read_id: last_read, peer_last_read_id: peer_last_read }
    }
}

/// How far the caller has read.
#[derive(Default, Deserialize, ToSchema)]
pub(super) struct ReadRequest {
    /// Everything up to this message; up to the newest if nothing is said.
    message_id: Option<Uuid>,
}

/// Note how far one has read
///
/// The mark never goes back.
#[utoipa::path(
    post, path = "/dialog/{user_id}/read", tag = "dialogs", operation_id = "markRead",
    security(("bearerAuth" = [])),
    params(("user_id" = Uuid, Path, description = "The other user's id")),
    request_body = Option<ReadRequest>,
    responses((status = 200, description = "How the dialog stands now", body = Standing), WithToken)
)]
pub(super) async fn read(
    Serving(app): Serving,
    Caller(reader): Caller,
    UserInPath(peer): UserInPath,
    OptionalJson(request): OptionalJson<ReadRequest>,
) -> Result<JsonResponse<Standing>, ApiError> {
    Ok(JsonResponse(app.dialogs.mark_read(reader, peer, request.message_id).await?.into()))
}

/// How much is unread
#[utoipa::path(
    get, path = "/dialog/{user_id}/unread", tag = "dialogs", operation_id = "unread",
    security(("bearerAuth" = [])),
    params(("user_id" = Uuid, Path, description = "The other user's id")),
    responses((status = 200, description = "How the dialog stands", body = Standing), WithToken)
)]
pub(super) async fn unread(
    Serving(app): Serving,
    Caller(reader): Caller,
    UserInPath(peer): UserInPath,
) -> Result<JsonResponse<Standing>, ApiError> {
    Ok(JsonResponse(app.dialogs.standing(reader, peer).await?.into()))
}
