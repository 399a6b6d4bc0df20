//! A connection's task on the server's side: reads operations in batches, answers, and sees to time.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use atoll_contract::{Timestamp, bus::BusTraffic};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Authenticator, BoxFuture,
    budget::{Budget, Share},
    lookup::Cache,
    outbound::Outbound,
    pump::{Event, Pump, Transport},
    rights::Rights,
    router::{Hand, Router, stall},
    run::Run,
    session::Session,
    stats::Tally,
    wire::{ClientOp, ClientParser, Info, Malformed, Step},
};

/// Serves one connection until it ends. `tls`: the transport becomes encrypted, which INFO says.
pub(crate) async fn serve<T: Transport>(
    router: Arc<Router>,
    transport: T,
    tls: bool,
    peer: String,
    auth: Arc<dyn Authenticator>,
    cancel: CancellationToken,
) {
    let mut pump = Pump::new(transport);
    match router.attach(peer) {
        Ok(session) => {
            // undone however this future ends, also if it is dropped
            let attached = Attached { router: router.clone(), session };
            attached.session.tls.store(tls, Ordering::Relaxed);
            let mut connection = Connection::new(router.clone(), attached.session.clone(), auth);
            connection.run(&mut pump, &cancel).await;
            drop(attached);
        }
        Err(words) => {
            let out = Outbound::new(1024, 1, &Budget::unlimited());
            out.close(&error_line(words));
            let told = async { while !matches!(pump.next(&out, false).await, Event::Finished | Event::Failed(_)) {} };
            let _ = tokio::time::timeout(router.limits.close_timeout, told).await; // one that doesn't listen isn't told
        }
    }
    pump.finish(router.limits.close_timeout).await;
}

struct Attached {
    router: Arc<Router>,
    session: Arc<Session>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.router.detach(&self.session);
    }
}

/// Why a connection is closed by this side: the text of its -ERR.
#[derive(Debug)]
pub(super) struct Goodbye(pub &'static str);

impl From<Malformed> for Goodbye {
    fn from(error: Malformed) -> Self {
        Self(error.words())
    }
}

/// What comes after the operations that were processed in the buffer.
enum Next {
    /// An operation of so many bytes that is taken out of the buffer.
    Apart(usize),
    /// More than is there: so many bytes in all.
    Need(usize),
}

pub(super) struct Connection {
    pub(super) router: Arc<Router>,
    pub(super) session: Arc<Session>,
    pub(super) auth: Arc<dyn Authenticator>,
    pub(super) parser: ClientParser,
    pub(super) nonce: String,
    /// Set by CONNECT.
    pub(super) connected: bool,
    pub(super) verbose: bool,
    pub(super) tell_no_responders: bool,
    pub(super) rights: Arc<Rights>,
    pub(super) rights_version: u64,
    pub(super) cache: Cache,
    pub(super) hand: Hand,
    pub(super) next_expiry: Option<Timestamp>,
    pub(super) tally: Tally,
    /// What its half-read message has of the router's memory.
    share: Share,
    /// Since when a message can't be read because the router's memory is used up.
    starved_since: Option<Instant>,
    pub(super) began: Instant,
    pub(super) heard: Instant,
    pub(super) pings: u32,
    /// Set when the timer may have to fire earlier than it was set for.
    pub(super) retime: bool,
    /// Set while the connection is being closed.
    pub(super) close_by: Option<Instant>,
}

impl Connection {
    pub(super) fn new(router: Arc<Router>, session: Arc<Session>, auth: Arc<dyn Authenticator>) -> Self {
        let mut nonce = [0u8; 16];
        router.clock.random(&mut nonce);
        let now = Instant::now();
        let mut parser = ClientParser::new(router.limits.max_control_line, router.limits.max_payload);
        parser.only_connect(auth.required());
        Self {
            parser,
            nonce: URL_SAFE_NO_PAD.encode(nonce),
            connected: false,
            verbose: false,
            tell_no_responders: false,
            rights: Arc::default(),
            rights_version: 0,
            cache: Cache::default(),
            hand: router.hand(),
            next_expiry: None,
            tally: Tally::default(),
            share: Share::new(&router.budget),
            starved_since: None,
            began: now,
            heard: now,
            pings: 0,
            retime: false,
            close_by: None,
            router,
            session,
            auth,
        }
    }

    async fn run<T: Transport>(&mut self, pump: &mut Pump<T>, cancel: &CancellationToken) {
        let session = self.session.clone();
        self.say(&info(&self.router, &session, &self.nonce, self.auth.required(), false).line());
        let (mut cancelled, mut is_cancelled) = (pin!(cancel.cancelled()), false);
        let mut timer = pin!(tokio::time::sleep(self.next_tick()));
        let mut held_up: Option<BoxFuture<'static, ()>> = None;
        loop {
            let closing = self.close_by.is_some();
            let reading = !closing && held_up.is_none();
            let event = tokio::select! {
                biased;
                () = &mut cancelled, if !is_cancelled => {
                    is_cancelled = true;
                    session.out.close(b"");
                    continue;
                }
                () = &mut timer => {
                    if self.tick(pump) {
                        return;
                    }
                    timer.as_mut().reset(Instant::now() + self.next_tick());
                    continue;
                }
                () = async { if let Some(held_up) = &mut held_up { held_up.await } }, if held_up.is_some() => {
                    held_up = None;
                    if self.starved_since.is_none() {
                        continue;
                    }
                    Event::Data // as if more had come: there may be room now
                }
                event = pump.next(&session.out, reading) => event,
            };
            match event {
                Event::Data => {
                    let done = self.batch(pump);
                    self.hand.wakers.wake();
                    if let Err(Goodbye(words)) = done {
                        tracing::debug!(connection = session.id, peer = %session.peer, words, "the bus closes a connection");
                        session.out.close(&error_line(words));
                    }
                    held_up = self.pause();
                }
                Event::Closing => {
                    self.router.end_subscriptions(&session);
                    self.close_by = Some(Instant::now() + self.router.limits.close_timeout);
                    timer.as_mut().reset(Instant::now() + self.next_tick());
                }
                Event::End => session.out.close(b""), // it may still read the answers to what it sent before
                Event::Finished | Event::Dead => return,
                Event::Failed(error) => {
                    tracing::debug!(connection = session.id, peer = %session.peer, %error, "a connection to the bus failed");
                    return;
                }
            }
        }
    }

    /// What this connection waits for before more is read from it: a receiver that is half full, or memory.
    fn pause(&mut self) -> Option<BoxFuture<'static, ()>> {
        let most = self.router.limits.stall;
        match self.hand.crowd.take() {
            Some(crowd) => Some(Box::pin(stall(crowd, most))),
            None => self.starved_since.map(|_| Box::pin(tokio::time::sleep(most.max(SHORTEST_PAUSE))) as BoxFuture<'static, ()>),
        }
    }

    /// Processes all whole operations in the buffer.
    fn batch<T>(&mut self, pump: &mut Pump<T>) -> Result<(), Goodbye>
    where
        T: Transport,
    {
        (self.heard, self.pings) = (Instant::now(), 0);
        self.see_to_rights()?;
        let mut need = 0;
        let done = self.operations(&mut pump.buffer, &mut need);
        let batch = self.tally.take();
        if batch != BusTraffic::default() {
            self.router.stats.traffic.add(&batch);
            self.session.published.add(&BusTraffic { out_messages: 0, out_bytes: 0, ..batch });
            if let Some(account) = self.session.account.get() {
                account.published(&batch);
            }
        }
        done?;
        self.make_room(pump, need)
    }

    /// Makes room for what must be in the buffer before the next look at it, if the router's memory has it; else [`starved_since`](Self::starved_since)
    /// is set, and nothing more is read.
    fn make_room<T: Transport>(&mut self, pump: &mut Pump<T>, need: usize) -> Result<(), Goodbye> {
        self.share.shrink(need);
        if self.share.grow(need) {
            self.starved_since = None;
            pump.expect(need);
            return Ok(());
        }
        let since = *self.starved_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.router.limits.write_timeout { Ok(()) } else { Err(Goodbye("maximum memory exceeded")) }
    }

    fn operations(&mut self, buffer: &mut BytesMut, need: &mut usize) -> Result<(), Goodbye> {
        loop {
            let (consumed, next) = self.small_operations(buffer)?;
            buffer.advance(consumed);
            match next {
                Next::Apart(length) => {
                    // taken out of the buffer whole, so that its payload needs no copy
                    let frame = buffer.split_to(length).freeze();
                    if let Step::Op { op, .. } = self.parser.step(&frame)? {
                        self.operation(op, Some(&frame))?;
                    }
                }
                Next::Need(bytes) => {
                    *need = bytes;
                    return Ok(());
                }
            }
        }
    }

    /// Processes operations as long as they can be looked at where they are. How many bytes that were, and what comes then.
    fn small_operations(&mut self, buffer: &[u8]) -> Result<(usize, Next), Goodbye> {
        let (mut at, mut run) = (0, Run::default());
        loop {
            let step = self.parser.step(&buffer[at..]);
            if let Ok(Step::Op { op: ClientOp::Publish(publish), consumed }) = &step
                && *consumed < APART
                && self.join_run(&mut run, publish)
            {
                at += consumed;
                continue;
            }
            self.hand_over(&mut run);
            match step? {
                Step::Op { consumed, .. } if consumed >= APART => return Ok((at, Next::Apart(consumed))),
                Step::Op { op, consumed } => {
                    self.operation(op, None)?;
                    at += consumed;
                }
                Step::Need(bytes) => return Ok((at, Next::Need(bytes))),
            }
        }
    }

    /// Sees to what time brings. Whether the connection is over.
    fn tick<T: Transport>(&mut self, pump: &mut Pump<T>) -> bool {
        let (now, limits) = (Instant::now(), self.router.limits.clone());
        if let Some(end) = self.close_by {
            return now >= end;
        }
        let silent = now.duration_since(self.heard);
        if !self.connected {
            if now.duration_since(self.began) >= limits.connect_timeout {
                self.session.out.close(&error_line("Authentication Timeout"));
            }
            return false;
        }
        if let Err(Goodbye(words)) = self.see_to_rights() {
            self.session.out.close(&error_line(words));
            return false;
        }
        if pump.blocked_since.is_some_and(|since| now.duration_since(since) >= limits.write_timeout) {
            self.router.count_slow();
            self.session.cut();
            return false;
        }
        if silent >= limits.ping_interval * (self.pings + 1) {
            pump.relax();
            if self.pings >= limits.pings_outstanding {
                self.session.out.close(&error_line("Stale Connection"));
            } else {
                self.pings += 1;
                self.say(b"PING\r\n");
                self.hand.wakers.wake();
            }
        }
        false
    }

    /// How long until [`tick`](Self::tick) has something to see to, at the latest. Never nothing at all: the timer is looked at before the
    /// transport, which must get its turn.
    fn next_tick(&self) -> Duration {
        let limits = &self.router.limits;
        let next = if let Some(end) = self.close_by {
            end.saturating_duration_since(Instant::now())
        } else if !self.connected {
            limits.connect_timeout.saturating_sub(self.began.elapsed())
        } else {
            let ping = (limits.ping_interval * (self.pings + 1)).saturating_sub(self.heard.elapsed()).min(limits.write_timeout);
            match self.next_expiry {
                Some(end) => ping.min(limits.grant_check).min(end.since(self.router.clock.now())),
                None => ping,
            }
        };
        next.max(Duration::from_millis(1))
    }

    /// A line of the connection's own. One that doesn't even read these is a slow consumer.
    pub(super) fn say(&mut self, line: &[u8]) {
        if !self.session.out.push_line(line, &mut self.hand.wakers) {
            self.router.count_slow();
            self.session.cut();
        }
    }
}

/// Operations from this size on are taken out of the read buffer; what is smaller is copied, since holding a piece of a buffer holds all of it.
const APART: usize = 32 << 10;
/// Between two looks at whether there is memory again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// The level of NATS that clients may expect; they compare numbers, and those of 2.10 know all that this bus does.
const NATS_LEVEL: &str = "2.10.0";

pub(crate) fn info(router: &Router, session: &Session, nonce: &str, auth_required: bool, lame_duck: bool) -> Info {
    Info {
        server_id: router.server_id.clone(),
        server_name: "atoll".into(),
        version: NATS_LEVEL.into(),
        proto: 1,
        host: "atoll".into(),
        port: 0,
        headers: true,
        auth_required,
        tls_required: session.tls.load(Ordering::Relaxed),
        max_payload: router.limits.max_payload,
        client_id: session.id,
        nonce: nonce.into(),
        lame_duck,
    }
}

pub(crate) fn error_line(words: &str) -> Bytes {
    let mut line = BytesMut::with_capacity(words.len() + 9);
    line.extend_from_slice(b"-ERR '");
    line.extend_from_slice(words.as_bytes());
    line.extend_from_slice(b"'\r\n");
    line.freeze()
}
