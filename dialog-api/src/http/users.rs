//! `POST /user/register`, `POST /login`, `GET /user/get/{id}` and `GET /user/search`.

use std::sync::Arc;

use axum::{Json as JsonResponse, extract::State};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ApiError, App,
    extract::{Json, Query, UserInPath, user_id},
};
use crate::{
    passwords::PasswordError,
    users::{NewUser, User as KnownUser, UserError, parse_date},
};

#[derive(Deserialize)]
pub(super) struct RegisterRequest {
    first_name: String,
    second_name: String,
    birthdate: Option<String>,
    biography: Option<String>,
    city: Option<String>,
    password: String,
}

#[derive(Serialize)]
pub(super) struct RegisterResponse {
    user_id: Uuid,
}

pub(super) async fn register(
    State(app): State<Arc<App>>,
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
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let latest = today.tomorrow().unwrap_or(today);
    user.check(&request.password, latest).map_err(ApiError::bad_request)?;
    let user_id = app
        .users
        .register(&user, request.password)
        .await
        .inspect_err(|error| count_turned_away(&app, error))?;
    Ok(JsonResponse(RegisterResponse { user_id }))
}

#[derive(Deserialize)]
pub(super) struct LoginRequest {
    id: String,
    password: String,
}

#[derive(Serialize)]
pub(super) struct LoginResponse {
    token: String,
}

pub(super) async fn login(
    State(app): State<Arc<App>>,
    Json(request): Json<LoginRequest>,
) -> Result<JsonResponse<LoginResponse>, ApiError> {
    let user = user_id("id", &request.id)?;
    let token =
        app.users.login(user, request.password).await.inspect_err(|error| count_turned_away(&app, error))?;
    Ok(JsonResponse(LoginResponse { token }))
}

/// A user as the specification has it. What somebody did not say at registration is absent.
#[derive(Serialize)]
pub(super) struct User {
    id: Uuid,
    first_name: String,
    second_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    birthdate: Option<Date>,
    #[serde(skip_serializing_if = "Option::is_none")]
    biography: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    city: Option<String>,
}

impl From<KnownUser> for User {
    fn from(user: KnownUser) -> Self {
        let KnownUser { id, first_name, second_name, birthdate, biography, city } = user;
        Self { id, first_name, second_name, birthdate, biography, city }
    }
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    UserInPath(id): UserInPath,
) -> Result<JsonResponse<User>, ApiError> {
    let user = app.users.get(id).await?.ok_or(UserError::Unknown)?;
    Ok(JsonResponse(user.into()))
}

#[derive(Deserialize)]
pub(super) struct SearchParameters {
    first_name: String,
    last_name: String,
}

pub(super) async fn search(
    State(app): State<Arc<App>>,
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
