//! async-nats.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, client::RequestErrorKind};
use futures_util::StreamExt;

use crate::{
    matrix::Row,
    stand::{INBOX, SOON, Stand, TOKEN},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_nats_over_tcp() {
    let stand = Stand::start().await;
    try_it("async-nats, TCP", &stand.tcp_url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_nats_over_websocket() {
    let stand = Stand::start().await;
    try_it("async-nats, WebSocket", &stand.websocket_url()).await;
}

/// A client and what it was told.
struct Tried {
    client: Client,
    url: String,
    connected: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

async fn try_it(client: &'static str, url: &str) {
    let mut row = Row::new(client);
    let tried = soon(Tried::connect(url)).await;
    row.passed("connect");
    soon(tried.requests()).await;
    row.passed("requests");
    soon(tried.queue_groups()).await;
    row.passed("queue groups");
    soon(tried.headers()).await;
    row.passed("headers");
    soon(tried.no_responders()).await;
    row.passed("no responders");
    soon(tried.large_payloads()).await;
    row.passed("large payloads");
    soon(tried.reconnect()).await;
    row.passed("reconnect");
    soon(tried.drain()).await;
    row.passed("drain");
    row.all_passed();
}

/// Boxed: this client's futures are large.
fn soon<'a, T: 'a>(what: impl Future<Output = T> + 'a) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    let what = Box::pin(what);
    Box::pin(async { tokio::time::timeout(SOON, what).await.expect("in time") })
}

async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn options() -> ConnectOptions {
    ConnectOptions::with_token(TOKEN.into()).custom_inbox_prefix(INBOX).reconnect_delay_callback(|_| Duration::from_millis(50))
}

impl Tried {
    async fn connect(url: &str) -> Self {
        let (connected, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (up, over) = (connected.clone(), closed.clone());
        let note = move |event: Event| {
            match event {
                Event::Connected => up.fetch_add(1, Ordering::SeqCst),
                Event::Closed => over.fetch_add(1, Ordering::SeqCst),
                _ => 0,
            };
            std::future::ready(())
        };
        let client = options().event_callback(note).connect(url).await.unwrap();
        client.flush().await.unwrap();
        Self { client, url: url.into(), connected, closed }
    }

    async fn echo(&self, text: &'static str) {
        let answer = self.client.request("svc.echo", text.into()).await.unwrap();
        assert_eq!(answer.payload, text);
        assert!(answer.subject.starts_with(&format!("{INBOX}.")), "{}", answer.subject);
    }

    async fn requests(&self) {
        self.echo("hello").await;
        // and the other way round: this client answers
        let mut service = self.client.subscribe("t.service").await.unwrap();
        let answering = self.client.clone();
        let answers = tokio::spawn(async move {
            for _ in 0..3 {
                let asked = service.next().await.unwrap();
                answering.publish(asked.reply.unwrap(), asked.payload).await.unwrap();
            }
        });
        self.client.flush().await.unwrap();
        let asker = options().connect(&self.url).await.unwrap();
        let ask = async |text: &'static str| asker.request("t.service", text.into()).await.unwrap().payload;
        let (a, b, c) = tokio::join!(ask("a"), ask("b"), ask("c"));
        assert_eq!([&a[..], &b, &c].concat(), b"abc");
        answers.await.unwrap();
    }

    async fn queue_groups(&self) {
        let group = [
            self.client.queue_subscribe("t.queue", "q".into()).await.unwrap(),
            self.client.queue_subscribe("t.*", "q".into()).await.unwrap(),
        ];
        let mut other = self.client.subscribe("t.queue").await.unwrap();
        for _ in 0..50 {
            self.client.publish("t.queue", "".into()).await.unwrap();
        }
        for _ in 0..50 {
            other.next().await.unwrap();
        }
        // what came before this answer is there, and is read to its end
        self.echo("all there").await;
        let mut count = 0;
        for mut member in group {
            member.drain().await.unwrap();
            count += member.count().await;
        }
        assert_eq!(count, 50);
    }

    async fn headers(&self) {
        let mut headers = HeaderMap::new();
        headers.append("Kind", "a");
        headers.append("Kind", "b");
        headers.insert("Text", "grüße");
        let answer = self.client.request_with_headers("svc.echo", headers.clone(), "".into()).await.unwrap();
        assert_eq!(answer.headers.as_ref(), Some(&headers));
    }

    async fn no_responders(&self) {
        let error = self.client.request("t.nobody", "".into()).await.unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::NoResponders);
    }

    async fn large_payloads(&self) {
        let most = self.client.max_payload();
        let payload: bytes::Bytes = (0..most).map(|at| (at * 31) as u8).collect();
        let mut large = self.client.subscribe("t.large").await.unwrap();
        self.client.publish("t.large", payload.clone()).await.unwrap();
        assert!(large.next().await.unwrap().payload == payload, "it comes as it went");
        self.client.publish("t.large", vec![0; most + 1].into()).await.unwrap_err();
        self.echo("still here").await;
    }

    async fn reconnect(&self) {
        let mut all = [self.client.subscribe("t.again").await.unwrap(), self.client.queue_subscribe("t.again", "q".into()).await.unwrap()];
        self.client.flush().await.unwrap();
        let before = self.connected.load(Ordering::SeqCst);
        self.client.publish("control.restart", "".into()).await.unwrap();
        until(|| self.connected.load(Ordering::SeqCst) > before).await;
        self.client.publish("t.again", "after".into()).await.unwrap();
        for subscription in &mut all {
            assert_eq!(subscription.next().await.unwrap().payload, "after");
        }
        self.echo("new bus").await;
    }

    async fn drain(&self) {
        let drained = self.client.subscribe("t.drain").await.unwrap();
        for _ in 0..1000 {
            self.client.publish("t.drain", "x".repeat(100).into()).await.unwrap();
        }
        // this client doesn't wait for what is on its way when it drains, only for what has come
        self.echo("all there").await;
        self.client.drain().await.unwrap();
        assert_eq!(drained.count().await, 1000);
        until(|| self.closed.load(Ordering::SeqCst) > 0).await;
    }
}
