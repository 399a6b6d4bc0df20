//! Messages to one subject that follow each other are handed over together: one look at each receiver, one lock, and one serialisation for all
//! receivers that call their subscription the same (clients count them from 1, so most do).

use std::sync::{Arc, atomic::Ordering};

use atoll_contract::subject::BUS_STATS;
use bytes::{Bytes, BytesMut};

use super::{
    lookup::{Found, Matched, Verdict},
    outbound::Pushed,
    router::{Crowd, Hand, Router},
    server::Connection,
    session::{Publication, Sink, Sub},
    wire::{Frame, Publish, put_frame},
};

/// A run ends when it has so many messages or bytes, so that receivers get theirs while more is being read.
const MAX_MESSAGES: usize = 4096;
const MAX_BYTES: usize = 64 << 10;
/// Serialisations of one run that are kept for further receivers.
const MAX_ENCODINGS: usize = 8;

/// What follows each other to one subject, borrowed from the buffer that it came in.
#[derive(Debug, Default)]
pub(super) struct Run<'a> {
    found: Option<Arc<Found>>,
    parts: Vec<Part<'a>>,
    /// Of headers and payloads.
    bytes: usize,
}

/// One message of a run.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    reply: Option<&'a str>,
    headers: &'a [u8],
    payload: &'a [u8],
}

impl Part<'_> {
    fn size(&self) -> usize {
        self.headers.len() + self.payload.len()
    }
}

impl Connection {
    /// Takes a publication into the run, if it goes the same way as what is there already and nothing has to be said about it alone.
    pub(super) fn join_run<'a>(&mut self, run: &mut Run<'a>, publish: &Publish<'a>) -> bool {
        let plain = self.connected && !self.verbose && (publish.reply.is_none() || !self.tell_no_responders);
        // the rights' version once for the whole run, as the generation below: all of it had come before this look, so what is taken away later was
        // still held when it was sent; the next run sees it, and so does the next read
        if !plain || run.found.is_none() && self.rights_changed() {
            return false;
        }
        let Ok(reply) = self.judge(publish) else { return false };
        let full = run.parts.len() >= MAX_MESSAGES || run.bytes + publish.size() > MAX_BYTES;
        match &run.found {
            Some(found) if full || found.subject.as_bytes() != publish.subject => return false,
            Some(_) => {}
            None => {
                // what is in the buffer was sent before now
                self.cache.at(self.router.generation());
                let Some(found) = self.cache.get(publish.subject).filter(|found| runs(found)) else { return false };
                run.found = Some(found.clone());
            }
        }
        run.bytes += publish.size();
        run.parts.push(Part { reply, headers: publish.headers, payload: publish.payload });
        true
    }

    /// Hands over what has been collected, and empties the run.
    pub(super) fn hand_over(&mut self, run: &mut Run<'_>) {
        let Some(found) = run.found.take() else { return };
        let except = (!self.session.echo.load(Ordering::Relaxed)).then_some(self.session.id);
        let deliveries = self.router.publish_run(&found, &run.parts, &mut self.hand, except);
        self.tally.count(&found.prefix, run.parts.len(), run.bytes, deliveries);
        run.parts.clear();
        run.bytes = 0;
    }
}

/// Whether messages to this subject may be handed over together: no connection gets them by two subscriptions, since it is then to get each one
/// twice before the next; and the cluster doesn't get them.
fn runs(found: &Found) -> bool {
    *found.in_runs.get_or_init(|| {
        let Matched { plain, groups, cluster } = &found.matched;
        let receivers = || plain.iter().chain(groups.iter().flatten());
        let mut sessions: Vec<_> = receivers().filter_map(|sub| sub.session()).map(|session| session.id).collect();
        let count = sessions.len();
        sessions.sort_unstable();
        sessions.dedup();
        let once = sessions.len() == count && count == receivers().count();
        found.verdict == Verdict::Allowed && &*found.subject != BUS_STATS && once && count > 0 && cluster.is_none()
    })
}

/// How many deliveries there were, and the bytes of all of them together.
type Deliveries = (usize, usize);

impl Router {
    /// Hands messages to all who are to get them, except the connection `except`.
    fn publish_run(&self, found: &Found, parts: &[Part<'_>], hand: &mut Hand, except: Option<u64>) -> Deliveries {
        let subject = found.mapped.as_ref().unwrap_or(&found.subject);
        let mut deliveries = (0, 0);
        let mut encodings = Encodings { subject, parts, made: Vec::new() };
        for sub in &found.matched.plain {
            let whole = deliver_run(sub, &mut encodings, hand, except);
            let one_by_one = |publication: &Publication<'_>, hand: &mut Hand| self.deliver(sub, publication, hand, except);
            count(&mut deliveries, subject, parts, whole, hand, one_by_one);
        }
        for group in &found.matched.groups {
            let mut dealt: Vec<Vec<Part<'_>>> = vec![Vec::new(); group.len()];
            parts.iter().for_each(|part| dealt[hand.dice.below(group.len())].push(*part));
            for (start, parts) in dealt.iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
                let mut encodings = Encodings { subject, parts, made: Vec::new() };
                // what one member doesn't take is another's
                let whole = deliver_run(&group[start], &mut encodings, hand, except).filter(|taken| *taken);
                let one_by_one = |publication: &Publication<'_>, hand: &mut Hand| {
                    group[start..].iter().chain(&group[..start]).any(|sub| self.deliver(sub, publication, hand, except))
                };
                count(&mut deliveries, subject, parts, whole, hand, one_by_one);
            }
        }
        deliveries
    }
}

/// Counts what was delivered as a whole, or else hands it over one by one.
fn count(
    deliveries: &mut Deliveries,
    subject: &Arc<str>,
    parts: &[Part<'_>],
    whole: Option<bool>,
    hand: &mut Hand,
    one_by_one: impl Fn(&Publication<'_>, &mut Hand) -> bool,
) {
    for part in parts {
        let delivered = whole.unwrap_or_else(|| one_by_one(&Publication::new(subject, part.reply, part.headers, part.payload), hand));
        if delivered {
            deliveries.0 += 1;
            deliveries.1 += part.size();
        }
    }
}

/// Hands all messages to one receiver at once and says whether it got them. `None` if they have to be handed over one by one.
fn deliver_run(sub: &Arc<Sub>, encodings: &mut Encodings<'_>, hand: &mut Hand, except: Option<u64>) -> Option<bool> {
    let messages = encodings.parts.len();
    let Sink::Wire { session, sid } = &sub.sink else { return None };
    if messages == 1 {
        return None; // a block of its own would cost more
    }
    if except == Some(session.id) || sub.ended.load(Ordering::Relaxed) {
        return Some(false);
    }
    if sub.max.load(Ordering::Relaxed) != 0 || session.answers.load(Ordering::Relaxed) {
        return None;
    }
    let content = encodings.parts.iter().map(Part::size).sum();
    let block = encodings.of(sid, session.headers.load(Ordering::Relaxed));
    match session.out.push_block(&block, messages, content, &mut hand.wakers) {
        Pushed::Full => return None, // a part of it may fit
        Pushed::Closed => return Some(false),
        Pushed::Crowded => drop(hand.crowd.get_or_insert_with(|| Crowd::Sub(sub.clone()))),
        Pushed::Done => {}
    }
    sub.delivered.fetch_add(messages, Ordering::Relaxed);
    Some(true)
}

/// The run as bytes, for each name that receivers have for their subscriptions.
struct Encodings<'a> {
    subject: &'a Arc<str>,
    parts: &'a [Part<'a>],
    made: Vec<(Box<[u8]>, bool, Bytes)>,
}

impl Encodings<'_> {
    fn of(&mut self, sid: &[u8], with_headers: bool) -> Bytes {
        let known = self.made.iter().find(|(name, headers, _)| **name == *sid && *headers == with_headers);
        if let Some((_, _, block)) = known {
            return block.clone();
        }
        let block = self.encode(sid, with_headers);
        if self.made.len() < MAX_ENCODINGS {
            self.made.push((sid.into(), with_headers, block.clone()));
        }
        block
    }

    fn encode(&self, sid: &[u8], with_headers: bool) -> Bytes {
        let subject = self.subject.as_bytes();
        let frames = || {
            self.parts.iter().map(|part| Frame {
                plain: b"MSG ",
                headed: b"HMSG ",
                subject,
                sid,
                reply: part.reply,
                headers: if with_headers { part.headers } else { &[] },
                payload: part.payload,
                shared: None,
            })
        };
        let mut block = BytesMut::with_capacity(frames().map(|frame| frame.most()).sum());
        frames().for_each(|frame| put_frame(&mut block, &frame));
        block.freeze()
    }
}
