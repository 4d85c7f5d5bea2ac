//! The two requests that clients make most, answered without the router's detours.
//!
//! On its way through the router and its layers a request is boxed, cloned and matched again and again, which was a
//! tenth of the processor time of a list. Here its path is matched by hand, and the same handler is called, surrounded
//! by the same ([`observe::surround`]). What is not of the plainest form is the router's.

use std::{mem, pin::pin, sync::Arc, time::Duration};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    extract::{FromRequest as _, FromRequestParts as _, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use uuid::Uuid;

use super::{
    ApiError, App,
    dialogs::{self, ListParameters},
    extract::{Caller, Json, Query, Serving, UserInPath},
    observe::{self, Asked},
    router,
};
use crate::metrics::{ByClass, RouteLabel};

/// Length of an id as it is mostly written; the other forms are longer or shorter.
const ID_LENGTH: usize = 36;
/// Statements of a list, one after the other: the page, its part in the archive, whether the peer exists.
const STATEMENTS_OF_A_LIST: u32 = 3;
/// Room for headers that a connection may keep while it is idle: that of an ordinary request.
const KEPT_HEADERS: usize = 32;

/// What answers requests.
pub struct Front {
    app: Arc<App>,
    router: TowerToHyperService<Router>,
    /// How long a list may take; nothing where its statements have ended by then in any case. A timer that never ends
    /// has its price, too.
    list_limit: Option<Duration>,
    sends: ByClass,
    lists: ByClass,
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
        let statements = STATEMENTS_OF_A_LIST * app.database.statement_limit();
        Self {
            router: TowerToHyperService::new(router(Arc::clone(&app))),
            list_limit: (statements > app.request_timeout).then_some(app.request_timeout),
            sends: ByClass::default(),
            lists: ByClass::default(),
            app,
        }
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
        let (limit, by_class) = match hot {
            Hot::Send { .. } => (Some(self.app.request_timeout), &self.sends),
            Hot::List { .. } => (self.list_limit, &self.lists),
        };
        let route = RouteLabel::Fixed(hot.route());
        let asked = Asked::new(request.headers(), request.method(), route, limit).counted_in(by_class);
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
    let query = match parts.uri.query() {
        None => Query(ListParameters::default()),
        Some(_) => Query::from_request_parts(&mut parts, app).await?,
    };
    // Nothing more is needed of the head. Let go before anything is waited for, the buffer in which it arrived takes the
    // next one, and the map of its headers takes those of the answer.
    let headers = emptied(mem::take(&mut parts.headers));
    drop(parts);
    dialogs::page(serving, caller, UserInPath(peer), query, headers).await
}

/// The same map for other headers, unless it is large: the connection keeps it for as long as it lives.
fn emptied(mut headers: HeaderMap) -> HeaderMap {
    if headers.capacity() > KEPT_HEADERS {
        return HeaderMap::new();
    }
    headers.clear();
    headers
}

#[cfg(test)]
mod tests {
    use http::header;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::{super::tests::app, *};

    #[test]
    fn a_large_map_of_headers_is_not_kept() {
        let of = |count: usize| -> HeaderMap {
            let name = |number| format!("x-{number}").parse::<header::HeaderName>().unwrap();
            (0..count).map(|number| (name(number), http::HeaderValue::from_static("1"))).collect()
        };
        let (usual, many) = (of(12), of(100));
        let capacity = usual.capacity();
        let (usual, many) = (emptied(usual), emptied(many));
        assert!(usual.is_empty() && many.is_empty());
        assert_eq!(usual.capacity(), capacity, "made anew for nothing");
        assert!(many.capacity() <= KEPT_HEADERS, "{}", many.capacity());
    }

    /// Status, headers and body. The length is hyper's to tell where the router did not.
    async fn read(response: Response) -> (http::StatusCode, HeaderMap, Bytes) {
        let (mut parts, body) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn what_is_answered_here_is_what_the_router_answers() {
        let app = app();
        let (front, router) = (Front::new(Arc::clone(&app)), router(Arc::clone(&app)));
        let id = Uuid::now_v7();
        let token = format!("Bearer {}", app.tokens.issue(id, app.clock.now()).unwrap());
        let ask = |method: &Method, path: &str, token: &str, body: &'static str| {
            http::Request::builder()
                .method(method)
                .uri(path)
                .header(header::AUTHORIZATION, token)
                .header("x-request-id", "seven")
                .body(Body::from(body))
                .unwrap()
        };
        let (list, send) = (format!("/dialog/{id}/list"), format!("/dialog/{id}/send"));
        let compare = async |method: Method, path: &str, token: &str, body, status: u16| {
            assert!(Hot::of(&method, path.split('?').next().unwrap()).is_some(), "{path}");
            let here = read(front.answer(ask(&method, path, token, body)).await).await;
            let there = router.clone().oneshot(ask(&method, path, token, body)).await.unwrap();
            assert_eq!(here, read(there).await, "{path} {body}");
            assert_eq!(here.0, status, "{path} {body} {here:?}");
        };
        compare(Method::GET, &list, &token, "", 503).await;
        compare(Method::POST, &send, &token, r#"{"text":"hello"}"#, 503).await;
        app.readiness.serving();
        compare(Method::GET, &list, "Bearer x", "", 401).await;
        compare(Method::POST, &send, "", r#"{"text":"hello"}"#, 401).await;
        compare(Method::GET, &format!("{list}?limit=0"), &token, "", 400).await;
        compare(Method::GET, &format!("{list}?before=x"), &token, "", 400).await;
        compare(Method::POST, &send, &token, r#"{"text":""}"#, 400).await;
        compare(Method::POST, &send, &token, "[]", 400).await;
        let text = app.metrics.render(0, 0, true).unwrap();
        let counted = r#"route="/dialog/{user_id}/send",method="POST",status="4xx"} 6"#;
        assert!(text.lines().any(|line| line.contains("_count{") && line.ends_with(counted)), "{text}");
    }

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
