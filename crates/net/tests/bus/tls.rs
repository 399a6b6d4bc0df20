//! The bus over TLS: the published client as it is, bytes by hand, certificates that change.

use std::{sync::Arc, time::Duration};

use async_nats::ConnectOptions;
use atoll_net::{
    bus::BusLimits,
    tls::{Protocol, ServerTls},
};
use futures_util::StreamExt;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::support::{Auth, Bus, Raw, SOON, bus, open_bus};

/// A bus that is served over TLS, with a certificate for localhost.
struct Served {
    bus: Bus,
    port: u16,
    directory: TempDir,
}

fn write_certificate(directory: &TempDir) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for (name, text) in [("cert.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())] {
        std::fs::write(directory.path().join("new"), text).unwrap();
        std::fs::rename(directory.path().join("new"), directory.path().join(name)).unwrap();
    }
}

async fn served(bus: Bus) -> Served {
    let directory = tempfile::tempdir().unwrap();
    write_certificate(&directory);
    let path = |name| directory.path().join(name);
    let tls = Arc::new(ServerTls::load(&path("cert.pem"), &path("key.pem"), Protocol::Nats, bus.clock.clone()).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(bus.router.serve_tls(listener, tls, bus.auth.clone(), bus.cancel.clone()));
    Served { bus, port, directory }
}

impl Served {
    fn options(&self) -> ConnectOptions {
        ConnectOptions::new().add_root_certificates(self.directory.path().join("cert.pem"))
    }

    fn url(&self) -> String {
        format!("nats://localhost:{}", self.port)
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.directory.path().join("cert.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_client_in_both_ways() {
    let served = served(open_bus()).await;
    for options in [served.options(), served.options().require_tls(true), served.options().tls_first()] {
        let client = options.connect(served.url()).await.unwrap();
        let mut messages = client.subscribe("a.>").await.unwrap();
        let large = vec![7u8; 900_000];
        for n in 0..20u8 {
            let payload = if n % 2 == 0 { large.clone() } else { vec![n] };
            client.publish(format!("a.{n}"), payload.clone().into()).await.unwrap();
            let message = tokio::time::timeout(SOON, messages.next()).await.unwrap().unwrap();
            assert!(message.payload == payload && message.subject.as_str() == format!("a.{n}"));
        }
        let none = client.request("nobody", "".into()).await.unwrap_err();
        assert_eq!(none.kind(), async_nats::RequestErrorKind::NoResponders);
        client.drain().await.unwrap();
    }
    // one that doesn't trust the certificate
    assert!(ConnectOptions::new().connect(served.url()).await.is_err());
}

#[tokio::test]
async fn info_comes_in_the_clear_and_only_info() {
    let served = served(open_bus()).await;
    let mut raw = Raw::new(served.socket().await);
    let info = raw.line().await.unwrap();
    assert!(info.contains("\"tls_required\":true"), "{info}");
    let name = ServerName::try_from("localhost").unwrap();
    let mut raw = Raw::new(served.connector().connect(name.clone(), raw.io).await.unwrap());
    raw.send("CONNECT {\"verbose\":false}\r\nPING\r\n").await;
    raw.expect(&["PONG"]).await; // no second INFO

    // the handshake first: then INFO is encrypted
    let mut raw = Raw::new(served.connector().connect(name, served.socket().await).await.unwrap());
    raw.connect("").await;
}

#[tokio::test]
async fn a_client_that_stays_plain_is_told() {
    let served = served(open_bus()).await;
    let mut raw = Raw::new(served.socket().await);
    raw.line().await.unwrap();
    raw.send("CONNECT {}\r\nPING\r\n").await;
    raw.expect(&["-ERR 'Secure Connection - TLS Required'"]).await;
    raw.expect_end().await;
    // also one that doesn't wait for INFO
    let mut raw = Raw::new(served.socket().await);
    raw.send("CONNECT {}\r\nPING\r\n").await;
    assert!(raw.line().await.unwrap().starts_with("INFO {"));
    raw.expect(&["-ERR 'Secure Connection - TLS Required'"]).await;
    raw.expect_end().await;
    assert_eq!(served.bus.router.stats().connections, 0);
}

#[tokio::test]
async fn nobody_may_take_all_day_for_the_handshake() {
    let limits =
        BusLimits { connect_timeout: Duration::from_millis(150), close_timeout: Duration::from_millis(50), ..BusLimits::default() };
    let served = served(bus(limits, Arc::new(Auth::default()))).await;
    let mut silent = Raw::new(served.socket().await);
    silent.line().await.unwrap();
    silent.expect_end().await;
    let mut half = Raw::new(served.socket().await);
    half.send("\u{16}\u{3}\u{1}").await; // the beginning of a record
    half.expect_end().await;
    let mut rubbish = Raw::new(served.socket().await);
    rubbish.send("\u{16}rubbish that is no handshake\r\n").await;
    while rubbish.line().await.is_some() {}
    crate::support::until("all are gone", async || served.bus.router.stats().connections == 0).await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_without_a_restart() {
    let served = served(open_bus()).await;
    let old = served.options().connect(served.url()).await.unwrap();
    write_certificate(&served.directory);
    assert!(served.options().connect(served.url()).await.is_err(), "not looked at yet");
    served.bus.clock.advance(Duration::from_secs(5));
    let new = served.options().connect(served.url()).await.unwrap();
    for client in [old, new] {
        client.flush().await.unwrap(); // the old connection lives on
    }
}
