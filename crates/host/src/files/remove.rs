//! Removing files and whole trees, by descriptors, never through a symlink and never into another mount.

use std::os::fd::OwnedFd;

use atoll_contract::{Access, Write};
use rustix::{
    fs::{AtFlags, Dir, FileType, OFlags, ResolveFlags, renameat, unlinkat},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use super::{
    Fault, RelPath, Root,
    list::is_dots,
    root::{lookup, stat_at, sync_dir},
};

/// Directories that are open at once, one inside the other. What lies deeper is first moved up to the top of what is being removed, so that a tree
/// of any depth goes with few descriptors.
const OPEN_LEVELS: usize = 32;
/// How often one directory is read again because something was put into it meanwhile.
const PASSES: usize = 64;

impl Root {
    /// Removes a file, a symlink, or a directory; one that isn't empty only with `recursive`. Gives the number of things removed.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::NotEmpty`] (also if others keep adding to it), [`Fault::Escapes`] at a mount inside it,
    /// [`Fault::Cancelled`]: then a part of it is gone.
    pub fn remove(&self, _access: &Access<Write>, path: &RelPath, recursive: bool, cancel: &CancellationToken) -> Result<u64, Fault> {
        let (parent, name) = self.parent(path)?;
        let stat = stat_at(&parent, name)?.ok_or(Fault::NotFound)?;
        let mut removed = 0;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            unlinkat(&parent, name, AtFlags::empty())?;
        } else {
            if recursive {
                let top = inner_dir(&parent, name)?;
                let mut removal = Removal { top: rustix::io::dup(&top)?, root: self, cancel, removed: 0, moved: 0 };
                removal.empty(top, 0)?;
                removed = removal.removed;
            }
            unlinkat(&parent, name, AtFlags::REMOVEDIR)?;
        }
        sync_dir(&parent)?;
        Ok(removed + 1)
    }
}

/// A directory right inside another, for removal: not a symlink, not a mount.
fn inner_dir(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Fault> {
    lookup(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
}

struct Removal<'a> {
    top: OwnedFd,
    root: &'a Root,
    cancel: &'a CancellationToken,
    removed: u64,
    /// Directories that were moved up to the top and may lie there still.
    moved: usize,
}

impl Removal<'_> {
    fn empty(&mut self, dir: OwnedFd, level: usize) -> Result<(), Fault> {
        let mut entries = Dir::read_from(&dir)?;
        let mut idle = 0;
        loop {
            let before = (self.removed, self.moved);
            let mut found = false;
            while let Some(entry) = entries.read() {
                let entry = entry?;
                if is_dots(entry.file_name()) {
                    continue;
                }
                if self.cancel.is_cancelled() {
                    return Err(Fault::Cancelled);
                }
                found = true;
                self.one(&dir, entry.file_name().to_bytes(), level)?;
            }
            if !found {
                return Ok(());
            }
            // a pass that brought something up from below isn't one that others have made necessary
            idle = if before.1 == self.moved { idle + 1 } else { 0 };
            if idle > PASSES {
                return Err(Fault::NotEmpty);
            }
            entries.rewind();
        }
    }

    fn one(&mut self, dir: &OwnedFd, name: &[u8], level: usize) -> Result<(), Fault> {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => {
                self.removed += 1;
                return Ok(());
            }
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(other) => return Err(other.into()),
        }
        if !self.remove_dir(dir, name)? {
            if level + 1 >= OPEN_LEVELS {
                renameat(dir, name, &self.top, self.root.temp_name())?;
                self.moved += 1;
                return Ok(());
            }
            match inner_dir(dir, name) {
                Ok(inner) => self.empty(inner, level + 1)?,
                // gone, or made something else, since; the next pass sees
                Err(Fault::NotFound | Fault::NotDirectory | Fault::Loop) => return Ok(()),
                Err(other) => return Err(other),
            }
            self.remove_dir(dir, name)?;
        }
        Ok(())
    }

    /// Whether the directory is gone; false if something is in it.
    fn remove_dir(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<bool, Fault> {
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.removed += 1;
                Ok(true)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }
}
