//! The uplink against a master that is a bus and a task.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Generation, HostId, Role, Timestamp,
    bus::BusReport,
    call::{ERROR, HostCall, STATUS},
    claims::{Jwk, Jwks},
    command::{Command, CommandReply},
    host::{HostReport, ReportAck},
    project::ObservedState,
    subject,
};
use atoll_net::{
    bus::{Authenticator, BusLimits, Conn, Credentials, Grant, Headers, Message, Router, nkey_proves},
    clock::SystemClock,
};
use axum::{extract::WebSocketUpgrade, routing::get};
use nkeys::KeyPair;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    HostConfig, Identity, RunningHost,
    projects::testing::{Agents, REMOVE, RUN, WAIT, command, id, storage_at, volumes},
    runtime::fake::FakeRuntime,
    start,
};

struct HostAuth {
    host: HostId,
    public_key: String,
}

impl Authenticator for HostAuth {
    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        if credentials.nkey.as_deref() != Some(&self.public_key) || !nkey_proves(credentials) {
            return Err(Error::new(ErrorCode::Unauthenticated, "Who is that?"));
        }
        Ok(vec![Grant { key: "host".into(), permissions: subject::host_permissions(self.host), account: None, expires_at: None }])
    }
}

/// A master's bus. Acknowledges all reports and shows them to the test.
struct Master {
    conn: Arc<dyn Conn>,
    reports: mpsc::Receiver<HostReport>,
    address: SocketAddr,
    #[allow(dead_code, reason = "held for its drop")]
    running: DropGuard,
}

/// What the next acknowledgements say.
#[derive(Default)]
struct Acks {
    resend: bool,
    jwks: Jwks,
}

impl Master {
    /// At an address, or at port 0.
    async fn start(address: SocketAddr, key: &KeyPair, acks: Arc<Mutex<Acks>>, websocket: bool) -> Self {
        let router = Router::new(BusLimits::default(), Arc::new(SystemClock));
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, cancel) = (listener.local_addr().unwrap(), CancellationToken::new());
        let auth = Arc::new(HostAuth { host: id(2), public_key: key.public_key() });
        if websocket {
            let (bus, stop) = (router.clone(), cancel.clone());
            let open = move |upgrade: WebSocketUpgrade| async move {
                upgrade.on_upgrade(move |socket| async move { bus.serve_websocket(socket, "host".into(), auth, stop).await })
            };
            let app = axum::Router::new().route("/bus", get(open));
            let stop = cancel.clone();
            tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await });
        } else {
            tokio::spawn(router.serve_tcp(listener, auth, cancel.clone()));
        }
        let conn = router.connect("master", None);
        let mut incoming = conn.subscribe("host.*.report", None).await.unwrap();
        let (sender, reports) = mpsc::channel(1000);
        let answering = conn.clone();
        tokio::spawn(async move {
            while let Some(message) = incoming.next().await {
                let report: HostReport = serde_json::from_slice(&message.payload).unwrap();
                let ack = {
                    let mut acks = acks.lock().unwrap();
                    let resend = std::mem::take(&mut acks.resend);
                    ReportAck { sequence: report.sequence, now: Timestamp::from_millis(0), jwks: acks.jwks.clone(), resend }
                };
                let _ = sender.send(report).await;
                let _ = answering.publish(Message::new(message.reply.unwrap(), serde_json::to_vec(&ack).unwrap())).await;
            }
        });
        Self { conn, reports, address, running: cancel.drop_guard() }
    }

    async fn report(&mut self) -> HostReport {
        tokio::time::timeout(WAIT, self.reports.recv()).await.expect("a report").unwrap()
    }

    /// The next report of which this is true.
    async fn report_where(&mut self, wanted: impl Fn(&HostReport) -> bool) -> HostReport {
        let find = async {
            loop {
                let report = self.report().await;
                if wanted(&report) {
                    return report;
                }
            }
        };
        tokio::time::timeout(WAIT, find).await.expect("such a report")
    }

    /// The next report that tells a project's state.
    async fn state(&mut self, state: ObservedState) -> HostReport {
        self.report_where(|report| report.projects.iter().any(|observed| observed.project == id(3) && observed.state == state)).await
    }

    async fn ask(&self, payload: Vec<u8>) -> CommandReply {
        let reply = self.conn.request(Message::new(subject::host_command(id(2)), payload), WAIT).await.unwrap();
        serde_json::from_slice(&reply.payload).unwrap()
    }

    async fn tell(&self, command: Command) -> CommandReply {
        self.ask(serde_json::to_vec(&command).unwrap()).await
    }
}

struct Rig {
    runtime: Arc<FakeRuntime>,
    host: RunningHost,
    master: Master,
    key: KeyPair,
    acks: Arc<Mutex<Acks>>,
    dir: tempfile::TempDir,
}

async fn rig(websocket: bool) -> Rig {
    let (key, acks) = (KeyPair::new_user(), Arc::new(Mutex::new(Acks::default())));
    let master = Master::start("127.0.0.1:0".parse().unwrap(), &key, acks.clone(), websocket).await;
    let dir = tempfile::tempdir().unwrap();
    let runtime = FakeRuntime::new();
    Agents::move_in(&runtime);
    let address = master.address;
    let config = HostConfig {
        name: "h1".into(),
        data_dir: dir.path().join("host"),
        listen: "127.0.0.1:0".parse().unwrap(),
        master_url: format!("http://{address}"),
        master_bus: if websocket { String::new() } else { format!("nats://{address}") },
        region: "here".into(),
        ..HostConfig::default()
    };
    let identity = Identity {
        host: id(2),
        name: "h1".into(),
        seed: key.seed().unwrap(),
        jwks: Jwks::default(),
        master_url: config.master_url.clone(),
    };
    std::fs::create_dir_all(&config.data_dir).unwrap();
    identity.save(&config.data_dir).unwrap();
    let storage = storage_at(dir.path().join("volumes"));
    let host = start(config, identity, runtime.clone(), storage, Arc::new(SystemClock)).await.unwrap();
    Rig { runtime, host, master, key, acks, dir }
}

#[tokio::test]
async fn a_project_is_made_run_and_deleted_over_a_websocket() {
    let mut rig = rig(true).await;
    let first = rig.master.report().await;
    let facts = first.facts.unwrap();
    assert!(first.full && first.healthy && first.projects.is_empty());
    assert_eq!((facts.region.as_str(), facts.public_url), ("here", format!("http://{}", rig.host.addr())));
    assert!(first.capacity.memory_bytes > 0 && first.capacity.cpus > 0 && first.capacity.disk_bytes > 0);

    let reply = rig.master.tell(command(id(3), 1, 1, volumes())).await;
    assert!(matches!(reply, CommandReply::Done { observed } if observed.state == ObservedState::Stopped));
    let change = rig.master.state(ObservedState::Stopped).await;
    assert!(!change.full && change.facts.is_none() && change.boot == first.boot && change.sequence > first.sequence);
    assert_eq!(change.capacity.projects, 1);
    rig.master.tell(command(id(3), 1, 1, RUN)).await;
    assert_eq!(rig.master.state(ObservedState::Running).await.capacity.projects_running, 1);
    rig.master.tell(command(id(3), 1, 2, REMOVE)).await;
    let gone = rig.master.state(ObservedState::Absent).await;
    assert!(!gone.full);
    // acknowledged, it isn't told any more
    let next = rig.master.report().await;
    assert!(next.projects.is_empty() && next.capacity.projects == 0);
    rig.host.shutdown().await;
}

#[tokio::test]
async fn what_the_hosts_own_bus_does_is_told() {
    let rig = rig(false).await;
    let ask = async || {
        // subscribed once there is an answer at all
        loop {
            match rig.master.conn.request(Message::new(subject::host_stats(id(2)), ""), WAIT).await {
                Ok(answer) => return serde_json::from_slice::<BusReport>(&answer.payload).unwrap(),
                Err(error) => assert_eq!(error.code, ErrorCode::NoResponders),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let own = rig.host.router().connect("test", None);
    let (before, prefix) = (ask().await, "project.stats");
    own.publish(Message::new(format!("{prefix}.x"), "12345")).await.unwrap();
    let after = ask().await;
    assert_eq!(after.server_id, before.server_id);
    let row = after.by_prefix.iter().find(|row| row.prefix == prefix).unwrap();
    assert_eq!((row.traffic.in_messages, row.traffic.in_bytes), (1, 5));
    rig.host.shutdown().await;
}

#[tokio::test]
async fn what_is_no_command_is_answered_and_nothing_is_done() {
    let rig = rig(false).await;
    let unknown = serde_json::json!({ "project": id::<atoll_contract::id::Project>(3), "generation": 1, "operation": id::<atoll_contract::id::Operation>(1), "verb": { "name": "ensure_rich" } });
    for payload in [Vec::new(), b"{".to_vec(), vec![0xff; 100_000], serde_json::to_vec(&unknown).unwrap()] {
        // subscribed once there is an answer at all
        let reply = loop {
            let asked = rig.master.conn.request(Message::new(subject::host_command(id(2)), payload.clone()), WAIT).await;
            match asked {
                Ok(reply) => break serde_json::from_slice::<CommandReply>(&reply.payload).unwrap(),
                Err(error) => assert_eq!(error.code, ErrorCode::NoResponders),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(matches!(reply, CommandReply::Failed { error } if error.code == ErrorCode::InvalidArgument));
    }
    assert!(rig.host.projects().all().projects.is_empty());
}

#[tokio::test]
async fn a_master_that_comes_back_gets_everything_again() {
    let Rig { host, mut master, key, acks, dir, runtime } = rig(false).await;
    master.report().await;
    master.tell(command(id(3), 1, 1, volumes())).await;
    let known = master.state(ObservedState::Stopped).await;
    let address = master.address;
    drop(master);
    // something happens while it is away
    let told = host.projects().command(command(id(3), 1, 1, RUN)).await;
    assert!(matches!(told, CommandReply::Done { .. }), "{told:?}");
    let mut master = Master::start(address, &key, acks, false).await;
    let again = master.report().await;
    assert!(again.full && again.facts.is_some() && again.boot == known.boot && again.sequence > known.sequence);
    assert_eq!(again.projects.iter().map(|observed| observed.state).collect::<Vec<_>>(), [ObservedState::Running]);
    // and its commands are heard
    let told = master.tell(command(id(3), 1, 2, REMOVE)).await;
    assert!(matches!(told, CommandReply::Done { .. }), "{told:?}");
    assert!(runtime.container(id(3)).is_none());
    host.shutdown().await;
    drop(dir);
}

#[tokio::test]
async fn a_master_that_knows_nothing_asks_for_everything() {
    let mut rig = rig(false).await;
    rig.master.report().await;
    rig.acks.lock().unwrap().resend = true;
    rig.master.tell(command(id(3), 1, 1, volumes())).await;
    assert!(!rig.master.report().await.full);
    // at once, and once
    let again = rig.master.report().await;
    assert!(again.full && again.facts.is_some() && again.projects.len() == 1);
    rig.master.tell(command(id(4), 1, 1, volumes())).await;
    assert!(!rig.master.report_where(|report| report.projects.iter().any(|observed| observed.project == id(4))).await.full);
}

#[tokio::test]
async fn new_keys_are_taken_over_and_kept() {
    let mut rig = rig(false).await;
    rig.master.report().await;
    let jwks = Jwks { keys: vec![Jwk::ed25519("k9", &[7; 32])] };
    rig.acks.lock().unwrap().jwks = jwks.clone();
    rig.master.tell(command(id(3), 1, 1, volumes())).await;
    let saved = async {
        loop {
            if Identity::load(&rig.dir.path().join("host")).is_ok_and(|identity| identity.jwks == jwks) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WAIT, saved).await.unwrap();
}

#[tokio::test]
async fn a_dead_runtime_is_reported_at_once() {
    let mut rig = rig(false).await;
    assert!(rig.master.report().await.healthy);
    rig.runtime.faults(|faults| faults.list = Some(Error::new(ErrorCode::RuntimeFailed, "podman doesn't answer.")));
    rig.host.projects().reconcile_one(id(3)).await;
    rig.master.report_where(|report| !report.healthy).await;
    rig.runtime.faults(|faults| faults.list = None);
    rig.host.projects().reconcile_one(id(3)).await;
    rig.master.report_where(|report| report.healthy).await;
}

#[tokio::test]
async fn commands_are_answered_while_others_take_long() {
    let rig = rig(false).await;
    rig.runtime.faults(|faults| faults.hang = true);
    let mut master = rig.master;
    master.report().await;
    for n in 10..40 {
        master.tell(command(id(n), 1, 1, volumes())).await;
    }
    let pulls = (10..40).map(|n| master.tell(command(id(n), 1, 1, crate::projects::testing::IMAGE)));
    let other = async {
        let begun = tokio::time::Instant::now();
        let reply = master.tell(command(id(3), 1, 1, volumes())).await;
        assert!(matches!(reply, CommandReply::Done { .. }) && begun.elapsed() < Duration::from_millis(1500));
    };
    let (pulls, ()) = tokio::join!(futures_util::future::join_all(pulls), other);
    assert!(pulls.iter().all(|reply| matches!(reply, CommandReply::Working { .. })));
}

async fn call(rig: &Rig, changes: &[(&str, &str)], payload: Vec<u8>) -> Message {
    ask(rig, call_message(changes, payload)).await
}

/// A call as the master sends it, with some headers changed or, if empty, left out.
fn call_message(changes: &[(&str, &str)], payload: Vec<u8>) -> Message {
    let (project, generation, account) = (id(3), Generation(1), Some(id(9)));
    let (role, rest, timeout) = (Role::Owner, "exec.of.tests".to_owned(), Duration::from_millis(300));
    let fields = HostCall { project, generation, account, role, rest, timeout }.headers();
    let mut headers = Headers { fields, ..Headers::default() }.with("Own", "kept");
    for (name, value) in changes {
        headers.fields.retain(|(known, _)| known != name);
        headers.fields.extend(Some(((*name).to_owned(), (*value).to_owned())).filter(|_| !value.is_empty()));
    }
    Message { headers, ..Message::new(subject::host_call(id(2)), payload) }
}

async fn ask(rig: &Rig, message: Message) -> Message {
    rig.master.conn.request(message, WAIT).await.unwrap()
}

fn refusal(answer: &Message) -> ErrorCode {
    let error: Error = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer.headers.get(ERROR), Some(error.code.as_str()));
    error.code
}

#[tokio::test]
async fn a_call_is_asked_on_the_host_s_own_bus_by_its_role() {
    let mut rig = rig(false).await;
    rig.master.report().await;
    rig.master.tell(command(id(3), 1, 1, volumes())).await;
    let bus = rig.host.router().connect("project", None);
    let mut asked = bus.subscribe("project.*.exec.of.tests", None).await.unwrap();
    let answering = tokio::spawn(async move {
        let mut heard = Vec::new();
        while let Some(message) = asked.next().await {
            let headers = Headers { status: Some(204), description: "None".into(), ..Headers::default() }.with("X", "y").with(ERROR, "no");
            let answer = Message { headers, ..Message::new(message.reply.clone().unwrap(), message.payload.clone()) };
            heard.push(message);
            if heard[heard.len() - 1].payload == "silence" {
                break;
            }
            bus.publish(answer).await.unwrap();
        }
        heard
    });
    let answer = call(&rig, &[], b"hi".to_vec()).await;
    assert_eq!((answer.headers.get(STATUS), answer.headers.get("X"), answer.headers.get(ERROR)), (Some("204 None"), Some("y"), None));
    assert_eq!(answer.payload, "hi");

    let other = id::<atoll_contract::id::Project>(4).to_string();
    for (changes, code) in [
        (&[("Atoll-Generation", "2")][..], ErrorCode::StaleAssignment),
        (&[("Atoll-Generation", "0")], ErrorCode::StaleAssignment),
        (&[("Atoll-Project", &other)], ErrorCode::StaleAssignment),
        (&[("Atoll-Role", "viewer")], ErrorCode::Forbidden),
        (&[("Atoll-Role", "emperor")], ErrorCode::InvalidArgument),
        (&[("Atoll-Role", "")], ErrorCode::InvalidArgument),
        (&[("Atoll-Timeout", "0")], ErrorCode::InvalidArgument),
        (&[("Atoll-Subject", "state")], ErrorCode::Forbidden),
        (&[("Atoll-Subject", "agent.hello")], ErrorCode::Forbidden),
        (&[("Atoll-Subject", "exec.*")], ErrorCode::InvalidArgument),
        (&[("Atoll-Subject", "stream.a.out")], ErrorCode::Unsupported),
        (&[("Atoll-Subject", "exec.nobody.there")], ErrorCode::NoResponders),
    ] {
        assert_eq!(refusal(&call(&rig, changes, Vec::new()).await), code, "{changes:?}");
    }
    // whether it is there at all
    let there = ask(&rig, Message::new(subject::host_call(id(2)), "")).await;
    assert!(there.payload.is_empty() && there.headers.is_empty());
    assert_eq!(refusal(&ask(&rig, Message::new(subject::host_call(id(2)), "{}")).await), ErrorCode::InvalidArgument);

    assert_eq!(refusal(&call(&rig, &[], b"silence".to_vec()).await), ErrorCode::TimedOut);
    let heard = answering.await.unwrap();
    let fields: Vec<_> = heard[0].headers.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!((heard.len(), fields), (2, vec![("Own", "kept")]));
    rig.host.shutdown().await;
}

#[tokio::test]
async fn more_calls_than_a_host_answers_at_once_are_refused_at_once() {
    let mut rig = rig(false).await;
    rig.master.report().await;
    rig.master.tell(command(id(3), 1, 1, volumes())).await;
    let bus = rig.host.router().connect("project", None);
    let mut silent = bus.subscribe("project.*.exec.of.tests", None).await.unwrap();
    let heard = tokio::spawn(async move { while silent.next().await.is_some() {} });
    // 70 of a million bytes, of which 67 have room; the bus lets fewer wait for one connection, so each is waited for until it has arrived
    let (conn, mut calls) = (rig.master.conn.clone(), tokio::task::JoinSet::new());
    for _ in 0..70 {
        let (conn, message) = (conn.clone(), call_message(&[("Atoll-Timeout", "5000")], vec![0; 1_000_000]));
        let (sent, waiting) = tokio::sync::oneshot::channel();
        calls.spawn(async move {
            let answer = conn.request(message, WAIT);
            tokio::pin!(answer);
            // polled once, it has been sent
            let early = futures_util::FutureExt::now_or_never(&mut answer);
            sent.send(()).unwrap();
            match early {
                Some(answer) => answer.unwrap(),
                None => answer.await.unwrap(),
            }
        });
        waiting.await.unwrap();
        ask(&rig, Message::new(subject::host_call(id(2)), "")).await;
    }
    let refused: Vec<_> = calls.join_all().await.iter().map(refusal).collect();
    let count = |code| refused.iter().filter(|refusal| **refusal == code).count();
    assert_eq!((count(ErrorCode::TimedOut), count(ErrorCode::LimitExceeded)), (67, 3));
    assert_eq!(refusal(&call(&rig, &[], vec![0; 1_000_000]).await), ErrorCode::TimedOut, "there is room again");
    heard.abort();
}
