//! `shell`: a terminal of a project in this terminal. It comes back by itself after a lost connection, where it was.

mod keys;
mod tty;

use std::time::Duration;

use atoll_contract::{
    Error, ErrorCode, ProjectId,
    agent::{ExecExit, TerminalEvent, TerminalOpen},
};
use atoll_net::remote::{Terminal, Viewer};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use self::{
    keys::{Keys, Typed},
    tty::Raw,
};
use super::Context;
use crate::{
    args::ShellArgs,
    client::{self, Bus, Master},
    errors::{self, EXEC_FAILED, Result},
    output::say,
};

/// How long a host may be away before the shell gives up; its terminal goes on meanwhile.
const AWAY: Duration = Duration::from_mins(10);
/// A project without an agent has most likely been stopped; a host program that restarts has its agents back within seconds.
const AGENT_AWAY: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Somebody sits there and waits, so not long.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the connection is looked at: the streams themselves would notice its loss only after a while.
const LOOK: Duration = Duration::from_millis(500);
/// After the program's end, the last of its output may still be on its way.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
const READ_SIZE: usize = 4096;

/// How a viewing ended.
enum End {
    /// The user left, or this process was told to end.
    Left,
    /// The program has ended; nothing is known of its exit if the terminal was closed by someone else.
    Exited(Option<ExecExit>),
    Lost(Error),
}

/// An error of its own is said here and becomes [`EXEC_FAILED`], since other codes are the program's.
pub async fn run(context: &Context, args: ShellArgs) -> Result<u8> {
    Ok(match shell(context, args).await {
        Ok(code) => code,
        Err(error) => {
            say(&errors::render(&error, context.output.json));
            EXEC_FAILED
        }
    })
}

async fn shell(context: &Context, args: ShellArgs) -> Result<u8> {
    if !tty::is_there() {
        return Err(
            Error::invalid("A shell needs a terminal on standard input and output.").mend("Use atoll exec for programs without one.")
        );
    }
    let master = context.master()?;
    let project = master.project_id(&args.project).await?;
    let request = TerminalOpen { name: args.terminal.clone(), argv: args.argv, env: tty::environment(), cwd: args.cwd, size: tty::size() };
    let (bus, viewer) = client::ask_agent(&master, project, &context.clock, async |conn| {
        let (terminal, _) = Terminal::open(conn, project, &request).await?;
        terminal.attach(None, Some(tty::size())).await
    })
    .await?;
    let mut shell = Shell { context, master, project, keys: Keys::default(), typed: read_keys(), offset: 0, leave: Leave::new()? };
    let raw = Raw::enter()?;
    let end = shell.watch_on(bus, viewer).await;
    drop(raw);
    match end? {
        End::Left => {
            say(&format!("\nLeft the terminal, which goes on: atoll shell {} --terminal {}", args.project, args.terminal));
            Ok(0)
        }
        End::Exited(exit) => Ok(exit.map_or(0, |exit| (exit.code & 0xff) as u8)),
        End::Lost(error) => Err(error),
    }
}

struct Shell<'a> {
    context: &'a Context,
    master: Master,
    project: ProjectId,
    keys: Keys,
    typed: mpsc::Receiver<Bytes>,
    /// Up to where the terminal's output has been shown.
    offset: u64,
    leave: Leave,
}

impl Shell<'_> {
    /// Watches, and comes back after each loss, until there is nothing more to watch.
    async fn watch_on(&mut self, mut bus: Bus, mut viewer: Viewer) -> Result<End> {
        loop {
            let terminal = viewer.terminal.id;
            match self.watch(&bus, viewer).await? {
                End::Lost(error) => {
                    drop(bus);
                    say(&format!("\r\n[{} Trying again; Ctrl-] d leaves.]\r", error.message));
                    match self.come_back(terminal).await? {
                        Some(back) => {
                            (bus, viewer) = back;
                            say("\r[Connected again.]\r");
                        }
                        None => return Ok(End::Left),
                    }
                }
                end => return Ok(end),
            }
        }
    }

    /// One viewing over one connection.
    async fn watch(&mut self, bus: &Bus, viewer: Viewer) -> Result<End> {
        let Viewer { terminal, mut output, mut input, mut events, .. } = viewer;
        let (to_program, mut from_keys) = mpsc::channel::<Bytes>(16);
        // the tasks of this viewing; dropped with it
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(bytes) = from_keys.recv().await {
                if input.send(bytes).await.is_err() {
                    return;
                }
            }
        });
        let mut stdout = tokio::io::stdout();
        let mut resized = signal(SignalKind::window_change()).map_err(|error| errors::io("A signal", &error))?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut exit: Option<(Option<ExecExit>, Instant)> = None;
        let mut more_events = true;
        loop {
            let last = exit.as_ref().map_or_else(|| Instant::now() + AWAY, |(_, at)| *at + LAST_OUTPUT);
            tokio::select! {
                next = output.next() => match next {
                    Some(Ok((begin, bytes))) => {
                        if begin > self.offset && self.offset > 0 {
                            let _ = stdout.write_all(b"\r\n[some output was skipped]\r\n").await;
                        }
                        self.offset = output.offset();
                        show(&mut stdout, &bytes).await?;
                    }
                    Some(Err(error)) => return Ok(End::Lost(error)),
                    None => return Ok(End::Exited(ended(exit, more_events, &mut events).await)),
                },
                event = events.next(), if more_events => match event {
                    Some(Ok(TerminalEvent::Exited { exit: how })) => exit = Some((Some(how), Instant::now())),
                    Some(Ok(_)) => {}
                    // the output says what is wrong, if anything is
                    Some(Err(_)) | None => more_events = false,
                },
                typed = self.typed.recv() => match self.keys.feed(&typed.unwrap_or_default()) {
                    Typed::Leave => return Ok(End::Left),
                    Typed::Send(bytes) => if !bytes.is_empty() {
                        let _ = to_program.send(bytes.into()).await;
                    },
                },
                _ = resized.recv() => {
                    let terminal = terminal.clone();
                    tasks.spawn(async move { let _ = terminal.resize(tty::size()).await; });
                }
                _ = look.tick() => if !bus.connected() {
                    return Ok(End::Lost(Error::new(ErrorCode::Unavailable, "The connection is lost.")));
                },
                () = tokio::time::sleep_until(last), if exit.is_some() => return Ok(End::Exited(exit.and_then(|(how, _)| how))),
                () = self.leave.wait() => return Ok(End::Left),
            }
        }
    }

    /// Connects again and goes on where the output was. None if the user left meanwhile.
    async fn come_back(&mut self, id: atoll_contract::TerminalId) -> Result<Option<(Bus, Viewer)>> {
        let lost = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = async {
                let bus = client::open_bus(&self.master, self.project, &self.context.clock).await?;
                let viewer = Terminal::of(&bus.conn, self.project, id).attach(Some(self.offset), Some(tty::size())).await?;
                Ok::<_, Error>((bus, viewer))
            };
            tokio::select! {
                back = attempt => match back {
                    Ok(back) => return Ok(Some(back)),
                    Err(error) if error.code == ErrorCode::NoResponders && lost.elapsed() > AGENT_AWAY => return Err(error),
                    Err(error) if error.retry && lost.elapsed() < AWAY => {}
                    Err(error) => return Err(error),
                },
                () = wants_to_leave(&mut self.typed, &mut self.keys) => return Ok(None),
                () = self.leave.wait() => return Ok(None),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = wants_to_leave(&mut self.typed, &mut self.keys) => return Ok(None),
                () = self.leave.wait() => return Ok(None),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// While nothing is connected, keys reach nobody; the leave key and Ctrl-C do what one wants of them then.
async fn wants_to_leave(typed: &mut mpsc::Receiver<Bytes>, keys: &mut Keys) {
    while let Some(bytes) = typed.recv().await {
        if bytes.contains(&3) || matches!(keys.feed(&bytes), Typed::Leave) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// How the program ended: what was said of it already, or what is said within a moment.
async fn ended(known: Option<(Option<ExecExit>, Instant)>, more: bool, events: &mut atoll_net::remote::TerminalEvents) -> Option<ExecExit> {
    if known.is_some() || !more {
        return known.and_then(|(exit, _)| exit);
    }
    let wait = async {
        while let Some(event) = events.next().await {
            if let Ok(TerminalEvent::Exited { exit }) = event {
                return Some(exit);
            }
        }
        None
    };
    tokio::time::timeout(LAST_OUTPUT, wait).await.ok().flatten()
}

async fn show(stdout: &mut tokio::io::Stdout, bytes: &[u8]) -> Result<()> {
    let written = async {
        stdout.write_all(bytes).await?;
        stdout.flush().await
    };
    written.await.map_err(|error| errors::io("Standard output", &error))
}

/// What is typed, in the order of typing. The channel's bound holds back a paste that the program doesn't read.
fn read_keys() -> mpsc::Receiver<Bytes> {
    let (keys, typed) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = BytesMut::with_capacity(READ_SIZE);
        while matches!(stdin.read_buf(&mut buffer).await, Ok(count) if count > 0) {
            if keys.send(buffer.split().freeze()).await.is_err() {
                return;
            }
            buffer.reserve(READ_SIZE);
        }
        // the terminal is gone; the signal that says so ends the shell
        std::future::pending::<()>().await;
    });
    typed
}

/// SIGTERM and SIGHUP: leave as with the key.
struct Leave {
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Leave {
    fn new() -> Result<Self> {
        let failed = |error: std::io::Error| errors::io("A signal", &error);
        Ok(Self { terminate: signal(SignalKind::terminate()).map_err(failed)?, hangup: signal(SignalKind::hangup()).map_err(failed)? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
