//! A host on fakes: containers are entries in a map, and each has a real agent, run in this process.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use atoll_agent::AgentOptions;
use atoll_contract::{Error, ProjectId, agent::AgentConfig};
use atoll_host::{
    runtime::{ContainerSpec, fake::FakeRuntime},
    storage::{self, Storage, StorageChoice, StorageConfig},
};
use tokio_util::sync::CancellationToken;

pub struct FakeHost {
    pub runtime: Arc<FakeRuntime>,
    pub storage: Arc<dyn Storage>,
    agents: Arc<Agents>,
}

#[derive(Default)]
struct Agents(Mutex<BTreeMap<ProjectId, CancellationToken>>);

impl FakeHost {
    /// # Errors
    /// `storage_failed`.
    pub fn new(volumes: PathBuf) -> Result<Arc<Self>, Error> {
        std::fs::create_dir_all(&volumes).map_err(|error| Error::internal(error.to_string()))?;
        let storage = storage::open(StorageConfig { kind: StorageChoice::Dir, path: volumes, unshare: None })?;
        let runtime = FakeRuntime::new();
        let agents = Arc::new(Agents::default());
        let starting = agents.clone();
        runtime.on_start(move |spec| starting.start(spec));
        let ending = agents.clone();
        runtime.on_stop(move |project| ending.stop(project));
        Ok(Arc::new(Self { runtime, storage, agents }))
    }

    /// Projects whose agent runs.
    pub fn agents(&self) -> Vec<ProjectId> {
        self.agents.lock().keys().copied().collect()
    }
}

impl Agents {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ProjectId, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the container's process 1 would do. Its home is the volume's own path, as nothing is mounted.
    fn start(&self, spec: &ContainerSpec) {
        let cancel = CancellationToken::new();
        if let Some(older) = self.lock().insert(spec.project, cancel.clone()) {
            older.cancel();
        }
        let Ok(text) = std::fs::read(spec.agent_dir.join("agent.json")) else { return };
        let Ok(config) = serde_json::from_slice::<AgentConfig>(&text) else { return };
        let config = AgentConfig { home: spec.home.to_string_lossy().into_owned(), ..config };
        let options = AgentOptions::in_process(config, spec.agent_dir.join("host.sock"), cancel);
        tokio::spawn(atoll_agent::run(options));
    }

    fn stop(&self, project: ProjectId) {
        if let Some(agent) = self.lock().remove(&project) {
            agent.cancel();
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.lock().values().for_each(CancellationToken::cancel);
    }
}
