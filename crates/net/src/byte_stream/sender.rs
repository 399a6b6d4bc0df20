//! The writing end.

use std::{collections::VecDeque, sync::Arc};

use atoll_contract::{Error, ErrorCode};
use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    ABSENCE_AT_END, CHUNK_BYTES, HEARTBEAT, PROBE, SILENCE, WINDOW_BYTES, WINDOW_CHUNKS,
    wire::{Ack, AckEnd, Frame, malformed},
};
use crate::bus::{Conn, Message, Subscription};

/// Writes a stream. Dropped without [`finish`](Self::finish), it tells the receiver that the stream broke off.
#[derive(Debug)]
pub struct Sender {
    frames: mpsc::Sender<Draft>,
    outcome: watch::Receiver<Option<Result<(), Error>>>,
}

/// What is to be sent once there is room for it.
#[derive(Debug)]
struct Draft {
    bytes: Bytes,
    position: Option<u64>,
    end: Option<Result<(), Error>>,
}

impl Sender {
    /// Writes to `subject`; whoever receives must have subscribed to it.
    ///
    /// # Errors
    /// Those of [`Conn::subscribe`].
    pub async fn open(conn: Arc<dyn Conn>, subject: &str) -> Result<Self, Error> {
        let ack = format!("{subject}.ack");
        let acks = conn.subscribe(&ack, None).await?;
        // one draft waits while the window is full, so that the writer's next bytes are ready when it opens
        let (frames, drafts) = mpsc::channel(1);
        let (result, outcome) = watch::channel(None);
        let now = Instant::now();
        let task = Task {
            conn,
            subject: subject.into(),
            ack: ack.into(),
            acks,
            drafts,
            sent: 0,
            acknowledged: 0,
            pending: VecDeque::new(),
            ended: false,
            heard: now,
            spoke: now,
            absent_since: None,
        };
        tokio::spawn(async move {
            let outcome = task.run().await;
            result.send_replace(Some(outcome));
        });
        Ok(Self { frames, outcome })
    }

    /// Sends bytes, in chunks of at most [`CHUNK_BYTES`]. Waits while the window is full, that is while the reader is slow. If it is
    /// cancelled, a part of the bytes may have been sent.
    ///
    /// # Errors
    /// Why the stream has failed: `cancelled` if the reader has closed it, `timed_out` if the reader has been silent for [`SILENCE`],
    /// `unavailable` if the connection has ended.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
            self.draft(Draft { bytes: chunk, position: None, end: None }).await?;
        }
        Ok(())
    }

    /// Sends one chunk that says where it begins in what the stream is a view of; see [`super::Chunk::position`].
    ///
    /// # Errors
    /// As [`send`](Self::send); `invalid_argument` for more than [`CHUNK_BYTES`].
    pub async fn send_at(&mut self, bytes: Bytes, position: u64) -> Result<(), Error> {
        if bytes.len() > CHUNK_BYTES {
            return Err(malformed("has more than 32 KiB"));
        }
        self.draft(Draft { bytes, position: Some(position), end: None }).await
    }

    /// Ends the stream and waits until the reader has taken everything. However slow the reader is, this lasts as long as it shows that it is there, and
    /// no longer than [`SILENCE`] beyond.
    ///
    /// # Errors
    /// As [`send`](Self::send); `no_responders` if the reader went before it had everything.
    pub async fn finish(self, end: Result<(), Error>) -> Result<(), Error> {
        self.finish_with(Bytes::new(), end).await
    }

    /// As [`finish`](Self::finish), with up to [`CHUNK_BYTES`] in the same message; they don't go with an error.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub async fn finish_with(mut self, bytes: Bytes, end: Result<(), Error>) -> Result<(), Error> {
        if bytes.len() > CHUNK_BYTES || (end.is_err() && !bytes.is_empty()) {
            return Err(malformed("has too much in its last message"));
        }
        self.draft(Draft { bytes, position: None, end: Some(end) }).await?;
        self.outcome().await
    }

    /// Resolves when the stream has failed without being asked to end: the reader closed it or went.
    pub async fn failed(&self) -> Error {
        match self.outcome().await {
            Err(error) => error,
            Ok(()) => Error::new(ErrorCode::Cancelled, "The stream has ended."),
        }
    }

    async fn draft(&mut self, draft: Draft) -> Result<(), Error> {
        match self.frames.send(draft).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failed().await),
        }
    }

    async fn outcome(&self) -> Result<(), Error> {
        let mut outcome = self.outcome.clone();
        let broke_off = || Err(Error::internal("The stream's task ended early."));
        match outcome.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or_else(broke_off),
            Err(_) => broke_off(),
        }
    }
}

/// Owns the sending side's state; runs until the end is acknowledged or the stream fails.
struct Task {
    conn: Arc<dyn Conn>,
    subject: Arc<str>,
    ack: Arc<str>,
    acks: Subscription,
    drafts: mpsc::Receiver<Draft>,
    /// Offset of the next byte.
    sent: u64,
    /// Up to here the consumer has taken everything.
    acknowledged: u64,
    /// What was published beyond that, to be repeated if it was lost. Bounded by the window.
    pending: VecDeque<Frame>,
    ended: bool,
    /// When the receiver was last heard, and when something was last published.
    heard: Instant,
    spoke: Instant,
    /// Since when the bus says that nobody subscribes.
    absent_since: Option<Instant>,
}

impl Task {
    async fn run(mut self) -> Result<(), Error> {
        loop {
            let on_the_way = self.sent - self.acknowledged;
            let room = on_the_way + CHUNK_BYTES as u64 <= WINDOW_BYTES && self.pending.len() < WINDOW_CHUNKS;
            let patience = if self.pending.is_empty() { HEARTBEAT } else { PROBE };
            let wake = (self.spoke + patience).min(self.heard + SILENCE);
            tokio::select! {
                biased;
                message = self.acks.next() => {
                    let message = message.ok_or_else(|| Error::new(ErrorCode::Unavailable, "The connection has ended."))?;
                    if self.hear(&message).await? {
                        return Ok(());
                    }
                }
                draft = self.drafts.recv(), if room && !self.ended => {
                    let broke_off = || Err(Error::new(ErrorCode::Cancelled, "The sender went away before the end."));
                    match draft {
                        Some(draft) => self.send(draft).await?,
                        // told once; who is dropped has nobody that would wait for more
                        None => {
                            self.send(Draft { bytes: Bytes::new(), position: None, end: Some(broke_off()) }).await?;
                            return broke_off();
                        }
                    }
                }
                () = tokio::time::sleep_until(wake) => self.wake().await?,
            }
        }
    }

    async fn send(&mut self, draft: Draft) -> Result<(), Error> {
        let frame = Frame { offset: self.sent, position: draft.position, bytes: draft.bytes, end: draft.end };
        self.sent = frame.next_offset();
        self.ended = frame.end.is_some();
        self.publish(&frame).await?;
        self.pending.push_back(frame);
        Ok(())
    }

    /// Takes an acknowledgement. True when the end was acknowledged.
    async fn hear(&mut self, message: &Message) -> Result<bool, Error> {
        if message.headers.status.is_some() {
            // "no responders": the receiver isn't there, or not there again yet
            self.absent_since.get_or_insert_with(Instant::now);
            return Ok(false);
        }
        let ack = Ack::parse(message)?;
        if ack.taken > self.sent || ack.missing.is_some_and(|missing| missing > self.sent) {
            return Err(malformed("acknowledges bytes that were never sent"));
        }
        self.heard = Instant::now();
        self.absent_since = None;
        match ack.end {
            Some(AckEnd::Taken) if self.ended => return Ok(true),
            Some(AckEnd::Taken) => return Err(malformed("acknowledges an end that was never sent")),
            Some(AckEnd::Closed) => return Err(Error::new(ErrorCode::Cancelled, "The reader has closed the stream.")),
            None => {}
        }
        self.acknowledged = self.acknowledged.max(ack.taken);
        while self.pending.front().is_some_and(|frame| frame.end.is_none() && frame.next_offset() <= self.acknowledged) {
            self.pending.pop_front();
        }
        if let Some(missing) = ack.missing {
            self.repeat(missing).await?;
        }
        Ok(false)
    }

    async fn repeat(&mut self, from: u64) -> Result<(), Error> {
        // cloning a frame copies no bytes
        let frames: Vec<Frame> = self.pending.iter().filter(|frame| frame.offset >= from).cloned().collect();
        for frame in &frames {
            self.publish(frame).await?;
        }
        Ok(())
    }

    /// Nothing was said for a while: probe, or give up.
    async fn wake(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if now >= self.heard + SILENCE {
            return Err(Error::new(ErrorCode::TimedOut, format!("The reader has been silent for {} seconds.", SILENCE.as_secs())));
        }
        if self.ended && self.absent_since.is_some_and(|since| now >= since + ABSENCE_AT_END) {
            return Err(Error::new(ErrorCode::NoResponders, "The reader went before it had everything."));
        }
        // an end that was lost leaves no gap behind it, so it is repeated itself
        let probe = match self.pending.back() {
            Some(last) if self.ended => last.clone(),
            _ => Frame { offset: self.sent, position: None, bytes: Bytes::new(), end: None },
        };
        self.publish(&probe).await
    }

    async fn publish(&mut self, frame: &Frame) -> Result<(), Error> {
        self.conn.publish(frame.message(&self.subject, &self.ack)).await?;
        self.spoke = Instant::now();
        Ok(())
    }
}
