//! The wire form of every type that crosses a process boundary, as golden files: a change of one is a change of the protocol, and must
//! be seen in review. Every value is also read back.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::{collections::BTreeMap, fmt::Debug};

use atoll_contract::{
    Error, ErrorCode, Generation, Role, Timestamp,
    agent::{
        AgentConfig, AgentInfo, ExecCancel, ExecExit, ExecStart, ExecStarted, Reply, Size, TerminalAttach, TerminalAttached, TerminalClose,
        TerminalDetach, TerminalEvent, TerminalOpen, TerminalResize, TerminalView,
    },
    api::{
        AccountView, ApiKeyReply, ApiKeyRequest, ApiKeyView, ConnectReply, CreateProject, Health, HostPatch, JoinTokenReply,
        JoinTokenRequest, LoginReply, LoginRequest, ProjectAccepted, ProjectList, SetupRequest,
    },
    claims::{Jwk, Jwks},
    command::{Command, CommandReply, Verb},
    files::{FileEntry, FileKind, FileList},
    host::{
        Capacity, Finding, HostFacts, HostReport, HostState, HostView, JoinReply, JoinRequest, ReportAck, Severity, StorageCapabilities,
        StorageKind,
    },
    id::{Id, Kind},
    operation::{OperationKind, OperationStatus, OperationView, Progress, Step},
    placement::{Candidate, Placement, PlacementRequest, Refusal, Requirements, Score},
    project::{Intent, Limits, ObservedProject, ObservedState, ProjectSpec, ProjectView},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

#[path = "golden/bus.rs"]
mod bus;

/// One golden file: named values in the order in which they were added.
#[derive(Default)]
struct Golden(Vec<(String, Value)>);

impl Golden {
    fn add<T: Serialize + DeserializeOwned + PartialEq + Debug>(mut self, name: &str, value: T) -> Self {
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<T>(&text).unwrap(), value, "{name} is not read back as it was written");
        self.0.push((name.into(), serde_json::from_str(&text).unwrap()));
        self
    }

    fn check(self, file: &str) {
        let values: Vec<Value> = self.0.into_iter().map(|(name, value)| Value::Object(Map::from_iter([(name, value)]))).collect();
        insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_json_snapshot!(file, values);
        });
    }
}

fn id<K: Kind>(n: u8) -> Id<K> {
    format!("0198c0de-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

fn time() -> Timestamp {
    Timestamp::from_millis(1_795_000_000_123)
}

fn error() -> Error {
    Error::new(ErrorCode::StartFailed, "The project did not start.").mend("See its log.").details(json!({ "log": "exec format error" }))
}

fn spec() -> ProjectSpec {
    let env = BTreeMap::from([("LANG".to_owned(), "C.UTF-8".to_owned())]);
    ProjectSpec { name: "thesis".into(), image: "docker.io/library/debian:12".into(), limits: Limits::default(), env }
}

fn bare_spec() -> ProjectSpec {
    ProjectSpec { env: BTreeMap::new(), ..spec() }
}

fn observed() -> ObservedProject {
    ObservedProject { project: id(3), generation: Generation(4), state: ObservedState::Running, error: None, used_bytes: Some(4096) }
}

fn failed() -> ObservedProject {
    ObservedProject { state: ObservedState::Failed, error: Some(error()), used_bytes: None, ..observed() }
}

fn progress() -> Progress {
    Progress {
        phase: "pulling docker.io/library/debian:12".into(),
        bytes_done: Some(10),
        bytes_total: Some(100),
        bytes_per_second: Some(5),
        eta_seconds: Some(18),
    }
}

fn jwks() -> Jwks {
    Jwks { keys: vec![Jwk::ed25519("k1", &[7; 32])] }
}

fn capabilities() -> StorageCapabilities {
    StorageCapabilities { snapshots: false, quotas: true, cheap_usage: true, send_receive: false }
}

fn capacity() -> Capacity {
    Capacity {
        cpus: 8,
        memory_bytes: 1 << 34,
        memory_available_bytes: 1 << 33,
        disk_bytes: 1 << 40,
        disk_used_bytes: 1 << 39,
        disk_headroom_bytes: 1 << 38,
        projects: 5,
        projects_running: 2,
        max_running: 200,
    }
}

fn facts() -> HostFacts {
    HostFacts {
        version: "0.1.0".into(),
        public_url: "https://host-a.example.org".into(),
        region: "eu-west".into(),
        labels: BTreeMap::from([("gpu".to_owned(), "no".to_owned())]),
        storage: StorageKind::Btrfs,
        capabilities: capabilities(),
        arch: "x86_64".into(),
        findings: vec![
            Finding { code: "runtime.podman".into(), severity: Severity::Ok, message: "podman answers.".into(), mend: String::new() },
            Finding {
                code: "runtime.crun_refuses_cgroups".into(),
                severity: Severity::Warning,
                message: "crun refuses hybrid cgroups.".into(),
                mend: "Use runc.".into(),
            },
        ],
    }
}

fn requirements() -> Requirements {
    Requirements {
        host: Some("host-a".into()),
        region: Some("eu-west".into()),
        labels: BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]),
        snapshots: true,
        quotas: true,
    }
}

fn placement() -> Placement {
    let refusals = vec![
        Refusal::Offline,
        Refusal::Unhealthy,
        Refusal::Draining,
        Refusal::NotThePinnedHost,
        Refusal::OtherRegion { region: "us-east".into() },
        Refusal::MissingLabel { label: "gpu=yes".into() },
        Refusal::NoSnapshots,
        Refusal::NoQuotas,
        Refusal::TooLittleMemory { needed_bytes: 2, machine_bytes: 1 },
        Refusal::TooFewCpus { needed_millis: 2000, machine_millis: 1000 },
        Refusal::TooLittleDisk { needed_bytes: 2, headroom_bytes: 1 },
        Refusal::Full { max_running: 200 },
    ];
    Placement {
        chosen: Some(id(2)),
        candidates: vec![
            Candidate { host: id(2), name: "host-a".into(), refusals: vec![], score: Some(Score { free_after: 0.5 }) },
            Candidate { host: id(0x12), name: "host-b".into(), refusals, score: None },
        ],
    }
}

fn project_view() -> ProjectView {
    ProjectView {
        id: id(3),
        owner: id(1),
        spec: spec(),
        intent: Intent::Running,
        observed: ObservedState::Failed,
        error: Some(error()),
        host: Some(id(2)),
        host_name: Some("host-a".into()),
        generation: Some(Generation(4)),
        operation: Some(id(5)),
        used_bytes: Some(4096),
        created_at: time(),
    }
}

fn bare_project_view() -> ProjectView {
    ProjectView {
        spec: bare_spec(),
        intent: Intent::Stopped,
        observed: ObservedState::Unknown,
        error: None,
        host: None,
        host_name: None,
        generation: None,
        operation: None,
        used_bytes: None,
        ..project_view()
    }
}

fn terminal() -> TerminalView {
    TerminalView {
        id: id(6),
        name: "main".into(),
        argv: vec!["bash".into(), "-l".into()],
        pid: 42,
        size: Size { rows: 40, cols: 120 },
        viewers: 2,
        output_bytes: 1000,
        opened_at: time(),
        exit: None,
    }
}

#[test]
fn every_error_code() {
    const ALL: [ErrorCode; 28] = [
        ErrorCode::InvalidArgument,
        ErrorCode::Unauthenticated,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::AlreadyExists,
        ErrorCode::Conflict,
        ErrorCode::OperationInProgress,
        ErrorCode::StaleAssignment,
        ErrorCode::HostUnavailable,
        ErrorCode::NoRoom,
        ErrorCode::ImageUnavailable,
        ErrorCode::StartFailed,
        ErrorCode::RuntimeFailed,
        ErrorCode::StorageFailed,
        ErrorCode::WrongVolume,
        ErrorCode::QuotaExceeded,
        ErrorCode::DiskFull,
        ErrorCode::LimitExceeded,
        ErrorCode::TooLarge,
        ErrorCode::NoResponders,
        ErrorCode::TimedOut,
        ErrorCode::Cancelled,
        ErrorCode::NotRunning,
        ErrorCode::Unsupported,
        ErrorCode::InvalidConfig,
        ErrorCode::Untrusted,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
    ];
    let mut golden = Golden::default().add("Error", error()).add("Error, bare", Error::internal("A defect."));
    for code in ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str(), "the two spellings of {code:?}");
        golden.0.push((code.as_str().into(), json!({ "http_status": code.http_status(), "retry": code.retryable() })));
    }
    golden.check("error");
}

#[test]
fn command() {
    let command = |verb| Command { project: id(3), generation: Generation(4), operation: id(5), verb };
    Golden::default()
        .add("Command ensure_volumes", command(Verb::EnsureVolumes { spec: spec(), fresh: true }))
        .add("Command ensure_image", command(Verb::EnsureImage {}))
        .add("Command ensure_running", command(Verb::EnsureRunning { restart: true }))
        .add("Command ensure_stopped", command(Verb::EnsureStopped {}))
        .add("Command ensure_absent", command(Verb::EnsureAbsent {}))
        .add("Command cancel", command(Verb::Cancel {}))
        .add("CommandReply done", CommandReply::Done { observed: observed() })
        .add("CommandReply working", CommandReply::Working { progress: progress() })
        .add("CommandReply failed", CommandReply::Failed { error: error() })
        .check("command");
}

#[test]
fn host() {
    let report = |facts, full, projects| HostReport {
        host: id(2),
        boot: "abcdefghijklmnopqrstuvwxyz".into(),
        sequence: 7,
        facts,
        capacity: capacity(),
        healthy: true,
        full,
        projects,
    };
    let view = HostView {
        id: id(2),
        name: "host-a".into(),
        state: HostState::Online,
        draining: false,
        facts: Some(facts()),
        capacity: Some(capacity()),
        last_report: Some(time()),
        joined_at: time(),
        assigned: 5,
    };
    let silent = HostView { state: HostState::Offline, facts: None, capacity: None, last_report: None, ..view.clone() };
    Golden::default()
        .add("HostReport, first", report(Some(facts()), true, vec![observed(), failed()]))
        .add("HostReport, change", report(None, false, vec![observed()]))
        .add("ReportAck", ReportAck { sequence: 7, now: time(), jwks: jwks(), resend: false })
        .add("JoinRequest", JoinRequest { token: "TOKEN".into(), name: "host-a".into(), public_key: "UABC".into() })
        .add("JoinReply", JoinReply { host: id(2), name: "host-a".into(), jwks: jwks() })
        .add("HostView", view)
        .add("HostView, silent", silent)
        .add("HostState", [HostState::Online, HostState::Unhealthy, HostState::Offline])
        .add("StorageKind", [StorageKind::Btrfs, StorageKind::Dir])
        .add("Severity", [Severity::Ok, Severity::Warning, Severity::Error])
        .check("host");
}

#[test]
fn operation() {
    let view = OperationView {
        id: id(5),
        kind: OperationKind::Create,
        project: id(3),
        project_name: "thesis".into(),
        account: id(1),
        host: Some(id(2)),
        status: OperationStatus::Running,
        step: Step::Image,
        steps: vec![Step::Place, Step::Volumes, Step::Image, Step::Run, Step::Finished],
        point_of_no_return: Step::Run,
        progress: progress(),
        error: Some(error()),
        attempts: 1,
        version: 9,
        created_at: time(),
        updated_at: time(),
    };
    let bare = OperationView { host: None, error: None, progress: Progress::default(), ..view.clone() };
    let statuses =
        [OperationStatus::Running, OperationStatus::Undoing, OperationStatus::Done, OperationStatus::Failed, OperationStatus::Cancelled];
    for status in statuses {
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
    for kind in OperationKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
    let undo = [Step::Halt, Step::Remove, Step::Forget, Step::UndoWork, Step::UndoRun, Step::UndoVolumes, Step::UndoPlace];
    Golden::default()
        .add("OperationView", view)
        .add("OperationView, bare", bare)
        .add("OperationKind", OperationKind::ALL)
        .add("OperationStatus", statuses)
        .add("Step, the others", undo)
        .check("operation");
}

#[test]
fn placement_and_its_reasons() {
    Golden::default()
        .add("Placement", placement())
        .add("PlacementRequest", PlacementRequest { limits: Limits::default(), requirements: requirements() })
        .add("PlacementRequest, bare", PlacementRequest::default())
        .check("placement");
}

#[test]
fn project() {
    let states = [
        ObservedState::Unknown,
        ObservedState::Absent,
        ObservedState::Stopped,
        ObservedState::Starting,
        ObservedState::Running,
        ObservedState::Stopping,
        ObservedState::Failed,
    ];
    Golden::default()
        .add("ProjectSpec", spec())
        .add("ProjectSpec, bare", bare_spec())
        .add("ObservedProject", observed())
        .add("ObservedProject, failed", failed())
        .add("ProjectView", project_view())
        .add("ProjectView, bare", bare_project_view())
        .add("Intent", [Intent::Running, Intent::Stopped, Intent::Deleted])
        .add("ObservedState", states)
        .check("project");
}

#[test]
fn api() {
    let key = ApiKeyView { id: id(7), name: "ci".into(), created_at: time(), expires_at: Some(time()), used_at: None };
    let create = CreateProject { spec: spec(), requirements: requirements(), start: true, idempotency_key: Some("k".into()) };
    let accepted = ProjectAccepted { project: id(3), operation: id(5), placement: Some(placement()) };
    Golden::default()
        .add("SetupRequest", SetupRequest { token: "T".into(), name: "ada".into(), password: "secret".into() })
        .add("LoginRequest", LoginRequest { name: "ada".into(), password: "secret".into() })
        .add("LoginReply", LoginReply { account: id(1), name: "ada".into(), token: "T".into(), expires_at: time() })
        .add("AccountView", AccountView { id: id(1), name: "ada".into(), admin: true, created_at: time() })
        .add("ApiKeyRequest", ApiKeyRequest { name: "ci".into(), days: Some(30) })
        .add("ApiKeyView, bare", ApiKeyView { expires_at: None, ..key.clone() })
        .add("ApiKeyReply", ApiKeyReply { key, token: "T".into() })
        .add("CreateProject", create.clone())
        .add(
            "CreateProject, bare",
            CreateProject { spec: bare_spec(), requirements: Requirements::default(), start: false, idempotency_key: None },
        )
        .add("ProjectAccepted, create", accepted.clone())
        .add("ProjectAccepted, other", ProjectAccepted { placement: None, ..accepted })
        .add("ProjectList", ProjectList { projects: vec![bare_project_view()], next: Some("n".into()) })
        .add("ProjectList, last", ProjectList { projects: vec![], next: None })
        .add(
            "ConnectReply",
            ConnectReply {
                host: id(2),
                host_url: "https://host-a.example.org".into(),
                generation: Generation(4),
                role: Role::Owner,
                token: "T".into(),
                inbox_prefix: "_INBOX.abcdefghijklmnopqrstuvwxyz".into(),
                expires_at: time(),
            },
        )
        .add("JoinTokenRequest", JoinTokenRequest { name: Some("host-a".into()), minutes: Some(60) })
        .add("JoinTokenRequest, bare", JoinTokenRequest::default())
        .add("JoinTokenReply", JoinTokenReply { token: "T".into(), expires_at: time() })
        .add("HostPatch", HostPatch { draining: Some(true) })
        .add("Health, master", Health { role: "master".into(), version: "0.1.0".into(), setup_needed: Some(true) })
        .add("Health, host", Health { role: "host".into(), version: "0.1.0".into(), setup_needed: None })
        .check("api");
}

#[test]
fn agent() {
    let exit = ExecExit { code: 143, signal: Some(15), timed_out: true, cancelled: false };
    let stream = "abcdefghijklmnop".to_owned();
    let exec = ExecStart {
        stream: stream.clone(),
        argv: vec!["ls".into(), "-l".into()],
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        cwd: "data".into(),
        stdin: true,
        timeout_millis: Some(1000),
    };
    let open = TerminalOpen { name: "main".into(), argv: vec![], env: BTreeMap::new(), cwd: String::new(), size: Size::default() };
    Golden::default()
        .add(
            "AgentConfig",
            AgentConfig {
                project: id(3),
                generation: Generation(4),
                secret: "S".into(),
                home: "/home/user".into(),
                env: [("A".into(), "b".into())].into(),
            },
        )
        .add("AgentInfo", AgentInfo { version: "0.1.0".into(), boot: "b".into(), terminals: 1, execs: 2 })
        .add("ExecStart", exec)
        .add("Reply ok", Reply::Ok(ExecStarted { pid: 42 }))
        .add("Reply error", Reply::<ExecStarted>::Error(error()))
        .add("ExecCancel", ExecCancel { stream: stream.clone() })
        .add("ExecExit", exit.clone())
        .add("ExecExit, plain", ExecExit { code: 0, signal: None, timed_out: false, cancelled: false })
        .add("TerminalOpen", open)
        .add("TerminalView", terminal())
        .add("TerminalView, ended", TerminalView { exit: Some(exit.clone()), ..terminal() })
        .add("TerminalAttach", TerminalAttach { terminal: id(6), stream: stream.clone(), from: Some(9), size: Some(Size::default()) })
        .add("TerminalAttached", TerminalAttached { terminal: terminal(), from: 9 })
        .add("TerminalEvent resized", TerminalEvent::Resized { size: Size::default() })
        .add("TerminalEvent skipped", TerminalEvent::Skipped { offset: 9 })
        .add("TerminalEvent exited", TerminalEvent::Exited { exit })
        .add("TerminalResize", TerminalResize { terminal: id(6), size: Size::default() })
        .add("TerminalDetach", TerminalDetach { terminal: id(6), stream })
        .add("TerminalClose", TerminalClose { terminal: id(6) })
        .check("agent");
}

#[test]
fn files() {
    let entry = FileEntry {
        name: "a b.txt".into(),
        path: "data/a b.txt".into(),
        kind: FileKind::File,
        size: 12,
        mode: 0o644,
        modified_at: time(),
        target: None,
        etag: "\"e\"".into(),
    };
    let link = FileEntry { kind: FileKind::Symlink, target: Some("../x".into()), ..entry.clone() };
    Golden::default()
        .add("FileList", FileList { entries: vec![entry, link], next: Some("a".into()) })
        .add("FileList, last", FileList { entries: vec![], next: None })
        .add("FileKind", [FileKind::File, FileKind::Directory, FileKind::Symlink, FileKind::Other])
        .check("files");
}
