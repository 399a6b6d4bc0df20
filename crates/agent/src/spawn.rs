//! The one place that starts processes and signals them.
//!
//! Every program leads a process group of its own (in a terminal: a session), by which it is signalled together with its children. It
//! inherits no descriptor but its three (everything here is close-on-exec), and the standard library gives it the default signal mask and handlers.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Stdio,
    sync::Arc,
};

use atoll_contract::{Error, ErrorCode, agent::Size};
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group},
    termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};
use tokio::{
    io::unix::AsyncFd,
    net::unix::pipe::{Receiver, Sender},
};

use crate::{
    environment::Launch,
    reaper::{Child, Reaper},
};

/// The agent's ends of a program's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<Sender>,
    pub(crate) stdout: Receiver,
    pub(crate) stderr: Receiver,
}

/// Starts a program on pipes; without `stdin` it reads from `/dev/null`. Blocks as long as exec does.
///
/// # Errors
/// `not_found`, `invalid_argument`, `too_large`, `limit_exceeded`, by what the system said.
pub(crate) fn on_pipes(reaper: &Reaper, launch: &Launch, stdin: bool) -> Result<(Child, Pipes), Error> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let mut command = std::process::Command::new(&launch.program);
    command
        .arg0(&launch.name)
        .args(&launch.args)
        .env_clear()
        .envs(&launch.env)
        .current_dir(&launch.cwd)
        .stdin(if stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let (child, (stdin, stdout, stderr)) = reaper
        .register(|| {
            let mut child = command.spawn()?;
            let pid = pid_of(child.id())?;
            // the child's handle is dropped: the reaper waits
            Ok((pid, (child.stdin.take(), child.stdout.take(), child.stderr.take())))
        })
        .map_err(|error: io::Error| explain(launch, &error))?;
    let pipes = || -> io::Result<Pipes> {
        let lost = || io::Error::other("a pipe is missing");
        Ok(Pipes {
            stdin: stdin.map(|pipe| Sender::from_owned_fd(pipe.into())).transpose()?,
            stdout: Receiver::from_owned_fd(stdout.ok_or_else(lost)?.into())?,
            stderr: Receiver::from_owned_fd(stderr.ok_or_else(lost)?.into())?,
        })
    };
    match pipes() {
        Ok(pipes) => Ok((child, pipes)),
        Err(error) => {
            signal_group(child.pid, Signal::KILL);
            Err(explain(launch, &error))
        }
    }
}

/// Starts a program as the leader of a new session with a new terminal.
///
/// # Errors
/// As [`on_pipes`].
pub(crate) fn on_terminal(reaper: &Reaper, launch: &Launch, size: Size) -> Result<(Child, Pty), Error> {
    reaper
        .register(|| {
            let (master, slave) = pty_process::blocking::open().map_err(io::Error::other)?;
            master.resize(pty_process::Size::new(size.rows, size.cols)).map_err(io::Error::other)?;
            let pty = Pty::new(master.into())?;
            pty.take_utf8();
            let child = pty_process::blocking::Command::new(&launch.program)
                .arg0(&launch.name)
                .args(&launch.args)
                .env_clear()
                .envs(&launch.env)
                .current_dir(&launch.cwd)
                .spawn(slave)
                .map_err(|error| match error {
                    pty_process::Error::Io(error) => error,
                    other => io::Error::other(other),
                })?;
            Ok((pid_of(child.id())?, pty))
        })
        .map_err(|error: io::Error| explain(launch, &error))
}

fn pid_of(id: u32) -> io::Result<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("the system gave an impossible process id"))
}

fn explain(launch: &Launch, error: &io::Error) -> Error {
    let name = launch.program.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(ErrorCode::NotFound, format!("{name} can't be run: it, or the interpreter or loader that it names, isn't there."))
                .mend("Look at its first line, or at what `file` says of it.")
        }
        io::ErrorKind::PermissionDenied => Error::invalid(format!("{name} can't be run: {error}.")),
        io::ErrorKind::ArgumentListTooLong => {
            Error::new(ErrorCode::TooLarge, format!("{name} can't be run: its arguments and environment are too long."))
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => {
            Error::new(ErrorCode::LimitExceeded, format!("{name} can't be run: the project's limit on processes or memory is reached."))
                .mend("End some programs, or raise the project's limits.")
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            Error::invalid(format!("{name} isn't a program for this machine.")).mend("A script names its interpreter in its first line.")
        }
        _ => Error::internal(format!("{name} can't be run: {error}.")),
    }
}

/// Signals a process group. One that is gone is what was wanted.
pub(crate) fn signal_group(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

pub(crate) fn group_is_there(group: Pid) -> bool {
    test_kill_process_group(group).is_ok()
}

/// Signals all processes of a session: a shell with job control gives each job a group of its own.
pub(crate) fn signal_session(leader: Pid, signal: Signal) {
    signal_group(leader, signal);
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && pid != leader
            && session_of(pid) == Some(leader.as_raw_nonzero().get())
        {
            let _ = kill_process(pid, signal);
        }
    }
}

/// proc(5), `/proc/pid/stat`: the name in parentheses may hold anything; after it state, parent, group, session.
fn session_of(pid: Pid) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)?.parse().ok()
}

/// Signals every process but this one. For process 1 of a container.
pub(crate) fn signal_everyone(signal: Signal) {
    let _ = kill_process_group(Pid::INIT, signal); // kill(-1)
}

/// The agent's end of a terminal.
#[derive(Debug, Clone)]
pub(crate) struct Pty(Arc<AsyncFd<OwnedFd>>);

impl Pty {
    fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "the function that replaces it asks, without a check, for a descriptor that stays open and the same; an OwnedFd that is never taken out is one"
        )]
        let registered = AsyncFd::new(master)?;
        Ok(Self(Arc::new(registered)))
    }

    /// Lets the line discipline erase whole characters. Without it only editing in raw lines (`cat`) is less comfortable.
    fn take_utf8(&self) {
        let master = self.0.get_ref();
        if let Ok(mut settings) = tcgetattr(master) {
            settings.input_modes |= InputModes::IUTF8;
            let _ = tcsetattr(master, OptionalActions::Now, &settings);
        }
    }

    /// Reads what there is. Zero when no process has the terminal open any more.
    ///
    /// # Errors
    /// Those of read(2), but not EIO, which is how a terminal says that its other side is closed.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| rustix::io::read(fd.as_fd(), &mut *buffer).map_err(io::Error::from)) {
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all. Waits while the program doesn't read.
    ///
    /// # Errors
    /// Those of write(2), such as EIO when the terminal's other side is closed.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| rustix::io::write(fd.as_fd(), bytes).map_err(io::Error::from)) {
                Ok(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Sets the size; the kernel tells the programs by SIGWINCH.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.get_ref(), size)?)
    }
}
