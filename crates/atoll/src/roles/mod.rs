//! What serves: each role is built from its checked config, runs until it is told to stop, and is drained within a bound.

pub mod agent;
pub mod binary;
pub mod dev_bus;
pub mod host;
pub mod logging;
pub mod master;
pub mod up;

use std::{future::Future, time::Duration};

use atoll_contract::{Error, ErrorCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::Log,
    errors::{self, Result},
    output::say,
};

/// A role that hasn't drained by then is left as it is; all that matters is saved before it is acted on.
const DRAIN: Duration = Duration::from_secs(20);

/// Runs a role to its end: logs as the config says, a runtime of all processors with threads of their own for blocking work (SQLite, files), and
/// the signals that stop it.
fn serve(log: &Log, role: impl AsyncFnOnce(Stop) -> Result<()>) -> Result<u8> {
    logging::for_role(log);
    keep_free_memory();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| errors::io("The runtime", &error))?;
    let outcome = runtime.block_on(async { role(Stop::listen()?).await });
    runtime.shutdown_background(); // blocking work that hangs is left as it is, too
    outcome.map(|()| 0)
}

/// Bytes of free memory that the allocator may keep, about half of what each of its arenas keeps at its end.
const KEPT: usize = 4 << 20;

/// Has glibc's allocator keep more free memory than the 128 KiB that it does by itself: the bus's buffers are of 64 KiB and come and go, and a heap that is
/// cut off and grown again for each costs a page fault for every message of 4 KiB, half of the bus's pace. Its thresholds follow the largest block that
/// was ever freed (mallopt(3), M_MMAP_THRESHOLD), so that one is enough; it is never written to, so it costs nothing. Elsewhere it does nothing.
fn keep_free_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}

/// SIGINT and SIGTERM, listened to from before a role is built, so that none is missed.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let failed = |error: std::io::Error| errors::io("A signal", &error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn told(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// Builds something, unless the process is told to stop before it is there.
    async fn or<T>(&mut self, build: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            built = build => built,
            signal = self.told() => Err(Error::new(ErrorCode::Cancelled, format!("Stopped by {signal} while starting."))),
        }
    }

    /// Drains, for [`DRAIN`] at most; a second signal ends the process at once.
    async fn drain(&mut self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => tracing::info!("drained"),
            () = tokio::time::sleep(DRAIN) => tracing::warn!(seconds = DRAIN.as_secs(), "not drained in time; leaving all the same"),
            signal = self.told() => tracing::warn!(signal, "told to stop a second time; leaving at once"),
        }
    }
}

/// Says on standard error what a person who started the role wants to see, also when logs are JSON.
fn announce(text: &str) {
    say(text);
}
