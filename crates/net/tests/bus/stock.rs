//! The published client, unchanged, against the bus: what goes beyond the suite that all connections pass.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{ConnectOptions, Event, connection::State};
use atoll_contract::ErrorCode;
use atoll_net::bus::{BusLimits, Conn, Message, client, stock};
use futures_util::StreamExt;

use crate::support::{ANYONE, Auth, Bus, LIMITED, SOON, bus, open_bus, two_tokens, until};

/// Connects and keeps what the client is told.
async fn watched(url: &str, options: ConnectOptions) -> (async_nats::Client, Arc<Mutex<Vec<String>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let note = move |event: Event| {
        let sink = sink.clone();
        async move { sink.lock().unwrap().push(event.to_string()) }
    };
    (options.event_callback(note).connect(url).await.unwrap(), events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_connects_again_with_its_subscriptions_over_tcp() {
    let bus = bus(BusLimits::default(), two_tokens());
    reconnects(&bus, &bus.tcp().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_connects_again_with_its_subscriptions_over_websocket() {
    let bus = bus(BusLimits::default(), two_tokens());
    reconnects(&bus, &bus.websocket().await).await;
}

async fn reconnects(bus: &Bus, url: &str) {
    let (client, events) = watched(url, ConnectOptions::with_token(ANYONE.into())).await;
    let mut all = client.subscribe("a.>").await.unwrap();
    let mut group = client.queue_subscribe("a.>", "q".into()).await.unwrap();
    client.request("nobody", "".into()).await.unwrap_err();
    for round in 0..3 {
        let id = bus.router.connections()[0].id;
        assert_eq!(bus.router.close_grant(ANYONE), 1);
        until("it is back", async || {
            bus.router.connections().iter().any(|connection| connection.id != id && connection.subscriptions >= 2)
        })
        .await;
        let publisher = bus.router.connect("publisher", None);
        publisher.publish(atoll_net::bus::Message::new("a.b", round.to_string())).await.unwrap();
        for subscription in [&mut all, &mut group] {
            let message = tokio::time::timeout(SOON, subscription.next()).await.unwrap().unwrap();
            assert_eq!(message.payload, round.to_string());
        }
    }
    until("it was told why", async || events.lock().unwrap().iter().any(|event| event.contains("User Authentication Revoked"))).await;
    assert_eq!(client.connection_state(), State::Connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_message_is_refused_and_told() {
    let bus = bus(BusLimits { max_payload: 1000, ..BusLimits::default() }, Arc::default());
    let url = bus.tcp().await;
    let client = async_nats::connect(&url).await.unwrap();
    assert_eq!(client.max_payload(), 1000);
    assert_eq!(
        client.publish("a", vec![0; 1001].into()).await.unwrap_err().kind(),
        async_nats::client::PublishErrorKind::MaxPayloadExceeded
    );
    // one that doesn't look at INFO
    let mut raw = crate::support::Raw::new(tokio::net::TcpStream::connect(url.trim_start_matches("nats://")).await.unwrap());
    raw.connect("").await;
    raw.send(&format!("PUB a 100000\r\n{}", "x".repeat(50_000))).await;
    raw.expect(&["-ERR 'Maximum Payload Violation'"]).await;
    raw.expect_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn violations_reach_the_client() {
    let bus = bus(BusLimits::default(), two_tokens());
    let options = ConnectOptions::with_token("limited".into()).custom_inbox_prefix("_INBOX.lim");
    let (client, events) = watched(&bus.tcp().await, options).await;
    client.publish("closed", "".into()).await.unwrap();
    let _subscription = client.subscribe("closed").await.unwrap();
    let told = async || {
        let events = events.lock().unwrap().join("\n");
        events.contains("Permissions Violation for Publish to \"closed\"")
            && events.contains("Permissions Violation for Subscription to \"closed\"")
    };
    until("both violations", told).await;
    assert_eq!(client.connection_state(), State::Connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_inbox_is_said_at_once() {
    let bus = bus(BusLimits::default(), two_tokens());
    let options = ConnectOptions::with_token(LIMITED.into()).custom_inbox_prefix("_INBOX.of_an_earlier_token");
    let conn = stock::connect(&bus.tcp().await, options).await.unwrap();
    let asked = conn.request(Message::new("open.a", ""), 2 * SOON);
    let error = tokio::time::timeout(SOON, asked).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nkeys_prove_who_connects() {
    let key = nkeys::KeyPair::new_user();
    let bus = bus(BusLimits::default(), Arc::new(Auth { nkey: Some(key.public_key()), ..Auth::default() }));
    let (tcp, ws) = (bus.tcp().await, bus.websocket().await);
    for url in [&tcp, &ws] {
        stock::connect(url, ConnectOptions::with_nkey(key.seed().unwrap())).await.unwrap();
        let other = nkeys::KeyPair::new_user().seed().unwrap();
        let error = stock::connect(url, ConnectOptions::with_nkey(other)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }
    let options = |seed| client::Options { nkey_seed: Some(seed), ..client::Options::default() };
    client::connect(bus.pipe(4096), options(key.seed().unwrap())).await.unwrap();
    let other = nkeys::KeyPair::new_user().seed().unwrap();
    let error = client::connect(bus.pipe(4096), options(other)).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    let error = client::connect(bus.pipe(4096), options("SUNOSEED".into())).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_tells_and_closes() {
    let bus = open_bus();
    let url = bus.tcp().await;
    let (client, events) = watched(&url, ConnectOptions::new().retry_on_initial_connect()).await;
    until("connected", async || bus.router.stats().connections == 1).await;
    client.flush().await.unwrap();
    let mut raw = bus.connected("").await;
    tokio::time::timeout(SOON, bus.router.drain(Duration::from_secs(5))).await.unwrap();
    let info = raw.line().await.unwrap();
    assert!(info.starts_with("INFO ") && info.contains("\"ldm\":true"), "{info}");
    raw.expect_end().await;
    assert_eq!(bus.router.stats().connections, 0);
    until("the client knows", async || events.lock().unwrap().iter().any(|event| event.contains("lame duck"))).await;
    let mut late = bus.raw();
    late.expect(&["-ERR 'Server Shutdown'"]).await;
}
