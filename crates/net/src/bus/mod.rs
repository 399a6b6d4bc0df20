//! The bus: messages by subject, with wildcards, queue groups, requests and "no responders", as NATS has them.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use atoll_contract::{Error, ErrorCode};
use bytes::Bytes;
use tokio::sync::mpsc::error::TryRecvError;

mod bridge;
mod budget;
pub mod client;
mod client_task;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "it is a test, built for the fuzzer, too")]
pub mod fuzz;
mod inlet;
mod limits;
mod listen;
mod local;
mod lookup;
#[cfg(all(test, feature = "model"))]
mod model;
mod nkey;
mod operations;
mod outbound;
#[cfg(test)]
mod properties;
mod pump;
mod rights;
mod router;
mod run;
mod secure;
mod server;
mod session;
mod stats;
pub mod stock;
mod subject;
mod sync;
mod trie;
mod websocket;
mod wire;

pub use bridge::{BridgeOptions, HubUrl};
pub use error::{answered_error, error_answer};
pub use inlet::Outlet;
pub use limits::BusLimits;
pub use listen::listen;
pub use nkey::nkey_proves;
pub use router::{BusStats, ConnectionView, Router};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Headers of a message, in order, with repetition allowed (NATS message headers, ADR-4).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers {
    /// The status line's code, such as 503 for "no responders".
    pub status: Option<u16>,
    /// The status line's text after the code, such as `stale_assignment`; empty for none, and without a code never sent.
    pub description: String,
    pub fields: Vec<(String, String)>,
}

impl Headers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    pub fn is_empty(&self) -> bool {
        self.status.is_none() && self.fields.is_empty()
    }
}

/// A message, as published and as delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub subject: Arc<str>,
    pub reply: Option<Arc<str>>,
    pub headers: Headers,
    pub payload: Bytes,
}

impl Message {
    pub fn new(subject: impl Into<Arc<str>>, payload: impl Into<Bytes>) -> Self {
        Self { subject: subject.into(), reply: None, headers: Headers::default(), payload: payload.into() }
    }

    /// Bytes of the headers' names and values and of the payload, which is about what it takes of the memory.
    pub fn size(&self) -> usize {
        size(&self.headers, &self.payload)
    }
}

/// As [`Message::size`], of what may become a message.
pub fn size(headers: &Headers, payload: &Bytes) -> usize {
    payload.len() + headers.fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
}

/// What a subscriber reads. Dropping it unsubscribes. It ends (`None`) when its connection ends, when its grant does, and when its reader falls
/// behind by more than the bounds: an end is seen, a gap would not be. (The published client, by its nature, leaves gaps and connects again.)
#[derive(Debug)]
pub struct Subscription {
    messages: Outlet,
    /// Dropped with the subscription; whoever feeds it unsubscribes then.
    #[allow(dead_code, reason = "held for its drop")]
    guard: Option<Unsubscribe>,
}

impl Subscription {
    pub fn new(messages: impl Into<Outlet>, guard: Option<Unsubscribe>) -> Self {
        Self { messages: messages.into(), guard }
    }

    pub async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }

    /// The next message if there is one already.
    ///
    /// # Errors
    /// `Empty` if there is none yet, `Disconnected` at the end.
    pub fn try_next(&mut self) -> Result<Message, TryRecvError> {
        self.messages.try_recv()
    }
}

/// Runs a closure when it is dropped.
pub struct Unsubscribe(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Unsubscribe {
    pub fn new(undo: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(undo)))
    }
}

impl std::fmt::Debug for Unsubscribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unsubscribe")
    }
}

impl Drop for Unsubscribe {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}

/// One connection to a bus, whichever road it takes: in process, NATS wire over a unix socket, or a stock client (async-nats).
/// All bounds are the connection's own; every method ends by itself.
pub trait Conn: Send + Sync + 'static {
    /// Hands a message to the bus. Waits while the connection's own outbound queue is full.
    ///
    /// # Errors
    /// `too_large`, `forbidden` where that is known at once, `unavailable` if the connection has ended.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>>;

    /// Subscribes, in a queue group if one is named. Returns when the bus knows of it: what is published later is not missed.
    fn subscribe<'a>(&'a self, subject: &'a str, queue: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>>;

    /// Publishes with a reply inbox of this connection's own and waits for one answer.
    ///
    /// # Errors
    /// `no_responders` if nobody subscribes to the subject, `timed_out` after `timeout`, and those of publish.
    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, Error>>;
}

/// What someone who connects presents, from the CONNECT line (or directly, in process).
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// `auth_token`.
    pub token: Option<String>,
    /// `nkey` and `sig`: a public user nkey, and its signature of the nonce that the server sent in INFO.
    pub nkey: Option<String>,
    pub signature: Option<String>,
    pub nonce: String,
    /// The name that the client gives itself, for people.
    pub name: Option<String>,
}

/// A right to publish and subscribe, with an end. A connection holds one or more.
#[derive(Debug, Clone)]
pub struct Grant {
    /// What it is for, such as the project's id. A grant of the same key replaces the older one (a renewal).
    pub key: String,
    pub permissions: atoll_contract::subject::Permissions,
    /// Whom the connection counts for. The first grant that says so decides for the connection's life.
    pub account: Option<String>,
    /// Absent: as long as the connection lives.
    pub expires_at: Option<atoll_contract::Timestamp>,
}

/// Decides who may connect. A connection whose last grant has expired is closed.
pub trait Authenticator: Send + Sync + 'static {
    /// Whether a client must present credentials. If not, one may begin without CONNECT, and gets the grants for empty credentials.
    fn required(&self) -> bool {
        true
    }

    /// # Errors
    /// `unauthenticated`; the client is told "Authorization Violation" and no more.
    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error>;

    /// A further token, presented with [`atoll_contract::subject::GRANT_ADD`].
    ///
    /// # Errors
    /// As [`verify`](atoll_contract::claims::verify); the connection goes on as it was.
    fn grant(&self, token: &str) -> Result<Grant, Error> {
        let _ = token;
        Err(Error::new(ErrorCode::Unsupported, "This bus takes no further grants."))
    }
}
