//! What the bus says of itself.

use std::sync::Arc;

use atoll_contract::{
    bus::{BusReport, BusTraffic},
    subject::BUS_STATS,
};
use atoll_net::bus::{BusLimits, Grant, Message};

use crate::support::{ANYONE, Auth, LIMITED, bus, grant, two_tokens};

fn traffic(in_messages: u64, in_bytes: u64, out_messages: u64, out_bytes: u64) -> BusTraffic {
    BusTraffic { in_messages, in_bytes, out_messages, out_bytes }
}

#[tokio::test]
async fn traffic_is_counted_by_connection_account_and_prefix() {
    let mut auth = Auth::default();
    for (token, account) in [("a", "ada"), ("b", "bob")] {
        let grant = Grant { account: Some(account.into()), ..grant(token, &[">"], &[">"], None) };
        auth.tokens.insert(token.into(), grant);
    }
    let bus = bus(BusLimits::default(), Arc::new(auth));
    let (mut ada, mut bob) = (bus.connected("a").await, bus.connected("b").await);
    bob.send("SUB x.> 1\r\nSUB x.1.* 2\r\n").await;
    bob.round_trip().await;
    ada.send("PUB x.1.a 5\r\nhello\r\nPUB x.1.b 5\r\nhello\r\nPUB y.2 3\r\nyou\r\nPUB x.2 1\r\n!\r\n").await;
    ada.round_trip().await;
    bus.router.connect("in process", None).publish(Message::new("x.1", "four")).await.unwrap();

    let report = bus.router.report();
    let by_prefix = |name: &str| report.by_prefix.iter().find(|row| row.prefix == name).unwrap().traffic;
    assert_eq!(by_prefix("x.1"), traffic(3, 14, 5, 24));
    assert_eq!(by_prefix("y.2"), traffic(1, 3, 0, 0));
    assert_eq!(report.traffic, traffic(5, 18, 6, 25));
    let by_account = |name: &str| report.by_account.iter().find(|row| row.account == name).unwrap();
    assert_eq!(by_account("ada").traffic, traffic(4, 14, 0, 0));
    assert_eq!((by_account("bob").traffic, by_account("bob").subscriptions), (traffic(0, 0, 6, 25), 2));
    let by_connection = |name: &str| report.by_connection.iter().find(|row| row.account.as_deref() == Some(name)).unwrap();
    assert_eq!((by_connection("ada").traffic.in_messages, by_connection("bob").traffic.out_bytes), (4, 25));
    assert_eq!((report.connections, report.subscriptions, report.memory_used), (2, 2, 0));

    // an account keeps its counts when its connection ends
    drop(bob);
    crate::support::until("bob has left", async || bus.router.stats().connections == 1).await;
    let report = bus.router.report();
    let bob = report.by_account.iter().find(|row| row.account == "bob").unwrap();
    assert_eq!((bob.connections, bob.traffic), (0, traffic(0, 0, 6, 25)));
}

#[tokio::test]
async fn it_is_told_to_those_who_may_ask() {
    let bus = bus(BusLimits::default(), two_tokens());
    let mut raw = bus.connected(ANYONE).await;
    raw.send(&format!("SUB r 1\r\nPUB {BUS_STATS} r 0\r\n\r\n")).await;
    let head = raw.line().await.unwrap();
    assert!(head.starts_with("MSG r 1 "), "{head}");
    let report: BusReport = serde_json::from_str(&raw.line().await.unwrap()).unwrap();
    assert_eq!((report.connections, report.by_connection[0].grants.as_slice()), (1, &["anyone".to_owned()][..]));

    let mut raw = bus.connected(LIMITED).await;
    raw.send(&format!("PUB {BUS_STATS} open.r 0\r\n\r\n")).await;
    raw.expect(&[&format!("-ERR 'Permissions Violation for Publish to \"{BUS_STATS}\"'")]).await;
}

#[tokio::test]
async fn what_is_refused_takes_no_place_among_the_prefixes() {
    let bus = bus(BusLimits::default(), two_tokens());
    let mut raw = bus.connected(LIMITED).await;
    for n in 0..100 {
        raw.send(&format!("PUB noise.{n} 0\r\n\r\nPUB noise..{n} 0\r\n\r\n")).await;
        for _ in 0..2 {
            assert!(raw.line().await.unwrap().starts_with("-ERR"));
        }
    }
    let report = bus.router.report();
    assert!(report.by_prefix.iter().all(|row| !row.prefix.starts_with("noise")), "{:?}", report.by_prefix);
}

#[tokio::test]
async fn a_report_fits_into_a_message_however_many_grants_there_are() {
    let (bus, auth) = (bus(BusLimits::default(), Arc::default()), Arc::new(ManyGrants));
    let mut all = Vec::new();
    for _ in 0..256 {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(bus.router.serve(theirs, "pipe".into(), auth.clone(), bus.cancel.clone()));
        let mut raw = crate::support::Raw::new(ours);
        raw.connect("").await;
        all.push(raw);
    }
    let report = bus.router.report();
    let size = serde_json::to_vec(&report).unwrap().len();
    assert!(report.by_connection.len() == 256 && size < BusLimits::default().max_payload, "{size}");
    assert_eq!(report.by_connection[0].grants.last().unwrap(), "(240 more)");
}

/// As many projects as one connection may have.
struct ManyGrants;

impl atoll_net::bus::Authenticator for ManyGrants {
    fn connect(&self, _: &atoll_net::bus::Credentials) -> Result<Vec<Grant>, atoll_contract::Error> {
        Ok((0..256).map(|n| grant(&format!("0198c0de-0000-7000-8000-{n:012}"), &[], &[], None)).collect())
    }
}
