//! The commands against a master that answers what a test wants.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
};

use assert_cmd::Command;
use atoll_contract::{
    Error, ErrorCode, Timestamp,
    api::{CreateProject, Health, LoginReply, LoginRequest, ProjectAccepted, ProjectList},
    operation::{OperationKind, OperationStatus, OperationView, Progress, Step},
    project::{Generation, Intent, Limits, ObservedState, ProjectSpec, ProjectView},
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};

const PROJECT: &str = "0198c0de-0000-7000-8000-00000000000a";
const OPERATION: &str = "0198c0de-0000-7000-8000-00000000000b";
const HOST: &str = "0198c0de-0000-7000-8000-00000000000c";
const ACCOUNT: &str = "0198c0de-0000-7000-8000-00000000000d";
const TOKEN: &str = "session-of-ada";

/// What the fake was asked, and how it behaves.
#[derive(Default)]
struct Fake {
    created: Mutex<Vec<CreateProject>>,
    logouts: Mutex<u32>,
    watched: Mutex<u32>,
    cancelled: Mutex<bool>,
    /// The first answer to a create is lost.
    lose_first: bool,
    fails: bool,
    /// The operation ends by nothing but a cancel.
    stuck: bool,
}

type Shared = State<Arc<Fake>>;

fn refuse(error: &Error) -> Response {
    (StatusCode::from_u16(error.code.http_status()).unwrap(), Json(error)).into_response()
}

fn authenticated(headers: &HeaderMap) -> Result<(), Box<Response>> {
    match headers.get("authorization").and_then(|value| value.to_str().ok()) {
        Some(value) if value == format!("Bearer {TOKEN}") => Ok(()),
        _ => Err(Box::new(refuse(&Error::new(ErrorCode::Unauthenticated, "No valid credential came with the request.")))),
    }
}

fn project() -> ProjectView {
    ProjectView {
        id: PROJECT.parse().unwrap(),
        owner: ACCOUNT.parse().unwrap(),
        spec: ProjectSpec { name: "thesis".into(), image: "i".into(), limits: Limits::default(), env: BTreeMap::new() },
        intent: Intent::Running,
        observed: ObservedState::Running,
        error: None,
        host: Some(HOST.parse().unwrap()),
        host_name: Some("a".into()),
        generation: Some(Generation(1)),
        operation: None,
        used_bytes: None,
        created_at: Timestamp::from_millis(0),
    }
}

fn operation(fake: &Fake, version: u64) -> OperationView {
    let ended = version >= 3 && !fake.stuck;
    let status = match (ended, *fake.cancelled.lock().unwrap(), fake.fails) {
        (_, true, _) => OperationStatus::Cancelled,
        (true, _, true) => OperationStatus::Failed,
        (true, _, false) => OperationStatus::Done,
        _ => OperationStatus::Running,
    };
    OperationView {
        id: OPERATION.parse().unwrap(),
        kind: OperationKind::Create,
        project: PROJECT.parse().unwrap(),
        project_name: "thesis".into(),
        account: ACCOUNT.parse().unwrap(),
        host: Some(HOST.parse().unwrap()),
        status,
        step: if ended { Step::Finished } else { Step::Image },
        steps: vec![Step::Volumes, Step::Image, Step::Run],
        point_of_no_return: Step::Run,
        progress: Progress { phase: format!("phase {version}"), ..Progress::default() },
        error: (status == OperationStatus::Failed)
            .then(|| Error::new(ErrorCode::ImageUnavailable, "There is no image \"i\".").mend("Name another image.")),
        attempts: 0,
        version,
        created_at: Timestamp::from_millis(0),
        updated_at: Timestamp::from_millis(0),
    }
}

async fn create(State(fake): Shared, headers: HeaderMap, Json(request): Json<CreateProject>) -> Response {
    if let Err(refused) = authenticated(&headers) {
        return *refused;
    }
    fake.created.lock().unwrap().push(request);
    if fake.lose_first && fake.created.lock().unwrap().len() == 1 {
        return refuse(&Error::new(ErrorCode::Unavailable, "The master is shutting down."));
    }
    let accepted = ProjectAccepted { project: PROJECT.parse().unwrap(), operation: OPERATION.parse().unwrap(), placement: None };
    (StatusCode::ACCEPTED, Json(accepted)).into_response()
}

async fn show_operation(State(fake): Shared, Path(_): Path<String>, Query(query): Query<BTreeMap<String, String>>) -> Json<OperationView> {
    *fake.watched.lock().unwrap() += 1;
    let after: u64 = query.get("after").map_or(0, |after| after.parse().unwrap());
    if fake.stuck && after > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Json(operation(&fake, if fake.stuck { 1 } else { after + 1 }))
}

async fn cancel(State(fake): Shared) -> Json<OperationView> {
    *fake.cancelled.lock().unwrap() = true;
    Json(operation(&fake, 1))
}

async fn login(Json(request): Json<LoginRequest>) -> Response {
    if request.password != "right" {
        return refuse(&Error::new(ErrorCode::Unauthenticated, "Name or password is wrong."));
    }
    let expires_at = Timestamp::from_millis(4_000_000_000_000);
    Json(LoginReply { account: ACCOUNT.parse().unwrap(), name: request.name, token: TOKEN.into(), expires_at }).into_response()
}

/// A fake master on a port of its own, a home directory, and the program that speaks to it.
struct World {
    fake: Arc<Fake>,
    url: String,
    home: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new(fake: Fake) -> Self {
        let fake = Arc::new(fake);
        let router = Router::new()
            .route("/v1/health", get(|| async { Json(Health { role: "master".into(), version: "0".into(), setup_needed: Some(true) }) }))
            .route("/v1/login", post(login))
            .route(
                "/v1/logout",
                post(|State(fake): Shared| async move {
                    *fake.logouts.lock().unwrap() += 1;
                    StatusCode::NO_CONTENT
                }),
            )
            .route(
                "/v1/projects",
                get(|headers: HeaderMap, Query(query): Query<BTreeMap<String, String>>| async move {
                    if let Err(refused) = authenticated(&headers) {
                        return *refused;
                    }
                    // two pages
                    let second = query.contains_key("after");
                    let mut view = project();
                    if !second {
                        view.spec.name = "other".into();
                        view.id = HOST.parse().unwrap();
                    }
                    Json(ProjectList { projects: vec![view], next: (!second).then(|| "x".into()) }).into_response()
                })
                .post(create),
            )
            .route(
                "/v1/projects/{id}",
                get(|Path(name): Path<String>| async move {
                    if name == "thesis" || name == PROJECT { Json(project()).into_response() } else { refuse(&Error::not_found("project")) }
                }),
            )
            .route("/v1/operations/{id}", get(show_operation))
            .route("/v1/operations/{id}/cancel", post(cancel))
            .with_state(fake.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { fake, url, home: tempfile::tempdir().unwrap(), _runtime: runtime }
    }

    fn atoll(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
        command.env_clear().env("HOME", self.home.path()).env("ATOLL_MASTER", &self.url).timeout(std::time::Duration::from_mins(1));
        command
    }

    fn with_key(&self) -> Command {
        let mut command = self.atoll();
        command.env("ATOLL_TOKEN", TOKEN);
        command
    }
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn lists_are_read_page_by_page() {
    let world = World::new(Fake::default());
    let output = world.with_key().args(["project", "list", "--json"]).assert().success().get_output().clone();
    let list = json(&output.stdout);
    assert_eq!(list["projects"].as_array().unwrap().len(), 2);
    assert_eq!(list["projects"][1]["spec"]["name"], "thesis");
    let output = world.with_key().args(["project", "list"]).assert().success().get_output().clone();
    assert!(text(&output.stdout).starts_with("NAME"), "{}", text(&output.stdout));
    let output = world.with_key().args(["project", "info", "thesis"]).assert().success().get_output().clone();
    assert!(text(&output.stdout).contains("running"));
    let output = world.with_key().args(["project", "info", "nonesuch"]).assert().code(3).get_output().clone();
    assert!(text(&output.stderr).starts_with("error[not_found]"));
}

#[test]
fn create_waits_for_its_operation() {
    let world = World::new(Fake::default());
    let mut command = world.with_key();
    command.args(["project", "create", "thesis", "--image", "i", "--memory", "512M", "--cpu", "0.5", "--pids", "200", "--disk", "1G"]);
    command.args(["--label", "disk=ssd", "--env", "A=b=c", "--start", "--json"]);
    let output = command.assert().success().get_output().clone();
    let ended = json(&output.stdout);
    assert_eq!((&ended["status"], &ended["id"]), (&"done".into(), &OPERATION.into()));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    assert!(*world.fake.watched.lock().unwrap() >= 3);
    let created = world.fake.created.lock().unwrap();
    let limits = &created[0].spec.limits;
    assert_eq!((limits.memory_bytes, limits.cpu_millis, limits.pids, limits.disk_bytes), (512 << 20, 500, 200, 1 << 30));
    assert_eq!(created[0].requirements.labels["disk"], "ssd");
    assert_eq!(created[0].spec.env["A"], "b=c");
    assert!(created[0].start);
}

#[test]
fn progress_is_lines_where_there_is_no_terminal() {
    let world = World::new(Fake::default());
    let output = world.with_key().args(["project", "create", "thesis", "--image", "i"]).assert().success().get_output().clone();
    let stderr = text(&output.stderr);
    assert!(stderr.contains("create thesis: image (2 of 3), phase 1\n") && stderr.contains("phase 2\n"), "{stderr}");
    assert_eq!(text(&output.stdout), format!("thesis is there, stopped ({PROJECT})\n"));
}

#[test]
fn without_waiting_the_operation_is_named() {
    let world = World::new(Fake::default());
    let args = ["project", "create", "thesis", "--image", "i", "--no-wait"];
    let output = world.with_key().args(args).assert().success().get_output().clone();
    assert_eq!(text(&output.stdout), format!("{OPERATION}\n"));
    let output = world.with_key().args(args).arg("--json").assert().success().get_output().clone();
    assert_eq!(json(&output.stdout)["operation"], OPERATION);
    assert_eq!(*world.fake.watched.lock().unwrap(), 0);
}

#[test]
fn a_lost_answer_is_asked_for_with_the_same_key() {
    let world = World::new(Fake { lose_first: true, ..Fake::default() });
    world.with_key().args(["project", "create", "thesis", "--image", "i"]).assert().success();
    let created = world.fake.created.lock().unwrap();
    assert_eq!(created.len(), 2);
    assert!(created[0].idempotency_key.is_some() && created[0] == created[1]);
}

#[test]
fn a_failed_operation_is_the_commands_failure() {
    let world = World::new(Fake { fails: true, ..Fake::default() });
    let output = world.with_key().args(["operation", "wait", OPERATION]).assert().code(1).get_output().clone();
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("error[image_unavailable]: create thesis failed: There is no image \"i\".\n  mend: Name another image."),
        "{stderr}"
    );
    let output = world.with_key().args(["operation", "wait", OPERATION, "--json"]).assert().code(1).get_output().clone();
    assert_eq!(json(&output.stderr)["code"], "image_unavailable");
}

/// The first Ctrl-C says how to go on, the second asks for a cancel.
#[test]
fn ctrl_c_leaves_the_choice() {
    use std::io::{BufRead, BufReader};
    let world = World::new(Fake { stuck: true, ..Fake::default() });
    #[expect(clippy::disallowed_methods, reason = "the process must be signalled while it runs")]
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_atoll"))
        .args(["operation", "wait", OPERATION])
        .env_clear()
        .envs([("ATOLL_MASTER", world.url.as_str()), ("ATOLL_TOKEN", TOKEN)])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let interrupt = || rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(lines.next().unwrap().starts_with("create thesis: image"));
    // its handler is there from the first wait on, which this line was after
    interrupt();
    assert_eq!(lines.next().unwrap(), format!("The operation goes on without this command: atoll operation wait {OPERATION}"));
    assert!(lines.next().unwrap().contains("Ctrl-C again"));
    assert!(!*world.fake.cancelled.lock().unwrap());
    interrupt();
    assert_eq!(lines.next().unwrap(), "Asked for it to be cancelled.");
    assert!(lines.any(|line| line.starts_with("error[cancelled]")));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn what_cannot_be_right_is_not_sent() {
    let world = World::new(Fake::default());
    let output = world.with_key().args(["project", "create", "-x", "--image", "i"]).assert().code(2).get_output().clone();
    assert!(!output.stderr.is_empty());
    world.with_key().args(["project", "create", "thesis", "--image", "i", "--memory", "1K"]).assert().code(2);
    assert!(world.fake.created.lock().unwrap().is_empty());
}

#[test]
fn a_login_is_kept_used_and_ended() {
    let world = World::new(Fake::default());
    let password = world.home.path().join("password");
    fs::write(&password, "wrong\n").unwrap();
    let login = || {
        let mut command = world.atoll();
        command.args(["login", "--name", "ada", "--password-file"]).arg(&password);
        command
    };
    login().assert().code(4);
    // from standard input, too
    world.atoll().args(["login", "--name", "ada", "--password-file", "-"]).write_stdin("right\n").assert().success();
    fs::write(&password, "right\n").unwrap();
    let output = login().arg("--json").assert().success().get_output().clone();
    assert_eq!(json(&output.stdout)["name"], "ada");
    assert!(!text(&output.stdout).contains(TOKEN), "a secret was printed");

    let file = world.home.path().join(".config/atoll/credentials.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // the master that was logged in to is the default from now on
    world.atoll().env_remove("ATOLL_MASTER").args(["project", "list"]).assert().success();
    let elsewhere = world.home.path().join("c.json");
    world.atoll().env("ATOLL_CREDENTIALS", &elsewhere).args(["project", "list"]).assert().code(4);

    world.atoll().arg("logout").assert().success();
    assert_eq!(*world.fake.logouts.lock().unwrap(), 1);
    world.atoll().args(["project", "list"]).assert().code(4);
    assert!(!fs::read_to_string(&file).unwrap().contains(TOKEN));
}

#[test]
fn health_says_what_is_next() {
    let world = World::new(Fake::default());
    let output = world.atoll().arg("health").assert().success().get_output().clone();
    assert!(text(&output.stdout).contains("atoll setup"), "{}", text(&output.stdout));
}

#[test]
fn an_error_that_is_not_the_contracts_is_still_one() {
    let world = World::new(Fake::default());
    // no such route in the fake: an empty 404
    let output = world.with_key().args(["host", "list", "--json"]).assert().code(3).get_output().clone();
    assert_eq!(json(&output.stderr)["code"], "not_found");
}
