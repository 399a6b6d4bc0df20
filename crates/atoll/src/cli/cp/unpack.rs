//! A tar stream into a local directory. What comes from a project isn't trusted: nothing is written outside of the directory, and no file gets
//! a set-user-id bit, whoever runs the command.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use atoll_contract::Error;
use futures_util::StreamExt;
use tokio::io::AsyncRead;
use tokio_tar::{ArchiveBuilder, EntryType};

use super::Copied;
use crate::errors::{self, Result};

/// Unpacks into `directory`, which is there. Says what it was.
pub async fn unpack(reader: impl AsyncRead + Unpin + Send, directory: &Path) -> Result<Copied> {
    let failed = |error: std::io::Error| errors::io(directory.display(), &error);
    let directory = directory.canonicalize().map_err(failed)?;
    let mut archive = ArchiveBuilder::new(reader).set_overwrite(true).set_preserve_mtime(true).build();
    let mut entries = archive.entries().map_err(|error| broken(&error))?;
    #[expect(clippy::default_trait_access, reason = "the set's type is of a crate that isn't a dependency here")]
    let mut checked = Default::default();
    let mut directories: Vec<(PathBuf, u32)> = Vec::new();
    let mut copied = Copied::default();
    while let Some(entry) = entries.next().await {
        let mut entry = entry.map_err(|error| broken(&error))?;
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().map_err(|error| broken(&error))? & 0o777;
        if !matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::Directory | EntryType::Symlink | EntryType::Link) {
            continue;
        }
        let path = entry.unpack_in_raw(&directory, &mut checked).await.map_err(|error| unpacking(&error))?;
        let Some(path) = path else { continue };
        match kind {
            // a directory that can't be written is closed only when all is in it
            EntryType::Directory => directories.push((path, mode)),
            EntryType::Regular | EntryType::Continuous => {
                std::fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|error| errors::io(path.display(), &error))?;
                copied.files += 1;
                copied.bytes += entry.effective_size();
            }
            _ => copied.files += 1,
        }
    }
    for (path, mode) in directories.into_iter().rev() {
        // a later entry may have put something else in its place, whose mode is its own
        if std::fs::symlink_metadata(&path).is_ok_and(|about| about.is_dir()) {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|error| errors::io(path.display(), &error))?;
        }
    }
    Ok(copied)
}

fn broken(error: &std::io::Error) -> Error {
    let told = errors::io("The folder's stream broke off", error);
    // reading failed half-way: what is there is a part, and the same command may well succeed
    Error { retry: true, code: atoll_contract::ErrorCode::Unavailable, ..told }
        .mend("Run the command again; what is there already is replaced.")
}

/// The library wraps what happened in a sentence of its own; the innermost cause has the kind.
fn unpacking(error: &std::io::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = error.to_string();
    let what = text.trim_end_matches('.');
    match cause.downcast_ref::<std::io::Error>() {
        Some(inner) => {
            let told = errors::io(what, inner);
            if inner.kind() == std::io::ErrorKind::IsADirectory {
                Error::new(atoll_contract::ErrorCode::Conflict, told.message)
                    .mend("A file can't take a directory's place; remove it first.")
            } else {
                told
            }
        }
        None => Error::internal(format!("{what}: {cause}.")),
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
