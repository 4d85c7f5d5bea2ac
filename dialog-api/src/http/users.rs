//! `POST /user/register`, `POST /login`, `GET /user/get/{id}` and `GET /user/search`.

use axum::Json as JsonResponse;
use jiff::{civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    ApiError, App,
    error::Body,
    extract::{Json, Query, Serving, UserInPath, user_id},
    openapi::Always,
};
use crate::{
    passwords::PasswordError,
    users::{NewUser, User as KnownUser, UserError, parse_date},
};

/// Who wants to register.
#[derive(Deserialize, ToSchema)]
pub(super) struct RegisterRequest {
    #[schema(min_length = 1, max_length = 200, example = "Ada")]
    first_name: String,
    #[schema(min_length = 1, max_length = 200, example = "Lovelace")]
    second_name: String,
    /// From 1900 on, and not in the future.
    #[schema(format = Date, example = "2017-02-01")]
    birthdate: Option<String>,
    #[schema(max_length = 4096)]
    biography: Option<String>,
    #[schema(max_length = 200)]
    city: Option<String>,
    #[schema(format = Password, min_length = 1, max_length = 1024)]
    password: String,
}

/// Who was registered.
#[derive(Serialize, ToSchema)]
pub(super) struct RegisterResponse {
    user_id: Uuid,
}

/// Register a user
#[utoipa::path(
    post, path = "/user/register", tag = "users", operation_id = "registerUser",
    request_body = RegisterRequest,
    responses((status = 200, description = "Registered", body = RegisterResponse), Always)
)]
pub(super) async fn register(
    Serving(app): Serving,
    Json(request): Json<RegisterRequest>,
) -> Result<JsonResponse<RegisterResponse>, ApiError> {
    let birthdate =
        request.birthdate.as_deref().map(parse_date).transpose().map_err(ApiError::bad_request)?;
    let user = NewUser {
        first_name: request.first_name,
        second_name: request.second_name,
        birthdate,
        biography: request.biography,
        city: request.city,
    };
    // Somewhere it is tomorrow already.
    let today = app.clock.now().to_zoned(TimeZone::UTC).date();
    let latest = today.tomorrow().unwrap_or(today);
    user.check(&request.password, latest).map_err(ApiError::bad_request)?;
    let user_id = app
        .users
        .register(&user, request.password)
        .await
        .inspect_err(|error| count_turned_away(&app, error))?;
    Ok(JsonResponse(RegisterResponse { user_id }))
}

/// Who wants to log in.
#[derive(Deserialize, ToSchema)]
pub(super) struct LoginRequest {
    #[schema(value_type = Uuid)]
    id: String,
    #[schema(format = Password)]
    password: String,
}

/// What requests that need a token carry as `Authorization: Bearer TOKEN`.
#[derive(Serialize, ToSchema)]
pub(super) struct LoginResponse {
    token: String,
}

/// Log in
#[utoipa::path(
    post, path = "/login", tag = "users", operation_id = "login",
    request_body = LoginRequest,
    responses(
        (status = 200, description = "The password is right", body = LoginResponse),
        (status = 404, description = "There is no such user", body = Body),
        Always
    )
)]
pub(super) async fn login(
    Serving(app): Serving,
    Json(request): Json<LoginRequest>,
) -> Result<JsonResponse<LoginResponse>, ApiError> {
    let user = user_id("id", &request.id)?;
    let token =
        app.users.login(user, request.password).await.inspect_err(|error| count_turned_away(&app, error))?;
    Ok(JsonResponse(LoginResponse { token }))
}

/// A user as the specification has it. What somebody did not say at registration is absent.
#[derive(Serialize, ToSchema)]
pub(super) struct User {
    id: Uuid,
    first_name: String,
    second_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    birthdate: Option<Date>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    biography: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    city: Option<String>,
}

impl From<KnownUser> for User {
    fn from(user: KnownUser) -> Self {
        let KnownUser { id, first_name, second_name, birthdate, biography, city } = user;
        Self { id, first_name, second_name, birthdate, biography, city }
    }
}

/// What everybody may know of a user
#[utoipa::path(
    get, path = "/user/get/{id}", tag = "users", operation_id = "getUser",
    params(("id" = Uuid, Path, description = "The user's id")),
    responses(
        (status = 200, description = "The user", body = User),
        (status = 404, description = "There is no such user", body = Body),
        Always
    )
)]
pub(super) async fn get(
    Serving(app): Serving,
    UserInPath(id): UserInPath,
) -> Result<JsonResponse<User>, ApiError> {
    let user = app.users.get(id).await?.ok_or(UserError::Unknown)?;
    Ok(JsonResponse(user.into()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SearchParameters {
    /// What the first name begins with.
    #[param(min_length = 1, max_length = 200)]
    first_name: String,
    /// What the second name begins with.
    #[param(min_length = 1, max_length = 200)]
    last_name: String,
}

/// Find users by how both names begin
///
/// Whatever their case; at most 1,000, in the order of their registration.
#[utoipa::path(
    get, path = "/user/search", tag = "users", operation_id = "searchUsers",
    params(SearchParameters),
    responses((status = 200, description = "The users", body = [User]), Always)
)]
pub(super) async fn search(
    Serving(app): Serving,
    Query(names): Query<SearchParameters>,
) -> Result<JsonResponse<Vec<User>>, ApiError> {
    let users = app.users.search(&names.first_name, &names.last_name).await?;
    Ok(JsonResponse(users.into_iter().map(User::from).collect()))
}

fn count_turned_away(app: &App, error: &UserError) {
    if matches!(error, UserError::Password(PasswordError::Overloaded)) {
        app.metrics.passwords_turned_away.inc();
    }
}
