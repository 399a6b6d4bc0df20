//! What the tests share: a router with a test clock, ways in, and a client that speaks bytes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use atoll_contract::{Error, ErrorCode, Timestamp, subject::Permissions};
use atoll_net::{
    bus::{Authenticator, BusLimits, Credentials, Grant, Router, nkey_proves},
    clock::TestClock,
};
use axum::{extract::ws::WebSocketUpgrade, routing::any};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::TcpListener,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The bound of every wait in these tests: far beyond what a slow machine needs.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const PROJECT: &str = "0198c0de-0000-7000-8000-000000000001";
pub(crate) const OTHER: &str = "0198c0de-0000-7000-8000-000000000002";

/// Who may connect with which token; without entries everybody may do everything.
#[derive(Default)]
pub(crate) struct Auth {
    pub(crate) tokens: BTreeMap<String, Grant>,
    pub(crate) nkey: Option<String>,
    pub(crate) open: bool,
}

impl Authenticator for Auth {
    fn required(&self) -> bool {
        !self.open
    }

    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        if self.tokens.is_empty() && self.nkey.is_none() {
            return Ok(vec![grant("all", &[">"], &[">"], None)]);
        }
        if self.nkey.is_some() && credentials.nkey == self.nkey && nkey_proves(credentials) {
            return Ok(vec![grant("nkey", &[">"], &[">"], None)]);
        }
        self.grant(credentials.token.as_deref().unwrap_or_default()).map(|grant| vec![grant])
    }

    fn grant(&self, token: &str) -> Result<Grant, Error> {
        self.tokens.get(token).cloned().ok_or_else(|| Error::new(ErrorCode::Unauthenticated, "The token isn't valid."))
    }
}

pub(crate) fn grant(key: &str, publish: &[&str], subscribe: &[&str], expires_at: Option<i64>) -> Grant {
    let all = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    Grant {
        key: key.into(),
        permissions: Permissions { publish: all(publish), subscribe: all(subscribe), ..Permissions::default() },
        account: None,
        expires_at: expires_at.map(Timestamp::from_millis),
    }
}

/// The token of someone who may use `open.>` and the inboxes of `lim`.
pub(crate) const LIMITED: &str = "limited";
pub(crate) const ANYONE: &str = "anyone";

pub(crate) fn two_tokens() -> Arc<Auth> {
    let limited = grant("limited", &["open.>"], &["open.>", "_INBOX.lim.>"], None);
    let anyone = grant("anyone", &[">"], &[">"], None);
    let tokens = [(LIMITED.to_owned(), limited), (ANYONE.to_owned(), anyone)];
    Arc::new(Auth { tokens: tokens.into(), ..Auth::default() })
}

pub(crate) struct Bus {
    pub(crate) router: Arc<Router>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) cancel: CancellationToken,
    _guard: DropGuard,
}

pub(crate) fn bus(limits: BusLimits, auth: Arc<Auth>) -> Bus {
    let clock = TestClock::at(Timestamp::from_millis(1_800_000_000_000));
    let cancel = CancellationToken::new();
    Bus { router: Router::new(limits, clock.clone()), clock, auth, cancel: cancel.clone(), _guard: cancel.drop_guard() }
}

pub(crate) fn open_bus() -> Bus {
    bus(BusLimits::default(), Arc::default())
}

impl Bus {
    /// One more connection through a pipe of so many bytes.
    pub(crate) fn pipe(&self, size: usize) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(size);
        tokio::spawn(self.router.serve(theirs, "pipe".into(), self.auth.clone(), self.cancel.clone()));
        ours
    }

    pub(crate) fn raw(&self) -> Raw<DuplexStream> {
        Raw::new(self.pipe(64 << 10))
    }

    /// A raw client that has said CONNECT with a token and got its consent.
    pub(crate) async fn connected(&self, token: &str) -> Raw<DuplexStream> {
        let mut raw = self.raw();
        raw.connect(token).await;
        raw
    }

    pub(crate) async fn tcp(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(self.router.serve_tcp(listener, self.auth.clone(), self.cancel.clone()));
        format!("nats://{address}")
    }

    pub(crate) async fn websocket(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (router, auth, cancel) = (self.router.clone(), self.auth.clone(), self.cancel.clone());
        let upgrade = async move |upgrade: WebSocketUpgrade| {
            let upgrade = router.limits().bound_websocket(upgrade);
            upgrade.on_upgrade(move |socket| router.serve_websocket(socket, "ws".into(), auth, cancel))
        };
        let app = axum::Router::new().route("/bus", any(upgrade));
        let stop = self.cancel.clone();
        tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await });
        format!("ws://{address}/bus")
    }
}

/// A client that speaks bytes.
pub(crate) struct Raw<IO> {
    pub(crate) io: IO,
    read: Vec<u8>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Raw<IO> {
    pub(crate) fn new(io: IO) -> Self {
        Self { io, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next line without its end; `None` at the end of the stream.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let read = async {
            loop {
                if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.read.drain(..=end).collect();
                    return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
                }
                let mut more = [0; 4096];
                match self.io.read(&mut more).await {
                    Ok(0) | Err(_) => return None,
                    Ok(count) => self.read.extend_from_slice(&more[..count]),
                }
            }
        };
        tokio::time::timeout(SOON, read).await.expect("a line comes in time")
    }

    pub(crate) async fn expect(&mut self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.line().await.as_deref(), Some(*line));
        }
    }

    pub(crate) async fn expect_end(&mut self) {
        assert_eq!(self.line().await, None);
    }

    /// INFO, then CONNECT with a token.
    pub(crate) async fn connect(&mut self, token: &str) {
        let info = self.line().await.unwrap();
        assert!(info.starts_with("INFO {"), "{info}");
        let connect = format!(r#"{{"verbose":false,"headers":true,"no_responders":true,"name":"raw","auth_token":"{token}"}}"#);
        self.send(&format!("CONNECT {connect}\r\nPING\r\n")).await;
        self.expect(&["PONG"]).await;
    }

    /// Waits until the server has seen all that was sent.
    pub(crate) async fn round_trip(&mut self) {
        self.send("PING\r\n").await;
        self.expect(&["PONG"]).await;
    }
}

/// Waits for something to become true.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let all = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, all).await.unwrap_or_else(|_| panic!("in time: {what}"));
}
