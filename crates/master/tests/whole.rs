//! A master as the binary starts it, over real sockets: a host joins and connects with the published client, a project is made, the
//! master stops in the middle of it and another goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test; the lint's own exception stops at helper functions")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, HostId,
    api::{JoinTokenReply, LoginReply, ProjectAccepted},
    command::{Command, CommandReply, Verb},
    host::{Capacity, HostFacts, HostReport, JoinReply, ReportAck, StorageCapabilities, StorageKind},
    operation::{OperationStatus, OperationView, Progress},
    project::{ObservedProject, ObservedState, ProjectView},
    subject,
};
use atoll_master::{MasterConfig, RunningMaster, start};
use atoll_net::{
    bus::{Conn, Message, stock},
    clock::SystemClock,
    testing::Authority,
    tls::{Trust, client_config},
};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(30);

async fn master(dir: &std::path::Path, listen: &str) -> Result<RunningMaster, Error> {
    let config = MasterConfig { data_dir: dir.to_owned(), listen: listen.parse().unwrap(), ..MasterConfig::default() };
    start(config, Arc::new(SystemClock)).await
}

struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

impl Client {
    async fn call<T: serde::de::DeserializeOwned>(&self, path: &str, body: Option<Value>) -> T {
        let url = format!("{}{path}", self.url);
        let request = match &body {
            Some(body) => self.http.post(url).json(body),
            None => self.http.get(url),
        };
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.timeout(BOUND).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// A host over the published client: does all at once, but works on images as long as it is told to.
struct Host {
    id: HostId,
    conn: stock::StockConn,
    sequence: AtomicU64,
    busy: AtomicBool,
}

impl Host {
    async fn connect(url: &str, id: HostId, seed: &str) -> Arc<Self> {
        let options = async_nats::ConnectOptions::with_nkey(seed.into()).custom_inbox_prefix(format!("_INBOX.{id}"));
        let url = format!("{}/bus", url.replace("http", "ws"));
        let conn = tokio::time::timeout(BOUND, stock::connect(&url, options)).await.unwrap().unwrap();
        let host = Arc::new(Self { id, conn, sequence: AtomicU64::new(0), busy: AtomicBool::new(false) });
        let mut commands = host.conn.subscribe(&subject::host_command(id), None).await.unwrap();
        let serving = host.clone();
        tokio::spawn(async move {
            while let Some(message) = commands.next().await {
                let command: Command = serde_json::from_slice(&message.payload).unwrap();
                let reply = serde_json::to_vec(&serving.answer(&command)).unwrap();
                let _ = serving.conn.publish(Message::new(message.reply.unwrap(), reply)).await;
            }
        });
        host
    }

    fn answer(&self, command: &Command) -> CommandReply {
        let state = match command.verb {
            Verb::EnsureImage {} if self.busy.load(Ordering::SeqCst) => {
                return CommandReply::Working { progress: Progress { phase: "pulling".into(), ..Progress::default() } };
            }
            Verb::EnsureAbsent {} => ObservedState::Absent,
            Verb::EnsureRunning { .. } => ObservedState::Running,
            _ => ObservedState::Stopped,
        };
        let observed = ObservedProject { project: command.project, generation: command.generation, state, error: None, used_bytes: None };
        CommandReply::Done { observed }
    }

    async fn report(&self) -> ReportAck {
        let facts = HostFacts {
            version: "0.1.0".into(),
            public_url: "http://127.0.0.1:1".into(),
            region: String::new(),
            labels: BTreeMap::new(),
            storage: StorageKind::Dir,
            capabilities: StorageCapabilities::default(),
            arch: "x86_64".into(),
            findings: Vec::new(),
        };
        let capacity = Capacity {
            cpus: 4,
            memory_bytes: 16 << 30,
            memory_available_bytes: 8 << 30,
            disk_bytes: 100 << 30,
            disk_headroom_bytes: 90 << 30,
            max_running: 10,
            ..Capacity::default()
        };
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let (boot, projects) = ("boot".to_owned(), Vec::new());
        let report = HostReport { host: self.id, boot, sequence, facts: Some(facts), capacity, healthy: true, full: true, projects };
        let message = Message::new(subject::host_report(self.id), serde_json::to_vec(&report).unwrap());
        let reply = self.conn.request(message, BOUND).await.unwrap();
        serde_json::from_slice(&reply.payload).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_joins_a_project_is_made_and_a_second_master_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = master(dir.path(), "127.0.0.1:0").await.unwrap();
    let (address, token) = (first.addr(), first.setup_token().unwrap());
    let mut client = Client { http: reqwest::Client::new(), url: first.url().to_owned(), token: None };
    let root = json!({ "token": token, "name": "root", "password": "correct horse" });
    let login: LoginReply = client.call("/v1/setup", Some(root)).await;
    assert!(first.setup_token().is_none());
    client.token = Some(login.token.clone());

    let key = nkeys::KeyPair::new_user();
    let token: JoinTokenReply = client.call("/v1/join-tokens", Some(json!({}))).await;
    let join = json!({ "token": token.token, "name": "host-a", "public_key": key.public_key() });
    let joined: JoinReply = client.call("/v1/hosts/join", Some(join)).await;
    let host = Host::connect(first.url(), joined.host, &key.seed().unwrap()).await;
    let ack = host.report().await;
    assert_eq!((ack.sequence, ack.resend, ack.jwks), (1, false, joined.jwks));

    // neither a stranger's key nor another's token opens the bus
    let stranger = nkeys::KeyPair::new_user().seed().unwrap();
    let bus = format!("{}/bus", first.url().replace("http", "ws"));
    assert!(stock::connect(&bus, async_nats::ConnectOptions::with_nkey(stranger)).await.is_err());
    assert!(stock::connect(&bus, async_nats::ConnectOptions::with_token("atl_s_none".into())).await.is_err());
    let options = async_nats::ConnectOptions::with_token(login.token.clone()).custom_inbox_prefix(format!("_INBOX.{}", login.account));
    let watcher = stock::connect(&bus, options).await.unwrap();
    let others = format!("account.{}.>", joined.host);
    assert_eq!(watcher.subscribe(&others, None).await.err().unwrap().code, ErrorCode::Forbidden);
    let mut news = watcher.subscribe(&format!("account.{}.>", login.account), None).await.unwrap();

    let body = json!({ "spec": { "name": "thesis", "image": "localhost/base:latest" }, "start": true });
    let made: ProjectAccepted = client.call("/v1/projects", Some(body)).await;
    let end = wait(&client, &made, |view| view.status.ended()).await;
    assert_eq!(end.status, OperationStatus::Done, "{end:?}");
    let view: ProjectView = client.call("/v1/projects/thesis", None).await;
    assert_eq!(view.observed, ObservedState::Running);
    let told = async {
        loop {
            let message = news.next().await.unwrap();
            if *message.subject == *subject::operation(login.account, made.operation) {
                let view: OperationView = serde_json::from_slice(&message.payload).unwrap();
                if view.status == OperationStatus::Done {
                    break;
                }
            }
        }
    };
    tokio::time::timeout(BOUND, told).await.expect("the watcher is told of the end");

    host.busy.store(true, Ordering::SeqCst);
    let restart: ProjectAccepted = client.call("/v1/projects/thesis/restart", Some(Value::Null)).await;
    let pulling = wait(&client, &restart, |view| view.progress.phase == "pulling").await;
    assert_eq!(pulling.status, OperationStatus::Running);
    let second_on_the_same = master(dir.path(), "127.0.0.1:0").await.err().unwrap();
    assert!(second_on_the_same.code == ErrorCode::InvalidConfig && second_on_the_same.message.contains("master.data_dir"));
    let begun = tokio::time::Instant::now();
    first.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "the drain is bounded");

    host.busy.store(false, Ordering::SeqCst);
    let second = master(dir.path(), &address.to_string()).await.unwrap();
    assert!(second.setup_token().is_none());
    let in_use = master(tempfile::tempdir().unwrap().path(), &address.to_string()).await.err().unwrap();
    assert!(in_use.code == ErrorCode::InvalidConfig && in_use.message.contains(&format!("master.listen is {address}")), "{in_use:?}");
    let unknown: ProjectView = client.call("/v1/projects/thesis", None).await;
    assert_eq!(unknown.observed, ObservedState::Unknown, "nothing is observed before the host reports again");
    // the published client reconnects by itself
    let end = wait(&client, &restart, |view| view.status.ended()).await;
    assert_eq!(end.status, OperationStatus::Done, "{end:?}");
    host.report().await;
    second.shutdown().await;
}

async fn wait(client: &Client, accepted: &ProjectAccepted, until: impl Fn(&OperationView) -> bool) -> OperationView {
    let deadline = tokio::time::Instant::now() + BOUND;
    let mut after = 0;
    loop {
        let view: OperationView = client.call(&format!("/v1/operations/{}?after={after}&wait=5", accepted.operation), None).await;
        if until(&view) {
            return view;
        }
        assert!(tokio::time::Instant::now() < deadline, "{view:?}");
        after = view.version;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_speaks_tls_where_it_has_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let config = MasterConfig {
        data_dir: dir.path().join("data"),
        listen: "127.0.0.1:0".parse().unwrap(),
        tls_certificate: Some(authority.certificate()),
        tls_key: Some(authority.key()),
        ..MasterConfig::default()
    };
    for (key, wrong) in [
        ("master.tls_certificate", MasterConfig { tls_certificate: None, ..config.clone() }),
        ("ca.pem", MasterConfig { tls_key: Some(authority.ca_file()), ..config.clone() }),
        ("master.public_url", MasterConfig { public_url: Some("http://m".into()), ..config.clone() }),
    ] {
        let error = start(wrong, Arc::new(SystemClock)).await.err().unwrap();
        assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(key), "{error}");
    }
    let master = start(config, Arc::new(SystemClock)).await.unwrap();
    assert_eq!(master.url(), format!("https://{}", master.addr()));
    let trust = client_config(Trust::Only(&authority.ca_file())).unwrap();
    let http = reqwest::Client::builder().tls_backend_preconfigured(trust.clone()).build().unwrap();
    let mut client = Client { http, url: master.url().to_owned(), token: None };
    let root = json!({ "token": master.setup_token().unwrap(), "name": "root", "password": "correct horse" });
    let login: LoginReply = client.call("/v1/setup", Some(root)).await;
    client.token = Some(login.token.clone());

    let bus = format!("wss://{}/bus", master.addr());
    let options = || async_nats::ConnectOptions::new().tls_client_config(trust.clone());
    let mine = options().token(login.token).custom_inbox_prefix(format!("_INBOX.{}", login.account));
    let watcher = stock::connect(&bus, mine).await.unwrap();
    watcher.subscribe(&format!("account.{}.>", login.account), None).await.unwrap();
    let refused = stock::connect(&bus, options().token("atl_s_none".into())).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthenticated);

    // a shutdown ends its WebSockets, too
    tokio::time::timeout(BOUND, master.shutdown()).await.unwrap();
    let away = async {
        while watcher.client().connection_state() == async_nats::connection::State::Connected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(BOUND, away).await.unwrap();
}

/// INFO and CONNECT of a leaf node, as a nats-server would hear them, up to the master's interest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_bus_joins_a_cluster_and_is_served_over_tls() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(path("credentials"), "atoll:secret\n").unwrap();
    let hub = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = MasterConfig {
        data_dir: path("data"),
        listen: "127.0.0.1:0".parse().unwrap(),
        bus_listen: "127.0.0.1:0".parse().ok(),
        bus_tls_certificate: Some(path("cert.pem")),
        bus_tls_key: Some(path("key.pem")),
        cluster_urls: vec![format!("nats://{}", hub.local_addr().unwrap())],
        cluster_credentials_file: Some(path("credentials")),
        ..MasterConfig::default()
    };
    for (key, wrong) in [
        ("master.bus_tls_key", MasterConfig { bus_tls_key: None, ..config.clone() }),
        ("cert.pem", MasterConfig { bus_tls_key: Some(path("cert.pem")), ..config.clone() }),
        ("none.pem", MasterConfig { cluster_ca_file: Some(path("none.pem")), ..config.clone() }),
        ("credentials", MasterConfig { cluster_credentials_file: Some(path("no-credentials")), ..config.clone() }),
        ("http://x", MasterConfig { cluster_urls: vec!["http://x".into()], ..config.clone() }),
    ] {
        let error = start(wrong, Arc::new(SystemClock)).await.err().unwrap();
        assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(key), "{error}");
    }
    let master = start(config, Arc::new(SystemClock)).await.unwrap();

    let conversation = async {
        let mut leaf = BufReader::new(hub.accept().await.unwrap().0);
        leaf.write_all(b"INFO {\"leafnode_urls\":[],\"headers\":true}\r\n").await.unwrap();
        let mut lines = leaf.lines();
        let connect = lines.next_line().await.unwrap().unwrap();
        assert!(connect.contains("\"user\":\"atoll\",\"pass\":\"secret\""), "{connect}");
        while lines.next_line().await.unwrap().unwrap() != "PING" {}
        lines.get_mut().write_all(b"PONG\r\n").await.unwrap();
        while lines.next_line().await.unwrap().unwrap() != "LS+ host.*.report" {}
    };
    tokio::time::timeout(BOUND, conversation).await.unwrap();

    let url = format!("tls://localhost:{}", master.bus_addr().unwrap().port());
    let refused = async_nats::ConnectOptions::with_token("wrong".into()).add_root_certificates(path("cert.pem")).connect(url).await;
    assert_eq!(refused.unwrap_err().kind(), async_nats::ConnectErrorKind::AuthorizationViolation, "so TLS was done");
    master.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_has_nothing_to_do_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path(), "127.0.0.1:0").await.unwrap();
    // whatever still held the store would be waited for five seconds
    tokio::time::timeout(Duration::from_secs(4), master.shutdown()).await.unwrap();
}
