//! The reading end.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use atoll_contract::{Error, ErrorCode};
use bytes::{Buf, Bytes};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::Instant,
};

use super::{
    HEARTBEAT, PROBE, SILENCE, WINDOW_BYTES, WINDOW_CHUNKS,
    wire::{Ack, AckEnd, Frame, malformed},
};
use crate::bus::{Conn, Message, Subscription};

/// An acknowledgement goes out when the consumer has taken so much since the last, or all that there is.
const ACK_BYTES: u64 = 64 << 10;
const ACK_CHUNKS: u64 = 64;

/// Some bytes of a stream, as they were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub bytes: Bytes,
    /// Where the bytes begin in what the stream is a view of, if the sender says so: the stream of a terminal's viewer may leave
    /// bytes of the terminal out, though none of its own.
    pub position: Option<u64>,
}

/// Reads a stream. Dropped (or [closed](Self::close)) before the end, it tells the sender that nobody reads any more.
#[derive(Debug)]
pub struct Receiver {
    items: mpsc::UnboundedReceiver<Item>,
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    done: bool,
}

#[derive(Debug)]
enum Item {
    Chunk(Chunk),
    End(Result<(), Error>),
}

/// What the consumer tells the task.
#[derive(Debug, Default)]
struct Shared {
    taken: AtomicU64,
    chunks: AtomicU64,
    /// `taken` as it was last acknowledged, and `chunks` then.
    acknowledged: AtomicU64,
    acknowledged_chunks: AtomicU64,
    /// The consumer has seen the end.
    finished: AtomicBool,
    closed: AtomicBool,
    wake: Notify,
}

impl Receiver {
    /// Subscribes to `subject`. What is published from then on is not missed, so tell the sender only afterwards.
    ///
    /// # Errors
    /// Those of [`Conn::subscribe`].
    pub async fn open(conn: Arc<dyn Conn>, subject: &str) -> Result<Self, Error> {
        let messages = conn.subscribe(subject, None).await?;
        // the window bounds what waits here, in bytes and in chunks; a sender that breaks it ends the stream
        let (arrived, items) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let now = Instant::now();
        let task = Task {
            conn,
            ack: format!("{subject}.ack").into(),
            messages,
            items: arrived,
            shared: shared.clone(),
            next: 0,
            received_chunks: 0,
            ended: false,
            asked: None,
            heard: now,
            spoke: now,
        };
        let task = tokio::spawn(task.run());
        Ok(Self { items, shared, task: Some(task), done: false })
    }

    /// The next bytes, or none at the end. Taking them is what lets the sender go on. Cancelling it loses nothing.
    ///
    /// # Errors
    /// The sender's, if it ended the stream with one; `timed_out` if it has been silent for [`SILENCE`]; `unavailable` if the connection has ended;
    /// `invalid_argument` if what it sends isn't a stream. Nothing comes after an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        Some(self.next_chunk().await?.map(|chunk| chunk.bytes))
    }

    /// As [`next`](Self::next), with the position.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_chunk(&mut self) -> Option<Result<Chunk, Error>> {
        if self.done {
            return None;
        }
        let item = self.items.recv().await;
        match item {
            Some(Item::Chunk(chunk)) => {
                let shared = &self.shared;
                let taken = shared.taken.fetch_add(chunk.bytes.len() as u64, Ordering::SeqCst) + chunk.bytes.len() as u64;
                let chunks = shared.chunks.fetch_add(1, Ordering::SeqCst) + 1;
                if self.items.is_empty()
                    || taken - shared.acknowledged.load(Ordering::SeqCst) >= ACK_BYTES
                    || chunks - shared.acknowledged_chunks.load(Ordering::SeqCst) >= ACK_CHUNKS
                {
                    shared.wake.notify_one();
                }
                Some(Ok(chunk))
            }
            Some(Item::End(end)) => {
                self.done = true;
                self.shared.finished.store(true, Ordering::SeqCst);
                self.shared.wake.notify_one();
                end.err().map(Err)
            }
            None => {
                self.done = true;
                Some(Err(Error::internal("The stream's task ended early.")))
            }
        }
    }

    /// All bytes up to the end.
    ///
    /// # Errors
    /// As [`next`](Self::next); `too_large` if there are more than `limit`.
    pub async fn collect(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await {
            let bytes = bytes?;
            if all.len() + bytes.len() > limit {
                return Err(Error::new(ErrorCode::TooLarge, format!("The stream has more than {limit} bytes.")));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Ends reading, and waits until the last acknowledgement is handed to the connection: for a program that ends right afterwards.
    pub async fn close(mut self) {
        self.leave();
        if let Some(task) = self.task.take() {
            // it ends by itself once woken; a panic in it has been reported already
            let _ = task.await;
        }
    }

    fn leave(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Owns the receiving side's state. It answers the sender even while the consumer sleeps.
struct Task {
    conn: Arc<dyn Conn>,
    ack: Arc<str>,
    messages: Subscription,
    items: mpsc::UnboundedSender<Item>,
    shared: Arc<Shared>,
    /// Offset of the next byte.
    next: u64,
    received_chunks: u64,
    ended: bool,
    /// The last gap that was reported, and when.
    asked: Option<(u64, Instant)>,
    heard: Instant,
    spoke: Instant,
}

impl Task {
    async fn run(mut self) {
        if let Err(error) = self.drive().await {
            // the consumer may be gone, and so may be the connection
            let _ = self.items.send(Item::End(Err(error)));
            let _ = self.acknowledge(None, Some(AckEnd::Closed)).await;
        }
    }

    async fn drive(&mut self) -> Result<(), Error> {
        loop {
            let silence = self.heard + SILENCE;
            let heartbeat = self.spoke + HEARTBEAT;
            // after the end there is nothing to wait for but the consumer
            let wake = if self.ended { heartbeat } else { heartbeat.min(silence) };
            let shared = self.shared.clone();
            tokio::select! {
                biased;
                () = shared.wake.notified() => {
                    if self.shared.finished.load(Ordering::SeqCst) {
                        return self.acknowledge(None, Some(AckEnd::Taken)).await;
                    }
                    if self.shared.closed.load(Ordering::SeqCst) {
                        return self.acknowledge(None, Some(AckEnd::Closed)).await;
                    }
                    self.acknowledge(None, None).await?;
                }
                message = self.messages.next() => {
                    let message = message.ok_or_else(|| Error::new(ErrorCode::Unavailable, "The connection has ended."))?;
                    self.hear(message).await?;
                }
                () = tokio::time::sleep_until(wake) => {
                    if !self.ended && Instant::now() >= silence {
                        return Err(Error::new(ErrorCode::TimedOut, format!("The sender has been silent for {} seconds.", SILENCE.as_secs())));
                    }
                    self.acknowledge(None, None).await?;
                }
            }
        }
    }

    async fn hear(&mut self, message: Message) -> Result<(), Error> {
        let mut frame = Frame::parse(message)?;
        self.heard = Instant::now();
        if frame.offset > self.next {
            return self.ask().await;
        }
        let known = self.next - frame.offset;
        let heartbeat = frame.bytes.is_empty() && frame.end.is_none();
        if self.ended || heartbeat || (known > 0 && frame.next_offset() <= self.next && frame.end.is_none()) {
            return self.acknowledge(None, None).await; // a probe or a repetition: say where we are
        }
        // a repetition that is known in part
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(frame.bytes.len());
        frame.bytes.advance(known);
        if !frame.bytes.is_empty() {
            let position = frame.position.map(|position| position.saturating_add(known as u64));
            self.take(Chunk { bytes: frame.bytes, position })?;
        }
        if let Some(end) = frame.end {
            self.ended = true;
            let _ = self.items.send(Item::End(end)); // a consumer that has gone says so by `closed`
        }
        Ok(())
    }

    fn take(&mut self, chunk: Chunk) -> Result<(), Error> {
        self.next += chunk.bytes.len() as u64;
        self.received_chunks += 1;
        let waiting = self.next - self.shared.taken.load(Ordering::SeqCst);
        let chunks = self.received_chunks - self.shared.chunks.load(Ordering::SeqCst);
        // the chunks may be one short here: the consumer counts bytes first
        if waiting > WINDOW_BYTES || chunks > WINDOW_CHUNKS as u64 + 1 {
            return Err(malformed("is more than the window allows"));
        }
        let _ = self.items.send(Item::Chunk(chunk)); // a consumer that has gone says so by `closed`
        Ok(())
    }

    /// Something before what has come is missing. Everything on the way has the same gap, so it is told once a while.
    async fn ask(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.asked.is_some_and(|(gap, when)| gap == self.next && now < when + PROBE / 2) {
            return Ok(());
        }
        self.asked = Some((self.next, now));
        self.acknowledge(Some(self.next), None).await
    }

    async fn acknowledge(&mut self, missing: Option<u64>, end: Option<AckEnd>) -> Result<(), Error> {
        let (taken, chunks) = (self.shared.taken.load(Ordering::SeqCst), self.shared.chunks.load(Ordering::SeqCst));
        self.shared.acknowledged.store(taken, Ordering::SeqCst);
        self.shared.acknowledged_chunks.store(chunks, Ordering::SeqCst);
        self.conn.publish(Ack { taken, missing, end }.message(&self.ack)).await?;
        self.spoke = Instant::now();
        Ok(())
    }
}
