//! Accounts, for admins.

use atoll_contract::{
    Error,
    api::{AccountList, AccountRequest, AccountView},
};
use axum::{Json, extract::State};
use http::StatusCode;

use super::{
    App,
    edge::Failure,
    extract::{Admin, Body, Page, Params, page},
};
use crate::{edge::internal, store::AccountRow};

/// All accounts, oldest first. For admins.
#[utoipa::path(
    get, path = "/v1/accounts", tag = "account", operation_id = "list_accounts", params(Page),
    responses((status = 200, body = AccountList), (status = "default", body = Error))
)]
pub(super) async fn list(State(app): State<App>, _admin: Admin, Params(wanted): Params<Page>) -> Result<Json<AccountList>, Failure> {
    let (after, limit) = page(wanted.after.as_ref(), wanted.limit)?;
    let rows = app.projects.store.accounts(after, limit).await.map_err(internal)?;
    let next = if rows.len() == limit { rows.last().map(|row| row.id.to_string()) } else { None };
    Ok(Json(AccountList { accounts: rows.into_iter().map(view).collect(), next }))
}

/// Makes a further account. For admins.
#[utoipa::path(
    post, path = "/v1/accounts", tag = "account", operation_id = "create_account", request_body = AccountRequest,
    responses((status = 201, body = AccountView), (status = "default", body = Error))
)]
pub(super) async fn create(
    State(app): State<App>,
    _admin: Admin,
    Body(request): Body<AccountRequest>,
) -> Result<(StatusCode, Json<AccountView>), Failure> {
    let row = app.auth.create_account(request.name, request.password, request.admin).await?;
    Ok((StatusCode::CREATED, Json(view(row))))
}

fn view(row: AccountRow) -> AccountView {
    AccountView { id: row.id, name: row.name, admin: row.admin, created_at: row.created_at }
}
