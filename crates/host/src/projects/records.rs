//! What the host was told, in SQLite: the only SQL of the host.
//!
//! A row of `project` is written before the host acts on it, so after a crash the row is the promise and podman and the volumes are
//! compared with it. A row of `tombstone` outlives its project for good (about 100 bytes each): a late command of a deleted generation must
//! not bring the project back.

use std::{
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, Generation, OperationId, ProjectId, VolumeId, project::ProjectSpec};
use rusqlite::{Connection, OptionalExtension, Row, ffi, params};

use super::state::Wanted;
use crate::join::file_error;

/// A project as the host was told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) generation: Generation,
    pub(crate) spec: ProjectSpec,
    pub(crate) volume: VolumeId,
    /// Whether the volumes were made (or found) and not yet begun to be deleted.
    pub(crate) made: bool,
    pub(crate) wanted: Wanted,
    /// What the agent of the present container proves itself with. None: no container can be adopted.
    pub(crate) secret: Option<String>,
    /// The operation whose start made the present container.
    pub(crate) started_by: Option<OperationId>,
    /// Why it doesn't run although it should.
    pub(crate) failure: Option<Error>,
}

/// Raised by one with every change of the schema, together with a step in [`migrate`].
const SCHEMA: i64 = 1;

#[derive(Clone)]
pub(crate) struct Records(Arc<Mutex<Connection>>);

impl Records {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// `storage_failed`, `disk_full`, and `invalid_config` if a newer version has written it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        // it holds the agents' secrets, so it is made for its owner alone; SQLite gives its other files the same mode
        let made = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| file_error(path, &error))?;
        let mut connection = Connection::open(path).map_err(|error| sql_error(&error))?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(|error| sql_error(&error))?;
        // FULL: what was promised must survive a power failure, a tombstone above all. The cache is small, since rows are read at starts only.
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -256; PRAGMA temp_store = MEMORY;")
            .map_err(|error| sql_error(&error))?;
        migrate(&mut connection)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// All projects, without what only a start needs.
    pub(crate) async fn all(&self) -> Result<Vec<(ProjectId, Record)>, Error> {
        self.run(|connection| {
            let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM project ORDER BY id"))?;
            let rows = statement.query_map([], read)?;
            rows.collect()
        })
        .await
    }

    pub(crate) async fn get(&self, project: ProjectId) -> Result<Option<Record>, Error> {
        self.run(move |connection| {
            let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM project WHERE id = ?1"))?;
            statement.query_row([project.to_string()], read).optional().map(|row| row.map(|(_, record)| record))
        })
        .await
    }

    pub(crate) async fn put(&self, project: ProjectId, record: Record) -> Result<(), Error> {
        self.run(move |connection| {
            let mut statement = connection.prepare_cached(
                "INSERT INTO project (id, generation, spec, volume, made, wanted, secret, started_by, failure)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, spec = excluded.spec, volume = excluded.volume,
                   made = excluded.made, wanted = excluded.wanted, secret = excluded.secret, started_by = excluded.started_by,
                   failure = excluded.failure",
            )?;
            statement.execute(params![
                project.to_string(),
                record.generation.0 as i64,
                json(&record.spec)?,
                record.volume.to_string(),
                record.made,
                record.wanted.as_str(),
                record.secret,
                record.started_by.map(|id| id.to_string()),
                record.failure.as_ref().map(json).transpose()?,
            ])
        })
        .await
        .map(drop)
    }

    /// Forgets a project but for its tombstone.
    pub(crate) async fn bury(&self, project: ProjectId, generation: Generation) -> Result<(), Error> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM project WHERE id = ?1", [project.to_string()])?;
            transaction.execute(
                "INSERT INTO tombstone (id, generation) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET generation = max(generation, excluded.generation)",
                params![project.to_string(), generation.0 as i64],
            )?;
            transaction.commit()
        })
        .await
    }

    /// The generation at which a project was deleted here.
    pub(crate) async fn buried(&self, project: ProjectId) -> Result<Option<Generation>, Error> {
        self.run(move |connection| {
            let mut statement = connection.prepare_cached("SELECT generation FROM tombstone WHERE id = ?1")?;
            let found = statement.query_row([project.to_string()], |row| row.get::<_, i64>(0)).optional()?;
            Ok(found.map(|generation| Generation(generation as u64)))
        })
        .await
    }

    /// Runs on a thread for blocking work: a commit waits for the disk.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static) -> Result<T, Error> {
        let shared = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            // a panic inside leaves SQLite itself consistent: an open transaction is rolled back when it is dropped
            work(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(result) => result.map_err(|error| sql_error(&error)),
            Err(error) => Err(Error::internal(format!("A thread for the host's records ended: {error}."))),
        }
    }

    /// For tests: from here on the database can't grow, as on a full disk.
    #[cfg(test)]
    pub(crate) fn fill(&self, full: bool) {
        let connection = self.0.lock().unwrap();
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        let most = if full { pages } else { 1 << 30 };
        connection.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(())).unwrap();
    }
}

const COLUMNS: &str = "id, generation, spec, volume, made, wanted, secret, started_by, failure";

fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|error| sql_error(&error))?;
    if version > SCHEMA {
        return Err(Error::new(ErrorCode::InvalidConfig, "The host's records were written by a newer version of atoll.")
            .mend("Run that version, or give this host another data directory."));
    }
    if version == SCHEMA {
        return Ok(());
    }
    let make = |connection: &mut Connection| -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE project (
               id TEXT PRIMARY KEY,
               generation INTEGER NOT NULL,
               spec TEXT NOT NULL,           -- JSON
               volume TEXT NOT NULL,
               made INTEGER NOT NULL,
               wanted TEXT NOT NULL,         -- running, stopped
               secret TEXT,
               started_by TEXT,
               failure TEXT                  -- JSON
             ) WITHOUT ROWID;
             CREATE TABLE tombstone (id TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;",
        )?;
        transaction.pragma_update(None, "user_version", SCHEMA)?;
        transaction.commit()
    };
    make(connection).map_err(|error| sql_error(&error))
}

fn read(row: &Row<'_>) -> rusqlite::Result<(ProjectId, Record)> {
    let id = parsed(row, 0)?;
    let record = Record {
        generation: Generation(row.get::<_, i64>(1)? as u64),
        spec: from_json(2, &row.get::<_, String>(2)?)?,
        volume: parsed(row, 3)?,
        made: row.get(4)?,
        wanted: if row.get::<_, String>(5)? == Wanted::Running.as_str() { Wanted::Running } else { Wanted::Stopped },
        secret: row.get(6)?,
        started_by: row.get::<_, Option<String>>(7)?.and_then(|text| text.parse().ok()),
        failure: row.get::<_, Option<String>>(8)?.map(|text| from_json(8, &text)).transpose()?,
    };
    Ok((id, record))
}

fn parsed<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    row.get::<_, String>(column)?
        .parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error)))
}

fn from_json<T: serde::de::DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error)))
}

fn json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn sql_error(error: &rusqlite::Error) -> Error {
    let code = match error.sqlite_error().map(|error| error.extended_code & 0xff) {
        Some(ffi::SQLITE_FULL) => ErrorCode::DiskFull,
        _ => ErrorCode::StorageFailed,
    };
    Error::new(code, format!("The host's records can't be used: {error}.")).mend("Check the host's data directory and its disk.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            generation: Generation(3),
            spec: ProjectSpec {
                name: "p".into(),
                image: "i".into(),
                limits: atoll_contract::project::Limits::default(),
                env: [("A".to_owned(), "b".to_owned())].into(),
            },
            volume: id(9),
            made: true,
            wanted: Wanted::Running,
            secret: Some("s".into()),
            started_by: Some(id(8)),
            failure: Some(Error::internal("x").mend("y")),
        }
    }

    fn id<K: atoll_contract::id::Kind>(n: u8) -> atoll_contract::id::Id<K> {
        format!("0198c0de-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
    }

    #[tokio::test]
    async fn what_is_put_comes_back_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.db");
        let records = Records::open(&path).unwrap();
        records.put(id(1), record()).await.unwrap();
        for name in ["r.db", "r.db-wal", "r.db-shm"] {
            let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.path().join(name)).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let other = Record { wanted: Wanted::Stopped, secret: None, started_by: None, failure: None, made: false, ..record() };
        records.put(id(2), record()).await.unwrap();
        records.put(id(2), other.clone()).await.unwrap();
        drop(records);
        let records = Records::open(&path).unwrap();
        assert_eq!(records.all().await.unwrap(), vec![(id(1), record()), (id(2), other)]);
        assert_eq!(records.get(id(1)).await.unwrap(), Some(record()));
        assert_eq!(records.get(id(3)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_tombstone_stays_and_only_rises() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("r.db")).unwrap();
        records.put(id(1), record()).await.unwrap();
        assert_eq!(records.buried(id(1)).await.unwrap(), None);
        records.bury(id(1), Generation(5)).await.unwrap();
        records.bury(id(1), Generation(4)).await.unwrap();
        assert_eq!(records.get(id(1)).await.unwrap(), None);
        assert_eq!(records.buried(id(1)).await.unwrap(), Some(Generation(5)));
    }

    #[tokio::test]
    async fn a_full_disk_says_so_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("r.db")).unwrap();
        records.put(id(1), record()).await.unwrap();
        records.fill(true);
        let big = Record { secret: Some("x".repeat(100_000)), ..record() };
        assert_eq!(records.put(id(1), big.clone()).await.unwrap_err().code, ErrorCode::DiskFull);
        assert_eq!(records.get(id(1)).await.unwrap(), Some(record()));
        records.fill(false);
        records.put(id(1), big).await.unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.db");
        drop(Records::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", SCHEMA + 1).unwrap();
        assert_eq!(Records::open(&path).err().unwrap().code, ErrorCode::InvalidConfig);
    }
}
