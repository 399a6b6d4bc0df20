//! The layout that both storages share, and the verbs on it.
//!
//! ```text
//! <root>/.atoll-storage            which storage this is
//! <root>/.lock                     held by the host program that uses it
//! <root>/<project>/home            volume
//! <root>/<project>/state           volume
//! <root>/<project>/receipt.json
//! <root>/.tmp-<project>            being made
//! <root>/.deleted-<project>-<n>    being removed
//! ```
//!
//! A project's directory gets its name when all in it is on disk, and loses it before anything in it is removed. So whatever has the name is
//! whole, after a crash anywhere; what has another is made anew or removed by the next call.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Generation, ProjectId, VolumeId,
    host::{Finding, StorageCapabilities, StorageKind},
};
use atoll_net::bus::BoxFuture;
use rustix::{
    fs::{Dir, Gid, Mode, OFlags, RenameFlags, Uid, chmodat, chownat, fstatvfs, fsync, mkdirat, openat, renameat_with},
    io::Errno,
};
use tokio::sync::{Mutex, Semaphore};

use super::{ContentReceipt, Space, Storage, Volumes, receipt};
use crate::{
    exec::{self, Call},
    runtime::Owner,
};

/// Where a storage can be cut off in a test: is told each point that is passed, and says whether to stop there.
pub type InterruptFn = Arc<dyn Fn(&'static str) -> bool + Send + Sync>;

const HOME: &str = "home";
const STATE: &str = "state";
const TMP: &str = ".tmp-";
const DELETED: &str = ".deleted-";
/// Two verbs on one project never run at once; two projects may share one of these by chance, and then wait for each other.
const LOCKS: usize = 64;
/// Threads that do file work at once. A removal of many files holds one for seconds.
const SLOTS: usize = 8;
const UNSHARE_TIMEOUT: Duration = Duration::from_mins(10);

/// What the two storages do differently. All of it blocks.
pub(super) trait Backing: Send + Sync + 'static {
    fn kind(&self) -> StorageKind;
    fn capabilities(&self) -> StorageCapabilities;
    fn findings(&self) -> Vec<Finding>;
    /// Makes an empty volume of this name in a project's directory.
    fn make_volume(&self, project: BorrowedFd<'_>, name: &str) -> io::Result<()>;
    /// Whether what has this name is a volume (and not a link, or a directory where a subvolume should be).
    fn is_volume(&self, project: BorrowedFd<'_>, name: &str) -> io::Result<bool>;
    /// Limits both volumes together.
    fn set_quota(&self, project: BorrowedFd<'_>, bytes: u64) -> Result<(), Trouble>;
    /// Removes a project's directory with all in it, also a half-made or half-removed one. Done if there is none.
    fn remove(&self, root: BorrowedFd<'_>, name: &str) -> Result<(), Trouble>;
    fn usage(&self, project: BorrowedFd<'_>) -> io::Result<Option<u64>>;
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// What is there isn't the volume that was asked for.
    #[error("{0}")]
    Wrong(String),
    /// Only in tests.
    #[error("interrupted at {0}")]
    Interrupted(&'static str),
}

impl Trouble {
    pub(super) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    fn denied(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    fn at_edge(self, project: ProjectId) -> Error {
        let errno = match &self {
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw_os_error),
            _ => None,
        };
        match (&self, errno) {
            (Self::Wrong(why), _) => Error::new(ErrorCode::WrongVolume, format!("The volume of project {project} isn't usable: {why}."))
                .mend("Check that the right disk is mounted at the host's storage path; nothing was changed."),
            (_, Some(Errno::NOSPC)) => Error::new(ErrorCode::DiskFull, format!("The host's disk is full ({self})."))
                .mend("Free space on the host's storage, or add a disk."),
            (_, Some(Errno::DQUOT)) => Error::new(ErrorCode::QuotaExceeded, format!("The project's disk limit is reached ({self})."))
                .mend("Remove files of the project, or raise its limit."),
            _ => Error::new(ErrorCode::StorageFailed, format!("The storage refused, {self}."))
                .mend("See the host's kernel log (dmesg), and run `atoll doctor` there."),
        }
    }
}

/// A hook for tests that cut a verb off, as a crash would: nothing is cleaned up on the way out.
#[derive(Clone, Default)]
pub(super) struct Interrupt(pub(super) Option<InterruptFn>);

impl Interrupt {
    pub(super) fn at(&self, point: &'static str) -> Result<(), Trouble> {
        match &self.0 {
            Some(stop) if stop(point) => Err(Trouble::Interrupted(point)),
            _ => Ok(()),
        }
    }
}

pub(super) struct Tree {
    inner: Arc<Inner>,
    locks: Vec<Arc<Mutex<()>>>,
    slots: Arc<Semaphore>,
    /// podman, for removing what belongs to other users of a rootless container.
    unshare: Option<PathBuf>,
}

struct Inner {
    root: OwnedFd,
    path: PathBuf,
    #[allow(dead_code, reason = "held for its lock")]
    lock: OwnedFd,
    backing: Box<dyn Backing>,
    interrupt: Interrupt,
}

impl Tree {
    pub(super) fn new(
        root: OwnedFd,
        path: PathBuf,
        lock: OwnedFd,
        backing: Box<dyn Backing>,
        interrupt: Interrupt,
        unshare: Option<PathBuf>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner { root, path, lock, backing, interrupt }),
            locks: (0..LOCKS).map(|_| Arc::default()).collect(),
            slots: Arc::new(Semaphore::new(SLOTS)),
            unshare,
        }
    }

    /// Does file work on a thread of its own, alone on its project. A caller that goes away doesn't end it; the next call on the project waits
    /// for it.
    async fn alone<T: Send + 'static>(
        &self,
        project: ProjectId,
        work: impl FnOnce(&Inner) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<Result<T, Trouble>, Error> {
        let slot = (project.uuid().as_u128() % LOCKS as u128) as usize;
        let lock = self.locks[slot].clone().lock_owned().await;
        self.blocking(move |inner| {
            let _lock = lock;
            work(inner)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> T + Send + 'static) -> Result<T, Error> {
        let closed = |_| Error::internal("The storage's threads are gone.");
        let permit = self.slots.clone().acquire_owned().await.map_err(closed)?;
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&inner)
        });
        done.await.map_err(|error| Error::internal(format!("The storage's work ended without a result: {error}.")))
    }

    async fn delete_all(&self, project: ProjectId) -> Result<(), Error> {
        let first = self.alone(project, move |inner| inner.delete(project)).await?;
        let (Err(trouble), Some(podman)) = (&first, &self.unshare) else {
            return first.map_err(|trouble| trouble.at_edge(project));
        };
        if !trouble.denied() || rustix::process::geteuid().is_root() {
            return first.map_err(|trouble| trouble.at_edge(project));
        }
        // files of a rootless container's other users belong to subordinate ids; only podman's user namespace may remove them
        let leftovers = self.alone(project, move |inner| inner.entries(project)).await?.map_err(|trouble| trouble.at_edge(project))?;
        let paths = leftovers.into_iter().map(|name| self.inner.path.join(name));
        let call = Call::new(podman).args(["unshare", "rm", "-rf", "--"]).args(paths.map(PathBuf::into_os_string)).timeout(UNSHARE_TIMEOUT);
        match exec::run(call).await {
            Ok(outcome) if !outcome.success() => tracing::warn!(%project, stderr = %outcome.stderr.text(), "podman unshare rm failed"),
            Err(error) => tracing::warn!(%project, %error, "podman unshare rm failed"),
            Ok(_) => {}
        }
        self.alone(project, move |inner| inner.delete(project)).await?.map_err(|trouble| trouble.at_edge(project))
    }
}

impl Inner {
    fn create(&self, receipt: ContentReceipt, quota: u64, owner: Owner) -> Result<Volumes, Trouble> {
        let name = receipt.project.to_string();
        if let Some(there) = self.directory(&name)? {
            return self.adopt(&there, receipt.project, receipt.generation, quota);
        }
        let tmp = format!("{TMP}{name}");
        self.backing.remove(self.root.as_fd(), &tmp)?; // half-made by a call that was cut off
        self.interrupt.at("create.cleaned")?;
        mkdirat(&self.root, &tmp, Mode::RWXU).map_err(|error| Trouble::io(format!("making {tmp}"), error))?;
        self.interrupt.at("create.tmp_made")?;
        let dir = self.directory(&tmp)?.ok_or_else(|| Trouble::io(format!("opening {tmp}"), Errno::NOENT))?;
        for volume in [HOME, STATE] {
            self.backing.make_volume(dir.as_fd(), volume).map_err(|error| Trouble::io(format!("making the volume {volume}"), error))?;
            self.interrupt.at(if volume == HOME { "create.home_made" } else { "create.state_made" })?;
        }
        // the directories above are for the host's user alone, so this decides about the container's own users only
        chmodat(&dir, HOME, Mode::from_raw_mode(0o755), rustix::fs::AtFlags::empty())
            .and_then(|()| chmodat(&dir, STATE, Mode::RWXU, rustix::fs::AtFlags::empty()))
            .and_then(|()| {
                chownat(&dir, HOME, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)), rustix::fs::AtFlags::empty())
            })
            .map_err(|error| Trouble::io("giving the home directory to its owner", error))?;
        self.interrupt.at("create.owned")?;
        self.backing.set_quota(dir.as_fd(), quota)?;
        self.interrupt.at("create.quota_set")?;
        receipt::save(dir.as_fd(), &receipt, &self.interrupt)?;
        // where a subvolume was just made in a directory, btrfs commits the whole transaction for this, quota groups included
        for volume in [HOME, STATE] {
            let volume = open_directory(dir.as_fd(), volume).map_err(|error| Trouble::io(format!("opening {volume}"), error))?;
            fsync(&volume).map_err(|error| Trouble::io("writing a volume", error))?;
        }
        fsync(&dir).map_err(|error| Trouble::io("writing the project's directory", error))?;
        self.interrupt.at("create.synced")?;
        renameat_with(&self.root, &tmp, &self.root, &name, RenameFlags::NOREPLACE)
            .map_err(|error| Trouble::io(format!("naming the project's directory {name}"), error))?;
        self.interrupt.at("create.renamed")?;
        fsync(&self.root).map_err(|error| Trouble::io("writing the storage's directory", error))?;
        Ok(self.volumes(receipt))
    }

    /// Checks what is there and brings generation and quota up to date.
    fn adopt(&self, dir: &OwnedFd, project: ProjectId, generation: Generation, quota: u64) -> Result<Volumes, Trouble> {
        let mut receipt = receipt::load(dir.as_fd())?;
        if receipt.project != project {
            return Err(Trouble::Wrong(format!("its receipt names project {}", receipt.project)));
        }
        if receipt.generation > generation {
            return Err(Trouble::Wrong(format!("its receipt has generation {}, newer than {generation}", receipt.generation)));
        }
        for volume in [HOME, STATE] {
            match self.backing.is_volume(dir.as_fd(), volume) {
                Ok(true) => {}
                Ok(false) => return Err(Trouble::Wrong(format!("{volume} isn't a volume of this storage"))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Trouble::Wrong(format!("{volume} is missing"))),
                Err(error) => return Err(Trouble::io(format!("looking at {volume}"), error)),
            }
        }
        if receipt.generation != generation {
            receipt.generation = generation;
            receipt::save(dir.as_fd(), &receipt, &self.interrupt)?;
        }
        self.backing.set_quota(dir.as_fd(), quota)?;
        Ok(self.volumes(receipt))
    }

    fn open(&self, project: ProjectId, generation: Generation, quota: u64) -> Result<Volumes, Trouble> {
        let dir = self.directory(&project.to_string())?.ok_or_else(|| Trouble::Wrong("there is none on this host".into()))?;
        self.adopt(&dir, project, generation, quota)
    }

    fn delete(&self, project: ProjectId) -> Result<(), Trouble> {
        let name = project.to_string();
        for number in 0u64.. {
            let deleted = format!("{DELETED}{name}-{number}");
            match renameat_with(&self.root, &name, &self.root, &deleted, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => break,
                Err(Errno::EXIST) => {} // left by a removal that was cut off
                Err(error) => return Err(Trouble::io(format!("renaming {name}"), error)),
            }
        }
        self.interrupt.at("delete.renamed")?;
        fsync(&self.root).map_err(|error| Trouble::io("writing the storage's directory", error))?;
        for entry in self.entries(project)? {
            self.backing.remove(self.root.as_fd(), &entry)?;
            self.interrupt.at("delete.removed")?;
        }
        fsync(&self.root).map_err(|error| Trouble::io("writing the storage's directory", error))
    }

    /// Names in the root that belong to a project.
    fn entries(&self, project: ProjectId) -> Result<Vec<String>, Trouble> {
        Ok(self.all()?.into_iter().filter(|(owner, _)| *owner == project).map(|(_, name)| name).collect())
    }

    fn all(&self) -> Result<Vec<(ProjectId, String)>, Trouble> {
        const UUID: usize = 36;
        let failed = |error: Errno| Trouble::io("listing the storage", error);
        let mut all = Vec::new();
        for entry in Dir::read_from(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let rest = name.strip_prefix(TMP).or_else(|| name.strip_prefix(DELETED)).unwrap_or(name);
            if rest.len() > UUID && rest.len() == name.len() {
                continue; // a stranger's
            }
            if let Some(project) = rest.get(..UUID).and_then(|id| id.parse().ok()) {
                all.push((project, name.to_owned()));
            }
        }
        Ok(all)
    }

    fn directory(&self, name: &str) -> Result<Option<OwnedFd>, Trouble> {
        match open_directory(self.root.as_fd(), name) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Trouble::Wrong(format!("{name} isn't a directory"))),
            Err(error) => Err(Trouble::io(format!("opening {name}"), error)),
        }
    }

    fn volumes(&self, receipt: ContentReceipt) -> Volumes {
        let dir = self.path.join(receipt.project.to_string());
        Volumes { home: dir.join(HOME), state: dir.join(STATE), receipt }
    }
}

pub(super) fn open_directory(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

impl Storage for Tree {
    fn kind(&self) -> StorageKind {
        self.inner.backing.kind()
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.inner.backing.capabilities()
    }

    fn findings(&self) -> Vec<Finding> {
        self.inner.backing.findings()
    }

    fn create(
        &self,
        project: ProjectId,
        generation: Generation,
        volume: VolumeId,
        quota_bytes: u64,
        owner: Owner,
    ) -> BoxFuture<'_, Result<Volumes, Error>> {
        let receipt = ContentReceipt { project, volume, generation, last_snapshot: None };
        Box::pin(async move {
            let done = self.alone(project, move |inner| inner.create(receipt, quota_bytes, owner)).await?;
            done.map_err(|trouble| trouble.at_edge(project))
        })
    }

    fn open(&self, project: ProjectId, generation: Generation, quota_bytes: u64) -> BoxFuture<'_, Result<Volumes, Error>> {
        Box::pin(async move {
            let done = self.alone(project, move |inner| inner.open(project, generation, quota_bytes)).await?;
            done.map_err(|trouble| trouble.at_edge(project))
        })
    }

    fn delete(&self, project: ProjectId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.delete_all(project))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ProjectId>, Error>> {
        Box::pin(async {
            let all = self.blocking(Inner::all).await?;
            let failed = |trouble: Trouble| Error::new(ErrorCode::StorageFailed, format!("The storage can't be listed, {trouble}."));
            let mut projects: Vec<_> = all.map_err(failed)?.into_iter().map(|(project, _)| project).collect();
            projects.sort_unstable();
            projects.dedup();
            Ok(projects)
        })
    }

    fn usage(&self, project: ProjectId) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        Box::pin(async move {
            if !self.capabilities().cheap_usage {
                return Ok(None);
            }
            let found = self.blocking(move |inner| match inner.directory(&project.to_string())? {
                Some(dir) => inner.backing.usage(dir.as_fd()).map_err(|error| Trouble::io("reading the project's use", error)),
                None => Ok(None),
            });
            found.await?.map_err(|trouble| trouble.at_edge(project))
        })
    }

    fn space(&self) -> BoxFuture<'_, Result<Space, Error>> {
        Box::pin(async {
            let stat = self.blocking(|inner| fstatvfs(&inner.root)).await?;
            let stat =
                stat.map_err(|error| Error::new(ErrorCode::StorageFailed, format!("The storage's space can't be read: {error}.")))?;
            Ok(Space { total: stat.f_blocks.saturating_mul(stat.f_frsize), free: stat.f_bavail.saturating_mul(stat.f_frsize) })
        })
    }
}
