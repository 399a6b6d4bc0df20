//! Whether the master is there.

use atoll_contract::api::Health;
use axum::{Json, extract::State};

use super::App;

/// Says that the master is there, and whether the first account is still to be made. Needs no credential.
#[utoipa::path(get, path = "/v1/health", tag = "master", security(()), responses((status = 200, body = Health)))]
pub(super) async fn health(State(app): State<App>) -> Json<Health> {
    Json(Health { role: "master".into(), version: env!("CARGO_PKG_VERSION").into(), setup_needed: Some(app.auth.setup_token().is_some()) })
}
