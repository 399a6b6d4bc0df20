//! The one place that waits for processes.
//!
//! As process 1 the agent inherits every orphan of the container and must wait for all of them; then nobody else may wait for
//! a child of its own, since the statuses would be stolen. So nobody else does: programs are started under the reaper's lock, which also keeps a program that
//! ends at once from being reaped before it is known here (and keeps the standard library's own wait, for a child whose exec failed, undisturbed).

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    /// The exit code, or 128 + the signal's number, as a shell says it.
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
}

impl Status {
    /// For a process whose status somebody else has taken.
    const UNKNOWN: Self = Self { code: 255, signal: None };

    fn of(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self { code, signal: None },
            (None, Some(signal)) => Self { code: 128 + signal, signal: Some(signal) },
            (None, None) => Self::UNKNOWN,
        }
    }
}

/// A process that was started here, and its end to come.
#[derive(Debug)]
pub(crate) struct Child {
    /// Also its process group, which it leads.
    pub(crate) pid: Pid,
    status: oneshot::Receiver<Status>,
}

impl Child {
    /// Waits for the end. Cancelling it loses nothing; after it has returned it must not be called again.
    pub(crate) async fn wait(&mut self) -> Status {
        (&mut self.status).await.unwrap_or(Status::UNKNOWN)
    }
}

pub(crate) struct Reaper {
    waiting: Mutex<HashMap<Pid, oneshot::Sender<Status>>>,
    /// Whether every child is waited for, or only those that were started here.
    everyone: bool,
    /// Counts rounds; the value says whether any child was left.
    children: watch::Sender<bool>,
}

impl Reaper {
    /// Begins to listen for SIGCHLD.
    ///
    /// # Errors
    /// If the signal can't be listened to.
    pub(crate) fn start(everyone: bool) -> io::Result<Arc<Self>> {
        let signals = signal(SignalKind::child())?;
        let reaper = Arc::new(Self { waiting: Mutex::default(), everyone, children: watch::channel(true).0 });
        reaper.reap(); // whoever ended before the signal was listened to
        tokio::spawn(Self::listen(Arc::downgrade(&reaper), signals));
        Ok(reaper)
    }

    async fn listen(reaper: std::sync::Weak<Self>, mut signals: Signal) {
        while signals.recv().await.is_some() {
            let Some(reaper) = reaper.upgrade() else { return };
            reaper.reap();
        }
    }

    /// Starts a process by `start`, which returns its id and whatever else, and registers it before anyone can wait for it.
    ///
    /// # Errors
    /// Those of `start`.
    pub(crate) fn register<T, E>(&self, start: impl FnOnce() -> Result<(Pid, T), E>) -> Result<(Child, T), E> {
        let mut waiting = self.lock();
        let (pid, value) = start()?;
        let (told, status) = oneshot::channel();
        waiting.insert(pid, told);
        Ok((Child { pid, status }, value))
    }

    /// Resolves when a round has found no child left.
    pub(crate) async fn childless(&self) {
        let mut children = self.children.subscribe();
        self.reap();
        // the channel's other end is in self, so it can't close
        let _ = children.wait_for(|any| !any).await;
    }

    fn reap(&self) {
        let mut waiting = self.lock();
        let any = if self.everyone { Self::reap_everyone(&mut waiting) } else { Self::reap_known(&mut waiting) };
        drop(waiting);
        self.children.send_replace(any);
    }

    fn reap_everyone(waiting: &mut HashMap<Pid, oneshot::Sender<Status>>) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => match waiting.remove(&pid) {
                    // who asked may have stopped asking
                    Some(told) => drop(told.send(Status::of(status))),
                    None => tracing::trace!(pid = pid.as_raw_nonzero().get(), "an orphan has ended"),
                },
                Ok(None) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false, // ECHILD: no child is left
            }
        }
    }

    fn reap_known(waiting: &mut HashMap<Pid, oneshot::Sender<Status>>) -> bool {
        let mut ended = Vec::new();
        for pid in waiting.keys() {
            match waitpid(Some(*pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => ended.push((*pid, Status::of(status))),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => ended.push((*pid, Status::UNKNOWN)),
            }
        }
        for (pid, status) in ended {
            if let Some(told) = waiting.remove(&pid) {
                let _ = told.send(status);
            }
        }
        !waiting.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<Status>>> {
        // every change of the map is one call, so a panic elsewhere leaves it whole
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, time::Duration};

    use rustix::process::{getpid, set_child_subreaper};
    use tokio::{io::AsyncReadExt, time::timeout};

    use super::*;
    use crate::{environment::Environment, spawn};

    const BOUND: Duration = Duration::from_secs(20);
    /// Says to this test, run once more as a program of its own, that it is the only one there.
    const ALONE: &str = "ATOLL_TEST_ALONE";

    async fn start(reaper: &Reaper, script: &str) -> (Child, spawn::Pipes) {
        let environment = Environment::new(vec![("PATH".into(), std::env::var_os("PATH").unwrap())], "/");
        let argv = ["sh", "-c", script].map(str::to_owned);
        let launch = environment.program(&argv, &BTreeMap::new(), "").unwrap();
        spawn::on_pipes(reaper, &launch, false).unwrap()
    }

    async fn vanishes(pid: &str) {
        let path = Path::new("/proc").join(pid);
        for _ in 0..500 {
            if !path.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{pid} is a zombie: {}", std::fs::read_to_string(path.join("stat")).unwrap());
    }

    /// Waiting for everyone would take the statuses of other tests' processes, so this runs as a program of its own.
    #[test]
    fn orphans_are_reaped_and_no_status_is_stolen() {
        if std::env::var_os(ALONE).is_none() {
            #[expect(clippy::disallowed_methods, reason = "a test that must be alone in its process")]
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            alone.args(["--exact", "reaper::tests::orphans_are_reaped_and_no_status_is_stolen", "--nocapture"]).env(ALONE, "1");
            assert!(alone.status().unwrap().success());
            return;
        }
        set_child_subreaper(Some(getpid())).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let reaper = Reaper::start(true).unwrap();
            let all = (0..60).map(|code| {
                let reaper = reaper.clone();
                tokio::spawn(async move {
                    // twice forked: the inner one is an orphan as soon as the shell ends
                    let (mut child, mut pipes) = start(&reaper, &format!("(sleep 0.0{} & echo $!); exit {code}", code % 10)).await;
                    let mut orphan = String::new();
                    let (status, read) = tokio::join!(timeout(BOUND, child.wait()), pipes.stdout.read_to_string(&mut orphan));
                    read.unwrap();
                    assert_eq!(status.unwrap(), Status { code, signal: None });
                    vanishes(orphan.trim()).await;
                })
            });
            for one in all.collect::<Vec<_>>() {
                one.await.unwrap();
            }
            timeout(BOUND, reaper.childless()).await.unwrap();
        });
    }

    #[tokio::test]
    async fn only_ones_own_are_waited_for_in_a_shared_process() {
        let reaper = Reaper::start(false).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a process that isn't the reaper's")]
        let mut other = std::process::Command::new("sh").args(["-c", "exit 4"]).spawn().unwrap();
        let (mut child, _pipes) = start(&reaper, "sleep 0.2; exit 5").await;
        assert_eq!(timeout(BOUND, child.wait()).await.unwrap(), Status { code: 5, signal: None });
        assert_eq!(other.wait().unwrap().code(), Some(4));
        let (mut child, _pipes) = start(&reaper, "kill -15 $$").await;
        assert_eq!(timeout(BOUND, child.wait()).await.unwrap(), Status { code: 143, signal: Some(15) });
    }
}
