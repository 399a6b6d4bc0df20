//! `exec`: a program in a project, its streams on this process's own.

use std::{io::IsTerminal, sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode, ProjectId,
    agent::{ExecExit, ExecStart},
};
use atoll_net::{
    bus::Conn,
    byte_stream::{Receiver, Sender},
    clock::SharedClock,
    remote::{Exec, ExecCanceller},
};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};

use super::Context;
use crate::{
    args::ExecArgs,
    client::{self, Master},
    errors::{self, EXEC_FAILED, Result},
    output::say,
};

/// As `timeout` of coreutils exits when the time was up.
const TIMED_OUT: u8 = 124;
/// After this, a cancel is tried over a new connection. Ending a program is said at once; its death isn't waited for.
const CANCEL_PATIENCE: Duration = Duration::from_secs(3);
const READ_SIZE: usize = 32 << 10;

/// Never fails: an error of its own is said here and becomes [`EXEC_FAILED`], since all other codes are the program's.
pub async fn run(context: &Context, args: ExecArgs) -> Result<u8> {
    Ok(match execute(context, args).await {
        Ok(exit) if exit.timed_out => {
            let error = Error::new(ErrorCode::TimedOut, "The program was ended, since its time was up.");
            say(&errors::render(&error, context.output.json));
            TIMED_OUT
        }
        Ok(exit) => (exit.code & 0xff) as u8,
        Err(error) => {
            say(&errors::render(&error, context.output.json));
            EXEC_FAILED
        }
    })
}

async fn execute(context: &Context, args: ExecArgs) -> Result<ExecExit> {
    let master = context.master()?;
    let project = master.project_id(&args.project).await?;
    let request = ExecStart {
        stream: String::new(),
        argv: args.argv,
        env: args.env.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        cwd: args.cwd,
        stdin: args.interactive || !std::io::stdin().is_terminal(),
        timeout_millis: args.timeout.map(|span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)),
    };
    // before the start, so that no Ctrl-C falls between
    let mut interrupts = Interrupts::new()?;
    let start = async |conn: &Arc<dyn Conn>| Exec::start(conn, project, request.clone()).await;
    let start = Box::pin(client::ask_agent(&master, project, &context.clock, start));
    let (_bus, exec) = tokio::select! {
        started = start => started?,
        // what may have begun ends by itself, as nobody follows it
        () = interrupts.next() => return Err(Error::new(ErrorCode::Cancelled, "Stopped before the program was there.")),
    };
    let Exec { stdin, stdout, stderr, exit, canceller, .. } = exec;
    // input goes on by itself: the program may end without reading it, and nobody can cancel a read from a terminal
    let input = stdin.map(|stdin| tokio::spawn(feed(stdin)));
    let outputs = async { tokio::try_join!(copy(stdout, tokio::io::stdout()), copy(stderr, tokio::io::stderr()), exit.wait()) };
    let result = tokio::select! {
        result = outputs => result.map(|((), (), exit)| exit),
        error = interrupts.cancel_then_leave(Box::pin(cancel(canceller, &master, project, &context.clock))) => Err(error),
    };
    if let Some(input) = input {
        input.abort();
    }
    result
}

/// Ends the program: over the connection that its streams use, or over a new one if that one doesn't carry an answer any more.
async fn cancel(canceller: ExecCanceller, master: &Master, project: ProjectId, clock: &SharedClock) -> Result<()> {
    if matches!(tokio::time::timeout(CANCEL_PATIENCE, canceller.cancel()).await, Ok(Ok(()))) {
        return Ok(());
    }
    let cancel = async |conn: &Arc<dyn Conn>| canceller.over(conn.clone()).cancel().await;
    client::ask_agent(master, project, clock, cancel).await.map(|_| ())
}

/// Standard input to the program, until one of the two ends.
async fn feed(mut program: Sender) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = BytesMut::with_capacity(READ_SIZE);
    loop {
        match stdin.read_buf(&mut buffer).await {
            Ok(0) => break,
            Ok(_) => {
                // a program that doesn't read (any more) is no error
                if program.send(buffer.split().freeze()).await.is_err() {
                    return;
                }
                buffer.reserve(READ_SIZE);
            }
            Err(error) => {
                let _ = program.finish(Err(errors::io("Standard input", &error))).await;
                return;
            }
        }
    }
    let _ = program.finish(Ok(())).await;
}

/// A stream of the program to this process's own. If the reader there has gone, the stream is closed, so that the program learns it as it would
/// in a pipe.
async fn copy(mut from: Receiver, mut to: impl AsyncWrite + Unpin) -> Result<()> {
    while let Some(bytes) = from.next().await {
        let bytes: Bytes = bytes?;
        let written = async {
            to.write_all(&bytes).await?;
            to.flush().await
        };
        match written.await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(errors::io("The output", &error)),
        }
    }
    from.close().await;
    Ok(())
}

/// Ctrl-C, and SIGTERM.
struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        let failed = |error: std::io::Error| errors::io("A signal", &error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// The first signal ends the program, whose exit then comes as always; the second leaves without it.
    async fn cancel_then_leave(mut self, cancel: impl Future<Output = Result<()>>) -> Error {
        self.next().await;
        tokio::select! {
            cancelled = cancel => if let Err(error) = cancelled {
                return error;
            },
            () = self.next() => {}
        }
        self.next().await;
        Error::new(ErrorCode::Cancelled, "Left without waiting for the program's end; it has been told to end.")
    }
}
