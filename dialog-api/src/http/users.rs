//! `POST /user/register` and `POST /login`.

use std::sync::Arc;

use axum::{Json as JsonResponse, extract::State};
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ApiError, App,
    extract::{Json, user_id},
};
use crate::{
    passwords::PasswordError,
    users::{NewUser, UserError, parse_date},
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

fn count_turned_away(app: &App, error: &UserError) {
    if matches!(error, UserError::Password(PasswordError::Overloaded)) {
        app.metrics.passwords_turned_away.inc();
    }
}
