//! To a project.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use atoll_contract::{Error, ErrorCode};
use bytes::Bytes;

use super::{
    Job, There, fits, pack,
    plan::{RemotePath, Source},
    resume::Resume,
};
use crate::{
    client::{Body, Files, UPLOAD_CHUNK},
    errors::{self, Result},
    values::human_size,
};

/// Files beyond this go as an upload that can be resumed; smaller ones are sent again as a whole.
const RESUMABLE: u64 = 8 << 20;
/// How often a piece is tried again when the connection breaks, with pauses that double from the first.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(300);

impl Job {
    pub(super) async fn upload(&mut self, sources: &[Source], to: &RemotePath) -> Result<()> {
        // all that can be seen to be wrong here is said before anything is sent
        for source in sources {
            if let Source::Local { path, .. } = source {
                look(path)?;
            }
        }
        let there = self.there(&to.path).await?;
        let into = to.directory || sources.len() > 1 || there == There::Directory;
        if into {
            fits(true, there, &to.path)?;
        }
        for source in sources {
            let path = match source.name() {
                Some(name) if into => to.join(&name),
                _ => to.path.clone(),
            };
            match source {
                Source::Stream => self.upload_stream(&path, there).await?,
                Source::Local { path: local, .. } => self.upload_local(local, &path).await?,
            }
        }
        Ok(())
    }

    async fn there(&self, path: &str) -> Result<There> {
        if path.is_empty() {
            return Ok(There::Directory);
        }
        Ok(self.files.stat(path).await?.map_or(There::Nothing, |entry| There::of(entry.kind)))
    }

    async fn upload_local(&mut self, local: &Path, remote: &str) -> Result<()> {
        let about = look(local)?;
        let there = self.there(remote).await?;
        fits(about.is_dir(), there, remote)?;
        if about.is_dir() {
            self.upload_folder(local, remote).await
        } else if about.len() > RESUMABLE {
            self.upload_large(local, remote).await
        } else {
            self.upload_small(local, remote).await
        }
    }

    async fn upload_stream(&mut self, remote: &str, there: There) -> Result<()> {
        fits(false, there, remote)?;
        let (body, count) = pack::counted(tokio::io::stdin());
        let sent = self.files.put(remote, None, Body::wrap_stream(body));
        watch(sent, &mut self.meter, remote, &count, None).await?;
        self.count(1, count.get());
        Ok(())
    }

    async fn upload_small(&mut self, local: &Path, remote: &str) -> Result<()> {
        let mut content = Vec::new();
        let file = fs::File::open(local).map_err(|error| errors::io(local.display(), &error))?;
        let about = file.metadata().map_err(|error| errors::io(local.display(), &error))?;
        // a file that grows meanwhile is cut off where it was
        file.take(RESUMABLE).read_to_end(&mut content).map_err(|error| errors::io(local.display(), &error))?;
        let (content, mode) = (Bytes::from(content), about.permissions().mode() & 0o777);
        let size = content.len() as u64;
        self.meter.bytes(remote, 0, Some(size));
        again(|| self.files.put(remote, Some(mode), Body::from(content.clone()))).await?;
        self.meter.reset();
        self.count(1, size);
        Ok(())
    }

    /// In pieces, from where an earlier attempt of this same file broke off.
    async fn upload_large(&mut self, local: &Path, remote: &str) -> Result<()> {
        let mut file = fs::File::open(local).map_err(|error| errors::io(local.display(), &error))?;
        let about = file.metadata().map_err(|error| errors::io(local.display(), &error))?;
        let size = about.len();
        let mut resume = Resume::load(&self.files.key(remote), local, &about);
        let (upload, mut offset) = self.begin(&mut resume, remote, &about).await?;
        if offset > 0 {
            self.meter.say(&format!("{remote}: {} are there from an earlier attempt; going on from there.", human_size(offset)));
        }
        let mut placed = false;
        while offset < size {
            self.meter.bytes(remote, offset, Some(size));
            let piece = read_piece(&mut file, local, offset, size)?;
            let files = &self.files;
            offset = match again(|| files.upload_patch(&upload, offset, piece.clone())).await {
                Ok(offset) => {
                    placed = offset == size;
                    offset
                }
                // an answer was lost, and the server has more than we know
                Err(error) if error.code == ErrorCode::Conflict => again(|| files.upload_offset(&upload)).await?,
                Err(error) => return Err(error),
            };
            if offset > size {
                return Err(Error::internal(format!("The host has {offset} bytes of {remote}, which has {size}.")));
            }
        }
        if !placed {
            // all of it is there, but nobody has said yet that it has taken the file's place: an empty piece at the end makes sure of it
            let files = &self.files;
            again(|| files.upload_patch(&upload, size, Bytes::new())).await?;
        }
        resume.forget();
        self.meter.reset();
        self.count(1, size);
        Ok(())
    }

    async fn begin(&self, resume: &mut Resume, remote: &str, about: &fs::Metadata) -> Result<(String, u64)> {
        if let Some(upload) = resume.upload() {
            match again(|| self.files.upload_offset(&upload)).await {
                Ok(offset) => return Ok((upload, offset)),
                // it has expired, or the project has moved: from the beginning
                Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::Forbidden | ErrorCode::InvalidArgument) => {}
                Err(error) => return Err(error),
            }
        }
        let upload = self.files.upload_create(remote, about.len(), about.permissions().mode() & 0o777).await?;
        resume.remember(&upload);
        Ok((upload, 0))
    }

    async fn upload_folder(&mut self, local: &Path, remote: &str) -> Result<()> {
        let totals = pack::totals(local)?;
        let packed = pack::pack(local.to_owned());
        let count = packed.bytes.clone();
        let sent = self.files.untar(remote, Body::wrap_stream(packed.stream));
        let label = if remote.is_empty() { "home" } else { remote };
        let outcome = watch(sent, &mut self.meter, label, &count, Some(totals.bytes)).await;
        // what was wrong here is more than the host's word that the stream broke off
        if let Some(error) = packed.failure.take() {
            return Err(error);
        }
        outcome?;
        for skipped in packed.skipped.take() {
            self.meter.say(&format!("Left out {}: neither a file, a directory nor a symlink.", skipped.display()));
        }
        self.count(totals.files, count.get());
        Ok(())
    }

    pub(super) fn count(&mut self, files: u64, bytes: u64) {
        self.copied.files += files;
        self.copied.bytes += bytes;
    }
}

/// Shows the count while the work goes on.
pub(super) async fn watch<T>(
    work: impl Future<Output = Result<T>>,
    meter: &mut crate::output::progress::Meter,
    what: &str,
    count: &pack::Count,
    total: Option<u64>,
) -> Result<T> {
    tokio::pin!(work);
    let mut tick = tokio::time::interval(Duration::from_millis(150));
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            _ = tick.tick() => meter.bytes(what, count.get(), total),
        }
    };
    meter.reset();
    outcome
}

/// Tries again what may succeed later by itself.
pub(super) async fn again<T, F: Future<Output = Result<T>>>(attempt: impl Fn() -> F) -> Result<T> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match attempt().await {
            Err(error) if error.retry => tokio::time::sleep(pause).await,
            other => return other,
        }
        pause *= 2;
    }
    attempt().await
}

fn look(local: &Path) -> Result<fs::Metadata> {
    // as cp: a link that is named is followed, one inside a folder is copied as a link
    let about = fs::metadata(local).map_err(|error| errors::io(local.display(), &error))?;
    if about.is_file() || about.is_dir() {
        Ok(about)
    } else {
        Err(Error::invalid(format!("{} is neither a file nor a directory.", local.display())).mend("Pipes are read with - as the source."))
    }
}

fn read_piece(file: &mut fs::File, local: &Path, offset: u64, size: u64) -> Result<Bytes> {
    let want = UPLOAD_CHUNK.min(size - offset);
    let mut piece = Vec::with_capacity(want as usize);
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(want).read_to_end(&mut piece));
    read.map_err(|error| errors::io(local.display(), &error))?;
    if (piece.len() as u64) < want {
        return Err(Error::new(ErrorCode::Conflict, format!("{} became shorter while it was copied.", local.display()))
            .mend("Copy it again when nothing changes it."));
    }
    Ok(piece.into())
}

impl Files {
    /// What identifies a destination across runs of the program.
    fn key(&self, remote: &str) -> String {
        format!("{} {} {remote}", self.master_url(), self.project())
    }
}

/// A file's identity for resuming: another size or time is another file.
pub(super) fn fingerprint(about: &fs::Metadata) -> String {
    format!("{}-{}.{}-{}", about.len(), about.mtime(), about.mtime_nsec(), about.ino())
}
