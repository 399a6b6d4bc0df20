//! HTTP and the bus over WebSocket, encrypted: with the clients that people use, and bytes by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use async_nats::ConnectOptions;
use atoll_contract::{Error, ErrorCode, Timestamp, subject::Permissions};
use atoll_net::{
    bus::{Authenticator, BusLimits, Conn, Credentials, Grant, Message, Router, stock},
    clock::TestClock,
    http::{self, HttpLimits},
    testing::Authority,
    tls::{Protocol, ServerTls, Trust, client_config, handshake_error},
};
use axum::{Extension, extract::ConnectInfo, routing::get};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

/// Far beyond what a slow machine needs.
const SOON: Duration = Duration::from_secs(30);

struct Served {
    address: SocketAddr,
    authority: Authority,
    clock: Arc<TestClock>,
    /// Notified when `/slow` is being answered, and what it waits for.
    slow: Arc<(Notify, Notify)>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    _dir: TempDir,
}

async fn served(limits: HttpLimits) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let clock = TestClock::at(Timestamp::from_millis(0));
    let tls = ServerTls::load(&authority.certificate(), &authority.key(), Protocol::Http, clock.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let slow = Arc::new((Notify::new(), Notify::new()));
    let waits = slow.clone();
    let app = axum::Router::new()
        .route("/peer", get(async |Extension(ConnectInfo(peer)): Extension<ConnectInfo<SocketAddr>>| peer.ip().to_string()))
        .route(
            "/slow",
            get(move || async move {
                waits.0.notify_one();
                waits.1.notified().await;
                "at last"
            }),
        );
    let cancel = CancellationToken::new();
    let task = tokio::spawn(http::serve(listener, Some(Arc::new(tls)), app, limits, cancel.clone()));
    Served { address, authority, clock, slow, cancel, task, _dir: dir }
}

fn client(ca_file: &Path) -> reqwest::Client {
    let trust = client_config(Trust::Only(ca_file)).unwrap();
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(trust).build().unwrap()
}

impl Served {
    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn encrypted(&self, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = client_config(Trust::Only(&self.authority.ca_file())).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, self.socket().await).await
    }
}

#[tokio::test]
async fn requests_are_answered_and_the_protocol_is_agreed_on() {
    let served = served(HttpLimits::default()).await;
    let answer = client(&served.authority.ca_file()).get(served.url("/peer")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "127.0.0.1"));
    for (offered, agreed) in [(&[][..], None), (&["h2", "http/1.1"], Some("http/1.1")), (&["http/1.1"], Some("http/1.1"))] {
        let stream = served.encrypted(offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
    }
    let refused = served.encrypted(&["h2"]).await.unwrap_err();
    let told = handshake_error("It", &refused).unwrap();
    assert!(told.code == ErrorCode::Unavailable && told.message.contains("NoApplicationProtocol"), "{told}");
}

#[tokio::test]
async fn who_is_not_trusted_is_told_as_that() {
    let served = served(HttpLimits::default()).await;
    let other = tempfile::tempdir().unwrap();
    let strangers = client(&Authority::new(other.path()).unwrap().ca_file());
    let error = strangers.get(served.url("/peer")).send().await.unwrap_err();
    let told = handshake_error("The master at https://m", &error).unwrap();
    assert_eq!((told.code, told.retry), (ErrorCode::Untrusted, false));
    assert!(told.message.starts_with("The master at https://m isn't trusted") && told.mend.contains("--ca-file"), "{told:?}");
    let own = tempfile::tempdir().unwrap();
    let authority = Authority::self_signed(own.path()).unwrap();
    let tls = ServerTls::load(&authority.certificate(), &authority.key(), Protocol::Http, served.clock.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(http::serve(listener, Some(Arc::new(tls)), axum::Router::new(), HttpLimits::default(), served.cancel.clone()));
    let told = handshake_error("It", &client(&authority.ca_file()).get(url).send().await.unwrap_err()).unwrap();
    assert!(told.message.contains("an authority's") && told.mend.contains("CA:FALSE"), "{told:?}");
    // the whole of 127.0.0.0/8 is this machine, and only one of its addresses is in the certificate
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let files = (served.authority.certificate(), served.authority.key());
    let tls = Arc::new(ServerTls::load(&files.0, &files.1, Protocol::Http, served.clock.clone()).unwrap());
    tokio::spawn(http::serve(listener, Some(tls), axum::Router::new(), HttpLimits::default(), served.cancel.clone()));
    let error = client(&served.authority.ca_file()).get(url).send().await.unwrap_err();
    let told = handshake_error("It", &error).unwrap();
    assert!(told.code == ErrorCode::Untrusted && told.message.contains("another name"), "{told}");
}

#[tokio::test]
async fn plain_http_is_told_and_closed() {
    let served = served(HttpLimits::default()).await;
    let answer = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = answer.post(format!("http://{}/peer", served.address)).body(vec![b'x'; 10_000]).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let error: Error = answer.json().await.unwrap();
    assert!(error.code == ErrorCode::InvalidArgument && error.mend.contains("https://"), "{error:?}");
    // what isn't HTTP either gets the same and an end
    let mut socket = served.socket().await;
    socket.write_all(b"CONNECT {}\r\nPING\r\n").await.unwrap();
    let mut all = String::new();
    timeout(SOON, socket.read_to_string(&mut all)).await.unwrap().unwrap();
    assert!(all.starts_with("HTTP/1.1 400 "), "{all}");
    // a beginning that only looks like TLS
    let mut socket = served.socket().await;
    socket.write_all(b"\x16GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(SOON, socket.read_to_end(&mut rest)).await.unwrap(); // an end, or a reset
    assert!(!rest.starts_with(b"HTTP"));
    // and a client that leaves at once
    drop(served.socket().await);
    let answer = client(&served.authority.ca_file()).get(served.url("/peer")).send().await.unwrap();
    assert_eq!(answer.status(), 200, "others don't notice");
}

#[tokio::test]
async fn tls_where_there_is_none_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let cancel = CancellationToken::new();
    tokio::spawn(http::serve(listener, None, axum::Router::new(), HttpLimits::default(), cancel.clone()));
    let _stop = cancel.drop_guard();
    let dir = tempfile::tempdir().unwrap();
    let error = client(&Authority::new(dir.path()).unwrap().ca_file()).get(url).send().await.unwrap_err();
    let told = handshake_error("The host", &error).unwrap();
    assert_eq!((told.code, told.message.as_str()), (ErrorCode::Unavailable, "The host doesn't speak TLS."));
}

/// Time is the test's own: it goes on only when nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_end_is_dropped_and_holds_up_nobody_else() {
    let limits = HttpLimits { connections: 3, ..HttpLimits::default() };
    let served = served(limits).await;
    let begin = Instant::now();
    let mut silent = served.socket().await;
    let mut half = served.socket().await;
    half.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap(); // the beginning of a ClientHello
    let mut good = served.encrypted(&[]).await.unwrap();
    good.write_all(b"GET /peer HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    good.read_exact(&mut first).await.unwrap();
    assert_eq!((&first, begin.elapsed().as_secs()), (b"HTTP/1.1 200 OK", 0), "they don't hold it up");
    // but they count: this one is let in when they are gone
    let mut next = served.encrypted(&[]).await.unwrap();
    assert_eq!(begin.elapsed().as_secs(), limits.handshake.as_secs());
    for stuck in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        let _ = stuck.read_to_end(&mut rest).await;
        assert_eq!(begin.elapsed().as_secs(), limits.handshake.as_secs());
    }
    next.write_all(b"GET /peer HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    next.read_to_end(&mut rest).await.unwrap(); // orderly: TLS says that it ends
    assert!(rest.starts_with(b"HTTP/1.1 200 OK"));
    // a head that doesn't come is bounded as it is without TLS
    let (mut slow, begin) = (served.encrypted(&[]).await.unwrap(), Instant::now());
    slow.write_all(b"GET /peer HT").await.unwrap();
    let _ = slow.read_to_end(&mut rest).await;
    assert_eq!(begin.elapsed().as_secs(), limits.head.as_secs());
}

#[tokio::test]
async fn a_renewed_certificate_is_used_by_who_comes_next() {
    let served = served(HttpLimits::default()).await;
    let mut old = served.encrypted(&[]).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let renewed = Authority::new(other.path()).unwrap();
    std::fs::copy(renewed.key(), served.authority.key()).unwrap();
    std::fs::copy(renewed.certificate(), served.authority.certificate()).unwrap();
    let by_new = client(&renewed.ca_file());
    assert!(by_new.get(served.url("/peer")).send().await.is_err(), "not looked at yet");
    served.clock.advance(Duration::from_secs(5));
    assert_eq!(by_new.get(served.url("/peer")).send().await.unwrap().status(), 200);
    assert!(served.encrypted(&[]).await.is_err());
    old.write_all(b"GET /peer HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "who is there stays");
}

#[tokio::test]
async fn a_shutdown_lets_requests_end_and_drops_handshakes() {
    let served = served(HttpLimits { drain: SOON, ..HttpLimits::default() }).await;
    let mut stuck = served.socket().await;
    stuck.write_all(b"\x16\x03\x01").await.unwrap();
    let asking = client(&served.authority.ca_file()).get(served.url("/slow")).send();
    let asking = tokio::spawn(asking);
    timeout(SOON, served.slow.0.notified()).await.unwrap();
    served.cancel.cancel();
    let mut rest = Vec::new();
    let _ = timeout(SOON, stuck.read_to_end(&mut rest)).await.unwrap();
    assert!(!served.task.is_finished(), "a request is under way");
    served.slow.1.notify_one();
    assert_eq!(asking.await.unwrap().unwrap().text().await.unwrap(), "at last");
    timeout(SOON, served.task).await.unwrap().unwrap();
}

/// Lets everyone do everything.
struct Open;

impl Authenticator for Open {
    fn connect(&self, _: &Credentials) -> Result<Vec<Grant>, Error> {
        let all = || vec![">".to_owned()];
        let permissions = Permissions { publish: all(), subscribe: all(), ..Permissions::default() };
        Ok(vec![Grant { key: "all".into(), permissions, account: None, expires_at: None }])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_over_an_encrypted_websocket() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let clock = TestClock::at(Timestamp::from_millis(0));
    let tls = Arc::new(ServerTls::load(&authority.certificate(), &authority.key(), Protocol::Http, clock.clone()).unwrap());
    let router = Router::new(BusLimits::default(), clock);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://localhost:{}/bus", listener.local_addr().unwrap().port());
    let cancel = CancellationToken::new();
    tokio::spawn(router.serve_websocket_tcp(listener, Some(tls), Arc::new(Open), cancel.clone()));
    let _stop = cancel.drop_guard();

    let ours = ConnectOptions::new().tls_client_config(client_config(Trust::System(Some(&authority.ca_file()))).unwrap());
    let ours = stock::connect(&url, ours).await.unwrap();
    let published = ConnectOptions::new().add_root_certificates(authority.ca_file()).connect(&url).await.unwrap();
    let mut heard = ours.subscribe("a.>", None).await.unwrap();
    for size in [0, 1, 5000, 900_000] {
        published.publish("a.b", vec![7; size].into()).await.unwrap();
        let message = timeout(SOON, heard.next()).await.unwrap().unwrap();
        assert!(message.payload.len() == size && message.payload.iter().all(|byte| *byte == 7));
    }
    let mut asked = ours.subscribe("ask", None).await.unwrap();
    let asking = tokio::spawn(async move { published.request("ask", "question".into()).await });
    let question = timeout(SOON, asked.next()).await.unwrap().unwrap();
    ours.publish(Message::new(question.reply.unwrap(), "answer")).await.unwrap();
    assert_eq!(timeout(SOON, asking).await.unwrap().unwrap().unwrap().payload, "answer");

    let error = stock::connect(&url, ConnectOptions::new()).await.unwrap_err();
    assert!(error.code == ErrorCode::Untrusted && error.message.contains(&url), "{error}");
    let plain = url.replace("wss", "ws");
    assert_eq!(stock::connect(&plain, ConnectOptions::new()).await.unwrap_err().code, ErrorCode::Unavailable);
}
