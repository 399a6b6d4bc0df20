//! The storage `dir`: plain directories on any file system, without root. No snapshots, no quotas, and no imitation of them.

use std::{io, os::fd::BorrowedFd};

use atoll_contract::host::{Finding, StorageCapabilities, StorageKind};
use rustix::fs::{AtFlags, FileType, Mode, mkdirat, statat};

use super::{
    remove::remove_tree,
    tree::{Backing, Trouble},
};

pub(super) struct Directories {
    /// Why it is this one.
    pub(super) findings: Vec<Finding>,
}

impl Backing for Directories {
    fn kind(&self) -> StorageKind {
        StorageKind::Dir
    }

    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities::default()
    }

    fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    fn make_volume(&self, project: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        Ok(mkdirat(project, name, Mode::RWXU)?)
    }

    fn is_volume(&self, project: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
        let stat = statat(project, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn set_quota(&self, _: BorrowedFd<'_>, _: u64) -> Result<(), Trouble> {
        Ok(())
    }

    fn remove(&self, root: BorrowedFd<'_>, name: &str) -> Result<(), Trouble> {
        remove_tree(root, name).map_err(|error| Trouble::io(format!("removing {name}"), error))
    }

    fn usage(&self, _: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        Ok(None)
    }
}
