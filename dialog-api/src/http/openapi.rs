//! The description of the API, made from the code of its handlers: `GET /openapi.json`, and `GET /docs` to browse it.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::Path,
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use http::header;
use utoipa::{
    IntoResponses, Modify, OpenApi, PartialSchema,
    openapi::{
        Content, Header, HeaderBuilder, Ref, RefOr, ResponseBuilder,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_swagger_ui::Config;

use super::{ApiError, Problem, error::Body};

/// What the page may load: what this service serves, and nothing from elsewhere.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:";

/// What the description says besides the operations.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "dialog-api",
        description = "The public OTUS Highload specification (1.2.0), and what a messenger needs besides. \
            Every answer has the header `X-Request-Id`; a client's own is taken over."
    ),
    components(schemas(Body)),
    modifiers(&Token),
    tags(
        (name = "users", description = "Who there is"),
        (name = "dialogs", description = "Messages between two users"),
        (name = "operation", description = "For whoever operates the service")
    )
)]
pub(super) struct Document;

/// Adds how a token is sent.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("A token of `POST /login`"));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearerAuth", SecurityScheme::Http(scheme.build()));
    }
}

type Responses = BTreeMap<String, RefOr<utoipa::openapi::Response>>;

/// The failures of every operation.
pub(super) struct Always;

impl IntoResponses for Always {
    fn responses() -> Responses {
        let later = header::<u32>("Seconds after which trying again makes sense");
        BTreeMap::from([
            failure(400, "The request is not understood, or a value is not allowed", None),
            failure(500, "A bug", None),
            failure(503, "Not available at the moment", Some(("Retry-After", later))),
        ])
    }
}

/// The failures of every operation that needs a token.
pub(super) struct WithToken;

impl IntoResponses for WithToken {
    fn responses() -> Responses {
        let scheme = header::<String>("`Bearer`");
        let mut responses = Always::responses();
        responses.extend([failure(
            401,
            "No token, or none that is valid",
            Some(("WWW-Authenticate", scheme)),
        )]);
        responses
    }
}

fn header<T: PartialSchema>(description: &str) -> Header {
    HeaderBuilder::new().schema(Some(T::schema())).description(Some(description)).build()
}

fn failure(
    status: u16,
    description: &str,
    header: Option<(&str, Header)>,
) -> (String, RefOr<utoipa::openapi::Response>) {
    let content = Content::new(Some(Ref::from_schema_name("Error")));
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    let response =
        header.into_iter().fold(response, |response, (name, header)| response.header(name, header));
    (status.to_string(), response.build().into())
}

/// The description, and the page to browse it.
pub(super) fn router<S: Clone + Send + Sync + 'static>(document: utoipa::openapi::OpenApi) -> Router<S> {
    let document = Arc::new(document);
    let config = Arc::new(
        // Relative, so that the page works under whatever path a proxy has put the service.
        Config::from("../openapi.json")
            .try_it_out_enabled(true)
            .display_request_duration(true)
            // It would be asked over the network.
            .validator_url("none"),
    );
    let index = Arc::clone(&config);
    Router::new()
        .route("/openapi.json", get(async move || Json(&*document).into_response()))
        .route("/docs", get(async || Redirect::permanent("docs/")))
        .route("/docs/", get(async move || file("", index)))
        .route("/docs/{*file}", get(async move |Path(path): Path<String>| file(&path, config)))
}

/// A file of the page.
fn file(path: &str, config: Arc<Config<'static>>) -> Result<Response, ApiError> {
    match utoipa_swagger_ui::serve(path, config) {
        Ok(Some(file)) => {
            let headers = [
                (header::CONTENT_TYPE, file.content_type.as_str()),
                (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
            ];
            Ok((headers, file.bytes.into_owned()).into_response())
        }
        Ok(None) => Err(ApiError::no_route(
            http::StatusCode::NOT_FOUND,
            Problem::UnknownPath,
            "there is no such file of the page",
        )),
        Err(error) => Err(ApiError::internal(error.to_string())),
    }
}
