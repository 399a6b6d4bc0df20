//! The bridge against a hub by hand: what a real one does rarely, or only when it is ill.

use std::time::Duration;

use atoll_contract::ErrorCode;
use atoll_net::bus::{BridgeOptions, Headers, Message};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    cluster::options,
    support::{Bus, Raw, SOON, open_bus, until},
};

struct Hub {
    listener: TcpListener,
}

impl Hub {
    async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    fn options(&self) -> BridgeOptions {
        options(&[&self.listener.local_addr().unwrap().to_string()])
    }

    /// The next leaf that comes, after INFO.
    async fn greet(&self, more: &str) -> Raw<TcpStream> {
        let (socket, _) = tokio::time::timeout(SOON, self.listener.accept()).await.expect("a leaf comes").unwrap();
        let mut raw = Raw::new(socket);
        raw.send(&format!("INFO {{\"server_name\":\"hub\",\"headers\":true,\"leafnode_urls\":[]{more}}} \r\n")).await;
        raw
    }

    /// One that is let in, with the cluster's interest.
    async fn admit(&self, interest: &str) -> Raw<TcpStream> {
        let mut raw = self.greet(",\"max_payload\":1000").await;
        let connect = raw.line().await.unwrap();
        assert!(connect.starts_with("CONNECT {") && !connect.contains("\"lang\""), "{connect}");
        let own = raw.line().await.unwrap();
        assert!(own.starts_with("LS+ $LDS."), "{own}");
        raw.expect(&["PING"]).await;
        raw.send(&format!("INFO {{\"connect_info\":true}}\r\nLS+ $LDS.another\r\n{interest}PONG\r\n")).await;
        raw
    }
}

fn join(bus: &Bus, options: BridgeOptions) {
    tokio::spawn(bus.router.join(options, bus.cancel.clone()).unwrap());
}

async fn opened(bus: &Bus) {
    until("the bridge is open", async || bus.router.bridge_view().unwrap().open).await;
}

#[tokio::test]
async fn a_conversation() {
    let (hub, bus) = (Hub::new().await, open_bus());
    let conn = bus.router.connect("here", None);
    let before = conn.subscribe("host.before", None).await.unwrap(); // from before the bridge
    let _stays = conn.subscribe("project.stays", None).await.unwrap();
    join(&bus, hub.options());
    let mut leaf = hub.admit("LS+ call.*\r\nLS+ call.x\r\nLS+ call.x q 2\r\nLS+ call.x r 1\r\nLS+ project.p\r\n").await;
    let (mut lines, prefix) = (vec![leaf.line().await.unwrap(), leaf.line().await.unwrap()], "LS+ _INBOX.");
    lines.sort();
    assert!(lines[0].starts_with(prefix) && lines[1] == "LS+ host.before", "{lines:?}");
    opened(&bus).await;

    // one message however many subscriptions match; groups without members here are named
    conn.publish(Message::new("call.x", "hi")).await.unwrap();
    leaf.expect(&["LMSG call.x | q r 2", "hi"]).await;
    let mut member = conn.subscribe("call.x", Some("q")).await.unwrap();
    leaf.expect(&["LS+ call.x q 1"]).await;
    let asked = Message { reply: Some("_INBOX.r".into()), headers: Headers::default().with("A", "b"), ..Message::new("call.x", "hi") };
    conn.publish(asked.clone()).await.unwrap();
    leaf.expect(&["HMSG call.x + _INBOX.r r 18 20", "NATS/1.0", "A: b", "", "hi"]).await;
    assert_eq!(member.next().await.unwrap().payload, "hi", "the member here gets the first one that it is there for");
    conn.publish(Message { reply: Some("_INBOX.r".into()), ..Message::new("call.y", "hi") }).await.unwrap();
    leaf.expect(&["LMSG call.y _INBOX.r 2", "hi"]).await;

    // what comes in goes to plain subscriptions and to the groups that are named, and never back out
    let mut plain = conn.subscribe("call.>", None).await.unwrap();
    leaf.expect(&["LS+ call.>"]).await;
    leaf.send("LMSG call.x 1\r\n1\r\nLMSG call.x | q 1\r\n2\r\nHMSG call.x + _INBOX.r other q 12 13\r\nNATS/1.0\r\n\r\n3\r\n").await;
    for payload in ["1", "2", "3"] {
        assert_eq!(plain.next().await.unwrap().payload, payload);
    }
    assert_eq!(member.next().await.unwrap().payload, "2");
    let third = member.next().await.unwrap();
    assert_eq!((&*third.payload, third.reply.as_deref()), (&b"3"[..], Some("_INBOX.r")));

    // neither does what must not cross, is too large for the hub, or is malformed
    leaf.send("LMSG project.stays 1\r\n1\r\nLMSG call.* 1\r\n1\r\nHMSG call.x 6 6\r\nrotten\r\n").await;
    conn.publish(Message::new("project.p", "hi")).await.unwrap();
    conn.publish(Message::new("call.x", vec![b'x'; 1001])).await.unwrap();
    assert_eq!(plain.next().await.unwrap().payload.len(), 1001, "here it is delivered");
    until("all have been seen", async || bus.router.bridge_view().unwrap().refused == 4).await;

    // interest ends in both directions
    leaf.send("LS- call.*\r\nLS- call.x\r\nLS- call.x q\r\nLS- call.x r\r\nPING\r\n").await;
    leaf.expect(&["PONG"]).await;
    drop((before, plain, member));
    leaf.expect(&["LS- host.before", "LS- call.>", "LS- call.x q"]).await;
    let nobody = conn.request(Message::new("call.x", "?"), SOON).await.unwrap_err();
    assert_eq!(nobody.code, ErrorCode::NoResponders);
    leaf.send("PING\r\n").await;
    leaf.expect(&["PONG"]).await;

    bus.cancel.cancel();
    leaf.expect_end().await;
}

#[tokio::test]
async fn an_inbox_is_told_before_the_request_that_needs_it() {
    let (hub, bus) = (Hub::new().await, open_bus());
    join(&bus, hub.options());
    let mut leaf = hub.admit("LS+ call.x\r\n").await;
    opened(&bus).await;
    let mut client = bus.raw();
    client.connect("").await;
    for n in 0..200 {
        client.send(&format!("SUB _INBOX.{n} {n}\r\nPUB call.x _INBOX.{n} 0\r\n\r\nUNSUB {n}\r\n")).await;
        leaf.expect(&[&format!("LS+ _INBOX.{n}"), &format!("LMSG call.x _INBOX.{n} 0"), "", &format!("LS- _INBOX.{n}")]).await;
    }
}

#[tokio::test]
async fn what_a_lost_hub_wanted_is_forgotten_and_another_is_told_everything() {
    let (first, second, bus) = (Hub::new().await, Hub::new().await, open_bus());
    let urls = [first.options().urls, second.options().urls].concat();
    let conn = bus.router.connect("here", None);
    let mut messages = conn.subscribe("host.a", None).await.unwrap();
    join(&bus, BridgeOptions { urls, ..first.options() });
    // it begins with either
    let (mut leaf, other) = tokio::select! {
        leaf = first.admit("LS+ call.x\r\n") => (leaf, &second),
        leaf = second.admit("LS+ call.x\r\n") => (leaf, &first),
    };
    opened(&bus).await;
    let asked = conn.request(Message::new("call.x", "?"), Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(asked.code, ErrorCode::TimedOut, "somebody there may answer");
    leaf.send("-ERR 'Server Shutdown'\r\n").await;
    drop(leaf);
    let mut leaf = other.admit("").await;
    let lines = [leaf.line().await.unwrap(), leaf.line().await.unwrap()];
    assert!(lines.contains(&"LS+ host.a".to_owned()), "{lines:?}");
    opened(&bus).await;
    let asked = conn.request(Message::new("call.x", "?"), SOON).await.unwrap_err();
    assert_eq!(asked.code, ErrorCode::NoResponders);
    leaf.send("LMSG host.a 1\r\n1\r\n").await;
    assert_eq!(messages.next().await.unwrap().payload, "1");
    assert_eq!(bus.router.bridge_view().unwrap().connects, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_does_not_read_is_cut_off_and_harms_nobody() {
    let (hub, bus) = (Hub::new().await, open_bus());
    join(&bus, BridgeOptions { pending_messages: 100, ..hub.options() });
    let _stalled = hub.admit("LS+ host.>\r\n").await;
    opened(&bus).await;
    let conn = bus.router.connect("here", None);
    let mut here = conn.subscribe("host.n", None).await.unwrap();
    let reading = tokio::spawn(async move {
        for n in 0..100_000 {
            assert_eq!(here.next().await.unwrap().payload[..8], format!("{n:08}").as_bytes()[..]);
            if n == 20_000 {
                return;
            }
        }
    });
    // until its socket and queue are full, and on
    for n in 0..=20_000 {
        conn.publish(Message::new("host.n", format!("{n:08}{}", "x".repeat(900)))).await.unwrap();
    }
    tokio::time::timeout(SOON, reading).await.expect("those here get all").unwrap();
    let view = bus.router.bridge_view().unwrap();
    assert_eq!((view.slow, view.pending_messages), (1, 0));
    let mut again = hub.admit("").await;
    opened(&bus).await;
    again.send("PING\r\n").await;
    while again.line().await.unwrap() != "PONG" {}
    assert_eq!(bus.router.stats().slow_consumers, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_interest_is_bounded() {
    let (hub, bus) = (Hub::new().await, open_bus());
    join(&bus, hub.options());
    let mut leaf = hub.admit("").await;
    opened(&bus).await;
    let conn = bus.router.connect("here", None);
    let mut held = Vec::new();
    for n in 0..20_000 {
        held.push(conn.subscribe(&format!("call.{n}"), None).await.unwrap());
        drop(conn.subscribe(&format!("call.gone.{n}"), None).await.unwrap());
        assert!(bus.router.bridge_view().unwrap().pending_bytes < 4 << 20);
    }
    drop(conn.subscribe("call.last", None).await.unwrap());
    let _end = conn.subscribe("host.end", None).await.unwrap();
    let mut known = std::collections::HashSet::new();
    loop {
        let line = leaf.line().await.unwrap();
        match line.split_at(4) {
            ("LS+ ", "host.end") => break,
            ("LS+ ", subject) => assert!(known.insert(subject.to_owned())),
            ("LS- ", subject) => assert!(known.remove(subject)),
            _ => panic!("{line}"),
        }
    }
    known.retain(|subject| !subject.starts_with("_INBOX."));
    assert_eq!(known.len(), 20_000);
}

#[tokio::test]
async fn a_silent_hub_is_left() {
    let (hub, bus) = (Hub::new().await, open_bus());
    join(&bus, BridgeOptions { ping_interval: Duration::from_millis(30), ..hub.options() });
    let mut leaf = hub.admit("").await;
    opened(&bus).await;
    leaf.expect(&["PING"]).await;
    leaf.send("PONG\r\n").await;
    leaf.expect(&["PING", "PING"]).await;
    leaf.expect_end().await;
    drop(hub.admit("").await);
}

/// Whatever a hub says instead of what it should: the bridge isn't open then, and comes again.
#[tokio::test]
async fn hubs_that_are_none() {
    let (hub, bus) = (Hub::new().await, open_bus());
    let longest_pause = Duration::from_millis(40); // or a refusal would be waited out
    join(&bus, BridgeOptions { longest_pause, connect_timeout: Duration::from_millis(200), interests: 3, ..hub.options() });
    let accept = async || Raw::new(tokio::time::timeout(SOON, hub.listener.accept()).await.expect("it comes again").unwrap().0);
    for words in [
        "HTTP/1.1 400 Bad Request\r\n",
        "INFO {\"server_id\":\"for clients\"}\r\n",
        "INFO nonsense\r\n",
        "",                                                              // says nothing
        "INFO {\"leafnode_urls\":[]}\r\n",                               // nothing more
        "INFO {\"leafnode_urls\":[],\"tls_required\":true}\r\nPONG\r\n", // goes on in the clear
        "INFO {\"leafnode_urls\":[]}\r\n-ERR 'Authorization Violation'\r\nXYZ\r\n",
        "INFO {\"leafnode_urls\":[]}\r\nLS+ call.a\r\nLS+ call.b\r\nLS+ call.c\r\nLS+ call.d\r\nPONG\r\n", // more than it may have
    ] {
        let mut raw = accept().await;
        raw.send(words).await;
        while raw.line().await.is_some() {}
        assert_eq!(bus.router.bridge_view().unwrap().connects, 0, "{words:?}");
    }
    // one that lets it hear of itself
    let mut raw = accept().await;
    raw.send("INFO {\"leafnode_urls\":[]}\r\n").await;
    raw.line().await.unwrap();
    let own = raw.line().await.unwrap();
    raw.send(&format!("{own}\r\nPONG\r\n")).await;
    while raw.line().await.is_some() {}
    assert_eq!(bus.router.bridge_view().unwrap().connects, 0);
    let mut leaf = hub.admit("").await;
    opened(&bus).await;
    leaf.send("nonsense\r\n").await;
    while leaf.line().await.is_some() {}
    until("it is closed", async || !bus.router.bridge_view().unwrap().open).await;
}

#[tokio::test]
async fn a_router_has_one_bridge() {
    let (hub, bus) = (Hub::new().await, open_bus());
    let join = |options| bus.router.join(options, bus.cancel.clone()).err().map(|error| error.code);
    assert_eq!(join(BridgeOptions { urls: vec![], ..hub.options() }), Some(ErrorCode::InvalidConfig));
    assert_eq!(join(BridgeOptions { subjects: vec!["a..b".into()], ..hub.options() }), Some(ErrorCode::InvalidConfig));
    assert!(bus.router.bridge_view().is_none());
    assert_eq!(join(hub.options()), None);
    assert_eq!(join(hub.options()), Some(ErrorCode::Conflict));
}
