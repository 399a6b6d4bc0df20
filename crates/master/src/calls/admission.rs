//! How many calls there may be at once, in all and of one account.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_contract::{Error, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Bounds, Caller};

/// Counts the calls. Whoever is over a bound is refused at once; who is within it waits for a turn, those of one account in order, so that an
/// account which asks for much waits for itself and not others for it.
#[derive(Debug)]
pub(super) struct Admission {
    bounds: Bounds,
    turns: Arc<Semaphore>,
    load: Mutex<Load>,
}

#[derive(Debug, Default)]
struct Load {
    all: Count,
    by_caller: HashMap<Caller, (Count, Arc<Semaphore>)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    calls: usize,
    bytes: usize,
}

impl Count {
    fn with(self, bytes: usize) -> Self {
        Self { calls: self.calls + 1, bytes: self.bytes + bytes }
    }

    fn without(self, bytes: usize) -> Self {
        Self { calls: self.calls - 1, bytes: self.bytes - bytes }
    }

    fn within(self, calls: usize, bytes: usize) -> bool {
        self.calls <= calls && self.bytes <= bytes
    }
}

/// A call that is counted, until it is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Arc<Admission>,
    caller: Caller,
    bytes: usize,
    own_turns: Arc<Semaphore>,
}

impl Admission {
    pub(super) fn new(bounds: &Bounds) -> Arc<Self> {
        Arc::new(Self { bounds: bounds.clone(), turns: Arc::new(Semaphore::new(bounds.running)), load: Mutex::default() })
    }

    /// # Errors
    /// `limit_exceeded`.
    pub(super) fn admit(self: &Arc<Self>, caller: Caller, bytes: usize) -> Result<Admitted, Error> {
        let bounds = &self.bounds;
        let mut load = self.lock();
        let all = load.all.with(bytes);
        if !all.within(bounds.admitted, bounds.bytes) {
            return Err(
                Error::new(ErrorCode::LimitExceeded, "The master has as many calls to carry as it may.").mend("Ask again in a moment.")
            );
        }
        let new = || (Count::default(), Arc::new(Semaphore::new(bounds.running_per_account)));
        let (own, turns) = load.by_caller.entry(caller).or_insert_with(new);
        let more = own.with(bytes);
        if !more.within(bounds.admitted_per_account, bounds.bytes_per_account) {
            // an account that had none isn't kept for this
            if own.calls == 0 {
                load.by_caller.remove(&caller);
            }
            let words = format!("This account has as many calls under way as it may: {}.", bounds.admitted_per_account);
            return Err(Error::new(ErrorCode::LimitExceeded, words).mend("Wait for some of them to be answered."));
        }
        *own = more;
        let own_turns = turns.clone();
        load.all = all;
        Ok(Admitted { admission: self.clone(), caller, bytes, own_turns })
    }

    fn lock(&self) -> MutexGuard<'_, Load> {
        // every change under the lock is an assignment or two, so a panic can't leave it half done
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let load = self.lock();
        load.all == Count::default() && load.by_caller.is_empty() && self.turns.available_permits() == self.bounds.running
    }
}

impl Admitted {
    /// Waits for a turn, which lasts until both are dropped.
    pub(super) async fn turn(&self) -> [Option<OwnedSemaphorePermit>; 2] {
        // never closed, so both are there
        let own = self.own_turns.clone().acquire_owned().await.ok();
        [own, self.admission.turns.clone().acquire_owned().await.ok()]
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut load = self.admission.lock();
        load.all = load.all.without(self.bytes);
        if let Some((own, _)) = load.by_caller.get_mut(&self.caller) {
            *own = own.without(self.bytes);
            if own.calls == 0 {
                load.by_caller.remove(&self.caller);
            }
        }
    }
}
