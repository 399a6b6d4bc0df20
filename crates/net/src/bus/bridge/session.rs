//! One connection to the cluster, from the first byte to its end.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    connect::{Io, MAX_LINE, reach},
    credentials::Credentials,
    interest::Told,
    link::{Bridge, Counts, Link},
    options::{BridgeOptions, HubUrl},
    wire::{HubInfo, Key, LeafConnect, LeafMessage, LeafOp, LeafParser, Passed},
};
use crate::bus::{
    BoxFuture, Router,
    lookup::{Cache, Found, Verdict},
    outbound::Outbound,
    pump::{Event, Pump, Raw},
    router::{Hand, stall},
    session::Publication,
    stats::Tally,
    subject::{is_literal, is_pattern, is_queue},
    wire::{Step, well_formed},
};

/// Why a connection is over: sentences' ends for people.
pub(super) enum Ended {
    /// It had been open.
    Lost(String),
    /// It never was.
    Failed(String),
    /// The other side refuses, and will again: trying soon would only make noise.
    Refused(String),
}

/// The level of NATS whose leaf nodes this speaks like; a hub may ask for a least one.
const NATS_LEVEL: &str = "2.10.0";
/// Subjects that find loops: a leaf node tells its own to the hub, and never hears of it unless the hub is reached by two ways.
const LOOP_DETECTION: &str = "$LDS.";
/// Lines of interest that are made at once; further ones wait while so much is queued.
const LINES: usize = 64 << 10;
const LINES_QUEUED: usize = 1 << 20;
/// How often it is looked whether more lines can be made.
const LINES_PAUSE: Duration = Duration::from_millis(5);
const PINGS_OUTSTANDING: u32 = 2;
const FINISH_TIMEOUT: Duration = Duration::from_millis(500);
/// Operations from this size on are taken out of the read buffer instead of copied.
const APART: usize = 32 << 10;
/// What hubs say when trying again soon would be of no use.
const REFUSALS: [&str; 5] =
    ["Loop detected", "Authorization Violation", "Permissions Violation", "minimum version required", "same cluster name"];

/// Connects, and stays connected as long as it goes.
pub(super) async fn run(
    router: &Arc<Router>,
    bridge: &Arc<Bridge>,
    options: &BridgeOptions,
    url: &HubUrl,
    number: u64,
    cancel: &CancellationToken,
) -> Ended {
    let made = async {
        let credentials = Credentials::load(options.credentials_file.as_deref()).await.map_err(|error| Ended::Refused(error.message))?;
        let reached = reach(url, options.ca_file.as_deref()).await.map_err(Ended::Failed)?;
        let connect = hello(router, options, &credentials, &reached.info, reached.encrypted)?;
        let mut session = Session::new(router, bridge, options, number, reached.io, reached.rest, &reached.info);
        session.handshake(&connect).await?;
        Ok((session, reached.info))
    };
    let made = tokio::select! {
        made = tokio::time::timeout(options.connect_timeout, made) => made,
        () = cancel.cancelled() => return Ended::Failed("this side stops".into()),
    };
    let (mut session, info) = match made {
        Ok(Ok(made)) => made,
        Ok(Err(ended)) => return ended,
        Err(_) => return Ended::Failed("the hub didn't answer in time".into()),
    };
    let open = Open { router, bridge, link: session.link.clone() };
    bridge.interest.start(number);
    let ended = session.keep(url, &info, cancel).await;
    drop(open);
    session.pump.finish(FINISH_TIMEOUT).await;
    ended
}

/// Undoes what an open connection is to the router, however it ends.
struct Open<'a> {
    router: &'a Router,
    bridge: &'a Bridge,
    link: Arc<Link>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.bridge.set_link(None);
        self.link.out.kill();
        self.link.forget();
        self.router.touch();
        self.bridge.interest.stop();
        self.bridge.collect(&self.link);
    }
}

fn hello(router: &Router, options: &BridgeOptions, credentials: &Credentials, info: &HubInfo, encrypted: bool) -> Result<Bytes, Ended> {
    let id = &router.server_id;
    let mut connect = LeafConnect {
        version: NATS_LEVEL,
        name: format!("{}-{}", options.name, &id[..id.len().min(8)]),
        server_id: id.clone(),
        headers: true,
        tls_required: encrypted,
        ..LeafConnect::default()
    };
    credentials.sign(&info.nonce, &mut connect).map_err(|error| Ended::Refused(error.message))?;
    Ok(connect.line())
}

struct Session {
    router: Arc<Router>,
    bridge: Arc<Bridge>,
    link: Arc<Link>,
    pump: Pump<Raw<Box<dyn Io>>>,
    parser: LeafParser,
    /// What the cluster subscribes to of what crosses, as it names it.
    interests: HashSet<Box<str>>,
    max_interests: usize,
    ping_interval: Duration,
    write_timeout: Duration,
    cache: Cache,
    hand: Hand,
    tally: Tally,
    heard: Instant,
    pings: u32,
    /// The hub has answered the first PING, and so has told all its interest.
    consent: bool,
    /// The last -ERR.
    last_error: Option<String>,
}

impl Session {
    fn new(
        router: &Arc<Router>,
        bridge: &Arc<Bridge>,
        options: &BridgeOptions,
        number: u64,
        io: Box<dyn Io>,
        rest: BytesMut,
        info: &HubInfo,
    ) -> Self {
        let limits = router.limits();
        // hubs that don't say take what nats-server takes as shipped
        let max_payload = if info.max_payload == 0 { 1 << 20 } else { info.max_payload };
        let least = limits.max_payload + 2 * limits.max_control_line + LINES_QUEUED + 2 * LINES;
        let out = Outbound::new(options.pending_bytes.max(least), options.pending_messages.max(2), &router.budget);
        let mut pump = Pump::new(Raw(io));
        pump.buffer = rest;
        Self {
            link: Arc::new(Link::new(bridge, number, out, max_payload, info.headers)),
            pump,
            parser: LeafParser::new(MAX_LINE, limits.max_payload),
            interests: HashSet::new(),
            max_interests: options.interests,
            ping_interval: options.ping_interval,
            write_timeout: options.write_timeout,
            cache: Cache::default(),
            tally: Tally::default(),
            hand: router.hand(),
            heard: Instant::now(),
            pings: 0,
            consent: false,
            last_error: None,
            router: router.clone(),
            bridge: bridge.clone(),
        }
    }

    /// CONNECT, the subject that finds loops, PING, PONG.
    async fn handshake(&mut self, connect: &[u8]) -> Result<(), Ended> {
        let own = format!("LS+ {LOOP_DETECTION}{}\r\nPING\r\n", self.router.server_id);
        self.link.out.push_line(&[connect, own.as_bytes()].concat(), &mut self.hand.wakers);
        if !self.pump.buffer.is_empty() {
            self.operations()?;
        }
        while !self.consent {
            let event = self.pump.next(&self.link.out, true).await;
            self.event(event)?;
        }
        Ok(())
    }

    async fn keep(&mut self, url: &HubUrl, info: &HubInfo, cancel: &CancellationToken) -> Ended {
        let mut held_up: Option<BoxFuture<'static, ()>> = None;
        let (mut open, mut closing) = (false, false);
        loop {
            let more = self.tell();
            if !more && !open && !self.bridge.interest.is_dirty() {
                open = true;
                self.bridge.set_link(Some(self.link.clone()));
                self.router.touch();
                Counts::add(&self.bridge.counts.connects, 1);
                tracing::info!(%url, server = info.server_name, id = info.server_id, cluster = info.cluster, "joined to the cluster");
            }
            let (bridge, reading) = (self.bridge.clone(), held_up.is_none());
            let tick = self.heard + self.ping_interval * (self.pings + 1);
            let tick = tick.min(Instant::now() + self.write_timeout);
            let event = tokio::select! {
                biased;
                () = cancel.cancelled(), if !closing => {
                    closing = true;
                    self.link.out.close(b"");
                    continue;
                }
                () = tokio::time::sleep_until(tick) => match self.tick() {
                    Ok(()) => continue,
                    Err(ended) => return ended,
                },
                () = async { if let Some(held_up) = &mut held_up { held_up.await } }, if held_up.is_some() => {
                    held_up = None;
                    continue;
                }
                () = tokio::time::sleep(LINES_PAUSE), if more => continue,
                () = bridge.interest.changed(), if !more => continue,
                event = self.pump.next(&self.link.out, reading) => event,
            };
            if let Err(ended) = self.event(event) {
                return match ended {
                    Ended::Failed(why) => Ended::Lost(why),
                    ended => ended,
                };
            }
            let most = self.router.limits().stall;
            held_up = self.hand.crowd.take().map(|crowd| Box::pin(stall(crowd, most)) as BoxFuture<'static, ()>);
        }
    }

    /// Tells the hub of changed interest, as far as there is room. Whether there is more.
    fn tell(&mut self) -> bool {
        while self.bridge.interest.is_dirty() {
            if self.link.out.pending().0 > LINES_QUEUED {
                return true;
            }
            if self.link.tell(LINES, &mut self.hand.wakers) != Told::Some {
                break;
            }
        }
        self.hand.wakers.wake();
        false
    }

    fn event(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Data => {
                (self.heard, self.pings) = (Instant::now(), 0);
                let done = self.operations();
                self.hand.wakers.wake();
                done
            }
            Event::Closing => Ok(()),
            Event::Finished | Event::Dead => Err(self.over("this side closed it")),
            Event::End => Err(self.over("the hub closed it")),
            Event::Failed(error) => Err(self.over(&error.to_string())),
        }
    }

    /// Why it is over, in the hub's own words if it said any.
    fn over(&self, otherwise: &str) -> Ended {
        if self.link.slow.load(Ordering::Relaxed) {
            return self.too_slow();
        }
        match &self.last_error {
            Some(words) if REFUSALS.iter().any(|refusal| words.contains(refusal)) => Ended::Refused(format!("the hub says: {words}")),
            Some(words) => Ended::Failed(format!("the hub says: {words}")),
            None => Ended::Failed(otherwise.to_owned()),
        }
    }

    fn too_slow(&self) -> Ended {
        let (bytes, messages) = self.link.out.pending();
        Counts::add(&self.bridge.counts.slow, 1);
        self.router.count_slow();
        Ended::Lost(format!("the hub doesn't keep up; {messages} messages ({bytes} bytes) for it are lost"))
    }

    fn operations(&mut self) -> Result<(), Ended> {
        // taken out for the loop, since operations borrow from it
        let mut buffer = std::mem::take(&mut self.pump.buffer);
        let (mut at, mut changed) = (0, false);
        let done = loop {
            let (op, consumed) = match self.parser.step(&buffer[at..]) {
                Ok(Step::Op { consumed, op: LeafOp::Message(_) }) if consumed >= APART => {
                    buffer.advance(at);
                    at = 0;
                    let frame = buffer.split_to(consumed).freeze();
                    if let Ok(Step::Op { op: LeafOp::Message(message), .. }) = self.parser.step(&frame) {
                        self.message(&message, Some(&frame));
                    }
                    continue;
                }
                Ok(Step::Op { op, consumed }) => (op, consumed),
                Ok(Step::Need(need)) => break Ok(need),
                Err(error) => break Err(Ended::Failed(format!("the hub sends what isn't the protocol: {error}"))),
            };
            match op {
                LeafOp::Message(message) => {
                    self.message(&message, None);
                }
                LeafOp::Begin(key) => match self.begin(key) {
                    Ok(new) => changed |= new,
                    Err(ended) => break Err(ended),
                },
                LeafOp::End(key) => changed |= self.end(key),
                op => self.other(&op),
            }
            at += consumed;
        };
        buffer.advance(at);
        self.pump.buffer = buffer;
        if changed {
            self.router.touch();
        }
        let batch = self.tally.take();
        self.router.stats.traffic.add(&batch);
        Counts::add(&self.bridge.counts.in_messages, batch.in_messages);
        Counts::add(&self.bridge.counts.in_bytes, batch.in_bytes);
        self.pump.expect(done?);
        Ok(())
    }

    fn other(&mut self, op: &LeafOp<'_>) {
        match op {
            LeafOp::Ping => drop(self.link.out.push_line(b"PONG\r\n", &mut self.hand.wakers)),
            LeafOp::Pong => self.consent = true,
            LeafOp::Info(json) => match serde_json::from_slice::<HubInfo>(json) {
                Ok(info) => self.link.allow(info.import.as_ref(), info.export.as_ref()),
                Err(error) => tracing::debug!(%error, "the hub's INFO can't be read"),
            },
            LeafOp::Err(words) => self.last_error = Some((*words).chars().take(200).collect()),
            LeafOp::Passed(Passed::Beginning) => Counts::add(&self.bridge.counts.refused, 1),
            _ => {}
        }
    }

    /// The cluster's interest begins. Whether that is new.
    fn begin(&mut self, key: Key<'_>) -> Result<bool, Ended> {
        if key.subject.strip_prefix(LOOP_DETECTION).is_some_and(|id| id == self.router.server_id) {
            return Err(Ended::Refused("this bus hears of itself: it is joined to the cluster by two ways".into()));
        }
        if !is_pattern(key.subject, self.router.limits().subject_tokens) || key.queue.is_some_and(|queue| !is_queue(queue)) {
            return Ok(false); // nobody here could publish to it
        }
        let parts = self.bridge.crossing.parts(key.subject);
        if parts.is_empty() || self.interests.contains(&*name(key)) {
            return Ok(false);
        }
        if self.interests.len() >= self.max_interests {
            return Err(Ended::Refused(format!("the cluster has more than {} subscriptions to what crosses", self.max_interests)));
        }
        self.interests.insert(name(key));
        self.link.want(&parts, key);
        Ok(true)
    }

    fn end(&mut self, key: Key<'_>) -> bool {
        let known = self.interests.remove(&*name(key));
        if known {
            self.link.want_no_more(&self.bridge.crossing.parts(key.subject), key);
        }
        known
    }

    /// Hands a message of the cluster to those here who are to get it: all plain subscriptions, and one member of each group that it names.
    fn message(&mut self, message: &LeafMessage<'_>, frame: Option<&Bytes>) {
        let tokens = self.router.limits().subject_tokens;
        let good = self.bridge.crossing.covers(message.subject)
            && is_literal(message.subject, tokens)
            && message.reply.is_none_or(|reply| is_literal(reply, tokens))
            && (message.headers.is_empty() || well_formed(message.headers));
        if !good {
            Counts::add(&self.bridge.counts.refused, 1);
            return;
        }
        self.cache.at(self.router.generation());
        if self.cache.get(message.subject.as_bytes()).is_none() {
            let matched = self.router.find(message.subject);
            let prefix = self.router.stats.prefix(message.subject);
            let (subject, in_runs) = (message.subject.into(), OnceLock::new());
            self.cache.put(Found { subject, mapped: None, prefix, verdict: Verdict::Allowed, matched, in_runs });
        }
        let Some(found) = self.cache.get(message.subject.as_bytes()) else { return };
        let publication = Publication::new(&found.subject, message.reply, message.headers, message.payload);
        if let Some(frame) = frame {
            let _ = publication.shared.set(frame.slice_ref(message.payload)); // it is new and empty
        }
        let count = self.router.publish_from_cluster(&found.matched, &message.queues, &publication, &mut self.hand);
        let size = message.headers.len() + message.payload.len();
        self.tally.count(&found.prefix, 1, size, (count, count * size));
    }

    /// The hub has been silent, or takes nothing.
    fn tick(&mut self) -> Result<(), Ended> {
        if self.pump.blocked_since.is_some_and(|since| since.elapsed() >= self.write_timeout) {
            return Err(self.too_slow());
        }
        if self.heard.elapsed() < self.ping_interval * (self.pings + 1) {
            return Ok(());
        }
        if self.pings >= PINGS_OUTSTANDING {
            return Err(Ended::Lost("the hub doesn't answer any more".into()));
        }
        self.pings += 1;
        self.pump.relax();
        self.link.out.push_line(b"PING\r\n", &mut self.hand.wakers);
        self.hand.wakers.wake();
        Ok(())
    }
}

fn name(key: Key<'_>) -> Box<str> {
    match key.queue {
        Some(queue) => format!("{} {queue}", key.subject).into(),
        None => key.subject.into(),
    }
}
