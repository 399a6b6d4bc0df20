//! Where errors of libraries become the contract's, and small things about files that several modules need at the start.

use std::{
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use atoll_contract::{Error, ErrorCode};

/// A defect or a broken disk: logged here, with all there is; told to the caller without it.
pub(crate) fn internal(error: impl Display) -> Error {
    tracing::error!(%error, "an internal error");
    Error::internal("The master failed to do this; its log says why.")
}

/// A file or directory that the master can't use.
pub(crate) fn config_error(path: &Path, error: &dyn Display) -> Error {
    Error::new(ErrorCode::InvalidConfig, format!("The master can't use {}: {error}.", path.display()))
        .mend("Check that the data directory (master.data_dir) belongs to the user that runs the master, and that its disk isn't full.")
}

/// Writes a file that only its owner may read, whole or not at all, and on the disk when this returns.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
