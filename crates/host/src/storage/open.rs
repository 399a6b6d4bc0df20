//! Which storage a path gets, and opening it.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use atoll_contract::{
    Error, ErrorCode,
    host::{Finding, Severity, StorageKind},
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, statfs};
use serde::{Deserialize, Serialize};

use super::{
    Storage,
    btrfs::Btrfs,
    dir::Directories,
    ioctl::BTRFS_SUPER_MAGIC,
    tree::{Backing, Interrupt, Tree},
};
use crate::doctor::finding;

/// Says which storage made a root, so that an empty mount point isn't taken for the file system that should be on it.
const MARKER: &str = ".atoll-storage";
const LOCK: &str = ".lock";
/// `CAP_SYS_ADMIN` in `linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
/// Below this much free space a host is told to be full soon.
const LOW_SPACE: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageChoice {
    /// btrfs where the path is on one and we may administer it, else directories.
    #[default]
    Auto,
    Btrfs,
    Dir,
}

#[derive(Debug, Clone, Default)]
pub struct StorageConfig {
    pub kind: StorageChoice,
    /// Made if it isn't there. Nothing but the storage's own may be in it.
    pub path: PathBuf,
    /// podman, if it is rootless: by `podman unshare` files are removed that belong to a container's other users. Only for `dir`.
    pub unshare: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    kind: StorageKind,
}

/// Opens the storage, making its directory and turning quotas on where that is needed. Blocks for a moment.
///
/// # Errors
/// `invalid_config` if the path can't be what the configuration says or another host program uses it, `storage_failed`.
pub fn open(config: StorageConfig) -> Result<Arc<dyn Storage>, Error> {
    open_with(config, Interrupt::default())
}

/// As [`open`], with a hook that may cut verbs off as a crash would.
#[cfg(feature = "testing")]
pub fn open_interrupted(config: StorageConfig, stop: super::InterruptFn) -> Result<Arc<dyn Storage>, Error> {
    open_with(config, Interrupt(Some(stop)))
}

/// What there is to say about a storage without opening it: changes nothing.
pub fn inspect(config: &StorageConfig) -> Vec<Finding> {
    let mut findings = match decide(config) {
        Ok((StorageKind::Btrfs, findings)) if findings.is_empty() => {
            vec![finding("storage.btrfs", Severity::Ok, format!("{} is on btrfs.", config.path.display()), "")]
        }
        Ok((_, findings)) => findings,
        Err(error) => vec![finding("storage.unusable", Severity::Error, error.message, &error.mend)],
    };
    if let Ok(stat) = rustix::fs::statvfs(existing(&config.path)) {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < LOW_SPACE {
            let message = format!("Only {} MiB are free at {}.", free >> 20, config.path.display());
            findings.push(finding("storage.low_space", Severity::Warning, message, "Free space there, or add a disk."));
        }
    }
    findings
}

fn open_with(config: StorageConfig, interrupt: Interrupt) -> Result<Arc<dyn Storage>, Error> {
    let (kind, findings) = decide(&config)?;
    let path = config.path;
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Error::new(ErrorCode::StorageFailed, format!("The storage at {} can't be opened: {what}: {error}.", path.display()))
            .mend("Check the path's permissions and the disk.")
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::create_dir_all(&path).map_err(|error| failed("making its directory", &error))?;
    let path = fs::canonicalize(&path).map_err(|error| failed("finding its directory", &error))?;
    let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| failed("opening its directory", &error))?;
    rustix::fs::fchmod(&root, Mode::RWXU).map_err(|error| failed("closing it to others", &error))?;
    let lock = lock(&path)?;
    let text = serde_json::to_vec(&Marker { kind }).map_err(|error| failed("marking it", &error))?;
    if !path.join(MARKER).exists() {
        fs::write(path.join(MARKER), text).map_err(|error| failed("marking it", &error))?;
    }
    let backing: Box<dyn Backing> = match kind {
        StorageKind::Dir => Box::new(Directories { findings }),
        StorageKind::Btrfs => {
            let own = root.try_clone().map_err(|error| failed("opening its directory", &error))?;
            Box::new(Btrfs::new(own, &path, findings, interrupt.clone()).map_err(|error| failed("preparing btrfs", &error))?)
        }
    };
    let unshare = config.unshare.filter(|_| kind == StorageKind::Dir);
    Ok(Arc::new(Tree::new(root, path, lock, backing, interrupt, unshare)))
}

/// One host program at a time uses a storage.
fn lock(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let locked = rustix::fs::open(path.join(LOCK), flags, Mode::from_raw_mode(0o600))
        .and_then(|fd| flock(&fd, FlockOperation::NonBlockingLockExclusive).map(|()| fd));
    locked.map_err(|error| {
        Error::new(ErrorCode::InvalidConfig, format!("The storage at {} is used by another host program ({error}).", path.display()))
            .mend("Stop the other, or give this host a directory of its own as storage.path.")
    })
}

/// The kind, and what to say about the choice.
fn decide(config: &StorageConfig) -> Result<(StorageKind, Vec<Finding>), Error> {
    let path = config.path.display();
    let bad = |message: String, mend: &str| Err(Error::new(ErrorCode::InvalidConfig, message).mend(mend));
    if !config.path.is_absolute() {
        return bad(format!("storage.path is {path}; it must be absolute."), "Give the whole path.");
    }
    let on_btrfs = statfs(existing(&config.path)).is_ok_and(|stat| stat.f_type == BTRFS_SUPER_MAGIC);
    let admin = may_administer();
    let marked = fs::read(config.path.join(MARKER)).ok().and_then(|text| serde_json::from_slice::<Marker>(&text).ok());
    let choice = match (config.kind, marked.map(|marker| marker.kind)) {
        (StorageChoice::Dir, Some(StorageKind::Btrfs)) | (StorageChoice::Btrfs, Some(StorageKind::Dir)) => {
            return bad(
                format!("storage.kind isn't the one that {path} was made with (see {MARKER} there)."),
                "Set storage.kind to auto, or give a new directory as storage.path.",
            );
        }
        (StorageChoice::Auto, Some(StorageKind::Btrfs)) => StorageChoice::Btrfs,
        (StorageChoice::Auto, Some(StorageKind::Dir)) => StorageChoice::Dir,
        (choice, _) => choice,
    };
    if choice == StorageChoice::Btrfs {
        if !on_btrfs {
            return bad(format!("storage.kind is btrfs, but {path} isn't on one."), "Mount the btrfs file system there first.");
        }
        if !admin {
            return bad(
                format!("The btrfs at {path} can't be administered without root."),
                "Run the host as root, or set storage.kind to dir.",
            );
        }
    }
    let no_quota = |message: String, mend: &str| finding("storage.dir_no_quota", Severity::Warning, message, mend);
    match (choice, on_btrfs, admin) {
        (StorageChoice::Btrfs, ..) | (StorageChoice::Auto, true, true) => Ok((StorageKind::Btrfs, Vec::new())),
        (StorageChoice::Dir, ..) => {
            let message =
                format!("Projects are plain directories at {path}: their disk limits are not enforced, and there are no snapshots.");
            Ok((
                StorageKind::Dir,
                vec![no_quota(message, "For both, give the host a btrfs file system as storage.path, and run it as root.")],
            ))
        }
        (StorageChoice::Auto, true, false) => {
            let message = format!(
                "{path} is on btrfs, but without root projects are plain directories there: no enforced disk limits, no snapshots."
            );
            Ok((StorageKind::Dir, vec![no_quota(message, "Run the host as root.")]))
        }
        (StorageChoice::Auto, false, _) => {
            let message = format!("{path} isn't on btrfs, so projects are plain directories there: no enforced disk limits, no snapshots.");
            let mend =
                "Give the host a btrfs file system (sudo apt-get install -y btrfs-progs; sudo mkfs.btrfs DEVICE), mounted at storage.path.";
            Ok((StorageKind::Dir, vec![no_quota(message, mend)]))
        }
    }
}

/// The nearest directory above that is there: it has the file system that the path will be on.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn may_administer() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << CAP_SYS_ADMIN) != 0)
}
