//! The protocol by hand: what the server says to what bytes.

use std::time::Duration;

use atoll_net::bus::BusLimits;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite;

use crate::support::{Auth, LIMITED, Raw, SOON, bus, open_bus, two_tokens};

#[tokio::test]
async fn a_conversation() {
    let bus = open_bus();
    let mut raw = bus.connected("").await;
    raw.send("SUB a.* 1\r\nSUB a.b q 2\r\nPUB a.b 5\r\nhello\r\n").await;
    raw.expect(&["MSG a.b 1 5", "hello", "MSG a.b 2 5", "hello"]).await;
    raw.send("unsub 2\r\nhpub a.b r 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n").await;
    raw.expect(&["HMSG a.b 1 r 18 20", "NATS/1.0", "A: b", "", "hi"]).await;
    raw.send("PUB nobody _INBOX.1 0\r\n\r\nSUB _INBOX.* 3\r\nPUB nobody _INBOX.1 0\r\n\r\n").await;
    raw.expect(&["HMSG _INBOX.1 3 16 16", "NATS/1.0 503", "", ""]).await;
    raw.round_trip().await;
}

#[tokio::test]
async fn verbose_gets_ok_and_no_echo_gets_nothing_of_its_own() {
    let bus = open_bus();
    let (mut raw, mut other) = (bus.raw(), bus.connected("").await);
    raw.line().await;
    raw.send("CONNECT {\"echo\":false,\"headers\":false}\r\nSUB a 1\r\nPUB a 0\r\n\r\nUNSUB 9\r\nPING\r\n").await;
    raw.expect(&["+OK", "+OK", "+OK", "+OK", "PONG"]).await;
    // who takes no headers gets the message without them, and can't send any
    other.send("HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n").await;
    raw.expect(&["MSG a 1 2", "hi"]).await;
    raw.send("HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n").await;
    raw.expect(&["-ERR 'message headers not supported'"]).await;
    raw.expect_end().await;
}

#[tokio::test]
async fn unsub_with_max_counts_from_the_beginning() {
    let bus = open_bus();
    let mut raw = bus.connected("").await;
    raw.send("SUB a 1\r\nPUB a 1\r\n1\r\nUNSUB 1 3\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\nPUB a 1\r\n4\r\nPING\r\n").await;
    raw.expect(&["MSG a 1 1", "1", "MSG a 1 1", "2", "MSG a 1 1", "3", "PONG"]).await;
    raw.send("SUB a 2\r\nPUB a 1\r\n5\r\nUNSUB 2 1\r\nPUB a 1\r\n6\r\nPING\r\n").await;
    raw.expect(&["MSG a 2 1", "5", "PONG"]).await;
    assert_eq!(bus.router.stats().subscriptions, 0);
}

#[tokio::test]
async fn an_open_bus_needs_no_connect() {
    let bus = bus(BusLimits::default(), std::sync::Arc::new(Auth { open: true, ..Auth::default() }));
    let mut raw = bus.raw();
    assert!(raw.line().await.unwrap().contains("\"auth_required\":false"));
    raw.send("SUB a 1\r\nPUB a 2\r\nhi\r\n").await;
    raw.expect(&["+OK", "+OK", "MSG a 1 2", "hi"]).await;
}

#[tokio::test]
async fn what_is_malformed_is_told_and_closed() {
    let limits = BusLimits { max_payload: 100, max_control_line: 300, ..BusLimits::default() };
    let unknown = "Unknown Protocol Operation";
    for (bytes, error) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), unknown),
        ("NONSENSE".into(), unknown),
        ("PUB a\r\n".into(), unknown),
        ("PUB a x\r\n".into(), unknown),
        ("PUB a 1\r\nxx\r\n".into(), unknown),
        ("PUB a 18446744073709551617\r\n".into(), unknown),
        ("HPUB a 9 3\r\nabc\r\n".into(), unknown),
        ("CONNECT {\r\n".into(), unknown),
        ("CONNECT [1,2\r\n".into(), unknown),
        ("\0\u{1}\u{2}".into(), unknown),
        ("PUB a 101\r\n".into(), "Maximum Payload Violation"),
        (format!("HPUB a 101 101\r\n{}", "x".repeat(50)), "Maximum Payload Violation"),
        (format!("SUB {} 1\r\n", "x".repeat(300)), "maximum control line exceeded"),
        (format!("PUB {}", "x".repeat(600)), "maximum control line exceeded"),
    ] {
        let bus = bus(limits.clone(), std::sync::Arc::default());
        let mut raw = bus.connected("").await;
        let mut other = bus.connected("").await;
        raw.send(&bytes).await;
        assert_eq!(raw.line().await, Some(format!("-ERR '{error}'")), "{bytes:?}");
        raw.expect_end().await;
        other.round_trip().await;
    }
}

#[tokio::test]
async fn what_is_only_refused_leaves_the_connection_as_it_was() {
    let limits = BusLimits { subject_tokens: 3, subscriptions_per_connection: 2, ..BusLimits::default() };
    let bus = bus(limits, std::sync::Arc::default());
    let mut raw = bus.connected("").await;
    for (bytes, error) in [
        ("PUB a.* 1\r\nx\r\n", "Invalid Publish Subject"),
        ("PUB a..b 0\r\n\r\n", "Invalid Publish Subject"),
        ("PUB a.b.c.d 0\r\n\r\n", "Invalid Publish Subject"),
        ("PUB a r.* 0\r\n\r\n", "Invalid Reply Subject"),
        ("HPUB a 4 4\r\nabcd\r\n", "Invalid Message Headers"),
        ("SUB a.>.b 1\r\n", "Invalid Subject"),
        ("SUB .a 1\r\n", "Invalid Subject"),
        ("SUB a.b.c.d 1\r\n", "Invalid Subject"),
        ("SUB a 1\r\nSUB b 2\r\nSUB c 3\r\n", "maximum subscriptions exceeded"),
        ("SUB again 1\r\nSUB c 4\r\n", "maximum subscriptions exceeded"),
    ] {
        raw.send(bytes).await;
        assert_eq!(raw.line().await, Some(format!("-ERR '{error}'")), "{bytes:?}");
    }
    raw.send("PUB a 2\r\nhi\r\nPUB again 0\r\n\r\n").await;
    raw.expect(&["MSG a 1 2", "hi"]).await;
    raw.round_trip().await;
    // bytes that aren't text
    raw.io.write_all(b"PUB \xff\xfe 0\r\n\r\nSUB \xff 9\r\nPUB a \xff 0\r\n\r\n").await.unwrap();
    raw.expect(&["-ERR 'Invalid Publish Subject'", "-ERR 'Invalid Subject'", "-ERR 'Invalid Reply Subject'"]).await;
}

#[tokio::test]
async fn permissions_both_ways() {
    let bus = bus(BusLimits::default(), two_tokens());
    let mut raw = bus.connected(LIMITED).await;
    raw.send("PUB closed 0\r\n\r\nSUB closed 1\r\nSUB > 2\r\nSUB * q 3\r\nPUB open.a closed 0\r\n\r\n").await;
    raw.expect(&[
        "-ERR 'Permissions Violation for Publish to \"closed\"'",
        "-ERR 'Permissions Violation for Subscription to \"closed\"'",
        "-ERR 'Permissions Violation for Subscription to \">\"'",
        "-ERR 'Permissions Violation for Subscription to \"*\" using queue \"q\"'",
        "-ERR 'Permissions Violation for Publish with Reply of \"closed\"'",
    ])
    .await;
    raw.send("SUB open.> 4\r\nPUB open.a open.b 2\r\nhi\r\n").await;
    raw.expect(&["MSG open.a 4 open.b 2", "hi"]).await;
}

#[tokio::test]
async fn who_has_no_right_to_be_here_is_told_only_that() {
    let bus = bus(BusLimits::default(), two_tokens());
    for bytes in
        ["CONNECT {}\r\n", "CONNECT {\"auth_token\":\"wrong\"}\r\n", "CONNECT {\"auth_token\":null}\r\n", "PING\r\n", "SUB > 1\r\n"]
    {
        let mut raw = bus.raw();
        raw.line().await;
        raw.send(bytes).await;
        raw.expect(&["-ERR 'Authorization Violation'"]).await;
        raw.expect_end().await;
    }
    let mut raw = bus.raw();
    raw.line().await;
    raw.send("CONNECT {\"jwt\":\"limited\"}\r\nPING\r\n").await;
    raw.expect(&["+OK", "PONG"]).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_not_waited_for() {
    let bus = open_bus();
    let mut raw = bus.raw();
    raw.line().await;
    let began = tokio::time::Instant::now();
    raw.expect(&["-ERR 'Authentication Timeout'"]).await;
    raw.expect_end().await;
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_pings_is_stale() {
    let bus = bus(BusLimits { ping_interval: Duration::from_secs(3), ..BusLimits::default() }, std::sync::Arc::default());
    let mut raw = bus.connected("").await;
    raw.expect(&["PING"]).await;
    raw.send("PONG\r\n").await;
    raw.expect(&["PING", "PING", "-ERR 'Stale Connection'"]).await;
    raw.expect_end().await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_told() {
    let bus = bus(BusLimits { connections: 1, ..BusLimits::default() }, std::sync::Arc::default());
    let first = bus.connected("").await;
    let mut second = bus.raw();
    second.expect(&["-ERR 'maximum connections exceeded'"]).await;
    second.expect_end().await;
    drop(first);
    crate::support::until("the first has left", async || bus.router.stats().connections == 0).await;
    bus.connected("").await;
}

#[tokio::test]
async fn bytes_come_in_any_pieces() {
    let bus = open_bus();
    let mut raw = Raw::new(bus.pipe(3));
    raw.connect("").await;
    raw.send("SUB a.b 7\r\nPUB a.b r 11\r\nhello\r\nworl\r\n").await;
    raw.expect(&["MSG a.b 7 r 11", "hello", "worl"]).await;
}

/// As the JavaScript client does it: each frame has any piece of the stream, and some frames are text.
#[tokio::test]
async fn websocket_frames_hold_any_piece_of_the_stream() {
    let bus = open_bus();
    let url = bus.websocket().await;
    let (mut socket, _) = tokio_tungstenite::connect_async(url.as_str()).await.unwrap();
    let text = "CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPUB a 5\r\nhello\r\nPING\r\n";
    for byte in text.chars() {
        socket.send(tungstenite::Message::text(byte.to_string())).await.unwrap();
    }
    let rest = format!("{}PING\r\n", "PUB a 1\r\nx\r\n".repeat(1000));
    socket.send(tungstenite::Message::binary(rest)).await.unwrap();
    socket.send(tungstenite::Message::binary(Vec::new())).await.unwrap();
    socket.send(tungstenite::Message::Ping("p".into())).await.unwrap();
    let mut got = Vec::new();
    let read = async {
        while !got.ends_with(b"MSG a 1 1\r\nx\r\nPONG\r\n") {
            match socket.next().await.unwrap().unwrap() {
                tungstenite::Message::Binary(bytes) => got.extend_from_slice(&bytes),
                tungstenite::Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(SOON, read).await.unwrap();
    let got = String::from_utf8(got).unwrap();
    assert_eq!(got.matches("MSG a 1 1\r\nx\r\n").count(), 1000);
    assert!(got.contains("MSG a 1 5\r\nhello\r\nPONG\r\n"));
    socket.send(tungstenite::Message::binary(vec![b'x'; 3 << 20])).await.ok();
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(SOON, end).await.expect("a frame beyond the bounds ends the connection");
}
