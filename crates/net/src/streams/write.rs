//! Writing to a stream: many writes in one transaction, each with its own outcome, and retention in the same transaction.

use std::sync::Arc;

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    streams::{DEDUP_IDS, DEDUP_SECONDS, MAX_HISTORY, MAX_MESSAGE_ID_BYTES, MAX_RECORD_BYTES, StreamConfig, StreamKind, is_key},
};
use bytes::Bytes;
use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    db::{Db, INSERT, State, refresh},
    fault::Fault,
    packed::RecordRef,
};

/// How long the deletion of a key is kept if the configuration doesn't say.
const DELETIONS_MILLIS: i64 = 7 * 24 * 3600 * 1000;
/// How often ids, and a kv's old revisions, are looked through.
const SWEEP_MILLIS: i64 = 60_000;
/// Or after so many new ids.
const SWEEP_IDS: u64 = 1 << 16;
/// Records that retention removes in one transaction, at most: what waits for the commit waits for them too.
const REMOVED_AT_ONCE: u64 = 10_000;

/// One thing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// None appends to a log.
    pub key: Option<String>,
    /// The key is deleted; there is no data.
    pub delete: bool,
    /// `name: value` lines.
    pub headers: Bytes,
    pub data: Bytes,
    pub message_id: Option<String>,
    /// Of a log the last sequence of all, of a kv the key's revision.
    pub expected: Option<u64>,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub stream: Arc<str>,
    pub sequence: u64,
    pub time: Timestamp,
    pub duplicate: bool,
}

impl Write {
    fn size(&self) -> usize {
        self.key.as_ref().map_or(0, String::len) + self.headers.len() + self.data.len()
    }

    /// Whether it is within the bounds that hold for every stream.
    pub(super) fn check(&self) -> Result<(), Error> {
        let size = self.headers.len() + self.data.len();
        if size > MAX_RECORD_BYTES {
            let error = Error::new(ErrorCode::TooLarge, format!("The record has {size} bytes; a stream takes {MAX_RECORD_BYTES}."));
            return Err(error.mend("Keep it as a file, and its path here."));
        }
        if let Some(id) = self.message_id.as_ref().filter(|id| id.is_empty() || id.len() > MAX_MESSAGE_ID_BYTES) {
            return Err(Error::invalid(format!("A message id has 1 to {MAX_MESSAGE_ID_BYTES} bytes; this one has {}.", id.len())));
        }
        match self.key.as_ref().filter(|key| !is_key(key)) {
            Some(key) => Err(Error::invalid(format!("{key:?} isn't a key."))),
            None => Ok(()),
        }
    }
}

/// Whether a configuration can be one for a stream of this kind.
pub(super) fn check_config(config: &StreamConfig, kind: StreamKind) -> Result<(), Error> {
    let positive =
        [config.max_age_seconds, config.max_records, config.max_bytes].into_iter().flatten().all(|limit| limit > 0 && limit <= 1 << 53);
    let history = config.history.is_none_or(|history| kind == StreamKind::Kv && (1..=MAX_HISTORY).contains(&history));
    if positive && history {
        return Ok(());
    }
    Err(Error::invalid("The configuration has a limit that can't be.")
        .mend(format!("Limits are 1 or more; `history` is of key-value stores alone, and at most {MAX_HISTORY}.")))
}

impl Db {
    /// Writes all in one transaction, and removes what is too much. When this returns it is on disk, or nothing of it is.
    pub(super) fn write(&mut self, batch: &[&Write], now: Timestamp) -> Result<Vec<Result<Outcome, Error>>, Fault> {
        self.transact(now, |turn| batch.iter().map(|write| turn.one(write)).collect())
    }

    pub(super) fn configure(&mut self, config: &StreamConfig, now: Timestamp) -> Result<(), Fault> {
        let text = serde_json::to_string(config).map_err(|error| Fault::Io(error.to_string()))?;
        let old = std::mem::replace(&mut self.config, config.clone());
        let done = self.transact(now, |turn| {
            turn.transaction.execute("UPDATE meta SET config = ?1", [text])?;
            turn.state.swept = 0;
            Ok(())
        });
        if done.is_err() {
            self.config = old;
        }
        done
    }

    /// Whether retention has something to do although nothing is written.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        let due = |since: i64, age: i64| now.millis().saturating_sub(since) > age;
        match self.kind() {
            StreamKind::Log => {
                let (state, config) = (&self.state, &self.config);
                let records = state.last + 1 - state.first;
                records > 0
                    && (config.max_age_seconds.is_some_and(|age| due(state.first_time, millis(age)))
                        || config.max_records.is_some_and(|most| records > most)
                        || config.max_bytes.is_some_and(|most| state.total - state.gone > most))
            }
            StreamKind::Kv => due(self.state.swept, SWEEP_MILLIS),
        }
    }

    /// Removes what is too old.
    pub(super) fn prune(&mut self, now: Timestamp) -> Result<(), Fault> {
        if self.is_due(now) { self.transact(now, |_| Ok(())) } else { Ok(()) }
    }

    fn transact<T>(&mut self, now: Timestamp, work: impl FnOnce(&mut Turn<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        let (state, done) = self.attempt(now, work)?;
        self.state = state;
        Ok(done)
    }

    fn attempt<T>(&self, now: Timestamp, work: impl FnOnce(&mut Turn<'_>) -> Result<T, Fault>) -> Result<(State, T), Fault> {
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        // retention by age relies on times that don't go back
        let time = now.millis().max(self.state.last_time);
        let mut turn = Turn { transaction, state: self.state.clone(), db: self, time };
        let done = work(&mut turn)?;
        turn.sweep()?;
        match self.kind() {
            StreamKind::Log => turn.trim_log()?,
            StreamKind::Kv => turn.note_state()?,
        }
        let Turn { transaction, state, .. } = turn;
        transaction.commit()?;
        Ok((state, done))
    }
}

fn millis(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}

/// One transaction that is being made.
struct Turn<'a> {
    transaction: Transaction<'a>,
    state: State,
    db: &'a Db,
    time: i64,
}

/// A key's newest revision.
struct Newest {
    sequence: u64,
    deleted: bool,
}

impl Turn<'_> {
    fn one(&mut self, write: &Write) -> Result<Result<Outcome, Error>, Fault> {
        if let Some(id) = &write.message_id
            && let Some(sequence) = self.known(id)?
        {
            return Ok(Ok(self.outcome(sequence, true)));
        }
        let refused = match &write.key {
            None => self.refuse_append(write),
            Some(key) => self.make_room(key, write)?,
        };
        if let Err(error) = refused {
            return Ok(Err(error));
        }
        let (size, sequence) = (write.size() as u64, self.state.last + 1);
        if write.key.is_none() {
            if self.state.first == sequence {
                self.state.first_time = self.time;
            }
            self.state.total += size;
        }
        let mut insert = self.transaction.prepare_cached(INSERT)?;
        let total = write.key.is_none().then_some(self.state.total as i64);
        let key = write.key.as_deref().unwrap_or_default();
        let record = RecordRef { sequence, millis: self.time, key, deleted: write.delete, headers: &write.headers, data: &write.data };
        insert.execute(params![sequence as i64, self.time, size as i64, total, write.key, write.delete, record.packed()])?;
        if let Some(id) = &write.message_id {
            let mut note = self.transaction.prepare_cached("INSERT OR REPLACE INTO seen (id, sequence, time) VALUES (?1, ?2, ?3)")?;
            note.execute(params![id, sequence as i64, self.time])?;
            self.state.ids += 1;
        }
        (self.state.last, self.state.last_time) = (sequence, self.time);
        Ok(Ok(self.outcome(sequence, false)))
    }

    fn outcome(&self, sequence: u64, duplicate: bool) -> Outcome {
        Outcome { stream: self.db.stream.clone(), sequence, time: Timestamp::from_millis(self.time), duplicate }
    }

    /// The sequence that was written with an id, if that is still known.
    fn known(&self, id: &str) -> Result<Option<u64>, Fault> {
        let mut look = self.transaction.prepare_cached("SELECT sequence FROM seen WHERE id = ?1 AND time >= ?2 AND sequence > ?3")?;
        let oldest = self.time - millis(DEDUP_SECONDS);
        let found = look.query_row(params![id, oldest, self.oldest_id()], |row| row.get::<_, i64>(0)).optional()?;
        Ok(found.map(|sequence| sequence as u64))
    }

    /// Ids of writes up to this sequence are forgotten.
    fn oldest_id(&self) -> i64 {
        self.state.last.saturating_sub(DEDUP_IDS) as i64
    }

    fn refuse_append(&self, write: &Write) -> Result<(), Error> {
        expect(write.expected, self.state.last, "The log's last sequence")?;
        match self.db.config.max_bytes {
            Some(most) if write.size() as u64 > most => {
                Err(Error::new(ErrorCode::TooLarge, format!("The record alone is more than the {most} bytes that this log keeps.")))
            }
            _ => Ok(()),
        }
    }

    /// Checks a write to a key, and removes the revisions that it replaces. What is refused changes nothing.
    fn make_room(&mut self, key: &str, write: &Write) -> Result<Result<(), Error>, Fault> {
        let newest = self.newest(key)?;
        let live = newest.as_ref().is_some_and(|newest| !newest.deleted);
        let revision = newest.as_ref().map_or(0, |newest| newest.sequence);
        let expected = write.expected.filter(|expected| *expected != 0 || live); // 0 holds if there is no value
        if let Err(error) = expect(expected, revision, "The key's revision") {
            return Ok(Err(error));
        }
        if write.delete && !live {
            return Ok(Err(Error::not_found("key")));
        }
        let mut old = self
            .transaction
            .prepare_cached("SELECT sequence, size FROM record WHERE key = ?1 ORDER BY sequence DESC LIMIT -1 OFFSET ?2")?;
        let pairs = old.query_map(params![key, self.db.history() - 1], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64)))?;
        let replaced = pairs.collect::<rusqlite::Result<Vec<_>>>()?;
        let freed: u64 = replaced.iter().map(|(_, size)| size).sum();
        if let Err(error) = self.refuse_put(write, live, freed) {
            return Ok(Err(error));
        }
        let mut remove = self.transaction.prepare_cached("DELETE FROM record WHERE sequence = ?1")?;
        for (sequence, _) in &replaced {
            remove.execute([sequence])?;
        }
        let state = &mut self.state;
        state.records = (state.records + 1).saturating_sub(replaced.len() as u64);
        state.bytes = (state.bytes + write.size() as u64).saturating_sub(freed);
        state.keys = (state.keys + u64::from(!write.delete)).saturating_sub(u64::from(live));
        Ok(Ok(()))
    }

    fn refuse_put(&self, write: &Write, live: bool, freed: u64) -> Result<(), Error> {
        let full = |what: String| {
            let error = Error::new(ErrorCode::LimitExceeded, what).mend("Delete keys, or configure other limits.");
            Err(Error { retry: false, ..error })
        };
        let config = &self.db.config;
        match (config.max_records, config.max_bytes) {
            _ if write.delete => Ok(()), // always possible, or a full store stayed full
            (Some(most), _) if !live && self.state.keys >= most => full(format!("The store has {most} keys, which is as many as it may.")),
            (_, Some(most)) if (self.state.bytes + write.size() as u64).saturating_sub(freed) > most => {
                full(format!("The store would have more than the {most} bytes that it may."))
            }
            _ => Ok(()),
        }
    }

    fn newest(&self, key: &str) -> Result<Option<Newest>, Fault> {
        let mut look =
            self.transaction.prepare_cached("SELECT sequence, deleted FROM record WHERE key = ?1 ORDER BY sequence DESC LIMIT 1")?;
        let read = |row: &rusqlite::Row<'_>| Ok(Newest { sequence: row.get::<_, i64>(0)? as u64, deleted: row.get(1)? });
        Ok(look.query_row([key], read).optional()?)
    }

    /// Forgets ids beyond their window, and revisions of a kv that are too old.
    fn sweep(&mut self) -> Result<(), Fault> {
        if self.time.saturating_sub(self.state.swept) <= SWEEP_MILLIS && self.state.ids < SWEEP_IDS {
            return Ok(());
        }
        (self.state.swept, self.state.ids) = (self.time, 0);
        let oldest = self.time - millis(DEDUP_SECONDS);
        self.transaction.execute("DELETE FROM seen WHERE time < ?1 OR sequence <= ?2", params![oldest, self.oldest_id()])?;
        if self.db.kind() == StreamKind::Kv { self.sweep_revisions() } else { Ok(()) }
    }

    fn sweep_revisions(&mut self) -> Result<(), Fault> {
        let age = self.db.config.max_age_seconds.map(millis);
        let replaced = age.map_or(i64::MIN, |age| self.time.saturating_sub(age));
        let deletions = self.time.saturating_sub(age.unwrap_or(DELETIONS_MILLIS));
        let newer = "EXISTS (SELECT 1 FROM record AS newer WHERE newer.key = record.key AND newer.sequence > record.sequence)";
        let sql = format!(
            "SELECT sequence, size, deleted AND NOT {newer} FROM record
             WHERE (time < ?1 AND {newer}) OR (time < ?2 AND deleted AND NOT {newer}) ORDER BY sequence LIMIT ?3"
        );
        let mut old = self.transaction.prepare_cached(&sql)?;
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64, row.get::<_, bool>(2)?));
        let found = old.query_map(params![replaced, deletions, REMOVED_AT_ONCE as i64], read)?.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut remove = self.transaction.prepare_cached("DELETE FROM record WHERE sequence = ?1")?;
        for (sequence, size, deletion) in found {
            remove.execute([sequence])?;
            self.state.records = self.state.records.saturating_sub(1);
            self.state.bytes = self.state.bytes.saturating_sub(size);
            if deletion {
                self.state.floor = self.state.floor.max(sequence as u64);
            }
        }
        Ok(())
    }

    /// Removes a log's oldest records while there is too much of them.
    fn trim_log(&mut self) -> Result<(), Fault> {
        let (config, state) = (&self.db.config, &mut self.state);
        let oldest_time = config.max_age_seconds.map_or(i64::MIN, |age| self.time.saturating_sub(millis(age)));
        let first_kept = config.max_records.map_or(0, |most| (state.last + 1).saturating_sub(most));
        let gone_kept = config.max_bytes.map_or(0, |most| state.total.saturating_sub(most));
        let keep = |sequence: u64, time: i64, gone: u64| sequence >= first_kept && time >= oldest_time && gone >= gone_kept;
        if state.first > state.last || keep(state.first, state.first_time, state.gone) {
            return Ok(());
        }
        let mut walk = self.transaction.prepare_cached("SELECT sequence, time, total - size FROM record ORDER BY sequence LIMIT ?1")?;
        let mut rows = walk.query([REMOVED_AT_ONCE as i64])?;
        let mut end = state.first;
        while let Some(row) = rows.next()? {
            let sequence = row.get::<_, i64>(0)? as u64;
            if keep(sequence, row.get(1)?, row.get::<_, i64>(2)? as u64) {
                break;
            }
            end = sequence + 1;
        }
        drop(rows);
        self.transaction.execute("DELETE FROM record WHERE sequence < ?1", [end as i64])?;
        // the last record may be among those that go
        self.transaction.execute(
            "UPDATE meta SET last = ?1, last_time = ?2, total = ?3",
            params![state.last as i64, state.last_time, state.total as i64],
        )?;
        refresh(&self.transaction, state)
    }

    /// A kv's counts stand in one row.
    fn note_state(&mut self) -> Result<(), Fault> {
        let state = &self.state;
        let mut note = self
            .transaction
            .prepare_cached("UPDATE meta SET last = ?1, last_time = ?2, records = ?3, bytes = ?4, keys = ?5, floor = ?6")?;
        let [last, records, bytes, keys, floor] = [state.last, state.records, state.bytes, state.keys, state.floor].map(|n| n as i64);
        note.execute(params![last, state.last_time, records, bytes, keys, floor])?;
        Ok(())
    }
}

/// # Errors
/// `conflict`, with what it is in `details.last_sequence`.
fn expect(expected: Option<u64>, actual: u64, what: &str) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != actual => {
            let error = Error::new(ErrorCode::Conflict, format!("{what} is {actual}, not {expected}."));
            Err(error.mend("Read what was written meanwhile, then try again.").details(serde_json::json!({ "last_sequence": actual })))
        }
        _ => Ok(()),
    }
}
