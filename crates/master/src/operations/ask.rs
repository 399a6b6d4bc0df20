//! One command to one host, and what its answer means.

use std::time::Duration;

use atoll_contract::{
    Error, ErrorCode,
    command::{COMMAND_WAIT_MILLIS, Command, CommandReply, Verb},
    operation::Progress,
    project::ObservedProject,
    subject,
};
use atoll_net::bus::{Conn, Message};

use super::{advance::Event, model::Operation};

/// A host answers within [`COMMAND_WAIT_MILLIS`]; the rest is for the way and for a host that is busy.
const TIMEOUT: Duration = Duration::from_millis(COMMAND_WAIT_MILLIS + 3000);

/// What came of a command.
pub(super) struct Answer {
    pub event: Event,
    pub progress: Option<Progress>,
    pub observed: Option<ObservedProject>,
}

pub(super) async fn ask(conn: &dyn Conn, op: &Operation, verb: &Verb) -> Answer {
    let command = Command { project: op.project, generation: op.generation, operation: op.id, verb: verb.clone() };
    let payload = match serde_json::to_vec(&command) {
        Ok(payload) => payload,
        Err(error) => return only(Event::Failed(crate::edge::internal(error))),
    };
    let reply = match conn.request(Message::new(subject::host_command(op.host), payload), TIMEOUT).await {
        Ok(reply) => reply,
        Err(error) if unreached(error.code) => return only(Event::Trouble(silent(&error))),
        Err(error) => return only(Event::Failed(error)),
    };
    match serde_json::from_slice(&reply.payload) {
        Ok(CommandReply::Done { observed }) => {
            // an answer about something else isn't one; the project's own state comes with the reports anyway
            let observed = Some(observed).filter(|seen| seen.project == op.project && seen.generation == op.generation);
            Answer { event: Event::Done, progress: None, observed }
        }
        Ok(CommandReply::Working { progress }) => Answer { event: Event::Working, progress: Some(progress), observed: None },
        Ok(CommandReply::Failed { error }) if busy(error.code) => only(Event::Trouble(error)),
        Ok(CommandReply::Failed { error }) => only(Event::Failed(error)),
        Err(error) => {
            tracing::warn!(host = %op.host, operation = %op.id, %error, "a host's answer can't be understood");
            only(Event::Failed(
                Error::internal("The host answered something that this master doesn't understand.")
                    .mend("Check that host and master are of the same version."),
            ))
        }
    }
}

fn only(event: Event) -> Answer {
    Answer { event, progress: None, observed: None }
}

/// The command may not have reached the host, or its answer not us.
fn unreached(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::NoResponders | ErrorCode::TimedOut | ErrorCode::Unavailable | ErrorCode::HostUnavailable)
}

/// The host itself says "later". A `timed_out` of the host isn't that: the work had its time.
fn busy(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unavailable | ErrorCode::HostUnavailable | ErrorCode::NoResponders | ErrorCode::LimitExceeded)
}

fn silent(cause: &Error) -> Error {
    let text = match cause.code {
        ErrorCode::NoResponders => "The host isn't connected to the master.",
        ErrorCode::TimedOut => "The host didn't answer in time.",
        _ => "The host can't be reached.",
    };
    Error::new(ErrorCode::HostUnavailable, text).mend("See atoll host list; the operation goes on by itself when the host is back.")
}
