use std::{sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode, KeySet, Role,
    api::{
        AccountList, ApiKeyList, ApiKeyReply, ConnectReply, Health, HostList, JoinTokenReply, LoginReply, OperationList, ProjectAccepted,
        ProjectList,
    },
    claims,
    host::{HostState, HostView, JoinReply, OFFLINE_AFTER_SECONDS},
    operation::{OperationKind, OperationStatus, OperationView},
    placement::Placement,
    project::{Intent, ObservedState, ProjectView},
};
use atoll_net::clock::TestClock;
use axum::{Router, body::Body};
use http::{Method, Request, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::testing::{BOUND, Fault, World};

/// An answer's status and body.
struct Answer(StatusCode, http::HeaderMap, Vec<u8>);

impl Answer {
    #[track_caller]
    fn is<T: DeserializeOwned>(&self, status: u16) -> T {
        assert_eq!(self.0.as_u16(), status, "{}", String::from_utf8_lossy(&self.2));
        serde_json::from_slice(&self.2).unwrap()
    }

    #[track_caller]
    fn fails(&self, code: ErrorCode) -> Error {
        let error: Error = self.is(code.http_status());
        assert_eq!(error.code, code, "{error:?}");
        assert!(self.1.contains_key("x-request-id"));
        error
    }
}

/// A caller of one master's API.
///
/// Its clock goes on by a millisecond with each call, so that ids have an order.
#[derive(Clone)]
struct Client(Router, Option<String>, Arc<TestClock>);

impl Client {
    fn new(world: &World) -> Self {
        Self(super::router(world.master().clone()), None, world.clock.clone())
    }

    fn with(&self, token: &str) -> Self {
        Self(self.0.clone(), Some(token.into()), self.2.clone())
    }

    async fn raw(&self, request: Request<Body>) -> Answer {
        self.2.advance(Duration::from_millis(1));
        let response = tokio::time::timeout(BOUND, self.0.clone().oneshot(request)).await.unwrap().unwrap();
        let (parts, body) = response.into_parts();
        Answer(parts.status, parts.headers, axum::body::to_bytes(body, 1 << 22).await.unwrap().to_vec())
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = &self.1 {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.raw(request.header(header::CONTENT_TYPE, "application/json").body(body).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn login(&self, name: &str) -> Self {
        let reply: LoginReply = self.post("/v1/login", json!({ "name": name, "password": PASSWORD })).await.is(200);
        self.with(&reply.token)
    }

    async fn finished(&self, accepted: &ProjectAccepted) -> OperationView {
        let mut view: OperationView = self.get(&format!("/v1/operations/{}", accepted.operation)).await.is(200);
        while !view.status.ended() {
            view = self.get(&format!("/v1/operations/{}?after={}&wait=10", accepted.operation, view.version)).await.is(200);
        }
        view
    }
}

const PASSWORD: &str = "correct horse";

/// A world with the accounts `root` (an admin) and `ann`, both with the same password.
async fn world() -> (World, Client, Client) {
    let world = World::new().await;
    for (name, admin) in [("root", true), ("ann", false)] {
        world.clock.advance(Duration::from_millis(1));
        world.master().auth.create_account(name.into(), PASSWORD.into(), admin).await.unwrap();
    }
    let client = Client::new(&world);
    let (root, ann) = (client.login("root").await, client.login("ann").await);
    (world, root, ann)
}

fn project(name: &str) -> Value {
    json!({ "spec": { "name": name, "image": "localhost/base:latest" } })
}

#[test]
fn the_description_is_as_in_the_golden_file() {
    let (_, document) = super::documented().split_for_parts();
    insta::with_settings!({ snapshot_path => "../../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("openapi", document.to_pretty_json().unwrap());
    });
}

#[tokio::test]
async fn errors_have_one_form_whoever_makes_them() {
    let (_world, root, _) = world().await;
    root.get("/nowhere").await.fails(ErrorCode::NotFound);
    root.get("/v1/openapi.json").await.is::<Value>(200);
    assert_eq!(root.call(Method::DELETE, "/v1/health", None).await.is::<Error>(405).code, ErrorCode::InvalidArgument);
    root.post("/v1/projects", json!({ "spec": 7 })).await.fails(ErrorCode::InvalidArgument);
    root.post("/v1/projects", json!({ "spec": { "name": "a", "image": "b" }, "unknown": 1 })).await.fails(ErrorCode::InvalidArgument);
    root.get("/v1/projects?limit=0").await.fails(ErrorCode::InvalidArgument);
    root.get("/v1/projects?colour=red").await.fails(ErrorCode::InvalidArgument);
    root.get("/v1/projects?after=x").await.fails(ErrorCode::InvalidArgument);
    root.get("/v1/projects/%FF").await.fails(ErrorCode::InvalidArgument);
    root.get("/v1/projects/..").await.fails(ErrorCode::NotFound);
    root.get("/bus").await.fails(ErrorCode::InvalidArgument);
    let raw = |body: &'static str, kind: &str| {
        let request = Request::builder().method(Method::POST).uri("/v1/login").header(header::CONTENT_TYPE, kind);
        request.body(Body::from(body)).unwrap()
    };
    root.raw(raw("{", "application/json")).await.fails(ErrorCode::InvalidArgument);
    root.raw(raw("{}", "text/plain")).await.fails(ErrorCode::InvalidArgument);
    let large = json!({ "name": "x".repeat(2 << 20), "password": "y" });
    root.post("/v1/login", large).await.fails(ErrorCode::TooLarge);
}

#[tokio::test]
async fn the_setup_token_makes_one_account_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(&dir.path().join("master.db")).unwrap();
    let clock = Arc::new(atoll_net::clock::SystemClock);
    let load = || crate::auth::Auth::load(store.clone(), clock.clone(), dir.path());
    let auth = load().await.unwrap();
    let token = auth.setup_token().unwrap();
    assert_eq!(load().await.unwrap().setup_token().as_ref(), Some(&token), "a printed token stays good");
    assert_eq!(std::fs::read_to_string(dir.path().join("setup-token")).unwrap().trim(), token);
    let set_up = async |token: &str, password: &str| auth.set_up(token, "root".into(), password.into()).await;
    assert_eq!(set_up("atl_i_wrong", PASSWORD).await.unwrap_err().code, ErrorCode::Unauthenticated);
    assert_eq!(set_up(&token, "short").await.unwrap_err().code, ErrorCode::InvalidArgument);
    let reply = set_up(&token, PASSWORD).await.unwrap();
    assert!(auth.identify(&reply.token).await.unwrap().admin);
    assert_eq!(set_up(&token, PASSWORD).await.unwrap_err().code, ErrorCode::Conflict);
    assert!(auth.setup_token().is_none() && !dir.path().join("setup-token").exists());
    assert!(load().await.unwrap().setup_token().is_none());
}

#[tokio::test]
async fn only_credentials_in_force_are_taken() {
    let (world, root, ann) = world().await;
    let nobody = Client::new(&world);
    assert_eq!(nobody.get("/v1/health").await.is::<Health>(200).setup_needed, Some(false));
    nobody.get("/v1/me").await.fails(ErrorCode::Unauthenticated);
    nobody.with("atl_s_nonsense").get("/v1/me").await.fails(ErrorCode::Unauthenticated);
    for (name, password) in [("ann", "wrong password"), ("nobody", PASSWORD)] {
        let error = nobody.post("/v1/login", json!({ "name": name, "password": password })).await.fails(ErrorCode::Unauthenticated);
        assert_eq!(error.message, "The name or the password is wrong.");
    }

    let key: ApiKeyReply = ann.post("/v1/keys", json!({ "name": "ci", "days": 1 })).await.is(201);
    let by_key = nobody.with(&key.token);
    assert_eq!(by_key.get("/v1/me").await.is::<Value>(200)["name"], "ann");
    assert_eq!(ann.get("/v1/keys").await.is::<ApiKeyList>(200).keys.len(), 1);
    by_key.post("/v1/logout", Value::Null).await.fails(ErrorCode::InvalidArgument);
    let path = format!("/v1/keys/{}", key.key.id);
    root.call(Method::DELETE, &path, None).await.fails(ErrorCode::NotFound);
    assert_eq!(ann.call(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    by_key.get("/v1/me").await.fails(ErrorCode::Unauthenticated);
    let key: ApiKeyReply = ann.post("/v1/keys", json!({ "name": "ci", "days": 1 })).await.is(201);
    let by_key = nobody.with(&key.token);

    let other = nobody.login("ann").await;
    assert_eq!(other.post("/v1/logout", Value::Null).await.0, StatusCode::NO_CONTENT);
    other.get("/v1/me").await.fails(ErrorCode::Unauthenticated);
    ann.get("/v1/me").await.is::<Value>(200);
    world.clock.advance(Duration::from_hours(24));
    by_key.get("/v1/me").await.fails(ErrorCode::Unauthenticated);
    world.clock.advance(Duration::from_hours(29 * 24));
    ann.get("/v1/me").await.fails(ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down() {
    let (world, ..) = world().await;
    let client = Client::new(&world);
    let wrong = json!({ "name": "ann", "password": "wrong password" });
    for _ in 0..10 {
        client.post("/v1/login", wrong.clone()).await.fails(ErrorCode::Unauthenticated);
    }
    client.post("/v1/login", wrong).await.fails(ErrorCode::LimitExceeded);
    client.post("/v1/login", json!({ "name": "ann", "password": PASSWORD })).await.fails(ErrorCode::LimitExceeded);
    client.login("root").await;
    world.clock.advance(Duration::from_mins(5));
    client.login("ann").await;
}

#[tokio::test]
async fn accounts_are_an_admins_to_make() {
    let (_world, root, ann) = world().await;
    let bob = json!({ "name": "bob", "password": PASSWORD });
    ann.post("/v1/accounts", bob.clone()).await.fails(ErrorCode::Forbidden);
    ann.get("/v1/accounts").await.fails(ErrorCode::Forbidden);
    root.post("/v1/accounts", bob.clone()).await.is::<Value>(201);
    root.post("/v1/accounts", bob).await.fails(ErrorCode::AlreadyExists);
    let page: AccountList = root.get("/v1/accounts?limit=3").await.is(200);
    let rest: AccountList = root.get(&format!("/v1/accounts?after={}", page.next.unwrap())).await.is(200);
    let names: Vec<_> = page.accounts.iter().chain(&rest.accounts).map(|account| account.name.as_str()).collect();
    assert_eq!((names, rest.next), (vec!["admin", "root", "ann", "bob"], None));
}

#[tokio::test]
async fn a_projects_whole_life() {
    let (mut world, root, ann) = world().await;
    let mut body = project("thesis");
    body["start"] = json!(true);
    body["idempotency_key"] = json!("once");
    let accepted: ProjectAccepted = ann.post("/v1/projects", body.clone()).await.is(202);
    assert_eq!(accepted.placement.as_ref().unwrap().chosen, Some(world.host.id));
    assert_eq!(ann.post("/v1/projects", body).await.is::<ProjectAccepted>(202), accepted);
    assert_eq!(ann.finished(&accepted).await.status, OperationStatus::Done);
    ann.post("/v1/projects", project("thesis")).await.fails(ErrorCode::AlreadyExists);

    for who in [&ann, &root] {
        let view: ProjectView = who.get(&format!("/v1/projects/{}", accepted.project)).await.is(200);
        assert_eq!((view.intent, view.observed, view.operation), (Intent::Running, ObservedState::Running, None));
    }
    assert_eq!(ann.get("/v1/projects/Thesis").await.is::<ProjectView>(200).id, accepted.project);
    let connect: ConnectReply = ann.post("/v1/projects/thesis/connect", Value::Null).await.is(200);
    let keys = KeySet::new(&root.get("/.well-known/jwks.json").await.is(200));
    let verified = claims::verify(&connect.token, &keys, world.host.id, crate::testing::START).unwrap();
    assert_eq!((verified.project, verified.role, verified.exp - verified.iat), (accepted.project, Role::Owner, 300));
    assert_eq!(connect.inbox_prefix, format!("_INBOX.{}", verified.jti));

    let stopped: ProjectAccepted = ann.post("/v1/projects/thesis/stop", Value::Null).await.is(202);
    assert_eq!(ann.finished(&stopped).await.kind, OperationKind::Stop);
    world.report();
    assert_eq!(ann.get("/v1/projects/thesis").await.is::<ProjectView>(200).observed, ObservedState::Stopped);
    for verb in ["start", "restart"] {
        let accepted: ProjectAccepted = ann.post(&format!("/v1/projects/thesis/{verb}"), Value::Null).await.is(202);
        assert_eq!(ann.finished(&accepted).await.status, OperationStatus::Done);
    }
    let path = format!("/v1/operations?project={}", accepted.project);
    let deleted: ProjectAccepted = ann.call(Method::DELETE, "/v1/projects/thesis", None).await.is(202);
    assert_eq!(ann.finished(&deleted).await.status, OperationStatus::Done);
    ann.get(&format!("/v1/projects/{}", accepted.project)).await.fails(ErrorCode::NotFound);
    let kinds: Vec<_> = ann.get(&path).await.is::<OperationList>(200).operations.into_iter().map(|op| op.kind.as_str()).collect();
    assert_eq!(kinds, ["delete", "restart", "start", "stop", "create"]);
}

#[tokio::test]
async fn another_accounts_things_are_not_there() {
    let (world, root, ann) = world().await;
    let accepted: ProjectAccepted = root.post("/v1/projects", project("secret")).await.is(202);
    root.finished(&accepted).await;
    let path = format!("/v1/projects/{}", accepted.project);
    ann.get(&path).await.fails(ErrorCode::NotFound);
    ann.get("/v1/projects/secret").await.fails(ErrorCode::NotFound);
    ann.call(Method::DELETE, &path, None).await.fails(ErrorCode::NotFound);
    for verb in ["start", "stop", "restart", "connect"] {
        ann.post(&format!("{path}/{verb}"), Value::Null).await.fails(ErrorCode::NotFound);
    }
    ann.get(&format!("/v1/operations/{}", accepted.operation)).await.fails(ErrorCode::NotFound);
    ann.post(&format!("/v1/operations/{}/cancel", accepted.operation), Value::Null).await.fails(ErrorCode::NotFound);
    assert!(ann.get("/v1/projects").await.is::<ProjectList>(200).projects.is_empty());
    assert!(ann.get(&format!("/v1/operations?project={}", accepted.project)).await.is::<OperationList>(200).operations.is_empty());
    assert!(ann.get("/v1/hosts").await.is::<HostList>(200).hosts.is_empty());
    ann.get("/v1/hosts/host-a").await.fails(ErrorCode::NotFound);

    let own: ProjectAccepted = ann.post("/v1/projects", project("own")).await.is(202);
    ann.finished(&own).await;
    assert_eq!(ann.get("/v1/hosts").await.is::<HostList>(200).hosts.len(), 1);
    assert_eq!(root.get("/v1/projects").await.is::<ProjectList>(200).projects.len(), 2);
    let page: ProjectList = root.get("/v1/projects?limit=1").await.is(200);
    let rest: ProjectList = root.get(&format!("/v1/projects?after={}", page.next.unwrap())).await.is(200);
    assert_eq!(rest.projects[0].id, own.project);
    assert_eq!(root.get("/v1/projects?mine=true").await.is::<ProjectList>(200).projects.len(), 1);
    drop(world);
}

#[tokio::test]
async fn no_room_says_why_and_leaves_nothing() {
    let (_world, _, ann) = world().await;
    let mut body = project("huge");
    body["spec"]["limits"] = json!({ "memory_bytes": 1_u64 << 40, "cpu_millis": 1000, "pids": 100, "disk_bytes": 1 << 30 });
    body["requirements"] = json!({ "region": "mars" });
    let error = ann.post("/v1/projects", body.clone()).await.fails(ErrorCode::NoRoom);
    let reasons: Vec<_> =
        error.details.unwrap()["refusals"][0]["refusals"].as_array().unwrap().iter().map(|one| one["reason"].clone()).collect();
    assert_eq!(reasons, ["other_region", "too_little_memory"]);
    assert!(ann.get("/v1/projects").await.is::<ProjectList>(200).projects.is_empty());
    let dry: Placement =
        ann.post("/v1/placement", json!({ "limits": body["spec"]["limits"], "requirements": body["requirements"] })).await.is(200);
    assert_eq!((dry.chosen, dry.candidates[0].refusals.len()), (None, 2));
    assert!(ann.post("/v1/placement", json!({})).await.is::<Placement>(200).chosen.is_some());
}

#[tokio::test]
async fn a_silent_hosts_projects_are_unknown_and_not_connected_to() {
    let (mut world, root, ann) = world().await;
    let accepted: ProjectAccepted = ann.post("/v1/projects", project("thesis")).await.is(202);
    ann.finished(&accepted).await;
    world.clock.advance(Duration::from_secs(OFFLINE_AFTER_SECONDS));
    assert_eq!(ann.get("/v1/projects/thesis").await.is::<ProjectView>(200).observed, ObservedState::Unknown);
    assert_eq!(root.get("/v1/hosts/host-a").await.is::<HostView>(200).state, HostState::Offline);
    ann.post("/v1/projects/thesis/connect", Value::Null).await.fails(ErrorCode::HostUnavailable);
    ann.post("/v1/projects", project("other")).await.fails(ErrorCode::NoRoom);
    world.report();
    assert_eq!(ann.get("/v1/projects/thesis").await.is::<ProjectView>(200).observed, ObservedState::Stopped);
    ann.post("/v1/projects/thesis/connect", Value::Null).await.is::<ConnectReply>(200);
}

#[tokio::test]
async fn hosts_join_with_a_token_drain_and_leave() {
    let (_world, root, ann) = world().await;
    let key = nkeys::KeyPair::new_user().public_key();
    ann.post("/v1/join-tokens", json!({})).await.fails(ErrorCode::Forbidden);
    root.post("/v1/join-tokens", json!({ "minutes": 0 })).await.fails(ErrorCode::InvalidArgument);
    let token: JoinTokenReply = root.post("/v1/join-tokens", json!({ "name": "host-b", "minutes": 5 })).await.is(201);
    let join = |token: &str, name: &str, key: &str| json!({ "token": token, "name": name, "public_key": key });
    let nobody = Client(root.0.clone(), None, root.2.clone());
    nobody.post("/v1/hosts/join", join("atl_j_wrong", "host-b", &key)).await.fails(ErrorCode::Unauthenticated);
    nobody.post("/v1/hosts/join", join(&token.token, "host-b", "Unot-a-key")).await.fails(ErrorCode::InvalidArgument);
    let account = nkeys::KeyPair::new_account().public_key();
    nobody.post("/v1/hosts/join", join(&token.token, "host-b", &account)).await.fails(ErrorCode::InvalidArgument);
    let joined: JoinReply = nobody.post("/v1/hosts/join", join(&token.token, "host-b", &key)).await.is(200);
    let other = nkeys::KeyPair::new_user().public_key();
    nobody.post("/v1/hosts/join", join(&token.token, "host-b", &other)).await.fails(ErrorCode::Unauthenticated);

    let path = format!("/v1/hosts/{}", joined.host);
    ann.call(Method::PATCH, &path, Some(json!({ "draining": true }))).await.fails(ErrorCode::Forbidden);
    assert!(root.call(Method::PATCH, "/v1/hosts/host-b", Some(json!({ "draining": true }))).await.is::<HostView>(200).draining);
    assert_eq!(root.get("/v1/hosts").await.is::<HostList>(200).hosts.len(), 2);
    let accepted: ProjectAccepted = root.post("/v1/projects", project("thesis")).await.is(202);
    root.finished(&accepted).await;
    root.call(Method::DELETE, "/v1/hosts/host-a", None).await.fails(ErrorCode::Conflict);
    assert_eq!(root.call(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    root.call(Method::DELETE, &path, None).await.fails(ErrorCode::NotFound);
}

#[tokio::test]
async fn a_long_poll_answers_with_the_change_and_a_cancel_turns_back() {
    let (world, _, ann) = world().await;
    world.host.fault("ensure_image", Fault::Hang);
    let accepted: ProjectAccepted = ann.post("/v1/projects", project("thesis")).await.is(202);
    world.host.until_hanging().await;
    let path = format!("/v1/operations/{}", accepted.operation);
    let now: OperationView = ann.get(&path).await.is(200);
    assert_eq!(ann.get(&format!("{path}?after=0&wait=60")).await.is::<OperationView>(200).version, now.version, "a change that was");
    let poll = tokio::spawn({
        let (ann, path) = (ann.clone(), format!("{path}?after={}&wait=60", now.version));
        async move { ann.get(&path).await.is::<OperationView>(200) }
    });
    let cancelled: OperationView = ann.post(&format!("{path}/cancel"), Value::Null).await.is(200);
    assert!(matches!(cancelled.status, OperationStatus::Undoing | OperationStatus::Cancelled));
    assert!(poll.await.unwrap().version > now.version);
    let end = ann.finished(&accepted).await;
    assert_eq!(end.status, OperationStatus::Cancelled);
    assert_eq!(ann.post(&format!("{path}/cancel"), Value::Null).await.is::<OperationView>(200), end);
    ann.get("/v1/projects/thesis").await.fails(ErrorCode::NotFound);
    let done: ProjectAccepted = ann.post("/v1/projects", project("thesis")).await.is(202);
    ann.finished(&done).await;
    ann.post(&format!("/v1/operations/{}/cancel", done.operation), Value::Null).await.fails(ErrorCode::Conflict);
    assert_eq!(ann.get(&format!("{path}?after={}&wait=60", end.version)).await.is::<OperationView>(200), end, "it has ended: no wait");
}
