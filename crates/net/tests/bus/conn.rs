//! One suite for every implementation of `Conn`.

use std::{sync::Arc, time::Duration};

use atoll_contract::{ErrorCode, subject::Permissions};
use atoll_net::bus::{
    BusLimits, Conn, Headers, Message, Subscription,
    client::{self, Options},
    stock,
};
use bytes::Bytes;

use crate::support::{ANYONE, Bus, LIMITED, SOON, bus, two_tokens, until};

/// Two connections that may do everything, and one that may use `open.>` only.
struct Three {
    a: Arc<dyn Conn>,
    b: Arc<dyn Conn>,
    limited: Arc<dyn Conn>,
}

fn new_bus() -> Bus {
    bus(BusLimits::default(), two_tokens())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_process() {
    let bus = new_bus();
    let open = || vec!["open.>".to_owned()];
    let limited = bus.router.connect("limited", Some(Permissions { publish: open(), subscribe: open(), ..Permissions::default() }));
    behaves(Three { a: bus.router.connect("a", None), b: bus.router.connect("b", None), limited }).await;
}

fn options(token: &str, prefix: &str) -> Options {
    Options { name: token.into(), token: Some(token.into()), inbox_prefix: prefix.into(), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_over_a_pipe() {
    let bus = new_bus();
    let connect = async |token, prefix| Arc::new(client::connect(bus.pipe(4096), options(token, prefix)).await.unwrap());
    let (a, b) = (connect(ANYONE, "_INBOX").await, connect(ANYONE, "_INBOX").await);
    behaves(Three { a, b, limited: connect(LIMITED, "_INBOX.lim").await }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_over_a_unix_socket_to_one_in_process() {
    let bus = new_bus();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bus.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (router, auth, cancel) = (bus.router.clone(), bus.auth.clone(), bus.cancel.clone());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(router.serve(socket, "unix".into(), auth.clone(), cancel.clone()));
        }
    });
    let connect = async |token, prefix| {
        let socket = tokio::net::UnixStream::connect(&path).await.unwrap();
        Arc::new(client::connect(socket, options(token, prefix)).await.unwrap())
    };
    let a = connect(ANYONE, "_INBOX").await;
    behaves(Three { a, b: bus.router.connect("b", None), limited: connect(LIMITED, "_INBOX.lim").await }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_client_over_tcp() {
    let bus = new_bus();
    stock_behaves(&bus.tcp().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_client_over_websocket() {
    let bus = new_bus();
    stock_behaves(&bus.websocket().await).await;
}

async fn stock_behaves(url: &str) {
    let connect = async |token: &str, prefix: &str| {
        let options = async_nats::ConnectOptions::with_token(token.into()).custom_inbox_prefix(prefix);
        Arc::new(stock::connect(url, options).await.unwrap())
    };
    let (a, b) = (connect(ANYONE, "_INBOX").await, connect(ANYONE, "_INBOX").await);
    behaves(Three { a, b, limited: connect(LIMITED, "_INBOX.lim").await }).await;
}

async fn behaves(three: Three) {
    let Three { a, b, limited } = &three;
    messages_come_whole_and_in_order(a, b).await;
    wildcards(a, b).await;
    what_is_published_after_subscribing_is_not_missed(a, b).await;
    one_of_a_group_gets_each(a, b).await;
    requests(a, b).await;
    nobody_there(a, b).await;
    sizes(a, b).await;
    subjects_that_are_none(a).await;
    permissions(a, limited).await;
}

async fn next(subscription: &mut Subscription) -> Message {
    tokio::time::timeout(SOON, subscription.next()).await.expect("a message comes in time").expect("the subscription lives")
}

fn message(subject: &str, payload: impl Into<Bytes>) -> Message {
    Message::new(subject, payload)
}

async fn messages_come_whole_and_in_order(a: &Arc<dyn Conn>, b: &Arc<dyn Conn>) {
    let mut all = a.subscribe("order.>", None).await.unwrap();
    for n in 0..1000u32 {
        b.publish(message("order.x", n.to_string())).await.unwrap();
    }
    for n in 0..1000u32 {
        assert_eq!(next(&mut all).await.payload, n.to_string());
    }
    let headers = Headers::default().with("Offset", "12").with("X", "ü: 1");
    let sent = Message { reply: Some("order.reply".into()), headers, ..message("order.y", &b"\0\r\n\xff"[..]) };
    b.publish(sent.clone()).await.unwrap();
    let got = next(&mut all).await;
    assert_eq!((&got.subject, &got.reply, &got.payload), (&sent.subject, &sent.reply, &sent.payload));
    assert_eq!((got.headers.get("offset"), got.headers.get("x"), got.headers.fields.len()), (Some("12"), Some("ü: 1"), 2));
    assert_eq!(got.headers.status, None);
    b.publish(message("order.z", "")).await.unwrap();
    let empty = next(&mut all).await;
    assert!(empty.payload.is_empty() && empty.reply.is_none() && empty.headers.is_empty());
}

async fn wildcards(a: &Arc<dyn Conn>, b: &Arc<dyn Conn>) {
    let mut star = a.subscribe("w.*.c", None).await.unwrap();
    let mut tail = a.subscribe("w.b.>", None).await.unwrap();
    for subject in ["w.a.c", "w.b", "w.b.c", "w.b.c.d", "w.b.d", "w.a.end.x", "w.end.c", "w.b.end"] {
        b.publish(message(subject, "")).await.unwrap();
    }
    let mut got = [vec![], vec![]];
    for (list, subscription) in got.iter_mut().zip([&mut star, &mut tail]) {
        while list.last().is_none_or(|last: &String| !last.contains("end")) {
            list.push(next(subscription).await.subject.to_string());
        }
    }
    assert_eq!(got[0], ["w.a.c", "w.b.c", "w.end.c"]);
    assert_eq!(got[1], ["w.b.c", "w.b.c.d", "w.b.d", "w.b.end"]);
}

async fn what_is_published_after_subscribing_is_not_missed(a: &Arc<dyn Conn>, b: &Arc<dyn Conn>) {
    for n in 0..50 {
        let mut subscription = a.subscribe("early", None).await.unwrap();
        b.publish(message("early", n.to_string())).await.unwrap();
        assert_eq!(next(&mut subscription).await.payload, n.to_string());
    }
}

async fn one_of_a_group_gets_each(a: &Arc<dyn Conn>, b: &Arc<dyn Conn>) {
    let mut members = Vec::new();
    // two patterns, one group
    for pattern in ["group.x", "group.*", "group.x"] {
        members.push(a.subscribe(pattern, Some("workers")).await.unwrap());
    }
    let mut everything = b.subscribe("group.x", None).await.unwrap();
    const ALL: usize = 900;
    for n in 0..ALL {
        b.publish(message("group.x", n.to_string())).await.unwrap();
    }
    for n in 0..ALL {
        assert_eq!(next(&mut everything).await.payload, n.to_string());
    }
    let mut counts = vec![0; members.len()];
    let count = async || {
        let mut sum = 0;
        for (member, count) in members.iter_mut().zip(&mut counts) {
            while member.try_next().is_ok() {
                *count += 1;
            }
            sum += *count;
        }
        assert!(sum <= ALL, "no message came twice");
        sum == ALL
    };
    until("each message came once", count).await;
    assert!(counts.iter().all(|count| *count > ALL / 6), "{counts:?}");
}

async fn requests(a: &Arc<dyn Conn>, b: &Arc<dyn Conn>) {
    let mut service = b.subscribe("service.*", None).await.unwrap();
    let answerer = {
        let b = b.clone();
        tokio::spawn(async move {
            while let Some(asked) = service.next().await {
                let answer = Message::new(asked.reply.unwrap(), [&asked.payload[..], b"!"].concat());
                b.publish(Message { headers: Headers::default().with("For", &*asked.subject), ..answer }).await.unwrap();
            }
        })
    };
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..100 {
        let a = a.clone();
        asked.spawn(async move {
            let answer = a.request(message(&format!("service.{n}"), n.to_string()), SOON).await.unwrap();
            assert_eq!(answer.payload, format!("{n}!"));
            assert_eq!(answer.headers.get("For"), Some(&*format!("service.{n}")));
        });
    }
    while let Some(done) = asked.join_next().await {
        done.unwrap();
    }
    answerer.abort();
    let _ = answerer.await;
}

async fn nobody_there(a: &Arc<dyn Conn>, b: &Arc<dyn Conn>) {
    let code = async |subject: &str, timeout| a.request(message(subject, ""), timeout).await.unwrap_err().code;
    assert_eq!(code("nobody", SOON).await, ErrorCode::NoResponders);
    let silent = b.subscribe("silent", None).await.unwrap();
    assert_eq!(code("silent", Duration::from_millis(50)).await, ErrorCode::TimedOut);
    drop(silent);
    until("a dropped subscription is gone", async || code("silent", Duration::from_millis(50)).await == ErrorCode::NoResponders).await;
}

async fn sizes(a: &Arc<dyn Conn>, b: &Arc<dyn Conn>) {
    let mut subscription = a.subscribe("size", None).await.unwrap();
    let mut second = b.subscribe("size", None).await.unwrap();
    for size in [1, 2047, 2048, 4096, 32 << 10, 100_000, 1 << 20] {
        let payload: Bytes = (0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
        b.publish(message("size", payload.clone())).await.unwrap();
        assert!(next(&mut subscription).await.payload == payload && next(&mut second).await.payload == payload, "{size}");
    }
    let error = b.publish(message("size", vec![0; (1 << 20) + 1])).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::TooLarge);
    b.publish(message("size", "still there")).await.unwrap();
    assert_eq!(next(&mut subscription).await.payload, "still there");
}

async fn subjects_that_are_none(a: &Arc<dyn Conn>) {
    for subject in ["", "a.*", ">", "a..b", "a b", "a.", "a\r\nPUB b 0\r\n"] {
        assert_eq!(a.publish(message(subject, "")).await.unwrap_err().code, ErrorCode::InvalidArgument, "{subject:?}");
        assert_eq!(a.request(message(subject, ""), SOON).await.unwrap_err().code, ErrorCode::InvalidArgument, "{subject:?}");
    }
    for pattern in ["", "a..b", ">.a", "a b", "a\nb"] {
        assert_eq!(a.subscribe(pattern, None).await.unwrap_err().code, ErrorCode::InvalidArgument, "{pattern:?}");
    }
    assert_eq!(a.subscribe("a", Some("q q")).await.unwrap_err().code, ErrorCode::InvalidArgument);
    let bad = Message { headers: Headers::default().with("A", "x\r\nB: y"), ..message("a", "") };
    assert_eq!(a.publish(bad).await.unwrap_err().code, ErrorCode::InvalidArgument);
}

async fn permissions(a: &Arc<dyn Conn>, limited: &Arc<dyn Conn>) {
    for pattern in ["closed", "*.x", ">", "open", "_INBOX.>"] {
        assert_eq!(limited.subscribe(pattern, None).await.unwrap_err().code, ErrorCode::Forbidden, "{pattern}");
    }
    let mut closed = a.subscribe("closed", None).await.unwrap();
    let mut open = limited.subscribe("open.>", None).await.unwrap();
    let _ = limited.publish(message("closed", "not allowed")).await; // told at once, or later
    assert_eq!(limited.request(message("closed", ""), SOON).await.unwrap_err().code, ErrorCode::Forbidden);
    limited.publish(message("open.x", "1")).await.unwrap();
    assert_eq!(next(&mut open).await.payload, "1");
    a.publish(message("closed", "allowed")).await.unwrap();
    assert_eq!(next(&mut closed).await.payload, "allowed");
    // whoever answers may do more than who asks: the reply's subject is judged by the asker's rights
    let foreign = Message { reply: Some("closed".into()), ..message("open.x", "2") };
    let _ = limited.publish(foreign).await;
    limited.publish(message("open.x", "3")).await.unwrap();
    assert_eq!(next(&mut open).await.payload, "3");
}
