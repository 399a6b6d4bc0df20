//! Commands: a program on pipes, its streams, its end.
//!
//! The stream of the exit is opened with the others and used last; until then its heartbeats show that the caller is there. A connection that breaks
//! ends nothing: the program runs on, waiting when its outputs' windows are full, and everything is repeated when the caller is heard
//! again; if that takes longer than `EXEC_ORPHAN_SECONDS`, the program is ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    agent::{ExecCancel, ExecExit, ExecStart, ExecStarted, KILL_GRACE_MILLIS, MAX_EXECS},
};
use atoll_net::byte_stream::{CHUNK_BYTES, Receiver, Sender};
use bytes::Bytes;
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    reaper::{Child, Status},
    serve::Parts,
    spawn::{self, Pipes},
};

const GRACE: Duration = Duration::from_millis(KILL_GRACE_MILLIS);
/// How long an output may be silent after its program's end, if some process in the background still has it open.
const QUIET: Duration = Duration::from_millis(200);
/// What can be in a pipe when its program ends: the largest size that pipe(7) gives anyone but root by default. More is from others.
const MAX_PIPE_BYTES: usize = 1 << 20;
/// How long a killed process may take to die before its status isn't waited for any more (it may hang in the kernel).
const DEATH: Duration = Duration::from_secs(10);

pub(crate) struct Execs {
    parts: Parts,
    running: Mutex<HashMap<String, CancellationToken>>,
}

/// A place among the commands, given back when it is dropped.
struct Slot {
    execs: Arc<Execs>,
    stream: String,
    cancel: CancellationToken,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.execs.running().remove(&self.stream);
    }
}

struct Streams {
    input: Option<Receiver>,
    out: Sender,
    err: Sender,
    exit: Sender,
}

impl Execs {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self { parts, running: Mutex::default() })
    }

    pub(crate) fn count(&self) -> usize {
        self.running().len()
    }

    /// # Errors
    /// `invalid_argument`, `not_found`, `already_exists` for a stream id in use, `limit_exceeded`.
    pub(crate) async fn start(self: &Arc<Self>, request: ExecStart) -> Result<ExecStarted, Error> {
        let slot = self.reserve(&request.stream)?;
        let launch = {
            let (environment, request) = (self.parts.environment.clone(), request.clone());
            self.parts.worker.run(move || environment.program(&request.argv, &request.env, &request.cwd)).await?
        };
        let streams = self.open(&request).await?;
        let (child, pipes) = {
            let reaper = self.parts.reaper.clone();
            self.parts.worker.run(move || spawn::on_pipes(&reaper, &launch, request.stdin)).await?
        };
        let pid = child.pid.as_raw_nonzero().get().unsigned_abs();
        let timeout = request.timeout_millis.map(Duration::from_millis);
        self.parts.tasks.spawn(run(slot, child, pipes, streams, timeout));
        Ok(ExecStarted { pid })
    }

    /// # Errors
    /// `not_found` if no such command runs.
    pub(crate) fn cancel(&self, request: &ExecCancel) -> Result<(), Error> {
        match self.running().get(&request.stream) {
            Some(cancel) => {
                cancel.cancel();
                Ok(())
            }
            None => Err(Error::not_found("running command")),
        }
    }

    fn reserve(self: &Arc<Self>, stream: &str) -> Result<Slot, Error> {
        Parts::check_stream(stream)?;
        let mut running = self.running();
        if running.contains_key(stream) {
            return Err(Error::new(ErrorCode::AlreadyExists, "A command with this stream id runs already."));
        }
        if running.len() >= MAX_EXECS {
            return Err(Error::new(ErrorCode::LimitExceeded, format!("{MAX_EXECS} commands run in this project already."))
                .mend("Wait for one to end, or cancel one."));
        }
        let cancel = self.parts.stop.child_token();
        running.insert(stream.to_owned(), cancel.clone());
        Ok(Slot { execs: self.clone(), stream: stream.to_owned(), cancel })
    }

    async fn open(&self, request: &ExecStart) -> Result<Streams, Error> {
        let part = |part| self.parts.stream(&request.stream, part);
        let (input, out, err, exit) = (part("in"), part("out"), part("err"), part("exit"));
        let conn = || self.parts.conn();
        let input = async { if request.stdin { Receiver::open(conn(), &input).await.map(Some) } else { Ok(None) } };
        let (input, out, err, exit) =
            tokio::try_join!(input, Sender::open(conn(), &out), Sender::open(conn(), &err), Sender::open(conn(), &exit))?;
        Ok(Streams { input, out, err, exit })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        // every change of the map is one call, so a panic elsewhere leaves it whole
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a program ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Itself(Status),
    TimedOut,
    Cancelled,
}

/// Follows a program to its end, and its outputs to theirs.
async fn run(slot: Slot, mut child: Child, pipes: Pipes, streams: Streams, timeout: Option<Duration>) {
    let Streams { input, out, err, exit } = streams;
    let exited = CancellationToken::new();
    let out = tokio::spawn(carry(pipes.stdout, out, exited.clone()));
    let err = tokio::spawn(carry(pipes.stderr, err, exited.clone()));
    // kept until the program has ended, or it would take the loss of its caller for the end of its input
    let mut stdin = pipes.stdin;
    let cause = tokio::select! {
        biased;
        status = child.wait() => Cause::Itself(status),
        () = slot.cancel.cancelled() => Cause::Cancelled,
        () = sleep(timeout) => Cause::TimedOut,
        error = exit.failed() => {
            tracing::info!(%error, pid = child.pid.as_raw_nonzero(), "a command's caller is gone");
            Cause::Cancelled
        }
        error = feed(&mut stdin, input) => {
            tracing::info!(%error, pid = child.pid.as_raw_nonzero(), "a command's input broke off");
            Cause::Cancelled
        }
    };
    let status = match cause {
        Cause::Itself(status) => status,
        Cause::TimedOut | Cause::Cancelled => end(&mut child).await,
    };
    exited.cancel();
    drop(stdin);
    let ended =
        ExecExit { code: status.code, signal: status.signal, timed_out: cause == Cause::TimedOut, cancelled: cause == Cause::Cancelled };
    let (out_abort, err_abort) = (out.abort_handle(), err.abort_handle());
    let outputs = async {
        for (name, result) in [("stdout", out.await), ("stderr", err.await)] {
            if let Ok(Err(error)) = result {
                tracing::debug!(%error, name, "an output wasn't read to its end");
            }
        }
    };
    // a caller that has gone, or cancels now, doesn't want the rest
    let cancelled = async { if cause == Cause::Cancelled { std::future::pending().await } else { slot.cancel.cancelled().await } };
    tokio::select! {
        () = outputs => {}
        _ = exit.failed() => {}
        () = cancelled => {}
        () = agent_stops(&slot.execs) => {}
    }
    out_abort.abort();
    err_abort.abort();
    let text = serde_json::to_vec(&ended).unwrap_or_default(); // three numbers and a flag always can
    let execs = slot.execs.clone();
    drop(slot); // the program is over; that its caller hears of it is no reason to refuse another
    tokio::select! {
        told = exit.finish_with(Bytes::from(text), Ok(())) => {
            if let Err(error) = told {
                tracing::debug!(%error, "nobody took a command's exit");
            }
        }
        () = agent_stops(&execs) => {}
    }
}

/// After the agent is told to stop, callers get a moment for what is left, not as long as they like.
async fn agent_stops(execs: &Execs) {
    execs.parts.stop.cancelled().await;
    tokio::time::sleep(crate::FAREWELL / 2).await;
}

async fn sleep(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

/// SIGTERM to the program's group, and SIGKILL to what is left of it after the grace.
async fn end(child: &mut Child) -> Status {
    let group = child.pid;
    let deadline = Instant::now() + GRACE;
    spawn::signal_group(group, Signal::TERM);
    let status = tokio::time::timeout_at(deadline, child.wait()).await.ok();
    // its children may need the grace as well
    while status.is_some() && spawn::group_is_there(group) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    spawn::signal_group(group, Signal::KILL);
    match status {
        Some(status) => status,
        None => tokio::time::timeout(DEATH, child.wait()).await.unwrap_or(Status { code: 128 + 9, signal: Some(9) }),
    }
}

/// Carries an output to its stream, at the pace of the reader. If the reader closes the stream, the pipe is closed, as a shell's pipeline does.
async fn carry(mut pipe: pipe::Receiver, mut stream: Sender, exited: CancellationToken) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut after_exit = 0;
    while after_exit < MAX_PIPE_BYTES {
        let over = exited.is_cancelled();
        let read = tokio::select! {
            biased;
            read = pipe.read(&mut buffer) => read,
            error = stream.failed() => return Err(error),
            () = exited.cancelled(), if !over => continue,
            () = tokio::time::sleep(QUIET), if over => break,
        };
        let read = match read {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => {
                let error = Error::internal(format!("The program's output can't be read: {error}."));
                return stream.finish(Err(error)).await;
            }
        };
        if over {
            after_exit += read;
        }
        // copied, since a small read must not keep a large buffer alive while it waits for its acknowledgement
        stream.send(Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default())).await?;
    }
    drop(pipe);
    stream.finish(Ok(())).await
}

/// Carries the input to the program, and closes the pipe at its end. Returns only if the input broke off; its proper end, or a program that
/// reads no more, is no reason to do anything.
async fn feed(pipe: &mut Option<pipe::Sender>, input: Option<Receiver>) -> Error {
    if let (Some(open), Some(mut input)) = (pipe.as_mut(), input) {
        while let Some(bytes) = input.next().await {
            match bytes {
                Ok(bytes) if open.write_all(&bytes).await.is_ok() => {}
                Ok(_) => break,
                Err(error) => return error,
            }
        }
    }
    *pipe = None;
    std::future::pending().await
}
