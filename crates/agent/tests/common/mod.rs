//! A host as an agent sees it: a bus on a unix socket, and a way in for callers.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use atoll_agent::AgentOptions;
use atoll_contract::{
    Error, ErrorCode, Generation, ProjectId, Role,
    agent::{AgentConfig, AgentInfo, ExecStart},
    subject,
};
use atoll_net::{
    bus::{Authenticator, BoxFuture, BusLimits, Conn, Credentials, Grant, Message, Router, Subscription},
    clock::SystemClock,
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) const BOUND: Duration = Duration::from_secs(20);
pub(crate) const SECRET: &str = "this start's secret";

/// A user's token, and the id in it.
pub(crate) const USER: &str = "user";

pub(crate) fn project() -> ProjectId {
    "0198c0de-0000-7000-8000-000000000003".parse().unwrap()
}

struct Auth;

impl Authenticator for Auth {
    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        let permissions = match credentials.token.as_deref() {
            Some(SECRET) => subject::agent_permissions(project()),
            Some(USER) => subject::project_permissions(project(), Role::Owner, USER),
            _ => return Err(Error::new(ErrorCode::Unauthenticated, "Wrong secret.")),
        };
        Ok(vec![Grant { key: project().to_string(), permissions, account: None, expires_at: None }])
    }
}

/// The bus of one life of the host program.
pub(crate) struct Host {
    pub(crate) router: Arc<Router>,
    hello: Subscription,
    task: JoinHandle<()>,
    socket: PathBuf,
    /// Where users come in.
    pub(crate) port: u16,
}

impl Host {
    pub(crate) async fn start(dir: &Path, port: u16) -> Self {
        let socket = dir.join("host.sock");
        let router = Router::new(BusLimits::default(), Arc::new(SystemClock));
        // before the socket is there, so that no hello is missed
        let hello = router.connect("test", None).subscribe(&subject::project(project(), "agent.hello"), None).await.unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let users = bind(port).await;
        let port = users.local_addr().unwrap().port();
        let serving = router.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    agent = listener.accept() => {
                        connections.spawn(serving.serve(agent.unwrap().0, "agent".into(), Arc::new(Auth), CancellationToken::new()));
                    }
                    user = users.accept() => {
                        connections.spawn(serving.serve(user.unwrap().0, "user".into(), Arc::new(Auth), CancellationToken::new()));
                    }
                }
            }
        });
        Self { router, hello, task, socket, port }
    }

    pub(crate) async fn hello(&mut self) -> AgentInfo {
        let message = timeout(BOUND, self.hello.next()).await.expect("the agent says hello").unwrap();
        serde_json::from_slice(&message.payload).unwrap()
    }

    pub(crate) fn conn(&self) -> Arc<dyn Conn> {
        self.router.connect("caller", None)
    }

    /// Ends as a killed program does: without a word to anyone.
    pub(crate) async fn die(self) {
        self.task.abort();
        assert!(timeout(BOUND, self.task).await.unwrap().unwrap_err().is_cancelled());
        std::fs::remove_file(&self.socket).unwrap();
    }
}

/// A port that no outgoing connection takes while its host is away: below Linux's range for those (32768 and up).
async fn bind(port: u16) -> TcpListener {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    if port != 0 {
        return TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    }
    loop {
        let next = NEXT.fetch_add(1, Ordering::SeqCst).wrapping_add((std::process::id() * 61 % 10_000) as u16);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", 20_000 + next % 10_000)).await {
            return listener;
        }
    }
}

/// A project with its agent, in a directory of its own.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) host: Host,
    pub(crate) conn: Arc<dyn Conn>,
    cancel: CancellationToken,
    agent: JoinHandle<i32>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut AgentOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::start(dir.path(), 0).await;
        std::fs::create_dir(dir.path().join("home")).unwrap();
        let home = dir.path().join("home").to_str().unwrap().to_owned();
        let config = AgentConfig {
            project: project(),
            generation: Generation::FIRST,
            secret: SECRET.into(),
            home,
            env: [("OF_THE_SPEC".into(), "yes".into())].into(),
        };
        let cancel = CancellationToken::new();
        let mut options = AgentOptions::in_process(config, dir.path().join("host.sock"), cancel.clone());
        options.env = vec![("PATH".into(), std::env::var_os("PATH").unwrap()), ("SHELL".into(), OsString::from("/bin/sh"))];
        change(&mut options);
        let agent = tokio::spawn(atoll_agent::run(options));
        host.hello().await;
        let conn = host.conn();
        Self { dir, host, conn, cancel, agent }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The host program is killed and comes back.
    pub(crate) async fn restart_host(mut self) -> Self {
        let port = self.host.port;
        self.host.die().await;
        self.host = Host::start(self.dir.path(), port).await;
        self.host.hello().await;
        self.conn = self.host.conn();
        self
    }

    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        assert_eq!(timeout(BOUND, self.agent).await.expect("the agent ends").unwrap(), 0);
    }
}

pub(crate) fn command(argv: &[&str]) -> ExecStart {
    ExecStart {
        stream: String::new(),
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: std::collections::BTreeMap::default(),
        cwd: String::new(),
        stdin: false,
        timeout_millis: None,
    }
}

pub(crate) fn shell(script: &str) -> ExecStart {
    command(&["sh", "-c", script])
}

pub(crate) fn is_alive(pid: u32) -> bool {
    // a zombie has ended, whoever is slow to wait for it
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

pub(crate) async fn gone(pid: u32) {
    eventually(|| !is_alive(pid), "the process ends").await;
}

/// Waits for a condition outside this program, in real time even if tokio's is paused.
pub(crate) async fn eventually(condition: impl Fn() -> bool, what: &str) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(10))).await.unwrap();
    }
    panic!("{what}");
}

/// A connection whose caller can vanish without a word.
pub(crate) struct Mutable {
    pub(crate) conn: Arc<dyn Conn>,
    pub(crate) mute: AtomicBool,
}

impl Conn for Mutable {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        if self.mute.load(Ordering::SeqCst) { Box::pin(async { Ok(()) }) } else { self.conn.publish(message) }
    }

    fn subscribe<'a>(&'a self, subject: &'a str, queue: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        self.conn.subscribe(subject, queue)
    }

    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        self.conn.request(message, timeout)
    }
}
