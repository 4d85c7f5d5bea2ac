//! `GET /user/export` and `POST /user/erase`.

use std::{io, sync::Arc};

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiError, App, Problem,
    answer::Answer,
    dialogs::DialogMessage,
    extract::{Caller, Json, Serving},
    inbox::Standing,
    openapi::WithToken,
    users::User,
};
use crate::{
    dialogs::page::{PAGE_LIMIT, Range},
    users::UserError,
};

const NDJSON: &str = "application/x-ndjson";
/// Lines that wait for a slow client.
const AHEAD: usize = 8;
/// Exports at a time: with the longest messages they hold 64 pages, 100 MiB.
pub(crate) const EXPORTS: usize = 64;

/// A line of an export.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The first: who the user is.
    Profile(User),
    /// A dialog, followed by its messages, the newest first.
    Dialog(ExportedDialog),
    /// A message of the dialog, by either of the two.
    Message(DialogMessage),
}

/// A dialog in an export.
#[derive(Serialize, ToSchema)]
pub(super) struct ExportedDialog {
    /// The other.
    user_id: Uuid,
    #[serde(flatten)]
    standing: Standing,
}

/// All that is known of the caller
///
/// JSON, one object a line: the profile, then each dialog with its messages, archived ones included. The answer is as
/// long as what there is; if it breaks off, so does the connection. The password is stored as a hash alone, which is
/// left out.
#[utoipa::path(
    get, path = "/user/export", tag = "users", operation_id = "exportUser",
    security(("bearerAuth" = [])),
    responses(
        (status = 200, description = "Everything, a line each", body = Line, content_type = "application/x-ndjson"),
        WithToken
    )
)]
pub(super) async fn export(Serving(app): Serving, Caller(user): Caller) -> Result<Response, ApiError> {
    let place = Arc::clone(&app.exports)
        .try_acquire_owned()
        .map_err(|_| ApiError::unavailable(Problem::Overloaded, "too many exports at the moment", 5))?;
    let profile = app.users.get(user).await?.ok_or(UserError::Unknown)?;
    let (lines, received) = mpsc::channel(AHEAD);
    let export = Export { app, user, lines };
    tokio::spawn(async move {
        if let Err(error) = export.write(profile.into()).await {
            tracing::warn!(%user, error = %error, "an export was not finished");
            // Breaks the connection: what was sent is not everything.
            let _ = export.lines.send(Err(error)).await;
        }
    });
    let body = stream::unfold(received, async |mut received| Some((received.recv().await?, received)));
    let body = Body::new(Answer::new(Body::from_stream(body), place));
    Ok(([(header::CONTENT_TYPE, NDJSON)], body).into_response())
}

/// An export on its way.
struct Export {
    app: Arc<App>,
    user: Uuid,
    lines: mpsc::Sender<io::Result<Bytes>>,
}

impl Export {
    async fn write(&self, profile: User) -> io::Result<()> {
        self.line(&Line::Profile(profile)).await?;
        let mut after = Uuid::nil();
        loop {
            let page = self.app.inbox.all(self.user, after, PAGE_LIMIT).await.map_err(io::Error::other)?;
            for (_, peer) in &page {
                self.dialog(*peer).await?;
            }
            match page.last() {
                Some((last, _)) => after = *last,
                None => return Ok(()),
            }
        }
    }

    async fn dialog(&self, peer: Uuid) -> io::Result<()> {
        let dialogs = &self.app.dialogs;
        let standing = dialogs.standing(self.user, peer).await.map_err(io::Error::other)?.into();
        self.line(&Line::Dialog(ExportedDialog { user_id: peer, standing })).await?;
        let mut range = Range::default();
        loop {
            let page = dialogs.list(self.user, peer, range, PAGE_LIMIT).await.map_err(io::Error::other)?;
            for message in page.messages {
                self.line(&Line::Message(message.into())).await?;
            }
            match page.next {
                Some(next) => range = Range::Before(next),
                None => return Ok(()),
            }
        }
    }

    async fn line(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.lines.send(Ok(text.into())).await.map_err(|_| io::Error::other("the client has gone"))
    }
}

/// Who wants to be erased.
#[derive(Deserialize, ToSchema)]
pub(super) struct EraseRequest {
    /// A token alone is not enough for what cannot be taken back.
    #[schema(format = Password)]
    password: String,
}

/// Erase the caller
///
/// From now on the user does not exist: nobody can log in as them or write to them, and their tokens end; on other
/// replicas within a minute. What they wrote loses its text; that and the rest follow in the background, within a
/// quarter of an hour if all goes well. What others wrote to them stays with those. This cannot be taken back.
#[utoipa::path(
    post, path = "/user/erase", tag = "users", operation_id = "eraseUser",
    security(("bearerAuth" = [])),
    request_body = EraseRequest,
    responses((status = 202, description = "The user is being erased"), WithToken)
)]
pub(super) async fn erase(
    Serving(app): Serving,
    Caller(user): Caller,
    Json(request): Json<EraseRequest>,
) -> Result<StatusCode, ApiError> {
    match app.users.erase(user, request.password).await {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        // Since the caller was looked up.
        Err(UserError::Unknown) => {
            Err(ApiError::unauthorized("the user of this token does not exist any more"))
        }
        Err(error) => Err(error.into()),
    }
}
