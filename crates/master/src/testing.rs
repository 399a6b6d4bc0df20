//! A whole master in one process for tests, with a host that is made of a map and does what it is told, or fails as it is told.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use atoll_contract::{
    AccountId, Error, ErrorCode, Generation, HostId, OperationId, ProjectId, Timestamp,
    api::CreateProject,
    command::{Command, CommandReply, Verb},
    host::{Capacity, HostFacts, HostReport, StorageCapabilities, StorageKind},
    operation::{OperationKind, OperationView, Progress},
    placement::Requirements,
    project::{Limits, ObservedProject, ObservedState, ProjectSpec},
};
use atoll_net::{
    bus::{BoxFuture, BusLimits, Conn, Message, Router, Subscription},
    clock::TestClock,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Master,
    auth::{Auth, Identity, Means, Token, TokenKind},
    hosts::{Hosts, MasterAuthenticator},
    keys::Signer,
    mint,
    operations::{Executor, Parts},
    projects::Projects,
    routing::Routing,
    store::{Joined, NewAccount, NewHost, NewJoinToken, Store},
};

/// Long enough for anything that a test waits for; reached only by a defect.
pub(crate) const BOUND: Duration = Duration::from_mins(1);

/// How the fake host deals with the next command of a verb.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// Says no, and has done nothing.
    Refuse(Error),
    /// Does it, and says no.
    DoAndRefuse(Error),
    /// Does it, and the answer is lost.
    DoAndLose,
    /// Isn't reached.
    Away,
    /// Says that it works on it.
    Work,
    /// Isn't done and never answers.
    Hang,
    /// Is done and never answers.
    DoAndHang,
}

/// A project on the fake host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OnHost {
    pub generation: Generation,
    /// The operation that started its container, if one runs.
    pub running: Option<OperationId>,
    /// Containers that were ever started.
    pub starts: u32,
}

pub(crate) struct FakeHost {
    pub id: HostId,
    pub projects: Mutex<HashMap<ProjectId, OnHost>>,
    pub faults: Mutex<HashMap<&'static str, VecDeque<Fault>>>,
    pub log: Mutex<Vec<Command>>,
    /// Commands that hang.
    pub hanging: watch::Sender<u32>,
    pub published: Mutex<Vec<Message>>,
}

impl FakeHost {
    fn new(id: HostId) -> Arc<Self> {
        Arc::new(Self {
            id,
            projects: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            hanging: watch::channel(0).0,
            published: Mutex::default(),
        })
    }

    pub(crate) fn fault(&self, verb: &'static str, fault: Fault) {
        self.faults.lock().unwrap().entry(verb).or_default().push_back(fault);
    }

    pub(crate) fn get(&self, project: ProjectId) -> Option<OnHost> {
        self.projects.lock().unwrap().get(&project).cloned()
    }

    pub(crate) async fn until_hanging(&self) {
        let mut hanging = self.hanging.subscribe();
        tokio::time::timeout(BOUND, hanging.wait_for(|count| *count > 0)).await.expect("a command hangs").unwrap();
    }

    fn do_it(&self, command: &Command) -> CommandReply {
        let mut projects = self.projects.lock().unwrap();
        let (project, operation) = (command.project, command.operation);
        let known = projects.get_mut(&project);
        let missing = || CommandReply::Failed { error: Error::new(ErrorCode::WrongVolume, "no volume") };
        let state = match (&command.verb, known) {
            (Verb::EnsureVolumes { fresh, .. }, None) if *fresh => {
                projects.insert(project, OnHost { generation: command.generation, running: None, starts: 0 });
                ObservedState::Stopped
            }
            (Verb::EnsureImage {} | Verb::EnsureRunning { .. } | Verb::EnsureVolumes { .. }, None) => return missing(),
            (Verb::EnsureRunning { restart }, Some(known)) => {
                if known.running.is_none() || (*restart && known.running != Some(operation)) {
                    known.running = Some(operation);
                    known.starts += 1;
                }
                ObservedState::Running
            }
            (Verb::EnsureStopped {}, Some(known)) => {
                known.running = None;
                ObservedState::Stopped
            }
            (Verb::EnsureAbsent {}, _) => {
                projects.remove(&project);
                ObservedState::Absent
            }
            (Verb::EnsureImage {} | Verb::Cancel {}, Some(known)) if known.running.is_some() => ObservedState::Running,
            (Verb::EnsureVolumes { .. } | Verb::EnsureImage {} | Verb::Cancel {}, Some(_)) => ObservedState::Stopped,
            (Verb::EnsureStopped {} | Verb::Cancel {}, None) => ObservedState::Absent,
        };
        let observed = ObservedProject { project, generation: command.generation, state, error: None, used_bytes: None };
        CommandReply::Done { observed }
    }

    async fn answer(&self, command: Command) -> Result<CommandReply, Error> {
        self.log.lock().unwrap().push(command.clone());
        let fault = self.faults.lock().unwrap().get_mut(command.verb.name()).and_then(VecDeque::pop_front);
        match fault {
            None => Ok(self.do_it(&command)),
            Some(Fault::Refuse(error)) => Ok(CommandReply::Failed { error }),
            Some(Fault::DoAndRefuse(error)) => {
                self.do_it(&command);
                Ok(CommandReply::Failed { error })
            }
            Some(Fault::DoAndLose) => {
                self.do_it(&command);
                Err(Error::new(ErrorCode::TimedOut, "lost"))
            }
            Some(Fault::Away) => Err(Error::new(ErrorCode::NoResponders, "away")),
            Some(Fault::Work) => Ok(CommandReply::Working { progress: Progress { phase: "working".into(), ..Progress::default() } }),
            Some(fault @ (Fault::Hang | Fault::DoAndHang)) => {
                if fault == Fault::DoAndHang {
                    self.do_it(&command);
                }
                self.hanging.send_modify(|count| *count += 1);
                std::future::pending().await
            }
        }
    }
}

/// The master's end of the road to the fake host.
impl Conn for FakeHost {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        self.published.lock().unwrap().push(message);
        Box::pin(async { Ok(()) })
    }

    fn subscribe<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(async { Err(Error::new(ErrorCode::Unsupported, "no subscriptions here")) })
    }

    fn request(&self, message: Message, _: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        Box::pin(async move {
            assert_eq!(*message.subject, *atoll_contract::subject::host_command(self.id));
            let reply = self.answer(serde_json::from_slice(&message.payload).unwrap()).await?;
            Ok(Message::new("reply", serde_json::to_vec(&reply).unwrap()))
        })
    }
}

pub(crate) fn facts() -> HostFacts {
    HostFacts {
        version: "0.1.0".into(),
        public_url: "http://127.0.0.1:7001".into(),
        region: "eu".into(),
        labels: BTreeMap::new(),
        storage: StorageKind::Btrfs,
        capabilities: StorageCapabilities { snapshots: true, quotas: true, cheap_usage: true, send_receive: true },
        arch: "x86_64".into(),
        findings: Vec::new(),
    }
}

pub(crate) fn capacity() -> Capacity {
    Capacity {
        cpus: 8,
        memory_bytes: 32 << 30,
        memory_available_bytes: 24 << 30,
        disk_bytes: 1000 << 30,
        disk_used_bytes: 0,
        disk_headroom_bytes: 900 << 30,
        projects: 0,
        projects_running: 0,
        max_running: 100,
    }
}

pub(crate) fn spec(name: &str) -> ProjectSpec {
    ProjectSpec { name: name.into(), image: "localhost/base:latest".into(), limits: Limits::default(), env: BTreeMap::new() }
}

pub(crate) fn create(name: &str, start: bool) -> CreateProject {
    CreateProject { spec: spec(name), requirements: Requirements::default(), start, idempotency_key: None }
}

/// One data directory, one fake host, and the master that runs on them at present.
pub(crate) struct World {
    pub dir: tempfile::TempDir,
    pub clock: Arc<TestClock>,
    pub host: Arc<FakeHost>,
    pub admin: Identity,
    pub master: Option<Arc<Master>>,
    sequence: u64,
}

pub(crate) const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

impl World {
    /// An admin named "admin" without a usable password, a host that reports, and a master that runs.
    pub(crate) async fn new() -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::at(START));
        let store = Store::open(&dir.path().join("master.db")).unwrap();
        let account: AccountId = mint::id(&*clock);
        let password = String::from("none");
        store.create_first_account(NewAccount { id: account, name: "admin".into(), admin: true, password, now: START }).await.unwrap();
        let token = Token::new(TokenKind::Join, &*clock).hash();
        let expires_at = START.saturating_add(BOUND);
        store
            .create_join_token(NewJoinToken { token: token.clone(), name: None, created_by: Some(account), now: START, expires_at })
            .await
            .unwrap();
        let public_key = nkeys::KeyPair::new_user().public_key();
        let host = NewHost { id: mint::id(&*clock), token, name: "host-a".into(), public_key, now: START };
        let Joined::Member(host) = store.join(host).await.unwrap() else { panic!("the host joins") };
        store.close(BOUND).await;
        let means = Means::Session(Token::new(TokenKind::Session, &*clock).hash());
        let admin = Identity { account, name: "admin".into(), admin: true, created_at: START, means, expires_at: None };
        let mut world = Self { dir, clock, host: FakeHost::new(host.id), admin, master: None, sequence: 0 };
        world.boot().await;
        world
    }

    /// Starts a master on what is there, as [`crate::start`] does but for the network.
    pub(crate) async fn boot(&mut self) {
        let clock: atoll_net::clock::SharedClock = self.clock.clone();
        let store = Store::open(&self.dir.path().join("master.db")).unwrap();
        let signer = Arc::new(Signer::load(self.dir.path(), &*clock).unwrap());
        let auth = Auth::load(store.clone(), clock.clone(), self.dir.path()).await.unwrap();
        let (hosts, _) = Hosts::load(store.clone(), clock.clone(), signer.jwks().clone()).await.unwrap();
        let conn: Arc<dyn Conn> = self.host.clone();
        let executor = Executor::new(Parts { store: store.clone(), clock: clock.clone(), hosts: hosts.clone(), conn });
        let routing = Routing { hosts: hosts.clone(), signer: signer.clone(), clock: clock.clone() };
        let projects = Arc::new(Projects { store, clock: clock.clone(), hosts: hosts.clone(), routing, executor });
        let authenticator = Arc::new(MasterAuthenticator { hosts: hosts.clone(), auth: auth.clone() });
        let (bus, stop) = (Router::new(BusLimits::default(), clock.clone()), CancellationToken::new());
        self.master = Some(Arc::new(Master { clock, auth, hosts, projects, signer, bus, authenticator, stop }));
        self.report();
        self.master().projects.executor.recover().await.unwrap();
    }

    /// The host reports all that it has.
    pub(crate) fn report(&mut self) {
        self.sequence += 1;
        let projects = self.host.projects.lock().unwrap();
        let observed = projects.iter().map(|(project, one)| ObservedProject {
            project: *project,
            generation: one.generation,
            state: if one.running.is_some() { ObservedState::Running } else { ObservedState::Stopped },
            error: None,
            used_bytes: None,
        });
        let (host, boot, facts) = (self.host.id, "boot".to_owned(), Some(facts()));
        let projects = observed.collect();
        let report = HostReport { host, boot, sequence: self.sequence, facts, capacity: capacity(), healthy: true, full: true, projects };
        self.master().hosts.report(report).unwrap();
    }

    /// The master dies where it is, and another starts.
    pub(crate) async fn crash_and_boot(&mut self) {
        let master = self.master.take().unwrap();
        master.projects.executor.stop(BOUND).await;
        let store = master.projects.store.clone();
        drop(master);
        store.close(BOUND).await;
        self.host.hanging.send_replace(0);
        self.boot().await;
    }

    pub(crate) fn master(&self) -> &Arc<Master> {
        self.master.as_ref().unwrap()
    }

    pub(crate) fn projects(&self) -> &Arc<Projects> {
        &self.master().projects
    }

    /// Begins an operation of the admin's; a create makes a project named "thesis".
    pub(crate) async fn begin(&self, kind: OperationKind, start: bool) -> OperationView {
        let accepted = match kind {
            OperationKind::Create => self.projects().create(&self.admin, create("thesis", start)).await.unwrap(),
            kind => {
                let row = self.projects().find(&self.admin, "thesis").await.unwrap();
                self.projects().change(&self.admin, &row, kind).await.unwrap()
            }
        };
        self.operation(accepted.operation).await
    }

    pub(crate) async fn operation(&self, id: OperationId) -> OperationView {
        match self.projects().executor.live(id) {
            Some(view) => view,
            None => self.projects().store.operation(id).await.unwrap().unwrap().view(Progress::default()),
        }
    }

    /// The operation at its end.
    pub(crate) async fn end(&self, id: OperationId) -> OperationView {
        let deadline = tokio::time::Instant::now() + BOUND;
        loop {
            let view = self.operation(id).await;
            if view.status.ended() {
                // its task may still be on its way out
                if self.projects().executor.live(id).is_none() {
                    return view;
                }
                tokio::task::yield_now().await;
                continue;
            }
            assert!(tokio::time::Instant::now() < deadline, "doesn't end: {view:?}");
            self.projects().executor.wait(id, view.version, Duration::from_secs(5)).await;
        }
    }
}
