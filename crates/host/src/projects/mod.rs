//! The projects of this host: what the host was told (records), what it observes, and the verbs that make the second follow the first.
//!
//! One task at a time works on a project, whether a command of the master or the host's own reconciliation. A project at rest is a row in
//! the records and one small [`Entry`] in memory: no task, no socket, no timer.

mod agent;
mod container;
mod reconcile;
pub(crate) mod records;
mod state;
mod streams;
mod turn;
mod volumes;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use atoll_contract::{
    Error, Generation, ProjectId,
    project::{ObservedProject, ObservedState},
    subject,
};
use atoll_net::{
    bus::{Conn, Message, Router, Subscription},
    clock::SharedClock,
    streams::StreamService,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    agent::AgentLink,
    records::Records,
    state::Wanted,
    turn::{Outcome, Work},
};
use crate::{runtime::Runtime, storage::Storage};

/// What the projects work with.
pub(crate) struct Parts {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) records: Records,
    pub(crate) router: Arc<Router>,
    /// Closed for a project before its volumes go.
    pub(crate) streams: StreamService,
    pub(crate) clock: SharedClock,
    /// Directory that holds one directory for each container, with its agent's socket.
    pub(crate) agents_dir: PathBuf,
    pub(crate) max_running: u32,
    pub(crate) agent_wait: Duration,
    pub(crate) reconcile_every: Duration,
}

/// The projects of this host. Cloning gives another handle.
#[derive(Clone)]
pub struct Projects(Arc<Inner>);

pub(crate) struct Inner {
    parts: Parts,
    conn: Arc<dyn Conn>,
    /// The agents' hellos, subscribed to before the first agent can connect; [`Projects::run`] takes it.
    hellos: Mutex<Option<Subscription>>,
    table: Mutex<Table>,
    /// The newest version in the table: whoever watches reads what has changed since the one it knows.
    version: watch::Sender<u64>,
    /// Whether the runtime answered when it was last asked.
    answering: AtomicBool,
    /// Whether it has answered at all and all its containers were looked at: only then "stopped" means that there is no container.
    surveyed: AtomicBool,
    tasks: TaskTracker,
    /// No further work begins.
    closing: AtomicBool,
    /// Everything ends now; what is cut off is finished after the next start, as after a crash.
    halt: CancellationToken,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<ProjectId, Entry>,
    version: u64,
    /// Counts the works that have begun, so that an observation knows whether it is older than one.
    epoch: u64,
}

/// What is kept in memory of a project.
struct Entry {
    /// None without a record: a command of an unknown project is being worked on, or it was deleted and the master hasn't heard yet.
    told: Option<Told>,
    /// That of the record, or of the last command.
    generation: Generation,
    state: ObservedState,
    error: Option<Box<Error>>,
    used_bytes: Option<u64>,
    /// Where the volumes are; none until they were opened since the host program's start.
    places: Option<Result<Box<Places>, Box<Error>>>,
    /// The table's version when something of this entry last changed that others see.
    version: u64,
    /// The table's epoch when the last work began.
    epoch: u64,
    agent: Option<Arc<AgentLink>>,
    work: Option<Arc<Work>>,
    outcomes: Vec<Outcome>,
}

/// The part of a record that decisions need without reading it.
#[derive(Debug, Clone, Copy)]
struct Told {
    wanted: Wanted,
    made: bool,
}

/// The paths of a project's two volumes.
#[derive(Debug, Clone)]
struct Places {
    home: Box<Path>,
    state: Box<Path>,
}

/// What has changed since a version, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    pub projects: Vec<ObservedProject>,
    /// Ask from here the next time.
    pub version: u64,
    /// There is more than was asked for.
    pub more: bool,
}

impl Projects {
    /// Reads the records and listens for the agents of the containers that should run. The containers themselves are looked at by
    /// [`Projects::run`].
    ///
    /// # Errors
    /// Those of the records.
    pub(crate) async fn load(parts: Parts) -> Result<Self, Error> {
        let conn = parts.router.connect("host", None);
        let hellos = conn.subscribe(agent::HELLOS, None).await?;
        let projects = Self(Arc::new(Inner {
            parts,
            conn,
            hellos: Mutex::new(Some(hellos)),
            table: Mutex::default(),
            version: watch::Sender::new(0),
            answering: AtomicBool::new(true),
            surveyed: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            closing: AtomicBool::new(false),
            halt: CancellationToken::new(),
        }));
        for (project, record) in projects.0.parts.records.all().await? {
            let link = match (&record.secret, record.wanted, &record.failure) {
                (Some(secret), Wanted::Running, None) => match projects.listen(project, secret.clone()).await {
                    Ok(link) => Some(link),
                    // its container is looked at all the same, and its agent's socket is tried again then
                    Err(error) => {
                        tracing::warn!(%project, %error, "an agent's socket can't be opened again");
                        None
                    }
                },
                _ => None,
            };
            projects.0.change(|table| table.insert_loaded(project, &record, link));
        }
        Ok(projects)
    }

    /// Reconciles, hears agents and publishes changes of state until `cancel` fires.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.0.halt.cancelled() => {}
            () = self.reconcile_always() => {}
            () = self.hear_agents() => {}
            () = self.publish_changes() => {}
        }
    }

    /// Ends the work on all projects: waits for it up to `grace`, then cuts it off. Containers go on running.
    pub(crate) async fn shutdown(&self, grace: Duration) {
        self.0.closing.store(true, Ordering::SeqCst);
        let working = || self.0.lock().entries.values().find_map(|entry| entry.work.clone());
        let all = async {
            while let Some(work) = working() {
                let _ = work.ended().await; // whoever asked for it is told
            }
        };
        let _ = tokio::time::timeout(grace, all).await;
        self.0.halt.cancel();
        self.0.tasks.close();
        // each task ends at its next await; a bound all the same, since a shutdown must end
        let _ = tokio::time::timeout(Duration::from_secs(5), self.0.tasks.wait()).await;
    }

    /// Cuts everything off at once, as a crash would.
    pub(crate) fn halt(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
        self.0.halt.cancel();
    }

    /// What the host observes of a project; none if it isn't here.
    pub fn observed(&self, project: ProjectId) -> Option<ObservedProject> {
        self.0.lock().entries.get(&project).map(|entry| entry.observed(project))
    }

    /// The generation in force here.
    pub fn generation_in_force(&self, project: ProjectId) -> Option<Generation> {
        self.0.lock().entries.get(&project).and_then(|entry| entry.told.map(|_| entry.generation))
    }

    /// Rises with every change of what [`Projects::changes`] tells.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// What has changed after `since`, in the order of the changes, at most so many projects; the projects that were deleted too, as
    /// `absent`, until [`Projects::acknowledge`].
    pub fn changes(&self, since: u64, at_most: usize) -> Changes {
        let table = self.0.lock();
        let changed = table.entries.iter().filter(|(_, entry)| entry.version > since);
        let mut changed: Vec<_> = changed.map(|(project, entry)| (entry.version, project)).collect();
        changed.sort_unstable();
        let more = changed.len() > at_most;
        changed.truncate(at_most);
        let version = if more { changed.last().map_or(since, |(version, _)| *version) } else { table.version };
        let projects = changed.iter().filter_map(|(_, project)| Some(table.entries.get(project)?.observed(**project)));
        Changes { projects: projects.collect(), version, more }
    }

    /// All projects of this host.
    pub fn all(&self) -> Changes {
        let table = self.0.lock();
        let known = table.entries.iter().filter(|(_, entry)| entry.told.is_some());
        Changes { projects: known.map(|(project, entry)| entry.observed(*project)).collect(), version: table.version, more: false }
    }

    /// The master has heard of everything up to this version: what was deleted before it needn't be told any more.
    pub fn acknowledge(&self, version: u64) {
        self.0.lock().entries.retain(|_, entry| entry.told.is_some() || entry.work.is_some() || entry.version > version);
    }

    /// Projects with volumes, and of those the ones with a container.
    pub fn counts(&self) -> (u32, u32) {
        let table = self.0.lock();
        let known = table.entries.values().filter(|entry| entry.told.is_some()).count();
        (known as u32, table.running(None) as u32)
    }

    /// Whether the runtime answers.
    pub fn answering(&self) -> bool {
        self.0.answering.load(Ordering::SeqCst)
    }

    /// Publishes every change of state for those who watch a project. Changes that follow each other faster than they are published
    /// show as the last one.
    async fn publish_changes(&self) {
        let mut changed = self.version();
        let mut known = 0;
        loop {
            let changes = self.changes(known, usize::MAX);
            known = changes.version;
            for observed in &changes.projects {
                let Ok(text) = serde_json::to_vec(observed) else { continue };
                let message = Message::new(subject::project(observed.project, "state"), text);
                if let Err(error) = self.0.conn.publish(message).await {
                    tracing::warn!(project = %observed.project, %error, "a change of state can't be published");
                }
            }
            if changed.wait_for(|version| *version > known).await.is_err() {
                return; // the sender lives as long as this
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // every change under the lock is a few assignments, so a panic can't leave it half done
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table and tells the watchers if something changed that they see.
    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.lock();
        let result = change(&mut table);
        let version = table.version;
        drop(table);
        self.version.send_if_modified(|known| {
            let newer = version > *known;
            *known = version.max(*known);
            newer
        });
        result
    }

    fn set_state(&self, project: ProjectId, state: ObservedState, error: Option<Error>) {
        self.change(|table| table.set_state(project, state, error));
    }

    /// What was observed last, with the reason if it failed.
    fn seen(&self, project: ProjectId) -> (ObservedState, Option<Error>) {
        let table = self.lock();
        table.entries.get(&project).map_or((ObservedState::Absent, None), |entry| (entry.state, entry.error.as_deref().cloned()))
    }

    fn link_of(&self, project: ProjectId) -> Option<Arc<AgentLink>> {
        self.lock().entries.get(&project).and_then(|entry| entry.agent.clone())
    }
}

impl Table {
    fn insert_loaded(&mut self, project: ProjectId, record: &records::Record, link: Option<Arc<AgentLink>>) {
        let state = match (record.made, record.wanted, &record.failure) {
            (_, Wanted::Running, Some(_)) => ObservedState::Failed,
            // the container is there or isn't: the first look says
            (_, Wanted::Running, None) => ObservedState::Starting,
            (true, Wanted::Stopped, _) => ObservedState::Stopped,
            (false, Wanted::Stopped, _) => ObservedState::Absent,
        };
        self.tell(project, record);
        self.entry(project, record.generation).agent = link;
        self.set_state(project, state, record.failure.clone());
    }

    /// Takes over what was saved.
    fn tell(&mut self, project: ProjectId, record: &records::Record) {
        let version = self.version + 1;
        let entry = self.entry(project, record.generation);
        entry.told = Some(Told { wanted: record.wanted, made: record.made });
        if entry.version == 0 || entry.generation != record.generation {
            entry.generation = record.generation;
            entry.version = version;
            self.version = version;
        }
    }

    fn entry(&mut self, project: ProjectId, generation: Generation) -> &mut Entry {
        self.entries.entry(project).or_insert(Entry {
            told: None,
            generation,
            state: ObservedState::Absent,
            error: None,
            used_bytes: None,
            places: None,
            version: 0,
            epoch: 0,
            agent: None,
            work: None,
            outcomes: Vec::new(),
        })
    }

    fn set_state(&mut self, project: ProjectId, state: ObservedState, error: Option<Error>) {
        let Some(entry) = self.entries.get_mut(&project) else { return };
        let error = error.map(Box::new);
        if entry.state == state && entry.error == error {
            return;
        }
        tracing::info!(%project, generation = %entry.generation, ?state, error = error.as_deref().map(|error| error.message.as_str()), "project");
        entry.state = state;
        entry.error = error;
        self.version += 1;
        entry.version = self.version;
    }

    fn set_used(&mut self, project: ProjectId, used: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&project) else { return };
        if entry.used_bytes != used {
            entry.used_bytes = used;
            self.version += 1;
            entry.version = self.version;
        }
    }

    /// Containers that there are or may be, but for one project's.
    fn running(&self, but: Option<ProjectId>) -> usize {
        let holds = |state| matches!(state, ObservedState::Starting | ObservedState::Running | ObservedState::Stopping);
        self.entries.iter().filter(|(project, entry)| holds(entry.state) && but != Some(**project)).count()
    }
}

impl Entry {
    fn observed(&self, project: ProjectId) -> ObservedProject {
        ObservedProject {
            project,
            generation: self.generation,
            state: self.state,
            error: self.error.as_deref().cloned(),
            used_bytes: self.used_bytes,
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
