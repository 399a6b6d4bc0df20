//! What goes wrong below a stream, and what that means.

use std::{io, path::Path};

use atoll_contract::{Error, ErrorCode};
use rusqlite::ffi;

/// Why a file couldn't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// There is no such stream.
    #[error("there is no such stream")]
    Missing,
    /// What is in the file isn't what was written.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// It was damaged and put aside, and nobody has asked to begin anew.
    #[error("the file was damaged and put aside as {0:?}")]
    Quarantined(String),
    /// Written by a later version of this program.
    #[error("the file was written by a newer version")]
    Newer,
    #[error("{0}")]
    Limit(Error),
    #[error("the disk is full")]
    Full,
    #[error("{0}")]
    Io(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error().map(|error| error.extended_code & 0xff) {
            // none: no call of SQLite failed, but a value isn't of the type, or a row isn't there, that this program wrote
            Some(ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB) | None => Self::Damaged(error.to_string()),
            Some(ffi::SQLITE_FULL) => Self::Full,
            Some(_) => Self::Io(error.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull => Self::Full,
            _ => Self::Io(error.to_string()),
        }
    }
}

impl Fault {
    /// As it is told to who asked. `dir` is where the stream's file is: SQLite doesn't say whether it was a quota that an I/O error came from.
    pub(super) fn to_error(&self, what: &str, dir: &Path) -> Error {
        match self {
            Self::Missing => Error::new(ErrorCode::NotFound, format!("There is no {what}.")).mend("The first append or put makes it."),
            Self::Damaged(why) => storage(what, why).mend("It is put aside, and `reset` begins it anew. Look at the disk."),
            Self::Quarantined(file) => storage(what, &format!("it was damaged, and its file was put aside as {file:?}"))
                .mend("Rescue what is in that file, then begin anew with a request to `reset`.")
                .details(serde_json::json!({ "quarantined": file })),
            Self::Newer => {
                Error::new(ErrorCode::Unsupported, format!("The {what} was written by a newer version of atoll.")).mend("Run that version.")
            }
            Self::Limit(error) => error.clone(),
            Self::Full => full(what),
            Self::Io(why) => match probe(dir).err() {
                Some(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
                    Error::new(ErrorCode::QuotaExceeded, format!("The {what} can't grow: the project's disk limit is reached."))
                        .mend("Delete something in the project, or raise its limit.")
                }
                Some(error) if error.kind() == io::ErrorKind::StorageFull => full(what),
                _ => storage(what, why).mend("Look at the host's log and its disk."),
            },
        }
    }
}

fn storage(what: &str, why: &str) -> Error {
    Error::new(ErrorCode::StorageFailed, format!("The {what} can't be used: {why}."))
}

fn full(what: &str) -> Error {
    Error::new(ErrorCode::DiskFull, format!("The {what} can't grow: the host's disk is full.")).mend("Free space on the host's disk.")
}

/// Tries to write a few blocks where the stream is, and takes them away again.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(".probe");
    let written = std::fs::write(&path, [1; 16 << 10]).and_then(|()| std::fs::File::open(&path)?.sync_all());
    let _ = std::fs::remove_file(&path);
    written
}
