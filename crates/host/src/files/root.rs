//! The opened home directory and the few ways to get from it to something beneath.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use atoll_net::clock::{SharedClock, random_text};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, fstat, fsync, mkdirat, openat, openat2, statat,
    },
    io::Errno,
};

use super::{Fault, Home, RelPath, path::joined};
use crate::runtime::Owner;

/// Tries of a lookup that raced with a rename: the kernel says EAGAIN when it can't prove that `..` in a symlink stayed beneath.
const LOOKUP_TRIES: usize = 128;

/// A directory beneath which everything stays, opened once per request.
pub struct Root {
    dir: OwnedFd,
    /// Set if files made here are to be given to someone, which only root can do.
    owner: Option<Owner>,
    clock: SharedClock,
}

impl Root {
    /// Opens a project's home.
    ///
    /// # Errors
    /// [`Fault::NoVolume`] if it isn't there.
    pub fn open(home: &Home, clock: SharedClock) -> Result<Self, Fault> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, &home.home, flags, Mode::empty()).map_err(|_| Fault::NoVolume)?;
        let owner = rustix::process::geteuid().is_root().then_some(home.owner);
        Ok(Self { dir, owner, clock })
    }

    /// The same rules beneath one of its directories.
    pub(super) fn beneath(&self, dir: OwnedFd) -> Self {
        Self { dir, owner: self.owner, clock: self.clock.clone() }
    }

    pub(super) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Opens a directory to read its entries, following symlinks.
    pub(super) fn directory(&self, path: &RelPath) -> Result<OwnedFd, Fault> {
        lookup(&self.dir, &path.bytes(), OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::empty())
    }

    /// Pins the directory that holds a path's last name, and gives that name. Symlinks on the way are followed, the last name isn't looked at.
    pub(super) fn parent<'a>(&self, path: &'a RelPath) -> Result<(OwnedFd, &'a [u8]), Fault> {
        let Some((name, above)) = path.names().split_last() else {
            return Err(Fault::Invalid("This can't be done to home itself.".into()));
        };
        Ok((lookup(&self.dir, &joined(above), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty())?, name))
    }

    /// Pins a directory, making those that are missing.
    pub(super) fn make_dirs(&self, names: &[Vec<u8>]) -> Result<OwnedFd, Fault> {
        match lookup(&self.dir, &joined(names), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty()) {
            Err(Fault::NotFound) => {}
            other => return other,
        }
        let Some((name, above)) = names.split_last() else { return Err(Fault::NoVolume) };
        let parent = self.make_dirs(above)?;
        match self.make_dir(&parent, name, 0o755) {
            Ok(()) | Err(Fault::Exists) => {}
            Err(other) => return Err(other),
        }
        lookup(&self.dir, &joined(names), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty())
    }

    /// Makes one directory that belongs to the project's owner.
    pub(super) fn make_dir(&self, parent: &OwnedFd, name: &[u8], mode: u32) -> Result<(), Fault> {
        mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
        let dir = lookup(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)?;
        self.give(&dir)?;
        Ok(fchmod(&dir, Mode::from_raw_mode(mode & 0o777))?)
    }

    /// Gives a file that was made here to the project's owner.
    pub(super) fn give(&self, file: &OwnedFd) -> Result<(), Fault> {
        match self.owner {
            Some(owner) => give_to(file, owner.uid, owner.gid),
            None => Ok(()),
        }
    }

    /// Gives a file to whoever has the one that it replaces: in the container that may be someone else than root.
    pub(super) fn give_like(&self, file: &OwnedFd, old: &Stat) -> Result<(), Fault> {
        if self.owner.is_some() { give_to(file, old.st_uid, old.st_gid) } else { Ok(()) }
    }

    pub(super) fn give_link(&self, parent: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
        let Some(owner) = self.owner else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        Ok(rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// A hidden name that nobody else has.
    pub(super) fn temp_name(&self) -> Vec<u8> {
        format!(".atoll-{}", random_text(&*self.clock)).into_bytes()
    }
}

fn give_to(file: &OwnedFd, uid: u32, gid: u32) -> Result<(), Fault> {
    Ok(fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// openat2 beneath a directory. Never into another mount, never through a magic link of /proc.
pub(super) fn lookup(dir: impl AsFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Fault> {
    let resolve = resolve | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    for _ in 0..LOOKUP_TRIES {
        match openat2(dir.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(Fault::Limit("Directories on the path are being moved all the time.".into()))
}

/// Opens a regular file for reading. What it is is found out before it is opened, so that a pipe's writer isn't woken and a device isn't touched.
pub(super) fn open_regular(dir: impl AsFd, path: &[u8], resolve: ResolveFlags) -> Result<(OwnedFd, Stat), Fault> {
    let pinned = lookup(dir, path, OFlags::PATH, resolve)?;
    reopen_regular(&pinned)
}

/// Opens for reading what is pinned already, if it is a regular file.
pub(super) fn reopen_regular(pinned: &OwnedFd) -> Result<(OwnedFd, Stat), Fault> {
    let stat = fstat(pinned)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Fault::IsDirectory),
        _ => return Err(Fault::Special),
    }
    // the link in /proc leads to the pinned inode itself, whatever has happened to its name since
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok((openat(CWD, proc_path(pinned), flags, Mode::empty())?, stat))
}

/// A path that means exactly this descriptor of this process.
pub(super) fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What a name in a directory is, if it is there; a symlink is described itself.
pub(super) fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Fault> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Makes a directory's new and changed names durable.
pub(super) fn sync_dir(dir: &OwnedFd) -> Result<(), Fault> {
    match openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(readable) => Ok(fsync(&readable)?),
        // a directory that may be written and not read can't be synced; its file system does it in its own time
        Err(Errno::ACCESS) => Ok(()),
        Err(other) => Err(other.into()),
    }
}
