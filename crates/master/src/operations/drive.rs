//! Drives one operation to its end: advance, save, act, and again.

use std::{pin::pin, sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode,
    command::Verb,
    operation::{OperationStatus, OperationView, Progress},
};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast, mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    advance::{Action, Event, advance, may_cancel},
    ask::{Answer, ask},
    backoff,
    executor::{CancelRequest, Inner},
    model::Operation,
};

/// The longest wait between two attempts of a forward step, which a user watches.
const FORWARD_CAP: Duration = Duration::from_secs(5);
/// The longest wait between two attempts of an undo step, which go on without end.
const UNDO_CAP: Duration = Duration::from_secs(30);
/// A host that works answers after two seconds; one that answers sooner isn't asked again at once.
const LEAST_ASK: Duration = Duration::from_millis(250);

pub(super) struct Drive {
    inner: Arc<Inner>,
    tell: watch::Sender<OperationView>,
    progress: Progress,
    /// This operation's turn to start on its host, from the first command to the step's end.
    start_turn: Option<OwnedSemaphorePermit>,
    comebacks: broadcast::Receiver<atoll_contract::HostId>,
}

/// The master stops; what is saved goes on later.
struct Stopped;

impl Drive {
    pub(super) fn new(inner: Arc<Inner>, tell: watch::Sender<OperationView>) -> Self {
        let comebacks = inner.parts.hosts.comebacks();
        Self { inner, tell, progress: Progress::default(), start_turn: None, comebacks }
    }

    /// `again` says that it was taken up from the store: its version has leapt, and that is saved first.
    pub(super) async fn run(mut self, op: Operation, again: bool, mut cancels: mpsc::Receiver<CancelRequest>) {
        let (mut op, mut action) = advance(op, Event::Resume, self.inner.parts.clock.now());
        if again && self.save(&op).await.is_err() {
            return;
        }
        self.publish(&op);
        let (stop, tell) = (self.inner.stop.clone(), self.tell.clone());
        while let Some(next) = action {
            let mut asked: Option<CancelRequest> = None;
            let (event, progress) = {
                let mut work = pin!(self.perform(&op, &next));
                loop {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        Some(request) = cancels.recv() => {
                            if may_cancel(&op) {
                                asked = Some(request);
                                break (Event::Cancel, None);
                            }
                            let _ = request.send(cancel_answer(&op, &tell.borrow())); // who asked may have gone
                        }
                        done = &mut work => break done,
                    }
                }
            };
            let working = event == Event::Working;
            let (before, progressed) = (op.clone(), progress.as_ref().is_some_and(|progress| *progress != self.progress));
            (op, action) = advance(op, event, self.inner.parts.clock.now());
            if op.step != before.step || op.ended() {
                self.progress = Progress::default();
                self.start_turn = None;
            } else if let Some(progress) = progress {
                self.progress = progress;
            }
            // progress isn't saved: a new master asks for it again
            if (!working || op.step != before.step || op.status != before.status) && self.save(&op).await.is_err() {
                return;
            }
            if !working || progressed || op.status != before.status {
                self.publish(&op);
            }
            if let Some(asked) = asked {
                let _ = asked.send(Ok(tell.borrow().clone())); // who asked may have gone
            }
        }
        if !op.ended() {
            tracing::error!(operation = %op.id, step = ?op.step, "an operation has a step that nothing can be done about");
        }
    }

    /// Does one action and says what came of it.
    async fn perform(&mut self, op: &Operation, action: &Action) -> (Event, Option<Progress>) {
        match action {
            Action::Ask(verb) => self.ask(op, verb).await,
            Action::Forget => match self.inner.parts.store.forget_project(op.project, op.generation).await {
                Ok(()) => (Event::Done, None),
                Err(error) => (Event::Trouble(crate::edge::internal(error)), None),
            },
            Action::Wait => {
                self.start_turn = None;
                let cap = if op.status == OperationStatus::Running { FORWARD_CAP } else { UNDO_CAP };
                let wait = backoff::wait(op.state.attempts, cap, &*self.inner.parts.clock);
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.host_comes_back(op) => {}
                }
                (Event::Resume, None)
            }
        }
    }

    async fn ask(&mut self, op: &Operation, verb: &Verb) -> (Event, Option<Progress>) {
        let closed = || (Event::Trouble(Error::new(ErrorCode::Unavailable, "The master is shutting down.")), None);
        let turns = self.inner.turns(op.host);
        if matches!(verb, Verb::EnsureRunning { .. }) && self.start_turn.is_none() {
            let Ok(turn) = turns.starts.acquire_owned().await else { return closed() };
            self.start_turn = Some(turn);
        }
        let begun = Instant::now();
        let Answer { event, progress, observed } = {
            let Ok(_turn) = turns.actions.acquire().await else { return closed() };
            ask(&*self.inner.parts.conn, op, verb).await
        };
        if let Some(observed) = observed {
            self.inner.parts.hosts.note(op.host, observed);
        }
        if event == Event::Working && begun.elapsed() < LEAST_ASK {
            sleep(LEAST_ASK).await;
        }
        (event, progress)
    }

    async fn host_comes_back(&mut self, op: &Operation) {
        loop {
            match self.comebacks.recv().await {
                Ok(host) if host == op.host => return,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return, // it may have been among those that were missed
                Err(broadcast::error::RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    }

    /// Saves the operation, however long that takes: nothing is done that isn't saved.
    async fn save(&self, op: &Operation) -> Result<(), Stopped> {
        let mut attempts = 0;
        while let Err(error) = self.inner.parts.store.save_operation(op.clone()).await {
            attempts += 1;
            tracing::error!(operation = %op.id, %error, attempts, "an operation can't be saved; it waits");
            tokio::select! {
                () = self.inner.stop.cancelled() => return Err(Stopped),
                () = sleep(backoff::wait(attempts, UNDO_CAP, &*self.inner.parts.clock)) => {}
            }
        }
        Ok(())
    }

    fn publish(&self, op: &Operation) {
        let view = op.view(self.progress.clone());
        self.inner.announce(op, &view);
        self.tell.send_replace(view);
        if op.ended() {
            self.inner.parts.hosts.changed([op.project]);
            let code = op.state.failure.as_ref().map(|error| error.code.as_str());
            tracing::info!(operation = %op.id, kind = op.kind.as_str(), project = %op.project, status = op.status.as_str(), code, "an operation has ended");
        }
    }
}

/// The answer to a cancel that changes nothing: fine if it goes back already, else too late.
fn cancel_answer(op: &Operation, view: &OperationView) -> Result<OperationView, Error> {
    if op.status == OperationStatus::Undoing {
        return Ok(view.clone());
    }
    Err(Error::new(ErrorCode::Conflict, format!("This {} is past its point of no return, and goes on.", op.kind.as_str()))
        .mend("Wait until it has ended."))
}
