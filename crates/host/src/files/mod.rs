//! A project's files: everything beneath its volume `home`, and uploads that wait in its volume `state`.
//!
//! All of this is synchronous and may block: callers run it on threads made for that. Nothing here follows a path as text. A path is resolved
//! by the kernel beneath a directory that was opened once (openat2(2), RESOLVE_BENEATH), and what is then done is done with the resulting
//! file descriptors, so a symlink that is swapped in while a request runs can lead to another place in home and never out of it.
//! Symlinks are followed as long as they stay beneath home; another file system that is mounted inside isn't entered.

mod change;
mod draft;
mod entry;
mod fault;
mod list;
mod path;
mod read;
mod remove;
mod root;
mod tar_in;
mod tar_out;
mod upload;
mod walk;
mod zip_out;

#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

pub use draft::{Condition, Draft, Tags};
pub use fault::Fault;
pub use path::{RelPath, encode, percent_decode};
pub use read::{Found, OpenFile};
pub use root::Root;
pub use tar_in::MAX_EXTENSION_BYTES;
pub use upload::{Plan, Upload, UploadId, UploadLimits, Uploads};

use crate::runtime::Owner;

/// Where a project's volumes are on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The volume that the container sees as its home directory.
    pub home: PathBuf,
    /// The host's own volume of the project; uploads wait there.
    pub state: PathBuf,
    /// Who owns files that are made here. Only used by a host program that runs as root.
    pub owner: Owner,
}

/// What a folder is packed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    Tar,
    Zip,
}
