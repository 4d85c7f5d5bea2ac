//! `GET /dialogs`, `POST /dialog/{user_id}/read` and `GET /dialog/{user_id}/unread`.

use std::sync::Arc;

use axum::{
    Json as JsonResponse,
    extract::State,
    response::{AppendHeaders, IntoResponse},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ApiError, App,
    dialogs::{DialogMessage, NEXT_CURSOR},
    extract::{Caller, OptionalJson, Query, UserInPath},
};
use crate::dialogs::marks::Standing as Marks;

/// Dialogs in one page, if nothing is said.
const PAGE: u16 = 20;
/// Most dialogs in one page.
const PAGE_LIMIT: u16 = 100;
/// Dialogs of a page that are looked at at a time.
const CONCURRENCY: usize = 16;

#[derive(Deserialize)]
pub(super) struct InboxParameters {
    limit: Option<u16>,
    cursor: Option<Uuid>,
}

/// A dialog of the caller.
#[derive(Serialize)]
pub(super) struct InboxDialog {
    user_id: Uuid,
    last_message: DialogMessage,
    unread: usize,
}

/// The caller's dialogs as a bare array, the one with the newest message first.
pub(super) async fn list(
    State(app): State<Arc<App>>,
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
#[derive(Serialize)]
pub(super) struct Standing {
    unread: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_read_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_last_read_id: Option<Uuid>,
}

impl From<Marks> for Standing {
    fn from(marks: Marks) -> Self {
        let Marks { unread, last_read, peer_last_read } = marks;
        Self { unread, last_read_id: last_read, peer_last_read_id: peer_last_read }
    }
}

#[derive(Default, Deserialize)]
pub(super) struct ReadRequest {
    message_id: Option<Uuid>,
}

/// Everything up to a message was read, or everything there is.
pub(super) async fn read(
    State(app): State<Arc<App>>,
    Caller(reader): Caller,
    UserInPath(peer): UserInPath,
    OptionalJson(request): OptionalJson<ReadRequest>,
) -> Result<JsonResponse<Standing>, ApiError> {
    Ok(JsonResponse(app.dialogs.mark_read(reader, peer, request.message_id).await?.into()))
}

/// How much is unread.
pub(super) async fn unread(
    State(app): State<Arc<App>>,
    Caller(reader): Caller,
    UserInPath(peer): UserInPath,
) -> Result<JsonResponse<Standing>, ApiError> {
    Ok(JsonResponse(app.dialogs.standing(reader, peer).await?.into()))
}
