//! What a client's operations do: one function for each.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock, atomic::Ordering},
};

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    agent::Reply,
    subject::{BUS_PING, BUS_STATS, GRANT_ADD, GrantReply},
};
use bytes::Bytes;

use super::{
    Credentials, Grant,
    lookup::{Found, Matched, Verdict},
    rights::Grants,
    router::Hand,
    server::{Connection, Goodbye, error_line},
    session::{Publication, Session, Sink, Sub},
    subject::{is_literal, is_pattern, is_queue},
    wire::{AUTHORIZATION_VIOLATION, ClientOp, Connect, Malformed, NO_RESPONDERS, Publish, well_formed},
};

impl Connection {
    pub(super) fn operation(&mut self, op: ClientOp<'_>, frame: Option<&Bytes>) -> Result<(), Goodbye> {
        if !self.connected && !matches!(op, ClientOp::Connect(_)) {
            // the parser lets nothing else through if CONNECT has to come first
            debug_assert!(!self.auth.required());
            self.authenticate(Credentials { nonce: self.nonce.clone(), ..Credentials::default() })?;
            self.verbose = true; // as nats-server takes a client that says nothing
        }
        match op {
            ClientOp::Publish(publish) => {
                if !self.publish(&publish, frame)? {
                    return Ok(());
                }
            }
            ClientOp::Subscribe { subject, queue, sid } => {
                if let Err(words) = self.subscribe(subject, queue, sid) {
                    self.say(&error_line(&words));
                    return Ok(());
                }
            }
            ClientOp::Unsubscribe { sid, max } => self.unsubscribe(sid, max),
            ClientOp::Connect(json) => self.connect(json)?,
            ClientOp::Ping => {
                self.say(b"PONG\r\n");
                return Ok(());
            }
            ClientOp::Pong | ClientOp::Ok => return Ok(()), // that something came has been noted for the batch
        }
        if self.verbose {
            self.say(b"+OK\r\n");
        }
        Ok(())
    }

    fn connect(&mut self, json: &[u8]) -> Result<(), Goodbye> {
        let mut connect = Connect::default();
        if self.connected {
            // a later one changes what it names
            connect.verbose = self.verbose;
            connect.no_responders = self.tell_no_responders;
            connect.headers = self.session.headers.load(Ordering::Relaxed);
            connect.echo = self.session.echo.load(Ordering::Relaxed);
        }
        if connect.update(json).is_err() {
            return Err(Malformed::Operation.into());
        }
        if !(0..=1).contains(&connect.protocol) {
            return Err(Goodbye("invalid client protocol"));
        }
        if connect.no_responders && !connect.headers {
            return Err(Goodbye("no responders requires headers support"));
        }
        self.verbose = connect.verbose;
        self.tell_no_responders = connect.no_responders;
        self.session.headers.store(connect.headers, Ordering::Relaxed);
        self.session.echo.store(connect.echo, Ordering::Relaxed);
        if self.connected {
            return Ok(()); // the options may change, who it is may not
        }
        let name = connect.name.clone().unwrap_or_default();
        let _ = self.session.name.set(name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()); // set once: this is the first CONNECT
        self.authenticate(Credentials {
            token: connect.proof.auth_token.or(connect.proof.jwt),
            nkey: connect.proof.nkey,
            signature: connect.proof.sig,
            nonce: self.nonce.clone(),
            name: connect.name,
        })
    }

    fn authenticate(&mut self, credentials: Credentials) -> Result<(), Goodbye> {
        let now = self.router.clock.now();
        let grants = match self.auth.connect(&credentials) {
            Ok(grants) => {
                self.count_for(&grants)?;
                Grants::new(grants, self.router.limits.grants_per_connection)
            }
            Err(error) => {
                tracing::info!(connection = self.session.id, peer = %self.session.peer, %error, "the bus refuses a client");
                return Err(Goodbye(AUTHORIZATION_VIOLATION));
            }
        };
        self.session.change_grants(|held| {
            *held = grants;
            held.expire(now);
        });
        self.connected = true;
        self.parser.only_connect(false);
        self.reload();
        if self.session.held().grants.is_empty() { Err(Goodbye(AUTHORIZATION_VIOLATION)) } else { Ok(()) }
    }

    /// Counts the connection for the account that its grants name.
    fn count_for(&self, grants: &[Grant]) -> Result<(), Goodbye> {
        let Some(name) = grants.iter().find_map(|grant| grant.account.as_deref()) else { return Ok(()) };
        let at_most = self.router.limits.connections_per_account;
        let account = self.router.stats.join(name, at_most).ok_or(Goodbye("maximum account active connections exceeded"))?;
        let _ = self.session.account.set(account); // a connection authenticates once
        Ok(())
    }

    /// Publishes, or says why not. Whether +OK is still to be said: as in nats-server it comes before what the publication itself brings.
    fn publish(&mut self, publish: &Publish<'_>, frame: Option<&Bytes>) -> Result<bool, Goodbye> {
        // rights that were taken away meanwhile are gone at once, also in the middle of a batch
        if self.rights_changed() {
            self.reload();
        }
        let (reply, elsewhere) = match self.judge(publish) {
            Ok(reply) => (reply, None),
            Err(Unfit::Elsewhere(reply)) => (Some(reply), Some(reply)),
            Err(Unfit::NoHeaders) => return Err(Goodbye("message headers not supported")),
            Err(Unfit::Headers) => return Ok(self.refuse("Invalid Message Headers")),
            Err(Unfit::Reply) => return Ok(self.refuse("Invalid Reply Subject")),
        };
        self.cache.at(self.router.generation());
        if self.cache.get(publish.subject).is_none() {
            let found = self.look_up(publish.subject);
            self.cache.put(found);
        }
        let Some(found) = self.cache.get(publish.subject) else { return Ok(self.refuse(INVALID_SUBJECT)) };
        let publication = Publication::new(found.mapped.as_ref().unwrap_or(&found.subject), reply, publish.headers, publish.payload);
        if let Some(reply) = elsewhere {
            // as nats-server: who may not publish there at all hears that first
            let words = match found.verdict {
                Verdict::Invalid => INVALID_SUBJECT.to_owned(),
                Verdict::Refused if !(bus_own(&found.subject) || self.rights.responses && self.session.may_respond(&found.subject)) => {
                    publish_violation(&found.subject)
                }
                Verdict::Allowed | Verdict::Refused => format!("Permissions Violation for Publish with Reply of {reply:?}"),
            };
            return Ok(self.refuse(&words));
        }
        match found.verdict {
            Verdict::Allowed if &*found.subject == BUS_STATS => return Ok(self.tell_stats(reply)),
            Verdict::Allowed => {}
            Verdict::Invalid => return Ok(self.refuse(INVALID_SUBJECT)),
            Verdict::Refused if &*found.subject == GRANT_ADD => return Ok(self.add_grant(reply, publish.payload)),
            Verdict::Refused if &*found.subject == BUS_PING => return Ok(self.pong(reply, publish.payload)),
            // an answer: allowed because it was asked for, which no cache may remember
            Verdict::Refused if self.rights.responses && self.session.may_respond(&found.subject) => {
                let (matched, prefix) = (self.router.find(&found.subject), self.router.stats.prefix(&found.subject));
                accept(self.verbose, &self.session, &mut self.hand);
                let count = self.router.publish(&matched, &publication, &mut self.hand, None);
                self.tally.count(&prefix, 1, publish.size(), (count, count * publish.size()));
                return Ok(false);
            }
            Verdict::Refused => {
                let words = publish_violation(&found.subject);
                return Ok(self.refuse(&words));
            }
        }
        if let Some(frame) = frame {
            let _ = publication.shared.set(frame.slice_ref(publish.payload)); // it is new and empty
        }
        let except = (!self.session.echo.load(Ordering::Relaxed)).then_some(self.session.id);
        accept(self.verbose, &self.session, &mut self.hand);
        let count = self.router.publish(&found.matched, &publication, &mut self.hand, except);
        self.tally.count(&found.prefix, 1, publish.size(), (count, count * publish.size()));
        if count == 0 && reply.is_some() && self.tell_no_responders {
            self.answer(reply, NO_RESPONDERS, &[]);
        }
        Ok(false)
    }

    /// What is judged of a publication by itself, whether it goes alone or in a run: its headers and its reply subject, which it gives.
    #[allow(clippy::inline_always, reason = "most have neither; as a call it took 3 % more instructions a message")]
    #[inline(always)]
    pub(super) fn judge<'a>(&self, publish: &Publish<'a>) -> Result<Option<&'a str>, Unfit<'a>> {
        if publish.with_headers {
            if !self.session.headers.load(Ordering::Relaxed) {
                return Err(Unfit::NoHeaders);
            }
            // an empty block is none: the JavaScript client sends one for headers without fields
            if !publish.headers.is_empty() && !well_formed(publish.headers) {
                return Err(Unfit::Headers);
            }
        }
        match publish.reply.map(std::str::from_utf8) {
            None => Ok(None),
            // a reply at an unknown subject is asked for once and never again: there is nothing to remember
            Some(Ok(reply)) if is_literal(reply, self.router.limits.subject_tokens) => {
                if self.rights.may_ask_reply(reply) {
                    Ok(Some(reply))
                } else {
                    Err(Unfit::Elsewhere(reply))
                }
            }
            Some(_) => Err(Unfit::Reply),
        }
    }

    /// Says why something isn't published. There is no +OK to be said then.
    fn refuse(&mut self, words: &str) -> bool {
        self.say(&error_line(words));
        false
    }

    fn look_up(&self, subject: &[u8]) -> Found {
        let text = String::from_utf8_lossy(subject);
        let valid = matches!(text, Cow::Borrowed(_)) && is_literal(&text, self.router.limits.subject_tokens);
        let own = bus_own(&text);
        let mapped: Option<Arc<str>> = self.rights.mapped(&text).filter(|_| valid && !own).map(Into::into);
        let verdict = match valid {
            false => Verdict::Invalid,
            true if !own && (mapped.is_some() || self.rights.may_publish(&text)) => Verdict::Allowed,
            true => Verdict::Refused,
        };
        let matched = match verdict {
            Verdict::Allowed => self.router.find(mapped.as_deref().unwrap_or(&text)),
            Verdict::Refused | Verdict::Invalid => Matched::default(),
        };
        let prefix = match verdict {
            Verdict::Allowed => self.router.stats.prefix(mapped.as_deref().unwrap_or(&text)),
            Verdict::Refused | Verdict::Invalid => self.router.stats.nowhere(),
        };
        Found { subject: text.into(), mapped, prefix, verdict, matched, in_runs: OnceLock::new() }
    }

    fn subscribe(&mut self, pattern: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> Result<(), String> {
        let limits = &self.router.limits;
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| "Invalid Subject".to_owned());
        let (pattern, queue) = (text(pattern)?, queue.map(text).transpose()?);
        let sub = {
            let mut held = self.session.held();
            // looked at under the same lock that grants are taken away under
            if !held.rights.may_subscribe(pattern) {
                return Err(subscribe_violation(pattern, queue));
            }
            if held.subs.contains_key(sid) {
                return Ok(()); // as nats-server: the first one stays
            }
            if !is_pattern(pattern, limits.subject_tokens) || queue.is_some_and(|queue| !is_queue(queue)) {
                return Err("Invalid Subject".into());
            }
            if held.subs.len() >= limits.subscriptions_per_connection {
                return Err(TOO_MANY_SUBSCRIPTIONS.into());
            }
            let sub = Arc::new(Sub::new(pattern, queue, Sink::Wire { session: self.session.clone(), sid: sid.into() }));
            held.subs.insert(sid.into(), sub.clone());
            sub
        };
        if self.router.insert(&sub) {
            return Ok(());
        }
        self.session.held().subs.remove(sid);
        Err(TOO_MANY_SUBSCRIPTIONS.into())
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<usize>) {
        let sub = self.session.held().subs.get(sid).cloned();
        let Some(sub) = sub else { return };
        let max = max.unwrap_or(0);
        sub.max.store(max, Ordering::Relaxed);
        if max == 0 || sub.delivered.load(Ordering::Relaxed) >= max {
            self.router.remove(&sub);
        }
    }

    /// The bus's own answer to a request. A request without a reply subject gets none.
    fn answer(&mut self, reply: Option<&str>, headers: &[u8], payload: &[u8]) -> bool {
        if let Some(reply) = reply {
            self.router.answer(&self.session, &Publication::new(&reply.into(), None, headers, payload), &mut self.hand);
        }
        true
    }

    /// The answer to [`BUS_PING`].
    fn pong(&mut self, reply: Option<&str>, pattern: &[u8]) -> bool {
        let answer = match std::str::from_utf8(pattern) {
            Ok("") => return self.answer(reply, &[], &[]),
            Ok(pattern) if is_pattern(pattern, self.router.limits.subject_tokens) && self.rights.may_subscribe(pattern) => Reply::Ok(()),
            _ => Reply::Error(Error::new(ErrorCode::Forbidden, "This connection may not subscribe to that subject.")),
        };
        self.answer_json(reply, &answer)
    }

    /// The answer to [`BUS_STATS`].
    fn tell_stats(&mut self, reply: Option<&str>) -> bool {
        let report = self.router.report();
        self.answer_json(reply, &report)
    }

    fn answer_json(&mut self, reply: Option<&str>, answer: &impl serde::Serialize) -> bool {
        match serde_json::to_vec(answer) {
            Ok(answer) => self.answer(reply, &[], &answer),
            Err(error) => {
                tracing::error!(%error, "an answer of the bus could not be written");
                false
            }
        }
    }

    fn add_grant(&mut self, reply: Option<&str>, token: &[u8]) -> bool {
        let added = match std::str::from_utf8(token) {
            Ok(token) => self.auth.grant(token).and_then(|grant| self.take_grant(grant)),
            Err(_) => Err(Error::new(ErrorCode::Unauthenticated, "The token isn't text.")),
        };
        self.answer_json(reply, &added.unwrap_or_else(GrantReply::Error))
    }

    fn take_grant(&mut self, grant: Grant) -> Result<GrantReply, Error> {
        let project = grant.key.parse().map_err(|_| Error::internal("The grant's key isn't a project."))?;
        let expires_at = grant.expires_at.unwrap_or(NEVER);
        if expires_at <= self.router.clock.now() {
            return Err(Error::new(ErrorCode::Unauthenticated, "The connect token has expired.").mend("Ask the master for a new one."));
        }
        let mut added = false;
        let ended = self.session.change_grants(|grants| added = grants.add(grant));
        self.router.end_all(&self.session, &ended);
        self.reload();
        if added {
            Ok(GrantReply::Ok { project, expires_at })
        } else {
            Err(Error::new(ErrorCode::LimitExceeded, "This connection holds as many grants as it may.").mend("Open another connection."))
        }
    }

    /// Before a batch: takes notice of rights that others changed, and of grants that have come to their end.
    pub(super) fn see_to_rights(&mut self) -> Result<(), Goodbye> {
        if self.rights_changed() {
            self.reload();
        }
        match self.next_expiry {
            Some(end) if self.router.clock.now() >= end => self.expire(),
            _ => Ok(()),
        }
    }

    /// Whether others changed its rights since it last took notice.
    pub(super) fn rights_changed(&self) -> bool {
        self.rights_version != self.session.rights_version.load(Ordering::Acquire)
    }

    fn expire(&mut self) -> Result<(), Goodbye> {
        let now = self.router.clock.now();
        let mut none_left = false;
        let ended = self.session.change_grants(|grants| none_left = grants.expire(now) && grants.is_empty());
        self.router.end_all(&self.session, &ended);
        self.reload();
        if none_left { Err(Goodbye("User Authentication Expired")) } else { Ok(()) }
    }

    fn reload(&mut self) {
        self.rights_version = self.session.rights_version.load(Ordering::Acquire);
        {
            let held = self.session.held();
            self.rights = held.rights.clone();
            self.next_expiry = held.grants.next_expiry();
        }
        self.session.answers.store(self.rights.responses, Ordering::Relaxed);
        self.cache.clear();
        self.retime = true;
    }
}

/// Why a publication can't go on, whatever its subject.
pub(super) enum Unfit<'a> {
    /// It has headers, and the connection said that it has none.
    NoHeaders,
    Headers,
    Reply,
    /// The connection may not ask for a reply at this subject.
    Elsewhere(&'a str),
}

/// Says +OK to who wants it, while the publication that it is for is being worked on.
fn accept(verbose: bool, session: &Session, hand: &mut Hand) {
    if verbose {
        // a queue that can't take even this can't take the next line of the connection's own either, which ends it
        session.out.push_line(b"+OK\r\n", &mut hand.wakers);
    }
}

const INVALID_SUBJECT: &str = "Invalid Publish Subject";
const TOO_MANY_SUBSCRIPTIONS: &str = "maximum subscriptions exceeded";
/// Characters of a client's name that are kept.
const MAX_NAME: usize = 128;
/// What a grant's answer says that has no end: the last second of the year 9999.
const NEVER: Timestamp = Timestamp::from_millis(253_402_300_799_000);

/// Whether it is spoken to the bus itself, whatever else is allowed.
fn bus_own(subject: &str) -> bool {
    subject == GRANT_ADD || subject == BUS_PING
}

fn publish_violation(subject: &str) -> String {
    format!("Permissions Violation for Publish to {subject:?}")
}

pub(crate) fn subscribe_violation(pattern: &str, queue: Option<&str>) -> String {
    match queue {
        Some(queue) => format!("Permissions Violation for Subscription to {pattern:?} using queue {queue:?}"),
        None => format!("Permissions Violation for Subscription to {pattern:?}"),
    }
}
