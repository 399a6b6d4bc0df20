//! The bridge against a real cluster of three nats-servers.

use std::{
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use atoll_contract::ErrorCode;
use atoll_net::bus::{BridgeOptions, Conn, Headers, Message, Subscription};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use crate::{
    nats::{Cluster, Node, file, missing},
    support::{Bus, SOON, open_bus, until},
};

pub(crate) fn options(leafs: &[&str]) -> BridgeOptions {
    BridgeOptions {
        urls: leafs.iter().map(|leafs| format!("nats://{leafs}").parse().unwrap()).collect(),
        subjects: ["host.>", "account.>", "call.>", "_INBOX.>"].map(Into::into).to_vec(),
        first_pause: Duration::from_millis(20),
        ..BridgeOptions::default()
    }
}

/// A bus whose router is joined to the first of these that takes it.
pub(crate) async fn joined(options: BridgeOptions) -> Bus {
    let bus = open_bus();
    tokio::spawn(bus.router.join(options, bus.cancel.clone()).unwrap());
    until("the router is joined", async || bus.router.bridge_view().unwrap().open).await;
    bus
}

/// Answers at this subject with what is asked.
pub(crate) async fn answers(client: &async_nats::Client, subject: &str) {
    let mut asked = client.subscribe(subject.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    let client = client.clone();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            if let Some(reply) = message.reply {
                let _ = client.publish(reply, message.payload).await;
            }
        }
    });
}

async fn answers_here(conn: &Arc<dyn Conn>, subject: &str) {
    let mut asked = conn.subscribe(subject, None).await.unwrap();
    let conn = conn.clone();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            if let Some(reply) = message.reply {
                let answer = Message { headers: message.headers, ..Message::new(reply, message.payload) };
                let _ = conn.publish(answer).await;
            }
        }
    });
}

/// A subject that nobody has used.
fn probe() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("host.probe.{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Asks until it is answered; others may listen without answering.
async fn asks(from: &Arc<dyn Conn>, subject: &str) {
    let most = Duration::from_millis(200);
    until("interest has gone over", async || from.request(Message::new(subject, "?"), most).await.is_ok()).await;
}

async fn asks_outside(from: &async_nats::Client, subject: &str) {
    let request = async || tokio::time::timeout(Duration::from_millis(200), from.request(subject.to_owned(), "?".into())).await;
    until("interest has gone over", async || request().await.is_ok_and(|answer| answer.is_ok())).await;
}

/// Waits until a subscription that `at` makes now is known at `from`: then those that it made before are known there, too.
async fn known(from: &Arc<dyn Conn>, at: &Arc<dyn Conn>) {
    let subject = probe();
    answers_here(at, &subject).await;
    asks(from, &subject).await;
}

async fn known_to(from: &async_nats::Client, at: &Arc<dyn Conn>) {
    let subject = probe();
    answers_here(at, &subject).await;
    asks_outside(from, &subject).await;
}

async fn known_from(from: &Arc<dyn Conn>, at: &async_nats::Client) {
    let subject = probe();
    answers(at, &subject).await;
    asks(from, &subject).await;
}

async fn next(subscription: &mut Subscription) -> Message {
    tokio::time::timeout(SOON, subscription.next()).await.expect("a message comes in time").unwrap()
}

/// Two buses that are joined to two nodes of a cluster, and a stock client at the third.
struct Sides {
    cluster: Cluster,
    a: Bus,
    _b: Bus,
    /// Of `a` and of the other.
    left: Arc<dyn Conn>,
    right: Arc<dyn Conn>,
    outside: async_nats::Client,
}

impl Sides {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let (a, b) = (joined(options(&[&cluster.nodes[0].leafs])).await, joined(options(&[&cluster.nodes[1].leafs])).await);
        let (left, right) = (a.router.connect("left", None), b.router.connect("right", None));
        let outside = async_nats::connect(&cluster.nodes[2].clients).await.unwrap();
        Self { cluster, a, _b: b, left, right, outside }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_cross_in_both_directions() {
    if missing("cluster::messages_cross_in_both_directions") {
        return;
    }
    let Sides { left, right, outside: client, .. } = &Sides::start().await;

    let mut exact = right.subscribe("host.h1.report", None).await.unwrap();
    let mut wide = right.subscribe(">", None).await.unwrap();
    let mut both = left.subscribe("host.*.report", None).await.unwrap();
    let mut outside = client.subscribe("host.>").await.unwrap();
    let mut all_outside = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    known(left, right).await;
    known(right, left).await;
    known_from(left, client).await;
    known_to(client, left).await;

    // what doesn't cross, then what does: with headers, and large
    left.publish(Message::new("project.p.state", "stays")).await.unwrap();
    client.publish("project.p.state", "stays".into()).await.unwrap();
    let large = Bytes::from(vec![b'x'; 900_000]);
    let headers = Headers::default().with("Atoll-Project", "p").with("Atoll-Project", "q");
    let sent = Message { headers, reply: Some("_INBOX.x".into()), ..Message::new("host.h1.report", large.clone()) };
    left.publish(sent.clone()).await.unwrap();
    assert_eq!(next(&mut exact).await, sent);
    assert_eq!(next(&mut both).await, sent);
    loop {
        let message = next(&mut wide).await;
        assert!(!message.subject.starts_with("project."), "{}", message.subject);
        if message.subject == sent.subject {
            assert_eq!(message, sent);
            break;
        }
    }
    for subscription in [&mut outside, &mut all_outside] {
        loop {
            let message = tokio::time::timeout(SOON, subscription.next()).await.unwrap().unwrap();
            if message.subject.as_str() == "host.h1.report" {
                assert_eq!(message.payload, large);
                let values: Vec<_> = message.headers.unwrap().get_all("Atoll-Project").map(ToString::to_string).collect();
                assert_eq!(values, ["p", "q"]);
                assert_eq!(message.reply.unwrap().as_str(), "_INBOX.x");
                break;
            }
        }
    }
    client.publish("host.h1.report", "from outside".into()).await.unwrap();
    assert_eq!(next(&mut exact).await.payload, "from outside");
    assert_eq!(next(&mut both).await.payload, "from outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_and_unanswerable_ones_told_at_once() {
    if missing("cluster::requests_are_answered_and_unanswerable_ones_told_at_once") {
        return;
    }
    let Sides { a, left, right, outside, .. } = &Sides::start().await;
    // a stock client of an embedded router
    let stock = async_nats::connect(a.tcp().await).await.unwrap();

    answers_here(right, "call.right").await;
    answers(outside, "call.outside").await;
    answers(&stock, "call.stock").await;
    known(left, right).await;
    known_to(outside, right).await;
    known_from(left, outside).await;
    until("the stock client's is known", async || outside.request("call.stock", "".into()).await.is_ok()).await;
    for subject in ["call.right", "call.outside", "call.stock"] {
        for n in 0..20 {
            let ask = Message { headers: Headers::default().with("N", n.to_string()), ..Message::new(subject, format!("{n}")) };
            assert_eq!(left.request(ask, SOON).await.unwrap().payload, n.to_string(), "{subject}");
            assert_eq!(stock.request(subject, n.to_string().into()).await.unwrap().payload, n.to_string(), "{subject}");
            assert_eq!(outside.request(subject, n.to_string().into()).await.unwrap().payload, n.to_string(), "{subject}");
        }
    }

    assert_eq!(left.request(Message::new("call.nobody", ""), SOON).await.unwrap_err().code, ErrorCode::NoResponders);
    let none = async_nats::RequestErrorKind::NoResponders;
    assert_eq!(stock.request("call.nobody", "".into()).await.unwrap_err().kind(), none);
    assert_eq!(outside.request("call.nobody", "".into()).await.unwrap_err().kind(), none);
    // interest that ends, on either side
    let gone = right.subscribe("call.gone", None).await.unwrap();
    let mut gone_outside = outside.subscribe("call.gone.outside").await.unwrap();
    known_to(outside, right).await;
    known_from(left, outside).await;
    drop(gone);
    gone_outside.unsubscribe().await.unwrap();
    outside.flush().await.unwrap();
    until("its end is known", async || outside.request("call.gone", "".into()).await.is_err_and(|error| error.kind() == none)).await;
    let ask = async || left.request(Message::new("call.gone.outside", ""), Duration::from_millis(200)).await.unwrap_err().code;
    until("its end is known", async || ask().await == ErrorCode::NoResponders).await;
}

/// Counts what arrives.
fn count(payloads: impl Stream<Item = Bytes> + Send + 'static) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(payloads.for_each(move |payload| {
        counted.fetch_add(usize::from(payload == "count"), Ordering::SeqCst);
        ready(())
    }));
    count
}

fn counting(subscription: Subscription) -> Arc<AtomicUsize> {
    count(stream::unfold(subscription, async |mut subscription| Some((subscription.next().await?.payload, subscription))))
}

async fn counting_outside(client: &async_nats::Client, subject: &str, queue: &str) -> Arc<AtomicUsize> {
    let subscription = client.queue_subscribe(subject.to_owned(), queue.to_owned()).await.unwrap();
    count(subscription.map(|message| message.payload))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_group_on_all_sides_gets_each_message_once() {
    if missing("cluster::a_queue_group_on_all_sides_gets_each_message_once") {
        return;
    }
    const N: usize = 300;
    let Sides { cluster, left, right, outside, .. } = &Sides::start().await;
    let near = async_nats::connect(&cluster.nodes[0].clients).await.unwrap();

    // `every`: members everywhere; `far`: on the right and outside only; a plain one beside them
    let every = [
        counting(left.subscribe("call.*", Some("every")).await.unwrap()),
        counting(left.subscribe("call.x", Some("every")).await.unwrap()),
        counting(right.subscribe("call.x", Some("every")).await.unwrap()),
        counting_outside(outside, "call.x", "every").await,
        counting_outside(&near, "call.>", "every").await,
    ];
    let far = [counting(right.subscribe("call.x", Some("far")).await.unwrap()), counting_outside(outside, "call.*", "far").await];
    let plain = [counting(left.subscribe("call.x", None).await.unwrap()), counting(right.subscribe("call.>", None).await.unwrap())];
    near.flush().await.unwrap();
    outside.flush().await.unwrap();
    for (from, at) in [(left, right), (right, left)] {
        known(from, at).await;
    }
    for client in [outside, &near] {
        known_from(left, client).await;
        known_from(right, client).await;
        known_to(client, left).await;
        known_to(client, right).await;
    }

    let sum = |counts: &[Arc<AtomicUsize>]| counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<usize>();
    let mut total = 0;
    for publisher in ["left", "right", "outside", "near"] {
        let before = every[0].load(Ordering::SeqCst) + every[1].load(Ordering::SeqCst);
        for _ in 0..N {
            match publisher {
                "left" => left.publish(Message::new("call.x", "count")).await.unwrap(),
                "right" => right.publish(Message::new("call.x", "count")).await.unwrap(),
                "outside" => outside.publish("call.x", "count".into()).await.unwrap(),
                _ => near.publish("call.x", "count".into()).await.unwrap(),
            }
        }
        total += N;
        until("all have arrived", async || sum(&every) >= total && sum(&far) >= total && sum(&plain) >= 2 * total).await;
        if publisher == "left" {
            let here = every[0].load(Ordering::SeqCst) + every[1].load(Ordering::SeqCst) - before;
            assert_eq!(here, N, "members of the same router are preferred");
        }
    }
    // what would come twice comes at once; a round trip on every way lets it
    known(left, right).await;
    known(right, left).await;
    known_to(outside, left).await;
    known_from(left, outside).await;
    assert_eq!((sum(&every), sum(&far), sum(&plain)), (total, total, 2 * total));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_is_joined_when_one_is_killed() {
    if missing("cluster::another_node_is_joined_when_one_is_killed") {
        return;
    }
    let mut cluster = Cluster::start().await;
    let leafs: Vec<_> = cluster.nodes.iter().map(|node| node.leafs.clone()).collect();
    let a = joined(options(&[&leafs[0], &leafs[1]])).await;
    let b = joined(options(&[&leafs[2]])).await;
    let (left, right) = (a.router.connect("left", None), b.router.connect("right", None));
    let mut messages = left.subscribe("host.numbers", None).await.unwrap();
    let group = Arc::new(Mutex::new(Vec::new()));
    for conn in [&left, &right] {
        let (mut member, group) = (conn.subscribe("host.group", Some("q")).await.unwrap(), group.clone());
        tokio::spawn(async move {
            while let Some(message) = member.next().await {
                group.lock().unwrap().push(String::from_utf8(message.payload.to_vec()).unwrap());
            }
        });
    }
    known(&right, &left).await;
    right.publish(Message::new("host.numbers", "0")).await.unwrap();
    assert_eq!(next(&mut messages).await.payload, "0");

    for round in 1..=2 {
        let before = a.router.bridge_view().unwrap();
        let at = (0..2).find(|at| cluster.nodes[*at].has("Leafnode connection created")).unwrap(); // a restarted one has a new log
        // numbers all the time, across the kill
        let (stop, sender) = (tokio_util::sync::CancellationToken::new(), right.clone());
        let stopped = stop.clone();
        let sending = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.is_cancelled() {
                n += 1;
                sender.publish(Message::new("host.numbers", format!("{round}-{n:06}"))).await.unwrap();
                sender.publish(Message::new("host.group", format!("{round}-{n:06}"))).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        cluster.nodes[at].kill();
        until("another is joined", async || {
            let view = a.router.bridge_view().unwrap();
            view.open && view.connects > before.connects
        })
        .await;
        known(&right, &left).await;
        stop.cancel();
        sending.await.unwrap();
        right.publish(Message::new("host.numbers", format!("{round}-last"))).await.unwrap();
        let mut last = String::new();
        loop {
            let message = String::from_utf8(next(&mut messages).await.payload.to_vec()).unwrap();
            assert!(message > last, "{message} after {last}: twice, or out of order");
            last = message;
            if last.ends_with("last") {
                break;
            }
        }
        cluster.restart(at).await;
        cluster.whole().await;
    }
    let mut group = group.lock().unwrap().clone();
    let count = group.len();
    group.sort();
    group.dedup();
    assert!(count > 0 && group.len() == count, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_traffic_goes_on_without_the_cluster() {
    if missing("cluster::local_traffic_goes_on_without_the_cluster") {
        return;
    }
    let mut cluster = Cluster::start().await;
    let leafs: Vec<_> = cluster.nodes.iter().map(|node| node.leafs.clone()).collect();
    let a = joined(options(&[&leafs[0], &leafs[1], &leafs[2]])).await;
    let left = a.router.connect("left", None);
    let outside = async_nats::connect(&cluster.nodes[2].clients).await.unwrap();
    answers(&outside, "call.outside").await;
    answers_here(&left, "call.here").await;
    known_from(&left, &outside).await;
    left.request(Message::new("call.outside", "?"), SOON).await.unwrap();

    cluster.nodes.iter_mut().for_each(Node::kill);
    until("the cluster is gone", async || !a.router.bridge_view().unwrap().open).await;
    let stock = async_nats::connect(a.tcp().await).await.unwrap();
    for _ in 0..100 {
        left.request(Message::new("call.here", "?"), SOON).await.unwrap();
        stock.request("call.here", "?".into()).await.unwrap();
        assert_eq!(left.request(Message::new("call.outside", "?"), SOON).await.unwrap_err().code, ErrorCode::NoResponders);
    }
    for at in [1, 0, 2] {
        cluster.restart(at).await;
    }
    until("it is joined again", async || a.router.bridge_view().unwrap().open).await;
    until("the client outside is back", async || left.request(Message::new("call.outside", "?"), SOON).await.is_ok()).await;
    known_to(&outside, &left).await;
}

/// The example of docs/reference/bus.md, with its addresses and files replaced.
const DOCS: &str = include_str!("../../../../docs/reference/bus.md");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_config_in_the_docs_works() {
    if missing("cluster::the_config_in_the_docs_works") {
        return;
    }
    let example = DOCS.split("<!-- nats-server, tested -->\n```\n").nth(1).unwrap().split("```").next().unwrap();
    let ca = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (_kept, certificate) = file("cert.pem", &ca.cert.pem());
    let (_kept_too, key) = file("key.pem", &ca.signing_key.serialize_pem());
    let config = example
        .replace("0.0.0.0:7422", "127.0.0.1:-1")
        .replace("0.0.0.0:4222", "127.0.0.1:-1")
        .replace("0.0.0.0:6222", "127.0.0.1:-1")
        .replace("/etc/nats/cert.pem", certificate.to_str().unwrap())
        .replace("/etc/nats/key.pem", key.to_str().unwrap());
    let config: String = config.lines().filter(|line| !line.contains("routes:")).fold(String::new(), |all, line| all + line + "\n");
    let node = Node::start(&config).await;
    let (_secret, credentials) = file("credentials", "atoll:a-long-password\n");
    let tls = format!("tls://{}", node.leafs).parse().unwrap();
    let with =
        BridgeOptions { urls: vec![tls], credentials_file: Some(credentials.clone()), ca_file: Some(certificate.clone()), ..options(&[]) };
    let a = joined(with.clone()).await;
    let left = a.router.connect("left", None);
    let outside = async_nats::ConnectOptions::with_user_and_password("watcher".into(), "another-password".into())
        .connect(&node.clients)
        .await
        .unwrap();
    answers(&outside, "call.outside").await;
    until("interest has gone over", async || left.request(Message::new("call.outside", "?"), SOON).await.is_ok()).await;
    known_to(&outside, &left).await;

    // who isn't known, or doesn't know the hub, stays outside
    std::fs::write(&credentials, "atoll:wrong").unwrap();
    let refused = BridgeOptions { credentials_file: None, ..with.clone() };
    for (wrong, log) in [
        (with.clone(), "authentication error"),
        (refused, "authentication error"),
        (BridgeOptions { ca_file: None, ..with }, "handshake error"),
    ] {
        let (bus, before) = (open_bus(), node.count(log));
        tokio::spawn(bus.router.join(wrong, bus.cancel.clone()).unwrap());
        until("the hub has refused it", async || node.count(log) > before).await;
        assert_eq!(bus.router.bridge_view().unwrap().connects, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nkey_opens_the_cluster_and_its_permissions_are_kept_to() {
    if missing("cluster::an_nkey_opens_the_cluster_and_its_permissions_are_kept_to") {
        return;
    }
    let key = nkeys::KeyPair::new_user();
    let node = Node::start(&format!(
        "listen: \"127.0.0.1:-1\"\nleafnodes {{ listen: \"127.0.0.1:-1\" }}\nauthorization {{ users: [\n\
         {{ nkey: {}, permissions: {{ publish: [\"host.>\", \"_INBOX.>\"], subscribe: [\"host.>\", \"_INBOX.>\"] }} }},\n\
         {{ user: all, password: all }} ] }}\n",
        key.public_key()
    ))
    .await;
    let (_kept, seed) = file("seed", &key.seed().unwrap());
    let a = joined(BridgeOptions { credentials_file: Some(seed), ..options(&[&node.leafs]) }).await;
    let left = a.router.connect("left", None);
    let outside = async_nats::ConnectOptions::with_user_and_password("all".into(), "all".into()).connect(&node.clients).await.unwrap();
    // a literal: a hub closes the connection of who asks for what it may not
    let refused = [left.subscribe("call.x", None).await.unwrap(), left.subscribe(">", None).await.unwrap()];
    answers(&outside, "call.outside").await;
    known_to(&outside, &left).await;
    known_from(&left, &outside).await;
    drop(refused);
    assert_eq!(left.request(Message::new("call.outside", "?"), SOON).await.unwrap_err().code, ErrorCode::NoResponders);
    assert_eq!(a.router.bridge_view().unwrap().connects, 1);
}
