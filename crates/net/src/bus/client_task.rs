//! The task of our own client: one for each connection, reads what the server sends and writes what waits.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Buf, Bytes};
use nkeys::KeyPair;
use tokio::time::Instant;

use super::{
    Headers, Message,
    client::{Options, Shared, own},
    pump::{Event, Pump, Transport},
    wire::{Connect, Info, Proof, ServerOp, ServerParser, Step, decode_headers},
};

/// What a server may say of its greatest message at most; beyond that it isn't believed.
const MAX_PAYLOAD: usize = 64 << 20;
pub(crate) const MAX_PAYLOAD_BEFORE_INFO: usize = 1 << 20;
/// INFO is the longest line that a server sends.
const MAX_LINE: usize = 64 << 10;
/// Operations from this size on are taken out of the read buffer instead of copied.
const APART: usize = 32 << 10;
/// PINGs without an answer before the connection is over.
const PINGS_OUTSTANDING: u32 = 2;
/// How long reading pauses when a subscription's reader is half full.
const STALL: Duration = Duration::from_millis(1);
const FINISH_TIMEOUT: Duration = Duration::from_millis(200);

pub(crate) struct ClientTask<T> {
    pump: Pump<T>,
    parser: ServerParser,
    shared: Arc<Shared>,
    heard: Instant,
    pings: u32,
    /// The last -ERR: why the server closes, if it does.
    last_error: Option<Error>,
    crowded: bool,
    info: Option<Info>,
}

impl<T: Transport> ClientTask<T> {
    pub(crate) fn new(transport: T, shared: Arc<Shared>) -> Self {
        Self {
            pump: Pump::new(transport),
            parser: ServerParser::new(MAX_LINE, MAX_PAYLOAD),
            shared,
            heard: Instant::now(),
            pings: 0,
            last_error: None,
            crowded: false,
            info: None,
        }
    }

    /// INFO, CONNECT, PING, PONG.
    pub(crate) async fn handshake(&mut self) -> Result<(), Error> {
        let nonce = loop {
            if let Some(info) = &self.info {
                break info.nonce.clone();
            }
            self.step().await?;
        };
        self.shared.send_line(&hello(&self.shared.options, &nonce)?);
        let mut consent = self.shared.ping("", None);
        loop {
            tokio::select! {
                biased;
                consent = &mut consent => return consent.unwrap_or_else(|_| Err(self.reason())),
                stepped = self.step() => stepped?,
            }
        }
    }

    pub(crate) async fn run(mut self) {
        let error = loop {
            let tick = tokio::time::sleep_until(self.heard + self.shared.options.ping_interval * (self.pings + 1));
            tokio::select! {
                biased;
                stepped = self.step() => if let Err(error) = stepped { break error },
                () = tick => if let Err(error) = self.tick() { break error },
            }
            if std::mem::take(&mut self.crowded) {
                tokio::time::sleep(STALL).await; // its reader gets a moment; the server waits meanwhile, within its own bounds
            }
        };
        self.shared.end(&error);
        self.pump.finish(FINISH_TIMEOUT).await;
    }

    /// Waits for the next bytes and sees to them.
    async fn step(&mut self) -> Result<(), Error> {
        match self.pump.next(&self.shared.out, true).await {
            Event::Data => {
                (self.heard, self.pings) = (Instant::now(), 0);
                self.operations()
            }
            Event::Closing => Ok(()),
            Event::Finished | Event::Dead => Err(Error::new(ErrorCode::Unavailable, "The connection to the bus was closed.")),
            Event::End => Err(self.reason()),
            Event::Failed(error) => {
                tracing::debug!(%error, "the connection to the bus failed");
                Err(self.reason())
            }
        }
    }

    fn operations(&mut self) -> Result<(), Error> {
        let mut at = 0;
        // taken out for the loop, since operations borrow from it
        let mut buffer = std::mem::take(&mut self.pump.buffer);
        let done = loop {
            match self.parser.step(&buffer[at..]) {
                Ok(Step::Op { consumed, .. }) if consumed >= APART => {
                    buffer.advance(at);
                    at = 0;
                    let frame = buffer.split_to(consumed).freeze();
                    if let Ok(Step::Op { op, .. }) = self.parser.step(&frame) {
                        self.operation(op, Some(&frame));
                    }
                }
                Ok(Step::Op { op, consumed }) => {
                    self.operation(op, None);
                    at += consumed;
                }
                Ok(Step::Need(need)) => {
                    buffer.advance(at);
                    break Ok(need);
                }
                Err(error) => break Err(Error::new(ErrorCode::Unavailable, format!("The bus sends what isn't its protocol: {error}."))),
            }
        };
        self.pump.buffer = buffer;
        self.pump.expect(done?);
        Ok(())
    }

    fn operation(&mut self, op: ServerOp<'_>, frame: Option<&Bytes>) {
        match op {
            ServerOp::Message { subject, sid, reply, headers, payload } => {
                let make = |subject| Message {
                    subject,
                    reply: reply.map(Into::into),
                    headers: if headers.is_empty() { Headers::default() } else { decode_headers(headers) },
                    payload: own(payload, frame),
                };
                self.crowded |= self.shared.deliver(sid, subject, make);
            }
            ServerOp::Ping => self.shared.send_line(b"PONG\r\n"),
            ServerOp::Pong => self.shared.pong(),
            ServerOp::Ok => {}
            ServerOp::Info(json) => match serde_json::from_slice::<Info>(json) {
                Ok(info) => {
                    if info.lame_duck {
                        tracing::info!("the bus is going away");
                    }
                    self.shared.max_payload.store(info.max_payload.min(MAX_PAYLOAD), Ordering::Relaxed);
                    self.info = Some(info);
                }
                Err(error) => tracing::debug!(%error, "the bus's INFO can't be read"),
            },
            ServerOp::Err(words) => self.told(words),
        }
    }

    /// An -ERR: of one subscription or publication, or of the connection.
    fn told(&mut self, words: &str) {
        let quoted =
            |prefix: &str| words.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('"')).and_then(|rest| rest.split('"').next());
        if let Some(subject) = quoted("Permissions Violation for Subscription to ") {
            self.shared.subscription_refused(subject);
        } else if let Some(subject) = quoted("Permissions Violation for Publish to ") {
            let error = Error::new(ErrorCode::Forbidden, format!("This connection may not publish to {subject:?}."));
            self.shared.replies.fail(Some(subject), &error);
        } else {
            tracing::debug!(words, "the bus reports an error");
            let code = match words {
                "Authorization Violation" | "Authentication Timeout" | "User Authentication Expired" | "User Authentication Revoked" => {
                    ErrorCode::Unauthenticated
                }
                "maximum connections exceeded" | "maximum subscriptions exceeded" => ErrorCode::LimitExceeded,
                "Maximum Payload Violation" => ErrorCode::TooLarge,
                _ => ErrorCode::Unavailable,
            };
            self.last_error = Some(Error::new(code, format!("The bus says: {words}.")));
        }
    }

    /// The server has been silent for a while.
    fn tick(&mut self) -> Result<(), Error> {
        let stuck = self.pump.blocked_since.is_some_and(|since| since.elapsed() >= self.shared.options.ping_interval);
        if stuck || self.pings >= PINGS_OUTSTANDING {
            return Err(Error::new(ErrorCode::Unavailable, "The bus doesn't answer any more."));
        }
        self.pings += 1;
        drop(self.shared.ping("", None)); // that something is heard is enough
        Ok(())
    }

    fn reason(&self) -> Error {
        self.last_error.clone().unwrap_or_else(|| Error::new(ErrorCode::Unavailable, "The bus closed the connection."))
    }
}

/// The CONNECT line.
fn hello(options: &Options, nonce: &str) -> Result<Bytes, Error> {
    let (mut nkey, mut sig) = (None, None);
    if let Some(seed) = &options.nkey_seed {
        // the library's error might quote the seed
        let key = KeyPair::from_seed(seed).map_err(|_| Error::invalid("The nkey seed isn't one."))?;
        let signature = key.sign(nonce.as_bytes()).map_err(|_| Error::internal("The nonce could not be signed."))?;
        (nkey, sig) = (Some(key.public_key()), Some(URL_SAFE_NO_PAD.encode(signature)));
    }
    let connect = Connect {
        verbose: false,
        pedantic: false,
        echo: true,
        headers: true,
        no_responders: true,
        lang: "rust".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: 1,
        name: Some(options.name.clone()),
        proof: Proof { auth_token: options.token.clone(), nkey, sig, ..Proof::default() },
    };
    Ok(connect.line())
}
