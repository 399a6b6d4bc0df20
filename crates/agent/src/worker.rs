//! One thread for what blocks: looking files up, forking, walking `/proc`.
//!
//! The runtime's own blocking threads won't do here: they are made when they are needed, and a project at its limit of processes can't make
//! one, which the runtime answers with a panic. This one is there from the beginning.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{SyncSender, sync_channel},
};

use atoll_contract::{Error, ErrorCode};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that wait. All requests that may be worked on at once, and all terminals, come to less.
const QUEUE: usize = 512;

pub(crate) struct Worker(SyncSender<Job>);

impl Worker {
    /// Starts the thread, which lives as long as this does.
    ///
    /// # Errors
    /// If there can't be a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE);
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("agent-worker".into()).spawn(move || {
            let _runtime = runtime.enter(); // descriptors are registered with it
            for job in queue {
                // who waits for the job hears of the panic by its answer's absence
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        Ok(Self(jobs))
    }

    /// Does a job and waits for its outcome. If it is cancelled the job is done nevertheless.
    ///
    /// # Errors
    /// The job's, and `limit_exceeded` if too many wait.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let (tell, outcome) = oneshot::channel();
        let job = Box::new(move || drop(tell.send(work())));
        self.0
            .try_send(job)
            .map_err(|_| Error::new(ErrorCode::LimitExceeded, format!("{QUEUE} jobs wait in this project's agent already.")))?;
        outcome.await.unwrap_or_else(|_| Err(Error::internal("A job of the agent failed.")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_is_an_error_and_the_next_one_runs() {
        let worker = Worker::start().unwrap();
        let failed = worker.run::<()>(|| panic!("as this test wants")).await.unwrap_err();
        assert_eq!(failed.code, ErrorCode::Internal);
        assert_eq!(worker.run(|| Ok(7)).await.unwrap(), 7);
    }
}
