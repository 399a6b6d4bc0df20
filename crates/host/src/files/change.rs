//! Directories, symlinks and names.

use atoll_contract::{Access, Write, files::FileEntry};
use rustix::{
    fs::{AtFlags, RenameFlags, renameat, renameat_with, symlinkat, unlinkat},
    io::Errno,
};

use super::{
    Fault, RelPath, Root,
    draft::Place,
    root::{stat_at, sync_dir},
};

/// Bytes of a symlink's target: below PATH_MAX of Linux.
const MAX_TARGET: usize = 4095;

impl Root {
    /// Makes a directory, and with `parents` those above it. Tells whether it is new; one that is there already is an error without `parents`.
    ///
    /// # Errors
    /// [`Fault::Exists`], [`Fault::NotFound`] for a missing parent.
    pub fn mkdir(&self, _access: &Access<Write>, path: &RelPath, parents: bool) -> Result<(FileEntry, bool), Fault> {
        if path.is_home() && parents {
            return Ok((self.entry(path)?, false));
        }
        let Place { parent, name } = self.place(path, parents)?;
        let created = match self.make_dir(&parent, &name, 0o755) {
            Ok(()) => true,
            Err(Fault::Exists) if parents => {
                self.directory(path)?;
                false
            }
            Err(other) => return Err(other),
        };
        sync_dir(&parent)?;
        Ok((self.entry(path)?, created))
    }

    /// Gives something another path, in one step. With `replace` a file that is there goes; a directory only if it is empty.
    ///
    /// # Errors
    /// [`Fault::Exists`], [`Fault::NotEmpty`], [`Fault::OtherVolume`] (btrfs subvolumes made inside home), [`Fault::Invalid`] for a directory
    /// that would go into itself.
    pub fn rename(&self, _access: &Access<Write>, from: &RelPath, to: &RelPath, replace: bool) -> Result<FileEntry, Fault> {
        let (old_parent, old_name) = self.parent(from)?;
        let (new_parent, new_name) = self.parent(to)?;
        let outcome = if replace {
            renameat(&old_parent, old_name, &new_parent, new_name)
        } else {
            renameat_with(&old_parent, old_name, &new_parent, new_name, RenameFlags::NOREPLACE)
        };
        outcome.map_err(|errno| match errno {
            Errno::XDEV => Fault::OtherVolume,
            Errno::INVAL => Fault::Invalid("A directory can't be moved into itself.".into()),
            other => other.into(),
        })?;
        sync_dir(&new_parent)?;
        sync_dir(&old_parent)?;
        self.entry(to)
    }

    /// Makes a symlink with any target; where it leads is only looked at when it is followed.
    ///
    /// # Errors
    /// [`Fault::Exists`], [`Fault::NotFound`] for a missing parent, [`Fault::Invalid`] for a target that can't be one.
    pub fn symlink(&self, _access: &Access<Write>, path: &RelPath, target: &[u8]) -> Result<FileEntry, Fault> {
        check_target(target)?;
        let (parent, name) = self.parent(path)?;
        symlinkat(target, &parent, name)?;
        self.give_link(&parent, name)?;
        sync_dir(&parent)?;
        self.entry(path)
    }

    /// Makes a symlink in place of what is there, unless that is a directory.
    pub(super) fn replace_with_symlink(&self, place: &Place, target: &[u8]) -> Result<(), Fault> {
        check_target(target)?;
        let Place { parent, name } = place;
        if stat_at(parent, name)?.is_none() {
            match symlinkat(target, parent, name) {
                Ok(()) => return self.give_link(parent, name),
                Err(Errno::EXIST) => {}
                Err(other) => return Err(other.into()),
            }
        }
        let temp = self.temp_name();
        symlinkat(target, parent, &temp)?;
        let renamed = self.give_link(parent, &temp).and_then(|()| Ok(renameat(parent, &temp, parent, name)?));
        if renamed.is_err() {
            let _ = unlinkat(parent, &temp, AtFlags::empty());
        }
        renamed
    }
}

fn check_target(target: &[u8]) -> Result<(), Fault> {
    if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
        return Err(Fault::Invalid(format!("A symlink's target is 1 to {MAX_TARGET} bytes without NUL.")));
    }
    Ok(())
}
