//! Hosts and how they join. `{id}` is an id or a name.

use atoll_contract::{
    Error, ErrorCode,
    api::{HostList, HostPatch, JoinTokenReply, JoinTokenRequest},
    host::{HostView, JoinReply, JoinRequest},
};
use axum::{Json, extract::State};
use http::StatusCode;

use super::{
    App,
    edge::Failure,
    extract::{Admin, Body, Caller, Name},
};
use crate::{auth::Identity, edge::internal, hosts::host_grant};

/// All hosts for an admin, for others those that have a project of theirs; oldest first.
#[utoipa::path(
    get, path = "/v1/hosts", tag = "host", operation_id = "list_hosts",
    responses((status = 200, body = HostList), (status = "default", body = Error))
)]
pub(super) async fn list(State(app): State<App>, Caller(who): Caller) -> Result<Json<HostList>, Failure> {
    Ok(Json(HostList { hosts: visible(&app, &who).await? }))
}

/// One host.
#[utoipa::path(
    get, path = "/v1/hosts/{id}", tag = "host", operation_id = "get_host", params(("id" = String, Path)),
    responses((status = 200, body = HostView), (status = "default", body = Error))
)]
pub(super) async fn info(State(app): State<App>, Caller(who): Caller, name: Name) -> Result<Json<HostView>, Failure> {
    let found =
        visible(&app, &who).await?.into_iter().find(|host| host.id.to_string() == name.0 || host.name.eq_ignore_ascii_case(&name.0));
    Ok(Json(found.ok_or_else(|| Error::not_found("host"))?))
}

/// Changes a host. For admins.
#[utoipa::path(
    patch, path = "/v1/hosts/{id}", tag = "host", operation_id = "patch_host", params(("id" = String, Path)), request_body = HostPatch,
    responses((status = 200, body = HostView), (status = "default", body = Error))
)]
pub(super) async fn patch(
    State(app): State<App>,
    _admin: Admin,
    name: Name,
    Body(request): Body<HostPatch>,
) -> Result<Json<HostView>, Failure> {
    let host = app.hosts.find(&name.0).await?;
    app.hosts.patch(host.id, request).await?;
    Ok(Json(app.hosts.find(&host.id.to_string()).await?))
}

/// Ends the membership of a host that has no projects, and its connection. For admins.
#[utoipa::path(
    delete, path = "/v1/hosts/{id}", tag = "host", operation_id = "delete_host", params(("id" = String, Path)),
    responses((status = 204), (status = "default", body = Error))
)]
pub(super) async fn delete(State(app): State<App>, _admin: Admin, name: Name) -> Result<StatusCode, Failure> {
    let host = app.hosts.find(&name.0).await?;
    app.hosts.remove(host.id).await?;
    app.bus.close_grant(&host_grant(host.id));
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a one-time token with which a host joins. For admins.
#[utoipa::path(
    post, path = "/v1/join-tokens", tag = "host", operation_id = "create_join_token", request_body = JoinTokenRequest,
    responses((status = 201, body = JoinTokenReply), (status = "default", body = Error))
)]
pub(super) async fn join_token(
    State(app): State<App>,
    Admin(who): Admin,
    Body(request): Body<JoinTokenRequest>,
) -> Result<(StatusCode, Json<JoinTokenReply>), Failure> {
    Ok((StatusCode::CREATED, Json(app.hosts.create_join_token(Some(who.account), request).await?)))
}

/// Trades a join token for membership. Needs no other credential.
#[utoipa::path(
    post, path = "/v1/hosts/join", tag = "host", operation_id = "join_host", security(()), request_body = JoinRequest,
    responses((status = 200, body = JoinReply), (status = "default", body = Error))
)]
pub(super) async fn join(State(app): State<App>, Body(request): Body<JoinRequest>) -> Result<Json<JoinReply>, Failure> {
    if app.stop.is_cancelled() {
        return Err(Failure(Error::new(ErrorCode::Unavailable, "The master is shutting down.")));
    }
    Ok(Json(app.hosts.join(request).await?))
}

async fn visible(app: &App, who: &Identity) -> Result<Vec<HostView>, Error> {
    let mut hosts = app.hosts.list().await?;
    if !who.admin {
        let theirs = app.projects.store.hosts_of(who.account).await.map_err(internal)?;
        hosts.retain(|host| theirs.contains(&host.id));
    }
    Ok(hosts)
}
