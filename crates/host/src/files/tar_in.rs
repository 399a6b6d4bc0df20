//! Unpacking a tar stream into a directory.

use std::{
    io::Write as _,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use atoll_contract::{Access, Write, files::Unpacked};
use futures_util::StreamExt;
use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps, fchmod, futimens, linkat, renameat, syncfs, unlinkat};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_tar::{Archive, EntryType};
use tokio_util::sync::CancellationToken;

use super::{
    Fault, RelPath, Root,
    draft::{Nameless, Place},
    root::stat_at,
};

/// Bytes that may stand between two members: headers, long names, extended attributes. The parser keeps them in memory, so this bounds it.
pub const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Bytes after the archive's end mark that are read and dropped: tar fills up to the size of its records.
const MAX_TRAILER: usize = 4 << 20;
/// Directories without write permission whose mode is set at the end, so that what is inside can be made first; further ones stay writable for
/// their owner.
const MAX_LATE_MODES: usize = 1000;

impl Root {
    /// Unpacks a tar (ustar, GNU or pax) into the directory `into`, which is made if it isn't there. Files that are there are replaced, each in one
    /// step; directories are kept. Sockets, pipes and devices are skipped and counted. Everything stays beneath `into`: a member whose name goes up,
    /// is absolute, or leads out through a symlink ends it with an error; what was unpacked before stays.
    ///
    /// Reads its input on the thread that it is called on, so it is run by `block_on` on a thread that may block.
    ///
    /// # Errors
    /// [`Fault::Invalid`], [`Fault::Escapes`], [`Fault::Stream`] if the input breaks off or isn't a tar, [`Fault::Full`], [`Fault::Quota`],
    /// [`Fault::Cancelled`].
    pub async fn unpack_tar<R: AsyncRead + Unpin + Send>(
        &self,
        _access: &Access<Write>,
        into: &RelPath,
        input: R,
        cancel: &CancellationToken,
    ) -> Result<Unpacked, Fault> {
        drop(self.make_dirs(into.names())?);
        let mut unpacking = Unpacking { root: self.beneath(self.directory(into)?), counts: Unpacked::default(), late: Vec::new() };
        let budget = Arc::new(AtomicU64::new(0));
        let mut archive = Archive::new(Budgeted { input, budget: budget.clone() });
        let mut entries = archive.entries().map_err(Fault::Stream)?;
        loop {
            budget.store(MAX_EXTENSION_BYTES, Ordering::Relaxed);
            let Some(entry) = entries.next().await else { break };
            budget.store(u64::MAX, Ordering::Relaxed);
            if cancel.is_cancelled() {
                return Err(Fault::Cancelled);
            }
            unpacking.entry(&mut entry.map_err(Fault::Stream)?).await?;
        }
        drop(entries);
        if let Ok(mut rest) = archive.into_inner().map_err(|_| ()) {
            drain(&mut rest.input).await?;
        }
        unpacking.finish()
    }
}

struct Unpacking {
    root: Root,
    counts: Unpacked,
    late: Vec<(RelPath, u32)>,
}

impl Unpacking {
    async fn entry<R: AsyncRead + Unpin>(&mut self, entry: &mut tokio_tar::Entry<R>) -> Result<(), Fault> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = RelPath::from_member(&entry.path_bytes().map_err(Fault::Stream)?)?;
        self.member(entry, kind, &path).await.map_err(|fault| match fault {
            // the body's, the disk's or the caller's trouble, not this member's
            Fault::Stream(_) | Fault::Full | Fault::Quota | Fault::Cancelled => fault,
            other => Fault::At(path.to_string(), Box::new(other)),
        })
    }

    async fn member<R: AsyncRead + Unpin>(
        &mut self,
        entry: &mut tokio_tar::Entry<R>,
        kind: EntryType,
        path: &RelPath,
    ) -> Result<(), Fault> {
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        match kind {
            EntryType::Directory => self.directory(path, mode),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(entry, path, mode).await,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().map_err(Fault::Stream)?.unwrap_or_default().into_owned();
                self.root.replace_with_symlink(&self.place(path)?, &target)?;
                self.counts.symlinks += 1;
                Ok(())
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().map_err(Fault::Stream)?.unwrap_or_default().into_owned();
                self.hard_link(path, &RelPath::from_member(&target)?)
            }
            _ => {
                self.counts.skipped += 1;
                Ok(())
            }
        }
    }

    /// Where a member goes; the directories above it are made.
    fn place(&self, path: &RelPath) -> Result<Place, Fault> {
        let place = self.root.place(path, true)?;
        match place.current() {
            Err(Fault::IsDirectory) => Err(Fault::Invalid(format!("\"{path}\" in the archive is a directory already."))),
            Err(other) => Err(other),
            Ok(_) => Ok(place),
        }
    }

    fn directory(&mut self, path: &RelPath, mode: u32) -> Result<(), Fault> {
        drop(self.root.make_dirs(path.names())?);
        if !path.is_home() {
            // what comes into it must be possible first
            self.chmod(path, mode | 0o700)?;
            if mode & 0o700 != 0o700 && self.late.len() < MAX_LATE_MODES {
                self.late.push((path.clone(), mode));
            }
        }
        self.counts.directories += 1;
        Ok(())
    }

    fn chmod(&self, path: &RelPath, mode: u32) -> Result<(), Fault> {
        Ok(fchmod(self.root.directory(path)?, Mode::from_raw_mode(mode))?)
    }

    async fn file<R: AsyncRead + Unpin>(&mut self, entry: &mut tokio_tar::Entry<R>, path: &RelPath, mode: u32) -> Result<(), Fault> {
        let place = self.place(path)?;
        let (expected, modified) = (entry.effective_size(), entry.header().mtime().unwrap_or(0));
        let mut file = Nameless::create(&self.root, &place.parent)?;
        let mut buffer = vec![0; 64 << 10];
        let mut written = 0;
        loop {
            let count = entry.read(&mut buffer).await.map_err(Fault::Stream)?;
            if count == 0 {
                break;
            }
            file.file.write_all(&buffer[..count])?;
            written += count as u64;
        }
        if written != expected {
            return Err(Fault::Invalid(format!("The archive breaks off inside \"{path}\".")));
        }
        let fd = file.fd()?;
        place.dress(&self.root, &fd, Some(mode))?;
        set_modified(&fd, modified)?;
        file.publish(&self.root, &place, false)?;
        self.counts.files += 1;
        self.counts.bytes += written;
        Ok(())
    }

    /// Links to a file that came earlier (or was there), beneath the same directory.
    fn hard_link(&mut self, path: &RelPath, target: &RelPath) -> Result<(), Fault> {
        let place = self.place(path)?;
        let (dir, name) = self.root.parent(target)?;
        let missing = || Fault::Invalid(format!("\"{path}\" in the archive is a link to \"{target}\", which isn't there."));
        let old = stat_at(&dir, name)?.ok_or_else(missing)?;
        if FileType::from_raw_mode(old.st_mode) != FileType::RegularFile {
            return Err(Fault::Invalid(format!("\"{path}\" in the archive is a link to something that isn't a file.")));
        }
        if place.current()?.is_none_or(|stat| (stat.st_dev, stat.st_ino) != (old.st_dev, old.st_ino)) {
            let temp = self.root.temp_name();
            linkat(&dir, name, &place.parent, &temp, AtFlags::empty()).map_err(|errno| match errno {
                rustix::io::Errno::NOENT => missing(),
                other => other.into(),
            })?;
            if let Err(errno) = renameat(&place.parent, &temp, &place.parent, &place.name) {
                let _ = unlinkat(&place.parent, &temp, AtFlags::empty());
                return Err(errno.into());
            }
        }
        self.counts.hard_links += 1;
        Ok(())
    }

    /// Sets what had to wait, and makes everything durable at once: syncing each of thousands of small files would take minutes.
    fn finish(self) -> Result<Unpacked, Fault> {
        for (path, mode) in self.late.iter().rev() {
            self.chmod(path, *mode)?;
        }
        syncfs(self.root.dir())?;
        Ok(self.counts)
    }
}

fn set_modified(file: &OwnedFd, seconds: u64) -> Result<(), Fault> {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Ok(futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

/// Reads what follows the archive, so that the sender can end in peace.
async fn drain<R: AsyncRead + Unpin>(input: &mut R) -> Result<(), Fault> {
    let mut buffer = vec![0; 16 << 10];
    let mut total = 0;
    loop {
        match input.read(&mut buffer).await.map_err(Fault::Stream)? {
            0 => return Ok(()),
            count => total += count,
        }
        if total > MAX_TRAILER {
            return Err(Fault::Invalid("There is more after the archive's end.".into()));
        }
    }
}

/// Fails after as many bytes as the budget has.
struct Budgeted<R> {
    input: R,
    budget: Arc<AtomicU64>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Budgeted<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let left = self.budget.load(Ordering::Relaxed);
        if left == 0 {
            return Poll::Ready(Err(std::io::Error::other("the headers of a member are too long")));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.input).poll_read(cx, buffer);
        let read = (buffer.filled().len() - before) as u64;
        if left != u64::MAX {
            self.budget.store(left.saturating_sub(read), Ordering::Relaxed);
        }
        polled
    }
}
