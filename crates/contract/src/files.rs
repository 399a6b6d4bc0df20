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
    /// The last part of the path. Bytes that aren't UTF-8 are percent-encoded in `path`; here they show as U+FFFD.
    pub name: String,
    /// Relative to home, percent-encoded where a name isn't UTF-8, so that it can be asked for again.
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
    /// Changes when the content does; use it in `If-Match`.
    pub etag: String,
}

/// One page of a directory, in the byte order of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileList {
    pub entries: Vec<FileEntry>,
    /// Give this as `after` for the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
