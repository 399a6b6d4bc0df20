//! The router: connections, their subscriptions, and who gets what.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use atoll_contract::{bus::BusTraffic, subject::Permissions};
use axum::extract::ws::WebSocket;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Authenticator, Conn,
    bridge::link::{Bridge, Link, Sent},
    budget::Budget,
    limits::BusLimits,
    local::LocalConn,
    lookup::{Dice, Matched, Subs},
    operations,
    outbound::{Outbound, Wakers},
    pump::Raw,
    rights::Rights,
    server,
    session::{Delivery, Publication, Session, Sink, Sub},
    stats::Stats,
    sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, RwLock},
    trie::Trie,
    websocket::Frames,
};
use crate::clock::{SharedClock, random_text};

/// The embedded message router. Speaks the NATS client protocol to connections and hands messages about in process.
pub struct Router {
    pub(crate) limits: BusLimits,
    pub(crate) clock: SharedClock,
    pub(crate) server_id: String,
    trie: RwLock<Trie<Subs>>,
    /// Changes with every change of the trie: what publishers remember holds for one value of it.
    generation: AtomicU64,
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    next_id: AtomicU64,
    subscriptions: AtomicUsize,
    draining: AtomicBool,
    pub(crate) stats: Stats,
    pub(crate) budget: Arc<Budget>,
    /// Set before the first subscription that it doesn't know of; see [`set_bridge`](Self::set_bridge).
    bridge: OnceLock<Arc<Bridge>>,
}

/// What is there now, and counts since the router began. Bytes are those of headers and payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusStats {
    /// Over a wire; those in process aren't counted.
    pub connections: u64,
    pub subscriptions: u64,
    pub in_messages: u64,
    pub in_bytes: u64,
    pub out_messages: u64,
    pub out_bytes: u64,
    /// Connections and subscriptions in process that were ended because they didn't keep up.
    pub slow_consumers: u64,
}

/// One connection over a wire, for people who look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    pub id: u64,
    /// What the client calls itself; empty before CONNECT or if it doesn't say.
    pub name: String,
    pub peer: String,
    /// The keys of its grants.
    pub grants: Vec<String>,
    pub subscriptions: usize,
    pub pending_bytes: usize,
    pub pending_messages: usize,
}

impl Router {
    pub fn new(limits: BusLimits, clock: SharedClock) -> Arc<Self> {
        // a queue that can't hold one message of the greatest size would make every receiver of it a slow one
        let least = limits.max_payload + 2 * limits.max_control_line + 1024;
        let limits =
            BusLimits { pending_bytes: limits.pending_bytes.max(least), pending_messages: limits.pending_messages.max(2), ..limits };
        Arc::new(Self {
            budget: Budget::new(limits.memory),
            server_id: random_text(&*clock).to_uppercase(),
            limits,
            clock,
            trie: RwLock::default(),
            generation: AtomicU64::new(1),
            sessions: Mutex::default(),
            next_id: AtomicU64::new(1),
            subscriptions: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            stats: Stats::default(),
            bridge: OnceLock::new(),
        })
    }

    /// Serves one connection until it ends. `peer` says where it comes from, for people. At `cancel` what waits is written, within
    /// [`BusLimits::close_timeout`]. Dropping the future ends the connection at once.
    pub fn serve<IO>(
        self: &Arc<Self>,
        io: IO,
        peer: String,
        auth: Arc<dyn Authenticator>,
        cancel: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<IO>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        server::serve(self.clone(), Raw(io), false, peer, auth, cancel)
    }

    /// Serves one connection over WebSocket; see [`BusLimits::bound_websocket`] for the upgrade before it.
    pub fn serve_websocket(
        self: &Arc<Self>,
        ws: WebSocket,
        peer: String,
        auth: Arc<dyn Authenticator>,
        cancel: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        server::serve(self.clone(), Frames(ws), false, peer, auth, cancel)
    }

    /// A connection in this process, which nothing is serialised for. `None` allows everything: for the server's own parts. Replies to its own
    /// requests need no permission.
    pub fn connect(self: &Arc<Self>, name: &str, permissions: Option<Permissions>) -> Arc<dyn Conn> {
        Arc::new(LocalConn::new(self, name, Rights::of(permissions.as_ref())))
    }

    pub fn limits(&self) -> &BusLimits {
        &self.limits
    }

    pub fn stats(&self) -> BusStats {
        let BusTraffic { in_messages, in_bytes, out_messages, out_bytes } = self.stats.traffic.view();
        BusStats {
            connections: self.sessions().len() as u64,
            subscriptions: self.subscriptions.load(Ordering::Relaxed) as u64,
            in_messages,
            in_bytes,
            out_messages,
            out_bytes,
            slow_consumers: self.stats.slow_consumers.load(Ordering::Relaxed),
        }
    }

    /// All connections over a wire, oldest first.
    pub fn connections(&self) -> Vec<ConnectionView> {
        let mut all: Vec<_> = self.all().iter().map(|session| view(session)).collect();
        all.sort_unstable_by_key(|view| view.id);
        all
    }

    /// Takes the grant of this key from every connection that holds it, with the subscriptions that only it allowed, and closes those that hold no
    /// other. Returns how many held it. When this returns nothing more is delivered or taken in its name.
    pub fn close_grant(&self, key: &str) -> usize {
        let mut count = 0;
        for session in self.all() {
            let (mut held, mut none_left) = (false, false);
            let ended = session.change_grants(|grants| {
                held = grants.remove(key);
                none_left = held && grants.is_empty();
            });
            self.end_all(&session, &ended);
            if none_left {
                session.out.close(b"-ERR 'User Authentication Revoked'\r\n");
            }
            count += usize::from(held);
        }
        count
    }

    /// Goes away gracefully: takes no new connections, tells every client (INFO with `ldm`), lets what waits be written, closes, all within `timeout`;
    /// what is left then is cut off.
    pub async fn drain(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        self.draining.store(true, Ordering::Release);
        let mut wakers = Wakers::default();
        for session in self.all() {
            session.out.push_line(&server::info(self, &session, "", true, true).line(), &mut wakers);
        }
        wakers.wake();
        let quiet = || self.all().iter().all(|session| session.out.pending().0 == 0);
        wait_for(quiet, Instant::now() + timeout / 2).await;
        self.all().iter().for_each(|session| session.out.close(b""));
        wait_for(|| self.all().is_empty(), end).await;
        self.all().iter().for_each(|session| session.out.kill());
    }

    /// Takes a new connection in. The error is what it is told.
    pub(crate) fn attach(&self, peer: String) -> Result<Arc<Session>, &'static str> {
        let mut sessions = self.sessions();
        if self.draining.load(Ordering::Acquire) {
            return Err("Server Shutdown");
        }
        if sessions.len() >= self.limits.connections {
            return Err("maximum connections exceeded");
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let out = Outbound::new(self.limits.pending_bytes, self.limits.pending_messages, &self.budget);
        let session = Arc::new(Session::new(id, peer, out));
        sessions.insert(id, session.clone());
        Ok(session)
    }

    /// Forgets a connection and all that it had.
    pub(crate) fn detach(&self, session: &Session) {
        self.sessions().remove(&session.id);
        self.end_subscriptions(session);
        session.out.kill();
        if let Some(account) = session.account.get() {
            account.left(&session.traffic());
        }
    }

    pub(crate) fn end_subscriptions(&self, session: &Session) {
        let subs: Vec<_> = std::mem::take(&mut session.held().subs).into_values().collect();
        for sub in &subs {
            self.remove(sub);
        }
    }

    /// Ends subscriptions that a connection may no longer have, and tells it.
    pub(crate) fn end_all(&self, session: &Session, subs: &[Arc<Sub>]) {
        let mut wakers = Wakers::default();
        for sub in subs {
            self.remove(sub);
            session.out.push_line(&server::error_line(&operations::subscribe_violation(&sub.subject, sub.queue.as_deref())), &mut wakers);
        }
    }

    /// Makes a subscription known. When this returns, whatever is published later reaches it. `false` if there are too many.
    pub(crate) fn insert(&self, sub: &Arc<Sub>) -> bool {
        let mut trie = self.trie.write().unwrap_or_else(PoisonError::into_inner);
        // its grant may have been taken away between the check and now
        if sub.ended.load(Ordering::Acquire) {
            return true;
        }
        // what is counted is what is in the trie, and changes with it under its lock: whoever removes may be faster than who inserts
        if self.subscriptions.load(Ordering::Relaxed) >= self.limits.subscriptions {
            sub.ended.store(true, Ordering::Release);
            return false;
        }
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        trie.leaf(&sub.subject).add(sub);
        self.generation.fetch_add(1, Ordering::Release);
        if let Some(bridge) = self.bridge.get() {
            bridge.begin(sub);
        }
        true
    }

    /// Ends a subscription. Doing it twice does nothing.
    pub(crate) fn remove(&self, sub: &Arc<Sub>) {
        if sub.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        {
            let mut trie = self.trie.write().unwrap_or_else(PoisonError::into_inner);
            let mut removed = false;
            trie.change(&sub.subject, |leaf| removed = leaf.remove(sub));
            if removed {
                self.subscriptions.fetch_sub(1, Ordering::Relaxed);
                self.generation.fetch_add(1, Ordering::Release);
                if let Some(bridge) = self.bridge.get() {
                    bridge.end(sub);
                }
            }
        }
        match &sub.sink {
            Sink::Wire { session, sid } => {
                let mut held = session.held();
                if held.subs.get(sid).is_some_and(|there| Arc::ptr_eq(there, sub)) {
                    held.subs.remove(sid);
                }
            }
            Sink::Local(inlet) => inlet.close(),
            Sink::Replies(_) => {}
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Who gets messages to this subject, by the trie; publishers remember it for one [`generation`](Self::generation), read before.
    pub(crate) fn find(&self, subject: &str) -> Matched {
        let mut matched = Matched::find(&self.trie.read().unwrap_or_else(PoisonError::into_inner), subject);
        if let Some(bridge) = self.bridge.get() {
            matched.cluster = bridge.wanted(subject, &matched);
        }
        matched
    }

    /// Says that what publishers remember doesn't hold any more: the cluster's interest has changed.
    pub(crate) fn touch(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn bridge(&self) -> Option<&Arc<Bridge>> {
        self.bridge.get()
    }

    /// Takes a bridge and tells it of all there is; under the lock, so that it learns each subscription once. `false` if there is one already.
    pub(crate) fn set_bridge(&self, bridge: &Arc<Bridge>) -> bool {
        let trie = self.trie.write().unwrap_or_else(PoisonError::into_inner);
        if self.bridge.set(bridge.clone()).is_err() {
            return false;
        }
        trie.each(&mut |leaf: &Subs| leaf.each(&mut |sub| bridge.begin(sub)));
        true
    }

    /// Hands a message to all who are to get it, except the connection `except`.
    pub(crate) fn publish(&self, to: &Matched, publication: &Publication<'_>, hand: &mut Hand, except: Option<u64>) -> usize {
        if to.receivers() > 1 && publication.payload.len() >= SHARE_FROM {
            publication.share();
        }
        let mut count = 0;
        for sub in &to.plain {
            count += usize::from(self.deliver(sub, publication, hand, except));
        }
        let mut untaken = Vec::new(); // costs nothing until something is put into it
        for (at, group) in to.groups.iter().enumerate() {
            if self.deliver_to_one(group, publication, hand, except) {
                count += 1;
            } else if to.cluster.is_some() {
                untaken.push(at);
            }
        }
        if let Some(cluster) = &to.cluster {
            match cluster.send(publication, &untaken, &mut hand.wakers) {
                Sent::No => {}
                Sent::Yes => count += 1,
                Sent::Crowded(link) => {
                    count += 1;
                    hand.crowd.get_or_insert(Crowd::Cluster(link));
                }
            }
        }
        count
    }

    /// Hands on a message that came from the cluster, which has chosen the queue groups that are to get it. It doesn't go back there.
    pub(crate) fn publish_from_cluster(&self, to: &Matched, queues: &[&str], publication: &Publication<'_>, hand: &mut Hand) -> usize {
        if to.receivers() > 1 && publication.payload.len() >= SHARE_FROM {
            publication.share();
        }
        let plain = to.plain.iter().filter(|sub| self.deliver(sub, publication, hand, None)).count();
        let chosen = |group: &&Vec<Arc<Sub>>| group.first().and_then(|sub| sub.queue.as_deref()).is_some_and(|name| queues.contains(&name));
        plain + to.groups.iter().filter(chosen).filter(|group| self.deliver_to_one(group, publication, hand, None)).count()
    }

    /// Whether a member of the group took it.
    fn deliver_to_one(&self, group: &[Arc<Sub>], publication: &Publication<'_>, hand: &mut Hand, except: Option<u64>) -> bool {
        let start = hand.dice.below(group.len());
        group[start..].iter().chain(&group[..start]).any(|sub| self.deliver(sub, publication, hand, except))
    }

    /// Answers a connection at one of its own subscriptions only, as the bus itself: a reply subject is the asker's choice, and must not make the
    /// bus speak to others.
    pub(crate) fn answer(&self, session: &Arc<Session>, publication: &Publication<'_>, hand: &mut Hand) {
        let found = self.find(publication.subject);
        let mine = |sub: &&Arc<Sub>| sub.session().is_some_and(|owner| Arc::ptr_eq(owner, session));
        // as nats-server: not through a queue group
        if let Some(sub) = found.plain.iter().find(mine) {
            self.deliver(sub, publication, hand, None);
        }
    }

    pub(crate) fn deliver(&self, sub: &Arc<Sub>, publication: &Publication<'_>, hand: &mut Hand, except: Option<u64>) -> bool {
        if except.is_some() && sub.session().map(|session| session.id) == except {
            return false;
        }
        match sub.deliver(publication, &mut hand.wakers) {
            Delivery::Done => true,
            Delivery::Crowded => {
                hand.crowd.get_or_insert_with(|| Crowd::Sub(sub.clone()));
                true
            }
            Delivery::Last => {
                self.remove(sub);
                true
            }
            Delivery::Gone => false,
            Delivery::Spent => {
                self.remove(sub);
                false
            }
            Delivery::Slow => {
                self.slow(sub);
                false
            }
        }
    }

    /// Drops who can't keep up: the connection if it is on a wire, else the subscription.
    fn slow(&self, sub: &Arc<Sub>) {
        self.count_slow();
        match sub.session() {
            Some(session) => session.cut(),
            None => {
                tracing::warn!(subject = %sub.subject, "a subscription in this process doesn't keep up and ends");
                self.remove(sub);
            }
        }
    }

    /// Whether nothing at all is left in the trie.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_empty(&self) -> bool {
        self.trie.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(crate) fn count_slow(&self) {
        self.stats.slow_consumers.fetch_add(1, Ordering::Relaxed);
    }

    /// What a publisher needs at hand, with dice of its own.
    pub(crate) fn hand(&self) -> Hand {
        let mut seed = [0u8; 8];
        self.clock.random(&mut seed);
        Hand { dice: Dice::new(u64::from_le_bytes(seed)), wakers: Wakers::default(), crowd: None }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.sessions().values().cloned().collect()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Payloads from this size on are copied once for all receivers instead of once for each.
const SHARE_FROM: usize = 2 << 10;

/// What a publisher has at hand while it publishes.
pub(crate) struct Hand {
    pub dice: Dice,
    pub wakers: Wakers,
    /// A receiver that is half full.
    pub crowd: Option<Crowd>,
}

/// Who is half full.
pub(crate) enum Crowd {
    Sub(Arc<Sub>),
    /// The connection to the cluster.
    Cluster(Arc<Link>),
}

/// Waits until a crowded receiver has room, for `most` at the longest: it slows a fast publisher down, and no receiver can stop one.
pub(crate) async fn stall(crowd: Crowd, most: Duration) {
    let out = match &crowd {
        Crowd::Sub(sub) => sub.session().map(|session| &session.out),
        Crowd::Cluster(link) => Some(&link.out),
    };
    match out {
        Some(out) => drop(tokio::time::timeout(most, out.room()).await),
        None => tokio::time::sleep(most.min(Duration::from_millis(1))).await,
    }
}

fn view(session: &Session) -> ConnectionView {
    let (pending_bytes, pending_messages) = session.out.pending();
    let held = session.held();
    ConnectionView {
        id: session.id,
        name: session.name.get().cloned().unwrap_or_default(),
        peer: session.peer.clone(),
        grants: held.grants.keys(),
        subscriptions: held.subs.len(),
        pending_bytes,
        pending_messages,
    }
}

async fn wait_for(done: impl Fn() -> bool, end: Instant) {
    while !done() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
