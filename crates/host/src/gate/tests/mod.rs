//! The gate as clients see it.

mod access;
mod buses;
mod files;
mod live;
mod uploads;

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use atoll_contract::{
    Error, ErrorCode, Generation, HostId, KeySet, ProjectId, Role, Timestamp,
    claims::{ConnectClaims, Jwk, Jwks},
};
use atoll_net::{
    bus::{BusLimits, Router},
    clock::TestClock,
};
use axum::{body::Body, response::Response};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::runtime::Owner;

pub(super) const NOW: i64 = 1_800_000_000;
pub(super) const PROJECT: &str = "0198c0de-0000-7000-8000-000000000003";
pub(super) const OTHER: &str = "0198c0de-0000-7000-8000-000000000004";
const HOST: &str = "0198c0de-0000-7000-8000-000000000002";
/// Of a key pair for these tests alone: RFC 8037, appendix A.1.
const SEED: [u8; 32] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32,
    0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
const PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

/// Projects in a temporary directory.
#[derive(Default)]
pub(super) struct FakePlaces(Mutex<HashMap<ProjectId, (Generation, Home)>>);

impl FakePlaces {
    pub(super) fn set_generation(&self, project: &str, generation: u64) {
        self.0.lock().unwrap().get_mut(&project.parse().unwrap()).unwrap().0 = Generation(generation);
    }
}

impl Places for FakePlaces {
    fn generation(&self, project: ProjectId) -> Option<Generation> {
        self.0.lock().unwrap().get(&project).map(|(generation, _)| *generation)
    }

    fn home(&self, project: ProjectId) -> Result<Home, Error> {
        self.0.lock().unwrap().get(&project).map(|(_, home)| home.clone()).ok_or_else(|| Error::not_found("project"))
    }
}

pub(super) struct World {
    dir: tempfile::TempDir,
    pub(super) places: Arc<FakePlaces>,
    pub(super) clock: Arc<TestClock>,
    pub(super) keys: SharedKeys,
    pub(super) bus: Arc<Router>,
    pub(super) cancel: CancellationToken,
    pub(super) app: axum::Router,
}

pub(super) fn claims(role: Role) -> ConnectClaims {
    ConnectClaims {
        sub: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
        aud: HOST.parse().unwrap(),
        project: PROJECT.parse().unwrap(),
        role,
        generation: Generation(1),
        iat: NOW,
        exp: NOW + 300,
        jti: "abcdefghijklmnopqrstuvwxyz".into(),
    }
}

pub(super) fn sign(claims: &ConnectClaims) -> String {
    // PKCS#8 (RFC 8410) is a fixed prefix before the seed
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend(SEED);
    let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&der)).unwrap()
}

pub(super) fn key_set() -> KeySet {
    KeySet::new(&Jwks { keys: vec![Jwk { x: PUBLIC.into(), ..Jwk::ed25519("k1", &[0; 32]) }] })
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(GateLimits::default())
    }

    pub(super) fn with(limits: GateLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let places = FakePlaces::default();
        let owner = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        for project in [PROJECT, OTHER] {
            let base = dir.path().join(project);
            let home = Home { home: base.join("home"), state: base.join("state"), owner };
            fs::create_dir_all(&home.home).unwrap();
            fs::create_dir_all(&home.state).unwrap();
            places.0.lock().unwrap().insert(project.parse().unwrap(), (Generation(1), home));
        }
        let (places, clock, keys) = (Arc::new(places), TestClock::at(Timestamp::from_millis(NOW * 1000)), SharedKeys::new(key_set()));
        let (bus, cancel) = (Router::new(BusLimits::default(), clock.clone()), CancellationToken::new());
        let gate = Gate::new(GateParts {
            places: places.clone(),
            keys: keys.clone(),
            host: HOST.parse::<HostId>().unwrap(),
            clock: clock.clone(),
            bus: bus.clone(),
            limits,
            cancel: cancel.clone(),
        });
        Self { dir, places, clock, keys, bus, cancel, app: router(gate) }
    }

    /// A path in the project's home for the test's own hands.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(PROJECT).join("home").join(path)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.path().join(PROJECT).join("state")
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Response {
        self.app.clone().oneshot(request).await.unwrap()
    }

    /// A request of a collaborator about a file; `target` is what follows `files/`.
    pub(super) async fn call(&self, method: Method, target: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.call_as(Role::Collaborator, method, &format!("files/{target}"), headers, body).await
    }

    pub(super) async fn call_as(
        &self,
        role: Role,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        Answer::read(self.send(request(Some(&sign(&claims(role))), method, target, headers, body)).await).await
    }

    pub(super) async fn get(&self, target: &str) -> Answer {
        self.call(Method::GET, target, &[], Body::empty()).await
    }
}

pub(super) fn request(token: Option<&str>, method: Method, target: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let uri = if target.starts_with('/') { target.to_owned() } else { format!("/v1/projects/{PROJECT}/{target}") };
    let mut builder = Request::builder().method(method).uri(uri);
    if let Some(token) = token {
        builder = builder.header("authorization", format!("Bearer {token}"));
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).unwrap()
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// None if the body broke off.
    pub(super) body: Option<Vec<u8>>,
}

impl Answer {
    pub(super) async fn read(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        assert!(parts.headers.contains_key("x-request-id"));
        assert_eq!(parts.headers["x-content-type-options"], "nosniff");
        assert!(parts.headers["content-security-policy"].to_str().unwrap().contains("sandbox"));
        Self { status: parts.status, headers: parts.headers, body: body.collect().await.ok().map(|body| body.to_bytes().to_vec()) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.body.as_deref().unwrap()
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(self.bytes()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub(super) fn ok(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(self.bytes()));
        self
    }

    /// An error of this status and code, in the contract's form.
    #[track_caller]
    pub(super) fn error(&self, status: u16, code: ErrorCode) -> Error {
        let error: Error = self.json();
        assert_eq!((self.status.as_u16(), error.code), (status, code), "{error}");
        error
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }
}
