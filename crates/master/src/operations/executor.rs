//! All operations that run: begins them, takes them up again after a restart, cancels them, and tells watchers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, HostId, OperationId,
    operation::{OperationView, Progress},
    subject,
};
use atoll_net::{
    bus::{Conn, Message},
    clock::SharedClock,
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{drive::Drive, model::Operation};
use crate::{edge::internal, hosts::Hosts, store::Store};

/// Commands under way at once to one host, a quarter of what a host answers at once. Not to all together: a host that doesn't answer holds each
/// for seconds, and the others' operations mustn't wait behind it.
const ACTIONS_PER_HOST: usize = 64;
/// Starts at once on one host: container runtimes get slower, not faster, beyond this.
const STARTS_PER_HOST: usize = 8;
/// Operations that haven't ended. One that waits for a host costs a task of a few kilobytes.
const MOST: usize = 10_000;
/// Changes that wait to be published; beyond it watchers miss one and see the next.
const NEWS: usize = 4096;
/// Added to an operation's version when it is taken up again. Changes that were only in memory since the last save are forgotten then,
/// and who waits for "above N" must not wait for ever: there are never so many between two saves, which a host's answers, at least a
/// quarter of a second apart, and the hour that a step may take see to.
const VERSION_LEAP: u64 = 1 << 20;

pub(super) type CancelRequest = oneshot::Sender<Result<OperationView, Error>>;

/// A handle; clones share it.
#[derive(Clone)]
pub(crate) struct Executor(pub(super) Arc<Inner>);

/// What an executor is made of.
pub(crate) struct Parts {
    pub store: Store,
    pub clock: SharedClock,
    pub hosts: Arc<Hosts>,
    pub conn: Arc<dyn Conn>,
}

pub(super) struct Inner {
    pub parts: Parts,
    turns: Mutex<HashMap<HostId, Turns>>,
    live: Mutex<HashMap<OperationId, Live>>,
    news: mpsc::Sender<Message>,
    tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// One host's turns.
#[derive(Clone)]
pub(super) struct Turns {
    pub actions: Arc<Semaphore>,
    pub starts: Arc<Semaphore>,
}

struct Live {
    view: watch::Receiver<OperationView>,
    cancel: mpsc::Sender<CancelRequest>,
}

impl Executor {
    pub(crate) fn new(parts: Parts) -> Self {
        let (news, heard) = mpsc::channel(NEWS);
        let (conn, stop, tasks) = (parts.conn.clone(), CancellationToken::new(), TaskTracker::new());
        tasks.spawn(publish(conn, heard, stop.clone()));
        Self(Arc::new(Inner { parts, turns: Mutex::default(), live: Mutex::default(), news, tasks, stop }))
    }

    /// Takes up all operations that have not ended. To be called once, before requests are served.
    pub(crate) async fn recover(&self) -> Result<usize, Error> {
        let open = self.0.parts.store.open_operations().await.map_err(internal)?;
        let count = open.len();
        for mut op in open {
            op.version += VERSION_LEAP;
            self.spawn(op, true);
        }
        Ok(count)
    }

    /// Begins an operation that has just been accepted, and so is saved.
    pub(crate) fn run(&self, op: Operation) {
        self.spawn(op, false);
    }

    fn spawn(&self, op: Operation, again: bool) {
        if self.0.stop.is_cancelled() {
            return; // the next start of the master takes it up
        }
        let (tell, view) = watch::channel(op.view(Progress::default()));
        let (cancel, cancels) = mpsc::channel(8);
        let id = op.id;
        self.lock().insert(id, Live { view, cancel });
        let (this, drive) = (self.clone(), Drive::new(self.0.clone(), tell));
        self.0.tasks.spawn(async move {
            drive.run(op, again, cancels).await;
            this.lock().remove(&id);
        });
    }

    /// # Errors
    /// `limit_exceeded` when so many operations wait that no more are taken.
    pub(crate) fn check_room(&self) -> Result<(), Error> {
        if self.lock().len() < MOST {
            return Ok(());
        }
        Err(Error::new(ErrorCode::LimitExceeded, format!("{MOST} operations haven't ended; no more are taken.")).mend("Try again later."))
    }

    /// The operation as it is now, if it hasn't ended.
    pub(crate) fn live(&self, id: OperationId) -> Option<OperationView> {
        self.lock().get(&id).map(|live| live.view.borrow().clone())
    }

    /// Waits until the operation's version is above `after` or it has ended, at most for `patience`. None if it isn't running.
    pub(crate) async fn wait(&self, id: OperationId, after: u64, patience: Duration) -> Option<OperationView> {
        let mut view = self.lock().get(&id).map(|live| live.view.clone())?;
        let news = view.wait_for(|view| view.version > after || view.status.ended());
        tokio::select! {
            _ = tokio::time::timeout(patience, news) => {} // an ended watch and a timeout alike: what it shows now is the answer
            () = self.0.stop.cancelled() => {}
        }
        let now = view.borrow().clone();
        Some(now)
    }

    /// Turns an operation back. Answers when that is saved; the way back goes on after it.
    ///
    /// # Errors
    /// `conflict` past the point of no return. None if it isn't running (any more).
    pub(crate) async fn cancel(&self, id: OperationId) -> Option<Result<OperationView, Error>> {
        let cancel = self.lock().get(&id).map(|live| live.cancel.clone())?;
        let (reply, answer) = oneshot::channel();
        cancel.send(reply).await.ok()?;
        answer.await.ok()
    }

    /// Stops all work where it is; everything is saved, and the next start goes on. Waits for the tasks, at most for `patience`.
    pub(crate) async fn stop(&self, patience: Duration) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(patience, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("some operations didn't stop in time; they are saved and go on at the next start");
        }
    }

    /// As [`Executor::stop`], without waiting.
    pub(crate) fn stop_now(&self) {
        self.0.stop.cancel();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The turns for commands and for starts on a host.
    pub(super) fn turns(&self, host: HostId) -> Turns {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Turns { actions: Arc::new(Semaphore::new(ACTIONS_PER_HOST)), starts: Arc::new(Semaphore::new(STARTS_PER_HOST)) };
        turns.entry(host).or_insert_with(new).clone()
    }

    /// Tells the owner, and who asked if that is somebody else, on the bus.
    pub(super) fn announce(&self, op: &Operation, view: &OperationView) {
        let Ok(payload) = serde_json::to_vec(view) else { return };
        let requester = (op.account != op.owner).then_some(op.account);
        for account in std::iter::once(op.owner).chain(requester) {
            let message = Message::new(subject::operation(account, op.id), payload.clone());
            if self.news.try_send(message).is_err() {
                tracing::debug!(operation = %op.id, "too much news at once; one change isn't published");
            }
        }
    }
}

async fn publish(conn: Arc<dyn Conn>, mut news: mpsc::Receiver<Message>, stop: CancellationToken) {
    loop {
        let message = tokio::select! {
            () = stop.cancelled() => return,
            message = news.recv() => message,
        };
        let Some(message) = message else { return };
        if let Err(error) = conn.publish(message).await {
            tracing::debug!(%error, "an operation's change wasn't published");
        }
    }
}
