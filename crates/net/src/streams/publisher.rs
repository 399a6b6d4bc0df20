//! Publishes changes after they are committed, in order.
//!
//! Who follows a stream may read slowly, and the bus holds up who publishes to it. That must not hold up the stream, so changes wait in a bounded
//! queue of their own; what doesn't fit isn't published, but its last sequence is: who follows sees that there is something to read.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use atoll_contract::streams::{self, StreamKind};

use super::{
    answer::record_message,
    ask::StreamId,
    engine::Event,
    packed::{StoredRecord, unpack_headers},
};
use crate::bus::{Conn, Headers, Message};

/// Changes of one stream that wait to be published.
const WAITING: usize = 4096;
/// Bytes of them, and of those of all streams.
const WAITING_BYTES: usize = 4 << 20;
const ALL_BYTES: usize = 64 << 20;
/// The status of a message that isn't a change but says what the last sequence is.
pub const BEHIND: u16 = 100;
/// The status of the message that says that a stream was deleted.
pub const REMOVED: u16 = 410;

pub(super) struct Publisher {
    conn: Arc<dyn Conn>,
    queues: Mutex<Queues>,
}

/// Only of streams that have something to publish.
#[derive(Default)]
struct Queues {
    streams: HashMap<StreamId, Queue>,
    bytes: usize,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
    /// Published when there is room again.
    behind: Option<Message>,
}

impl Publisher {
    pub(super) fn new(conn: Arc<dyn Conn>) -> Arc<Self> {
        Arc::new(Self { conn, queues: Mutex::default() })
    }

    /// Takes what was committed to a stream. Never waits.
    pub(super) fn committed(self: Arc<Self>, id: &StreamId, events: Vec<Event>) {
        let mut queues = self.lock();
        let Queues { streams, bytes: all } = &mut *queues;
        let fresh = !streams.contains_key(id);
        let queue = streams.entry(id.clone()).or_default();
        for event in events {
            let message = message(id, &event);
            let size = message.payload.len() + 512;
            let fits = queue.messages.len() < WAITING && queue.bytes + size <= WAITING_BYTES && *all + size <= ALL_BYTES;
            if fits && queue.behind.is_none() {
                (queue.bytes, *all) = (queue.bytes + size, *all + size);
                queue.messages.push_back(message);
            } else {
                queue.behind = Some(behind(id, &event));
            }
        }
        drop(queues);
        if fresh {
            let id = id.clone();
            tokio::spawn(async move { self.publish(id).await });
        }
    }

    /// Publishes what waits for one stream, until nothing does.
    async fn publish(&self, id: StreamId) {
        while let Some(message) = self.next(&id) {
            if let Err(error) = self.conn.publish(message).await {
                tracing::warn!(owner = %id.owner, stream = %id.name, %error, "a change can't be published; who follows finds it by the next");
            }
        }
    }

    fn next(&self, id: &StreamId) -> Option<Message> {
        let mut queues = self.lock();
        let queue = queues.streams.get_mut(id)?;
        if let Some(message) = queue.messages.pop_front() {
            let size = message.payload.len() + 512;
            queue.bytes -= size;
            queues.bytes -= size;
            return Some(message);
        }
        let behind = queue.behind.take();
        if behind.is_none() {
            queues.streams.remove(id);
        }
        behind
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn subject(id: &StreamId, key: &str) -> String {
    let (owner, kind, name) = (&id.owner, id.kind.as_str(), &id.name);
    match id.kind {
        StreamKind::Log => format!("{owner}.{kind}.{name}.changes"),
        StreamKind::Kv => format!("{owner}.{kind}.{name}.changes.{key}"),
    }
}

fn message(id: &StreamId, event: &Event) -> Message {
    let Event::Written(write, outcome) = event else { return behind(id, event) };
    let record = StoredRecord {
        sequence: outcome.sequence,
        time: outcome.time,
        key: write.key.clone().unwrap_or_default(),
        deleted: write.delete,
        headers: unpack_headers(&write.headers).unwrap_or_default(),
        data: write.data.clone(),
    };
    Message { subject: subject(id, &record.key).into(), ..record_message(&record, &outcome.stream) }
}

/// Says only where the stream is now. Of a kv it goes to a token that no filter for keys needs: its status tells it from a change of a key `_`.
fn behind(id: &StreamId, event: &Event) -> Message {
    let headers = match event {
        Event::Written(_, outcome) => Headers { status: Some(BEHIND), description: "behind".into(), fields: Vec::new() }
            .with(streams::LAST_SEQUENCE, outcome.sequence.to_string())
            .with(streams::STREAM, &*outcome.stream),
        Event::Removed(stream) => {
            Headers { status: Some(REMOVED), description: "deleted".into(), fields: Vec::new() }.with(streams::STREAM, &**stream)
        }
    };
    Message { headers, ..Message::new(subject(id, "_"), "") }
}
