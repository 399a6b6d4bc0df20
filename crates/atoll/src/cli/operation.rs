//! `operation`, and waiting for one with progress as all commands do that begin one.

use std::time::Duration;

use atoll_contract::{
    Error, ErrorCode, OperationId,
    operation::{OperationStatus, OperationView},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use super::Context;
use crate::{
    args::Operation,
    client::Master,
    errors::Result,
    output::{progress::Meter, say, tables},
};

/// How long a master may be away while somebody waits: long enough for a restart or an upgrade.
const MASTER_AWAY: Duration = Duration::from_mins(2);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub async fn run(context: &Context, command: Operation) -> Result<()> {
    let master = context.master()?;
    match command {
        Operation::List(args) => {
            let mut list = master.operations().await?;
            if !args.all {
                list.operations.retain(|operation| !operation.status.ended());
            }
            context.output.show(&list, |list| {
                if list.operations.is_empty() && !args.all {
                    return "No operation is under way. With --all, those that have ended are listed, too.".into();
                }
                tables::operations(&list.operations, context.clock.now())
            })
        }
        Operation::Info(args) => {
            let operation = master.operation(args.id).await?;
            context.output.show(&operation, tables::operation)
        }
        Operation::Wait(args) => {
            let waiting = follow(context, &master, args.id);
            let operation = match args.timeout {
                None => waiting.await?,
                Some(span) => tokio::time::timeout(span.0, waiting).await.map_err(|_| {
                    Error::new(ErrorCode::TimedOut, format!("The operation hasn't ended within {span}; it goes on."))
                        .mend(format!("Wait again with atoll operation wait {}.", args.id))
                })??,
            };
            context.output.show(&operation, |operation| format!("{} {}: done", operation.kind.as_str(), operation.project_name))
        }
        Operation::Cancel(args) => {
            let operation = master.cancel(args.id).await?;
            context.output.show(&operation, |operation| {
                format!("{} {}: {}", operation.kind.as_str(), operation.project_name, tables::status(operation.status))
            })
        }
    }
}

/// Waits until an operation has ended and shows its progress. The first Ctrl-C says how to go on, a second asks the master to cancel, a third
/// leaves.
///
/// # Errors
/// The operation's own error if it failed or was cancelled; `unavailable` if the master is away for [`MASTER_AWAY`].
pub async fn follow(context: &Context, master: &Master, id: OperationId) -> Result<OperationView> {
    let mut meter = Meter::new(context.output.json);
    let mut watch = Watch { master, id, version: 0, heard: Instant::now(), pause: FIRST_PAUSE, told: false };
    let mut interrupts = 0;
    // listened to from here on without a gap, so that no Ctrl-C is lost while another is answered
    let mut signals = signal(SignalKind::interrupt()).map_err(|error| crate::errors::io("Ctrl-C", &error))?;
    loop {
        let next = tokio::select! {
            next = watch.next() => next?,
            _ = signals.recv() => {
                interrupts += 1;
                interrupt(master, id, &meter, interrupts).await?;
                continue;
            }
        };
        let Some(operation) = next else {
            if !watch.told {
                watch.told = true;
                meter.say("The master doesn't answer; trying again.");
            }
            continue;
        };
        meter.operation(&operation);
        if operation.status.ended() {
            drop(meter);
            return ended(operation);
        }
    }
}

async fn interrupt(master: &Master, id: OperationId, meter: &Meter, count: u32) -> Result<()> {
    match count {
        1 => meter.say_always(&format!(
            "The operation goes on without this command: atoll operation wait {id}\nCtrl-C again asks for it to be cancelled; a third leaves."
        )),
        2 => match master.cancel(id).await {
            Ok(_) => meter.say_always("Asked for it to be cancelled."),
            Err(error) => meter.say_always(&format!("It can't be cancelled: {}", error.message)),
        },
        _ => {
            return Err(Error::new(ErrorCode::Cancelled, "Stopped waiting; the operation goes on.")
                .mend(format!("Wait again with atoll operation wait {id}.")));
        }
    }
    Ok(())
}

/// Success, or the operation's error as this command's.
fn ended(operation: OperationView) -> Result<OperationView> {
    let what = format!("{} {}", operation.kind.as_str(), operation.project_name);
    match operation.status {
        OperationStatus::Done => Ok(operation),
        OperationStatus::Cancelled => Err(Error::new(ErrorCode::Cancelled, format!("The operation ({what}) was cancelled and undone."))),
        _ => {
            let error = operation.error.unwrap_or_else(|| Error::internal("It failed without saying why."));
            Err(Error { message: format!("{what} failed: {}", error.message), ..error })
        }
    }
}

/// Asks for changes one after another, over a master that restarts in between.
struct Watch<'a> {
    master: &'a Master,
    id: OperationId,
    version: u64,
    heard: Instant,
    pause: Duration,
    told: bool,
}

impl Watch<'_> {
    /// The next change; none if the master didn't answer and it is worth asking again.
    async fn next(&mut self) -> Result<Option<OperationView>> {
        // the first question must not wait at the master: the operation may have ended already
        let answer = match self.version {
            0 => self.master.operation(self.id).await,
            version => self.master.operation_after(self.id, version).await,
        };
        match answer {
            Ok(operation) => {
                if operation.version <= self.version && !operation.status.ended() {
                    // nothing new: a master waits before it says so, and one that doesn't isn't asked without a pause
                    tokio::time::sleep(FIRST_PAUSE).await;
                }
                (self.version, self.heard, self.pause, self.told) = (operation.version.max(1), Instant::now(), FIRST_PAUSE, false);
                Ok(Some(operation))
            }
            Err(error) if error.retry && self.heard.elapsed() < MASTER_AWAY => {
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Ok(None)
            }
            // it has no way on to be told of, or none for this account
            Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::Forbidden | ErrorCode::Unauthenticated) => Err(error),
            Err(error) => {
                Err(Error { mend: format!("The operation goes on without this command: atoll operation wait {}", self.id), ..error })
            }
        }
    }
}

/// Says what was accepted when nobody waits.
pub fn accepted(context: &Context, accepted: &atoll_contract::api::ProjectAccepted) -> Result<()> {
    context.output.show(accepted, |accepted| accepted.operation.to_string())?;
    if !context.output.json {
        say(&format!("Accepted; wait for it with atoll operation wait {}", accepted.operation));
    }
    Ok(())
}
