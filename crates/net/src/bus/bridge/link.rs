//! What the router and the bridge's task share: the local interest, and, while there is a connection, the cluster's.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{
    crossing::Crossing,
    interest::{Interest, Told},
    wire::{Key, Patterns},
};
use crate::bus::{
    lookup::Matched,
    outbound::{Outbound, Pushed, Wakers},
    session::{Publication, Sub},
    trie::{Leaf, PatternSet, Trie},
    wire::Frame,
};

/// A router's bridge, for as long as the router lives.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(super) crossing: Crossing,
    pub(super) interest: Arc<Interest>,
    link: RwLock<Option<Arc<Link>>>,
    pub(super) counts: Counts,
}

/// Since the router began.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub connects: AtomicU64,
    pub slow: AtomicU64,
    pub in_messages: AtomicU64,
    pub in_bytes: AtomicU64,
    pub out_messages: AtomicU64,
    pub out_bytes: AtomicU64,
    pub refused: AtomicU64,
}

impl Counts {
    pub(super) fn add(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

impl Bridge {
    pub(super) fn new(crossing: Crossing) -> Self {
        Self { crossing, interest: Arc::default(), link: RwLock::default(), counts: Counts::default() }
    }

    /// A local subscription begins. Called under the lock of the router's trie, so that beginnings and ends are seen in their order.
    pub(crate) fn begin(&self, sub: &Sub) {
        for part in self.crossing.parts(&sub.subject) {
            self.interest.begin(&part, sub.queue.as_deref());
        }
    }

    /// A local subscription ends; as [`begin`](Self::begin).
    pub(crate) fn end(&self, sub: &Sub) {
        for part in self.crossing.parts(&sub.subject) {
            self.interest.end(&part, sub.queue.as_deref());
        }
    }

    /// What the cluster wants of a subject, beside those here who get it.
    pub(crate) fn wanted(&self, subject: &str, here: &Matched) -> Option<Box<Wanted>> {
        self.link()?.wanted(subject, here)
    }

    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_link(&self, link: Option<Arc<Link>>) {
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
    }
}

/// One connection to the cluster.
#[derive(Debug)]
pub(crate) struct Link {
    /// Counts connections.
    pub(super) number: u64,
    pub out: Outbound,
    /// Bytes of a message that the hub takes.
    pub(super) max_payload: usize,
    pub(super) headers: bool,
    interest: Arc<Interest>,
    wants: RwLock<Trie<Wants>>,
    rights: RwLock<Rights>,
    /// Set when the hub doesn't keep up.
    pub(super) slow: AtomicBool,
    /// Messages that the hub would not take.
    refused: AtomicU64,
}

/// The cluster's interest in one pattern: how many of its subscriptions come down to it here.
#[derive(Debug, Default)]
struct Wants {
    plain: usize,
    queues: Vec<(Box<str>, usize)>,
}

impl Leaf for Wants {
    fn is_empty(&self) -> bool {
        self.plain == 0 && self.queues.is_empty()
    }
}

/// What the hub lets this connection do. It closes connections that do more.
#[derive(Debug, Default)]
struct Rights {
    ask: Allowed,
    send: Allowed,
}

#[derive(Debug, Default)]
struct Allowed {
    allow: Option<PatternSet>,
    deny: PatternSet,
}

impl Allowed {
    fn new(patterns: Option<&Patterns>) -> Self {
        let set = |patterns: &[String]| {
            let mut set = PatternSet::default();
            patterns.iter().for_each(|pattern| set.insert(pattern));
            set
        };
        let Some(patterns) = patterns else { return Self::default() };
        Self { allow: (!patterns.allow.is_empty()).then(|| set(&patterns.allow)), deny: set(&patterns.deny) }
    }

    fn covers(&self, pattern: &str) -> bool {
        self.allow.as_ref().is_none_or(|allow| allow.covers(pattern)) && !self.deny.covers(pattern)
    }
}

impl Link {
    pub(super) fn new(bridge: &Bridge, number: u64, out: Outbound, max_payload: usize, headers: bool) -> Self {
        Self {
            number,
            out,
            max_payload,
            headers,
            interest: bridge.interest.clone(),
            wants: RwLock::default(),
            rights: RwLock::default(),
            slow: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }
    }

    pub(super) fn allow(&self, import: Option<&Patterns>, export: Option<&Patterns>) {
        let rights = Rights { ask: Allowed::new(import), send: Allowed::new(export) };
        *self.rights.write().unwrap_or_else(PoisonError::into_inner) = rights;
    }

    /// The cluster has a subscription to these patterns.
    pub(super) fn want(&self, parts: &[Box<str>], key: Key<'_>) {
        let mut wants = self.wants.write().unwrap_or_else(PoisonError::into_inner);
        for part in parts {
            let leaf = wants.leaf(part);
            match key.queue {
                None => leaf.plain += 1,
                Some(queue) => match leaf.queues.iter_mut().find(|(name, _)| **name == *queue) {
                    Some((_, count)) => *count += 1,
                    None => leaf.queues.push((queue.into(), 1)),
                },
            }
        }
    }

    /// It has it no more.
    pub(super) fn want_no_more(&self, parts: &[Box<str>], key: Key<'_>) {
        let mut wants = self.wants.write().unwrap_or_else(PoisonError::into_inner);
        for part in parts {
            wants.change(part, |leaf| match key.queue {
                None => leaf.plain = leaf.plain.saturating_sub(1),
                Some(queue) => {
                    if let Some((_, count)) = leaf.queues.iter_mut().find(|(name, _)| **name == *queue) {
                        *count -= 1;
                    }
                    leaf.queues.retain(|(_, count)| *count > 0);
                }
            });
        }
    }

    /// Forgets all that the cluster wants: publishers may hold on to a link that has ended.
    pub(super) fn forget(&self) {
        *self.wants.write().unwrap_or_else(PoisonError::into_inner) = Trie::default();
    }

    fn wanted(self: Arc<Self>, subject: &str, here: &Matched) -> Option<Box<Wanted>> {
        let (mut plain, mut names) = (false, Vec::<Box<str>>::new());
        self.wants.read().unwrap_or_else(PoisonError::into_inner).matches(subject, &mut |leaf: &Wants| {
            plain |= leaf.plain > 0;
            for (name, _) in &leaf.queues {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        });
        if !plain && names.is_empty() || !self.rights.read().unwrap_or_else(PoisonError::into_inner).send.covers(subject) {
            return None;
        }
        let (mut alone, mut behind) = (Vec::new(), Vec::new());
        for name in names {
            match here.groups.iter().position(|group| group.first().is_some_and(|sub| sub.queue.as_deref() == Some(&name))) {
                Some(at) => behind.push((at, name)),
                None => alone.push(name),
            }
        }
        Some(Box::new(Wanted { link: self, plain, alone, behind }))
    }

    /// Tells the hub of changed interest, about `most` bytes of it.
    pub(super) fn tell(&self, most: usize, wakers: &mut Wakers) -> Told {
        let rights = self.rights.read().unwrap_or_else(PoisonError::into_inner);
        let told = self.interest.tell(self.number, most, |pattern| rights.ask.covers(pattern), |lines| self.out.push_line(lines, wakers));
        if told == Told::Refused {
            self.give_up();
        }
        told
    }

    /// The hub doesn't keep up: the connection ends, and is made anew.
    fn give_up(&self) {
        self.slow.store(true, Ordering::Relaxed);
        self.out.kill();
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// What the cluster gets of one subject.
#[derive(Debug)]
pub(crate) struct Wanted {
    link: Arc<Link>,
    /// It has plain subscriptions.
    plain: bool,
    /// Its queue groups that have no member here.
    alone: Vec<Box<str>>,
    /// Those that have: the group's place among the local ones. The cluster's members get a message only if none here could.
    behind: Vec<(usize, Box<str>)>,
}

/// What became of a message for the cluster.
pub(crate) enum Sent {
    No,
    Yes,
    /// And the queue is more than half full: who can wait should, on this.
    Crowded(Arc<Link>),
}

/// Lines that are sent at once before a message.
const LINES: usize = 64 << 10;

impl Wanted {
    /// Sends a message over if the cluster is to get it; `untaken` are the places of local groups of which nobody took it.
    pub(crate) fn send(&self, publication: &Publication<'_>, untaken: &[usize], wakers: &mut Wakers) -> Sent {
        let link = &self.link;
        let second = self.behind.iter().filter(|(at, _)| untaken.contains(at)).map(|(_, name)| name);
        let mut queues = self.alone.iter().chain(second).peekable();
        if !self.plain && queues.peek().is_none() {
            return Sent::No;
        }
        // what this message's reply needs goes before it
        while link.interest.is_dirty() && link.tell(LINES, wakers) == Told::Some {}
        let headers = if link.headers { publication.headers } else { &[] };
        if headers.len() + publication.payload.len() > link.max_payload {
            link.refused.fetch_add(1, Ordering::Relaxed);
            return Sent::No;
        }
        let (mut middle, mut reply) = (Vec::new(), publication.reply);
        if queues.peek().is_some() {
            middle.extend_from_slice(if reply.is_some() { b"+" } else { b"|" });
            for word in reply.take().into_iter().chain(queues.map(|name| &**name)) {
                middle.push(b' ');
                middle.extend_from_slice(word.as_bytes());
            }
        }
        let frame = Frame {
            plain: b"LMSG ",
            headed: b"HMSG ",
            subject: publication.subject.as_bytes(),
            sid: &middle,
            reply,
            headers,
            payload: publication.payload,
            shared: publication.shared.get(),
        };
        match link.out.push(&frame, wakers) {
            Pushed::Done => Sent::Yes,
            Pushed::Crowded => Sent::Crowded(link.clone()),
            Pushed::Full => {
                link.give_up();
                Sent::No
            }
            Pushed::Closed => Sent::No,
        }
    }
}
