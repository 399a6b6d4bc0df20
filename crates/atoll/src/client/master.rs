//! The master's HTTP API, one method for each resource that the commands use.

use std::{path::Path, sync::Arc, time::Duration};

use atoll_contract::{
    ApiKeyId, Error, ErrorCode, OperationId, ProjectId,
    api::{
        AccountList, AccountRequest, AccountView, ApiKeyList, ApiKeyReply, ApiKeyRequest, ConnectReply, CreateProject, Health, HostList,
        HostPatch, JoinTokenReply, JoinTokenRequest, LoginReply, LoginRequest, OperationList, ProjectAccepted, ProjectList, SetupRequest,
    },
    host::HostView,
    operation::OperationView,
    placement::{Placement, PlacementRequest},
    project::{ProjectView, check_name},
};
use reqwest::Method;

use super::Http;
use crate::errors::Result;

/// How long one request for an operation's next change waits at the master.
pub const WATCH: Duration = Duration::from_secs(20);

/// A master, and the credential of whoever runs the command.
#[derive(Debug, Clone)]
pub struct Master {
    http: Http,
    /// Certificates that are trusted besides the system's, for hosts as well.
    ca_file: Option<Arc<Path>>,
}

impl Master {
    pub fn new(url: &str, token: Option<String>, ca_file: Option<&Path>) -> Result<Self> {
        Ok(Self { http: Http::new("master", url, token, ca_file)?, ca_file: ca_file.map(Into::into) })
    }

    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    pub fn url(&self) -> &str {
        self.http.base()
    }

    /// The credential, for what isn't HTTP.
    ///
    /// # Errors
    /// `unauthenticated` if there is none.
    pub fn token(&self) -> Result<&str> {
        self.http.token().ok_or_else(|| Error::new(ErrorCode::Unauthenticated, "You aren't logged in."))
    }

    pub async fn health(&self) -> Result<Health> {
        self.http.get("/v1/health", &[]).await
    }

    pub async fn setup(&self, request: &SetupRequest) -> Result<LoginReply> {
        self.http.send(Method::POST, "/v1/setup", request).await
    }

    pub async fn login(&self, request: &LoginRequest) -> Result<LoginReply> {
        self.http.send(Method::POST, "/v1/login", request).await
    }

    pub async fn logout(&self) -> Result<()> {
        self.http.tell(self.http.request(Method::POST, "/v1/logout")).await
    }

    pub async fn me(&self) -> Result<AccountView> {
        self.http.get("/v1/me", &[]).await
    }

    pub async fn create_account(&self, request: &AccountRequest) -> Result<AccountView> {
        self.http.send(Method::POST, "/v1/accounts", request).await
    }

    pub async fn accounts(&self) -> Result<AccountList> {
        let mut all = AccountList { accounts: Vec::new(), next: None };
        let mut after = None;
        loop {
            let page: AccountList = self.http.get("/v1/accounts", &page_of(after)).await?;
            all.accounts.extend(page.accounts);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    pub async fn create_key(&self, request: &ApiKeyRequest) -> Result<ApiKeyReply> {
        self.http.send(Method::POST, "/v1/keys", request).await
    }

    pub async fn keys(&self) -> Result<ApiKeyList> {
        self.http.get("/v1/keys", &[]).await
    }

    pub async fn delete_key(&self, id: ApiKeyId) -> Result<()> {
        self.http.tell(self.http.request(Method::DELETE, &format!("/v1/keys/{id}"))).await
    }

    pub async fn create_project(&self, request: &CreateProject) -> Result<ProjectAccepted> {
        self.http.send(Method::POST, "/v1/projects", request).await
    }

    /// All pages. A project's view is about a kilobyte, and a list is bounded by what one account may own.
    pub async fn projects(&self) -> Result<ProjectList> {
        let mut all = ProjectList { projects: Vec::new(), next: None };
        let mut after = None;
        loop {
            let page: ProjectList = self.http.get("/v1/projects", &page_of(after)).await?;
            all.projects.extend(page.projects);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// The project of this name or id.
    ///
    /// # Errors
    /// `not_found` if there is none; a name finds only the account's own projects.
    pub async fn project(&self, name: &str) -> Result<ProjectView> {
        // a name goes into a path, so it must be one
        check_name(name)?;
        match self.http.get(&format!("/v1/projects/{name}"), &[]).await {
            Err(error) if error.code == ErrorCode::NotFound => {
                Err(Error::new(ErrorCode::NotFound, format!("There is no project {name:?}, or you may not see it."))
                    .mend("See atoll project list."))
            }
            other => other,
        }
    }

    /// The id behind a name or id; a name costs a request.
    pub async fn project_id(&self, name: &str) -> Result<ProjectId> {
        match name.parse() {
            Ok(id) => Ok(id),
            Err(_) => Ok(self.project(name).await?.id),
        }
    }

    /// `start`, `stop` or `restart`.
    pub async fn act(&self, project: ProjectId, verb: &str) -> Result<ProjectAccepted> {
        self.http.ask(Method::POST, &format!("/v1/projects/{project}/{verb}")).await
    }

    pub async fn delete_project(&self, project: ProjectId) -> Result<ProjectAccepted> {
        self.http.ask(Method::DELETE, &format!("/v1/projects/{project}")).await
    }

    pub async fn connect(&self, project: ProjectId) -> Result<ConnectReply> {
        self.http.ask(Method::POST, &format!("/v1/projects/{project}/connect")).await
    }

    pub async fn place(&self, request: &PlacementRequest) -> Result<Placement> {
        self.http.send(Method::POST, "/v1/placement", request).await
    }

    pub async fn hosts(&self) -> Result<HostList> {
        self.http.get("/v1/hosts", &[]).await
    }

    /// The host of this name or id.
    pub async fn host(&self, name: &str) -> Result<HostView> {
        check_name(name)?;
        self.http.get(&format!("/v1/hosts/{name}"), &[]).await.map_err(|error: Error| match error.code {
            ErrorCode::NotFound => Error::new(ErrorCode::NotFound, format!("There is no host {name:?}.")).mend("See atoll host list."),
            _ => error,
        })
    }

    pub async fn patch_host(&self, host: &HostView, patch: &HostPatch) -> Result<HostView> {
        self.http.send(Method::PATCH, &format!("/v1/hosts/{}", host.id), patch).await
    }

    pub async fn join_token(&self, request: &JoinTokenRequest) -> Result<JoinTokenReply> {
        self.http.send(Method::POST, "/v1/join-tokens", request).await
    }

    /// The newest operations, one page.
    pub async fn operations(&self) -> Result<OperationList> {
        self.http.get("/v1/operations", &[]).await
    }

    pub async fn operation(&self, id: OperationId) -> Result<OperationView> {
        self.http.get(&format!("/v1/operations/{id}"), &[]).await
    }

    /// The operation when its version is above `version`, or as it is after [`WATCH`].
    pub async fn operation_after(&self, id: OperationId, version: u64) -> Result<OperationView> {
        let query = [("after", version.to_string()), ("wait", WATCH.as_secs().to_string())];
        self.http.get_later(&format!("/v1/operations/{id}"), &query, WATCH).await
    }

    pub async fn cancel(&self, id: OperationId) -> Result<OperationView> {
        self.http.ask(Method::POST, &format!("/v1/operations/{id}/cancel")).await
    }
}

fn page_of(after: Option<String>) -> Vec<(&'static str, String)> {
    after.map(|after| ("after", after)).into_iter().collect()
}
