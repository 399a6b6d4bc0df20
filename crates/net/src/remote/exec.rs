//! Running a program in a project.

use std::sync::Arc;

use atoll_contract::{
    Error, ErrorCode, ProjectId,
    agent::{ExecCancel, ExecExit, ExecStart, ExecStarted},
    subject,
};

use super::{call, stream_id};
use crate::{
    bus::Conn,
    byte_stream::{Receiver, Sender},
};

/// A program that runs in a project. Its parts may go to different tasks; dropping them all ends the program.
pub struct Exec {
    /// Process id inside the container.
    pub pid: u32,
    /// There if it was asked for. Finish it to let the program read the end of its input.
    pub stdin: Option<Sender>,
    /// Both outputs must be read (or dropped): the exit comes only after they have ended.
    pub stdout: Receiver,
    pub stderr: Receiver,
    pub exit: ExecExitWait,
    pub canceller: ExecCanceller,
}

/// All that a program wrote, for programs that write little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: ExecExit,
}

impl Exec {
    /// Starts a program. An empty `request.stream` is filled with a new id.
    ///
    /// # Errors
    /// `not_found` for a program or directory that isn't there, `invalid_argument` for what can't be run, `limit_exceeded`, `no_responders` if the project doesn't run.
    pub async fn start(conn: &Arc<dyn Conn>, project: ProjectId, mut request: ExecStart) -> Result<Self, Error> {
        if request.stream.is_empty() {
            request.stream = stream_id();
        }
        let part = |part| subject::stream(project, &request.stream, part);
        let (out, err, exit) = (part("out"), part("err"), part("exit"));
        let (stdout, stderr, exit) =
            tokio::try_join!(Receiver::open(conn.clone(), &out), Receiver::open(conn.clone(), &err), Receiver::open(conn.clone(), &exit))?;
        let started: ExecStarted = call(conn, project, "exec.start", &request).await?;
        let stdin = if request.stdin { Some(Sender::open(conn.clone(), &part("in")).await?) } else { None };
        let canceller = ExecCanceller { conn: conn.clone(), project, stream: request.stream };
        Ok(Self { pid: started.pid, stdin, stdout, stderr, exit: ExecExitWait(exit), canceller })
    }

    /// Reads both outputs to their ends, and the exit. Standard input, if there is one, is ended at once.
    ///
    /// # Errors
    /// `too_large` if an output has more than `limit` bytes; those of the streams.
    pub async fn output(self, limit: usize) -> Result<ExecOutput, Error> {
        let Self { stdin, mut stdout, mut stderr, exit, .. } = self;
        let finish = async {
            if let Some(stdin) = stdin {
                let _ = stdin.finish(Ok(())).await; // a program needn't read its input
            }
        };
        let read = async {
            let (stdout, stderr, exit) = tokio::try_join!(stdout.collect(limit), stderr.collect(limit), exit.wait())?;
            Ok(ExecOutput { stdout, stderr, exit })
        };
        tokio::pin!(finish, read);
        tokio::select! {
            () = &mut finish => read.await,
            output = &mut read => output,
        }
    }
}

/// Where a program's exit arrives.
#[derive(Debug)]
pub struct ExecExitWait(Receiver);

impl ExecExitWait {
    /// Waits for the program's end. Both outputs must be taken for it to come.
    ///
    /// # Errors
    /// The agent's, if it couldn't follow the program to its end; `timed_out` if the agent has been silent; `unavailable` if the connection has ended.
    pub async fn wait(mut self) -> Result<ExecExit, Error> {
        let text = self.0.collect(64 << 10).await;
        self.0.close().await;
        serde_json::from_slice(&text?).map_err(|error| Error::internal(format!("The program's exit can't be read: {error}.")))
    }
}

/// Ends a program early.
#[derive(Clone)]
pub struct ExecCanceller {
    conn: Arc<dyn Conn>,
    project: ProjectId,
    stream: String,
}

impl ExecCanceller {
    /// The same over another connection, for when the first one is gone or can't receive answers any more.
    #[must_use]
    pub fn over(&self, conn: Arc<dyn Conn>) -> Self {
        Self { conn, ..self.clone() }
    }

    /// SIGTERM, after `KILL_GRACE_MILLIS` SIGKILL, to the program's process group. The exit then says `cancelled`. Done, too, if it has ended already.
    ///
    /// # Errors
    /// `no_responders`, `timed_out`.
    pub async fn cancel(&self) -> Result<(), Error> {
        let request = ExecCancel { stream: self.stream.clone() };
        match call(&self.conn, self.project, "exec.cancel", &request).await {
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            other => other,
        }
    }
}
