//! The two requests that clients make most, answered without the router's detours.
//!
//! On its way through the router and its layers a request is boxed, cloned and matched again and again, which takes as
//! much processor time as reading it and writing the answer. Here its path is matched by hand, and the same handler is
//! called, surrounded by the same ([`observe::surround`]). What is not of the plainest form is the router's.

use std::{pin::pin, sync::Arc};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    extract::{FromRequest as _, FromRequestParts as _, Request},
    response::{IntoResponse, Response},
};
use http::Method;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use uuid::Uuid;

use super::{
    ApiError, App, dialogs,
    extract::{Caller, Json, Query, Serving, UserInPath},
    observe::{self, Asked},
    router,
};
use crate::metrics::RouteLabel;

/// Length of an id as it is mostly written; the other forms are longer or shorter.
const ID_LENGTH: usize = 36;

/// What answers requests.
pub struct Front {
    app: Arc<App>,
    router: TowerToHyperService<Router>,
}

/// A request that is answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hot {
    Send { to: Uuid },
    List { peer: Uuid },
}

impl Front {
    /// Answers for this application.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { router: TowerToHyperService::new(router(Arc::clone(&app))), app }
    }

    /// Answers a request.
    pub(super) async fn answer<B>(&self, request: http::Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let Some(hot) = Hot::of(request.method(), request.uri().path()) else {
            // The router fails at nothing. Boxed, since what is rare need not make room for itself in all others.
            return match Box::pin(self.router.call(request)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
        };
        let asked = Asked::new(request.headers(), request.method(), RouteLabel::Fixed(hot.route()));
        // Pinned here: in the hands of what surrounds it, it would be copied at every step, kilobytes each time.
        let handled = pin!(async {
            match hot {
                Hot::Send { to } => send(&self.app, to, request).await,
                Hot::List { peer } => list(&self.app, peer, request).await,
            }
            .unwrap_or_else(ApiError::into_response)
        });
        observe::surround(&self.app, asked, handled).await
    }
}

impl Hot {
    fn of(method: &Method, path: &str) -> Option<Self> {
        let (id, what) = path.strip_prefix("/dialog/")?.split_once('/')?;
        let id = Uuid::try_parse(id).ok().filter(|_| id.len() == ID_LENGTH)?;
        match (method, what) {
            (&Method::POST, "send") => Some(Self::Send { to: id }),
            (&Method::GET, "list") => Some(Self::List { peer: id }),
            _ => None,
        }
    }

    /// As the router knows it.
    fn route(self) -> &'static str {
        match self {
            Self::Send { .. } => "/dialog/{user_id}/send",
            Self::List { .. } => "/dialog/{user_id}/list",
        }
    }
}

async fn send<B>(app: &Arc<App>, to: Uuid, request: http::Request<B>) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (mut parts, body) = request.into_parts();
    let serving = Serving::from_request_parts(&mut parts, app).await?;
    let caller = Caller::from_request_parts(&mut parts, app).await?;
    let headers = parts.headers.clone();
    let json = Json::from_request(Request::from_parts(parts, Body::new(body)), app).await?;
    dialogs::send(serving, caller, UserInPath(to), headers, json).await.map(IntoResponse::into_response)
}

async fn list<B>(app: &Arc<App>, peer: Uuid, request: http::Request<B>) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let serving = Serving::from_request_parts(&mut parts, app).await?;
    let caller = Caller::from_request_parts(&mut parts, app).await?;
    let query = Query::from_request_parts(&mut parts, app).await?;
    dialogs::list(serving, caller, UserInPath(peer), query).await.map(IntoResponse::into_response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plainest_form_is_answered_here() {
        let id = "01a2006d-7838-7580-9039-624962813ac6";
        let uuid = Uuid::try_parse(id).unwrap();
        let of = |method: Method, path: String| Hot::of(&method, &path);
        assert_eq!(of(Method::GET, format!("/dialog/{id}/list")), Some(Hot::List { peer: uuid }));
        assert_eq!(of(Method::POST, format!("/dialog/{id}/send")), Some(Hot::Send { to: uuid }));
        for (method, path) in [
            (Method::HEAD, format!("/dialog/{id}/list")),
            (Method::POST, format!("/dialog/{id}/list")),
            (Method::GET, format!("/dialog/{id}/send")),
            (Method::GET, format!("/dialog/{id}/list/")),
            (Method::GET, format!("/dialog/{id}/list/more")),
            (Method::GET, format!("/dialog//{id}/list")),
            (Method::GET, format!("/dialog/{id}")),
            (Method::GET, format!("/dialog/{}/list", uuid.simple())),
            (Method::GET, format!("/dialog/{}/list", uuid.braced())),
            (Method::GET, format!("/dialog/%30{}/list", &id[1..])),
            (Method::GET, format!("/Dialog/{id}/list")),
            (Method::GET, "/dialog/x/list".to_owned()),
        ] {
            assert_eq!(of(method, path.clone()), None, "{path}");
        }
    }
}
