//! Requests and replies of the master's HTTP API, under `/v1`. Credentials go in `Authorization: Bearer …`, never in a URL.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AccountId, ApiKeyId, Generation, HostId, OperationId, ProjectId, Role, Timestamp,
    host::HostView,
    operation::OperationView,
    placement::{Placement, Requirements},
    project::{ProjectSpec, ProjectView},
};

/// `POST /v1/setup`: makes the first account, an admin, with the one-time setup token that the master printed at its first start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetupRequest {
    pub token: String,
    pub name: String,
    pub password: String,
}

/// `POST /v1/login`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    pub name: String,
    pub password: String,
}

/// Answer to setup and login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginReply {
    #[schema(value_type = String)]
    pub account: AccountId,
    pub name: String,
    /// Bearer credential of this session.
    pub token: String,
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}

/// `GET /v1/me`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountView {
    #[schema(value_type = String)]
    pub id: AccountId,
    pub name: String,
    pub admin: bool,
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

/// `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyRequest {
    pub name: String,
    /// Days until it expires; absent for never.
    #[serde(default)]
    pub days: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyView {
    #[schema(value_type = String)]
    pub id: ApiKeyId,
    pub name: String,
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub used_at: Option<Timestamp>,
}

/// `GET /v1/keys`: the caller's own keys, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyList {
    pub keys: Vec<ApiKeyView>,
}

/// `POST /v1/accounts`, for an admin: a further account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountRequest {
    pub name: String,
    pub password: String,
    #[serde(default)]
    pub admin: bool,
}

/// `GET /v1/accounts`, for an admin: all accounts, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountList {
    pub accounts: Vec<AccountView>,
    /// Give this as `after` for the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The one time that a key's text is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyReply {
    pub key: ApiKeyView,
    pub token: String,
}

/// `POST /v1/projects`. The answer is a [`ProjectAccepted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    pub spec: ProjectSpec,
    #[serde(default)]
    pub requirements: Requirements,
    /// Start it when it is there.
    #[serde(default)]
    pub start: bool,
    /// The caller's own key for this request, up to 64 characters: the same key again gives the same project and operation, so
    /// that a request may be repeated when its answer was lost.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

/// HTTP 202: an operation has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProjectAccepted {
    #[schema(value_type = String)]
    pub project: ProjectId,
    #[schema(value_type = String)]
    pub operation: OperationId,
    /// Why it went where it went; only for create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectList {
    pub projects: Vec<ProjectView>,
    /// Give this as `after` for the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/projects/{id}/connect`: where a project is, and a token for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectReply {
    #[schema(value_type = String)]
    pub host: HostId,
    /// `http(s)://name:port`; the bus is at `/bus` there (WebSocket), files below `/v1/projects/{id}/`.
    pub host_url: String,
    pub generation: Generation,
    pub role: Role,
    /// A connect token: bearer credential at the host's HTTP, `auth_token` at its bus.
    pub token: String,
    /// Custom inbox prefix for NATS clients with this token.
    pub inbox_prefix: String,
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}

/// `POST /v1/join-tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub struct JoinTokenRequest {
    /// The name that the host must have; absent for any.
    pub name: Option<String>,
    /// Minutes that it is good for, 1 to 10080; default 60.
    pub minutes: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenReply {
    pub token: String,
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
}

/// `GET /v1/hosts`: all hosts, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostList {
    pub hosts: Vec<HostView>,
}

/// `GET /v1/operations`: newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    pub operations: Vec<OperationView>,
    /// Give this as `after` for the next page (of older ones); absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `PATCH /v1/hosts/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostPatch {
    pub draining: Option<bool>,
}

/// `GET /v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `master` or `host`.
    pub role: String,
    pub version: String,
    /// Whether the first account is still to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_needed: Option<bool>,
}
