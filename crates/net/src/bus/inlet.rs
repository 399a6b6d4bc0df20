//! What waits to be read from one subscription inside this process, and the replies that a connection waits for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
};

use atoll_contract::Error;
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use super::{
    Message,
    budget::{Budget, Share},
    outbound::Pushed,
    sync::{Mutex, MutexGuard},
};

/// The feeding end of a [`Subscription`](super::Subscription), bounded in messages and in bytes.
///
/// A reader that falls further behind loses the subscription: its receiver ends after what is queued. That is seen, a gap would not be.
#[derive(Debug)]
pub(crate) struct Inlet {
    state: Arc<Mutex<State>>,
    max_bytes: usize,
}

/// The reading end.
#[derive(Debug)]
pub struct Outlet {
    messages: mpsc::Receiver<Message>,
    /// That of the inlet; none if something else feeds it.
    state: Option<Arc<Mutex<State>>>,
}

#[derive(Debug)]
struct State {
    /// Taken out when the subscription ends.
    sender: Option<mpsc::Sender<Message>>,
    /// Sizes of what is queued, oldest first. The channel doesn't say what was read, but it is read in order, so the count tells.
    sizes: VecDeque<usize>,
    bytes: usize,
    /// What its bytes have of the router's memory.
    share: Share,
}

impl Inlet {
    pub(crate) fn new(max_messages: usize, max_bytes: usize, budget: &Arc<Budget>) -> (Self, Outlet) {
        let (sender, messages) = mpsc::channel(max_messages.max(1));
        let state = State { sender: Some(sender), sizes: VecDeque::new(), bytes: 0, share: Share::new(budget) };
        let state = Arc::new(Mutex::new(state));
        (Self { state: state.clone(), max_bytes }, Outlet { messages, state: Some(state) })
    }

    pub(crate) fn push(&self, message: Message) -> Pushed {
        let mut state = self.lock();
        let Some(sender) = state.sender.as_ref() else { return Pushed::Closed };
        let (most, free) = (sender.max_capacity(), sender.capacity());
        state.forget_read(most - free);
        let size = size(&message);
        let bytes = state.bytes + size;
        state.share.shrink(bytes);
        if free == 0 || bytes > self.max_bytes.max(size) || !state.share.grow(bytes) {
            state.sender = None;
            return Pushed::Full;
        }
        let sent = state.sender.as_ref().is_some_and(|sender| sender.try_send(message).is_ok());
        if !sent {
            state.sender = None; // the reader is gone
            return Pushed::Closed;
        }
        state.sizes.push_back(size);
        state.bytes += size;
        if free <= most / 2 || state.bytes > self.max_bytes / 2 { Pushed::Crowded } else { Pushed::Done }
    }

    /// Ends the subscription after what is queued.
    pub(crate) fn close(&self) {
        self.lock().sender = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever drops the feeding end ends the subscription.
impl Drop for Inlet {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    /// Forgets the sizes of all but so many that are still queued.
    fn forget_read(&mut self, queued: usize) {
        while self.sizes.len() > queued {
            self.bytes -= self.sizes.pop_front().unwrap_or(0);
        }
    }
}

impl Outlet {
    pub(crate) async fn recv(&mut self) -> Option<Message> {
        match self.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => self.messages.recv().await,
        }
    }

    pub(crate) fn try_recv(&mut self) -> Result<Message, TryRecvError> {
        let message = self.messages.try_recv();
        // a reader that has caught up keeps nothing of what all share, however long the next message takes
        if message.is_err()
            && let Some(state) = &self.state
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.forget_read(self.messages.len());
            let bytes = state.bytes;
            state.share.shrink(bytes);
        }
        message
    }
}

impl From<mpsc::Receiver<Message>> for Outlet {
    fn from(messages: mpsc::Receiver<Message>) -> Self {
        Self { messages, state: None }
    }
}

/// Roughly what a message takes in memory.
fn size(message: &Message) -> usize {
    message.size() + message.subject.len() + 128
}

/// The requests of one connection that wait for an answer: all of its inboxes are tokens below one subscription.
#[derive(Debug, Default)]
pub(crate) struct Replies(Mutex<HashMap<Box<str>, Waiting>>);

#[derive(Debug)]
struct Waiting {
    subject: Box<str>,
    answer: oneshot::Sender<Result<Message, Error>>,
}

/// Requests of one connection that wait at once.
const MAX_WAITING: usize = 64 << 10;

impl Replies {
    /// Expects an answer at the inbox that ends in this token. `None` if too many wait already.
    pub(crate) fn expect(&self, token: &str, subject: &str) -> Option<oneshot::Receiver<Result<Message, Error>>> {
        let (answer, receiver) = oneshot::channel();
        let mut all = self.lock();
        if all.len() >= MAX_WAITING {
            return None;
        }
        all.insert(token.into(), Waiting { subject: subject.into(), answer });
        Some(receiver)
    }

    pub(crate) fn forget(&self, token: &str) {
        self.lock().remove(token);
    }

    /// Hands an answer to whom it is for. Another one to the same inbox, or one that comes too late, is nobody's.
    pub(crate) fn answer(&self, message: Message) {
        let token = message.subject.rsplit('.').next().unwrap_or_default();
        let waiting = self.lock().remove(token);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(Ok(message)); // the caller may have given up
        }
    }

    /// Fails the requests to this subject, or all.
    pub(crate) fn fail(&self, subject: Option<&str>, error: &Error) {
        let failed: Vec<_> = {
            let mut all = self.lock();
            all.extract_if(|_, waiting| subject.is_none_or(|subject| *waiting.subject == *subject)).collect()
        };
        for (_, waiting) in failed {
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }

    #[cfg(all(test, feature = "model"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_falls_behind_loses_the_subscription_not_messages_in_between() {
        let (inlet, mut receiver) = Inlet::new(4, 1 << 20, &Budget::unlimited());
        let pushed: Vec<_> = (0..6u8).map(|n| inlet.push(Message::new("a", vec![n]))).collect();
        assert_eq!(pushed, [Pushed::Done, Pushed::Done, Pushed::Crowded, Pushed::Crowded, Pushed::Full, Pushed::Closed]);
        for n in 0..4 {
            assert_eq!(receiver.try_recv().unwrap().payload[0], n);
        }
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[test]
    fn bytes_are_bounded_and_freed_by_reading() {
        let (inlet, mut receiver) = Inlet::new(1000, 10_000, &Budget::unlimited());
        for _ in 0..100 {
            assert_ne!(inlet.push(Message::new("a", vec![0; 4000])), Pushed::Full);
            assert_ne!(inlet.push(Message::new("a", vec![0; 4000])), Pushed::Full);
            receiver.try_recv().unwrap();
            receiver.try_recv().unwrap();
        }
        assert_ne!(inlet.push(Message::new("a", vec![0; 50_000])), Pushed::Full, "one message always has room");
        assert_eq!(inlet.push(Message::new("a", vec![0; 50_000])), Pushed::Full);
    }

    #[tokio::test]
    async fn a_reader_that_has_caught_up_holds_nothing_of_the_budget() {
        let budget = Budget::new(1 << 20);
        let (inlet, mut receiver) = Inlet::new(1000, 1 << 20, &budget);
        for _ in 0..4 {
            assert_ne!(inlet.push(Message::new("a", vec![0; 100_000])), Pushed::Full);
        }
        assert!(budget.used() > 300_000);
        for _ in 0..4 {
            receiver.recv().await.unwrap();
        }
        assert!(budget.used() > 300_000, "found out when it looks for more");
        let mut waits = std::pin::pin!(receiver.recv());
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        assert_eq!(budget.used(), 0);
        assert_ne!(inlet.push(Message::new("a", "x")), Pushed::Full);
        assert_eq!(waits.await.unwrap().payload, "x");
    }

    #[tokio::test]
    async fn a_subscription_ends_with_its_feeding_end() {
        let (inlet, mut receiver) = Inlet::new(4, 1000, &Budget::unlimited());
        inlet.push(Message::new("a", "x"));
        drop(inlet);
        assert_eq!(receiver.recv().await.unwrap().payload, "x");
        assert_eq!(receiver.recv().await, None);
    }

    #[test]
    fn a_reader_that_is_gone_is_noticed() {
        let (inlet, receiver) = Inlet::new(4, 1000, &Budget::unlimited());
        drop(receiver);
        assert_eq!(inlet.push(Message::new("a", "")), Pushed::Closed);
    }
}
