//! All streams of a host: which are open, what waits for each, and the few threads that do the work.
//!
//! A stream that has something to do stands in one queue; a thread takes it, does all that waits for it in one transaction (group commit: what
//! comes while the disk is being waited for goes into the next), and puts it back. So a stream is used by one thread at a time, and one
//! that is busy doesn't keep others from their turn.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    streams::{StreamKind, StreamList},
};
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    ask::{Answer, Ask, Done, StreamId},
    db::Db,
    fault::Fault,
    files,
    places::Places,
    turn,
    write::{Outcome, Write},
};
use crate::clock::SharedClock;

/// Every bound of the streams of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLimits {
    /// Files that are open at once, give or take one for each thread. Each takes three descriptors at most, and its cache half a MiB.
    pub open: usize,
    /// Threads that read and write at once.
    pub threads: usize,
    /// Requests that wait for one stream.
    pub waiting: usize,
    /// Bytes of data that wait for the streams of all owners together, and for those of one; what a turn writes waits until that is done.
    pub waiting_bytes: usize,
    pub waiting_bytes_of_one: usize,
    /// Writes and reads of one turn.
    pub batch: usize,
    /// Bytes of the writes of one turn; one write is always taken.
    pub batch_bytes: usize,
    /// Pages that are read before they are asked for, for readers who read a log from page to page. A page has a MiB at the most.
    pub ahead: usize,
    /// A stream that nobody has used for so long is closed.
    pub idle: Duration,
    /// How often that is looked at, and whether records have become too old.
    pub look: Duration,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            open: 256,
            threads: 8,
            waiting: 4096,
            waiting_bytes: 64 << 20,
            waiting_bytes_of_one: 16 << 20,
            batch: 1024,
            batch_bytes: 4 << 20,
            ahead: 16,
            idle: Duration::from_mins(1),
            look: Duration::from_secs(10),
        }
    }
}

pub(super) struct Job {
    pub(super) ask: Ask,
    pub(super) done: Done,
}

/// What has been committed to a stream, in order.
#[derive(Debug)]
pub(super) enum Event {
    Written(Write, Outcome),
    /// The stream was deleted.
    Removed(Arc<str>),
}

/// Told after each commit, before those who asked for it; one stream's events come in order. Mustn't block.
pub(super) type Sink = Box<dyn Fn(&StreamId, Vec<Event>) + Send + Sync>;

/// The streams of one host.
pub(super) struct Engine {
    pub(super) limits: StreamLimits,
    pub(super) clock: SharedClock,
    pub(super) sink: Sink,
    table: Mutex<Table>,
    /// Changes when a stream has been closed or streams have been listed.
    closed: watch::Sender<u64>,
    /// Bounds the threads that list folders.
    listing: Semaphore,
    /// Pages that are kept because they will be asked for next, of a MiB each at the most.
    pub(super) ahead: Arc<Semaphore>,
    waiting_bytes: Arc<Places>,
}

#[derive(Default)]
struct Table {
    streams: HashMap<StreamId, Entry>,
    ready: VecDeque<StreamId>,
    threads: usize,
    /// Owners whose streams may not be opened now, and how many ask for that.
    barred: HashMap<Arc<str>, usize>,
    /// Owners whose streams are being listed, and how often: that may finish a quarantine.
    listed: HashMap<Arc<str>, usize>,
    ending: bool,
}

/// A stream that is open or that something waits for.
struct Entry {
    /// The folder of its owner's streams.
    dir: Arc<Path>,
    jobs: VecDeque<Job>,
    /// It stands in `ready`, or a thread has it.
    busy: bool,
    /// Close it when its turn comes.
    close: bool,
    db: Option<Box<Db>>,
    used: Instant,
    last: watch::Sender<u64>,
}

/// A stream in the hands of a thread.
pub(super) struct Turn {
    pub(super) id: StreamId,
    pub(super) dir: Arc<Path>,
    pub(super) jobs: Vec<Job>,
    pub(super) db: Option<Box<Db>>,
    pub(super) close: bool,
}

/// Keeps an owner's streams closed until it is dropped.
pub struct Barred {
    engine: Arc<Engine>,
    owner: Arc<str>,
}

impl Engine {
    pub(super) fn new(clock: SharedClock, limits: StreamLimits, sink: Sink) -> Arc<Self> {
        let (table, closed) = (Mutex::default(), watch::Sender::new(0));
        let listing = Semaphore::new(limits.threads.max(1));
        let ahead = Arc::new(Semaphore::new(limits.ahead));
        let waiting_bytes = Places::new(limits.waiting_bytes, limits.waiting_bytes_of_one);
        Arc::new(Self { limits, clock, sink, table, closed, listing, ahead, waiting_bytes })
    }

    /// Has something done. What is refused at once is told before this returns.
    pub(super) fn submit(self: &Arc<Self>, id: StreamId, dir: Arc<Path>, ask: Ask, done: Done) {
        let Some(room) = self.waiting_bytes.take(&id.owner, ask.bytes()) else {
            return done(Err(busy("the project's or the host's streams")));
        };
        // before anyone hears of it: who then sends more finds the room
        let done = Box::new(move |result| {
            drop(room);
            done(result);
        });
        if let Err(refused) = self.enqueue(id, dir, Job { ask, done }) {
            let (error, job) = *refused;
            (job.done)(Err(error));
        }
    }

    /// As [`submit`](Self::submit), waiting for the answer.
    pub(super) async fn ask(self: &Arc<Self>, id: StreamId, dir: Arc<Path>, ask: Ask) -> Result<Answer, Error> {
        let (sender, answer) = oneshot::channel();
        let done = Box::new(move |result| drop(sender.send(result))); // who asked may have gone
        self.submit(id, dir, ask, done);
        answer.await.unwrap_or_else(|_| Err(Error::internal("A thread that serves streams has ended.")))
    }

    /// The last sequence of an open stream, as it rises; none if it isn't open.
    pub(super) fn watch(&self, id: &StreamId) -> Option<watch::Receiver<u64>> {
        self.lock().streams.get(id).map(|entry| entry.last.subscribe())
    }

    /// The streams of one kind in a folder.
    pub(super) async fn list(self: &Arc<Self>, owner: &Arc<str>, dir: Arc<Path>, kind: StreamKind) -> Result<StreamList, Error> {
        let Ok(_permit) = self.listing.acquire().await else { return Err(ending()) };
        let listing = self.begin_listing(owner).ok_or_else(ending)?;
        let listed = tokio::task::spawn_blocking(move || {
            let listed = files::list(&dir, kind).map_err(|fault: Fault| fault.to_error("folder of streams", &dir));
            drop(listing);
            listed
        });
        listed.await.unwrap_or_else(|_| Err(Error::internal("A thread that serves streams has ended.")))
    }

    /// None if the owner's streams are to be or stay closed.
    pub(super) fn begin_listing(self: &Arc<Self>, owner: &Arc<str>) -> Option<Listing> {
        let mut table = self.lock();
        if table.ending || table.barred.contains_key(owner) {
            return None;
        }
        count(&mut table.listed, owner);
        Some(Listing { engine: self.clone(), owner: owner.clone() })
    }

    fn enqueue(self: &Arc<Self>, id: StreamId, dir: Arc<Path>, job: Job) -> Result<(), Box<(Error, Job)>> {
        let mut table = self.lock();
        if table.ending || table.barred.contains_key(&id.owner) {
            return Err(Box::new((ending(), job)));
        }
        if !table.streams.contains_key(&id) {
            if table.streams.len() >= self.limits.open && !table.evict() && table.streams.len() >= self.limits.open * 2 {
                return Err(Box::new((busy("the host's streams"), job)));
            }
            table.streams.insert(id.clone(), Entry::new(dir));
        }
        let Some(entry) = table.streams.get_mut(&id) else { return Ok(()) };
        if entry.jobs.len() >= self.limits.waiting {
            return Err(Box::new((busy(&id.what()), job)));
        }
        entry.jobs.push_back(job);
        (entry.used, entry.close) = (Instant::now(), false);
        table.make_ready(&id);
        self.call_threads(&mut table);
        Ok(())
    }

    /// Lets another thread come if there is work for one.
    fn call_threads(self: &Arc<Self>, table: &mut Table) {
        if table.threads < self.limits.threads && !table.ready.is_empty() {
            table.threads += 1;
            let engine = self.clone();
            tokio::task::spawn_blocking(move || engine.work());
        }
    }

    fn work(self: Arc<Self>) {
        let leave = Leave(self.clone());
        while let Some(turn) = self.next_turn() {
            let id = turn.id.clone();
            // a defect in one stream's turn must not take the thread's count and the stream's entry with it
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| turn::run(&self, turn)));
            let (db, last) = done.unwrap_or_else(|_| {
                tracing::error!(stream = %id.name, owner = %id.owner, "serving a stream has panicked; it is opened again");
                (None, None)
            });
            self.give_back(&id, db, last);
        }
        leave.in_order();
    }

    /// The next stream that has something to do. Without one the thread is counted as gone, under the same lock: what comes later calls another.
    fn next_turn(&self) -> Option<Turn> {
        let mut table = self.lock();
        loop {
            let Some(id) = table.ready.pop_front() else {
                table.threads -= 1;
                return None;
            };
            let Some(entry) = table.streams.get_mut(&id) else { continue };
            let (mut jobs, mut bytes) = (Vec::new(), 0);
            while jobs.len() < self.limits.batch
                && let Some(job) = entry.jobs.front()
                && (jobs.is_empty() || bytes + job.ask.bytes() <= self.limits.batch_bytes)
            {
                bytes += job.ask.bytes();
                jobs.extend(entry.jobs.pop_front());
            }
            let turn = Turn { dir: entry.dir.clone(), db: entry.db.take(), close: entry.close, jobs, id };
            return Some(turn);
        }
    }

    fn give_back(&self, id: &StreamId, db: Option<Box<Db>>, last: Option<u64>) {
        let mut table = self.lock();
        let Some(entry) = table.streams.get_mut(id) else { return };
        entry.busy = false;
        entry.db = db;
        if let Some(last) = last {
            entry.last.send_if_modified(|known| std::mem::replace(known, last) != last);
        }
        if !entry.jobs.is_empty() || entry.close && entry.db.is_some() {
            table.make_ready(id);
        } else if entry.db.is_none() {
            table.streams.remove(id);
            drop(table);
            self.closed.send_modify(|count| *count += 1);
        }
    }

    /// Closes all streams of an owner and keeps them closed while what is returned lives. What waits is done first, what comes
    /// then is answered `unavailable`.
    pub(super) async fn close(self: &Arc<Self>, owner: &str) -> Barred {
        let owner: Arc<str> = owner.into();
        let mut closed = self.closed.subscribe();
        {
            let mut table = self.lock();
            count(&mut table.barred, &owner);
            table.close_where(|id| id.owner == owner);
            self.call_all(&mut table);
        }
        let barred = Barred { engine: self.clone(), owner };
        let in_use = |table: &Table| table.listed.contains_key(&barred.owner) || table.streams.keys().any(|id| id.owner == barred.owner);
        while in_use(&self.lock()) && closed.changed().await.is_ok() {}
        barred
    }

    /// Closes what is idle and removes what is too old, until `cancel` fires; then closes everything.
    pub(super) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(self.limits.look) => {}
            }
            let mut table = self.lock();
            let idle = self.limits.idle;
            let now = self.clock.now();
            let waits: Vec<_> = table.streams.iter_mut().filter(|(_, entry)| !entry.busy).collect();
            let mut due = Vec::new();
            for (id, entry) in waits {
                entry.close |= entry.used.elapsed() >= idle && entry.last.receiver_count() == 0;
                if entry.close || entry.db.as_ref().is_some_and(|db| db.is_due(now)) {
                    due.push(id.clone());
                }
            }
            due.iter().for_each(|id| table.make_ready(id));
            self.call_all(&mut table);
        }
        self.end().await;
    }

    /// Closes everything; what comes from now on is refused.
    async fn end(self: &Arc<Self>) {
        let mut closed = self.closed.subscribe();
        {
            let mut table = self.lock();
            table.ending = true;
            table.close_where(|_| true);
            self.call_all(&mut table);
        }
        let in_use = |table: &Table| !table.streams.is_empty() || !table.listed.is_empty();
        while in_use(&self.lock()) && closed.changed().await.is_ok() {}
    }

    fn call_all(self: &Arc<Self>, table: &mut Table) {
        for _ in 0..self.limits.threads.min(table.ready.len()) {
            self.call_threads(table);
        }
    }

    /// How many streams are open or waited for.
    #[cfg(test)]
    pub(super) fn open_now(&self) -> usize {
        self.lock().streams.len()
    }

    /// For tests: looks at an open stream's file that nobody uses just now. Whether there is one.
    #[cfg(test)]
    #[must_use]
    pub(super) fn look_at(&self, id: &StreamId, look: impl FnOnce(&Db)) -> bool {
        self.lock().streams.get(id).and_then(|entry| entry.db.as_ref()).map(|db| look(db)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a thread as gone if it ends by a panic.
struct Leave(Arc<Engine>);

impl Leave {
    fn in_order(self) {
        std::mem::forget(self);
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
    }
}

impl Drop for Barred {
    fn drop(&mut self) {
        uncount(&mut self.engine.lock().barred, &self.owner);
    }
}

/// An owner's streams are being listed.
pub(super) struct Listing {
    engine: Arc<Engine>,
    owner: Arc<str>,
}

impl Drop for Listing {
    fn drop(&mut self) {
        uncount(&mut self.engine.lock().listed, &self.owner);
        self.engine.closed.send_modify(|count| *count += 1);
    }
}

fn count(counts: &mut HashMap<Arc<str>, usize>, owner: &Arc<str>) {
    *counts.entry(owner.clone()).or_default() += 1;
}

fn uncount(counts: &mut HashMap<Arc<str>, usize>, owner: &Arc<str>) {
    if let Some(count) = counts.get_mut(owner) {
        *count -= 1;
        if *count == 0 {
            counts.remove(owner);
        }
    }
}

impl Entry {
    fn new(dir: Arc<Path>) -> Self {
        Self { dir, jobs: VecDeque::new(), busy: false, close: false, db: None, used: Instant::now(), last: watch::Sender::new(0) }
    }
}

impl Table {
    fn make_ready(&mut self, id: &StreamId) {
        if let Some(entry) = self.streams.get_mut(id)
            && !entry.busy
        {
            entry.busy = true;
            self.ready.push_back(id.clone());
        }
    }

    /// Has the stream closed that was used least lately, if there is one that nothing waits for.
    fn evict(&mut self) -> bool {
        let idle = self.streams.iter().filter(|(_, entry)| !entry.busy);
        let Some(id) = idle.min_by_key(|(_, entry)| entry.used).map(|(id, _)| id.clone()) else { return false };
        self.close_where(|other| *other == id);
        true
    }

    fn close_where(&mut self, which: impl Fn(&StreamId) -> bool) {
        let ids: Vec<_> = self.streams.keys().filter(|id| which(id)).cloned().collect();
        for id in ids {
            if let Some(entry) = self.streams.get_mut(&id) {
                entry.close = true;
            }
            self.make_ready(&id);
        }
    }
}

fn ending() -> Error {
    Error::new(ErrorCode::Unavailable, "The project's streams are being closed.")
}

fn busy(what: &str) -> Error {
    Error::new(ErrorCode::LimitExceeded, format!("Too much waits for {what} just now.")).mend("Wait for answers before sending more.")
}
