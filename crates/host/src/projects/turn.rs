//! One work at a time on a project: who asks again joins it, others wait their turn for a bounded time.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Generation, OperationId, ProjectId,
    claims::stale_assignment,
    command::{COMMAND_WAIT_MILLIS, Command, CommandReply, Verb},
    operation::Progress,
    project::{ObservedProject, ObservedState},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Projects, Table};

/// Outcomes that a project remembers. An operation has at most four verbs for a host.
const REMEMBERED: usize = 4;

/// The host's own work on a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    Reconcile,
    /// Opening its volumes, which changes nothing about its container: what was seen of that stays true.
    Open,
}

const OPEN: &str = "open";

/// What makes two commands for a project the same. The operation is none for the host's own work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    generation: Generation,
    operation: Option<OperationId>,
    verb: &'static str,
}

impl Key {
    fn of(command: &Command) -> Self {
        Self { generation: command.generation, operation: Some(command.operation), verb: command.verb.name() }
    }
}

type Ended = Option<Result<(), Box<Error>>>;

/// What is being done for a project.
pub(super) struct Work {
    key: Key,
    pub(super) cancel: CancellationToken,
    progress: Mutex<Progress>,
    ended: watch::Sender<Ended>,
}

impl Work {
    fn new(key: Key, phase: &str) -> Arc<Self> {
        let progress = Progress { phase: phase.into(), ..Progress::default() };
        Arc::new(Self { key, cancel: CancellationToken::new(), progress: Mutex::new(progress), ended: watch::Sender::new(None) })
    }

    pub(super) fn set_progress(&self, progress: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    pub(super) fn phase(&self, phase: &str) {
        self.set_progress(Progress { phase: phase.into(), ..Progress::default() });
    }

    fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn ended(&self) -> Result<(), Box<Error>> {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // a work ends before it is dropped (see Turn)
            Err(_) => Err(Box::new(Error::internal("A work ended without a result."))),
        }
    }
}

/// How a work ended, for whoever asks after it.
pub(super) struct Outcome {
    key: Key,
    result: Result<(), Box<Error>>,
    /// Somebody was told. A failure that was told isn't kept: the next command of that key is another try.
    told: bool,
}

/// The right to work on a project; ends the work when it is dropped.
pub(super) struct Turn {
    projects: Projects,
    pub(super) project: ProjectId,
    pub(super) work: Arc<Work>,
    result: Result<(), Box<Error>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        self.projects.0.change(|table| {
            let Some(entry) = table.entries.get_mut(&self.project) else { return };
            entry.work = None;
            if self.work.key.operation.is_some() {
                entry.outcomes.retain(|outcome| outcome.key != self.work.key);
                if entry.outcomes.len() == REMEMBERED {
                    entry.outcomes.remove(0);
                }
                entry.outcomes.push(Outcome { key: self.work.key, result: result.clone(), told: false });
            }
            // nothing is known of it and nobody was ever told of it
            if entry.told.is_none() && entry.version == 0 {
                table.entries.remove(&self.project);
            }
        });
        self.work.ended.send_replace(Some(result));
    }
}

/// What a command finds when it comes.
enum Found {
    Outcome(Result<(), Box<Error>>),
    /// The same key is being worked on.
    Same(Arc<Work>),
    /// Something else is being done for the project.
    Other(Arc<Work>),
    Free(Turn),
}

impl Projects {
    /// Does what a command says, or joins the same command's work. Answers within [`COMMAND_WAIT_MILLIS`]; the work goes on after that.
    pub async fn command(&self, command: Command) -> CommandReply {
        let until = Instant::now() + Duration::from_millis(COMMAND_WAIT_MILLIS);
        if let Verb::EnsureVolumes { spec, .. } = &command.verb
            && let Err(error) = spec.check()
        {
            return CommandReply::Failed { error };
        }
        if matches!(command.verb, Verb::Cancel {}) {
            return self.cancel(&command, until).await;
        }
        loop {
            let found = match self.find(&command) {
                Ok(found) => found,
                Err(error) => return CommandReply::Failed { error },
            };
            let work = match found {
                Found::Outcome(result) => return self.reply(&command, result),
                Found::Same(work) => work,
                Found::Other(work) => match tokio::time::timeout_at(until, work.ended()).await {
                    Ok(_) => continue,
                    Err(_) => return busy(&command, &work),
                },
                Found::Free(turn) => {
                    let work = turn.work.clone();
                    self.spawn(turn, command.clone());
                    work
                }
            };
            return match tokio::time::timeout_at(until, work.ended()).await {
                Ok(result) => {
                    self.told(command.project, &work.key);
                    self.reply(&command, result)
                }
                Err(_) => CommandReply::Working { progress: work.progress() },
            };
        }
    }

    /// Gives up what the operation still does, and answers when nothing of it runs any more.
    async fn cancel(&self, command: &Command, until: Instant) -> CommandReply {
        let work = self.0.lock().entries.get(&command.project).and_then(|entry| entry.work.clone());
        let Some(work) = work.filter(|work| work.key.operation == Some(command.operation) && work.key.generation == command.generation)
        else {
            return self.reply(command, Ok(()));
        };
        work.cancel.cancel();
        match tokio::time::timeout_at(until, work.ended()).await {
            Ok(_) => self.reply(command, Ok(())),
            Err(_) => CommandReply::Working { progress: Progress { phase: "giving up".into(), ..Progress::default() } },
        }
    }

    fn find(&self, command: &Command) -> Result<Found, Error> {
        let key = Key::of(command);
        let mut table = self.0.lock();
        if self.0.closing.load(Ordering::SeqCst) {
            return Err(closing());
        }
        let entry = table.entry(command.project, command.generation);
        if entry.told.is_some() && command.generation < entry.generation {
            return Err(stale_assignment(command.generation, entry.generation));
        }
        if let Some(work) = &entry.work {
            if work.key == key {
                return Ok(Found::Same(work.clone()));
            }
            if work.key.generation < command.generation && matches!(command.verb, Verb::EnsureVolumes { .. }) {
                work.cancel.cancel(); // nobody waits for an older generation's work any more
            }
            return Ok(Found::Other(work.clone()));
        }
        if let Some(at) = entry.outcomes.iter().position(|outcome| outcome.key == key) {
            let outcome = &mut entry.outcomes[at];
            let again = outcome.told && outcome.result.is_err();
            outcome.told = true;
            if !again {
                return Ok(Found::Outcome(outcome.result.clone()));
            }
            entry.outcomes.remove(at);
        }
        Ok(Found::Free(self.begin(&mut table, command.project, key, command.verb.name())))
    }

    /// The host's own turn, if nothing has been done for the project's container since `epoch` and nothing is being done.
    ///
    /// # Errors
    /// What the host itself is doing for the project now: wait for its end and try again. None: leave the project alone.
    pub(super) fn own_turn(&self, project: ProjectId, epoch: u64, own: Own) -> Result<Turn, Option<Arc<Work>>> {
        let mut table = self.0.lock();
        if self.0.closing.load(Ordering::SeqCst) {
            return Err(None);
        }
        let entry = table.entry(project, Generation(0));
        if let Some(work) = &entry.work {
            return Err(Some(work.clone()).filter(|work| work.key.operation.is_none()));
        }
        if entry.epoch > epoch {
            return Err(None);
        }
        let verb = match own {
            Own::Reconcile => "reconcile",
            Own::Open => OPEN,
        };
        let key = Key { generation: entry.generation, operation: None, verb };
        Ok(self.begin(&mut table, project, key, "looking after the project"))
    }

    fn begin(&self, table: &mut Table, project: ProjectId, key: Key, phase: &str) -> Turn {
        if key.verb != OPEN {
            table.epoch += 1;
        }
        let epoch = table.epoch;
        let work = Work::new(key, phase);
        let entry = table.entry(project, key.generation);
        if key.verb != OPEN {
            entry.epoch = epoch;
        }
        entry.work = Some(work.clone());
        Turn { projects: self.clone(), project, work, result: Err(Box::new(Error::internal("The work on the project broke off."))) }
    }

    fn spawn(&self, turn: Turn, command: Command) {
        let projects = self.clone();
        self.0.tasks.spawn(async move {
            let result = tokio::select! {
                biased;
                () = projects.0.halt.cancelled() => Err(closing()),
                result = projects.perform(&command, &turn.work) => result,
            };
            if let Err(error) = &result
                && error.code != ErrorCode::Cancelled
            {
                tracing::warn!(project = %command.project, operation = %command.operation, verb = command.verb.name(), code = error.code.as_str(), %error, "a command failed");
            }
            turn.end(result);
        });
    }

    fn told(&self, project: ProjectId, key: &Key) {
        if let Some(entry) = self.0.lock().entries.get_mut(&project) {
            entry.outcomes.iter_mut().filter(|outcome| outcome.key == *key).for_each(|outcome| outcome.told = true);
        }
    }

    fn reply(&self, command: &Command, result: Result<(), Box<Error>>) -> CommandReply {
        match result {
            Ok(()) => CommandReply::Done {
                observed: self.observed(command.project).unwrap_or(ObservedProject {
                    project: command.project,
                    generation: command.generation,
                    state: ObservedState::Absent,
                    error: None,
                    used_bytes: None,
                }),
            },
            Err(error) => CommandReply::Failed { error: *error },
        }
    }
}

impl Turn {
    pub(super) fn end(mut self, result: Result<(), Error>) {
        self.result = result.map_err(Box::new);
    }
}

/// The answer to a command whose turn hasn't come.
fn busy(command: &Command, work: &Work) -> CommandReply {
    match work.key.operation {
        Some(operation) if operation != command.operation => CommandReply::Failed {
            error: Error::new(
                ErrorCode::OperationInProgress,
                format!("Operation {operation} is still doing {} for this project.", work.key.verb),
            )
            .details(serde_json::json!({ "operation": operation })),
        },
        // the same operation's earlier verb, or the host's own work: it comes to an end, and then this one's turn comes
        _ => CommandReply::Working { progress: work.progress() },
    }
}

fn closing() -> Error {
    Error::new(ErrorCode::Unavailable, "The host program is shutting down.").mend("It takes commands again when it has started.")
}
