//! A runtime in memory, with faults to inject. Tests of everything above the runtime use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_contract::{Error, ErrorCode, ProjectId, host::Finding, operation::Progress};
use atoll_net::bus::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Container, ContainerSpec, ContainerState, Owner, ProgressFn, Runtime};

type StartHook = Box<dyn Fn(&ContainerSpec) + Send + Sync>;
type StopHook = Box<dyn Fn(ProjectId) + Send + Sync>;

/// What goes wrong from now on, until it is taken back.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// `ensure_image` fails with this.
    pub image: Option<Error>,
    /// `ensure_running` fails with this.
    pub start: Option<Error>,
    /// Every container exits with this code as soon as it has started.
    pub dies: Option<i32>,
    pub list: Option<Error>,
    pub remove: Option<Error>,
    /// `ensure_image` and `ensure_running` don't end before this is taken back or they are cancelled.
    pub hang: bool,
}

/// Containers that are entries in a map.
pub struct FakeRuntime {
    state: Mutex<State>,
    faults: watch::Sender<Faults>,
    on_start: Mutex<Option<StartHook>>,
    on_stop: Mutex<Option<StopHook>>,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<ProjectId, (ContainerSpec, Container)>,
    images: BTreeSet<String>,
    log: String,
    findings: Vec<Finding>,
    starts: u64,
    removals: u64,
    lists: u64,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            faults: watch::Sender::new(Faults::default()),
            on_start: Mutex::default(),
            on_stop: Mutex::default(),
        }
    }
}

impl FakeRuntime {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// How often the containers were listed.
    pub fn lists(&self) -> u64 {
        lock(&self.state).lists
    }

    /// Is called for each container that starts, such as to run an agent for it. It must not call back into this runtime.
    pub fn on_start(&self, hook: impl Fn(&ContainerSpec) + Send + Sync + 'static) {
        *lock(&self.on_start) = Some(Box::new(hook));
    }

    /// Is called for each container that ends, however it ends.
    pub fn on_stop(&self, hook: impl Fn(ProjectId) + Send + Sync + 'static) {
        *lock(&self.on_stop) = Some(Box::new(hook));
    }

    /// Changes what goes wrong.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.faults.send_modify(change);
    }

    /// A container ends by itself. Nothing if none runs.
    pub fn exit(&self, project: ProjectId, code: i32) {
        let ended = lock(&self.state).containers.get_mut(&project).is_some_and(|(_, container)| {
            let ran = container.state == ContainerState::Running;
            container.state = ContainerState::Exited(Some(code));
            ran
        });
        if ended {
            self.stopped(project);
        }
    }

    /// Puts a container there that nobody asked this runtime for.
    pub fn insert(&self, spec: ContainerSpec, state: ContainerState) {
        let mut all = lock(&self.state);
        all.starts += 1;
        let container = Container { id: format!("fake-{}", all.starts), project: spec.project, generation: spec.generation, state };
        all.containers.insert(spec.project, (spec, container));
    }

    pub fn container(&self, project: ProjectId) -> Option<Container> {
        lock(&self.state).containers.get(&project).map(|(_, container)| container.clone())
    }

    pub fn spec(&self, project: ProjectId) -> Option<ContainerSpec> {
        lock(&self.state).containers.get(&project).map(|(spec, _)| spec.clone())
    }

    /// How many containers were started so far.
    pub fn starts(&self) -> u64 {
        lock(&self.state).starts
    }

    /// How many containers were removed so far.
    pub fn removals(&self) -> u64 {
        lock(&self.state).removals
    }

    /// Images that `ensure_image` obtained.
    pub fn images(&self) -> BTreeSet<String> {
        lock(&self.state).images.clone()
    }

    /// What `log_tail` answers.
    pub fn set_log(&self, log: &str) {
        log.clone_into(&mut lock(&self.state).log);
    }

    pub fn set_findings(&self, findings: Vec<Finding>) {
        lock(&self.state).findings = findings;
    }

    fn stopped(&self, project: ProjectId) {
        if let Some(hook) = &*lock(&self.on_stop) {
            hook(project);
        }
    }

    async fn unless_hanging(&self, cancel: &CancellationToken) -> Result<Faults, Error> {
        let mut faults = self.faults.subscribe();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::new(ErrorCode::Cancelled, "The fake runtime was cancelled.")),
            faults = faults.wait_for(|faults| !faults.hang) => {
                faults.map(|faults| faults.clone()).map_err(|_| Error::internal("The fake runtime is gone."))
            }
        }
    }

    async fn start(&self, spec: &ContainerSpec, cancel: &CancellationToken) -> Result<Container, Error> {
        let faults = self.unless_hanging(cancel).await?;
        if let Some(error) = faults.start {
            return Err(error);
        }
        if let Some(there) = self.container(spec.project) {
            if there.generation == spec.generation && there.state == ContainerState::Running {
                return Ok(there);
            }
            self.take(spec.project);
        }
        self.insert(spec.clone(), ContainerState::Running);
        if let Some(hook) = &*lock(&self.on_start) {
            hook(spec);
        }
        if let Some(code) = faults.dies {
            self.exit(spec.project, code);
        }
        self.container(spec.project).ok_or_else(|| Error::internal("The container was removed while it started."))
    }

    fn take(&self, project: ProjectId) {
        let gone = {
            let mut state = lock(&self.state);
            let gone = state.containers.remove(&project);
            state.removals += u64::from(gone.is_some());
            gone
        };
        if gone.is_some_and(|(_, container)| container.state == ContainerState::Running) {
            self.stopped(project);
        }
    }
}

impl Runtime for FakeRuntime {
    fn findings(&self) -> Vec<Finding> {
        lock(&self.state).findings.clone()
    }

    fn owner(&self) -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>> {
        Box::pin(async {
            lock(&self.state).lists += 1;
            match self.faults.borrow().list.clone() {
                Some(error) => Err(error),
                None => Ok(lock(&self.state).containers.values().map(|(_, container)| container.clone()).collect()),
            }
        })
    }

    fn ensure_image<'a>(&'a self, image: &'a str, progress: ProgressFn, cancel: CancellationToken) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            progress(Progress { phase: format!("pulling {image}"), ..Progress::default() });
            match self.unless_hanging(&cancel).await?.image {
                Some(error) => Err(error),
                None => {
                    lock(&self.state).images.insert(image.to_owned());
                    Ok(())
                }
            }
        })
    }

    fn ensure_running<'a>(&'a self, spec: &'a ContainerSpec, cancel: CancellationToken) -> BoxFuture<'a, Result<Container, Error>> {
        Box::pin(async move { self.start(spec, &cancel).await })
    }

    fn ensure_removed(&self, project: ProjectId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if let Some(error) = self.faults.borrow().remove.clone() {
                return Err(error);
            }
            self.take(project);
            Ok(())
        })
    }

    fn log_tail(&self, _: ProjectId) -> BoxFuture<'_, String> {
        Box::pin(async { lock(&self.state).log.clone() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use atoll_contract::{Generation, project::Limits};

    use super::*;

    fn spec(generation: u64) -> ContainerSpec {
        ContainerSpec {
            project: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
            generation: Generation(generation),
            image: "x".into(),
            hostname: "x".into(),
            limits: Limits::default(),
            env: vec![],
            home: "/h".into(),
            agent_dir: "/a".into(),
        }
    }

    #[tokio::test]
    async fn the_trait_s_promises() {
        let runtime = FakeRuntime::new();
        let (started, stopped) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let (up, down) = (started.clone(), stopped.clone());
        runtime.on_start(move |_| *up.lock().unwrap() += 1);
        runtime.on_stop(move |_| *down.lock().unwrap() += 1);
        let cancel = CancellationToken::new();
        let first = runtime.ensure_running(&spec(1), cancel.clone()).await.unwrap();
        assert_eq!(runtime.ensure_running(&spec(1), cancel.clone()).await.unwrap(), first);
        let second = runtime.ensure_running(&spec(2), cancel.clone()).await.unwrap();
        assert_eq!(runtime.list().await.unwrap(), [second]);
        runtime.exit(spec(1).project, 9);
        assert_eq!(runtime.container(spec(1).project).unwrap().state, ContainerState::Exited(Some(9)));
        runtime.ensure_running(&spec(2), cancel).await.unwrap();
        runtime.ensure_removed(spec(1).project).await.unwrap();
        runtime.ensure_removed(spec(1).project).await.unwrap();
        assert!(runtime.list().await.unwrap().is_empty());
        assert_eq!((*started.lock().unwrap(), *stopped.lock().unwrap()), (3, 3));
    }

    #[tokio::test]
    async fn a_hang_ends_by_cancel_or_by_being_taken_back() {
        let runtime = FakeRuntime::new();
        runtime.faults(|faults| faults.hang = true);
        let cancel = CancellationToken::new();
        let (other, token) = (runtime.clone(), cancel.clone());
        let start = tokio::spawn(async move { other.ensure_running(&spec(1), token).await });
        cancel.cancel();
        assert_eq!(start.await.unwrap().unwrap_err().code, ErrorCode::Cancelled);
        let other = runtime.clone();
        let start = tokio::spawn(async move { other.ensure_running(&spec(1), CancellationToken::new()).await });
        runtime.faults(|faults| faults.hang = false);
        start.await.unwrap().unwrap();
    }
}
