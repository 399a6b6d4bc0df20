//! Receivers that don't keep up.

use std::time::Duration;

use atoll_net::bus::{BusLimits, Message, client, stock};
use tokio::io::AsyncReadExt;

use crate::support::{Raw, SOON, bus, until};

const PENDING: usize = 1 << 20;

fn limits() -> BusLimits {
    BusLimits { max_payload: 64 << 10, pending_bytes: PENDING, stall: Duration::from_millis(1), ..BusLimits::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_consumer_is_told_and_dropped_and_others_notice_nothing() {
    let bus = bus(limits(), std::sync::Arc::default());
    let mut slow = Raw::new(bus.pipe(16 << 10));
    slow.connect("").await;
    slow.send("SUB flood 1\r\n").await;
    slow.round_trip().await;
    let healthy = stock::connect(&bus.tcp().await, async_nats::ConnectOptions::new()).await.unwrap();
    let mut received = atoll_net::bus::Conn::subscribe(&healthy, "flood", None).await.unwrap();

    let publisher = bus.router.connect("publisher", None);
    let payload = bytes::Bytes::from(vec![b'x'; 16 << 10]);
    for round in 0..64 {
        for _ in 0..8 {
            publisher.publish(Message::new("flood", payload.clone())).await.unwrap();
        }
        for _ in 0..8 {
            let message = tokio::time::timeout(SOON, received.next()).await.unwrap().unwrap();
            assert_eq!(message.payload, payload, "round {round}");
        }
        for connection in bus.router.connections() {
            assert!(connection.pending_bytes <= PENDING + 100, "{connection:?}");
        }
    }
    until("the slow one is gone", async || bus.router.stats().connections == 1).await;
    assert_eq!(bus.router.stats().slow_consumers, 1);

    let mut rest = Vec::new();
    tokio::time::timeout(SOON, slow.io.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.len() < 2 * PENDING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_reads_again_in_time_reads_why() {
    let bus = bus(BusLimits { close_timeout: SOON, ..limits() }, std::sync::Arc::default());
    let mut slow = Raw::new(bus.pipe(16 << 10));
    slow.connect("").await;
    slow.send("SUB flood 1\r\n").await;
    slow.round_trip().await;
    let publisher = bus.router.connect("publisher", None);
    while bus.router.stats().slow_consumers == 0 {
        publisher.publish(Message::new("flood", vec![b'x'; 16 << 10])).await.unwrap();
    }
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, slow.io.read_to_end(&mut rest)).await.unwrap().unwrap();
    let text = String::from_utf8(rest).unwrap();
    assert!(text.ends_with("x\r\n-ERR 'Slow Consumer'\r\n"), "{}", &text[text.len() - 100..]);
    // whole messages before it
    let body = text.strip_suffix("-ERR 'Slow Consumer'\r\n").unwrap();
    assert_eq!(body.len() % ("MSG flood 1 16384\r\n".len() + (16 << 10) + 2), 0);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_takes_nothing_is_given_up() {
    let bus = bus(limits(), std::sync::Arc::default());
    let mut stuck = Raw::new(bus.pipe(1024));
    stuck.connect("").await;
    stuck.send("SUB a 1\r\n").await;
    stuck.round_trip().await;
    let publisher = bus.router.connect("publisher", None);
    publisher.publish(Message::new("a", vec![0; 10_000])).await.unwrap();
    until("it is gone", async || bus.router.stats().connections == 0).await;
    assert_eq!(bus.router.stats().slow_consumers, 1);
}

#[tokio::test]
async fn a_subscription_in_process_that_is_not_read_ends_visibly() {
    let bus = bus(BusLimits { pending_messages: 100, ..limits() }, std::sync::Arc::default());
    let conn = bus.router.connect("a", None);
    let mut unread = conn.subscribe("a", None).await.unwrap();
    let mut other = conn.subscribe("a", None).await.unwrap();
    for n in 0..150u8 {
        conn.publish(Message::new("a", vec![n])).await.unwrap();
        assert_eq!(other.next().await.unwrap().payload[0], n);
    }
    for n in 0..100u8 {
        assert_eq!(unread.next().await.unwrap().payload[0], n);
    }
    assert_eq!(unread.next().await, None);
    assert_eq!((bus.router.stats().slow_consumers, bus.router.stats().subscriptions), (1, 2), "the other one and the inbox");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_of_our_client_that_is_not_read_ends_alone() {
    let bus = bus(limits(), std::sync::Arc::default());
    let options = client::Options { subscription_messages: 10, ..client::Options::default() };
    let client = client::connect(bus.pipe(64 << 10), options).await.unwrap();
    let conn: &dyn atoll_net::bus::Conn = &client;
    let mut unread = conn.subscribe("a", None).await.unwrap();
    let publisher = bus.router.connect("publisher", None);
    for n in 0..20u8 {
        publisher.publish(Message::new("a", vec![n])).await.unwrap();
    }
    let mut count = 0;
    until("only our inbox is subscribed to", async || bus.router.stats().subscriptions == 1).await;
    while unread.next().await.is_some() {
        count += 1;
    }
    assert_eq!(count, 10);
    let mut again = conn.subscribe("a", None).await.unwrap();
    publisher.publish(Message::new("a", "x")).await.unwrap();
    assert_eq!(again.next().await.unwrap().payload, "x");
}

/// A connection that publishes to itself and reads nothing must neither hang the server nor grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_itself_is_dropped() {
    let bus = bus(limits(), std::sync::Arc::default());
    let mut raw = Raw::new(bus.pipe(16 << 10));
    raw.connect("").await;
    raw.send("SUB a 1\r\n").await;
    let flood = format!("PUB a 1000\r\n{}\r\n", "x".repeat(1000)).repeat(5000);
    let write = async { tokio::io::AsyncWriteExt::write_all(&mut raw.io, flood.as_bytes()).await };
    let _ = tokio::time::timeout(SOON, write).await.expect("the server goes on reading, or closes");
    until("it is gone", async || bus.router.stats().connections == 0).await;
}
