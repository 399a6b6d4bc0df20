//! A local folder as a tar stream, made while it is sent. Symlinks stay symlinks; sockets, pipes and devices are left out and named.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use atoll_contract::{Error, ErrorCode};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_tar::{Builder, EntryType, Header};
use tokio_util::io::ReaderStream;

use crate::errors::{self, Result};

/// Between the packing and the sending.
const BUFFER: usize = 256 << 10;

/// Bytes that have gone through so far.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Something that is filled while the work goes on and taken afterwards.
#[derive(Debug, Default)]
pub struct Later<T>(Arc<Mutex<T>>);

impl<T: Default> Later<T> {
    pub fn take(&self) -> T {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<T> Clone for Later<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A reader as a body, with a count of what was read.
pub fn counted(reader: impl AsyncRead + Send + 'static) -> (impl Stream<Item = io::Result<Bytes>> + Send + 'static, Count) {
    let count = Count::default();
    let counter = count.clone();
    let stream = ReaderStream::with_capacity(reader, 64 << 10).inspect(move |piece| {
        if let Ok(bytes) = piece {
            counter.add(bytes.len() as u64);
        }
    });
    (stream, count)
}

/// What a folder has in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files and symlinks.
    pub files: u64,
    pub bytes: u64,
}

/// Counts, so that progress has an end. What can't be read is said here, before anything is sent.
pub fn totals(root: &Path) -> Result<Totals> {
    let mut totals = Totals::default();
    for found in Walk::new(root.to_owned()) {
        let found = found?;
        if found.kind != Kind::Directory && found.kind != Kind::Other {
            totals.files += 1;
            totals.bytes += if found.kind == Kind::File { found.about.len() } else { 0 };
        }
    }
    Ok(totals)
}

/// A folder on its way.
pub struct Packed {
    pub stream: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    /// Bytes of files that were packed.
    pub bytes: Count,
    /// Why the stream broke off.
    pub failure: Later<Option<Error>>,
    pub skipped: Later<Vec<PathBuf>>,
}

/// Packs what is in `root`, with names from there on; `root` itself isn't in it.
pub fn pack(root: PathBuf) -> Packed {
    let (writer, reader) = tokio::io::duplex(BUFFER);
    let (bytes, failure, skipped) = (Count::default(), Later::<Option<Error>>::default(), Later::<Vec<PathBuf>>::default());
    let (count, left_out, failed) = (bytes.clone(), skipped.clone(), failure.clone());
    tokio::spawn(async move {
        if let Err(error) = write(root, writer, &count, &left_out).await {
            failed.change(|slot| *slot = Some(error));
        }
    });
    // a folder that couldn't be packed must not look like one that has ended
    let check = failure.clone();
    let end = stream::once(async move {
        let mut failed = None;
        check.change(|slot| failed = slot.as_ref().map(|error| io::Error::other(error.message.clone())));
        failed.map(Err)
    });
    let stream = ReaderStream::with_capacity(reader, 64 << 10).chain(end.filter_map(std::future::ready));
    Packed { stream: Box::pin(stream), bytes, failure, skipped }
}

async fn write(root: PathBuf, writer: DuplexStream, count: &Count, skipped: &Later<Vec<PathBuf>>) -> Result<()> {
    let mut builder = Builder::new_non_terminated(writer);
    for found in Walk::new(root) {
        let found = found?;
        if found.kind == Kind::Other {
            skipped.change(|list| list.push(found.path));
            continue;
        }
        append(&mut builder, &found, count).await.map_err(|error| errors::io(found.path.display(), &error))?;
    }
    let ended = async {
        builder.finish().await?;
        builder.into_inner().await?.shutdown().await
    };
    ended.await.map_err(|error| errors::io("The folder's stream", &error))
}

async fn append(builder: &mut Builder<DuplexStream>, found: &Found, count: &Count) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(found.about.mode() & 0o777);
    header.set_mtime(u64::try_from(found.about.mtime()).unwrap_or(0));
    // whose they are is decided by the host
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match found.kind {
        Kind::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, &found.name, tokio::io::empty()).await
        }
        Kind::Symlink => {
            header.set_entry_type(EntryType::Symlink);
            append_link(builder, &mut header, &found.name, &fs::read_link(&found.path)?).await
        }
        _ => {
            let file = tokio::fs::File::open(&found.path).await?;
            let size = file.metadata().await?.len();
            header.set_entry_type(EntryType::Regular);
            header.set_size(size);
            let mut exact = Exact { file, left: size, count: count.clone() };
            builder.append_data(&mut header, &found.name, &mut exact).await
        }
    }
}

/// The header of a link has room for 100 bytes; longer targets go before it as GNU tar does it.
async fn append_link(builder: &mut Builder<DuplexStream>, header: &mut Header, name: &Path, target: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    if header.set_link_name(target).is_err() {
        let bytes = [target.as_os_str().as_bytes(), b"\0"].concat();
        let mut long = Header::new_gnu();
        long.set_path("././@LongLink")?;
        long.set_mode(0o644);
        long.set_size(bytes.len() as u64);
        long.set_entry_type(EntryType::GNULongLink);
        long.set_cksum();
        builder.append(&long, bytes.as_slice()).await?;
    }
    builder.append_data(header, name, tokio::io::empty()).await
}

/// Reads just so many bytes: the archive has said the size already, so a file that became shorter is an error and one that grew is cut.
struct Exact {
    file: tokio::fs::File,
    left: u64,
    count: Count,
}

impl AsyncRead for Exact {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Ok(()));
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.remaining());
        let mut part = buffer.take(most);
        std::task::ready!(Pin::new(&mut self.file).poll_read(context, &mut part))?;
        let read = part.filled().len();
        if read == 0 && most > 0 {
            return Poll::Ready(Err(io::Error::other("it became shorter while it was copied")));
        }
        // the part is the same memory as the buffer's rest, which its own filling doesn't tell the buffer
        let filled = part.filled().to_vec();
        buffer.put_slice(&filled);
        self.left -= read as u64;
        self.count.add(read as u64);
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Symlink,
    Other,
}

struct Found {
    path: PathBuf,
    /// From the root on.
    name: PathBuf,
    about: fs::Metadata,
    kind: Kind,
}

/// Everything beneath a directory, each directory before what is in it, names in order. One directory's names are held at a time for each level.
struct Walk {
    root: PathBuf,
    /// What is still to be visited, the next one last.
    rest: Vec<PathBuf>,
    started: bool,
}

impl Walk {
    fn new(root: PathBuf) -> Self {
        Self { root, rest: Vec::new(), started: false }
    }

    fn enter(&mut self, directory: &Path) -> Result<()> {
        let failed = |error: io::Error| errors::io(directory.display(), &error);
        let entries: io::Result<Vec<PathBuf>> =
            fs::read_dir(directory).map_err(failed)?.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut entries = entries.map_err(failed)?;
        entries.sort_unstable_by(|a, b| b.cmp(a));
        self.rest.append(&mut entries);
        Ok(())
    }

    fn visit(&mut self, path: PathBuf) -> Result<Option<Found>> {
        let about = match fs::symlink_metadata(&path) {
            Ok(about) => about,
            // removed since its directory was read
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(errors::io(path.display(), &error)),
        };
        let kind = match about.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            _ => Kind::Other,
        };
        if kind == Kind::Directory {
            self.enter(&path)?;
        }
        let name = path.strip_prefix(&self.root).map_err(|_| Error::new(ErrorCode::Internal, "A folder's walk left it."))?.to_owned();
        Ok(Some(Found { path, name, about, kind }))
    }
}

impl Iterator for Walk {
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.started {
            self.started = true;
            if let Err(error) = self.enter(&self.root.clone()) {
                return Some(Err(error));
            }
        }
        loop {
            let path = self.rest.pop()?;
            match self.visit(path) {
                Ok(None) => {}
                Ok(Some(found)) => return Some(Ok(found)),
                Err(error) => {
                    self.rest.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
