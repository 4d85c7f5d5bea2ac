//! `GET /dialog/{user_id}/stream`: server-sent events.

use std::{sync::Arc, time::Duration};

use axum::response::{
    IntoResponse,
    sse::{Event, KeepAlive, Sse},
};
use futures::stream;
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    ApiError,
    dialogs::DialogMessage,
    error::Body,
    extract::{Query, Serving, Session, UserInPath},
    openapi::WithToken,
};
use crate::{
    dialogs::pair::Pair,
    streams::follow::{Follower, Position},
};

/// Where a client was when its connection broke.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// After this long without a message a comment shows proxies, and us, that the connection works.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// By how much a position may be from the future without being looked for: replicas ask for the time now and then.
const CLOCKS: Duration = Duration::from_mins(1);
/// How long clients should wait before they connect again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamParameters {
    /// The same as the header, for clients that cannot set it.
    #[param(nullable = false)]
    last_event_id: Option<String>,
}

/// A dialog's messages as they are written
///
/// From now on, or from where the client was. Each is an event `message`, whose `data` is the message as lists have it;
/// it comes again when it is changed or deleted.
#[utoipa::path(
    get, path = "/dialog/{user_id}/stream", tag = "dialogs", operation_id = "streamMessages",
    security(("bearerAuth" = [])),
    params(
        ("user_id" = Uuid, Path, description = "The other user's id"),
        ("Last-Event-ID" = Option<String>, Header, nullable = false,
            description = "The id of the last event, or message, that the client has"),
        StreamParameters
    ),
    responses(
        (status = 200, description = "Server-sent events", body = String, content_type = "text/event-stream"),
        (status = 429, description = "This user has too many streams open", body = Body, headers(
            ("Retry-After" = u32, description = "Seconds to wait")
        )),
        WithToken
    )
)]
pub(super) async fn stream(
    Serving(app): Serving,
    Session { user: reader, until }: Session,
    UserInPath(peer): UserInPath,
    Query(parameters): Query<StreamParameters>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    let last = match headers.get(LAST_EVENT_ID) {
        Some(header) => Some(header.to_str().unwrap_or("?").to_owned()),
        None => parameters.last_event_id,
    };
    let position = last
        .map(|text| Position::parse(&text).ok_or("Last-Event-ID is no id of an event or a message"))
        .transpose()
        .map_err(ApiError::bad_request)?;
    let now = u128::try_from(app.clock.now().as_millisecond()).unwrap_or_default();
    if let Some(position) = position
        && position.milliseconds() > now + CLOCKS.as_millis()
        // Who waits for the future waits in vain, unless it has been: the clock may have been set back since.
        && app.dialogs.get(reader, peer, position.message()).await?.is_none()
    {
        return Err(ApiError::bad_request("Last-Event-ID lies in the future"));
    }
    let listener = app.streams.listen(Pair::new(reader, peer).dialog_id(), reader)?;
    let follower = Follower::new(Arc::clone(&app.dialogs), listener, (reader, peer), position).await?;
    let first = stream::iter([Ok(Event::default().retry(RETRY))]);
    // Whoever asks anything else after this time is refused as well.
    let may_read =
        move || until.is_none_or(|until| app.clock.now() < until) && !app.users.erased().contains(reader);
    let events = stream::unfold((follower, may_read), async |(mut follower, may_read)| {
        let (position, message) = follower.next(&may_read).await?;
        let event = Event::default()
            .event("message")
            .id(position.to_string())
            .json_data(DialogMessage::from(message));
        Some((event, (follower, may_read)))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(futures::StreamExt::chain(first, events)).keep_alive(keep_alive))
}
