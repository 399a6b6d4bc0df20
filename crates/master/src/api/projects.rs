//! Projects. `{id}` is an id, or the name of one of the caller's own.

use atoll_contract::{
    Error,
    api::{ConnectReply, CreateProject, ProjectAccepted, ProjectList},
    operation::OperationKind,
    project::ProjectView,
};
use axum::{Json, extract::State};
use http::StatusCode;
use serde::Deserialize;

use super::{
    App,
    edge::Failure,
    extract::{Body, Caller, Name, Params, page},
};
use crate::{auth::Identity, store::ProjectFilter};

/// Which projects.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// `next` of the page before.
    #[serde(default)]
    after: Option<String>,
    /// Entries at most, 1 to 1000; 100 if absent.
    #[serde(default)]
    limit: Option<usize>,
    /// Only the caller's own; an admin else sees all.
    #[serde(default)]
    mine: bool,
}

/// The caller's projects, oldest first; all projects for an admin.
#[utoipa::path(
    get, path = "/v1/projects", tag = "project", operation_id = "list_projects", params(Wanted),
    responses((status = 200, body = ProjectList), (status = "default", body = Error))
)]
pub(super) async fn list(
    State(app): State<App>,
    Caller(who): Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<ProjectList>, Failure> {
    let (after, limit) = page(wanted.after.as_ref(), wanted.limit)?;
    let owner = (wanted.mine || !who.admin).then_some(who.account);
    Ok(Json(app.projects.list(ProjectFilter { owner, after, limit }).await?))
}

/// Creates a project. It is placed at once, or refused with the reasons; the rest is the operation's.
#[utoipa::path(
    post, path = "/v1/projects", tag = "project", operation_id = "create_project", request_body = CreateProject,
    responses((status = 202, body = ProjectAccepted), (status = "default", body = Error))
)]
pub(super) async fn create(
    State(app): State<App>,
    Caller(who): Caller,
    Body(request): Body<CreateProject>,
) -> Result<(StatusCode, Json<ProjectAccepted>), Failure> {
    Ok((StatusCode::ACCEPTED, Json(app.projects.create(&who, request).await?)))
}

/// One project: what it should be, and what its host last observed.
#[utoipa::path(
    get, path = "/v1/projects/{id}", tag = "project", operation_id = "get_project", params(("id" = String, Path)),
    responses((status = 200, body = ProjectView), (status = "default", body = Error))
)]
pub(super) async fn info(State(app): State<App>, Caller(who): Caller, name: Name) -> Result<Json<ProjectView>, Failure> {
    let row = app.projects.find(&who, &name.0).await?;
    Ok(Json(app.projects.view(row)))
}

/// Deletes a project with all its files.
#[utoipa::path(
    delete, path = "/v1/projects/{id}", tag = "project", operation_id = "delete_project", params(("id" = String, Path)),
    responses((status = 202, body = ProjectAccepted), (status = "default", body = Error))
)]
pub(super) async fn delete(State(app): State<App>, Caller(who): Caller, name: Name) -> Accepted {
    change(&app, &who, &name, OperationKind::Delete).await
}

/// Starts a project; done at once if it runs.
#[utoipa::path(
    post, path = "/v1/projects/{id}/start", tag = "project", operation_id = "start_project", params(("id" = String, Path)),
    responses((status = 202, body = ProjectAccepted), (status = "default", body = Error))
)]
pub(super) async fn start(State(app): State<App>, Caller(who): Caller, name: Name) -> Accepted {
    change(&app, &who, &name, OperationKind::Start).await
}

/// Stops a project: its container goes, its files stay.
#[utoipa::path(
    post, path = "/v1/projects/{id}/stop", tag = "project", operation_id = "stop_project", params(("id" = String, Path)),
    responses((status = 202, body = ProjectAccepted), (status = "default", body = Error))
)]
pub(super) async fn stop(State(app): State<App>, Caller(who): Caller, name: Name) -> Accepted {
    change(&app, &who, &name, OperationKind::Stop).await
}

/// Stops a project, if it runs, and starts it.
#[utoipa::path(
    post, path = "/v1/projects/{id}/restart", tag = "project", operation_id = "restart_project", params(("id" = String, Path)),
    responses((status = 202, body = ProjectAccepted), (status = "default", body = Error))
)]
pub(super) async fn restart(State(app): State<App>, Caller(who): Caller, name: Name) -> Accepted {
    change(&app, &who, &name, OperationKind::Restart).await
}

/// Where the project is, with a connect token for its host, good for five minutes.
#[utoipa::path(
    post, path = "/v1/projects/{id}/connect", tag = "project", operation_id = "connect_project", params(("id" = String, Path)),
    responses((status = 200, body = ConnectReply), (status = "default", body = Error))
)]
pub(super) async fn connect(State(app): State<App>, Caller(who): Caller, name: Name) -> Result<Json<ConnectReply>, Failure> {
    let row = app.projects.find(&who, &name.0).await?;
    Ok(Json(app.projects.connect(&who, &row)?))
}

type Accepted = Result<(StatusCode, Json<ProjectAccepted>), Failure>;

async fn change(app: &App, who: &Identity, name: &Name, kind: OperationKind) -> Accepted {
    let row = app.projects.find(who, &name.0).await?;
    Ok((StatusCode::ACCEPTED, Json(app.projects.change(who, &row, kind).await?)))
}
