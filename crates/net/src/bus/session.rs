//! The part of a connection that others may touch: its queue, its subscriptions, its rights.

use std::{
    cell::OnceCell,
    collections::{HashMap, VecDeque},
    sync::{Arc, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use atoll_contract::bus::BusTraffic;
use tokio::time::Instant;

use super::{
    Message,
    inlet::{Inlet, Replies},
    outbound::{Outbound, Pushed, Wakers},
    rights::{Grants, Rights},
    stats::{Account, Traffic},
    sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard},
    wire::{Frame, decode_headers},
};

/// One connection over a wire. Its task reads and writes; publishers put into its queue; the router takes its grants.
#[derive(Debug)]
pub(crate) struct Session {
    pub id: u64,
    pub peer: String,
    pub name: OnceLock<String>,
    /// Whom it counts for, if its grants say.
    pub account: OnceLock<Arc<Account>>,
    /// What it published.
    pub published: Traffic,
    pub out: Outbound,
    /// Whether it is to be encrypted.
    pub tls: AtomicBool,
    /// Whether headers may be sent to it (its CONNECT says so).
    pub headers: AtomicBool,
    /// Whether it gets its own publications.
    pub echo: AtomicBool,
    /// Whether it may answer what is delivered to it, so that reply subjects are noted.
    pub answers: AtomicBool,
    asked: Mutex<Asked>,
    held: Mutex<Held>,
    /// Counts changes of its rights, so that its task sees one without a lock.
    pub rights_version: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Held {
    pub grants: Grants,
    pub rights: Arc<Rights>,
    /// By the client's own id of a subscription.
    pub subs: HashMap<Box<[u8]>, Arc<Sub>>,
}

impl Session {
    pub(crate) fn new(id: u64, peer: String, out: Outbound) -> Self {
        Self {
            id,
            peer,
            name: OnceLock::new(),
            account: OnceLock::new(),
            published: Traffic::default(),
            out,
            tls: AtomicBool::new(false),
            headers: AtomicBool::new(false),
            echo: AtomicBool::new(true),
            answers: AtomicBool::new(false),
            asked: Mutex::default(),
            held: Mutex::default(),
            rights_version: AtomicU64::new(0),
        }
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it published and what it got.
    pub(crate) fn traffic(&self) -> BusTraffic {
        let written = self.out.written();
        BusTraffic { out_messages: written.messages, out_bytes: written.bytes, ..self.published.view() }
    }

    /// Whether a message with this reply subject was delivered to it lately.
    pub(crate) fn may_respond(&self, subject: &str) -> bool {
        self.asked().knows(subject, Instant::now())
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a connection that doesn't keep up; what it hasn't taken is thrown away.
    pub(crate) fn cut(&self) {
        let (bytes, messages) = self.out.pending();
        tracing::warn!(connection = self.id, peer = %self.peer, bytes, messages, "a slow consumer is dropped");
        self.out.cut(b"-ERR 'Slow Consumer'\r\n");
    }

    /// Changes the grants, and gives back the subscriptions that they no longer cover, taken out here; the router still has them.
    pub(crate) fn change_grants(&self, change: impl FnOnce(&mut Grants)) -> Vec<Arc<Sub>> {
        let mut held = self.held();
        change(&mut held.grants);
        held.rights = held.grants.rights();
        self.rights_version.fetch_add(1, Ordering::Release);
        let rights = held.rights.clone();
        held.subs.extract_if(|_, sub| !rights.may_subscribe(&sub.subject)).map(|(_, sub)| sub).collect()
    }
}

/// The reply subjects that a connection may publish to because it was asked to answer there.
#[derive(Debug, Default)]
struct Asked {
    until: HashMap<Arc<str>, Instant>,
    /// In the order in which they were first noted.
    order: VecDeque<Arc<str>>,
    /// Of their texts.
    bytes: usize,
}

/// Reply subjects that are remembered for one connection, and their bytes; a further one pushes out the oldest.
const MAX_ASKED: usize = 4096;
const MAX_ASKED_BYTES: usize = 512 << 10;
/// How long an answer may take to begin. The longest request of Atoll's own waits for two minutes.
const ANSWER_WITHIN: Duration = Duration::from_mins(5);

impl Asked {
    fn note(&mut self, reply: &str, now: Instant) {
        if let Some(until) = self.until.get_mut(reply) {
            *until = now + ANSWER_WITHIN;
            return;
        }
        while self.order.len() >= MAX_ASKED || self.bytes + reply.len() > MAX_ASKED_BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            self.until.remove(&oldest);
            self.bytes -= oldest.len();
        }
        let reply: Arc<str> = reply.into();
        self.bytes += reply.len();
        self.order.push_back(reply.clone());
        self.until.insert(reply, now + ANSWER_WITHIN);
    }

    fn knows(&self, reply: &str, now: Instant) -> bool {
        self.until.get(reply).is_some_and(|until| now < *until)
    }
}

/// One subscription.
#[derive(Debug)]
pub(crate) struct Sub {
    pub subject: Box<str>,
    pub queue: Option<Box<str>>,
    pub sink: Sink,
    /// Where it stands in its leaf's list; changed under the trie's lock alone.
    pub position: std::sync::atomic::AtomicUsize,
    /// Messages that it got.
    pub delivered: AtomicUsize,
    /// It ends after so many; 0 for never.
    pub max: AtomicUsize,
    pub ended: AtomicBool,
}

/// Where a subscription's messages go.
#[derive(Debug)]
pub(crate) enum Sink {
    Wire { session: Arc<Session>, sid: Box<[u8]> },
    Local(Inlet),
    Replies(Arc<Replies>),
}

/// What became of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Done,
    /// Done, and the receiver is half full.
    Crowded,
    /// Done, and it was the last one that this subscription wanted.
    Last,
    /// The receiver can't keep up.
    Slow,
    /// The subscription has ended.
    Gone,
    /// It got all that it wanted, before it said how much that is; nobody else has noticed.
    Spent,
}

impl Sub {
    pub(crate) fn new(subject: &str, queue: Option<&str>, sink: Sink) -> Self {
        Self {
            subject: subject.into(),
            queue: queue.map(Into::into),
            sink,
            position: std::sync::atomic::AtomicUsize::new(0),
            delivered: AtomicUsize::new(0),
            max: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        }
    }

    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        match &self.sink {
            Sink::Wire { session, .. } => Some(session),
            Sink::Local(_) | Sink::Replies(_) => None,
        }
    }

    pub(crate) fn deliver(&self, publication: &Publication<'_>, wakers: &mut Wakers) -> Delivery {
        if self.ended.load(Ordering::Relaxed) {
            return Delivery::Gone;
        }
        let count = self.delivered.fetch_add(1, Ordering::Relaxed) + 1;
        let max = self.max.load(Ordering::Relaxed);
        if max != 0 && count > max {
            return Delivery::Spent;
        }
        let pushed = match &self.sink {
            Sink::Wire { session, sid } => {
                if let Some(reply) = publication.reply.filter(|_| session.answers.load(Ordering::Relaxed)) {
                    session.asked().note(reply, Instant::now());
                }
                let headers = if session.headers.load(Ordering::Relaxed) { publication.headers } else { &[] };
                let frame = Frame {
                    plain: b"MSG ",
                    headed: b"HMSG ",
                    subject: publication.subject.as_bytes(),
                    sid,
                    reply: publication.reply,
                    headers,
                    payload: publication.payload,
                    shared: publication.shared.get(),
                };
                session.out.push(&frame, wakers)
            }
            Sink::Local(inlet) => inlet.push(publication.message()),
            Sink::Replies(replies) => {
                replies.answer(publication.message());
                Pushed::Done
            }
        };
        match pushed {
            Pushed::Done | Pushed::Crowded if max != 0 && count == max => Delivery::Last,
            Pushed::Done => Delivery::Done,
            Pushed::Crowded => Delivery::Crowded,
            Pushed::Full => Delivery::Slow,
            Pushed::Closed => Delivery::Gone,
        }
    }
}

/// A message on its way through the router, in whichever forms its receivers want.
pub(crate) struct Publication<'a> {
    pub subject: &'a Arc<str>,
    pub reply: Option<&'a str>,
    /// The block as it is on the wire; empty for none.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
    /// The payload as bytes that many can hold.
    pub shared: OnceCell<bytes::Bytes>,
    /// For receivers in this process, made at the first of them.
    pub message: OnceCell<Message>,
}

impl<'a> Publication<'a> {
    pub(crate) fn new(subject: &'a Arc<str>, reply: Option<&'a str>, headers: &'a [u8], payload: &'a [u8]) -> Self {
        Self { subject, reply, headers, payload, shared: OnceCell::new(), message: OnceCell::new() }
    }

    /// The payload in a form that is not copied again for each receiver.
    pub(crate) fn share(&self) -> &bytes::Bytes {
        self.shared.get_or_init(|| bytes::Bytes::copy_from_slice(self.payload))
    }

    fn message(&self) -> Message {
        let make = || Message {
            subject: self.subject.clone(),
            reply: self.reply.map(Into::into),
            headers: if self.headers.is_empty() { super::Headers::default() } else { decode_headers(self.headers) },
            payload: self.share().clone(),
        };
        self.message.get_or_init(make).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_remembered_for_a_while_and_in_a_bounded_number() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        asked.note("r", now);
        assert!(asked.knows("r", now) && !asked.knows("s", now) && !asked.knows("r", now + ANSWER_WITHIN));
        asked.note("r", now + Duration::from_secs(1));
        assert!(asked.knows("r", now + ANSWER_WITHIN), "asked again");
        (0..MAX_ASKED).for_each(|n| asked.note(&n.to_string(), now));
        assert!(!asked.knows("r", now) && asked.knows("0", now) && asked.knows("4095", now));
        assert_eq!((asked.until.len(), asked.order.len()), (MAX_ASKED, MAX_ASKED));
    }

    #[test]
    fn long_replies_take_no_more_memory_than_short_ones() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let long = |n: usize| format!("{n:04000}");
        (0..MAX_ASKED).for_each(|n| asked.note(&long(n), now));
        let held: usize = asked.order.iter().map(|reply| reply.len()).sum();
        assert!(held <= MAX_ASKED_BYTES && asked.bytes == held && asked.until.len() == asked.order.len(), "{held}");
        assert!(asked.knows(&long(MAX_ASKED - 1), now) && !asked.knows(&long(0), now));
    }
}
