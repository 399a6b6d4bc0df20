//! The connection to the host: dials for ever, and is one [`Conn`] over all connections that it makes, so that commands and terminals need not know of breaks.
//!
//! Subscriptions are made again at every connection, before anything is published on it. What was on its way when a connection broke is lost;
//! the streams notice and repeat it.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, agent::AgentConfig, subject};
use atoll_net::{
    bus::{BoxFuture, Conn, Message, Subscription, Unsubscribe, client},
    byte_stream::SILENCE,
    clock::Clock,
};
use tokio::{
    net::UnixStream,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{AgentOptions, ConfigSource, serve::Agent};

/// The first pause between attempts; it doubles up to the last. A host that restarts is back within a second or two, and a project's
/// start waits for the first connection.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that has lasted so long was a good one: the pauses begin anew.
const GOOD: Duration = Duration::from_secs(5);
/// From dialling to the host's answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait for a slow reader before its subscription waits.
const BACKLOG: usize = 256;
/// A configuration is some hundred bytes.
const MAX_CONFIG_BYTES: usize = 64 << 10;

#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    client: watch::Sender<Option<Arc<dyn Conn>>>,
    entries: Mutex<Entries>,
    /// Held while subscriptions are made, so that one that is new during a reconnection is made once.
    wiring: tokio::sync::Mutex<()>,
    ended: CancellationToken,
    /// What was to be written when it ended has been.
    written: CancellationToken,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<u64, Entry>,
    last: u64,
}

#[derive(Clone)]
struct Entry {
    subject: Arc<str>,
    queue: Option<Arc<str>>,
    to: mpsc::Sender<Message>,
}

impl Inner {
    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        // every change of the map is one call, so a panic elsewhere leaves it whole
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            client: watch::channel(None).0,
            entries: Mutex::default(),
            wiring: tokio::sync::Mutex::new(()),
            ended: CancellationToken::new(),
            written: CancellationToken::new(),
        }))
    }

    /// Connects, again and again, and says hello each time.
    pub(crate) async fn keep(self, options: AgentOptions, agent: Arc<Agent>) {
        let mut pause = Pause::default();
        while !self.0.ended.is_cancelled() {
            match dial(&options).await {
                Ok(client) => {
                    let since = Instant::now();
                    let why = self.use_until_closed(client, &agent).await;
                    tracing::info!(error = %why, "the connection to the host has ended");
                    if since.elapsed() >= GOOD {
                        pause = Pause::default();
                    }
                }
                Err(error) => pause.log(&error),
            }
            tokio::select! {
                () = pause.wait(&*options.clock) => {}
                () = self.0.ended.cancelled() => {}
            }
        }
        self.0.written.cancel();
    }

    /// No more connections: what waits is still written, within a bound, and everything that is subscribed ends.
    pub(crate) async fn end(&self, bound: Duration) {
        self.0.ended.cancel();
        self.0.entries().by_key.clear();
        if tokio::time::timeout(bound, self.0.written.cancelled()).await.is_err() {
            tracing::debug!("the last words to the host couldn't be written in time");
        }
    }

    async fn use_until_closed(&self, client: client::WireClient, agent: &Agent) -> Error {
        let conn: Arc<dyn Conn> = Arc::new(client.clone());
        let ready = async {
            self.adopt(conn).await?;
            agent.hello().await
        };
        let why = tokio::select! {
            Err(error) = ready => error,
            error = client.closed() => error,
            () = self.0.ended.cancelled() => Error::new(ErrorCode::Unavailable, "The agent ends."),
        };
        self.0.client.send_replace(None);
        client.close().await;
        why
    }

    /// Makes all subscriptions on a new connection, then lets it be used.
    async fn adopt(&self, conn: Arc<dyn Conn>) -> Result<(), Error> {
        let _wiring = self.0.wiring.lock().await;
        let entries: Vec<Entry> = self.0.entries().by_key.values().cloned().collect();
        futures_util::future::try_join_all(entries.into_iter().map(|entry| wire(&conn, entry))).await?;
        self.0.client.send_replace(Some(conn));
        Ok(())
    }

    /// The present connection, waiting for the next one if there is none.
    async fn current(&self, but: Option<&Arc<dyn Conn>>) -> Result<Arc<dyn Conn>, Error> {
        let mut client = self.0.client.subscribe();
        let fresh = |conn: &Option<Arc<dyn Conn>>| conn.as_ref().is_some_and(|conn| but.is_none_or(|but| !Arc::ptr_eq(conn, but)));
        let gone = || Error::new(ErrorCode::Unavailable, "The host has been away for too long.");
        tokio::select! {
            biased;
            Ok(conn) = client.wait_for(fresh) => conn.clone().ok_or_else(gone),
            () = self.0.ended.cancelled() => Err(Error::new(ErrorCode::Unavailable, "The agent ends.")),
            () = tokio::time::sleep(SILENCE) => Err(gone()),
        }
    }
}

/// Makes one subscription and carries its messages until the connection or the reader ends.
async fn wire(conn: &Arc<dyn Conn>, entry: Entry) -> Result<(), Error> {
    let mut subscription = conn.subscribe(&entry.subject, entry.queue.as_deref()).await?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = entry.to.closed() => return,
                message = subscription.next() => {
                    let Some(message) = message else { return };
                    if entry.to.send(message).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    Ok(())
}

impl Conn for Link {
    /// Waits for the next connection if there is none now.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let mut broken = None;
            loop {
                let conn = self.current(broken.as_ref()).await?;
                match conn.publish(message.clone()).await {
                    Err(error) if error.code == ErrorCode::Unavailable => broken = Some(conn),
                    result => return result,
                }
            }
        })
    }

    /// Without a connection it is made with the next one, before anything is published there.
    fn subscribe<'a>(&'a self, subject: &'a str, queue: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(async move {
            let (to, messages) = mpsc::channel(BACKLOG);
            let entry = Entry { subject: subject.into(), queue: queue.map(Arc::from), to };
            let _wiring = self.0.wiring.lock().await;
            let key = {
                let mut entries = self.0.entries();
                entries.last += 1;
                let key = entries.last;
                entries.by_key.insert(key, entry.clone());
                key
            };
            let link = Arc::downgrade(&self.0);
            let guard = Unsubscribe::new(move || {
                if let Some(link) = link.upgrade() {
                    link.entries().by_key.remove(&key);
                }
            });
            let subscription = Subscription::new(messages, Some(guard));
            let conn = self.0.client.borrow().clone();
            if let Some(conn) = conn {
                match wire(&conn, entry).await {
                    Err(error) if error.code != ErrorCode::Unavailable => return Err(error),
                    _ => {} // a connection that has just ended: the next one makes it
                }
            }
            Ok(subscription)
        })
    }

    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        Box::pin(async move { self.current(None).await?.request(message, timeout).await })
    }
}

/// The time between attempts, with jitter so that a host's agents don't come back all at once.
struct Pause {
    next: Duration,
    attempts: u32,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: FIRST_PAUSE, attempts: 0 }
    }
}

impl Pause {
    /// The first failure in a row is told; the rest would fill the container's log.
    fn log(&self, error: &Error) {
        if self.attempts == 0 {
            tracing::warn!(%error, "the host doesn't answer; dialling until it does");
        } else {
            tracing::debug!(%error, attempts = self.attempts, "the host doesn't answer");
        }
    }

    async fn wait(&mut self, clock: &dyn Clock) {
        let mut byte = [0];
        clock.random(&mut byte);
        let part = 0.5 + f64::from(byte[0]) / 512.0; // half to all of it
        tokio::time::sleep(self.next.mul_f64(part)).await;
        self.next = (self.next * 2).min(LAST_PAUSE);
        self.attempts = self.attempts.saturating_add(1);
    }
}

async fn dial(options: &AgentOptions) -> Result<client::WireClient, Error> {
    let config = read_config(&options.config)?;
    let prefix = subject::inbox_prefix(&config.project.to_string());
    let client = client::Options {
        name: format!("agent of {}", config.project),
        token: Some(config.secret),
        inbox_prefix: prefix,
        connect_timeout: DIAL_TIMEOUT,
        ..client::Options::default()
    };
    let unavailable = |error: io::Error| Error::new(ErrorCode::Unavailable, format!("{}: {error}.", options.socket.display()));
    let late = |_| Error::new(ErrorCode::TimedOut, "The host's socket doesn't answer.");
    let socket = tokio::time::timeout(DIAL_TIMEOUT, UnixStream::connect(&options.socket)).await.map_err(late)?.map_err(unavailable)?;
    client::connect(socket, client).await
}

/// Blocks for a moment: a small file that the host has just written, and nothing that would need another thread.
fn read_config(source: &ConfigSource) -> Result<AgentConfig, Error> {
    let path = match source {
        ConfigSource::Fixed(config) => return Ok(AgentConfig::clone(config)),
        ConfigSource::Path(path) => path,
    };
    let wrong = |what: String| Error::new(ErrorCode::InvalidConfig, format!("{}: {what}.", path.display()));
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    if text.len() > MAX_CONFIG_BYTES {
        return Err(wrong("too large".into()));
    }
    // the parser's message would quote the secret
    serde_json::from_slice(&text).map_err(|error| wrong(format!("not an agent's configuration (line {})", error.line())))
}

/// Reads the configuration, waiting until it is there. None if the agent is stopped before.
pub(crate) async fn first_config(options: &AgentOptions, stop: &CancellationToken) -> Option<AgentConfig> {
    let mut pause = Pause::default();
    loop {
        match read_config(&options.config) {
            Ok(config) => return Some(config),
            Err(error) => pause.log(&error),
        }
        tokio::select! {
            () = pause.wait(&*options.clock) => {}
            () = stop.cancelled() => return None,
        }
    }
}
