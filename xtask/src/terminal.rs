//! `atoll shell` as a person has it, on a pseudo-terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::pty;

use crate::{
    cli::Cli,
    sh::{self, Context, Done},
    testbed::until,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Sets a variable in a shell, leaves, comes back, and finds it there with the scrollback.
pub fn persists(cli: &Cli) -> Done {
    let mut first = Shell::open(cli, "thesis", "main")?;
    first.say("KEPT=$((40 + 2)); echo begin-$KEPT\n")?;
    first.sees("begin-42")?;
    first.detach()?;
    let mut again = Shell::open(cli, "thesis", "main")?;
    again.sees("begin-42").context("the scrollback")?;
    again.say("echo still-$KEPT\n")?;
    again.sees("still-42")?;
    again.detach()
}

pub struct Shell {
    child: Child,
    master: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Shell {
    pub fn open(cli: &Cli, project: &str, name: &str) -> Done<Self> {
        Self::spawn(cli.command(&["shell", project, "--terminal", name]))
    }

    /// Runs a command on a pseudo-terminal of its own.
    pub fn spawn(mut command: Command) -> Done<Self> {
        let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).context("a pseudo-terminal")?;
        pty::grantpt(&master).context("grantpt")?;
        pty::unlockpt(&master).context("unlockpt")?;
        let path = pty::ptsname(&master, Vec::new()).context("ptsname")?;
        let slave = File::options().read(true).write(true).open(path.to_string_lossy().as_ref())?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave).env("TERM", "xterm-256color");
        let child = command.spawn().context(sh::shown(&command))?;
        drop(command); // it holds the slave's other copies; the reader ends when the last is closed
        Ok(Self::watch(child, master)?)
    }

    fn watch(child: Child, master: OwnedFd) -> std::io::Result<Self> {
        let master = File::from(master);
        let (mut reader, seen) = (master.try_clone()?, Arc::new(Mutex::new(Vec::new())));
        let sink = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if let Ok(mut sink) = sink.lock() {
                    sink.extend_from_slice(&buffer[..count]);
                }
            }
        });
        Ok(Self { child, master, seen })
    }

    pub fn say(&mut self, text: &str) -> Done {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Waits until the text has come.
    pub fn sees(&self, text: &str) -> Done {
        until(PATIENCE, || Ok(self.text().contains(text).then_some(())))
            .context(format!("waiting for {text:?}, seen so far {:?}", self.text()))
    }

    /// All that has come so far.
    pub fn text(&self) -> String {
        self.seen.lock().map(|seen| String::from_utf8_lossy(&seen).into_owned()).unwrap_or_default()
    }

    /// Leaves the terminal with its program running: Ctrl-] then d.
    pub fn detach(mut self) -> Done {
        self.say("\x1dd")?;
        until(PATIENCE, || Ok(self.child.try_wait()?.map(|_| ()))).context("leaving the terminal")
    }
}

impl Shell {
    /// Ends the viewer rudely, as a lost connection would.
    pub fn leave(self) {
        drop(self);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
