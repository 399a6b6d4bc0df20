//! What comes next: one pure function over an operation and what has happened to it.

use std::time::Duration;

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    command::Verb,
    operation::{OperationKind, OperationStatus, Step},
    project::Intent,
};

use super::{model::Operation, plan};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// Begun, or taken up again by a new master, or the wait before another attempt is over.
    Resume,
    /// The present step has been done.
    Done,
    /// The host works on the present step.
    Working,
    /// The present step can't be done.
    Failed(Error),
    /// The present step may be done later: the host wasn't reached, or has too much to do.
    Trouble(Error),
    /// Somebody asks for the way back.
    Cancel,
}

/// What the executor is to do. All are idempotent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Ask the host.
    Ask(Verb),
    /// Delete the project's row, at this operation's generation.
    Forget,
    /// Wait as [`super::backoff`] says, then [`Event::Resume`].
    Wait,
}

/// How long one forward step may work, however often the host says that it does. A pull of a large image over a slow line fits.
const STEP_LIMIT: Duration = Duration::from_hours(1);

/// The operation after `event`, and what to do about it; nothing when it has ended, or when the event doesn't apply to it.
pub(crate) fn advance(mut op: Operation, event: Event, now: Timestamp) -> (Operation, Option<Action>) {
    if op.ended() || (event == Event::Cancel && !may_cancel(&op)) {
        return (op, None);
    }
    op.updated_at = now;
    op.version += 1;
    let plan = plan::of(op.kind, op.state.start);
    let forward = op.status == OperationStatus::Running;
    match event {
        Event::Resume => {}
        Event::Done => {
            let next = if forward { plan.after(op.step) } else { plan.undo_after(op.step) };
            enter(&mut op, next, now);
        }
        Event::Working => {
            op.state.attempts = 0;
            op.state.trouble = None;
            op.state.trying_since = None;
            if forward && now.since(op.state.step_since) > STEP_LIMIT {
                let text = format!("The step took longer than {} minutes.", STEP_LIMIT.as_secs() / 60);
                fail(&mut op, Error::new(ErrorCode::TimedOut, text), now);
            }
        }
        Event::Failed(error) if forward => fail(&mut op, error, now),
        // there is no other way than back, so every error there is one to try again after
        Event::Failed(error) | Event::Trouble(error) => {
            let since = *op.state.trying_since.get_or_insert(now);
            op.state.attempts = op.state.attempts.saturating_add(1);
            if forward && now.since(since) >= plan.patience {
                fail(&mut op, error, now);
            } else {
                op.state.trouble = Some(error);
                return (op, Some(Action::Wait));
            }
        }
        Event::Cancel => {
            op.state.cancelled = true;
            op.status = OperationStatus::Undoing;
            enter(&mut op, plan.first_undo(), now);
        }
    }
    let action = action(&op);
    (op, action)
}

/// Whether cancelling still means something: on its way forward, before the point of no return.
pub(crate) fn may_cancel(op: &Operation) -> bool {
    op.status == OperationStatus::Running && plan::of(op.kind, op.state.start).may_go_back(op.step)
}

fn fail(op: &mut Operation, error: Error, now: Timestamp) {
    let plan = plan::of(op.kind, op.state.start);
    op.state.failure = Some(error);
    if plan.may_go_back(op.step) {
        op.status = OperationStatus::Undoing;
        enter(op, plan.first_undo(), now);
    } else {
        // the step stays named: it is where a reader sees how far it came
        op.status = OperationStatus::Failed;
        op.state.trouble = None;
    }
}

/// Goes to a step, over those that have nothing to do.
fn enter(op: &mut Operation, step: Step, now: Timestamp) {
    let plan = plan::of(op.kind, op.state.start);
    let mut step = step;
    // what ran before a start was asked for isn't that start's to stop
    if step == Step::UndoRun && op.state.before == Intent::Running {
        step = plan.undo_after(step);
    }
    op.step = step;
    op.state.attempts = 0;
    op.state.trouble = None;
    op.state.trying_since = None;
    op.state.step_since = now;
    if step == Step::Finished {
        op.state.undone = op.status == OperationStatus::Undoing;
        op.status = match op.status {
            OperationStatus::Undoing if op.state.cancelled => OperationStatus::Cancelled,
            OperationStatus::Undoing => OperationStatus::Failed,
            _ => OperationStatus::Done,
        };
    }
}

fn action(op: &Operation) -> Option<Action> {
    if op.ended() {
        return None;
    }
    Some(match op.step {
        Step::Volumes => match &op.state.spec {
            Some(spec) => Action::Ask(Verb::EnsureVolumes { spec: spec.clone(), fresh: true }),
            None => return None, // only create has this step, and it is made with a spec
        },
        Step::Image => Action::Ask(Verb::EnsureImage {}),
        Step::Run => Action::Ask(Verb::EnsureRunning { restart: op.kind == OperationKind::Restart }),
        Step::Halt | Step::UndoRun => Action::Ask(Verb::EnsureStopped {}),
        Step::Remove | Step::UndoVolumes => Action::Ask(Verb::EnsureAbsent {}),
        Step::UndoWork => Action::Ask(Verb::Cancel {}),
        Step::Forget | Step::UndoPlace => Action::Forget,
        Step::Place | Step::Finished => return None, // done before an operation is begun, and after it has ended
    })
}
