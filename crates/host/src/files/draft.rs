//! Writing a file so that readers see the old content or the new, and nothing is left of one that isn't finished.

use std::{
    os::fd::OwnedFd,
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};

use atoll_contract::{Access, Write, files::FileEntry};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, fchmod, fsync, linkat, openat, renameat, renameat_with, unlinkat},
    io::Errno,
};

use super::{
    Fault, RelPath, Root,
    entry::{describe, etag},
    root::{proc_path, stat_at, sync_dir},
};

/// Which state of the target a write is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Condition {
    /// `If-Match`.
    pub matches: Option<Tags>,
    /// `If-None-Match: *`: nothing may be there.
    pub absent: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    Any,
    /// Entity tags with their quotes.
    These(Vec<String>),
}

impl Tags {
    pub fn cover(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(|tag| tag == etag),
        }
    }
}

impl Condition {
    fn check(&self, current: Option<&Stat>) -> Result<(), Fault> {
        let matched = self.matches.as_ref().is_none_or(|tags| current.is_some_and(|stat| tags.cover(&etag(stat))));
        if matched && !(self.absent && current.is_some()) { Ok(()) } else { Err(Fault::Changed) }
    }
}

/// A file in the making. It has no name until [`Draft::commit`]; dropping it leaves nothing.
pub struct Draft {
    path: RelPath,
    place: Place,
    file: Nameless,
    written: u64,
    condition: Condition,
    mode: Option<u32>,
}

/// A directory that is pinned, and a name in it.
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: Vec<u8>,
}

impl Root {
    /// Begins to write the file at `path`. `mode` is what it gets; absent: what the replaced file has, or 644. A symlink at the path is
    /// replaced, not followed.
    ///
    /// # Errors
    /// [`Fault::Changed`] if the condition doesn't hold even now, [`Fault::IsDirectory`], [`Fault::NotFound`] for a missing parent (unless
    /// `parents`), [`Fault::Full`], [`Fault::Quota`].
    pub fn draft(
        &self,
        _access: &Access<Write>,
        path: &RelPath,
        condition: Condition,
        mode: Option<u32>,
        parents: bool,
    ) -> Result<Draft, Fault> {
        let place = self.place(path, parents)?;
        condition.check(place.current()?.as_ref())?;
        let file = Nameless::create(self, &place.parent)?;
        Ok(Draft { path: path.clone(), place, file, written: 0, condition, mode })
    }

    pub(super) fn place(&self, path: &RelPath, parents: bool) -> Result<Place, Fault> {
        if parents && let Some((_, above)) = path.names().split_last() {
            self.make_dirs(above)?;
        }
        let (parent, name) = self.parent(path)?;
        Ok(Place { parent, name: name.to_vec() })
    }
}

impl Place {
    /// What is there now.
    pub(super) fn current(&self) -> Result<Option<Stat>, Fault> {
        let current = stat_at(&self.parent, &self.name)?;
        match &current {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Err(Fault::IsDirectory),
            _ => Ok(current),
        }
    }

    /// Gives a finished file the owner and mode that it is to have here.
    pub(super) fn dress(&self, root: &Root, file: &OwnedFd, mode: Option<u32>) -> Result<(), Fault> {
        let regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let old = self.current()?.filter(regular);
        match &old {
            Some(stat) => root.give_like(file, stat)?,
            None => root.give(file)?,
        }
        let mode = mode.or(old.map(|stat| stat.st_mode)).unwrap_or(0o644);
        Ok(fchmod(file, Mode::from_raw_mode(mode & 0o777))?)
    }
}

impl Draft {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`Fault::Full`], [`Fault::Quota`], [`Fault::TooLarge`], [`Fault::Io`]. The draft is then of no use.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes the bytes durable and puts them in place in one step. Tells whether the name is new. `commits` is the project's own lock: with it
    /// no other commit can come between the look at the condition and the replacement.
    ///
    /// # Errors
    /// [`Fault::Changed`], [`Fault::IsDirectory`], [`Fault::NotFound`] if the directory has gone, and those of [`Draft::write`].
    pub fn commit(self, root: &Root, commits: &Mutex<()>) -> Result<(FileEntry, bool), Fault> {
        let Self { path, place, file, condition, mode, .. } = self;
        let fd: OwnedFd = file.file.try_clone()?.into();
        place.dress(root, &fd, mode)?;
        fsync(&fd)?;
        let created = {
            let _guard = commits.lock().unwrap_or_else(PoisonError::into_inner);
            condition.check(place.current()?.as_ref())?;
            file.publish(root, &place, condition.absent)?
        };
        sync_dir(&place.parent)?;
        // through the descriptor, so that it is this file that is described, whatever happens to the name
        let stat = rustix::fs::fstat(&fd)?;
        Ok((describe(&fd, &place.name, path.url(), &stat), created))
    }
}

/// A file without a name, or, where the file system can't do that, with a hidden one that goes with it.
pub(super) struct Nameless {
    pub(super) file: std::fs::File,
    hidden: Option<(OwnedFd, Vec<u8>)>,
}

impl Nameless {
    /// On the file system of `parent`.
    pub(super) fn create(root: &Root, parent: &OwnedFd) -> Result<Self, Fault> {
        let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        match openat(parent, c".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => return Ok(Self { file: file.into(), hidden: None }),
            // file systems without O_TMPFILE say one or the other
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
            Err(other) => return Err(other.into()),
        }
        let name = root.temp_name();
        let file = openat(parent, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)?;
        Ok(Self { file: file.into(), hidden: Some((rustix::io::dup(parent)?, name)) })
    }

    /// Puts it in place in one step; tells whether the name is new. With `absent` it never replaces anything.
    pub(super) fn publish(mut self, root: &Root, place: &Place, absent: bool) -> Result<bool, Fault> {
        let (parent, name) = (&place.parent, &place.name);
        if self.hidden.is_none() {
            match self.link(parent, name) {
                Ok(()) => return Ok(true),
                Err(Fault::Exists) if !absent => {}
                Err(Fault::Exists) => return Err(Fault::Changed),
                Err(other) => return Err(other),
            }
            // linkat never replaces, so it gets a hidden name for the moment until the rename
            let hidden = root.temp_name();
            self.link(parent, &hidden)?;
            self.hidden = Some((rustix::io::dup(parent)?, hidden));
        }
        let Some((dir, hidden)) = &self.hidden else { return Err(Fault::NotFound) };
        match renameat_with(dir, hidden, parent, name, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.hidden = None;
                return Ok(true);
            }
            Err(Errno::EXIST) if absent => return Err(Fault::Changed),
            // the file system doesn't know the flag; a link doesn't replace either, and the hidden name goes with the drop
            Err(Errno::INVAL) if absent => {
                return linkat(dir, hidden, parent, name, AtFlags::empty()).map(|()| true).map_err(|errno| match errno {
                    Errno::EXIST => Fault::Changed,
                    other => other.into(),
                });
            }
            Err(Errno::EXIST | Errno::INVAL) => {}
            Err(other) => return Err(other.into()),
        }
        renameat(dir, hidden, parent, name)?;
        self.hidden = None;
        Ok(false)
    }

    /// Gives it a name of its own.
    pub(super) fn link(&self, parent: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
        let fd: OwnedFd = self.file.try_clone()?.into();
        Ok(linkat(CWD, proc_path(&fd), parent, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    pub(super) fn fd(&self) -> Result<OwnedFd, Fault> {
        Ok(self.file.try_clone()?.into())
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        if let Some((dir, name)) = self.hidden.take() {
            // if this fails, a hidden file stays, and there is nobody left to tell
            let _ = unlinkat(dir, name, AtFlags::empty());
        }
    }
}
