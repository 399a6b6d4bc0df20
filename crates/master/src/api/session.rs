//! The first account, logging in and out, and who one is.

use atoll_contract::{
    Error,
    api::{AccountView, LoginReply, LoginRequest, SetupRequest},
};
use axum::{Json, extract::State};
use http::StatusCode;

use super::{
    App,
    edge::Failure,
    extract::{Body, Caller},
};
use crate::hosts::identity_grant;

/// Makes the first account, an admin, with the one-time setup token.
#[utoipa::path(
    post, path = "/v1/setup", tag = "account", security(()), request_body = SetupRequest,
    responses((status = 200, body = LoginReply), (status = "default", body = Error))
)]
pub(super) async fn setup(State(app): State<App>, Body(request): Body<SetupRequest>) -> Result<Json<LoginReply>, Failure> {
    Ok(Json(app.auth.set_up(&request.token, request.name, request.password).await?))
}

/// Opens a session. Slows down after several failures for one name.
#[utoipa::path(
    post, path = "/v1/login", tag = "account", security(()), request_body = LoginRequest,
    responses((status = 200, body = LoginReply), (status = "default", body = Error))
)]
pub(super) async fn login(State(app): State<App>, Body(request): Body<LoginRequest>) -> Result<Json<LoginReply>, Failure> {
    Ok(Json(app.auth.log_in(request.name, request.password).await?))
}

/// Ends the session whose token this is called with, and its connections to the bus.
#[utoipa::path(post, path = "/v1/logout", tag = "account", responses((status = 204), (status = "default", body = Error)))]
pub(super) async fn logout(State(app): State<App>, Caller(who): Caller) -> Result<StatusCode, Failure> {
    app.auth.log_out(&who).await?;
    app.bus.close_grant(&identity_grant(&who));
    Ok(StatusCode::NO_CONTENT)
}

/// Who the credential stands for.
#[utoipa::path(
    get, path = "/v1/me", tag = "account",
    responses((status = 200, body = AccountView), (status = "default", body = Error))
)]
pub(super) async fn me(Caller(who): Caller) -> Json<AccountView> {
    Json(AccountView { id: who.account, name: who.name, admin: who.admin, created_at: who.created_at })
}
