//! Streams over a bus: takes requests, has the engine do them, answers. docs/reference/streams.md describes it for those who ask.

use std::{
    future::Future,
    path::Path,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    streams::{
        self, GetRequest, KeysRequest, MAX_PAGE_BYTES, MAX_PAGE_RECORDS, ReadFormat, ReadRequest, StreamConfig, StreamKind, StreamName,
    },
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    answer::{self, Form},
    ask::{Answer, Ask, StreamId},
    db::ReadQuery,
    engine::{Barred, Engine, StreamLimits},
    packed::kept_headers,
    places::Places,
    publisher::Publisher,
    write::Write,
};
use crate::{
    bus::{Conn, Message, Subscription},
    clock::SharedClock,
};

/// Says where an owner's streams are kept.
pub trait Roots: Send + Sync + 'static {
    /// The folder of all streams of an owner, the subjects' prefix such as `project.<id>`. The folder itself is made when it is needed, the one
    /// above it must be there.
    ///
    /// # Errors
    /// `not_found` if there is no such owner here, `unavailable`; told to who asks.
    fn root(&self, owner: &str) -> Result<Arc<Path>, Error>;
}

/// Answers in several messages that are being sent at once, of all owners and of one; each holds one page.
const PAGES: usize = 64;
const PAGES_OF_ONE: usize = 16;
/// Reads that wait for something to read, of all owners and of one.
const WAITS: usize = 4096;
const WAITS_OF_ONE: usize = 256;
/// Answers whose receivers are crowded.
const CROWDED: usize = 4096;
/// Records of a page, if the request doesn't say.
const PAGE_RECORDS: u32 = 1000;
/// How long until a subscription that ended is made again.
const AGAIN: Duration = Duration::from_millis(100);

/// The streams of one host (or master, or developer) on its bus. Cloning gives another handle.
#[derive(Clone)]
pub struct StreamService(Arc<Shared>);

struct Shared {
    engine: Arc<Engine>,
    conn: Arc<dyn Conn>,
    tasks: TaskTracker,
    pages: Arc<Places>,
    waits: Arc<Places>,
    crowded: Arc<Semaphore>,
}

/// A service that listens; [`Serving::run`] answers.
pub struct Serving {
    service: StreamService,
    requests: Vec<(&'static str, Verb, Subscription)>,
    prefix: String,
    roots: Arc<dyn Roots>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    List,
    Append,
    Read,
    Tail,
    Info,
    Configure,
    Remove,
    Reset,
    Put,
    Get,
    DeleteKey,
    History,
    Keys,
}

/// Each verb has a subscription of its own: one to everything would also hear the changes.
const VERBS: [(&str, Verb); 19] = [
    ("log.list", Verb::List),
    ("log.*.append", Verb::Append),
    ("log.*.read", Verb::Read),
    ("log.*.tail", Verb::Tail),
    ("log.*.info", Verb::Info),
    ("log.*.configure", Verb::Configure),
    ("log.*.delete", Verb::Remove),
    ("log.*.reset", Verb::Reset),
    ("kv.list", Verb::List),
    ("kv.*.read", Verb::Read),
    ("kv.*.info", Verb::Info),
    ("kv.*.keys", Verb::Keys),
    ("kv.*.configure", Verb::Configure),
    ("kv.*.delete", Verb::Remove),
    ("kv.*.reset", Verb::Reset),
    ("kv.*.put.>", Verb::Put),
    ("kv.*.get.>", Verb::Get),
    ("kv.*.delete.>", Verb::DeleteKey),
    ("kv.*.history.>", Verb::History),
];

impl StreamService {
    /// Publishes and answers by `conn`, which must be allowed to publish everywhere: answers go to the clients' inboxes.
    pub fn new(conn: Arc<dyn Conn>, clock: SharedClock, limits: StreamLimits) -> Self {
        let publisher = Publisher::new(conn.clone());
        let engine = Engine::new(clock, limits, Box::new(move |id, events| publisher.clone().committed(id, events)));
        let tasks = TaskTracker::new();
        Self(Arc::new(Shared {
            engine,
            conn,
            tasks,
            pages: Places::new(PAGES, PAGES_OF_ONE),
            waits: Places::new(WAITS, WAITS_OF_ONE),
            crowded: Arc::new(Semaphore::new(CROWDED)),
        }))
    }

    /// Listens below a prefix, such as `project.*`. What is asked from now on isn't missed.
    ///
    /// # Errors
    /// Those of the bus.
    pub async fn listen(&self, prefix: &str, roots: Arc<dyn Roots>) -> Result<Serving, Error> {
        let mut requests = Vec::with_capacity(VERBS.len());
        for (pattern, verb) in VERBS {
            requests.push((pattern, verb, self.0.conn.subscribe(&format!("{prefix}.{pattern}"), None).await?));
        }
        Ok(Serving { service: self.clone(), requests, prefix: prefix.into(), roots })
    }

    /// Closes all files of an owner, and keeps them closed while what is returned lives: for who deletes or moves them. What has been asked by then is
    /// done before.
    pub async fn close(&self, owner: &str) -> Barred {
        self.0.engine.close(owner).await
    }

    #[cfg(test)]
    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }
}

impl Serving {
    /// Answers until `cancel` fires; then finishes what was asked and closes all files.
    pub async fn run(self, cancel: CancellationToken) {
        let Self { service, requests, prefix, roots } = self;
        let mut listening = JoinSet::new();
        for (pattern, verb, subscription) in requests {
            let desk = Desk { shared: service.0.clone(), prefix: prefix.clone(), roots: roots.clone(), verb };
            listening.spawn(desk.hear(format!("{prefix}.{pattern}"), subscription));
        }
        service.0.engine.clone().run(cancel).await;
        listening.shutdown().await;
        service.0.tasks.close();
        // every one of them has a bound of its own, a few milliseconds but for reads that wait
        let _ = tokio::time::timeout(Duration::from_secs(1), service.0.tasks.wait()).await;
    }
}

/// Takes the requests of one verb.
struct Desk {
    shared: Arc<Shared>,
    prefix: String,
    roots: Arc<dyn Roots>,
    verb: Verb,
}

/// A request, taken apart.
struct Request {
    id: StreamId,
    dir: Arc<Path>,
    key: String,
    message: Message,
}

impl Desk {
    async fn hear(self, pattern: String, mut subscription: Subscription) {
        loop {
            while let Some(message) = subscription.next().await {
                self.take(message);
            }
            // in process this ends only if more requests waited than the bus lets anyone have; who asked gets no answer and asks again
            tracing::warn!(pattern, "requests to streams came faster than they could be taken");
            loop {
                tokio::time::sleep(AGAIN).await;
                match self.shared.conn.subscribe(&pattern, None).await {
                    Ok(again) => break subscription = again,
                    Err(error) => tracing::warn!(pattern, %error, "streams can't be asked for anything"),
                }
            }
        }
    }

    /// Never waits: what takes long is handed on.
    fn take(&self, message: Message) {
        let reply = message.reply.clone();
        // an answer below the prefix would be taken for a change that this service published
        if reply.as_deref().is_some_and(|reply| reply.split('.').next() == self.prefix.split('.').next()) {
            tracing::debug!(subject = %message.subject, "a request wants its answer where streams are served");
            return;
        }
        if let Err(error) = self.hand_on(message) {
            self.shared.answer(reply.as_ref(), answer::error(&error));
        }
    }

    fn hand_on(&self, message: Message) -> Result<(), Error> {
        let depth = self.prefix.split('.').count();
        let Some((owner, rest)) = split_at_token(&message.subject, depth) else {
            return Err(Error::invalid("That isn't a request to a stream."));
        };
        let mut tokens = rest.splitn(4, '.');
        let kind = if tokens.next() == Some("log") { StreamKind::Log } else { StreamKind::Kv };
        let dir = self.roots.root(owner)?;
        if self.verb == Verb::List {
            self.list(owner.into(), kind, dir, message);
            return Ok(());
        }
        let name: StreamName = tokens.next().unwrap_or_default().parse()?;
        let key = tokens.nth(1).unwrap_or_default().to_owned();
        let request = Request { id: StreamId { owner: owner.into(), kind, name }, dir, key, message };
        match self.verb {
            Verb::Append | Verb::Put | Verb::DeleteKey => self.write(request),
            Verb::Read | Verb::Tail | Verb::History => self.read(request),
            verb => {
                let ask = simple(verb, &request)?;
                self.shared.submit(request, ask, Form::Json);
                Ok(())
            }
        }
    }

    fn list(&self, owner: Arc<str>, kind: StreamKind, dir: Arc<Path>, message: Message) {
        let shared = self.shared.clone();
        self.shared.tasks.spawn(async move {
            let listed = shared.engine.list(&owner, dir, kind).await;
            shared.answer(message.reply.as_ref(), answer::json_or_error(&listed));
        });
    }

    fn write(&self, request: Request) -> Result<(), Error> {
        let headers = &request.message.headers;
        let expected = if self.verb == Verb::Append { streams::EXPECTED_LAST } else { streams::EXPECTED_REVISION };
        let expected = headers.get(expected).map(|text| number(expected, text)).transpose()?;
        let write = Write {
            key: (self.verb != Verb::Append).then(|| request.key.clone()),
            delete: self.verb == Verb::DeleteKey,
            headers: kept_headers(&headers.fields)?,
            data: if self.verb == Verb::DeleteKey { Bytes::new() } else { request.message.payload.clone() },
            message_id: headers.get(streams::MESSAGE_ID).map(str::to_owned),
            expected,
        };
        write.check()?;
        self.shared.submit(request, Ask::Write(write), Form::Json);
        Ok(())
    }

    fn read(&self, request: Request) -> Result<(), Error> {
        let asked: ReadRequest = parsed(&request.message.payload)?;
        let tail = self.verb == Verb::Tail;
        let wait = asked.wait_millis.unwrap_or(if tail { streams::TAIL_WAIT_MILLIS } else { 0 }).min(streams::MAX_WAIT_MILLIS);
        let mut query = ReadQuery {
            from: asked.from,
            last: asked.last,
            max_count: asked.max_count.unwrap_or(PAGE_RECORDS).clamp(1, MAX_PAGE_RECORDS),
            max_bytes: asked.max_bytes.unwrap_or(MAX_PAGE_BYTES).min(MAX_PAGE_BYTES),
            latest: asked.latest,
            key: (self.verb == Verb::History).then(|| request.key.clone()),
        };
        if tail && query.from.is_none() && query.last.is_none() {
            query.last = Some(0);
        }
        if wait == 0 {
            self.shared.submit(request, Ask::Read(query), asked.format.into());
            return Ok(());
        }
        let Some(place) = self.shared.waits.take(&request.id.owner, 1) else {
            return Err(Error::new(ErrorCode::LimitExceeded, "Too many reads wait for something to read."));
        };
        let (shared, deadline) = (self.shared.clone(), Instant::now() + Duration::from_millis(wait.into()));
        self.shared.tasks.spawn(async move {
            let read = shared.read_when_there(&request, query, deadline).await;
            shared.respond(&request.id.owner, request.message.reply.as_ref(), read.map(Answer::Page), asked.format.into());
            drop(place);
        });
        Ok(())
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, request: Request, ask: Ask, form: Form) {
        let (shared, owner, reply) = (self.clone(), request.id.owner.clone(), request.message.reply);
        let done = Box::new(move |result| shared.respond(&owner, reply.as_ref(), result, form));
        self.engine.submit(request.id, request.dir, ask, done);
    }

    /// Reads; if there is nothing yet, again when something was written, or at the deadline.
    async fn read_when_there(&self, request: &Request, mut query: ReadQuery, deadline: Instant) -> Result<super::db::PackedPage, Error> {
        loop {
            let read = self.engine.ask(request.id.clone(), request.dir.clone(), Ask::Read(query.clone())).await?;
            let Answer::Page(page) = read else { return Err(Error::internal("A read was answered with something else.")) };
            let wait = deadline.saturating_duration_since(Instant::now());
            if !page.records.is_empty() || wait.is_zero() {
                return Ok(page);
            }
            // where the end was at the first read is what was asked for
            (query.from, query.last) = (Some(page.next), None);
            let Some(mut last) = self.engine.watch(&request.id) else { return Ok(page) };
            let next = page.next;
            match tokio::time::timeout(wait, last.wait_for(|last| *last >= next)).await {
                Ok(Ok(_)) => {}
                _ => return Ok(page), // nothing came, or the stream was closed
            }
        }
    }

    fn respond(self: &Arc<Self>, owner: &Arc<str>, reply: Option<&Arc<str>>, result: Result<Answer, Error>, form: Form) {
        let Some(reply) = reply else { return };
        match (result, form) {
            (Ok(Answer::Page(page)), Form::Messages) => match self.pages.take(owner, 1) {
                Some(place) => {
                    let (shared, reply) = (self.clone(), reply.clone());
                    // each message waits for the bus as any publisher does, so a page is sent no faster than it can be delivered
                    self.tasks.spawn(async move {
                        for message in answer::messages(&page) {
                            if shared.conn.publish(Message { subject: reply.clone(), ..message }).await.is_err() {
                                break; // who asked sees that the end is missing
                            }
                        }
                        drop(place);
                    });
                }
                None => {
                    let error = Error::new(ErrorCode::LimitExceeded, "Too many pages are being sent just now.");
                    self.answer(Some(reply), answer::error(&error));
                }
            },
            (Ok(answer), form) => self.answer(Some(reply), answer::whole(&answer, form)),
            (Err(error), _) => self.answer(Some(reply), answer::error(&error)),
        }
    }

    /// Sends one message. The bus hands it over at once; if the receiver is crowded it also holds its publisher up for a moment, which must be
    /// nobody who serves others too.
    fn answer(&self, reply: Option<&Arc<str>>, message: Message) {
        let Some(reply) = reply else { return };
        let (conn, message) = (self.conn.clone(), Message { subject: reply.clone(), ..message });
        let mut sending = Box::pin(async move {
            if let Err(error) = conn.publish(message).await {
                tracing::debug!(%error, "an answer about a stream can't be sent");
            }
        });
        if sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Pending
            && let Ok(permit) = self.crowded.clone().try_acquire_owned()
        {
            self.tasks.spawn(async move {
                sending.await;
                drop(permit);
            });
        }
    }
}

/// The verbs whose requests are small and whose answers are JSON.
fn simple(verb: Verb, request: &Request) -> Result<Ask, Error> {
    let payload = &request.message.payload;
    Ok(match verb {
        Verb::Configure => Ask::Configure(parsed::<StreamConfig>(payload)?),
        Verb::Remove => Ask::Remove,
        Verb::Reset => Ask::Reset,
        Verb::Get => Ask::Get { key: request.key.clone(), revision: parsed::<GetRequest>(payload)?.revision },
        Verb::Keys => {
            let KeysRequest { pattern, after, max_count } = parsed(payload)?;
            if let Some(pattern) = pattern.as_ref().filter(|pattern| !streams::is_key_pattern(pattern)) {
                return Err(Error::invalid(format!("{pattern:?} isn't a pattern of keys.")));
            }
            Ask::Keys { pattern, after: after.unwrap_or_default(), max_count: max_count.unwrap_or(PAGE_RECORDS) }
        }
        _ => Ask::Info,
    })
}

fn parsed<T: DeserializeOwned + Default>(payload: &[u8]) -> Result<T, Error> {
    if payload.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(payload).map_err(|error| Error::invalid(format!("The request isn't the JSON that it should be: {error}.")))
}

fn number(name: &str, text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| Error::invalid(format!("The header {name} has {text:?}, which isn't a sequence.")))
}

/// Splits a subject after so many tokens.
fn split_at_token(subject: &str, tokens: usize) -> Option<(&str, &str)> {
    let (at, _) = subject.match_indices('.').nth(tokens.checked_sub(1)?)?;
    Some((&subject[..at], &subject[at + 1..]))
}

impl From<ReadFormat> for Form {
    fn from(format: ReadFormat) -> Self {
        match format {
            ReadFormat::Json => Self::Json,
            ReadFormat::Messages => Self::Messages,
            ReadFormat::Packed => Self::Packed,
        }
    }
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Bytes {
    // the types of the contract have text keys and no maps, so this can't fail; an empty payload would be seen
    serde_json::to_vec(value).unwrap_or_default().into()
}
