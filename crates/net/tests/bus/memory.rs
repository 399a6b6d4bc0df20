//! The memory of the whole bus has a bound, and what is over it costs only those who need more.

use std::{sync::Arc, time::Duration};

use atoll_net::bus::{BusLimits, Message};

use crate::support::{Auth, SOON, bus, two_tokens, until};

/// Of all queues together; each has 64 KiB free.
const MEMORY: usize = 1 << 20;

fn limits() -> BusLimits {
    BusLimits { memory: MEMORY, max_payload: 128 << 10, pending_bytes: 8 << 20, stall: Duration::ZERO, ..BusLimits::default() }
}

#[tokio::test]
async fn queues_that_nobody_reads_never_hold_more_than_the_bound_together() {
    let bus = bus(limits(), Arc::default());
    let mut slow = Vec::new();
    for _ in 0..16 {
        let mut raw = crate::support::Raw::new(bus.pipe(1 << 10));
        raw.connect("").await;
        raw.send("SUB flood 1\r\n").await;
        raw.round_trip().await;
        slow.push(raw);
    }
    let publisher = bus.router.connect("publisher", None);
    while bus.router.stats().slow_consumers < 16 {
        publisher.publish(Message::new("flood", vec![b'x'; 1 << 10])).await.unwrap();
        let report = bus.router.report();
        assert!(report.memory_used <= MEMORY as u64 && report.memory_limit == MEMORY as u64);
        let queued: u64 = report.by_connection.iter().map(|connection| connection.pending_bytes).sum();
        assert!(queued <= (MEMORY + 16 * (64 << 10)) as u64, "{queued}");
    }
    drop(slow);
    until("all is given back", async || bus.router.report().memory_used == 0).await;
}

#[tokio::test]
async fn one_that_reads_gets_its_messages_while_others_fill_the_memory() {
    let bus = bus(limits(), Arc::default());
    let mut hog = crate::support::Raw::new(bus.pipe(1 << 10));
    hog.connect("").await;
    hog.send("SUB flood 1\r\n").await;
    hog.round_trip().await;
    let mut healthy = bus.connected("").await;
    healthy.send("SUB small 1\r\n").await;
    healthy.round_trip().await;
    let publisher = bus.router.connect("publisher", None);
    for round in 0..100 {
        publisher.publish(Message::new("flood", vec![b'x'; 64 << 10])).await.unwrap();
        publisher.publish(Message::new("small", format!("{round:03}"))).await.unwrap();
        healthy.expect(&["MSG small 1 3", &format!("{round:03}")]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_there_is_no_memory_for_waits_and_then_ends_its_connection() {
    // nothing beyond what is free
    let bus = bus(BusLimits { memory: 0, ..limits() }, Arc::default());
    let mut small = bus.connected("").await;
    let mut large = bus.connected("").await;
    large.send(&format!("PUB a {}\r\n{}", 100 << 10, "x".repeat(10 << 10))).await;
    small.send("SUB a 1\r\nPUB a 2\r\nhi\r\n").await;
    small.expect(&["MSG a 1 2", "hi"]).await;
    large.expect(&["-ERR 'maximum memory exceeded'"]).await;
    large.expect_end().await;
    small.round_trip().await;
}

#[tokio::test]
async fn who_has_not_said_connect_gets_no_memory_for_a_payload() {
    let bus = bus(limits(), two_tokens());
    let mut raw = bus.raw();
    raw.line().await; // INFO
    raw.send("PUB a 131072\r\n").await;
    raw.expect(&["-ERR 'Authorization Violation'"]).await;
    raw.expect_end().await;
}

#[tokio::test]
async fn an_account_has_so_many_connections_and_not_more() {
    let (mut auth, more) = (Auth::default(), crate::support::grant("b", &["b"], &["b"], None));
    for (token, account) in [("one", "ada"), ("two", "ada"), ("three", "bob")] {
        auth.tokens.insert(token.into(), atoll_net::bus::Grant { account: Some(account.into()), ..more.clone() });
    }
    let bus = bus(BusLimits { connections_per_account: 2, ..limits() }, Arc::new(auth));
    let first = bus.connected("one").await;
    let _second = bus.connected("two").await;
    let mut refused = bus.raw();
    refused.line().await;
    refused.send("CONNECT {\"verbose\":false,\"auth_token\":\"one\"}\r\nPING\r\n").await;
    refused.expect(&["-ERR 'maximum account active connections exceeded'"]).await;
    refused.expect_end().await;
    let _another = bus.connected("three").await;
    drop(first);
    until("it has left", async || bus.router.report().by_account.iter().any(|row| row.account == "ada" && row.connections == 1)).await;
    let _third = tokio::time::timeout(SOON, bus.connected("one")).await.unwrap();
}
