//! Opens connections: the only place with PRAGMAs.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use rusqlite::{Connection, OpenFlags};

use super::{Durability, Result};

pub(super) fn writer(path: &Path, durability: Durability) -> Result<Connection> {
    // made here so that the file, and with it the log that SQLite puts beside it, is nobody else's to read
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(
        None,
        "synchronous",
        match durability {
            Durability::Synced => "FULL",
            Durability::Written => "NORMAL",
        },
    )?;
    common(&connection)?;
    Ok(connection)
}

pub(super) fn reader(path: &Path) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    common(&connection)?;
    Ok(connection)
}

fn common(connection: &Connection) -> Result<()> {
    connection.pragma_update(None, "foreign_keys", true)?;
    // only for what isn't of this process, such as a backup that reads the file: our writes have one thread
    connection.pragma_update(None, "busy_timeout", 5000)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}
