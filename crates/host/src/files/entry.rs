//! From what the kernel says of a file to what is said to a user.

use std::os::fd::AsFd;

use atoll_contract::{
    Timestamp,
    files::{FileEntry, FileKind},
};
use rustix::fs::{FileType, Stat, readlinkat};

pub(super) fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

/// A strong validator (RFC 9110, section 8.8.3), quotes included. The change time is in it because no program can set that one back.
pub(super) fn etag(stat: &Stat) -> String {
    let (modified, changed) = ((stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec));
    format!("\"{:x}-{:x}-{:x}.{:x}-{:x}.{:x}\"", stat.st_ino, stat.st_size, modified.0, modified.1, changed.0, changed.1)
}

pub(super) fn modified_at(stat: &Stat) -> Timestamp {
    Timestamp::from_millis(stat.st_mtime.saturating_mul(1000).saturating_add((stat.st_mtime_nsec / 1_000_000) as i64))
}

/// Describes what is at `name` in `dir`; `path` is its encoded path.
pub(super) fn describe(dir: impl AsFd, name: &[u8], path: String, stat: &Stat) -> FileEntry {
    let kind = kind(stat);
    let target = if kind == FileKind::Symlink { readlinkat(dir, name, Vec::new()).ok() } else { None };
    FileEntry {
        name: String::from_utf8_lossy(name).into_owned(),
        path,
        kind,
        size: if kind == FileKind::Directory { 0 } else { u64::try_from(stat.st_size).unwrap_or(0) },
        mode: stat.st_mode & 0o7777,
        modified_at: modified_at(stat),
        target: target.map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned()),
        etag: etag(stat),
    }
}
