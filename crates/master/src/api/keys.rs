//! API keys of the caller.

use atoll_contract::{
    Error,
    api::{ApiKeyList, ApiKeyReply, ApiKeyRequest},
};
use axum::{Json, extract::State};
use http::StatusCode;

use super::{
    App,
    edge::Failure,
    extract::{Body, Caller, Name},
};
use crate::{
    auth::{Identity, Means},
    hosts::identity_grant,
};

/// The caller's own keys, oldest first; never their text.
#[utoipa::path(
    get, path = "/v1/keys", tag = "account", operation_id = "list_keys",
    responses((status = 200, body = ApiKeyList), (status = "default", body = Error))
)]
pub(super) async fn list(State(app): State<App>, Caller(who): Caller) -> Result<Json<ApiKeyList>, Failure> {
    Ok(Json(ApiKeyList { keys: app.auth.keys(&who).await? }))
}

/// Makes a key. Its text is shown this once.
#[utoipa::path(
    post, path = "/v1/keys", tag = "account", operation_id = "create_key", request_body = ApiKeyRequest,
    responses((status = 201, body = ApiKeyReply), (status = "default", body = Error))
)]
pub(super) async fn create(
    State(app): State<App>,
    Caller(who): Caller,
    Body(request): Body<ApiKeyRequest>,
) -> Result<(StatusCode, Json<ApiKeyReply>), Failure> {
    Ok((StatusCode::CREATED, Json(app.auth.create_key(&who, request).await?)))
}

/// Ends a key, and its connections to the bus.
#[utoipa::path(
    delete, path = "/v1/keys/{id}", tag = "account", operation_id = "delete_key", params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = Error))
)]
pub(super) async fn delete(State(app): State<App>, Caller(who): Caller, name: Name) -> Result<StatusCode, Failure> {
    let key = name.id()?;
    app.auth.delete_key(&who, key).await?;
    app.bus.close_grant(&identity_grant(&Identity { means: Means::Key(key), ..who }));
    Ok(StatusCode::NO_CONTENT)
}
