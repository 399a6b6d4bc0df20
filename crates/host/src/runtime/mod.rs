//! The container runtime behind one trait: `podman` (root or rootless) and a fake.

pub mod fake;
pub mod podman;

mod args;
mod output;
mod probe;

use std::{path::PathBuf, sync::Arc};

use atoll_contract::{Error, Generation, ProjectId, host::Finding, operation::Progress, project::Limits};
use atoll_net::bus::BoxFuture;
use tokio_util::sync::CancellationToken;

/// What a container is made of.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    pub project: ProjectId,
    pub generation: Generation,
    pub image: String,
    /// Host name inside: the project's name.
    pub hostname: String,
    pub limits: Limits,
    /// Variables of the container's first process. Other users of the machine can read them while it is being started: nothing of a user's.
    pub env: Vec<(String, String)>,
    /// Mounted read-write at [`atoll_contract::agent::HOME_PATH`].
    pub home: PathBuf,
    /// Directory with the host's socket, mounted at [`atoll_contract::agent::AGENT_DIR`]. A directory and not the socket itself, so
    /// that the container sees the new socket after a restart of the host program.
    pub agent_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    Running,
    /// Made and not (or no longer) running. The exit code, if it ran.
    Exited(Option<i32>),
}

/// A container of this host as the runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    pub project: ProjectId,
    pub generation: Generation,
    pub state: ContainerState,
}

/// User and group that own a project's files on the host's file system (what the container sees as root).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// All verbs are idempotent. All are bounded in time by the implementation and end early when `cancel` fires (with `cancelled`).
pub trait Runtime: Send + Sync + 'static {
    /// What was found out about the machine at the start; an `error` among them means that no container can run.
    fn findings(&self) -> Vec<Finding>;

    /// Who owns files that the container's root is to own.
    fn owner(&self) -> Owner;

    /// All containers of this host (by label), running or not.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>>;

    /// The image is there; pulled if need be.
    ///
    /// # Errors
    /// `image_unavailable`, `disk_full`, `runtime_failed`.
    fn ensure_image<'a>(&'a self, image: &'a str, progress: ProgressFn, cancel: CancellationToken) -> BoxFuture<'a, Result<(), Error>>;

    /// A container of this project and generation runs. One of another generation, or one that has exited, is removed first.
    ///
    /// # Errors
    /// `image_unavailable` (never pulls), `start_failed` with the end of its log, `runtime_failed`.
    fn ensure_running<'a>(&'a self, spec: &'a ContainerSpec, cancel: CancellationToken) -> BoxFuture<'a, Result<Container, Error>>;

    /// No container of this project is left: SIGTERM to its init, SIGKILL after the grace, removed.
    fn ensure_removed(&self, project: ProjectId) -> BoxFuture<'_, Result<(), Error>>;

    /// The last lines of a project's container log, for errors.
    fn log_tail(&self, project: ProjectId) -> BoxFuture<'_, String>;
}
