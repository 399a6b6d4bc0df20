//! The storage `btrfs`: `home` and `state` are subvolumes, and simple quotas (Linux 6.7) limit both together.
//!
//! Quota group `1/<id of home>` holds both subvolumes and carries the limit. With simple quotas a subvolume that the user makes inside
//! joins the groups of the one it is made in, so the limit can't be evaded. Subvolume ids are never used again on a file system, so the
//! group's id needs no bookkeeping. A group can't be removed before the kernel has cleaned its members up, in the background;
//! until then a file in `<root>/.groups-gone` remembers it.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use atoll_contract::host::{Finding, Severity, StorageCapabilities, StorageKind};
use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, statat},
    io::Errno,
};

use super::{
    ioctl::{self, FIRST_FREE_OBJECTID, Nested},
    remove::remove_tree,
    tree::{Backing, Interrupt, Trouble, open_directory},
};
use crate::doctor::finding;

const GONE: &str = ".groups-gone";
/// The level of a quota group is the upper 16 bits of its id.
const LEVEL_1: u64 = 1 << 48;
/// Groups that one call tries to clear away.
const SWEEP: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotas {
    Simple,
    /// The older kind: slower with many snapshots, and a subvolume that a user makes escapes its group.
    Classic,
    None,
}

pub(super) struct Btrfs {
    root: OwnedFd,
    path: PathBuf,
    /// `/sys/fs/btrfs/<uuid>/qgroups`
    groups: PathBuf,
    quotas: Quotas,
    findings: Vec<Finding>,
    interrupt: Interrupt,
}

impl Btrfs {
    /// Turns quotas on where they are off.
    pub(super) fn new(root: OwnedFd, path: &Path, mut findings: Vec<Finding>, interrupt: Interrupt) -> io::Result<Self> {
        let id = uuid::Uuid::from_bytes(ioctl::file_system_id(&root)?);
        let groups = PathBuf::from(format!("/sys/fs/btrfs/{id}/qgroups"));
        if !groups.exists()
            && let Err(error) = ioctl::enable_quotas(&root, true)
        {
            tracing::info!(%error, "simple quotas are refused; trying classic ones");
            if let Err(error) = ioctl::enable_quotas(&root, false) {
                tracing::warn!(%error, "quotas are refused");
            }
        }
        let quotas = match fs::read_to_string(groups.join("mode")) {
            Ok(mode) if mode.trim() == "squota" => Quotas::Simple,
            Ok(_) => Quotas::Classic,
            Err(_) if groups.exists() => Quotas::Classic, // a kernel from before 6.7 has no such file
            Err(_) => Quotas::None,
        };
        findings.push(say(quotas, path));
        fs::create_dir_all(path.join(GONE))?;
        let this = Self { root, path: path.to_owned(), groups, quotas, findings, interrupt };
        this.sweep();
        Ok(this)
    }

    /// Deletes a volume with all subvolumes that its user made inside, the innermost first. They are named by their ids, so no path of the
    /// user's making is followed.
    fn destroy(&self, volume: OwnedFd, group: u64) -> Result<(), Trouble> {
        let failed = |error: io::Error| Trouble::io("deleting a subvolume", error);
        let top = ioctl::subvolume_id(&volume).map_err(failed)?;
        let mut stack = vec![top];
        // where each nested one lies: (outer subvolume, directory and name in it)
        let mut places: HashMap<u64, (u64, Nested)> = HashMap::new();
        while let Some(&id) = stack.last() {
            let nested = ioctl::nested_subvolumes(&self.root, id).map_err(failed)?;
            if !nested.is_empty() {
                for inner in nested {
                    stack.push(inner.id);
                    places.insert(inner.id, (id, inner));
                }
                continue;
            }
            self.remember(group, id)?;
            let mut done = ioctl::destroy_subvolume(&self.root, id);
            if let (Err(error), Some((outer, _))) = (&done, places.get(&id))
                && error.raw_os_error() == Some(Errno::ROFS.raw_os_error())
            {
                // the user made the outer one read-only
                self.open_nested(volume.as_fd(), top, *outer, &places).and_then(ioctl::set_writable).map_err(failed)?;
                done = ioctl::destroy_subvolume(&self.root, id);
            }
            done.map_err(failed)?;
            places.remove(&id);
            stack.pop();
            self.interrupt.at("remove.subvolume_gone")?;
        }
        Ok(())
    }

    fn open_nested(&self, volume: BorrowedFd<'_>, top: u64, id: u64, places: &HashMap<u64, (u64, Nested)>) -> io::Result<OwnedFd> {
        let mut chain = Vec::new();
        let mut at = id;
        while at != top {
            let (outer, nested) = places.get(&at).ok_or(io::ErrorKind::NotFound)?;
            chain.push((*outer, nested));
            at = *outer;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd = volume.try_clone_to_owned()?;
        for (outer, nested) in chain.into_iter().rev() {
            let path = ioctl::directory_path(&self.root, outer, nested.directory)?;
            for part in path.split(|byte| *byte == b'/').chain([nested.name.as_slice()]).filter(|part| !part.is_empty()) {
                fd = openat(&fd, std::ffi::OsStr::from_bytes(part), flags, Mode::empty())?;
            }
        }
        Ok(fd)
    }

    /// Notes that a group has to go when its members are gone, and that this is one of them (0 for none). On disk before it is needed.
    fn remember(&self, group: u64, member: u64) -> Result<(), Trouble> {
        let path = self.path.join(GONE).join((group & !LEVEL_1).to_string());
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| {
                writeln!(file, "{member}")?;
                file.sync_all()
            })
            .map_err(|error| Trouble::io("noting a quota group", error))
    }

    /// Removes the groups of deleted projects that the kernel has emptied since. Kernels from 6.11 on remove a deleted subvolume's own group
    /// themselves; for others its id was noted.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.path.join(GONE)) else { return };
        for entry in entries.flatten().take(SWEEP) {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            let _ = ioctl::limit_group(&self.root, LEVEL_1 | id, None);
            for member in fs::read_to_string(entry.path()).unwrap_or_default().lines().filter_map(|line| line.parse::<u64>().ok()) {
                if member >= FIRST_FREE_OBJECTID {
                    let _ = ioctl::remove_group(&self.root, member); // refused while it has bytes
                }
            }
            let gone = match ioctl::remove_group(&self.root, LEVEL_1 | id) {
                Ok(()) => true,
                // not there, or quotas were turned off
                Err(error) => matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOENT | Errno::NOTCONN)),
            };
            if gone {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn subvolume(project: BorrowedFd<'_>, name: &str) -> io::Result<Option<OwnedFd>> {
        match open_directory(project, name) {
            Ok(fd) => Ok((rustix::fs::fstat(&fd)?.st_ino == FIRST_FREE_OBJECTID).then_some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn say(quotas: Quotas, path: &Path) -> Finding {
    let path = path.display();
    match quotas {
        Quotas::Simple => {
            finding("storage.simple_quotas", Severity::Ok, format!("Simple quotas limit projects on the btrfs at {path}."), "")
        }
        Quotas::Classic => finding(
            "storage.classic_quotas",
            Severity::Warning,
            format!(
                "The btrfs at {path} has classic quotas: slow with many snapshots, and a project can evade its limit by making a subvolume."
            ),
            &format!("With Linux 6.7 or newer: sudo btrfs quota disable {path}, and start the host again."),
        ),
        Quotas::None => finding(
            "storage.no_quotas",
            Severity::Warning,
            format!("Quotas can't be turned on for the btrfs at {path}, so disk limits of projects are not enforced."),
            "Use Linux 6.7 or newer, and see the kernel log (dmesg).",
        ),
    }
}

fn ignore(result: io::Result<()>, ignored: Errno) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(ignored.raw_os_error()) => Ok(()),
        other => other,
    }
}

impl Backing for Btrfs {
    fn kind(&self) -> StorageKind {
        StorageKind::Btrfs
    }

    fn capabilities(&self) -> StorageCapabilities {
        let quotas = self.quotas != Quotas::None;
        StorageCapabilities { snapshots: true, quotas, cheap_usage: quotas, send_receive: true }
    }

    fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    fn make_volume(&self, project: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        ioctl::create_subvolume(project, name)
    }

    fn is_volume(&self, project: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
        Ok(statat(project, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino == FIRST_FREE_OBJECTID)
    }

    fn set_quota(&self, project: BorrowedFd<'_>, bytes: u64) -> Result<(), Trouble> {
        if self.quotas == Quotas::None {
            return Ok(());
        }
        let set = || -> io::Result<()> {
            let missing = || io::Error::from(Errno::NOENT);
            let home = ioctl::subvolume_id(Self::subvolume(project, "home")?.ok_or_else(missing)?)?;
            let state = ioctl::subvolume_id(Self::subvolume(project, "state")?.ok_or_else(missing)?)?;
            let group = LEVEL_1 | home;
            ignore(ioctl::create_group(&self.root, group), Errno::EXIST)?;
            for member in [home, state] {
                // a subvolume has a group of its own, but not if an old kernel made it before quotas were turned on
                if let Err(error) = ignore(ioctl::assign_group(&self.root, member, group), Errno::EXIST) {
                    ioctl::create_group(&self.root, member).map_err(|_| error)?;
                    ignore(ioctl::assign_group(&self.root, member, group), Errno::EXIST)?;
                }
            }
            ioctl::limit_group(&self.root, group, Some(bytes))
        };
        set().map_err(|error| Trouble::io("setting the project's disk limit", error))
    }

    fn remove(&self, root: BorrowedFd<'_>, name: &str) -> Result<(), Trouble> {
        let failed = |error: io::Error| Trouble::io(format!("removing {name}"), error);
        let project = match open_directory(root, name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error.into())),
        };
        let home = Self::subvolume(project.as_fd(), "home").map_err(failed)?;
        let state = Self::subvolume(project.as_fd(), "state").map_err(failed)?;
        // after a removal that was cut off, home may be gone and its group noted already
        let group = match &home {
            Some(home) => LEVEL_1 | ioctl::subvolume_id(home).map_err(failed)?,
            None => 0,
        };
        if group != 0 {
            self.remember(group, 0)?;
            self.interrupt.at("remove.group_noted")?;
            // at its limit a project could not even be deleted: that, too, writes
            let _ = ioctl::limit_group(&self.root, group, None);
        }
        for volume in [state, home].into_iter().flatten() {
            self.destroy(volume, group)?;
        }
        self.interrupt.at("remove.volumes_gone")?;
        remove_tree(root, name).map_err(failed)?;
        self.sweep();
        Ok(())
    }

    fn usage(&self, project: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        let Some(home) = Self::subvolume(project, "home")? else { return Ok(None) };
        let group = self.groups.join(format!("1_{}", ioctl::subvolume_id(home)?));
        match fs::read_to_string(group.join("referenced")) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
