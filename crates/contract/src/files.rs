//! A project's files over HTTP, served by its host. Paths are relative to the volume `home`, with `/` between names.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;

/// Entries of one page of a listing at most.
pub const MAX_PAGE: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    /// A socket, pipe or device: listed, never opened.
    Other,
}

/// One entry of a directory, or the answer to a stat. Symlinks are described, never followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEntry {
    /// The last part of the path, as it is; bytes that aren't UTF-8 show as U+FFFD here. Empty for home itself.
    pub name: String,
    /// Relative to home and percent-encoded, so that it can be asked for again: it goes into a URL after `/files/` as it is.
    pub path: String,
    pub kind: FileKind,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Permission bits, as in `0o644`.
    pub mode: u32,
    #[schema(value_type = String)]
    pub modified_at: Timestamp,
    /// Where a symlink points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Changes when the content does; with its quotes, as it goes into `If-Match`.
    pub etag: String,
}

/// One page of a directory, in the byte order of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileList {
    pub entries: Vec<FileEntry>,
    /// Give this as `after` for the next page; absent at the end. It needs no encoding in a URL and means nothing otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What came out of a tar that was unpacked into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Unpacked {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hard_links: u64,
    /// Sockets, pipes and devices, which aren't made.
    pub skipped: u64,
    /// Bytes in files.
    pub bytes: u64,
}
