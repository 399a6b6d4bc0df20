//! One terminal: a program on a PTY, and what it has written.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, TerminalId, Timestamp,
    agent::{ExecExit, KILL_GRACE_MILLIS, MAX_VIEWERS, SCROLLBACK_BYTES, Size, TerminalEvent, TerminalView},
};
use atoll_net::byte_stream::CHUNK_BYTES;
use bytes::Bytes;
use rustix::process::{Pid, Signal};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};
use tokio_util::sync::CancellationToken;

use super::scrollback::Scrollback;
use crate::{
    reaper::{Child, Status},
    spawn::{self, Pty},
    worker::Worker,
};

/// Events that wait for a viewer; one that lets more wait is put out.
const MAILBOX: usize = 64;
/// After its program's end a terminal is read until nothing has come for so long: the kernel hangs it up then, so it is nearly always
/// over at once.
const QUIET: Duration = Duration::from_millis(100);

/// What a session is made of.
pub(super) struct Opened {
    pub(super) id: TerminalId,
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    pub(super) at: Timestamp,
    pub(super) size: Size,
    pub(super) child: Child,
    pub(super) pty: Pty,
}

pub(crate) struct Session {
    pub(super) id: TerminalId,
    pub(super) name: String,
    argv: Vec<String>,
    pid: Pid,
    opened_at: Timestamp,
    pty: Pty,
    worker: Arc<Worker>,
    /// Chunks of input are written whole, whoever sends them.
    writing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Offset of the output's end.
    output: watch::Sender<u64>,
    /// The program has ended and all that it wrote is in the scrollback.
    exited: CancellationToken,
    /// Nothing reads the PTY any more.
    drained: CancellationToken,
}

struct State {
    scrollback: Scrollback,
    size: Size,
    exit: Option<ExecExit>,
    /// Whether this end was asked for.
    closing: bool,
    viewers: HashMap<String, Mailbox>,
}

/// How a viewer is reached.
struct Mailbox {
    events: mpsc::Sender<TerminalEvent>,
    leave: CancellationToken,
    /// It doesn't take its events.
    late: CancellationToken,
}

/// A viewer's place in a session, given back when it is dropped.
pub(super) struct Place {
    session: Arc<Session>,
    stream: String,
    /// It was asked to leave.
    pub(super) leave: CancellationToken,
    /// It doesn't take its events.
    pub(super) late: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.session.state().viewers.remove(&self.stream);
    }
}

impl Session {
    pub(super) fn start(worker: Arc<Worker>, opened: Opened) -> Arc<Self> {
        let Opened { id, name, argv, at, size, child, pty } = opened;
        let state = State { scrollback: Scrollback::new(SCROLLBACK_BYTES), size, exit: None, closing: false, viewers: HashMap::new() };
        let session = Arc::new(Self {
            id,
            name,
            argv,
            pid: child.pid,
            opened_at: at,
            pty,
            worker,
            writing: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
            output: watch::channel(0).0,
            exited: CancellationToken::new(),
            drained: CancellationToken::new(),
        });
        let reader = session.clone();
        tokio::spawn(async move {
            reader.read().await;
            reader.drained.cancel();
        });
        tokio::spawn(session.clone().follow(child));
        session
    }

    pub(super) fn view(&self) -> TerminalView {
        let state = self.state();
        TerminalView {
            id: self.id,
            name: self.name.clone(),
            argv: self.argv.clone(),
            pid: self.pid.as_raw_nonzero().get().unsigned_abs(),
            size: state.size,
            viewers: u32::try_from(state.viewers.len()).unwrap_or(u32::MAX),
            output_bytes: state.scrollback.end(),
            opened_at: self.opened_at,
            exit: state.exit.clone(),
        }
    }

    pub(super) fn has_exited(&self) -> bool {
        self.exited.is_cancelled()
    }

    pub(super) async fn exited(&self) {
        self.exited.cancelled().await;
    }

    /// # Errors
    /// `internal` if the kernel refuses.
    pub(super) fn resize(&self, size: Size) -> Result<(), Error> {
        let mut state = self.state();
        if state.size != size && state.exit.is_none() {
            self.pty.resize(size).map_err(|error| Error::internal(format!("The terminal can't be resized: {error}.")))?;
            state.size = size;
            state.tell(&TerminalEvent::Resized { size });
        }
        Ok(())
    }

    /// Becomes a viewer under a stream id, as long as the place is held. The events end with it.
    ///
    /// # Errors
    /// `already_exists`, `limit_exceeded`.
    pub(super) fn join(self: &Arc<Self>, stream: &str) -> Result<(Place, mpsc::Receiver<TerminalEvent>), Error> {
        let mut state = self.state();
        if state.viewers.contains_key(stream) {
            return Err(Error::new(ErrorCode::AlreadyExists, "A viewer with this stream id is there already."));
        }
        if state.viewers.len() >= MAX_VIEWERS {
            return Err(Error::new(ErrorCode::LimitExceeded, format!("This terminal has {MAX_VIEWERS} viewers already.")));
        }
        let (events, mailbox) = mpsc::channel(MAILBOX);
        let (leave, late) = (CancellationToken::new(), CancellationToken::new());
        if let Some(exit) = &state.exit {
            let _ = events.try_send(TerminalEvent::Exited { exit: exit.clone() }); // it is empty
        }
        state.viewers.insert(stream.to_owned(), Mailbox { events, leave: leave.clone(), late: late.clone() });
        Ok((Place { session: self.clone(), stream: stream.to_owned(), leave, late }, mailbox))
    }

    /// # Errors
    /// `not_found`.
    pub(super) fn detach(&self, stream: &str) -> Result<(), Error> {
        // the viewer gives its place back itself, so that its stream id isn't taken again before it has gone
        self.state().viewers.get(stream).ok_or_else(|| Error::not_found("viewer"))?.leave.cancel();
        Ok(())
    }

    /// Tells one viewer that its stream goes on elsewhere.
    pub(super) fn tell_skipped(&self, stream: &str, offset: u64) {
        if let Some(viewer) = self.state().viewers.get(stream) {
            viewer.tell(TerminalEvent::Skipped { offset });
        }
    }

    /// Where a viewer that asks for `from` begins.
    pub(super) fn begin(&self, from: Option<u64>) -> u64 {
        let state = self.state();
        from.unwrap_or(0).clamp(state.scrollback.start(), state.scrollback.end())
    }

    /// Output from an offset on, or from where the scrollback begins; empty if there is none yet.
    pub(super) fn output(&self, from: u64) -> (u64, Bytes) {
        self.state().scrollback.read(from, CHUNK_BYTES)
    }

    /// Resolves when there is output beyond an offset.
    pub(super) async fn output_after(&self, offset: u64) {
        // the channel's other end is in self, so it can't close
        let _ = self.output.subscribe().wait_for(|end| *end > offset).await;
    }

    /// Types into the terminal. What comes after the program's end goes nowhere.
    pub(super) async fn write(&self, bytes: &[u8]) {
        let _writing = self.writing.lock().await;
        tokio::select! {
            result = self.pty.write_all(bytes) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a terminal doesn't take input");
                }
            }
            () = self.exited.cancelled() => {}
        }
    }

    /// SIGHUP to all of the terminal's session, as when a modem hangs up; after the grace SIGKILL.
    pub(super) async fn end(&self) {
        self.state().closing = true;
        let pid = self.pid;
        let signal = |signal| {
            let job = move || {
                spawn::signal_session(pid, signal);
                Ok(())
            };
            self.worker.run(job)
        };
        let _ = signal(Signal::HUP).await;
        let _ = signal(Signal::CONT).await; // a stopped job can't take the first
        let grace = Duration::from_millis(KILL_GRACE_MILLIS);
        let _ = tokio::time::timeout(grace, self.exited.cancelled()).await;
        let _ = signal(Signal::KILL).await;
        // a process that hangs in the kernel isn't waited for
        let _ = tokio::time::timeout(grace, self.exited.cancelled()).await;
    }

    async fn read(&self) {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match self.pty.read(&mut buffer).await {
                Ok(0) => return,
                Ok(read) => {
                    let end = {
                        let mut state = self.state();
                        state.scrollback.push(buffer.get(..read).unwrap_or_default());
                        state.scrollback.end()
                    };
                    self.output.send_replace(end);
                }
                Err(error) => {
                    tracing::warn!(%error, "a terminal can't be read");
                    return;
                }
            }
        }
    }

    /// Waits for the program's end, and for the rest of its output.
    async fn follow(self: Arc<Self>, mut child: Child) {
        let Status { code, signal } = child.wait().await;
        let mut output = self.output.subscribe();
        loop {
            tokio::select! {
                biased;
                () = self.drained.cancelled() => break,
                changed = tokio::time::timeout(QUIET, output.changed()) => {
                    if changed.is_err() {
                        break; // something in the background has the terminal open
                    }
                }
            }
        }
        {
            let mut state = self.state();
            let exit = ExecExit { code, signal, timed_out: false, cancelled: state.closing };
            state.exit = Some(exit.clone());
            state.tell(&TerminalEvent::Exited { exit });
        }
        self.exited.cancel();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // what is inside holds no promise across calls that a panic could break
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&self, event: &TerminalEvent) {
        self.viewers.values().for_each(|viewer| viewer.tell(event.clone()));
    }
}

impl Mailbox {
    fn tell(&self, event: TerminalEvent) {
        match self.events.try_send(event) {
            // the output says the same at its own place
            Ok(()) | Err(TrySendError::Closed(_) | TrySendError::Full(TerminalEvent::Skipped { .. })) => {}
            Err(TrySendError::Full(_)) => self.late.cancel(),
        }
    }
}
