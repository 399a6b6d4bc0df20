//! A router with small bounds, clients in pipes, and what must hold at every moment.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    subject::{Mapping, Permissions},
};
use futures_util::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    heard::Heard,
    script::{Act, Framing},
    websocket::{self, Wire},
};
use crate::{
    bus::{Authenticator, BusLimits, Conn, Credentials, Grant, Message, Router, Subscription},
    clock::TestClock,
};

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    Pipe,
    WebSocket,
}

pub(crate) struct World {
    pub router: Arc<Router>,
    clock: Arc<TestClock>,
    auth: Arc<Auth>,
    cancel: CancellationToken,
    /// Where new WebSockets go.
    door: Option<websocket::Door>,
    clients: [Option<Client>; 4],
    current: usize,
    framing: Framing,
    inside: Arc<dyn Conn>,
    listeners: [Option<Subscription>; 3],
    pub polls: Polls,
}

/// Bytes of a pipe: small, so that either side has to wait now and then.
const PIPE: usize = 512;
/// Looks at all tasks that one input may cost; a task that wakes itself for nothing needs more.
const MOST_POLLS: u64 = 400_000;
/// Times that the clients' ends are seen to before the bus is asked to be quiet.
const MOST_ROUNDS: usize = 100_000;
/// How often a client looks at what comes while it waits: well within what a connection that ends is given.
const LOOKS: Duration = Duration::from_millis(500);
/// A line that a queue takes beyond its bounds: the last words.
const LAST_WORDS: usize = 128;

pub(crate) fn limits() -> BusLimits {
    BusLimits {
        max_payload: 256,
        max_control_line: 256,
        pending_bytes: 2048,
        pending_messages: 24,
        subscriptions_per_connection: 6,
        subscriptions: 10,
        connections: 3,
        subject_tokens: 6,
        grants_per_connection: 2,
        ..BusLimits::default()
    }
}

impl World {
    pub(crate) fn new(road: Road, credentials: bool) -> Self {
        let clock = TestClock::at(Timestamp::from_millis(START));
        let router = Router::new(limits(), clock.clone());
        let (auth, cancel, polls) = (Arc::new(Auth { required: credentials }), CancellationToken::new(), Polls::default());
        let door = (road == Road::WebSocket).then(|| websocket::Door::open(&router, auth.clone(), cancel.clone(), polls.clone()));
        Self {
            inside: router.connect("inside", None),
            router,
            clock,
            auth,
            cancel,
            door,
            clients: [const { None }; 4],
            current: 0,
            framing: Framing::Frame { first: 0x82, masked: true },
            listeners: [const { None }; 3],
            polls,
        }
    }

    pub(crate) async fn act(&mut self, act: Act<'_>) {
        match act {
            Act::Send(bytes) => {
                let framing = self.framing;
                let client = self.client();
                if !client.shut {
                    client.wire.frame(bytes, framing, &mut client.unsent);
                }
                return;
            }
            Act::Frame(framing) => {
                self.framing = framing;
                return;
            }
            Act::Switch(to) => self.current = to,
            Act::Turn => {}
            Act::Wait(time) => self.wait(time).await,
            Act::Drop => self.clients[self.current] = None,
            Act::Shut => self.client().shut = true,
            Act::Reading(reading) => {
                let client = self.client();
                client.reading = reading;
                client.lazy |= !reading;
            }
            Act::CloseGrant(which) => {
                self.router.close_grant(KEYS[usize::from(which)]);
            }
            Act::Publish(which) => {
                let subject = ["a.x", "b.x", "secret.x"][usize::from(which)];
                let published = self.inside.publish(Message { reply: Some("b.reply".into()), ..Message::new(subject, "inside") });
                // its receivers may be full; it waits for nobody longer than `stall`
                published.await.expect("the bus's own parts may publish");
            }
            Act::Listen(which) => {
                let slot = &mut self.listeners[usize::from(which)];
                *slot = match slot.take() {
                    Some(_) => None,
                    None => self
                        .inside
                        .subscribe(["a.>", "b.*", ">"][usize::from(which)], [None, Some("q"), None][usize::from(which)])
                        .await
                        .ok(),
                };
            }
            Act::Drain => {
                let router = self.router.clone();
                tokio::spawn(async move { router.drain(Duration::from_secs(1)).await });
                self.wait(Duration::from_secs(2)).await;
            }
        }
        self.turn().await;
    }

    /// All clients are gone: nothing may be left of them.
    pub(crate) async fn end(mut self) {
        self.turn().await;
        for client in self.clients.iter_mut().flatten() {
            (client.shut, client.reading) = (true, true);
        }
        self.turn().await;
        self.clients = [const { None }; 4];
        self.listeners = [const { None }; 3];
        self.door = None;
        drop(self.inside);
        // closing may take what its bounds say
        let limits = self.router.limits().clone();
        tokio::time::sleep(2 * limits.close_timeout + limits.connect_timeout).await;
        let stats = self.router.stats();
        assert_eq!((stats.connections, stats.subscriptions), (0, 0), "nothing is left of clients that are gone");
        assert!(self.router.is_empty(), "no empty leaf stays in the trie");
        self.polls.check();
    }

    fn client(&mut self) -> &mut Client {
        let (door, router, auth, cancel, polls) = (&self.door, &self.router, &self.auth, &self.cancel, &self.polls);
        self.clients[self.current].get_or_insert_with(|| {
            let (ours, theirs) = tokio::io::duplex(PIPE);
            let mut client = Client {
                io: ours,
                unsent: Vec::new(),
                heard: Heard::default(),
                wire: Wire::Bytes,
                reading: true,
                lazy: false,
                shut: false,
                gone: false,
            };
            match door {
                Some(door) => {
                    client.wire = door.enter(theirs, &mut client.unsent);
                }
                None => {
                    let served = router.serve(theirs, "pipe".into(), auth.clone(), cancel.clone());
                    tokio::spawn(polls.counted(served));
                }
            }
            client
        })
    }

    /// Lets time pass, in which the clients read what comes.
    async fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.clock.advance(time);
        while Instant::now() < end {
            tokio::time::sleep_until(end.min(Instant::now() + LOOKS)).await;
            self.turn().await;
        }
    }

    /// Lets everything happen that can without time passing, or nearly.
    async fn turn(&mut self) {
        for _ in 0..MOST_ROUNDS {
            tokio::time::sleep(Duration::from_millis(1)).await; // comes when no task has anything to do
            let mut moved = false;
            for client in self.clients.iter_mut().flatten() {
                moved |= client.see_to().await;
            }
            self.check();
            if !moved {
                return;
            }
            for listener in self.listeners.iter_mut().flatten() {
                while listener.try_next().is_ok() {}
            }
        }
        panic!("the bus never becomes quiet");
    }

    fn check(&self) {
        let limits = self.router.limits();
        for view in self.router.connections() {
            assert!(view.pending_bytes <= limits.pending_bytes + LAST_WORDS, "{view:?}");
            assert!(view.pending_messages <= limits.pending_messages, "{view:?}");
            assert!(view.subscriptions <= limits.subscriptions_per_connection, "{view:?}");
            assert!(view.grants.len() <= limits.grants_per_connection, "{view:?}");
        }
        let stats = self.router.stats();
        assert!(stats.subscriptions <= limits.subscriptions as u64, "{stats:?}");
        assert!(stats.connections <= limits.connections as u64, "{stats:?}");
        self.polls.check();
    }
}

/// One client's end.
struct Client {
    io: DuplexStream,
    unsent: Vec<u8>,
    heard: Heard,
    wire: Wire,
    reading: bool,
    /// It has kept the bus waiting, which need not have patience until the end of what it writes.
    lazy: bool,
    shut: bool,
    /// The bus has closed the connection, or it broke.
    gone: bool,
}

impl Client {
    /// Writes and reads what goes without waiting. Whether anything did.
    async fn see_to(&mut self) -> bool {
        std::future::poll_fn(|context| Poll::Ready(self.write(context) | self.read(context))).await
    }

    fn write(&mut self, context: &mut Context<'_>) -> bool {
        if self.unsent.is_empty() {
            return self.shut && !self.gone && Pin::new(&mut self.io).poll_shutdown(context).is_pending();
        }
        match Pin::new(&mut self.io).poll_write(context, &self.unsent) {
            Poll::Ready(Ok(count)) => {
                self.unsent.drain(..count);
                count > 0
            }
            Poll::Ready(Err(_)) => {
                self.unsent.clear(); // nobody reads it any more
                false
            }
            Poll::Pending => false,
        }
    }

    fn read(&mut self, context: &mut Context<'_>) -> bool {
        if !self.reading || self.gone {
            return false;
        }
        let mut space = [0; PIPE];
        let mut buffer = ReadBuf::new(&mut space);
        match Pin::new(&mut self.io).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                let payload = limits().max_payload;
                self.wire.unframe(buffer.filled(), &mut |bytes| self.heard.hear(bytes, payload));
                true
            }
            Poll::Ready(_) => {
                self.gone = true;
                assert!(self.lazy || self.heard.is_whole(), "a connection ends with a whole operation");
                true
            }
            Poll::Pending => false,
        }
    }
}

/// Counts how often the bus's tasks are looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Polls(Arc<AtomicU64>);

impl Polls {
    pub(crate) fn counted<F: Future<Output = ()> + Send + 'static>(&self, future: F) -> impl Future<Output = ()> + Send + use<F> {
        let (count, mut future) = (self.0.clone(), Box::pin(future));
        std::future::poll_fn(move |context| {
            count.fetch_add(1, Ordering::Relaxed);
            future.poll_unpin(context)
        })
    }

    fn check(&self) {
        assert!(self.0.load(Ordering::Relaxed) < MOST_POLLS, "a task of the bus is busy with nothing");
    }
}

const START: i64 = 1_800_000_000_000;
/// The grants' keys; the last two are projects, since those can be added.
const KEYS: [&str; 3] = ["a", "0198c0de-0000-7000-8000-000000000001", "0198c0de-0000-7000-8000-000000000002"];

/// With credentials the tokens `a`, `b` and `c` allow each something else, and nobody may read `secret.>`.
struct Auth {
    required: bool,
}

impl Authenticator for Auth {
    fn required(&self) -> bool {
        self.required
    }

    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        match &credentials.token {
            Some(token) => self.grant(token).map(|grant| vec![grant]),
            None if self.required => Err(Error::new(ErrorCode::Unauthenticated, "There is no token.")),
            // all but what nobody may read, so that the same holds everywhere
            None => Ok(vec![grant("all", &[">"], &["a.>", "b.>", "c.>", "from.>", "*", "_INBOX.>"], None)]),
        }
    }

    fn grant(&self, token: &str) -> Result<Grant, Error> {
        match token {
            "a" => {
                let mut grant = grant(KEYS[0], &["a.>", "b.x"], &["a.>", "_INBOX.a.>", "*"], None);
                grant.permissions.responses = true;
                grant.permissions.mappings = vec![Mapping { pattern: "call.>".into(), prefix: "from.a".into() }];
                Ok(grant)
            }
            "b" => Ok(grant(KEYS[1], &["b.*", "a.x"], &["b.*", "a.x", "_INBOX.b.>"], Some(START + 10_000))),
            "c" => Ok(grant(KEYS[2], &["c.>"], &["c.>", "from.>"], None)),
            _ => Err(Error::new(ErrorCode::Unauthenticated, "The token isn't valid.")),
        }
    }
}

fn grant(key: &str, publish: &[&str], subscribe: &[&str], expires_at: Option<i64>) -> Grant {
    let all = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    let permissions = Permissions { publish: all(publish), subscribe: all(subscribe), ..Permissions::default() };
    Grant { key: key.into(), permissions, account: None, expires_at: expires_at.map(Timestamp::from_millis) }
}
