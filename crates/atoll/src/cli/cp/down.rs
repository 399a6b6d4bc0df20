//! From a project.

use std::{
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use atoll_contract::{
    Error, ErrorCode,
    files::{FileEntry, FileKind},
};
use futures_util::{StreamExt, TryStreamExt};
use rustix::fs::{FlockOperation, flock};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::io::StreamReader;

use super::{
    Job, There, fits, pack,
    plan::{RemotePath, Target},
    unpack,
    up::{again, watch},
};
use crate::errors::{self, Result};

/// How often a download goes on after its connection broke.
const ATTEMPTS: u32 = 6;

impl Job {
    pub(super) async fn download(&mut self, sources: &[RemotePath], to: &Target) -> Result<()> {
        let mut found = Vec::new();
        for source in sources {
            found.push(self.find(source).await?);
        }
        match to {
            Target::Stream => {
                for (source, entry) in sources.iter().zip(&found) {
                    self.download_to_stdout(source, entry.as_ref()).await?;
                }
                Ok(())
            }
            Target::Local { path, directory } => {
                let there = local(path)?;
                let into = *directory || sources.len() > 1 || there == There::Directory;
                if into {
                    fits(true, there, &path.display().to_string())?;
                    fs::create_dir_all(path).map_err(|error| errors::io(path.display(), &error))?;
                }
                for (source, entry) in sources.iter().zip(&found) {
                    let target = match source.name() {
                        Some(name) if into => path.join(name),
                        _ => path.clone(),
                    };
                    self.download_local(source, entry.as_ref(), &target).await?;
                }
                Ok(())
            }
        }
    }

    /// What a source is; none stands for the home directory.
    async fn find(&self, source: &RemotePath) -> Result<Option<FileEntry>> {
        if source.path.is_empty() {
            return Ok(None);
        }
        let mut entry = self.files.stat(&source.path).await?.ok_or_else(|| {
            Error::new(ErrorCode::NotFound, format!("There is no {} in the project.", source.path)).mend("See atoll files list.")
        })?;
        if entry.kind == FileKind::Symlink {
            // as cp: a link that is named is followed
            match self.files.follow(&source.path).await? {
                Some((etag, size)) => entry = FileEntry { kind: FileKind::File, etag, size, mode: 0o644, ..entry },
                None => entry.kind = FileKind::Directory,
            }
        }
        if entry.kind == FileKind::Other {
            return Err(Error::invalid(format!("{} is neither a file nor a directory.", source.path)));
        }
        if source.directory && entry.kind != FileKind::Directory {
            return Err(Error::invalid(format!("{} isn't a directory.", source.path)));
        }
        Ok(Some(entry))
    }

    async fn download_local(&mut self, source: &RemotePath, entry: Option<&FileEntry>, target: &Path) -> Result<()> {
        let is_directory = entry.is_none_or(|entry| entry.kind == FileKind::Directory);
        fits(is_directory, local(target)?, &target.display().to_string())?;
        match entry.filter(|_| !is_directory) {
            Some(entry) => self.download_file(&source.path, entry, target).await,
            None => self.download_folder(&source.path, target).await,
        }
    }

    async fn download_folder(&mut self, remote: &str, target: &Path) -> Result<()> {
        fs::create_dir_all(target).map_err(|error| errors::io(target.display(), &error))?;
        let response = self.files.tar(remote).await?;
        let count = pack::Count::default();
        let counter = count.clone();
        let stream = response.bytes_stream().inspect_ok(move |bytes| counter.add(bytes.len() as u64)).map_err(std::io::Error::other);
        let work = unpack::unpack(StreamReader::new(Box::pin(stream)), target);
        let unpacked = watch(work, &mut self.meter, label(remote), &count, None).await?;
        self.count(unpacked.files, unpacked.bytes);
        Ok(())
    }

    /// Into a file beside the target, which then takes its place; from where it broke off if that is there.
    async fn download_file(&mut self, remote: &str, entry: &FileEntry, target: &Path) -> Result<()> {
        let part = part_name(target, &entry.etag);
        let failed = |error: std::io::Error| errors::io(target.display(), &error);
        let finished = claim(&part)?;
        let mut attempt = 1;
        loop {
            match self.download_part(remote, entry, &finished).await {
                Ok(()) => break,
                Err(error) if error.retry && attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(300) * attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
        // no set-user-id bit from a project, whoever runs this
        finished.set_permissions(fs::Permissions::from_mode(entry.mode & 0o777)).map_err(failed)?;
        let modified = std::time::UNIX_EPOCH + std::time::Duration::from_millis(u64::try_from(entry.modified_at.millis()).unwrap_or(0));
        finished.set_modified(modified).map_err(failed)?;
        finished.sync_all().map_err(failed)?;
        fs::rename(&part, target).map_err(failed)?;
        self.meter.reset();
        self.count(1, finished.metadata().map_err(failed)?.len());
        Ok(())
    }

    async fn download_part(&mut self, remote: &str, entry: &FileEntry, part: &fs::File) -> Result<()> {
        let failed = |error: std::io::Error| errors::io(format!("What came of {remote}"), &error);
        let begin = part.metadata().map_err(failed)?.len();
        if begin > 0 && begin == entry.size {
            return Ok(());
        }
        let (begin, response) = self.files.get(remote, Some((&entry.etag, begin))).await?;
        part.set_len(begin).map_err(failed)?;
        let mut file = tokio::fs::File::from_std(part.try_clone().map_err(failed)?);
        tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::End(0)).await.map_err(failed)?;
        let mut done = begin;
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| Error::new(ErrorCode::Unavailable, format!("The download broke off: {error}.")))?;
            file.write_all(&piece).await.map_err(failed)?;
            done += piece.len() as u64;
            self.meter.bytes(remote, done, Some(entry.size.max(done)));
        }
        file.flush().await.map_err(failed)
    }

    async fn download_to_stdout(&mut self, source: &RemotePath, entry: Option<&FileEntry>) -> Result<()> {
        let is_directory = entry.is_none_or(|entry| entry.kind == FileKind::Directory);
        let response = if is_directory {
            again(|| self.files.tar(&source.path)).await?
        } else {
            again(|| self.files.get(&source.path, None)).await?.1
        };
        let count = pack::Count::default();
        let total = entry.filter(|_| !is_directory).map(|entry| entry.size);
        let work = pour(response, tokio::io::stdout(), count.clone());
        watch(work, &mut self.meter, label(&source.path), &count, total).await?;
        self.count(1, count.get());
        Ok(())
    }
}

/// A body to a writer. A reader behind it that has gone has had enough.
async fn pour(response: reqwest::Response, mut to: impl AsyncWrite + Unpin, count: pack::Count) -> Result<()> {
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| Error::new(ErrorCode::Unavailable, format!("The download broke off: {error}.")))?;
        match to.write_all(&piece).await {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|error| errors::io("Standard output", &error))?,
        }
        count.add(piece.len() as u64);
    }
    to.flush().await.map_err(|error| errors::io("Standard output", &error))
}

fn label(remote: &str) -> &str {
    if remote.is_empty() { "home" } else { remote }
}

fn local(path: &Path) -> Result<There> {
    match fs::metadata(path) {
        Ok(about) if about.is_dir() => Ok(There::Directory),
        Ok(_) => Ok(There::File),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(There::Nothing),
        Err(error) => Err(errors::io(path.display(), &error)),
    }
}

/// Opens a part for this process alone: two at once would mix their bytes.
///
/// # Errors
/// `conflict` if another process is at it.
fn claim(part: &Path) -> Result<fs::File> {
    let failed = |error: std::io::Error| errors::io(part.display(), &error);
    loop {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(part).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::new(ErrorCode::Conflict, format!("Another command is copying to {} at this moment.", part.display()))
                    .mend("Wait for it, or copy to another name."));
            }
            Err(error) => return Err(failed(error.into())),
        }
        // between opening and locking, another process may have finished it and given it its name
        let ours = file.metadata().map_err(failed)?.ino();
        if fs::metadata(part).is_ok_and(|there| there.ino() == ours) {
            return Ok(file);
        }
    }
}

/// `.NAME.ETAG.atoll-part` beside the target: a part of another version of the file has another name.
fn part_name(target: &Path, etag: &str) -> PathBuf {
    let tag: String = etag.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{tag}.atoll-part"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join(".a.1.atoll-part");
        let first = claim(&part).unwrap();
        assert_eq!(claim(&part).unwrap_err().code, ErrorCode::Conflict);
        drop(first);
        claim(&part).unwrap();
    }

    #[test]
    fn a_part_belongs_to_one_version() {
        assert_eq!(part_name(Path::new("d/a.txt"), "\"1f-2/x\""), Path::new("d/.a.txt.1f2x.atoll-part"));
        assert_ne!(part_name(Path::new("a"), "\"1\""), part_name(Path::new("a"), "\"2\""));
    }
}
