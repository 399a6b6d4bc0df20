//! A host's projects on fakes, with agents that are a task each.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Generation, ProjectId, VolumeId,
    agent::{AgentConfig, AgentInfo},
    command::{Command, CommandReply, Verb},
    host::{Finding, StorageCapabilities, StorageKind},
    project::{Limits, ObservedProject, ObservedState, ProjectSpec},
    subject,
};
use atoll_net::{
    bus::{BoxFuture, BusLimits, Conn, Message, Router, client},
    clock::SystemClock,
    streams::{StreamLimits, StreamService},
};
use tokio::{net::UnixStream, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Parts, Projects, records::Records};
use crate::{
    runtime::{ContainerSpec, Owner, Runtime, fake::FakeRuntime},
    storage::{self, Space, Storage, StorageChoice, StorageConfig, Volumes, faulty::FaultyStorage},
};

pub(crate) const WAIT: Duration = Duration::from_secs(20);

pub(crate) fn id<K: atoll_contract::id::Kind>(n: u8) -> atoll_contract::id::Id<K> {
    format!("0198c0de-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

pub(crate) fn spec() -> ProjectSpec {
    ProjectSpec { name: "thesis".into(), image: "base".into(), limits: Limits::default(), env: BTreeMap::from([("A".into(), "b".into())]) }
}

pub(crate) fn volumes() -> Verb {
    Verb::EnsureVolumes { spec: spec(), fresh: true }
}

pub(crate) const RUN: Verb = Verb::EnsureRunning { restart: false };
pub(crate) const RESTART: Verb = Verb::EnsureRunning { restart: true };
pub(crate) const STOP: Verb = Verb::EnsureStopped {};
pub(crate) const REMOVE: Verb = Verb::EnsureAbsent {};
pub(crate) const IMAGE: Verb = Verb::EnsureImage {};
pub(crate) const CANCEL: Verb = Verb::Cancel {};

pub(crate) fn command(project: ProjectId, generation: u64, operation: u8, verb: Verb) -> Command {
    Command { project, generation: Generation(generation), operation: id(operation), verb }
}

/// How the agents of a fake runtime's containers behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    Good,
    /// Never connects.
    Mute,
    /// Connects with another secret.
    Impostor,
    /// Answers, and its hello gets lost.
    Modest,
}

/// The agents of a fake runtime's containers. They outlive the host program, as containers do.
pub(crate) struct Agents {
    pub(crate) manners: Mutex<Manners>,
    running: Mutex<BTreeMap<ProjectId, JoinHandle<()>>>,
    /// What agents were refused with.
    pub(crate) refusals: Mutex<Vec<Error>>,
}

impl Agents {
    /// Lives in every container of the runtime from now on.
    pub(crate) fn move_in(runtime: &FakeRuntime) -> Arc<Self> {
        let agents = Arc::new(Self { manners: Mutex::new(Manners::Good), running: Mutex::default(), refusals: Mutex::default() });
        let (up, down) = (agents.clone(), agents.clone());
        runtime.on_start(move |spec| up.start(spec));
        runtime.on_stop(move |project| {
            if let Some(task) = down.running.lock().unwrap().remove(&project) {
                task.abort();
            }
        });
        agents
    }

    /// The agent of a container that runs on is gone.
    pub(crate) fn leave(&self, project: ProjectId) {
        if let Some(task) = self.running.lock().unwrap().remove(&project) {
            task.abort();
        }
    }

    /// As the runtime does at a container's start.
    pub(crate) fn start(self: &Arc<Self>, spec: &ContainerSpec) {
        let manners = *self.manners.lock().unwrap();
        if manners == Manners::Mute {
            return;
        }
        let mut config: AgentConfig = serde_json::from_slice(&std::fs::read(spec.agent_dir.join("agent.json")).unwrap()).unwrap();
        assert_eq!((config.project, config.generation), (spec.project, spec.generation));
        if manners == Manners::Impostor {
            config.secret = "x".repeat(config.secret.len());
        }
        let (agents, dir) = (self.clone(), spec.agent_dir.clone());
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = live(&dir, &config, manners == Manners::Modest).await {
                    agents.refusals.lock().unwrap().push(error);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        self.running.lock().unwrap().insert(spec.project, task);
    }
}

/// One connection of an agent, until it ends.
async fn live(dir: &Path, config: &AgentConfig, modest: bool) -> Result<(), Error> {
    let closed = |error: std::io::Error| Error::new(ErrorCode::Unavailable, error.to_string());
    // through a handle, as the path may be too long for a socket's address
    let handle = std::fs::File::open(dir).map_err(closed)?;
    let path = format!("/proc/self/fd/{}/host.sock", std::os::fd::AsRawFd::as_raw_fd(&handle));
    let stream = UnixStream::connect(path).await.map_err(closed)?;
    let client = client::connect(stream, client::Options { token: Some(config.secret.clone()), ..client::Options::default() }).await?;
    let info = AgentInfo { version: "test".into(), boot: "b".into(), terminals: 0, execs: 0 };
    if modest {
        let mut asked = client.subscribe(&subject::project(config.project, "agent.info"), None).await?;
        while let Some(message) = asked.next().await {
            client.publish(Message::new(message.reply.unwrap(), serde_json::to_vec(&info).unwrap())).await?;
        }
        return Err(client.closed().await);
    }
    let hello = Message::new(subject::project(config.project, "agent.hello"), serde_json::to_vec(&info).unwrap());
    client.publish(hello).await?;
    Err(client.closed().await)
}

pub(crate) fn storage_at(path: PathBuf) -> Arc<FaultyStorage> {
    FaultyStorage::new(storage::open(StorageConfig { kind: StorageChoice::Dir, path, unshare: None }).unwrap())
}

/// A host's projects, and what they stand on.
pub(crate) struct Rig {
    pub(crate) dir: PathBuf,
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) storage: Arc<FaultyStorage>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) router: Arc<Router>,
    pub(crate) records: Records,
    pub(crate) projects: Projects,
    #[allow(dead_code, reason = "held for its drop")]
    running: DropGuard,
    pub(crate) temporary: Option<tempfile::TempDir>,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host");
        Self { temporary: Some(dir), ..Self::at(path).await }
    }

    pub(crate) async fn at(dir: PathBuf) -> Self {
        let runtime = FakeRuntime::new();
        let agents = Agents::move_in(&runtime);
        let storage = storage_at(dir.join("volumes"));
        Self::with(dir, runtime, storage, agents, 3).await
    }

    pub(crate) async fn with(
        dir: PathBuf,
        runtime: Arc<FakeRuntime>,
        storage: Arc<FaultyStorage>,
        agents: Arc<Agents>,
        max_running: u32,
    ) -> Self {
        Self::on(dir, runtime, storage.clone(), storage, agents, max_running).await
    }

    /// With what the projects see as their storage apart.
    pub(crate) async fn on(
        dir: PathBuf,
        runtime: Arc<FakeRuntime>,
        storage: Arc<FaultyStorage>,
        seen: Arc<dyn Storage>,
        agents: Arc<Agents>,
        max_running: u32,
    ) -> Self {
        std::fs::create_dir_all(dir.join("run")).unwrap();
        let router = Router::new(BusLimits::default(), Arc::new(SystemClock));
        let records = Records::open(&dir.join("records.db")).unwrap();
        let streams = StreamService::new(router.connect("streams", None), Arc::new(SystemClock), StreamLimits::default());
        let projects = Projects::load(Parts {
            runtime: runtime.clone(),
            storage: seen,
            records: records.clone(),
            router: router.clone(),
            streams: streams.clone(),
            clock: Arc::new(SystemClock),
            agents_dir: dir.join("run"),
            max_running,
            agent_wait: Duration::from_secs(30),
            // reconciliation is called by the tests, but for the one at the start
            reconcile_every: Duration::from_secs(100_000),
        })
        .await
        .unwrap();
        let cancel = CancellationToken::new();
        tokio::spawn(streams.listen("project.*", Arc::new(projects.clone())).await.unwrap().run(cancel.clone()));
        tokio::spawn(projects.clone().run(cancel.clone()));
        Self { dir, runtime, storage, agents, router, records, projects, running: cancel.drop_guard(), temporary: None }
    }

    /// The host program is killed, and another one starts on the same directory. Containers and agents go on.
    pub(crate) async fn crash(self) -> Self {
        self.projects.halt();
        let Self { dir, runtime, storage, agents, temporary, .. } = self;
        Self { temporary, ..Self::with(dir, runtime, storage, agents, 3).await }
    }

    /// Gives a command until it isn't being worked on any more.
    pub(crate) async fn tell(&self, command: Command) -> Result<ObservedProject, Error> {
        loop {
            match self.projects.command(command.clone()).await {
                CommandReply::Done { observed } => return Ok(observed),
                CommandReply::Failed { error } => return Err(error),
                CommandReply::Working { .. } => {}
            }
        }
    }

    pub(crate) async fn code(&self, command: Command) -> Option<ErrorCode> {
        self.tell(command).await.err().map(|error| error.code)
    }

    /// Makes a project's volumes by operation 1.
    pub(crate) async fn create(&self, project: ProjectId) {
        assert_eq!(self.tell(command(project, 1, 1, volumes())).await.unwrap().state, ObservedState::Stopped);
    }

    /// Makes and starts a project by operation 1.
    pub(crate) async fn run(&self, project: ProjectId) {
        self.create(project).await;
        assert_eq!(self.tell(command(project, 1, 1, RUN)).await.unwrap().state, ObservedState::Running);
    }

    pub(crate) fn state(&self, project: ProjectId) -> ObservedState {
        self.projects.observed(project).map_or(ObservedState::Absent, |observed| observed.state)
    }

    /// Waits until a project is in a state.
    pub(crate) async fn until(&self, project: ProjectId, state: ObservedState) -> ObservedProject {
        let mut version = self.projects.version();
        let reached = version.wait_for(|_| self.state(project) == state);
        tokio::time::timeout(WAIT, reached).await.unwrap_or_else(|_| panic!("{:?} instead of {state:?}", self.state(project))).unwrap();
        self.projects.observed(project).unwrap()
    }

    pub(crate) async fn has_volumes(&self, project: ProjectId) -> bool {
        self.storage.list().await.unwrap().contains(&project)
    }

    /// The container is taken away behind the host's back.
    pub(crate) async fn take_container(&self, project: ProjectId) {
        self.runtime.ensure_removed(project).await.unwrap();
    }
}

/// A storage that can tell what its volumes use: what a test says.
pub(crate) struct Measured(pub(crate) Arc<FaultyStorage>, pub(crate) std::sync::atomic::AtomicU64);

impl Storage for Measured {
    fn kind(&self) -> StorageKind {
        self.0.kind()
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities { cheap_usage: true, ..self.0.capabilities() }
    }

    fn findings(&self) -> Vec<Finding> {
        self.0.findings()
    }

    fn create(&self, p: ProjectId, g: Generation, v: VolumeId, quota: u64, owner: Owner) -> BoxFuture<'_, Result<Volumes, Error>> {
        self.0.create(p, g, v, quota, owner)
    }

    fn open(&self, project: ProjectId, generation: Generation, quota_bytes: u64) -> BoxFuture<'_, Result<Volumes, Error>> {
        self.0.open(project, generation, quota_bytes)
    }

    fn delete(&self, project: ProjectId) -> BoxFuture<'_, Result<(), Error>> {
        self.0.delete(project)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ProjectId>, Error>> {
        self.0.list()
    }

    fn usage(&self, _: ProjectId) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        Box::pin(async { Ok(Some(self.1.load(std::sync::atomic::Ordering::SeqCst))) })
    }

    fn space(&self) -> BoxFuture<'_, Result<Space, Error>> {
        self.0.space()
    }
}
