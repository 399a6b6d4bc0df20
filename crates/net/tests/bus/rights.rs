//! Answers where one was asked for, and subjects that enter the bus under another name.

use std::{sync::Arc, time::Duration};

use atoll_contract::subject::{Mapping, Permissions};
use atoll_net::bus::{BusLimits, Conn, Grant, Message, answered_error, client, error_answer, stock};

use crate::support::{Auth, Bus, SOON, bus, grant};

/// `eve` and `bob` are accounts whose calls are mapped; `server` may answer, `mute` serves the same and may not; `two` holds a grant with a mapping
/// and can get another without.
fn accounts() -> Bus {
    let account = |name: &str| {
        let plain = grant(name, &[], &[&format!("_INBOX.{name}.>")], None);
        let mappings = vec![Mapping { pattern: "project.*.>".into(), prefix: format!("call.{name}") }];
        Grant { permissions: Permissions { mappings, ..plain.permissions }, ..plain }
    };
    let server = |responses| {
        let plain = grant("server", &["own"], &["svc.>", "call.>", "_INBOX.server.>"], None);
        Grant { permissions: Permissions { responses, ..plain.permissions }, ..plain }
    };
    let everything = Permissions {
        publish: vec!["free".into()],
        subscribe: vec!["_INBOX.all.>".into()],
        mappings: vec![Mapping { pattern: ">".into(), prefix: "call.all".into() }],
        ..Permissions::default()
    };
    let all = Grant { permissions: everything, ..grant("all", &[], &[], None) };
    let tokens = [
        ("eve", account("eve")),
        ("bob", account("bob")),
        ("server", server(true)),
        ("mute", server(false)),
        ("all", all),
        ("asker", grant("asker", &["svc.>"], &["_INBOX.asker.>"], None)),
    ];
    let tokens = tokens.map(|(token, grant)| (token.to_owned(), grant)).into();
    // time is paused and jumps in some of these tests
    let limits = BusLimits { ping_interval: Duration::from_hours(1), ..BusLimits::default() };
    bus(limits, Arc::new(Auth { tokens, ..Auth::default() }))
}

fn publish_violation(subject: &str) -> String {
    format!("-ERR 'Permissions Violation for Publish to \"{subject}\"'")
}

#[tokio::test]
async fn a_mapped_request_says_who_asks_and_gets_its_answer() {
    let bus = accounts();
    let master = bus.router.connect("master", None);
    let mut calls = master.subscribe("call.*.project.>", Some("calls")).await.unwrap();
    let mut unmapped = master.subscribe("project.>", None).await.unwrap();
    let (mut eve, mut bob) = (bus.connected("eve").await, bus.connected("bob").await);
    for (name, raw) in [("eve", &mut eve), ("bob", &mut bob)] {
        raw.send(&format!("SUB _INBOX.{name}.* 1\r\nPUB project.p1.agent.info _INBOX.{name}.a 2\r\nhi\r\n")).await;
        let call = calls.next().await.unwrap();
        assert_eq!((&*call.subject, &call.payload[..]), (&*format!("call.{name}.project.p1.agent.info"), &b"hi"[..]));
        assert_eq!(call.reply.as_deref(), Some(&*format!("_INBOX.{name}.a")));
        master.publish(Message::new(call.reply.unwrap(), name.to_owned())).await.unwrap();
        raw.expect(&[&format!("MSG _INBOX.{name}.a 1 3"), name]).await;
    }
    master.publish(Message::new("project.end", "")).await.unwrap();
    assert_eq!(&*unmapped.next().await.unwrap().subject, "project.end", "nothing came in under its own name");
    // nobody there is told as ever
    drop(calls);
    eve.send("PUB project.p1.agent.info _INBOX.eve.b 0\r\n\r\n").await;
    eve.expect(&["HMSG _INBOX.eve.b 1 16 16", "NATS/1.0 503", "", ""]).await;
}

#[tokio::test]
async fn a_mapping_can_not_be_escaped() {
    let bus = accounts();
    let master = bus.router.connect("master", None);
    let mut everything = master.subscribe("call.>", None).await.unwrap();
    let mut eve = bus.connected("eve").await;
    eve.send("SUB _INBOX.eve.* 1\r\n").await;
    for subject in ["call.eve.project.p1.agent.info", "call.bob.project.p1.agent.info", "call.x", "project.p1", "other"] {
        eve.send(&format!("PUB {subject} 0\r\n\r\n")).await;
        eve.expect(&[&publish_violation(subject)]).await;
    }
    for pattern in ["call.>", "call.eve.>", "project.p1.>"] {
        eve.send(&format!("SUB {pattern} 2\r\n")).await;
        eve.expect(&[&format!("-ERR 'Permissions Violation for Subscription to \"{pattern}\"'")]).await;
    }
    // nor can whoever answers be made to speak there
    for reply in ["call.bob.project.p1.agent.info", "project.p1.agent.info", "_INBOX.bob.a"] {
        eve.send(&format!("PUB project.p1.agent.info {reply} 0\r\n\r\n")).await;
        eve.expect(&[&format!("-ERR 'Permissions Violation for Publish with Reply of \"{reply}\"'")]).await;
    }
    eve.send("PUB project.p1.> 0\r\n\r\nPUB project.*.x 0\r\n\r\n").await;
    eve.expect(&["-ERR 'Invalid Publish Subject'", "-ERR 'Invalid Publish Subject'"]).await;
    eve.send("PUB project.p1.end 0\r\n\r\n").await;
    assert_eq!(&*everything.next().await.unwrap().subject, "call.eve.project.p1.end", "it is the first");

    // what is said to the bus itself isn't mapped, whatever the pattern covers; all else is, before it is looked up among the permissions
    let mut all = bus.connected("all").await;
    all.send("SUB _INBOX.all.* 1\r\nPUB _ATOLL.ping _INBOX.all.a 0\r\n\r\nPUB free 0\r\n\r\n").await;
    all.expect(&["MSG _INBOX.all.a 1 0", ""]).await;
    assert_eq!(&*everything.next().await.unwrap().subject, "call.all.free");
}

#[tokio::test]
async fn a_mapping_goes_with_its_grant() {
    let bus = accounts();
    let mut calls = bus.router.connect("master", None).subscribe("call.>", None).await.unwrap();
    let mut eve = bus.connected("eve").await;
    eve.send("PUB project.p1.x 0\r\n\r\n").await;
    assert_eq!(&*calls.next().await.unwrap().subject, "call.eve.project.p1.x");
    assert_eq!(bus.router.close_grant("eve"), 1);
    eve.expect(&["-ERR 'User Authentication Revoked'"]).await;
    eve.expect_end().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_allowed_where_and_while_one_was_asked_for() {
    let bus = accounts();
    let (mut server, mut other, mut asker) = (bus.connected("server").await, bus.connected("server").await, bus.connected("asker").await);
    asker.send("SUB _INBOX.asker.* 1\r\n").await;
    server.send("SUB svc.a 1\r\nPUB _INBOX.asker.q 0\r\n\r\n").await;
    server.expect(&[&publish_violation("_INBOX.asker.q")]).await;

    asker.send("PUB svc.a _INBOX.asker.q 2\r\n?!\r\n").await;
    server.expect(&["MSG svc.a 1 _INBOX.asker.q 2", "?!"]).await;
    for _ in 0..2 {
        server.send("PUB _INBOX.asker.q 3\r\nyes\r\n").await;
        asker.expect(&["MSG _INBOX.asker.q 1 3", "yes"]).await;
    }
    // only there, and only by whom it was asked
    server.send("PUB _INBOX.asker.r 0\r\n\r\n").await;
    server.expect(&[&publish_violation("_INBOX.asker.r")]).await;
    other.send("PUB _INBOX.asker.q 0\r\n\r\n").await;
    other.expect(&[&publish_violation("_INBOX.asker.q")]).await;

    tokio::time::advance(Duration::from_secs(299)).await;
    server.send("PUB _INBOX.asker.q 4\r\nlate\r\n").await;
    asker.expect(&["MSG _INBOX.asker.q 1 4", "late"]).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    server.send("PUB _INBOX.asker.q 0\r\n\r\n").await;
    server.expect(&[&publish_violation("_INBOX.asker.q")]).await;
    asker.round_trip().await; // and nothing has come before its PONG
}

#[tokio::test]
async fn who_may_not_answer_may_not_although_asked() {
    let bus = accounts();
    let (mut mute, mut asker) = (bus.connected("mute").await, bus.connected("asker").await);
    mute.send("SUB svc.a 1\r\n").await;
    mute.round_trip().await;
    asker.send("PUB svc.a _INBOX.asker.q 0\r\n\r\n").await;
    mute.expect(&["MSG svc.a 1 _INBOX.asker.q 0", ""]).await;
    mute.send("PUB _INBOX.asker.q 0\r\n\r\n").await;
    mute.expect(&[&publish_violation("_INBOX.asker.q")]).await;
}

#[tokio::test]
async fn an_answer_to_a_mapped_request_comes_to_every_client() {
    let bus = accounts();
    let server = client::Options { token: Some("server".into()), inbox_prefix: "_INBOX.server".into(), ..client::Options::default() };
    let server = client::connect(bus.pipe(64 << 10), server).await.unwrap();
    let mut calls = server.subscribe("call.>", Some("calls")).await.unwrap();
    tokio::spawn(async move {
        while let Some(call) = calls.next().await {
            let error = atoll_contract::Error::new(atoll_contract::ErrorCode::StaleAssignment, &*call.subject);
            server.publish(error_answer(call.reply.unwrap(), &error)).await.unwrap();
        }
    });
    let ours = client::Options { token: Some("eve".into()), inbox_prefix: "_INBOX.eve".into(), ..client::Options::default() };
    let ours = client::connect(bus.pipe(64 << 10), ours).await.unwrap();
    let options = async_nats::ConnectOptions::with_token("eve".into()).custom_inbox_prefix("_INBOX.eve");
    let stock = stock::connect(&bus.websocket().await, options).await.unwrap();
    for conn in [&ours as &dyn Conn, &stock] {
        let answer = conn.request(Message::new("project.p1.x", ""), SOON).await.unwrap();
        assert_eq!((answer.headers.status, answer.headers.description.as_str()), (Some(421), "stale_assignment"));
        assert_eq!(answered_error(&answer).unwrap().message, "call.eve.project.p1.x");
    }
}
