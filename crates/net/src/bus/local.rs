//! A connection in this process: messages are handed on as they are.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode};

use super::{
    BoxFuture, Conn, Message, Subscription, Unsubscribe,
    inlet::{Inlet, Replies},
    lookup::{Cache, Found, Matched, Verdict},
    rights::Rights,
    router::{Crowd, Hand, Router, stall},
    session::{Publication, Sink, Sub},
    stats::Tally,
    subject,
    wire::{check_headers, encode_headers},
};
use crate::clock::random_text;

/// What [`Router::connect`] gives.
pub(crate) struct LocalConn {
    router: Arc<Router>,
    name: String,
    rights: Rights,
    memory: Mutex<Memory>,
    replies: Arc<Replies>,
    /// All of its reply inboxes are one token below this.
    inbox: String,
    inbox_sub: Arc<Sub>,
}

/// What is used while a message is handed over.
struct Memory {
    cache: Cache,
    hand: Hand,
    tally: Tally,
}

impl LocalConn {
    pub(crate) fn new(router: &Arc<Router>, name: &str, rights: Rights) -> Self {
        let inbox = format!("_INBOX.{}", random_text(&*router.clock));
        let replies = Arc::new(Replies::default());
        let inbox_sub = Arc::new(Sub::new(&format!("{inbox}.*"), None, Sink::Replies(replies.clone())));
        if !router.insert(&inbox_sub) {
            tracing::error!(name, "the bus has too many subscriptions; this connection can't receive replies");
        }
        let memory = Mutex::new(Memory { cache: Cache::default(), hand: router.hand(), tally: Tally::default() });
        Self { router: router.clone(), name: name.into(), rights, memory, replies, inbox, inbox_sub }
    }

    /// Publishes and says how many got it. `own_reply`: the reply subject is this connection's own inbox.
    async fn send(&self, message: Message, own_reply: bool) -> Result<usize, Error> {
        check_headers(&message.headers)?;
        let headers = encode_headers(&message.headers);
        let size = headers.len() + message.payload.len();
        if size > self.router.limits.max_payload {
            return Err(too_large(size, self.router.limits.max_payload));
        }
        if let Some(reply) = message.reply.as_deref().filter(|_| !own_reply) {
            self.check_reply(reply)?;
        }
        let (count, crowd) = self.hand_over(&message, &headers, size)?;
        if let Some(crowd) = crowd {
            stall(crowd, self.router.limits.stall).await;
        }
        Ok(count)
    }

    fn check_reply(&self, reply: &str) -> Result<(), Error> {
        if !subject::is_literal(reply, self.router.limits.subject_tokens) {
            return Err(invalid_subject(reply));
        }
        if self.rights.may_ask_reply(reply) { Ok(()) } else { Err(self.forbidden("ask for replies at", reply)) }
    }

    fn hand_over(&self, message: &Message, headers: &[u8], size: usize) -> Result<(usize, Option<Crowd>), Error> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { cache, hand, tally } = &mut *memory;
        cache.at(self.router.generation());
        let found = match cache.get(message.subject.as_bytes()) {
            Some(_) => cache.get(message.subject.as_bytes()),
            None => Some(cache.put(self.look_up(&message.subject))),
        };
        let Some(found) = found else { return Err(invalid_subject(&message.subject)) };
        match found.verdict {
            Verdict::Allowed => {}
            Verdict::Refused => return Err(self.forbidden("publish to", &message.subject)),
            Verdict::Invalid => return Err(invalid_subject(&message.subject)),
        }
        let publication = Publication {
            shared: message.payload.clone().into(),
            message: message.clone().into(),
            ..Publication::new(&message.subject, message.reply.as_deref(), headers, &message.payload)
        };
        let count = self.router.publish(&found.matched, &publication, hand, None);
        tally.count(&found.prefix, 1, size, (count, count * size));
        self.router.stats.traffic.add(&tally.take());
        hand.wakers.wake();
        Ok((count, hand.crowd.take()))
    }

    fn look_up(&self, subject: &Arc<str>) -> Found {
        let verdict = if !subject::is_literal(subject, self.router.limits.subject_tokens) {
            Verdict::Invalid
        } else if self.rights.may_publish(subject) {
            Verdict::Allowed
        } else {
            Verdict::Refused
        };
        let (matched, prefix) = match verdict {
            Verdict::Allowed => (self.router.find(subject), self.router.stats.prefix(subject)),
            Verdict::Refused | Verdict::Invalid => (Matched::default(), self.router.stats.nowhere()),
        };
        Found { subject: subject.clone(), mapped: None, prefix, verdict, matched, in_runs: OnceLock::new() }
    }

    fn forbidden(&self, verb: &str, subject: &str) -> Error {
        Error::new(ErrorCode::Forbidden, format!("{} may not {verb} {subject:?}.", self.name))
    }

    fn subscribe_now(&self, pattern: &str, queue: Option<&str>) -> Result<Subscription, Error> {
        let limits = &self.router.limits;
        if !subject::is_pattern(pattern, limits.subject_tokens) || queue.is_some_and(|queue| !subject::is_queue(queue)) {
            return Err(invalid_subject(pattern));
        }
        if !self.rights.may_subscribe(pattern) {
            return Err(self.forbidden("subscribe to", pattern));
        }
        let (inlet, messages) = Inlet::new(limits.pending_messages, limits.pending_bytes, &self.router.budget);
        let sub = Arc::new(Sub::new(pattern, queue, Sink::Local(inlet)));
        if !self.router.insert(&sub) {
            return Err(Error::new(ErrorCode::LimitExceeded, "The bus has as many subscriptions as it may."));
        }
        let router = Arc::downgrade(&self.router);
        let undo = Unsubscribe::new(move || {
            if let Some(router) = router.upgrade() {
                router.remove(&sub);
            }
        });
        Ok(Subscription::new(messages, Some(undo)))
    }

    async fn ask(&self, mut message: Message, timeout: Duration) -> Result<Message, Error> {
        // whoever is asked learns the inbox: were the tokens counted, it could answer in the place of others that are asked
        let token = random_text(&*self.router.clock);
        let Some(answer) = self.replies.expect(&token, &message.subject) else { return Err(too_many_requests()) };
        let _forget = Unsubscribe::new({
            let (replies, token) = (self.replies.clone(), token.clone());
            move || replies.forget(&token)
        });
        message.reply = Some(format!("{}.{token}", self.inbox).into());
        let subject = message.subject.clone();
        if self.send(message, true).await? == 0 {
            return Err(no_responders(&subject));
        }
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => not_503(answer?, &subject),
            Ok(Err(_)) => Err(Error::new(ErrorCode::Unavailable, "The bus has ended.")),
            Err(_) => Err(timed_out(&subject)),
        }
    }
}

impl Drop for LocalConn {
    fn drop(&mut self) {
        self.router.remove(&self.inbox_sub);
    }
}

impl Conn for LocalConn {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.send(message, false).await.map(|_| ()) })
    }

    fn subscribe<'a>(&'a self, subject: &'a str, queue: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(async move { self.subscribe_now(subject, queue) })
    }

    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        Box::pin(self.ask(message, timeout))
    }
}

// The errors that all kinds of connections have in common.

pub(crate) fn too_large(size: usize, most: usize) -> Error {
    Error::new(ErrorCode::TooLarge, format!("The message has {size} bytes; the bus takes {most}.")).mend("Send it as a stream.")
}

pub(crate) fn invalid_subject(subject: &str) -> Error {
    Error::invalid(format!("{subject:?} isn't a subject that can be used here."))
}

pub(crate) fn no_responders(subject: &str) -> Error {
    Error::new(ErrorCode::NoResponders, format!("Nobody serves {subject:?} right now."))
}

pub(crate) fn timed_out(subject: &str) -> Error {
    Error::new(ErrorCode::TimedOut, format!("No answer came to the request to {subject:?} in time."))
}

pub(crate) fn too_many_requests() -> Error {
    Error::new(ErrorCode::LimitExceeded, "Too many requests of this connection wait for answers.")
}

/// An answer, unless it is the bus's that nobody serves the subject.
pub(crate) fn not_503(answer: Message, subject: &str) -> Result<Message, Error> {
    if answer.headers.status == Some(503) && answer.payload.is_empty() { Err(no_responders(subject)) } else { Ok(answer) }
}
