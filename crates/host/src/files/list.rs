//! Pages of a directory.

use std::{collections::BinaryHeap, ffi::CStr, os::fd::OwnedFd};

use atoll_contract::{
    Access, Read,
    files::{FileList, MAX_PAGE},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::fs::Dir;
use tokio_util::sync::CancellationToken;

use super::{Fault, RelPath, Root, entry::describe, root::stat_at};

impl Root {
    /// One page of a directory in the byte order of names: up to `limit` entries (at most [`MAX_PAGE`]) after the cursor `after`.
    ///
    /// The directory is read once for every page, keeping the `limit` smallest names that are still wanted, so the memory doesn't grow with the
    /// directory. What comes or goes between two pages is in one of them or in none; what stays is in exactly one.
    ///
    /// # Errors
    /// [`Fault::NotFound`], [`Fault::NotDirectory`], [`Fault::Cancelled`], [`Fault::Invalid`] for a cursor that isn't one.
    pub fn list(
        &self,
        _access: &Access<Read>,
        path: &RelPath,
        after: Option<&str>,
        limit: usize,
        cancel: &CancellationToken,
    ) -> Result<FileList, Fault> {
        let after = after.map(decode_cursor).transpose()?;
        let limit = limit.clamp(1, MAX_PAGE);
        let dir = self.directory(path)?;
        let mut names = smallest(&dir, after.as_deref(), limit + 1, cancel)?;
        let more = names.len() > limit;
        names.truncate(limit);
        let next = more.then(|| names.last().map(|name| URL_SAFE_NO_PAD.encode(name))).flatten();
        let mut entries = Vec::with_capacity(names.len());
        for name in &names {
            // a name that has gone since it was read is left out
            if let Some(stat) = stat_at(&dir, name)? {
                entries.push(describe(&dir, name, path.child_url(name), &stat));
            }
        }
        Ok(FileList { entries, next })
    }
}

/// The `count` smallest names after `after`, in order.
fn smallest(dir: &OwnedFd, after: Option<&[u8]>, count: usize, cancel: &CancellationToken) -> Result<Vec<Vec<u8>>, Fault> {
    let mut heap: BinaryHeap<Vec<u8>> = BinaryHeap::with_capacity(count + 1);
    for_each_name(dir, cancel, |name| {
        if after.is_some_and(|after| name <= after) {
            return;
        }
        if heap.len() < count {
            heap.push(name.to_vec());
        } else if let Some(mut largest) = heap.peek_mut()
            && name < largest.as_slice()
        {
            largest.clear();
            largest.extend_from_slice(name);
        }
    })?;
    Ok(heap.into_sorted_vec())
}

fn for_each_name(dir: &OwnedFd, cancel: &CancellationToken, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        if !is_dots(entry.file_name()) {
            take(entry.file_name().to_bytes());
        }
        if cancel.is_cancelled() {
            return Err(Fault::Cancelled);
        }
    }
    Ok(())
}

pub(super) fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn decode_cursor(text: &str) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Fault::Invalid("\"after\" isn't what an earlier page gave as \"next\".".into()))
}
