//! Our own client: a [`Conn`] over any byte stream. The published client can't speak over a unix socket.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use atoll_contract::{Error, ErrorCode};
use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OnceCell, oneshot, watch},
};

use super::{
    BoxFuture, Conn, Message, Subscription, Unsubscribe,
    budget::Budget,
    client_task::{self, ClientTask},
    inlet::{Inlet, Replies},
    local::{invalid_subject, no_responders, not_503, timed_out, too_large, too_many_requests},
    outbound::{Ending, Outbound, Pushed, Wakers},
    pump::Raw,
    subject,
    wire::{Frame, check_headers, encode_headers},
};
use crate::clock::{SystemClock, random_text};

/// What a client says of itself and how it behaves.
#[derive(Clone)]
pub struct Options {
    /// The name shown to people.
    pub name: String,
    /// `auth_token`.
    pub token: Option<String>,
    /// The seed (`SU…`) of a user nkey, which signs the server's nonce.
    pub nkey_seed: Option<String>,
    /// What this client's reply inboxes begin with, without a dot at the end.
    pub inbox_prefix: String,
    /// From the beginning to the server's answer to CONNECT; also how long the server may take to confirm a subscription.
    pub connect_timeout: Duration,
    /// How often a silent server is asked for a PONG; the second unanswered one ends the connection, and so does a socket that takes nothing for
    /// so long.
    pub ping_interval: Duration,
    /// Bytes that wait to be written before `publish` waits.
    pub pending_bytes: usize,
    /// Messages that wait in one subscription before it ends as too slow.
    pub subscription_messages: usize,
    /// Bytes that wait likewise.
    pub subscription_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: String::new(),
            token: None,
            nkey_seed: None,
            inbox_prefix: "_INBOX".into(),
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(30),
            pending_bytes: 4 << 20,
            subscription_messages: 64 << 10,
            subscription_bytes: 8 << 20,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("name", &self.name).field("inbox_prefix", &self.inbox_prefix).finish_non_exhaustive()
    }
}

/// A connection as a client. Clones share it; it ends when the last is dropped, when [`close`](Self::close) is called, or by itself.
///
/// A subscription whose reader falls behind by more than the options' bounds ends after what is queued; a gap would not be seen.
#[derive(Clone)]
pub struct WireClient {
    shared: Arc<Shared>,
    #[allow(dead_code, reason = "held for its drop: ends the connection with the last clone")]
    life: Arc<Unsubscribe>,
}

/// Messages that wait to be written; bytes are bounded by the options.
const PENDING_MESSAGES: usize = 64 << 10;
/// Room beyond the greatest message in a queue, so that one always fits.
const LINES: usize = 16 << 10;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects over a byte stream: waits for INFO, sends CONNECT, waits for the server's consent.
///
/// # Errors
/// `unauthenticated`, `limit_exceeded`, `timed_out`, `unavailable` with what the server said.
pub async fn connect<IO>(io: IO, options: Options) -> Result<WireClient, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if !subject::is_literal(&options.inbox_prefix, usize::from(u8::MAX)) {
        return Err(invalid_subject(&options.inbox_prefix));
    }
    let timeout = options.connect_timeout;
    let shared = Arc::new(Shared::new(options));
    let mut task = ClientTask::new(Raw(io), shared.clone());
    match tokio::time::timeout(timeout, task.handshake()).await {
        Ok(done) => done?,
        Err(_) => return Err(Error::new(ErrorCode::TimedOut, "The bus didn't answer in time.")),
    }
    tokio::spawn(task.run());
    let ended = Arc::downgrade(&shared);
    let life = Unsubscribe::new(move || {
        if let Some(shared) = ended.upgrade() {
            shared.out.close(b"");
        }
    });
    Ok(WireClient { shared, life: Arc::new(life) })
}

/// What the client's handles and its task share.
pub(crate) struct Shared {
    pub options: Options,
    pub out: Outbound,
    pub max_payload: AtomicUsize,
    pub replies: Arc<Replies>,
    inbox: String,
    inbox_ready: OnceCell<()>,
    next: AtomicU64,
    state: Mutex<State>,
    ended: watch::Sender<Option<Error>>,
}

#[derive(Default)]
struct State {
    subs: HashMap<u64, ClientSub>,
    /// PINGs that were sent, in order, and who waits for their PONGs.
    pings: VecDeque<Pinged>,
}

pub(crate) struct ClientSub {
    pub subject: Box<str>,
    pub sink: ClientSink,
    /// The last message's subject, to share if the next has the same.
    pub last: Option<Arc<str>>,
}

pub(crate) enum ClientSink {
    Inlet(Inlet),
    Replies,
}

/// A PING, and what was sent just before it.
struct Pinged {
    /// The subject of the subscription that it confirms.
    subject: Option<Box<str>>,
    refused: bool,
    done: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Shared {
    fn new(options: Options) -> Self {
        let out =
            Outbound::new(options.pending_bytes.max(client_task::MAX_PAYLOAD_BEFORE_INFO + LINES), PENDING_MESSAGES, &Budget::unlimited());
        Self {
            out,
            max_payload: AtomicUsize::new(client_task::MAX_PAYLOAD_BEFORE_INFO),
            replies: Arc::default(),
            // an inbox must be guessable by nobody, and a client has no clock to be handed
            inbox: format!("{}.{}", options.inbox_prefix, random_text(&SystemClock)),
            inbox_ready: OnceCell::new(),
            next: AtomicU64::new(1),
            state: Mutex::default(),
            ended: watch::channel(None).0,
            options,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn send_line(&self, line: &[u8]) {
        // what is refused here is a queue over its bounds, of a server that doesn't read: the task ends that connection by time
        self.out.push_line(line, &mut Wakers::default());
    }

    /// Sends a PING after `lines`, and lets the receiver know of its PONG. Lines and PING go out in the order in which they are noted.
    pub(crate) fn ping(&self, lines: &str, subject: Option<&str>) -> oneshot::Receiver<Result<(), Error>> {
        let (done, receiver) = oneshot::channel();
        let mut state = self.state();
        // of a connection that ends there is no PONG, and `end` has or will have told those who were noted before
        if self.out.ending() == Ending::Open && self.out.push_line(format!("{lines}PING\r\n").as_bytes(), &mut Wakers::default()) {
            state.pings.push_back(Pinged { subject: subject.map(Into::into), refused: false, done: Some(done) });
        }
        receiver
    }

    pub(crate) fn pong(&self) {
        let Some(pinged) = self.state().pings.pop_front() else { return };
        let answer = match pinged.subject {
            Some(subject) if pinged.refused => {
                Err(Error::new(ErrorCode::Forbidden, format!("This connection may not subscribe to {subject:?}.")))
            }
            _ => Ok(()),
        };
        if let Some(done) = pinged.done {
            let _ = done.send(answer); // nobody may be waiting any more
        }
    }

    /// A subscription was refused, just now or after the fact (its grant has ended).
    pub(crate) fn subscription_refused(&self, subject: &str) {
        let mut state = self.state();
        let pending = state.pings.iter_mut().find(|pinged| !pinged.refused && pinged.subject.as_deref() == Some(subject));
        match pending {
            Some(pinged) => pinged.refused = true,
            None => state.subs.retain(|_, sub| *sub.subject != *subject),
        }
    }

    /// Hands a message to its subscription. Whether the receiver is half full.
    pub(crate) fn deliver(&self, sid: u64, subject: &str, make: impl FnOnce(Arc<str>) -> Message) -> bool {
        let mut state = self.state();
        let Some(sub) = state.subs.get_mut(&sid) else { return false }; // it was dropped a moment ago
        let subject = match &sub.last {
            Some(last) if **last == *subject => last.clone(),
            _ => sub.last.insert(subject.into()).clone(),
        };
        let message = make(subject);
        match &sub.sink {
            ClientSink::Replies => {
                drop(state);
                self.replies.answer(message);
                false
            }
            ClientSink::Inlet(inlet) => match inlet.push(message) {
                Pushed::Crowded => true,
                Pushed::Full => {
                    tracing::warn!(subject = %sub.subject, "a subscription doesn't keep up and ends");
                    state.subs.remove(&sid);
                    drop(state);
                    self.send_line(format!("UNSUB {sid}\r\n").as_bytes());
                    false
                }
                Pushed::Done | Pushed::Closed => false, // if closed, its guard unsubscribes
            },
        }
    }

    /// The connection is over: everyone who waits is told why. Only the first reason counts.
    pub(crate) fn end(&self, error: &Error) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| error.clone());
            first
        });
        self.out.kill();
        *self.state() = State::default();
        self.replies.fail(None, error);
    }

    fn end_reason(&self) -> Error {
        self.ended.borrow().clone().unwrap_or_else(|| Error::new(ErrorCode::Unavailable, "The connection to the bus is being closed."))
    }

    async fn publish(&self, message: &Message) -> Result<(), Error> {
        let literal = |text: &str| if subject::is_literal(text, usize::from(u8::MAX)) { Ok(()) } else { Err(invalid_subject(text)) };
        literal(&message.subject)?;
        message.reply.as_deref().map_or(Ok(()), literal)?;
        check_headers(&message.headers)?;
        let headers = encode_headers(&message.headers);
        let (size, most) = (headers.len() + message.payload.len(), self.max_payload.load(Ordering::Relaxed));
        if size > most {
            return Err(too_large(size, most));
        }
        let frame = Frame {
            plain: b"PUB ",
            headed: b"HPUB ",
            subject: message.subject.as_bytes(),
            sid: b"",
            reply: message.reply.as_deref(),
            headers: &headers,
            payload: &message.payload,
            shared: Some(&message.payload),
        };
        loop {
            match self.out.push(&frame, &mut Wakers::default()) {
                Pushed::Done | Pushed::Crowded => return Ok(()),
                Pushed::Full => self.out.room().await,
                Pushed::Closed => return Err(self.end_reason()),
            }
        }
    }

    /// Subscribes and waits for the server to have done it.
    async fn subscribe(&self, pattern: &str, queue: Option<&str>, sink: ClientSink) -> Result<u64, Error> {
        if !subject::is_pattern(pattern, usize::from(u8::MAX)) || queue.is_some_and(|queue| !subject::is_queue(queue)) {
            return Err(invalid_subject(pattern));
        }
        let sid = self.next.fetch_add(1, Ordering::Relaxed);
        self.state().subs.insert(sid, ClientSub { subject: pattern.into(), sink, last: None });
        let line = match queue {
            Some(queue) => format!("SUB {pattern} {queue} {sid}\r\n"),
            None => format!("SUB {pattern} {sid}\r\n"),
        };
        // undone also if the caller gives up
        let mut unsure = Unsure(self, Some(sid));
        match tokio::time::timeout(self.options.connect_timeout, self.ping(&line, Some(pattern))).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_)) => return Err(self.end_reason()),
            Err(_) => {
                return Err(Error::new(ErrorCode::TimedOut, format!("The bus didn't confirm the subscription to {pattern:?} in time.")));
            }
        }
        unsure.1 = None;
        Ok(sid)
    }

    fn unsubscribe(&self, sid: u64) {
        if self.state().subs.remove(&sid).is_some() {
            self.send_line(format!("UNSUB {sid}\r\n").as_bytes());
        }
    }

    async fn request(&self, mut message: Message, timeout: Duration) -> Result<Message, Error> {
        let subject = message.subject.clone();
        let inbox = || async { self.subscribe(&format!("{}.*", self.inbox), None, ClientSink::Replies).await.map(|_| ()) };
        let asked = async {
            self.inbox_ready.get_or_try_init(inbox).await?;
            let token = self.next.fetch_add(1, Ordering::Relaxed).to_string();
            let Some(answer) = self.replies.expect(&token, &subject) else { return Err(too_many_requests()) };
            let _forget = Unsubscribe::new({
                let (replies, token) = (self.replies.clone(), token.clone());
                move || replies.forget(&token)
            });
            message.reply = Some(format!("{}.{token}", self.inbox).into());
            self.publish(&message).await?;
            match answer.await {
                Ok(answer) => not_503(answer?, &subject),
                Err(_) => Err(self.end_reason()),
            }
        };
        // a request must not begin to wait after the connection has ended: nobody would wake it
        let mut ended = self.ended.subscribe();
        tokio::select! {
            answer = tokio::time::timeout(timeout, asked) => answer.unwrap_or_else(|_| Err(timed_out(&subject))),
            ended = ended.wait_for(Option::is_some) => Err(ended.ok().and_then(|error| error.clone()).unwrap_or_else(|| no_responders(&subject))),
        }
    }
}

/// A subscription that the server hasn't confirmed.
struct Unsure<'a>(&'a Shared, Option<u64>);

impl Drop for Unsure<'_> {
    fn drop(&mut self) {
        if let Some(sid) = self.1 {
            self.0.unsubscribe(sid);
        }
    }
}

impl WireClient {
    /// Returns when the connection has ended, with the reason.
    pub async fn closed(&self) -> Error {
        let mut ended = self.shared.ended.subscribe();
        let error = ended.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        error.unwrap_or_else(|| self.shared.end_reason())
    }

    /// Ends the connection after what waits has been written, within two seconds.
    pub async fn close(&self) {
        self.shared.out.close(b"");
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.closed()).await; // a server that doesn't read gets the rest not
        self.shared.end(&Error::new(ErrorCode::Unavailable, "The connection to the bus was closed."));
    }
}

impl Conn for WireClient {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.shared.publish(&message).await })
    }

    fn subscribe<'a>(&'a self, subject: &'a str, queue: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(async move {
            let options = &self.shared.options;
            let (inlet, messages) = Inlet::new(options.subscription_messages, options.subscription_bytes, &Budget::unlimited());
            let sid = self.shared.subscribe(subject, queue, ClientSink::Inlet(inlet)).await?;
            let shared: Weak<Shared> = Arc::downgrade(&self.shared);
            let undo = Unsubscribe::new(move || {
                if let Some(shared) = shared.upgrade() {
                    shared.unsubscribe(sid);
                }
            });
            Ok(Subscription::new(messages, Some(undo)))
        })
    }

    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        Box::pin(self.shared.request(message, timeout))
    }
}

/// The payload of a frame: a part of it where that saves copying much, a copy where it would hold on to much.
pub(crate) fn own(payload: &[u8], frame: Option<&Bytes>) -> Bytes {
    match frame {
        Some(frame) if !payload.is_empty() => frame.slice_ref(payload),
        _ => Bytes::copy_from_slice(payload),
    }
}
