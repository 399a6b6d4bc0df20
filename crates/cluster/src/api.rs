//! The master's API and a project's host as a test uses them.

use std::{sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode, HostId, OperationId, ProjectId,
    agent::ExecStart,
    api::{ConnectReply, CreateProject, LoginReply, LoginRequest, ProjectAccepted, ProjectList, SetupRequest},
    host::HostView,
    operation::{OperationStatus, OperationView},
    placement::Requirements,
    project::{Limits, ObservedState, ProjectSpec, ProjectView},
};
use atoll_net::{
    bus::{Conn, stock::StockConn},
    remote::{Exec, ExecOutput},
    tls::ClientConfig,
};
use reqwest::{Method, RequestBuilder};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::PATIENCE;

pub const PASSWORD: &str = "correct horse battery staple";

/// The master's HTTP API, with one account's credential.
#[derive(Clone)]
pub struct Api {
    pub http: reqwest::Client,
    pub url: String,
    pub token: String,
    /// Whom it trusts, where the cluster has an authority of its own.
    trust: Option<ClientConfig>,
}

impl Api {
    /// Makes the first account.
    pub(crate) async fn set_up(url: &str, token: &str, trust: Option<ClientConfig>) -> Result<Self, Error> {
        let http = reqwest::Client::builder();
        let http = match &trust {
            Some(trust) => http.tls_backend_preconfigured(trust.clone()),
            None => http,
        };
        let http = http.build().map_err(|error| Error::internal(error.to_string()))?;
        let api = Self { http, url: url.into(), token: String::new(), trust };
        let request = SetupRequest { token: token.into(), name: "admin".into(), password: PASSWORD.into() };
        let reply: LoginReply = api.send(api.http.post(api.at("/v1/setup")).json(&request)).await?;
        Ok(Self { token: reply.token, ..api })
    }

    /// # Errors
    /// `unauthenticated`.
    pub async fn login(&self, name: &str, password: &str) -> Result<Self, Error> {
        let request = LoginRequest { name: name.into(), password: password.into() };
        let reply: LoginReply = self.send(self.http.post(self.at("/v1/login")).json(&request)).await?;
        Ok(Self { token: reply.token, ..self.clone() })
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// # Errors
    /// The server's own, or `unavailable`.
    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Value) -> Result<T, Error> {
        let request = self.http.request(method, self.at(path)).bearer_auth(&self.token);
        self.send(if body.is_null() { request } else { request.json(&body) }).await
    }

    /// # Errors
    /// As [`Self::call`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, Value::Null).await
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let away = |error: reqwest::Error| Error::new(ErrorCode::Unavailable, error.to_string());
        let response = request.timeout(PATIENCE).send().await.map_err(away)?;
        let good = response.status().is_success();
        let body = response.bytes().await.map_err(away)?;
        let wrong = |error: serde_json::Error| Error::internal(format!("{error} in {}", String::from_utf8_lossy(&body)));
        if good {
            let body: &[u8] = if body.is_empty() { b"null" } else { &body };
            serde_json::from_slice(body).map_err(wrong)
        } else {
            Err(serde_json::from_slice(&body).map_err(wrong)?)
        }
    }

    pub(crate) async fn join_token(&self, name: &str) -> Result<String, Error> {
        let reply: Value = self.call(Method::POST, "/v1/join-tokens", json!({ "name": name })).await?;
        Ok(reply["token"].as_str().unwrap_or_default().to_owned())
    }

    /// # Errors
    /// As [`Self::call`].
    pub async fn host(&self, id: HostId) -> Result<HostView, Error> {
        self.get(&format!("/v1/hosts/{id}")).await
    }

    /// # Errors
    /// As [`Self::call`].
    pub async fn create(&self, name: &str, requirements: Requirements, start: bool) -> Result<ProjectAccepted, Error> {
        self.create_with(&CreateProject { spec: spec(name), requirements, start, idempotency_key: None }).await
    }

    /// # Errors
    /// As [`Self::call`].
    pub async fn create_with(&self, request: &CreateProject) -> Result<ProjectAccepted, Error> {
        self.call(Method::POST, "/v1/projects", json!(request)).await
    }

    /// # Errors
    /// As [`Self::call`].
    pub async fn project(&self, id: ProjectId) -> Result<ProjectView, Error> {
        self.get(&format!("/v1/projects/{id}")).await
    }

    /// # Errors
    /// As [`Self::call`].
    pub async fn projects(&self) -> Result<ProjectList, Error> {
        self.get("/v1/projects").await
    }

    /// Start, stop or restart, up to the operation's good end.
    ///
    /// # Errors
    /// The operation's own.
    pub async fn act(&self, id: ProjectId, verb: &str) -> Result<OperationView, Error> {
        let accepted: ProjectAccepted = self.call(Method::POST, &format!("/v1/projects/{id}/{verb}"), Value::Null).await?;
        self.done(accepted.operation).await
    }

    /// # Errors
    /// The operation's own.
    pub async fn delete(&self, id: ProjectId) -> Result<OperationView, Error> {
        let accepted: ProjectAccepted = self.call(Method::DELETE, &format!("/v1/projects/{id}"), Value::Null).await?;
        self.done(accepted.operation).await
    }

    /// Waits for an operation's end, whatever it is.
    ///
    /// # Errors
    /// `timed_out`.
    pub async fn ended(&self, id: OperationId) -> Result<OperationView, Error> {
        let ended = async |api: &Self| {
            let view: OperationView = api.get(&format!("/v1/operations/{id}?wait=5")).await?;
            Ok(view.status.ended().then_some(view))
        };
        self.wait("the operation to end", ended).await
    }

    /// Waits for an operation's good end.
    ///
    /// # Errors
    /// The operation's own.
    pub async fn done(&self, id: OperationId) -> Result<OperationView, Error> {
        let view = self.ended(id).await?;
        if view.status == OperationStatus::Done {
            Ok(view)
        } else {
            Err(view.error.clone().unwrap_or_else(|| Error::internal(format!("{view:?}"))))
        }
    }

    /// # Errors
    /// `timed_out`, with what was seen last.
    pub async fn observed(&self, id: ProjectId, state: ObservedState) -> Result<ProjectView, Error> {
        self.wait(&format!("the project to be {state:?}"), async |api: &Self| {
            api.project(id).await.map(|view| (view.observed == state).then_some(view))
        })
        .await
    }

    /// Asks again and again until there is something. Errors that pass by themselves (the master restarts) are asked again too.
    ///
    /// # Errors
    /// `timed_out`, or any error that doesn't pass.
    pub async fn wait<T>(&self, what: &str, ask: impl AsyncFn(&Self) -> Result<Option<T>, Error>) -> Result<T, Error> {
        let asking = async {
            loop {
                match ask(self).await {
                    Ok(Some(value)) => return Ok(value),
                    Err(error) if !error.retry => return Err(error),
                    Ok(None) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorCode::TimedOut, format!("Waited in vain for {what}."))))
    }

    /// For connections to the cluster's buses, still without a credential.
    pub fn bus_options(&self) -> async_nats::ConnectOptions {
        let options = async_nats::ConnectOptions::new();
        match &self.trust {
            Some(trust) => options.tls_client_config(trust.clone()),
            None => options,
        }
    }

    /// A connection to a project's host.
    ///
    /// # Errors
    /// As [`Self::call`]; `unavailable` if the host can't be reached.
    pub async fn connect(&self, project: ProjectId) -> Result<Remote, Error> {
        let place: ConnectReply = self.call(Method::POST, &format!("/v1/projects/{project}/connect"), Value::Null).await?;
        let options = self.bus_options().token(place.token.clone()).custom_inbox_prefix(place.inbox_prefix.clone());
        let client = options.connect(place.host_url.replacen("http", "ws", 1) + "/bus").await;
        let client = client.map_err(|error| Error::new(ErrorCode::Unavailable, error.to_string()))?;
        Ok(Remote { project, http: self.http.clone(), place, bus: Arc::new(StockConn::new(client)) })
    }
}

/// A project on its host.
pub struct Remote {
    pub project: ProjectId,
    pub place: ConnectReply,
    pub bus: Arc<dyn Conn>,
    http: reqwest::Client,
}

impl Remote {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// The agent's own.
    pub async fn exec(&self, argv: &[&str]) -> Result<ExecOutput, Error> {
        let request = ExecStart {
            stream: String::new(),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: std::collections::BTreeMap::new(),
            cwd: String::new(),
            stdin: false,
            timeout_millis: None,
        };
        Exec::start(&self.bus, self.project, request).await?.output(1 << 20).await
    }

    /// A request to the project's files; `path` begins after `/files/`.
    pub fn files(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/v1/projects/{}/files/{path}", self.place.host_url, self.project);
        self.http.request(method, url).bearer_auth(&self.place.token).timeout(PATIENCE)
    }
}

/// A project that any host can take.
pub fn spec(name: &str) -> ProjectSpec {
    let limits = Limits { memory_bytes: 256 << 20, cpu_millis: 500, pids: 200, disk_bytes: 100 << 20 };
    ProjectSpec { name: name.into(), image: "localhost/any:latest".into(), limits, env: [("OF_THE_SPEC".into(), "yes".into())].into() }
}
