//! Who may use how much at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, ProjectId};
use tokio::{
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::GateLimits;
use crate::files::UploadId;

/// Projects whose share isn't in use are forgotten when the table has doubled since the last time.
const FIRST_SWEEP: usize = 256;

/// The host's bounds and each project's part.
pub(super) struct Shares {
    jobs: Arc<Semaphore>,
    archives: Arc<Semaphore>,
    projects: Mutex<Table>,
    per_project: (usize, usize),
    turn: Duration,
}

struct Table {
    shares: HashMap<ProjectId, Weak<Share>>,
    sweep_at: usize,
}

/// One project's part. It exists as long as somebody uses it.
pub(super) struct Share {
    requests: Arc<Semaphore>,
    archives: Arc<Semaphore>,
    /// Held while a write looks at the condition and puts the file in place.
    pub(super) commits: Mutex<()>,
    /// Held while an upload is begun.
    pub(super) beginnings: tokio::sync::Mutex<()>,
    uploads: Mutex<HashMap<UploadId, Arc<UploadSlot>>>,
}

/// A request's right to be under way; it is kept until the last byte of its answer.
pub(super) struct Turn {
    pub(super) share: Arc<Share>,
    _request: OwnedSemaphorePermit,
}

/// The right to pack or unpack a folder.
pub(super) struct ArchiveTurn {
    _project: OwnedSemaphorePermit,
    _host: OwnedSemaphorePermit,
}

/// Who is writing to an upload, and how that one is told that another wants to.
#[derive(Default)]
struct UploadSlot {
    lock: Arc<tokio::sync::Mutex<()>>,
    holder: Mutex<CancellationToken>,
}

/// The right to work on an upload. It is taken away by whoever comes next: a client that lost its connection and comes back isn't kept waiting by
/// what is left of its earlier request.
pub(super) struct UploadTurn {
    pub(super) taken_over: CancellationToken,
    share: Arc<Share>,
    id: UploadId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Shares {
    pub(super) fn new(limits: &GateLimits) -> Self {
        Self {
            jobs: Arc::new(Semaphore::new(limits.jobs)),
            archives: Arc::new(Semaphore::new(limits.archives)),
            projects: Mutex::new(Table { shares: HashMap::new(), sweep_at: FIRST_SWEEP }),
            per_project: (limits.requests_per_project, limits.archives_per_project),
            turn: limits.turn,
        }
    }

    /// Waits for a request's turn in its project.
    ///
    /// # Errors
    /// `limit_exceeded` if it doesn't come in time.
    pub(super) async fn request(&self, project: ProjectId) -> Result<Arc<Turn>, Error> {
        let share = self.share(project);
        let request = self.acquire(&share.requests, "requests to this project").await?;
        Ok(Arc::new(Turn { share, _request: request }))
    }

    pub(super) async fn archive(&self, share: &Share) -> Result<ArchiveTurn, Error> {
        let project = self.acquire(&share.archives, "folders of this project").await?;
        Ok(ArchiveTurn { _project: project, _host: self.acquire(&self.archives, "folders on this host").await? })
    }

    /// Runs one step on a thread that may block. A step whose caller has gone goes on to its end and keeps its place until then.
    ///
    /// # Errors
    /// `limit_exceeded`, `timed_out` after `limit`, `internal` if it panics.
    pub(super) async fn job<T: Send + 'static>(&self, limit: Duration, step: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let permit = self.acquire(&self.jobs, "file operations on this host").await?;
        let span = tracing::Span::current();
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(step)
        });
        match timeout(limit, work).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(Error::internal("The host failed at this request.")),
            Err(_) => Err(Error::new(ErrorCode::TimedOut, "The file system took too long.")),
        }
    }

    fn share(&self, project: ProjectId) -> Arc<Share> {
        let mut table = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = table.shares.get(&project).and_then(Weak::upgrade) {
            return share;
        }
        if table.shares.len() >= table.sweep_at {
            table.shares.retain(|_, share| share.strong_count() > 0);
            table.sweep_at = FIRST_SWEEP.max(table.shares.len() * 2);
        }
        let (requests, archives) = self.per_project;
        let share = Arc::new(Share {
            requests: Arc::new(Semaphore::new(requests)),
            archives: Arc::new(Semaphore::new(archives)),
            commits: Mutex::default(),
            beginnings: tokio::sync::Mutex::default(),
            uploads: Mutex::default(),
        });
        table.shares.insert(project, Arc::downgrade(&share));
        share
    }

    async fn acquire(&self, semaphore: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Error> {
        // the semaphores are never closed, so the only failure is that the time is over
        if let Ok(Ok(permit)) = timeout(self.turn, semaphore.clone().acquire_owned()).await {
            return Ok(permit);
        }
        Err(Error::new(ErrorCode::LimitExceeded, format!("Too many {what} are under way.")).mend("Try again in a moment."))
    }
}

impl Share {
    /// Takes an upload over from whoever works on it.
    ///
    /// # Errors
    /// `conflict` if that one doesn't let go in time.
    pub(super) async fn upload(self: &Arc<Self>, id: &UploadId, wait: Duration) -> Result<UploadTurn, Error> {
        let (slot, taken_over) = {
            let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = uploads.entry(id.clone()).or_default().clone();
            let taken_over = CancellationToken::new();
            let mut holder = slot.holder.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *holder, taken_over.clone()).cancel();
            drop(holder);
            (slot, taken_over)
        };
        // made before the wait, so that a request that gives up waiting cleans up, too
        let mut turn = UploadTurn { taken_over, share: self.clone(), id: id.clone(), guard: None };
        let guard = timeout(wait, slot.lock.clone().lock_owned()).await;
        drop(slot);
        turn.guard = Some(guard.map_err(|_| Error::new(ErrorCode::Conflict, "Another request is writing to this upload."))?);
        Ok(turn)
    }
}

impl Drop for UploadTurn {
    fn drop(&mut self) {
        self.guard = None;
        let mut uploads = self.share.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        // besides the table nobody holds it: neither a worker nor one that waits
        if uploads.get(&self.id).is_some_and(|slot| Arc::strong_count(slot) == 1 && Arc::strong_count(&slot.lock) == 1) {
            uploads.remove(&self.id);
        }
    }
}
