//! One stream's file: opening, making, reading. Writing is in [`super::write`].
//!
//! SQLite in WAL mode with `synchronous = FULL`: a commit returns after its pages are in the log file and fsync(2) of it has returned, and
//! after a crash the log is replayed up to its last whole commit (each frame has a checksum that covers all before it). So what was acknowledged
//! survives kill -9 and power cut, on a disk that does what fsync asks. The file's own entry in its folder is made to last when it is made.

use std::{sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    streams::{
        DEFAULT_HISTORY, KeyView, Keys, MAX_PAGE_BYTES, MAX_PAGE_KEYS, StreamConfig, StreamInfo, StreamKind, StreamName, key_matches,
    },
};
use bytes::{Bytes, BytesMut};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    fault::Fault,
    files::Files,
    packed::{RecordRef, packed_sequence},
};

/// Raised by one with every change of the schema, together with a step in [`migrate`] that brings older files up to it.
const SCHEMA: i64 = 2;
/// A file up to this size is looked through as a whole after it wasn't closed in an orderly way; that takes some tens of milliseconds.
const CHECKED_BYTES: u64 = 8 << 20;
/// Rows looked at for one answer about keys.
const SCANNED_KEYS: usize = 20_000;

/// Which records are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadQuery {
    pub from: Option<u64>,
    /// Instead of `from`: so many sequences before the end.
    pub last: Option<u64>,
    pub max_count: u32,
    pub max_bytes: u32,
    /// Only the newest revision of each key.
    pub latest: bool,
    /// Only this key.
    pub key: Option<String>,
}

/// Records, packed, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedPage {
    pub stream: Arc<str>,
    pub first: u64,
    pub last: u64,
    /// Read on from here.
    pub next: u64,
    pub records: Bytes,
}

/// An open stream.
pub(super) struct Db {
    pub(super) connection: Connection,
    files: Files,
    kind: StreamKind,
    name: StreamName,
    pub(super) stream: Arc<str>,
    created: Timestamp,
    pub(super) config: StreamConfig,
    pub(super) state: State,
    /// What whoever read last will ask for next, and then that page.
    wanted: Option<ReadQuery>,
    ahead: Option<Ahead>,
}

/// A page that was read before it was asked for. Whoever replays a log gets one page while the file is read for the next.
struct Ahead {
    query: ReadQuery,
    page: PackedPage,
    /// Bounds how many there are in memory.
    _permit: OwnedSemaphorePermit,
}

/// What is known of the records without reading them; goes back to what it was if a transaction fails.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// Of a log: the oldest record that is kept, `last + 1` if there is none.
    pub(super) first: u64,
    /// When it was written.
    pub(super) first_time: i64,
    pub(super) last: u64,
    pub(super) last_time: i64,
    /// Bytes of all records of a log that there ever were, and of those that aren't kept any more. Both stand in the records themselves, so that
    /// an append needn't write anything else.
    pub(super) total: u64,
    pub(super) gone: u64,
    /// Of a kv.
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) keys: u64,
    /// Of a kv: the newest revision of a deletion that was forgotten. Who has read no further must begin anew.
    pub(super) floor: u64,
    /// When ids and, of a kv, old revisions were last looked through, and how many writes with an id came since then.
    pub(super) swept: i64,
    pub(super) ids: u64,
}

impl Db {
    /// Opens a stream's file, or makes it.
    pub(super) fn open(files: Files, kind: StreamKind, name: &StreamName, create: Option<(&str, Timestamp)>) -> Result<Self, Fault> {
        if let Some(aside) = files.quarantined()? {
            return Err(Fault::Quarantined(aside));
        }
        match (files.database().try_exists()?, create) {
            (false, None) => return Err(Fault::Missing),
            (false, Some((stream, now))) => {
                files.prepare()?;
                make(&files, kind, stream, now)?;
            }
            (true, _) => {}
        }
        let unclean = files.has_wal();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(files.database(), flags)?;
        // a program that was told to end may still be closing it
        connection.busy_timeout(Duration::from_secs(5))?;
        // nobody else opens the file, so it needs no shared memory and no locks; the cache is small, since there may be hundreds
        connection.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -512;
             PRAGMA temp_store = MEMORY; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;",
        )?;
        connection.set_prepared_statement_cache_capacity(32);
        if unclean {
            recover(&connection, files.size())?;
        }
        load(connection, files, kind, name.clone())
    }

    pub(super) fn kind(&self) -> StreamKind {
        self.kind
    }

    /// Closes the file in an orderly way: what is in its log goes into it, and the log is removed.
    pub(super) fn close(self) -> Result<(), Fault> {
        self.connection.close().map_err(|(_, error)| error.into())
    }

    /// Revisions of a key that are kept.
    pub(super) fn history(&self) -> u32 {
        self.config.history.unwrap_or(DEFAULT_HISTORY)
    }

    fn first(&self) -> Result<u64, Fault> {
        match self.kind {
            StreamKind::Log => Ok(self.state.first),
            StreamKind::Kv => {
                let mut statement = self.connection.prepare_cached("SELECT min(sequence) FROM record")?;
                let first: Option<i64> = statement.query_row([], |row| row.get(0))?;
                Ok(first.map_or(self.state.last + 1, |first| first as u64))
            }
        }
    }

    pub(super) fn info(&self) -> Result<StreamInfo, Fault> {
        let (state, first_sequence) = (&self.state, self.first()?);
        let of_log = self.kind == StreamKind::Log;
        Ok(StreamInfo {
            stream: self.stream.to_string(),
            kind: self.kind,
            name: self.name.clone(),
            created_at: self.created,
            first_sequence,
            last_sequence: state.last,
            records: if of_log { state.last + 1 - state.first } else { state.records },
            bytes: if of_log { state.total - state.gone } else { state.bytes },
            keys: (!of_log).then_some(state.keys),
            file_bytes: self.files.size(),
            config: self.config.clone(),
        })
    }

    /// A page of records, within the query's bounds; at least one record if there is one.
    pub(super) fn read(&mut self, query: &ReadQuery) -> Result<Result<PackedPage, Error>, Fault> {
        let (first, last) = (self.first()?, self.state.last);
        let page = match self.ahead.take().filter(|ahead| ahead.query == *query && query.from.is_some_and(|from| from >= first)) {
            // its records are what they were; there may be more behind them
            Some(ahead) => Ok(PackedPage { first, last, ..ahead.page }),
            None => self.look_up(query, first, last)?,
        };
        if let Ok(page) = &page {
            let goes_on = self.kind == StreamKind::Log && page.next <= last;
            self.wanted = goes_on.then(|| ReadQuery { from: Some(page.next), last: None, ..query.clone() });
        }
        Ok(page)
    }

    /// Reads what will be asked for next, if somebody reads a log that goes on.
    pub(super) fn read_ahead(&mut self, permit: impl FnOnce() -> Option<OwnedSemaphorePermit>) -> Result<(), Fault> {
        let Some(query) = self.wanted.take() else { return Ok(()) };
        let Some(permit) = permit() else { return Ok(()) };
        let (first, last) = (self.first()?, self.state.last);
        self.ahead = self.look_up(&query, first, last)?.ok().map(|page| Ahead { query, page, _permit: permit });
        Ok(())
    }

    fn look_up(&self, query: &ReadQuery, first: u64, last: u64) -> Result<Result<PackedPage, Error>, Fault> {
        let from = match (query.last, query.from) {
            (Some(count), _) => (last + 1).saturating_sub(count),
            (None, from) => from.unwrap_or(0),
        };
        if self.kind == StreamKind::Kv && query.key.is_none() && from > 1 && from <= self.state.floor {
            let message = format!("Deletions up to revision {} are forgotten, and {from} is before that.", self.state.floor);
            return Ok(Err(Error::new(ErrorCode::Conflict, message)
                .mend("Read again from 1.")
                .details(serde_json::json!({ "floor": self.state.floor }))));
        }
        let newest = "NOT EXISTS (SELECT 1 FROM record AS newer WHERE newer.key = record.key AND newer.sequence > record.sequence)";
        let sql = match (&query.key, query.latest) {
            (Some(_), _) => format!("{SELECT} WHERE key = ?2 AND sequence >= ?1 ORDER BY sequence"),
            (None, true) => format!("{SELECT} WHERE sequence >= ?1 AND {newest} ORDER BY sequence"),
            (None, false) => format!("{SELECT} WHERE sequence >= ?1 ORDER BY sequence"),
        };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let start = i64::try_from(from).unwrap_or(i64::MAX);
        let mut rows = match &query.key {
            Some(key) => statement.query(params![start, key])?,
            None => statement.query([start])?,
        };
        let (mut records, mut count, mut next) = (BytesMut::new(), 0, last + 1);
        while let Some(row) = rows.next()? {
            let (sequence, record) = packed(row)?;
            if count > 0 && (count >= query.max_count || records.len() + record.len() > query.max_bytes as usize) {
                next = sequence;
                break;
            }
            records.extend_from_slice(record);
            count += 1;
        }
        Ok(Ok(PackedPage { stream: self.stream.clone(), first, last, next: next.max(from), records: records.freeze() }))
    }

    /// A key's value, as a page of one record; of none if there is no such revision.
    pub(super) fn get(&self, key: &str, revision: Option<u64>) -> Result<PackedPage, Fault> {
        let sql = match revision {
            Some(_) => format!("{SELECT} WHERE key = ?1 AND sequence = ?2"),
            None => format!("{SELECT} WHERE key = ?1 AND sequence <= ?2 ORDER BY sequence DESC LIMIT 1"),
        };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let most = revision.map_or(i64::MAX, |revision| i64::try_from(revision).unwrap_or(i64::MAX));
        let mut rows = statement.query(params![key, most])?;
        let mut records = BytesMut::new();
        if let Some(row) = rows.next()? {
            records.extend_from_slice(packed(row)?.1);
        }
        let last = self.state.last;
        Ok(PackedPage { stream: self.stream.clone(), first: 0, last, next: last + 1, records: records.freeze() })
    }

    /// The keys that have a value, in order, after one.
    pub(super) fn keys(&self, pattern: Option<&str>, after: &str, max_count: u32) -> Result<Keys, Fault> {
        // as SQLite has it, the other columns are those of the row with the greatest sequence
        let sql = "SELECT key, max(sequence), time, deleted FROM record WHERE key > ?1 GROUP BY key ORDER BY key";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([after])?;
        let (mut keys, mut next, mut scanned) = (Vec::new(), None, 0);
        while let Some(row) = rows.next()? {
            scanned += 1;
            let key = row.get_ref(0)?.as_str().map_err(|error| Fault::Damaged(error.to_string()))?;
            if !row.get::<_, bool>(3)? && pattern.is_none_or(|pattern| key_matches(pattern, key)) {
                let time = Timestamp::from_millis(row.get(2)?);
                keys.push(KeyView { key: key.into(), revision: row.get::<_, i64>(1)? as u64, time });
            }
            if keys.len() >= max_count.clamp(1, MAX_PAGE_KEYS) as usize || scanned >= SCANNED_KEYS {
                next = Some(key.to_owned());
                break;
            }
        }
        Ok(Keys { stream: self.stream.to_string(), last_sequence: self.state.last, keys, next })
    }

    /// For tests: from here on the file can't grow, as on a full disk.
    #[cfg(test)]
    pub(super) fn fill(&self, full: bool) {
        let pages: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        let most = if full { pages } else { 1 << 30 };
        self.connection.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(())).unwrap();
    }
}

const SELECT: &str = "SELECT packed FROM record";

/// A record's sequence and the bytes that it has in a page.
fn packed<'a>(row: &'a Row<'_>) -> Result<(u64, &'a [u8]), Fault> {
    let record = row.get_ref(0)?.as_blob().map_err(|error| Fault::Damaged(error.to_string()))?;
    // what was stored is in its form and fits into a page; anything else was changed behind this program's back
    match packed_sequence(record).filter(|_| record.len() <= MAX_PAGE_BYTES as usize) {
        Some(sequence) => Ok((sequence, record)),
        None => Err(Fault::Damaged("a record isn't in the form that was stored".into())),
    }
}

const RECORD_TABLE: &str = "
    CREATE TABLE record (
      sequence INTEGER PRIMARY KEY,
      time INTEGER NOT NULL,
      size INTEGER NOT NULL,          -- bytes of key, headers and data
      total INTEGER,                  -- of a log: the sum of all sizes up to here
      key TEXT,                       -- of a kv
      deleted INTEGER NOT NULL,
      packed BLOB NOT NULL            -- the record as a page has it: a replay copies it and looks at nothing else
    );";
const KEY_INDEX: &str = "CREATE INDEX record_of_key ON record (key, sequence);";
pub(super) const INSERT: &str =
    "INSERT INTO record (sequence, time, size, total, key, deleted, packed) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Makes a whole database under another name, so that one that is there is never half made.
fn make(files: &Files, kind: StreamKind, stream: &str, now: Timestamp) -> Result<(), Fault> {
    let connection = Connection::open(files.draft())?;
    connection.execute_batch(
        "PRAGMA journal_mode = DELETE;
         BEGIN;
         CREATE TABLE meta (
           id INTEGER PRIMARY KEY CHECK (id = 1),
           kind TEXT NOT NULL,             -- log, kv
           stream TEXT NOT NULL,           -- the identity that is told to clients
           created INTEGER NOT NULL,
           config TEXT NOT NULL,           -- JSON
           last INTEGER NOT NULL,          -- of a log: brought up to date when records are removed
           last_time INTEGER NOT NULL,
           total INTEGER NOT NULL,
           records INTEGER NOT NULL,       -- of a kv from here on
           bytes INTEGER NOT NULL,
           keys INTEGER NOT NULL,
           floor INTEGER NOT NULL
         );
         CREATE TABLE seen (               -- ids of messages
           id TEXT PRIMARY KEY,
           sequence INTEGER NOT NULL,
           time INTEGER NOT NULL
         ) WITHOUT ROWID;",
    )?;
    connection.execute_batch(RECORD_TABLE)?;
    if kind == StreamKind::Kv {
        connection.execute_batch(KEY_INDEX)?;
    }
    connection
        .execute("INSERT INTO meta VALUES (1, ?1, ?2, ?3, '{}', 0, 0, 0, 0, 0, 0, 0)", params![kind.as_str(), stream, now.millis()])?;
    connection.pragma_update(None, "user_version", SCHEMA)?;
    connection.execute_batch("COMMIT; PRAGMA journal_mode = WAL;")?;
    connection.close().map_err(|(_, error)| error)?;
    files.publish()
}

/// After an end that wasn't orderly: moves what is in the log into the file, so that nothing that is written from here on stands after frames
/// of a commit that failed, and looks for damage where that is cheap.
fn recover(connection: &Connection, size: u64) -> Result<(), Fault> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    if size <= CHECKED_BYTES {
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Err(Fault::Damaged(found));
        }
    }
    Ok(())
}

fn load(connection: Connection, files: Files, kind: StreamKind, name: StreamName) -> Result<Db, Fault> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > SCHEMA {
        return Err(Fault::Newer);
    }
    if version < SCHEMA {
        migrate(&connection, version, kind)?;
    }
    let meta = "SELECT kind, stream, created, config, last, last_time, total, records, bytes, keys, floor FROM meta";
    let (kept, stream, created, config, mut state) = connection.query_row(meta, [], |row| {
        let number = |column| row.get::<_, i64>(column).map(|number| number as u64);
        let state = State {
            last: number(4)?,
            last_time: row.get(5)?,
            total: number(6)?,
            records: number(7)?,
            bytes: number(8)?,
            keys: number(9)?,
            floor: number(10)?,
            ..State::default()
        };
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get::<_, String>(3)?, state))
    })?;
    if kept != kind.as_str() {
        return Err(Fault::Damaged(format!("it holds a {kept}")));
    }
    let config = serde_json::from_str(&config).map_err(|error| Fault::Damaged(error.to_string()))?;
    if kind == StreamKind::Log {
        let newest = edge(&connection, "DESC")?;
        if let Some((sequence, time, _, total)) = newest {
            (state.last, state.last_time, state.total) = (sequence, time, total);
        }
        refresh(&connection, &mut state)?;
    }
    let created = Timestamp::from_millis(created);
    Ok(Db { connection, files, kind, name, stream: stream.into(), created, config, state, wanted: None, ahead: None })
}

/// Brings a file that an older program wrote up to today's schema, or leaves it as it is.
fn migrate(connection: &Connection, version: i64, kind: StreamKind) -> Result<(), Fault> {
    if version != 1 {
        return Err(Fault::Damaged("it is empty".into())); // a file gets its name only when it is whole
    }
    // 1 had headers and data in columns of their own
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    transaction.execute_batch(&format!("ALTER TABLE record RENAME TO old; {RECORD_TABLE}"))?;
    {
        let mut old = transaction.prepare("SELECT sequence, time, size, total, key, deleted, headers, data FROM old ORDER BY sequence")?;
        let mut insert = transaction.prepare(INSERT)?;
        let mut rows = old.query([])?;
        while let Some(row) = rows.next()? {
            let wrong = |error: rusqlite::types::FromSqlError| Fault::Damaged(error.to_string());
            let (sequence, millis): (i64, i64) = (row.get(0)?, row.get(1)?);
            let key = row.get_ref(4)?.as_str_or_null().map_err(wrong)?;
            let record = RecordRef {
                sequence: sequence as u64,
                millis,
                key: key.unwrap_or_default(),
                deleted: row.get(5)?,
                headers: row.get_ref(6)?.as_blob_or_null().map_err(wrong)?.unwrap_or_default(),
                data: row.get_ref(7)?.as_blob().map_err(wrong)?,
            };
            insert.execute(params![
                sequence,
                millis,
                row.get::<_, i64>(2)?,
                row.get::<_, Option<i64>>(3)?,
                key,
                record.deleted,
                record.packed()
            ])?;
        }
    }
    transaction.execute_batch("DROP TABLE old")?;
    if kind == StreamKind::Kv {
        transaction.execute_batch(KEY_INDEX)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    Ok(transaction.commit()?)
}

/// Finds the oldest record of a log.
pub(super) fn refresh(connection: &Connection, state: &mut State) -> Result<(), Fault> {
    (state.first, state.first_time, state.gone) = match edge(connection, "ASC")? {
        Some((sequence, time, size, total)) => (sequence, time, total.saturating_sub(size)),
        None => (state.last + 1, i64::MAX, state.total),
    };
    Ok(())
}

/// The first or last record of a log: sequence, time, size, total.
fn edge(connection: &Connection, order: &str) -> Result<Option<(u64, i64, u64, u64)>, Fault> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT sequence, time, size, total FROM record ORDER BY sequence {order} LIMIT 1"))?;
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get::<_, i64>(2)? as u64, row.get::<_, i64>(3)? as u64));
    Ok(statement.query_row([], read).optional()?)
}
