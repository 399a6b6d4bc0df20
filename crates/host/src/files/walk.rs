//! Going through a tree for an archive.

use std::os::fd::OwnedFd;

use rustix::fs::{Dir, FileType, OFlags, ResolveFlags, Stat};
use tokio_util::sync::CancellationToken;

use super::{
    Fault,
    list::is_dots,
    path::MAX_DEPTH,
    root::{lookup, stat_at},
};

/// One thing in the tree.
pub(super) struct Item<'a> {
    pub(super) dir: &'a OwnedFd,
    pub(super) name: &'a [u8],
    /// Relative to where the walk began.
    pub(super) path: &'a [u8],
    pub(super) stat: &'a Stat,
}

impl Item<'_> {
    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

pub(super) type Visit<'a> = dyn FnMut(&Item) -> Result<(), Fault> + 'a;

/// Visits all that is in a directory, each directory before what is in it, in no particular order. Symlinks are visited and never followed; other
/// mounts aren't entered. What vanishes meanwhile is left out. Holds one descriptor and one buffer for each level.
///
/// # Errors
/// [`Fault::Limit`] for a tree deeper than any path may be, [`Fault::Cancelled`], and what `visit` returns.
pub(super) fn walk(dir: OwnedFd, cancel: &CancellationToken, visit: &mut Visit) -> Result<(), Fault> {
    level(dir, &mut Vec::new(), 0, cancel, visit)
}

fn level(dir: OwnedFd, path: &mut Vec<u8>, depth: usize, cancel: &CancellationToken, visit: &mut Visit) -> Result<(), Fault> {
    if depth >= MAX_DEPTH {
        return Err(Fault::Limit(format!("The folder is more than {MAX_DEPTH} levels deep.")));
    }
    let mut entries = Dir::read_from(&dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if is_dots(name) {
            continue;
        }
        if cancel.is_cancelled() {
            return Err(Fault::Cancelled);
        }
        let Some(stat) = stat_at(&dir, name.to_bytes())? else { continue };
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let item = Item { dir: &dir, name: name.to_bytes(), path, stat: &stat };
        let enter = item.file_type() == FileType::Directory;
        visit(&item)?;
        if enter {
            match lookup(&dir, name.to_bytes(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS) {
                Ok(inner) => level(inner, path, depth + 1, cancel, visit)?,
                // gone or replaced since it was looked at, or another mount
                Err(Fault::NotFound | Fault::NotDirectory | Fault::Loop | Fault::Escapes) => {}
                Err(other) => return Err(other),
            }
        }
        path.truncate(length);
    }
    Ok(())
}
