//! Grants that come, are renewed and end while a connection lives.

use std::{sync::Arc, time::Duration};

use atoll_contract::{ErrorCode, subject::GRANT_ADD};
use atoll_net::bus::{BusLimits, Message};
use tokio::io::DuplexStream;

use crate::support::{Auth, Bus, OTHER, PROJECT, Raw, bus, grant, until};

const START: i64 = 1_800_000_000_000;

/// `one` is for a project for ten seconds, `one-again` renews it for twenty more with an inbox of its own, `two` is for another for fifteen.
fn projects() -> Bus {
    let project = |id: &str, inbox: &str, seconds: i64| {
        let all = format!("project.{id}.>");
        grant(id, &[&all], &[&all, &format!("_INBOX.{inbox}.>")], Some(START + seconds * 1000))
    };
    let tokens = [
        ("one", project(PROJECT, "one", 10)),
        ("one-again", project(PROJECT, "again", 30)),
        ("two", project(OTHER, "two", 15)),
        ("over", project(OTHER, "over", 0)),
        ("no-project", grant("x", &["x"], &["x"], None)),
    ];
    let tokens = tokens.map(|(token, grant)| (token.to_owned(), grant)).into();
    let limits = BusLimits { grant_check: Duration::from_millis(20), grants_per_connection: 2, ..BusLimits::default() };
    bus(limits, Arc::new(Auth { tokens, ..Auth::default() }))
}

async fn add(raw: &mut Raw<DuplexStream>, token: &str) -> String {
    raw.send(&format!("PUB {GRANT_ADD} _INBOX.one.g {}\r\n{token}\r\n", token.len())).await;
    assert!(raw.line().await.unwrap().starts_with("MSG _INBOX.one.g inbox "));
    raw.line().await.unwrap()
}

fn violation(id: &str) -> String {
    format!("-ERR 'Permissions Violation for Subscription to \"project.{id}.state\"'")
}

#[tokio::test]
async fn added_renewed_and_ended() {
    let bus = projects();
    let mut raw = bus.connected("one").await;
    raw.send("SUB _INBOX.one.* inbox\r\n").await;
    raw.send(&format!("SUB project.{PROJECT}.state 1\r\nSUB project.{OTHER}.state 2\r\n")).await;
    raw.expect(&[&violation(OTHER)]).await;

    let added = add(&mut raw, "two").await;
    assert_eq!(added, format!(r#"{{"ok":{{"project":"{OTHER}","expires_at":"2027-01-15T08:00:15.000Z"}}}}"#));
    raw.send(&format!("SUB project.{OTHER}.state 2\r\nPUB project.{OTHER}.state 2\r\nhi\r\n")).await;
    raw.expect(&[&format!("MSG project.{OTHER}.state 2 2"), "hi"]).await;
    assert_eq!(bus.router.connections()[0].grants, [PROJECT, OTHER]);

    for (token, code) in [("wrong", "unauthenticated"), ("over", "unauthenticated"), ("no-project", "internal")] {
        let refused = add(&mut raw, token).await;
        assert!(refused.starts_with(r#"{"error":{"code":""#) && refused.contains(code), "{refused}");
    }
    assert!(add(&mut raw, "one-again").await.contains("2027-01-15T08:00:30.000Z"), "renewed");

    // the second ends; nothing else does, and the inbox that the client began with is still its own
    bus.clock.advance(Duration::from_secs(15));
    raw.expect(&[&violation(OTHER)]).await;
    raw.send(&format!("PUB project.{OTHER}.state 0\r\n\r\nPUB project.{PROJECT}.state 2\r\nhi\r\nPUB _ATOLL.ping _INBOX.one.p 0\r\n\r\n"))
        .await;
    raw.expect(&[&format!("-ERR 'Permissions Violation for Publish to \"project.{OTHER}.state\"'")]).await;
    raw.expect(&[&format!("MSG project.{PROJECT}.state 1 2"), "hi", "MSG _INBOX.one.p inbox 0", ""]).await;
    assert_eq!(bus.router.connections()[0].grants, [PROJECT]);

    // the last ends, and the connection with it
    bus.clock.advance(Duration::from_secs(15));
    let mut lines = vec![raw.line().await.unwrap(), raw.line().await.unwrap()];
    lines.sort();
    assert_eq!(lines, ["-ERR 'Permissions Violation for Subscription to \"_INBOX.one.*\"'".into(), violation(PROJECT)]);
    raw.expect(&["-ERR 'User Authentication Expired'"]).await;
    raw.expect_end().await;
    until("nothing is left", async || bus.router.stats().connections == 0 && bus.router.stats().subscriptions == 0).await;
}

#[tokio::test]
async fn an_expired_grant_stops_at_the_next_operation_not_at_the_next_timer() {
    let bus = projects();
    let mut raw = bus.connected("one").await;
    bus.clock.advance(Duration::from_secs(10));
    raw.send(&format!("PUB project.{PROJECT}.state 0\r\n\r\n")).await;
    raw.expect(&["-ERR 'User Authentication Expired'"]).await;
    raw.expect_end().await;
    // and one that has expired before doesn't let anyone in
    let mut late = bus.raw();
    late.line().await;
    late.send("CONNECT {\"auth_token\":\"one\"}\r\n").await;
    late.expect(&["-ERR 'Authorization Violation'"]).await;
}

#[tokio::test]
async fn a_grant_can_be_taken_from_all_connections_at_once() {
    let bus = projects();
    let (mut both, mut one) = (bus.connected("one").await, bus.connected("one").await);
    both.send("SUB _INBOX.one.* inbox\r\n").await;
    add(&mut both, "two").await;
    both.send(&format!("SUB project.{PROJECT}.state 1\r\nSUB project.{OTHER}.state 2\r\n")).await;
    both.round_trip().await;

    assert_eq!(bus.router.close_grant(PROJECT), 2);
    assert_eq!(bus.router.close_grant(PROJECT), 0);
    one.expect(&["-ERR 'User Authentication Revoked'"]).await;
    one.expect_end().await;
    both.expect(&[&violation(PROJECT)]).await;
    both.send(&format!("PUB project.{PROJECT}.state 0\r\n\r\nPUB project.{OTHER}.state 1\r\nx\r\n")).await;
    both.expect(&[&format!("-ERR 'Permissions Violation for Publish to \"project.{PROJECT}.state\"'")]).await;
    both.expect(&[&format!("MSG project.{OTHER}.state 2 1"), "x"]).await;
}

#[tokio::test]
async fn the_bus_answers_only_at_subscriptions_of_who_asks() {
    let bus = projects();
    let mut asker = bus.connected("one").await;
    let mut other = bus.connected("one").await;
    other.send(&format!("SUB project.{PROJECT}.state 1\r\n")).await;
    other.round_trip().await;
    // a reply subject that another one listens to
    asker.send(&format!("PUB _ATOLL.ping project.{PROJECT}.state 0\r\n\r\nPUB {GRANT_ADD} project.{PROJECT}.state 5\r\nwrong\r\n")).await;
    asker.send(&format!("PUB project.{PROJECT}.nobody project.{PROJECT}.state 0\r\n\r\n")).await;
    asker.round_trip().await;
    other.round_trip().await;
    // what a connection may subscribe to, for clients that aren't told of refusals otherwise
    asker.send("SUB _INBOX.one.> 1\r\nPUB _ATOLL.ping _INBOX.one.p 1\r\n>\r\nPUB _ATOLL.ping _INBOX.one.p 9\r\n_INBOX.on\r\n").await;
    for _ in 0..2 {
        assert!(asker.line().await.unwrap().starts_with("MSG _INBOX.one.p 1 "));
        assert!(asker.line().await.unwrap().contains("forbidden"));
    }
    asker.send("PUB _ATOLL.ping _INBOX.one.p 12\r\n_INBOX.one.x\r\n").await;
    asker.expect(&["MSG _INBOX.one.p 1 11", r#"{"ok":null}"#]).await;
}

/// Whoever serves a subject may publish to all inboxes, and learns the asker's with every request.
#[tokio::test]
async fn who_is_asked_can_not_answer_in_another_s_place() {
    let bus = projects();
    let (server, liar) = (bus.router.connect("server", None), bus.router.connect("liar", None));
    let mut asked = liar.subscribe("liar", None).await.unwrap();
    let _silent = liar.subscribe("silent", None).await.unwrap();
    let question = |subject: &str| server.request(Message::new(subject, ""), Duration::from_millis(500));
    let lie = async {
        let inbox = asked.next().await.unwrap().reply.unwrap();
        let (prefix, _) = inbox.rsplit_once('.').unwrap();
        for token in 0..1000 {
            liar.publish(Message::new(format!("{prefix}.{token}"), "a lie")).await.unwrap();
        }
    };
    let (_, answer, ()) = tokio::join!(question("liar"), question("silent"), lie);
    assert_eq!(answer.unwrap_err().code, ErrorCode::TimedOut);
}
