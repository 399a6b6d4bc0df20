//! Operations: what is being done, or was.

use std::time::Duration;

use atoll_contract::{
    Error, ErrorCode,
    api::OperationList,
    operation::{OperationStatus, OperationView, Progress},
};
use axum::{Json, extract::State};
use serde::Deserialize;

use super::{
    App,
    edge::Failure,
    extract::{Caller, Name, Params, page},
};
use crate::{auth::Identity, edge::internal, operations::Operation, store::OperationFilter};

/// The longest wait for a change; a longer one that is asked for is cut to it. Under the time limits that proxies commonly have.
const MAX_WAIT_SECONDS: u64 = 60;

/// Which operations.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only of this project: an id, which may be that of a deleted project, or the name of one of the caller's own.
    #[serde(default)]
    project: Option<String>,
    /// `next` of the page before.
    #[serde(default)]
    after: Option<String>,
    /// Entries at most, 1 to 1000; 100 if absent.
    #[serde(default)]
    limit: Option<usize>,
}

/// How long to wait for what.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// Answer when the operation's version is above this, or it has ended.
    #[serde(default)]
    after: u64,
    /// Wait for that so many seconds at most, up to 60, and then answer with what there is.
    #[serde(default)]
    wait: u64,
}

/// Operations of the caller's projects, newest first; all for an admin.
#[utoipa::path(
    get, path = "/v1/operations", tag = "operation", operation_id = "list_operations", params(Wanted),
    responses((status = 200, body = OperationList), (status = "default", body = Error))
)]
pub(super) async fn list(
    State(app): State<App>,
    Caller(who): Caller,
    Params(wanted): Params<Wanted>,
) -> Result<Json<OperationList>, Failure> {
    let (before, limit) = page(wanted.after.as_ref(), wanted.limit)?;
    let project = match &wanted.project {
        None => None,
        Some(text) => match text.parse() {
            Ok(id) => Some(id),
            Err(_) => Some(app.projects.find(&who, text).await?.id),
        },
    };
    let owner = (!who.admin).then_some(who.account);
    let rows = app.projects.store.operations(OperationFilter { owner, project, before, limit }).await.map_err(internal)?;
    let next = if rows.len() == limit { rows.last().map(|op| op.id.to_string()) } else { None };
    let view = |op: Operation| app.projects.executor.live(op.id).unwrap_or_else(|| op.view(Progress::default()));
    Ok(Json(OperationList { operations: rows.into_iter().map(view).collect(), next }))
}

/// One operation; with `wait`, when it has changed.
#[utoipa::path(
    get, path = "/v1/operations/{id}", tag = "operation", operation_id = "get_operation", params(("id" = String, Path), Wait),
    responses((status = 200, body = OperationView), (status = "default", body = Error))
)]
pub(super) async fn info(
    State(app): State<App>,
    Caller(who): Caller,
    name: Name,
    Params(wait): Params<Wait>,
) -> Result<Json<OperationView>, Failure> {
    let saved = find(&app, &who, &name).await?;
    if saved.ended() {
        return Ok(Json(saved.view(Progress::default())));
    }
    let patience = Duration::from_secs(wait.wait.min(MAX_WAIT_SECONDS));
    let live = if patience.is_zero() {
        app.projects.executor.live(saved.id)
    } else {
        app.projects.executor.wait(saved.id, wait.after, patience).await
    };
    Ok(Json(match live {
        Some(view) => view,
        None => find(&app, &who, &name).await?.view(Progress::default()), // it has ended in between
    }))
}

/// Turns an operation back. Answers when that is decided; wait for its end as for any other.
#[utoipa::path(
    post, path = "/v1/operations/{id}/cancel", tag = "operation", operation_id = "cancel_operation", params(("id" = String, Path)),
    responses((status = 200, body = OperationView), (status = "default", body = Error))
)]
pub(super) async fn cancel(State(app): State<App>, Caller(who): Caller, name: Name) -> Result<Json<OperationView>, Failure> {
    let saved = find(&app, &who, &name).await?;
    if let Some(answer) = app.projects.executor.cancel(saved.id).await {
        return Ok(Json(answer?));
    }
    let ended = find(&app, &who, &name).await?;
    if ended.status == OperationStatus::Cancelled {
        return Ok(Json(ended.view(Progress::default())));
    }
    Err(Failure(Error::new(ErrorCode::Conflict, format!("This {} has ended: {}.", ended.kind.as_str(), ended.status.as_str()))))
}

async fn find(app: &App, who: &Identity, name: &Name) -> Result<Operation, Error> {
    let found = app.projects.store.operation(name.id()?).await.map_err(internal)?;
    let visible = found.filter(|op| who.admin || op.owner == who.account || op.account == who.account);
    visible.ok_or_else(|| Error::not_found("operation"))
}
