//! The files of a project's streams: their names, making one so that it is there as a whole or not at all, putting a damaged one aside.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    streams::{MAX_STREAMS, StreamEntry, StreamKind, StreamList, StreamName},
};

use super::fault::Fault;

/// The paths of one stream.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
    /// `log.<name>` or `kv.<name>`
    base: String,
}

impl Files {
    /// `dir` is the folder of all streams of a project; it needn't be there.
    pub(super) fn new(dir: &Path, kind: StreamKind, name: &StreamName) -> Self {
        Self { dir: dir.into(), base: format!("{}.{name}", kind.as_str()) }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn database(&self) -> PathBuf {
        self.with(".db")
    }

    /// What a database is made as; it gets its name when it is whole.
    pub(super) fn draft(&self) -> PathBuf {
        self.with(".new")
    }

    /// Holds the name of the file that was put aside. It stands before that is done, and until someone asks to begin anew.
    fn mark(&self) -> PathBuf {
        self.with(".quarantined")
    }

    fn with(&self, end: &str) -> PathBuf {
        self.dir.join(format!("{}{end}", self.base))
    }

    /// Whether SQLite has left a log beside the file: it wasn't closed in an orderly way.
    pub(super) fn has_wal(&self) -> bool {
        fs::metadata(self.with(".db-wal")).is_ok_and(|data| data.len() > 0)
    }

    /// The file's size, its log included.
    pub(super) fn size(&self) -> u64 {
        let size = |end| fs::metadata(self.with(end)).map_or(0, |data| data.len());
        size(".db") + size(".db-wal")
    }

    /// Whether the stream was put aside; finishes doing so if that was cut off.
    pub(super) fn quarantined(&self) -> Result<Option<String>, Fault> {
        let aside = match fs::read_to_string(self.mark()) {
            Ok(aside) => aside,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if self.database().exists() {
            self.put_aside(&aside)?;
        }
        Ok(Some(aside))
    }

    /// Puts a damaged file aside, with what SQLite keeps beside it. Returns its new name.
    pub(super) fn quarantine(&self, now: Timestamp) -> Result<String, Fault> {
        let aside = format!("{}.damaged-{}", self.base, now.millis());
        let mut mark = File::create(self.mark())?;
        mark.write_all(aside.as_bytes())?;
        mark.sync_all()?;
        sync(&self.dir)?;
        self.put_aside(&aside)?;
        Ok(aside)
    }

    fn put_aside(&self, aside: &str) -> Result<(), Fault> {
        // the log first: a database without its log would be taken for whole
        move_if_there(&self.with(".db-wal"), &self.dir.join(format!("{aside}-wal")))?;
        move_if_there(&self.database(), &self.dir.join(aside))?;
        Ok(sync(&self.dir)?)
    }

    /// Forgets that it was put aside. The file that was stays.
    pub(super) fn reset(&self) -> Result<(), Fault> {
        match fs::remove_file(self.mark()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(sync(&self.dir)?),
        }
    }

    /// Makes the folder if it isn't there, and says whether one more stream may be.
    pub(super) fn prepare(&self) -> Result<(), Fault> {
        match fs::create_dir(&self.dir) {
            Ok(()) => self.dir.parent().map_or(Ok(()), sync)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        if names(&self.dir)?.count() >= MAX_STREAMS {
            let error =
                Error::new(ErrorCode::LimitExceeded, format!("There are {MAX_STREAMS} streams, which is as many as a project may have."));
            return Err(Fault::Limit(error.mend("Delete one.")));
        }
        // a log that a removed database has left would be taken for the new one's
        remove_if_there(&self.with(".db-wal"))?;
        remove_if_there(&self.draft())?;
        Ok(remove_if_there(&self.with(".new-journal"))?)
    }

    /// The draft becomes the database, whatever happens to the machine from here on.
    pub(super) fn publish(&self) -> Result<(), Fault> {
        File::open(self.draft())?.sync_all()?;
        fs::rename(self.draft(), self.database())?;
        Ok(sync(&self.dir)?)
    }

    pub(super) fn remove(&self) -> Result<(), Fault> {
        // the database first: a log without one is no stream
        remove_if_there(&self.database())?;
        remove_if_there(&self.with(".db-wal"))?;
        Ok(sync(&self.dir)?)
    }
}

/// All streams of one kind in a project's folder.
pub(super) fn list(dir: &Path, kind: StreamKind) -> Result<StreamList, Fault> {
    let mut streams = Vec::new();
    for (found, name) in names(dir)? {
        if found == kind {
            let files = Files::new(dir, kind, &name);
            streams.push(StreamEntry { file_bytes: files.size(), quarantined: files.quarantined()?, name });
        }
    }
    streams.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(StreamList { streams })
}

/// The streams in a folder, those that were put aside included, each once.
fn names(dir: &Path) -> Result<impl Iterator<Item = (StreamKind, StreamName)> + use<>, Fault> {
    let mut all = std::collections::BTreeSet::new();
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                let name = entry?.file_name();
                all.extend(name.to_str().and_then(parse));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(all.into_iter())
}

fn parse(file: &str) -> Option<(StreamKind, StreamName)> {
    let base = file.strip_suffix(".db").or_else(|| file.strip_suffix(".quarantined"))?;
    let (kind, name) = base.split_once('.')?;
    let kind = [StreamKind::Log, StreamKind::Kv].into_iter().find(|known| known.as_str() == kind)?;
    Some((kind, name.parse().ok()?))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn move_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
