//! The caller's side of what an agent does: [`Exec`] runs a program in a project, [`Terminal`] opens and watches terminals. Over any
//! [`Conn`] that may use the project's subjects.

mod exec;
mod terminal;

use std::{sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode, ProjectId,
    agent::{AgentInfo, Reply},
    subject,
};
use serde::{Serialize, de::DeserializeOwned};

pub use exec::{Exec, ExecCanceller, ExecExitWait, ExecOutput};
pub use terminal::{Terminal, TerminalEvents, TerminalOutput, Viewer};

use crate::{
    bus::{Conn, Message, answered_error},
    clock::{SystemClock, random_text},
};

/// How long a request to an agent may take. Closing a terminal is the slowest: its program has `KILL_GRACE_MILLIS` to end.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// What the agent of a project says of itself.
///
/// # Errors
/// `no_responders` if the project doesn't run here, `timed_out`.
pub async fn agent_info(conn: &Arc<dyn Conn>, project: ProjectId) -> Result<AgentInfo, Error> {
    call(conn, project, "agent.info", &serde_json::json!({})).await
}

/// One request to an agent, and its answer.
async fn call<Q: Serialize, R: DeserializeOwned>(conn: &Arc<dyn Conn>, project: ProjectId, rest: &str, request: &Q) -> Result<R, Error> {
    let payload = serde_json::to_vec(request).map_err(|error| Error::internal(format!("A request can't be written as JSON: {error}.")))?;
    let message = Message::new(subject::project(project, rest), payload);
    let answer = conn.request(message, REQUEST_TIMEOUT).await.map_err(|error| match error.code {
        ErrorCode::NoResponders => Error::new(ErrorCode::NoResponders, "The project's agent isn't there.")
            .mend("Start the project, or wait until its start has finished."),
        _ => error,
    })?;
    // by way of the master the errors of the way come as a status
    if let Some(error) = answered_error(&answer) {
        return Err(error);
    }
    let reply: Reply<R> = serde_json::from_slice(&answer.payload)
        .map_err(|error| Error::internal(format!("The agent's answer to {rest} can't be read: {error}.")))?;
    reply.into()
}

/// A new stream id.
pub fn stream_id() -> String {
    random_text(&SystemClock)
}
