//! Looking at one thing: what it is, and a file's bytes.

use std::os::{fd::OwnedFd, unix::fs::FileExt};

use atoll_contract::{Access, Read, Timestamp, files::FileEntry};
use rustix::fs::{FileType, OFlags, ResolveFlags, Stat, fstat};

use super::{
    Fault, RelPath, Root,
    entry::{describe, etag, modified_at},
    root::{lookup, reopen_regular},
};

/// What a path leads to, symlinks followed.
pub enum Found {
    File(OpenFile),
    /// A directory, with its etag.
    Directory(String),
}

/// A regular file that is open for reading, as it was when it was opened.
pub struct OpenFile {
    file: std::fs::File,
    stat: Stat,
}

impl Root {
    /// Describes what is at a path; a symlink at its end is described itself.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::Escapes`] and others of a lookup.
    pub fn stat(&self, _access: &Access<Read>, path: &RelPath) -> Result<FileEntry, Fault> {
        self.entry(path)
    }

    /// Opens what is at a path, following symlinks.
    ///
    /// # Errors
    /// As [`Root::stat`], and [`Fault::Special`] for pipes, sockets and devices, which are never opened.
    pub fn find(&self, _access: &Access<Read>, path: &RelPath) -> Result<Found, Fault> {
        let pinned = lookup(self.dir(), &path.bytes(), OFlags::PATH, ResolveFlags::empty())?;
        let stat = fstat(&pinned)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(Found::Directory(etag(&stat)));
        }
        let (file, stat) = reopen_regular(&pinned)?;
        Ok(Found::File(OpenFile { file: file.into(), stat }))
    }

    /// Says again what is at a path, after a change to it.
    pub(super) fn entry(&self, path: &RelPath) -> Result<FileEntry, Fault> {
        let pinned: OwnedFd = lookup(self.dir(), &path.bytes(), OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::empty())?;
        let stat = fstat(&pinned)?;
        let name = path.names().last().map_or(&b""[..], Vec::as_slice);
        let mut entry = describe(&pinned, b"", path.url(), &stat);
        entry.name = String::from_utf8_lossy(name).into_owned();
        Ok(entry)
    }
}

impl OpenFile {
    pub fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    pub fn etag(&self) -> String {
        etag(&self.stat)
    }

    pub fn modified_at(&self) -> Timestamp {
        modified_at(&self.stat)
    }

    /// Reads up to `length` bytes from `offset` on; fewer only at the file's end.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
        let mut buffer = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }
}
