//! Placement without creating anything.

use atoll_contract::{
    Error,
    placement::{Placement, PlacementRequest},
};
use axum::{Json, extract::State};

use super::{
    App,
    edge::Failure,
    extract::{Body, Caller},
};

/// Where a project with these limits and requirements would go now, and why each other host not.
#[utoipa::path(
    post, path = "/v1/placement", tag = "project", operation_id = "dry_run_placement", request_body = PlacementRequest,
    responses((status = 200, body = Placement), (status = "default", body = Error))
)]
pub(super) async fn place(
    State(app): State<App>,
    _caller: Caller,
    Body(request): Body<PlacementRequest>,
) -> Result<Json<Placement>, Failure> {
    Ok(Json(app.projects.dry_run(&request).await?))
}
