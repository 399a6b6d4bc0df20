//! Beginnings and ends of connections, and what is known of them.

use std::{sync::Arc, time::Duration};

use atoll_contract::ErrorCode;
use atoll_net::bus::{BusLimits, Conn, Message, client};

use crate::support::{ANYONE, SOON, bus, grant, open_bus, two_tokens, until};

#[tokio::test]
async fn what_is_there_is_known() {
    let bus = bus(BusLimits::default(), two_tokens());
    let mut raw = bus.connected(ANYONE).await;
    raw.send("SUB a 1\r\nSUB a q 2\r\nPUB a 5\r\nhello\r\n").await;
    raw.expect(&["MSG a 1 5", "hello", "MSG a 2 5", "hello"]).await;
    let views = bus.router.connections();
    let view = &views[0];
    assert_eq!((view.name.as_str(), view.peer.as_str(), view.subscriptions, views.len()), ("raw", "pipe", 2, 1));
    assert_eq!(view.grants, [grant(ANYONE, &[], &[], None).key]);
    let stats = bus.router.stats();
    assert_eq!((stats.connections, stats.subscriptions, stats.in_messages, stats.in_bytes, stats.out_messages), (1, 2, 1, 5, 2));
    assert_eq!(stats.out_bytes, 10);
    drop(raw);
    until("it has left", async || bus.router.stats().connections == 0).await;
    assert_eq!((bus.router.stats().subscriptions, bus.router.stats().out_messages), (0, 2));
}

#[tokio::test]
async fn a_cancelled_server_writes_what_waits() {
    let bus = open_bus();
    let mut raw = bus.connected("").await;
    raw.send("SUB a 1\r\n").await;
    raw.round_trip().await;
    bus.router.connect("x", None).publish(Message::new("a", "last")).await.unwrap();
    bus.cancel.cancel();
    raw.expect(&["MSG a 1 4", "last"]).await;
    raw.expect_end().await;
    until("it is gone", async || bus.router.stats().connections == 0).await;
}

#[tokio::test]
async fn a_dropped_server_future_leaves_nothing_behind() {
    let bus = open_bus();
    let (ours, theirs) = tokio::io::duplex(1024);
    let task = tokio::spawn(bus.router.serve(theirs, "x".into(), bus.auth.clone(), bus.cancel.clone()));
    let mut raw = crate::support::Raw::new(ours);
    raw.connect("").await;
    raw.send("SUB a 1\r\n").await;
    raw.round_trip().await;
    assert_eq!(bus.router.stats().subscriptions, 1);
    task.abort();
    raw.expect_end().await;
    until("nothing is left", async || bus.router.stats().subscriptions == 0 && bus.router.stats().connections == 0).await;
}

#[tokio::test]
async fn too_many_subscriptions_in_all_are_refused_and_freed_ones_can_be_had_again() {
    let bus = bus(BusLimits { subscriptions: 3, ..BusLimits::default() }, Arc::default());
    let conn = bus.router.connect("x", None); // one for its inbox
    let first = conn.subscribe("a", None).await.unwrap();
    let _second = conn.subscribe("b", None).await.unwrap();
    assert_eq!(conn.subscribe("c", None).await.unwrap_err().code, ErrorCode::LimitExceeded);
    let mut raw = bus.connected("").await;
    raw.send("SUB c 1\r\n").await;
    raw.expect(&["-ERR 'maximum subscriptions exceeded'"]).await;
    drop(first);
    raw.send("SUB c 1\r\n").await;
    raw.round_trip().await;
    drop(conn);
    assert_eq!(bus.router.stats().subscriptions, 2);
}

#[tokio::test]
async fn our_client_knows_when_and_why_its_connection_ended() {
    let bus = bus(BusLimits::default(), two_tokens());
    let connect = async || {
        let options = client::Options { token: Some(ANYONE.into()), ..client::Options::default() };
        client::connect(bus.pipe(4096), options).await.unwrap()
    };
    let client = connect().await;
    let mut subscription = client.subscribe("a", None).await.unwrap();
    let _silent = bus.router.connect("x", None).subscribe("silent", None).await.unwrap();
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.request(Message::new("silent", ""), SOON).await }
    });
    until("it has asked", async || bus.router.connections()[0].subscriptions == 2).await;
    bus.router.close_grant(ANYONE);
    let reason = tokio::time::timeout(SOON, client.closed()).await.unwrap();
    assert_eq!(reason.code, ErrorCode::Unauthenticated);
    assert_eq!(subscription.next().await, None);
    assert_eq!(asked.await.unwrap().unwrap_err().code, ErrorCode::Unauthenticated);
    assert_eq!(client.publish(Message::new("a", "")).await.unwrap_err().code, ErrorCode::Unauthenticated);
    assert_eq!(client.subscribe("a", None).await.unwrap_err().code, ErrorCode::Unauthenticated);
    assert_eq!(client.request(Message::new("a", ""), SOON).await.unwrap_err().code, ErrorCode::Unauthenticated);

    let client = connect().await;
    client.publish(Message::new("a", "")).await.unwrap();
    client.close().await;
    assert_eq!(client.closed().await.code, ErrorCode::Unavailable);
    drop(connect().await); // dropping the last handle closes as well
    until("all have left", async || bus.router.stats().connections == 0).await;
}

#[tokio::test]
async fn our_client_gives_up_on_a_server_that_is_none() {
    let options = || client::Options { connect_timeout: Duration::from_millis(50), ..client::Options::default() };
    let (silent, _held) = tokio::io::duplex(64);
    assert_eq!(client::connect(silent, options()).await.err().unwrap().code, ErrorCode::TimedOut);
    let (closed, other) = tokio::io::duplex(64);
    drop(other);
    assert_eq!(client::connect(closed, options()).await.err().unwrap().code, ErrorCode::Unavailable);
    let (http, mut other) = tokio::io::duplex(64);
    tokio::io::AsyncWriteExt::write_all(&mut other, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    assert_eq!(client::connect(http, options()).await.err().unwrap().code, ErrorCode::Unavailable);
    let bus = bus(BusLimits::default(), two_tokens());
    let error = client::connect(bus.pipe(64), client::Options::default()).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn our_client_notices_a_server_that_fell_silent() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let mut server = crate::support::Raw::new(theirs);
    let options = client::Options { ping_interval: Duration::from_secs(3), ..client::Options::default() };
    let connecting = tokio::spawn(client::connect(ours, options));
    server.send("INFO {\"server_id\":\"x\"}\r\n").await;
    assert!(server.line().await.unwrap().starts_with("CONNECT {"));
    server.expect(&["PING"]).await;
    server.send("PONG\r\n").await;
    let client = connecting.await.unwrap().unwrap();
    server.expect(&["PING", "PING"]).await;
    assert_eq!(client.closed().await.code, ErrorCode::Unavailable);
}
