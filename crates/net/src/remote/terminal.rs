//! Terminals of a project.

use std::sync::Arc;

use atoll_contract::{
    Error, ProjectId, TerminalId,
    agent::{
        Size, TerminalAttach, TerminalAttached, TerminalClose, TerminalDetach, TerminalEvent, TerminalOpen, TerminalResize, TerminalView,
    },
    subject,
};
use bytes::Bytes;

use super::{call, stream_id};
use crate::{
    bus::Conn,
    byte_stream::{Receiver, Sender},
};

/// A terminal of a project. It lives on when this is dropped.
#[derive(Clone)]
pub struct Terminal {
    conn: Arc<dyn Conn>,
    project: ProjectId,
    pub id: TerminalId,
}

impl Terminal {
    /// Opens a terminal, or finds the one of that name.
    ///
    /// # Errors
    /// `not_found` if there is no such program or no shell, `limit_exceeded`, `no_responders` if the project doesn't run.
    pub async fn open(conn: &Arc<dyn Conn>, project: ProjectId, request: &TerminalOpen) -> Result<(Self, TerminalView), Error> {
        let view: TerminalView = call(conn, project, "terminal.open", request).await?;
        Ok((Self::of(conn, project, view.id), view))
    }

    /// The terminal of an id, whether it exists or not.
    pub fn of(conn: &Arc<dyn Conn>, project: ProjectId, id: TerminalId) -> Self {
        Self { conn: conn.clone(), project, id }
    }

    /// All terminals of a project, the oldest first.
    ///
    /// # Errors
    /// `no_responders` if the project doesn't run.
    pub async fn list(conn: &Arc<dyn Conn>, project: ProjectId) -> Result<Vec<TerminalView>, Error> {
        call(conn, project, "terminal.list", &serde_json::json!({})).await
    }

    /// Becomes a viewer, from an offset in the terminal's output on; absent for all that is kept.
    ///
    /// # Errors
    /// `not_found`, `limit_exceeded`, `no_responders`.
    pub async fn attach(&self, from: Option<u64>, size: Option<Size>) -> Result<Viewer, Error> {
        let stream = stream_id();
        let part = |part| subject::stream(self.project, &stream, part);
        let (out, event) = (part("out"), part("event"));
        let (output, events) = tokio::try_join!(Receiver::open(self.conn.clone(), &out), Receiver::open(self.conn.clone(), &event))?;
        let request = TerminalAttach { terminal: self.id, stream: stream.clone(), from, size };
        let attached: TerminalAttached = call(&self.conn, self.project, "terminal.attach", &request).await?;
        let input = Sender::open(self.conn.clone(), &part("in")).await?;
        Ok(Viewer {
            stream,
            terminal: self.clone(),
            view: attached.terminal,
            output: TerminalOutput { receiver: output, offset: attached.from },
            input,
            events: TerminalEvents(events),
        })
    }

    /// # Errors
    /// `not_found`, `invalid_argument` for a size without rows or columns, `no_responders`.
    pub async fn resize(&self, size: Size) -> Result<TerminalView, Error> {
        call(&self.conn, self.project, "terminal.resize", &TerminalResize { terminal: self.id, size }).await
    }

    /// Ends the program and forgets the terminal. Answers when the program is gone.
    ///
    /// # Errors
    /// `not_found`, `no_responders`.
    pub async fn close(&self) -> Result<TerminalView, Error> {
        call(&self.conn, self.project, "terminal.close", &TerminalClose { terminal: self.id }).await
    }
}

/// Someone who watches a terminal and types. The parts may go to different tasks. Dropping the output ends the viewing.
pub struct Viewer {
    pub terminal: Terminal,
    /// The terminal as it was when this viewer came.
    pub view: TerminalView,
    pub output: TerminalOutput,
    /// What is typed.
    pub input: Sender,
    pub events: TerminalEvents,
    stream: String,
}

impl Viewer {
    /// Stops being a viewer: output and events then end.
    ///
    /// # Errors
    /// `not_found` if it isn't one any more, `no_responders`.
    pub async fn detach(&self) -> Result<(), Error> {
        let request = TerminalDetach { terminal: self.terminal.id, stream: self.stream.clone() };
        call(&self.terminal.conn, self.terminal.project, "terminal.detach", &request).await
    }
}

/// A terminal's output as one viewer gets it.
#[derive(Debug)]
pub struct TerminalOutput {
    receiver: Receiver,
    offset: u64,
}

impl TerminalOutput {
    /// Offset in the terminal's output of the next byte: what to give as `from` to go on here with another attach.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, with the offset in the terminal's output at which they begin: more than the last ones' end if some were skipped. None when
    /// the terminal's program has ended and all is shown, or after a detach. Cancelling it loses nothing.
    ///
    /// # Errors
    /// `timed_out` if the agent has been silent, `unavailable` if the connection has ended. Attach again from [`offset`](Self::offset).
    pub async fn next(&mut self) -> Option<Result<(u64, Bytes), Error>> {
        let chunk = match self.receiver.next_chunk().await? {
            Ok(chunk) => chunk,
            Err(error) => return Some(Err(error)),
        };
        let begin = chunk.position.unwrap_or(self.offset);
        self.offset = begin + chunk.bytes.len() as u64;
        Some(Ok((begin, chunk.bytes)))
    }
}

/// What happens to a terminal, for one viewer.
#[derive(Debug)]
pub struct TerminalEvents(Receiver);

impl TerminalEvents {
    /// The next event; none when the viewing has ended.
    ///
    /// # Errors
    /// As [`TerminalOutput::next`].
    pub async fn next(&mut self) -> Option<Result<TerminalEvent, Error>> {
        let text = match self.0.next().await? {
            Ok(text) => text,
            Err(error) => return Some(Err(error)),
        };
        Some(serde_json::from_slice(&text).map_err(|error| Error::internal(format!("A terminal's event can't be read: {error}."))))
    }
}
