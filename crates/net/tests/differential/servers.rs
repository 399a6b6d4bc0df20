//! Pairs of servers that are set up alike.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use atoll_contract::{Error, ErrorCode, subject::Permissions};
use atoll_net::{
    bus::{Authenticator, BusLimits, Credentials, Grant, Router},
    clock::SystemClock,
};
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{script::Which, transcript::Reader};

pub(crate) const MAX_PAYLOAD: usize = 1024;

/// One nats-server and one bus of the same configuration.
pub(crate) struct Pair {
    pub(crate) theirs: SocketAddr,
    pub(crate) ours: SocketAddr,
    router: Arc<Router>,
    server: NatsServer,
}

pub(crate) struct Pairs {
    all: BTreeMap<Which, Pair>,
    runtime: Runtime,
    _cancel: DropGuard,
}

impl Pairs {
    /// `None` if this machine has no nats-server; the test is then listed as skipped.
    pub(crate) fn start(test: &str) -> Option<Self> {
        Self::start_only(test, &[Which::Open, Which::Token, Which::Users, Which::Impatient])
    }

    pub(crate) fn start_only(test: &str, which: &[Which]) -> Option<Self> {
        let Some(program) = nats_server() else {
            crate::skipped(test, "no nats-server on this machine (Debian's package nats-server)");
            return None;
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cancel = CancellationToken::new();
        let mut pairs = BTreeMap::new();
        for which in which {
            let server = NatsServer::start(&program, *which);
            let (router, ours) = runtime.block_on(bus(*which, &cancel));
            pairs.insert(*which, Pair { theirs: server.address, ours, router, server });
        }
        Some(Self { all: pairs, runtime, _cancel: cancel.drop_guard() })
    }

    pub(crate) fn of(&self, which: Which) -> &Pair {
        &self.all[&which]
    }

    /// What a client is told by each when it is to go: theirs, ours.
    pub(crate) fn lame_duck(&mut self) -> [String; 2] {
        let pair = &self.all[&Which::Open];
        let mut clients = [pair.theirs, pair.ours].map(|address| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            std::io::Write::write_all(&mut stream, b"CONNECT {\"verbose\":false,\"protocol\":1}\r\nPING\r\n").unwrap();
            let mut reader = Reader::default();
            wait(&mut stream, &mut reader, |reader| reader.pongs() == 1);
            (stream, reader)
        });
        pair.server.signal("ldm");
        let router = pair.router.clone();
        self.runtime.spawn(async move { router.drain(Duration::from_secs(5)).await });
        for (stream, reader) in &mut clients {
            let before = reader.events.len();
            wait(stream, reader, |reader| reader.events.len() > before);
        }
        clients.map(|(_, reader)| reader.events.last().cloned().unwrap())
    }
}

fn wait(stream: &mut TcpStream, reader: &mut Reader, done: impl Fn(&Reader) -> bool) {
    while !done(reader) {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "it ends too early: {:?}", reader.events);
        reader.take(&buffer[..count]);
    }
}

fn nats_server() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join("nats-server")).find(|file| file.is_file())
}

struct NatsServer {
    program: std::path::PathBuf,
    process: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl NatsServer {
    fn start(program: &std::path::Path, which: Which) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (config, log) = (dir.path().join("nats.conf"), dir.path().join("log"));
        // it can't be asked for any free port and told which: another may take the port in between, so it is tried again
        for _ in 0..10 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            std::fs::write(&config, configuration(which, port)).unwrap();
            #[expect(clippy::disallowed_methods, reason = "a test's own server")]
            let mut command = std::process::Command::new(program);
            command.arg("--config").arg(&config).arg("--log").arg(&log);
            let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if ready(&mut process, address) {
                return Self { program: program.into(), process, address, _dir: dir };
            }
            let _ = process.kill(); // it has ended
            let _ = process.wait();
        }
        panic!("nats-server doesn't start: {}", std::fs::read_to_string(&log).unwrap_or_default());
    }

    fn signal(&self, name: &str) {
        #[expect(clippy::disallowed_methods, reason = "a test's own server")]
        let mut command = std::process::Command::new(&self.program);
        let status = command.arg("--signal").arg(format!("{name}={}", self.process.id())).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it has ended otherwise
        let _ = self.process.wait();
    }
}

/// Whether it answers before it ends.
#[expect(clippy::disallowed_methods, reason = "a program's start can't be waited for in paused time")]
fn ready(process: &mut Child, address: SocketAddr) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end && process.try_wait().unwrap().is_none() {
        if TcpStream::connect(address).is_ok_and(|mut stream| stream.read(&mut [0; 5]).is_ok_and(|count| count > 0)) {
            return process.try_wait().unwrap().is_none();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

const TOKEN: &str = "s3cr3t";

struct User {
    name: &'static str,
    publish: &'static [&'static str],
    subscribe: &'static [&'static str],
    responses: bool,
}

const USERS: [User; 3] = [
    User { name: "anyone", publish: &[">"], subscribe: &[">"], responses: false },
    User { name: "limited", publish: &["open.>", "exact"], subscribe: &["open.>", "one.*", "_INBOX.lim.>"], responses: false },
    User { name: "responder", publish: &["log"], subscribe: &["service.>"], responses: true },
];

fn configuration(which: Which, port: u16) -> String {
    let mut text = format!("listen: \"127.0.0.1:{port}\"\nmax_payload: {MAX_PAYLOAD}\nmax_control_line: 4096\n");
    match which {
        Which::Open => {}
        Which::Token => {
            let _ = writeln!(text, "authorization {{ token: \"{TOKEN}\" }}");
        }
        Which::Users => {
            text.push_str("authorization { users = [\n");
            for user in USERS {
                let responses = if user.responses { ", allow_responses: { max: -1, expires: \"5m\" }" } else { "" };
                let _ = writeln!(
                    text,
                    "{{ user: {0}, password: {0}, permissions: {{ publish: {1:?}, subscribe: {2:?}{responses} }} }}",
                    user.name, user.publish, user.subscribe
                );
            }
            text.push_str("] }\n");
        }
        // nats-server pings before CONNECT, too: who says nothing must be past the one time long before the other
        Which::Impatient => text.push_str("ping_interval: \"500ms\"\nping_max: 2\nauthorization { token: \"s3cr3t\", timeout: 0.3 }\n"),
    }
    text
}

async fn bus(which: Which, cancel: &CancellationToken) -> (Arc<Router>, SocketAddr) {
    let limits = BusLimits { max_payload: MAX_PAYLOAD, ..BusLimits::default() };
    let limits = match which {
        Which::Impatient => BusLimits { ping_interval: Duration::from_millis(500), connect_timeout: Duration::from_millis(300), ..limits },
        Which::Open | Which::Token | Which::Users => limits,
    };
    let router = Router::new(limits, Arc::new(SystemClock));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(router.serve_tcp(listener, Arc::new(Door(which)), cancel.clone()));
    (router, address)
}

/// Lets in whom the configuration of nats-server lets in.
struct Door(Which);

impl Authenticator for Door {
    fn required(&self) -> bool {
        self.0 != Which::Open
    }

    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        let token = credentials.token.as_deref().unwrap_or_default();
        let refused = || Error::new(ErrorCode::Unauthenticated, "The token isn't valid.");
        let anyone = &USERS[0];
        let user = match self.0 {
            Which::Open => anyone,
            Which::Token | Which::Impatient if token == TOKEN => anyone,
            Which::Token | Which::Impatient => return Err(refused()),
            Which::Users => USERS.iter().find(|user| user.name == token).ok_or_else(refused)?,
        };
        let all = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let permissions =
            Permissions { publish: all(user.publish), subscribe: all(user.subscribe), responses: user.responses, ..Permissions::default() };
        Ok(vec![Grant { key: user.name.into(), permissions, account: None, expires_at: None }])
    }
}
