//! What waits to be written to one connection: bounded, filled by whoever publishes, emptied by the connection's own task.
//!
//! Nobody ever waits for room while holding anything: a server's connection whose queue is full is a slow consumer and is closed, a client's
//! `publish` waits outside. (A connection task that awaits its own bounded queue deadlocks, as two of them do that await each other's.)

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    task::{Context, Waker},
};

use bytes::{Bytes, BytesMut};

use super::{
    budget::{Budget, Share},
    sync::{Mutex, MutexGuard, Notify},
    wire::{Frame, put_frame, put_head},
};

/// Small things are copied together into pieces of this size, so that one write carries many messages.
const PIECE: usize = 64 << 10;
/// What the writer takes at once, about: room for more is made when all of that has been written.
const TAKE: usize = 512 << 10;
/// What is copied nevertheless, because handling it apart would cost more than copying it.
const COPY_BELOW: usize = 2 << 10;

/// A queue of bytes that end at message boundaries.
#[derive(Debug)]
pub(crate) struct Outbound {
    queue: Mutex<Queue>,
    /// Told when a queue that was crowded has room again.
    drained: Notify,
    max_bytes: usize,
    max_messages: usize,
}

#[derive(Debug)]
struct Queue {
    /// What its bytes have of the router's memory.
    share: Share,
    full: VecDeque<Piece>,
    /// Always ends with a whole message while the lock isn't held.
    tail: BytesMut,
    tail_messages: usize,
    /// Queued and taken but not yet written.
    bytes: usize,
    messages: usize,
    /// How much of that the writer has taken.
    taken_bytes: usize,
    taken_messages: usize,
    ending: Ending,
    /// Someone waits for `drained`.
    crowded: bool,
    /// The writer's, if it has nothing to do.
    waker: Option<Waker>,
    out: Written,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// Messages that end in it.
    messages: usize,
    /// Whether its end is a message's end.
    whole: bool,
}

/// What has been handed to the writer so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Written {
    pub messages: u64,
    /// Of headers and payloads.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Ending {
    #[default]
    Open,
    /// No more is taken in; what waits is written, then the connection ends.
    Closing,
    /// The connection ends at once.
    Dead,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Done,
    /// Taken, and the queue is more than half full: who can wait should.
    Crowded,
    /// Not taken: it would exceed the bounds.
    Full,
    /// Not taken: the connection is ending.
    Closed,
}

/// Writers to be woken when a batch has been handed out: one wake-up for many messages. Wakes them at the latest when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(crate) fn wake(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl Drop for Wakers {
    fn drop(&mut self) {
        self.wake();
    }
}

impl Outbound {
    pub(crate) fn new(max_bytes: usize, max_messages: usize, budget: &Arc<Budget>) -> Self {
        Self { queue: Mutex::new(Queue::new(Share::new(budget))), drained: Notify::new(), max_bytes, max_messages }
    }

    /// Queues one message, whole or not at all.
    pub(crate) fn push(&self, frame: &Frame<'_>, wakers: &mut Wakers) -> Pushed {
        let size = frame.most();
        let mut queue = self.lock();
        if queue.ending != Ending::Open {
            return Pushed::Closed;
        }
        let bytes = queue.bytes + size;
        if bytes > self.max_bytes || queue.messages + 1 > self.max_messages || !queue.share.grow(bytes) {
            queue.crowded = true;
            return Pushed::Full;
        }
        queue.put(frame);
        wakers.0.extend(queue.waker.take());
        self.crowded(&mut queue)
    }

    /// Queues whole messages that are serialised already, all or none; `content` is what their headers and payloads have.
    pub(crate) fn push_block(&self, block: &Bytes, messages: usize, content: usize, wakers: &mut Wakers) -> Pushed {
        let mut queue = self.lock();
        if queue.ending != Ending::Open {
            return Pushed::Closed;
        }
        let bytes = queue.bytes + block.len();
        if bytes > self.max_bytes || queue.messages + messages > self.max_messages || !queue.share.grow(bytes) {
            return Pushed::Full;
        }
        queue.put_block(block, messages);
        queue.out.messages += messages as u64;
        queue.out.bytes += content as u64;
        wakers.0.extend(queue.waker.take());
        self.crowded(&mut queue)
    }

    fn crowded(&self, queue: &mut Queue) -> Pushed {
        if queue.bytes > self.max_bytes / 2 || queue.messages > self.max_messages / 2 {
            queue.crowded = true;
            return Pushed::Crowded;
        }
        Pushed::Done
    }

    /// Queues a protocol line of the connection's own (PONG, +OK, -ERR, INFO, SUB and so on). `false` if it is over the bounds.
    pub(crate) fn push_line(&self, line: &[u8], wakers: &mut Wakers) -> bool {
        let mut queue = self.lock();
        if queue.ending != Ending::Open {
            return true;
        }
        let bytes = queue.bytes + line.len();
        if bytes > self.max_bytes || !queue.share.grow(bytes) {
            return false;
        }
        queue.put_small(line);
        wakers.0.extend(queue.waker.take());
        true
    }

    /// Takes in no more; the writer ends after what waits and these last words.
    pub(crate) fn close(&self, last_words: &[u8]) {
        self.end(Ending::Closing, false, last_words);
    }

    /// As [`close`](Self::close), and what the writer hasn't taken yet is thrown away: its reader is too slow.
    pub(crate) fn cut(&self, last_words: &[u8]) {
        self.end(Ending::Closing, true, last_words);
    }

    /// Ends the connection without writing any more.
    pub(crate) fn kill(&self) {
        self.end(Ending::Dead, true, b"");
    }

    fn end(&self, ending: Ending, forget: bool, last_words: &[u8]) {
        let waker = {
            let mut queue = self.lock();
            if queue.ending == Ending::Dead || queue.ending == ending {
                return;
            }
            if forget {
                queue.full.clear();
                queue.tail = BytesMut::new();
                queue.tail_messages = 0;
                if ending == Ending::Dead {
                    // nobody says any more that it was written; publishers may hold on to this queue long after its connection
                    (queue.taken_bytes, queue.taken_messages) = (0, 0);
                }
                queue.bytes = queue.taken_bytes;
                queue.messages = queue.taken_messages;
                let bytes = queue.bytes;
                queue.share.shrink(bytes);
            }
            queue.put_small(last_words);
            queue.ending = ending;
            queue.waker.take()
        };
        self.drained.notify_waiters();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn ending(&self) -> Ending {
        self.lock().ending
    }

    /// Bytes and messages that wait, those being written included.
    pub(crate) fn pending(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.bytes, queue.messages)
    }

    /// For the writer: says that all it took has been written, and moves more, up to [`TAKE`] and whole messages, to `into`, which is
    /// empty. With nothing to write, remembers whom to wake.
    pub(crate) fn take(&self, into: &mut VecDeque<Bytes>, context: &Context<'_>) -> Taken {
        let mut queue = self.lock();
        queue.bytes -= std::mem::take(&mut queue.taken_bytes);
        queue.messages -= std::mem::take(&mut queue.taken_messages);
        let bytes = queue.bytes;
        queue.share.shrink(bytes);
        if queue.crowded && queue.bytes <= self.max_bytes / 4 && queue.messages <= self.max_messages / 4 {
            queue.crowded = false;
            self.drained.notify_waiters();
        }
        if queue.ending == Ending::Dead {
            return Taken::Dead;
        }
        queue.hand_out(into);
        if !into.is_empty() {
            return Taken::Some;
        }
        if queue.ending == Ending::Closing {
            return Taken::Finished;
        }
        queue.tail = BytesMut::new(); // an idle connection keeps no buffer
        queue.wait(context);
        Taken::Nothing
    }

    /// For the writer that waits for its socket: remembers whom to wake when the connection is to end.
    pub(crate) fn wait(&self, context: &Context<'_>) -> Ending {
        let mut queue = self.lock();
        queue.wait(context);
        queue.ending
    }

    /// Waits until a queue that was crowded has room or has ended.
    pub(crate) async fn room(&self) {
        let drained = self.drained.notified(); // made before the look, so that nothing is missed
        let waits = {
            let queue = self.lock();
            queue.crowded && queue.ending == Ending::Open
        };
        if waits {
            drained.await;
        }
    }

    /// What has been taken in so far, thrown away or not.
    pub(crate) fn written(&self) -> Written {
        self.lock().out
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the writer got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Some,
    Nothing,
    /// All has been written and no more will come.
    Finished,
    Dead,
}

impl Queue {
    fn new(share: Share) -> Self {
        Self {
            share,
            full: VecDeque::new(),
            tail: BytesMut::new(),
            tail_messages: 0,
            bytes: 0,
            messages: 0,
            taken_bytes: 0,
            taken_messages: 0,
            ending: Ending::Open,
            crowded: false,
            waker: None,
            out: Written::default(),
        }
    }

    fn put(&mut self, frame: &Frame<'_>) {
        let before = self.tail.len();
        self.reserve(frame.most());
        let shared = frame.shared.filter(|shared| shared.len() >= COPY_BELOW);
        match shared {
            Some(_) => put_head(&mut self.tail, frame),
            None => put_frame(&mut self.tail, frame),
        }
        self.count(before);
        self.messages += 1;
        self.out.messages += 1;
        self.out.bytes += (frame.headers.len() + frame.payload.len()) as u64;
        if let Some(shared) = shared {
            self.seal(false);
            self.put_piece(shared.clone(), 0, false);
            self.put_piece(Bytes::from_static(b"\r\n"), 1, true);
        } else {
            self.tail_messages += 1;
            if self.tail.len() >= PIECE {
                self.seal(true);
            }
        }
    }

    fn put_block(&mut self, block: &Bytes, messages: usize) {
        self.messages += messages;
        if block.len() < COPY_BELOW {
            self.reserve(block.len());
            self.put_small(block);
            self.tail_messages += messages;
        } else {
            self.seal(true);
            self.put_piece(block.clone(), messages, true);
        }
    }

    fn put_piece(&mut self, bytes: Bytes, messages: usize, whole: bool) {
        self.bytes += bytes.len();
        self.full.push_back(Piece { bytes, messages, whole });
    }

    fn put_small(&mut self, bytes: &[u8]) {
        let before = self.tail.len();
        self.tail.extend_from_slice(bytes);
        self.count(before);
    }

    fn count(&mut self, before: usize) {
        let more = self.tail.len() - before;
        self.bytes += more;
    }

    /// Grows the tail by doubling, but never beyond a piece for the sake of growth.
    fn reserve(&mut self, more: usize) {
        if self.tail.capacity() - self.tail.len() < more {
            self.tail.reserve(more.max(self.tail.len()).min(PIECE.max(more)));
        }
    }

    fn seal(&mut self, whole: bool) {
        if !self.tail.is_empty() {
            let messages = std::mem::take(&mut self.tail_messages);
            self.full.push_back(Piece { bytes: self.tail.split().freeze(), messages, whole });
        }
    }

    fn hand_out(&mut self, into: &mut VecDeque<Bytes>) {
        let mut whole = true;
        while !whole || self.taken_bytes < TAKE {
            if self.full.is_empty() {
                self.seal(true);
            }
            let Some(piece) = self.full.pop_front() else { break };
            self.taken_bytes += piece.bytes.len();
            self.taken_messages += piece.messages;
            whole = piece.whole;
            into.push_back(piece.bytes);
        }
    }

    fn wait(&mut self, context: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            self.waker = Some(context.waker().clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use super::*;

    fn frame<'a>(payload: &'a [u8], shared: Option<&'a Bytes>) -> Frame<'a> {
        Frame { plain: b"MSG ", headed: b"HMSG ", subject: b"a.b", sid: b"7", reply: None, headers: b"", payload, shared }
    }

    fn take(outbound: &Outbound) -> (Taken, Vec<u8>) {
        let mut pieces = VecDeque::new();
        let taken = outbound.take(&mut pieces, &Context::from_waker(Waker::noop()));
        (taken, pieces.iter().flat_map(|piece| piece.to_vec()).collect())
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let outbound = Outbound::new(1 << 20, 100, &Budget::unlimited());
        let mut wakers = Wakers::default();
        let big = Bytes::from(vec![b'x'; 5000]);
        outbound.push(&frame(b"hi", None), &mut wakers);
        outbound.push(&frame(&big, Some(&big)), &mut wakers);
        outbound.push(&Frame { reply: Some("r"), headers: b"NATS/1.0\r\n\r\n", ..frame(b"hi", None) }, &mut wakers);
        outbound.push_line(b"PONG\r\n", &mut wakers);
        let expected =
            [b"MSG a.b 7 2\r\nhi\r\nMSG a.b 7 5000\r\n", &big[..], b"\r\nHMSG a.b 7 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPONG\r\n"].concat();
        assert_eq!(outbound.pending(), (expected.len(), 3));
        assert_eq!(take(&outbound), (Taken::Some, expected.clone()));
        assert_eq!(outbound.pending(), (expected.len(), 3), "what is being written still counts");
        assert_eq!(take(&outbound), (Taken::Nothing, vec![]));
        assert_eq!(outbound.pending(), (0, 0));
        let written = outbound.written();
        assert_eq!((written.messages, written.bytes), (3, 2 + 5000 + 12 + 2));
    }

    #[test]
    fn full_is_full_in_bytes_and_in_messages() {
        let mut wakers = Wakers::default();
        let outbound = Outbound::new(1000, 10, &Budget::unlimited());
        let pushed: Vec<_> = (0..11).map(|_| outbound.push(&frame(b"", None), &mut wakers)).collect();
        assert_eq!(pushed[..5], [Pushed::Done; 5]);
        assert_eq!(pushed[5..10], [Pushed::Crowded; 5]);
        assert_eq!(pushed[10], Pushed::Full);
        let outbound = Outbound::new(1000, 10, &Budget::unlimited());
        assert_eq!(outbound.push(&frame(&[0; 1000], None), &mut wakers), Pushed::Full);
        assert_eq!(outbound.pending(), (0, 0));
        assert!(!outbound.push_line(&[b'x'; 1001], &mut wakers));
    }

    #[test]
    fn a_dead_queue_gives_back_what_its_writer_had_taken() {
        let (budget, mut wakers) = (Budget::new(8 << 20), Wakers::default());
        let outbound = Outbound::new(8 << 20, 10, &budget);
        let big = Bytes::from(vec![b'x'; 1 << 20]);
        outbound.push(&frame(&big, Some(&big)), &mut wakers);
        assert_eq!(take(&outbound).0, Taken::Some);
        outbound.cut(b"");
        assert!(budget.used() > 0, "it is being written");
        outbound.kill();
        assert_eq!((outbound.pending(), budget.used()), ((0, 0), 0));
    }

    #[test]
    fn a_cut_keeps_whole_messages_and_ends_with_the_last_words() {
        let mut wakers = Wakers::default();
        let outbound = Outbound::new(1000, 10, &Budget::unlimited());
        outbound.push(&frame(b"1", None), &mut wakers);
        let (_, first) = take(&outbound);
        outbound.push(&frame(b"2", None), &mut wakers);
        outbound.cut(b"-ERR 'Slow Consumer'\r\n");
        outbound.close(b"never said");
        assert_eq!(outbound.push(&frame(b"3", None), &mut wakers), Pushed::Closed);
        assert_eq!(first, b"MSG a.b 7 1\r\n1\r\n");
        assert_eq!(take(&outbound), (Taken::Some, b"-ERR 'Slow Consumer'\r\n".to_vec()));
        assert_eq!(take(&outbound).0, Taken::Finished);
        outbound.kill();
        assert_eq!(take(&outbound).0, Taken::Dead);
        assert_eq!(outbound.pending(), (0, 0));
    }
}
