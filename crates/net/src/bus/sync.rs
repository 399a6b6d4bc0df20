//! The locks, atomics and notices that the bus's concurrent parts are made of: the usual ones, or for the models in [`super::model`] loom's, which
//! try every order in which threads may meet.

#[cfg(not(feature = "model"))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

#[cfg(feature = "model")]
pub(crate) use loom::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};
#[cfg(not(feature = "model"))]
pub(crate) use tokio::sync::Notify;

#[cfg(feature = "model")]
pub(crate) use self::notify::Notify;

/// What the bus uses of tokio's `Notify`, by its documentation: `notify_waiters` wakes everyone whose `notified()` was called before.
#[cfg(feature = "model")]
mod notify {
    use std::{
        pin::Pin,
        sync::PoisonError,
        task::{Context, Poll, Waker},
    };

    use super::Mutex;

    #[derive(Debug)]
    pub(crate) struct Notify(Mutex<State>);

    #[derive(Debug)]
    struct State {
        round: usize,
        waiting: Vec<Waker>,
    }

    pub(crate) struct Notified<'a> {
        notify: &'a Notify,
        round: usize,
    }

    impl Notify {
        pub(crate) fn new() -> Self {
            Self(Mutex::new(State { round: 0, waiting: Vec::new() }))
        }

        pub(crate) fn notified(&self) -> Notified<'_> {
            Notified { notify: self, round: self.0.lock().unwrap_or_else(PoisonError::into_inner).round }
        }

        pub(crate) fn notify_waiters(&self) {
            let woken = {
                let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.round += 1;
                std::mem::take(&mut state.waiting)
            };
            woken.into_iter().for_each(Waker::wake);
        }
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let mut state = self.notify.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.round != self.round {
                return Poll::Ready(());
            }
            state.waiting.push(context.waker().clone());
            Poll::Pending
        }
    }
}
