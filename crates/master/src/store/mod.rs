//! The master's memory: one SQLite file, and all of the master's SQL.
//!
//! The SQL is written so that PostgreSQL takes it too: `$1` parameters that first appear in order, `ON CONFLICT`, the types `TEXT` and
//! `BIGINT`, no function that only one of them has. A test reads these files and holds them to it.
//!
//! One thread writes and two read, each with connections of its own, so that no task of the runtime ever waits on a disk and a list
//! doesn't wait for a commit. The writing thread has two connections: one that syncs every commit, for what is acknowledged to someone,
//! and one that doesn't, for progress that can be found out again (see [`Durability`]).

mod accounts;
mod hosts;
mod open;
mod operations;
mod projects;
mod row;
mod schema;
#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

pub(crate) use accounts::{AccountRow, KeyRow, NewAccount, NewKey, Proven};
pub(crate) use hosts::{HostRow, Joined, NewHost, NewJoinToken};
pub(crate) use operations::{Change, Declined, InFlight, NewProject, OperationFilter, Outcome, RequestKey};
pub(crate) use projects::{ProjectFilter, ProjectRow};

/// Requests that may wait for a thread; more wait in their own tasks.
const QUEUE: usize = 1024;
const READERS: usize = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store is closed")]
    Closed,
    #[error("the database failed: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("a row can't be understood: {0}")]
    Row(String),
    #[error("the database has schema version {found}, newer than this program's {known}")]
    TooNew { found: i64, known: i64 },
    #[error("{0}")]
    File(#[from] std::io::Error),
}

pub(crate) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a commit survives. Both survive the death of this process at any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// Also the death of the machine: synced before the call returns. For whatever somebody is told to have happened, above all an
    /// accepted operation and a generation, which must never be handed out twice.
    Synced,
    /// A machine that loses power may lose it, in order from the end and never in part. For the steps of an operation and for times of
    /// use: a lost step is done again, and all steps are idempotent. In PostgreSQL this is `synchronous_commit = off`.
    Written,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the store; clones share it.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

struct Inner {
    write: mpsc::Sender<(Durability, Job)>,
    read: mpsc::Sender<Job>,
    /// For the one caller that can't wait in a task: the bus's authenticator.
    now: Mutex<Connection>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Store {
    /// Opens or makes the database and brings its schema up to date. Blocks; to be called before anything is served.
    ///
    /// # Errors
    /// If the file can't be made or read, isn't a database, or belongs to a newer version of the program.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut synced = open::writer(path, Durability::Synced)?;
        schema::migrate(&mut synced)?;
        let mut written = open::writer(path, Durability::Written)?;
        let (write, mut writes) = mpsc::channel::<(Durability, Job)>(QUEUE);
        let (read, reads) = mpsc::channel::<Job>(QUEUE);
        let mut threads = vec![spawn("store-write", move || {
            while let Some((durability, job)) = writes.blocking_recv() {
                run(job, if durability == Durability::Synced { &mut synced } else { &mut written });
            }
        })?];
        let reads = Arc::new(Mutex::new(reads));
        for _ in 0..READERS {
            let (reads, mut connection) = (reads.clone(), open::reader(path)?);
            threads.push(spawn("store-read", move || {
                loop {
                    let job = reads.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    let Some(job) = job else { break };
                    run(job, &mut connection);
                }
            })?);
        }
        Ok(Self(Arc::new(Inner { write, read, now: Mutex::new(open::reader(path)?), threads: Mutex::new(threads) })))
    }

    /// Waits until everything handed in is on the disk and the files are closed. To be called with the last handle.
    pub(crate) async fn close(self, patience: Duration) {
        let threads = std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        drop(self);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        });
        if tokio::time::timeout(patience, joined).await.is_err() {
            tracing::warn!("the store is still in use; leaving it to the operating system");
        }
    }

    async fn read<T: Send + 'static>(&self, work: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| drop(reply.send(work(connection))));
        self.0.read.send(job).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `work` in a transaction that is committed if it returns Ok. Goes on if the caller goes away.
    async fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| drop(reply.send(in_transaction(connection, work))));
        self.0.write.send((durability, job)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Reads on the calling thread: some microseconds for a row by its key, and for nothing else.
    fn read_now<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        work(&self.0.now.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn in_transaction<T>(connection: &mut Connection, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = work(&transaction)?; // dropped without commit: rolled back
    transaction.commit()?;
    Ok(value)
}

/// A job that panics loses its caller's answer (the caller sees `Closed`) and not the thread: its transaction was rolled back.
fn run(job: Job, connection: &mut Connection) {
    if catch_unwind(AssertUnwindSafe(|| job(connection))).is_err() {
        tracing::error!("a store job panicked; it was rolled back");
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Ok(std::thread::Builder::new().name(name.into()).spawn(work)?)
}
