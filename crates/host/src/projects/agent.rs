//! The agents' sockets: each container has a directory of its own with a unix socket of the host's bus and the secret that its agent
//! proves itself with.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, ProjectId, agent::AgentConfig, project::ObservedState, subject};
use atoll_net::bus::{Authenticator, Credentials, Grant, Message};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use super::Projects;
use crate::{join::file_error, runtime::Owner};

/// Connections to one socket at once: an agent needs one; more are its container's doing.
const MAX_CONNECTIONS: usize = 8;

/// When an agent is lost the container is looked at after these waits, until it is back or its container's end is seen: the runtime may
/// take a moment to notice that a container has died.
const LOOK_AFTER: [Duration; 4] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(3)];

/// The hellos of all agents.
pub(super) const HELLOS: &str = "project.*.agent.hello";
/// An agent that is asked whether it is there answers at once, or is asked again at the next reconciliation.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// The open socket of one container's agent.
pub(super) struct AgentLink {
    pub(super) secret: String,
    /// Whether an agent is connected and has said hello.
    pub(super) hello: watch::Sender<bool>,
    /// An agent was connected and is no more.
    pub(super) lost: Notify,
    /// Authenticated connections.
    connected: AtomicUsize,
    /// Somebody looks after the loss already. A container that connects and breaks off all the time mustn't make the runtime busy.
    looked_after: AtomicBool,
    /// The container is being removed: its agent's end is no news.
    leaving: AtomicBool,
    cancel: CancellationToken,
}

impl AgentLink {
    pub(super) fn said_hello(&self) -> bool {
        *self.hello.borrow()
    }

    pub(super) fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::SeqCst);
    }

    /// Closes the socket and its connections.
    pub(super) fn close(&self) {
        self.set_leaving(true);
        self.cancel.cancel();
    }
}

/// Knows one project's secret. One for each connection, so that it is known afterwards whether that connection was an agent's.
struct AgentAuth {
    project: ProjectId,
    link: Arc<AgentLink>,
    accepted: AtomicBool,
}

impl Authenticator for AgentAuth {
    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        let given = credentials.token.as_deref().unwrap_or_default();
        if !same(given.as_bytes(), self.link.secret.as_bytes()) {
            return Err(Error::new(ErrorCode::Unauthenticated, "This isn't the secret of the container's present start."));
        }
        if !self.accepted.swap(true, Ordering::SeqCst) {
            self.link.connected.fetch_add(1, Ordering::SeqCst);
        }
        Ok(vec![Grant {
            // not the project's id alone: closing the users' grants leaves the agent connected
            key: format!("agent.{}", self.project),
            permissions: subject::agent_permissions(self.project),
            account: None,
            expires_at: None,
        }])
    }
}

/// Compares without telling by its time how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

impl Projects {
    pub(super) fn agent_dir(&self, project: ProjectId) -> PathBuf {
        self.0.parts.agents_dir.join(project.to_string())
    }

    /// Makes a container's directory anew, with what its agent is told. Call it only while the project has no container.
    pub(super) async fn prepare_agent_dir(&self, config: AgentConfig) -> Result<(), Error> {
        let (path, owner) = (self.agent_dir(config.project), self.0.parts.runtime.owner());
        blocking(move || make_dir(&path, &config, owner).map_err(|error| file_error(&path, &error))).await
    }

    pub(super) async fn remove_agent_dir(&self, project: ProjectId) {
        let path = self.agent_dir(project);
        let removed = blocking(move || remove_dir(&path).map_err(|error| file_error(&path, &error))).await;
        if let Err(error) = removed {
            tracing::warn!(%project, %error, "the directory of an agent's socket can't be removed");
        }
    }

    /// Listens on a container's socket, at the same path as an earlier run of the host program did.
    pub(super) async fn listen(&self, project: ProjectId, secret: String) -> Result<Arc<AgentLink>, Error> {
        let (path, owner) = (self.agent_dir(project), self.0.parts.runtime.owner());
        let listener = blocking(move || bind(&path, owner).map_err(|error| file_error(&path, &error))).await?;
        let listener = UnixListener::from_std(listener).map_err(|error| file_error(&self.agent_dir(project), &error))?;
        let link = Arc::new(AgentLink {
            secret,
            hello: watch::Sender::new(false),
            lost: Notify::new(),
            connected: AtomicUsize::new(0),
            looked_after: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            cancel: self.0.halt.child_token(),
        });
        self.0.tasks.spawn(self.clone().accept(project, listener, link.clone()));
        Ok(link)
    }

    async fn accept(self, project: ProjectId, listener: UnixListener, link: Arc<AgentLink>) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let stream = tokio::select! {
                biased;
                () = link.cancel.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // out of descriptors, as a rule: it passes, and must not spin
                        tracing::warn!(%project, %error, "an agent's connection can't be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Ok(permit) = room.clone().try_acquire_owned() else { continue };
            let (projects, link) = (self.clone(), link.clone());
            self.0.tasks.spawn(async move {
                projects.serve(project, stream, link).await;
                drop(permit);
            });
        }
    }

    async fn serve(&self, project: ProjectId, stream: UnixStream, link: Arc<AgentLink>) {
        let auth = Arc::new(AgentAuth { project, link: link.clone(), accepted: AtomicBool::new(false) });
        let peer = format!("agent of {project}");
        self.0.parts.router.serve(stream, peer, auth.clone(), link.cancel.clone()).await;
        if !auth.accepted.load(Ordering::SeqCst) || link.connected.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        link.hello.send_replace(false);
        link.lost.notify_one();
        // one that is lost while another's loss is looked after is found by that, or by the next reconciliation
        if !link.looked_after.swap(true, Ordering::SeqCst) {
            self.look_after(project, &link).await;
            link.looked_after.store(false, Ordering::SeqCst);
        }
    }

    async fn look_after(&self, project: ProjectId, link: &AgentLink) {
        for wait in LOOK_AFTER {
            tokio::select! {
                biased;
                () = link.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            if link.leaving.load(Ordering::SeqCst) || link.said_hello() {
                return;
            }
            self.reconcile_one(project).await;
        }
    }

    /// Hears the hellos of all agents.
    pub(super) async fn hear_agents(&self) {
        let mut hellos = self.0.hellos.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            if let Some(hellos) = &mut hellos {
                while let Some(message) = hellos.next().await {
                    if let Some(project) = message.subject.split('.').nth(1).and_then(|id| id.parse().ok()) {
                        self.heard(project);
                    }
                }
            }
            // in process this ends only if this very reader was too slow; what it missed, the reconciliation asks for
            tokio::time::sleep(Duration::from_millis(100)).await;
            hellos =
                self.0.conn.subscribe(HELLOS, None).await.inspect_err(|error| tracing::warn!(%error, "the agents can't be heard")).ok();
        }
    }

    /// Asks an agent that is connected and wasn't heard whether it is there.
    pub(super) async fn ask_agent(&self, project: ProjectId, link: &AgentLink) {
        if link.said_hello() || link.connected.load(Ordering::SeqCst) == 0 {
            return;
        }
        let question = Message::new(subject::project(project, "agent.info"), Vec::new());
        if self.0.conn.request(question, ANSWER_WAIT).await.is_ok() {
            self.heard(project);
        }
    }

    fn heard(&self, project: ProjectId) {
        let Some(link) = self.0.link_of(project) else { return };
        if link.connected.load(Ordering::SeqCst) == 0 || link.leaving.load(Ordering::SeqCst) {
            return; // the message outlived its connection
        }
        link.hello.send_replace(true);
        if self.0.seen(project).0 == ObservedState::Starting {
            self.0.set_state(project, ObservedState::Running, None);
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::internal(format!("A thread for files ended: {error}."))))
}

/// The directory belongs to the host, and the container's root may only look: a host program that comes back must find its own socket's
/// place, not what the container has put there. (Rootless, the two are one user, and the container harms only itself.)
fn make_dir(path: &Path, config: &AgentConfig, owner: Owner) -> std::io::Result<()> {
    remove_dir(path)?;
    fs::DirBuilder::new().mode(0o750).create(path)?;
    std::os::unix::fs::chown(path, None, Some(owner.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o750))?;
    let text = serde_json::to_vec(config).map_err(std::io::Error::other)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(path.join("agent.json"))?;
    file.write_all(&text)?;
    std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))
}

fn remove_dir(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Binds through a handle of the directory: a socket's address has 108 bytes, and a data directory's path may be longer; and no symlink
/// in place of the directory is followed.
fn bind(dir: &Path, owner: Owner) -> std::io::Result<std::os::unix::net::UnixListener> {
    use rustix::fs::{AtFlags, Mode, OFlags, open, unlinkat};
    let dir = open(dir, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::PATH, Mode::empty())?;
    match unlinkat(&dir, "host.sock", AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    let path = format!("/proc/self/fd/{}/host.sock", dir.as_raw_fd());
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    // who may write to the socket's inode may connect
    std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            assert!(!same(b"abc", other));
        }
    }
}
