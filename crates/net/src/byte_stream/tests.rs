//! The streams over a bus that forgets messages.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use atoll_contract::{Error, ErrorCode};
use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::{
    CHUNK_BYTES, HEARTBEAT, Receiver, SILENCE, Sender, WINDOW_BYTES,
    wire::{Ack, AckEnd, Frame},
};
use crate::bus::{BoxFuture, Conn, Headers, Message, Subscription};

const SUBJECT: &str = "project.p.stream.s.out";

type Fault = Box<dyn FnMut(&Message) -> bool + Send>;

/// A bus of exact subjects, as far as a stream needs one. A message of which `lose` says so is not delivered.
#[derive(Default)]
struct Lossy(Mutex<State>);

#[derive(Default)]
struct State {
    subscribers: HashMap<String, mpsc::Sender<Message>>,
    lose: Option<Fault>,
    /// The furthest that a sender went.
    furthest: u64,
    published: usize,
}

impl Lossy {
    fn new(lose: impl FnMut(&Message) -> bool + Send + 'static) -> Arc<Self> {
        let bus = Self::default();
        bus.0.lock().unwrap().lose = Some(Box::new(lose));
        Arc::new(bus)
    }

    fn furthest(&self) -> u64 {
        self.0.lock().unwrap().furthest
    }
}

impl Conn for Lossy {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        let mut state = self.0.lock().unwrap();
        state.published += 1;
        if message.reply.is_some()
            && let Ok(frame) = Frame::parse(message.clone())
        {
            state.furthest = state.furthest.max(frame.next_offset());
        }
        if !state.lose.as_mut().is_some_and(|lose| lose(&message)) {
            let there = state.subscribers.get(&*message.subject).is_some_and(|to| to.try_send(message.clone()).is_ok());
            if let (false, Some(reply)) = (there, &message.reply) {
                let headers = Headers { status: Some(503), ..Headers::default() };
                if let Some(to) = state.subscribers.get(&**reply) {
                    let _ = to.try_send(Message { subject: reply.clone(), reply: None, headers, payload: Bytes::new() });
                }
            }
        }
        Box::pin(async { Ok(()) })
    }

    fn subscribe<'a>(&'a self, subject: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        let (to, messages) = mpsc::channel(4096);
        self.0.lock().unwrap().subscribers.insert(subject.to_owned(), to);
        Box::pin(async { Ok(Subscription::new(messages, None)) })
    }

    fn request(&self, _: Message, _: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        Box::pin(async { Err(Error::new(ErrorCode::Unsupported, "Streams make no requests.")) })
    }
}

async fn pair(bus: &Arc<Lossy>) -> (Sender, Receiver) {
    let receiver = Receiver::open(bus.clone(), SUBJECT).await.unwrap();
    (Sender::open(bus.clone(), SUBJECT).await.unwrap(), receiver)
}

fn bytes(len: usize) -> Bytes {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

#[test]
fn the_wire_form_is_as_documented() {
    let (subject, ack): (Arc<str>, Arc<str>) = (SUBJECT.into(), format!("{SUBJECT}.ack").into());
    let data = |offset, text: &'static str, end| Frame { offset, position: None, bytes: Bytes::from_static(text.as_bytes()), end };
    let show = |message: &Message| {
        let fields: Vec<_> = message.headers.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let reply = message.reply.as_deref().unwrap_or("-");
        format!("{} {reply} [{}] <{}>", message.subject, fields.join(", "), String::from_utf8_lossy(&message.payload))
    };
    let frames = [
        data(0, "hello", None),
        Frame { position: Some(70), ..data(5, " world", None) },
        data(11, "", None),
        data(11, "", Some(Ok(()))),
        data(11, "", Some(Err(Error::new(ErrorCode::Cancelled, "Enough.")))),
    ];
    let acks = [
        Ack { taken: 5, missing: None, end: None },
        Ack { taken: 5, missing: Some(9), end: None },
        Ack { taken: 11, missing: None, end: Some(AckEnd::Taken) },
        Ack { taken: 5, missing: None, end: Some(AckEnd::Closed) },
    ];
    let mut lines = vec![];
    for frame in &frames {
        let message = frame.message(&subject, &ack);
        lines.push(show(&message));
        assert_eq!(&Frame::parse(message).unwrap(), frame);
    }
    for parsed in acks {
        let message = parsed.message(&ack);
        lines.push(show(&message));
        assert_eq!(Ack::parse(&message).unwrap(), parsed);
    }
    let golden = include_str!("../../tests/golden/stream.txt");
    assert_eq!(lines.join("\n"), golden.trim_end());
}

#[test]
fn what_is_malformed_is_refused() {
    let message = |fields: &[(&str, &str)], payload: usize| {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Message { headers: Headers { fields, ..Headers::default() }, ..Message::new(SUBJECT, vec![0; payload]) }
    };
    for (fields, payload) in [
        (&[][..], 1),
        (&[("Offset", "x")], 1),
        (&[("Offset", "-1")], 1),
        (&[("Offset", "+1")], 1),
        (&[("Offset", "")], 1),
        (&[("Offset", "18446744073709551616")], 1),
        (&[("Offset", "18446744073709551615")], 1),
        (&[("Offset", "0")], CHUNK_BYTES + 1),
        (&[("Offset", "0"), ("End", "maybe")], 0),
        (&[("Offset", "0"), ("End", "error")], 3),
        (&[("Offset", "0"), ("Position", "x")], 3),
    ] {
        assert!(Frame::parse(message(fields, payload)).is_err(), "{fields:?}");
    }
    assert!(Ack::parse(&message(&[("Offset", "1"), ("End", "x")], 0)).is_err());
    assert!(Ack::parse(&message(&[("Missing", "1")], 0)).is_err());
}

#[tokio::test(start_paused = true)]
async fn bytes_and_the_end_arrive() {
    let bus = Lossy::new(|_| false);
    let (mut sender, mut receiver) = pair(&bus).await;
    let sent = bytes(3 * CHUNK_BYTES + 7);
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        sender.send(copy).await?;
        sender.finish_with(Bytes::from_static(b"!"), Ok(())).await
    });
    let mut got = receiver.collect(1 << 20).await.unwrap();
    assert_eq!(got.pop(), Some(b'!'));
    assert!(got == sent);
    assert!(receiver.next().await.is_none());
    writer.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_reader_stops_the_writer_and_keeps_the_stream() {
    let bus = Lossy::new(|_| false);
    let (mut sender, mut receiver) = pair(&bus).await;
    let sent = bytes(2_000_000);
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        sender.send(copy).await?;
        sender.finish(Ok(())).await
    });
    // long beyond the time after which a silent reader is taken to be gone
    tokio::time::sleep(SILENCE * 10).await;
    assert!(bus.furthest() <= WINDOW_BYTES);
    assert!(!writer.is_finished());
    assert!(receiver.collect(2_000_000).await.unwrap() == sent);
    writer.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_lives_on_heartbeats() {
    let bus = Lossy::new(|_| false);
    let (mut sender, mut receiver) = pair(&bus).await;
    tokio::time::sleep(SILENCE * 5).await;
    let published = bus.0.lock().unwrap().published;
    assert!((20..=80).contains(&published), "{published} messages in {:?}, one each {HEARTBEAT:?} and side", SILENCE * 5);
    sender.send(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(receiver.next().await.unwrap().unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn both_sides_notice_that_the_other_is_gone() {
    let bus = Lossy::new(|_| true);
    let (mut sender, mut receiver) = pair(&bus).await;
    assert_eq!(receiver.next().await.unwrap().unwrap_err().code, ErrorCode::TimedOut);
    assert!(receiver.next().await.is_none());
    assert_eq!(sender.failed().await.code, ErrorCode::TimedOut);
    assert_eq!(sender.send(bytes(1)).await.unwrap_err().code, ErrorCode::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn the_ends_tell_each_other() {
    let (sender, receiver) = pair(&Lossy::new(|_| false)).await;
    drop(receiver);
    assert_eq!(sender.failed().await.code, ErrorCode::Cancelled);

    let (sender, mut receiver) = pair(&Lossy::new(|_| false)).await;
    drop(sender);
    assert_eq!(receiver.next().await.unwrap().unwrap_err().code, ErrorCode::Cancelled);

    let (sender, mut receiver) = pair(&Lossy::new(|_| false)).await;
    let finish = tokio::spawn(sender.finish(Err(Error::new(ErrorCode::DiskFull, "No room."))));
    assert_eq!(receiver.next().await.unwrap().unwrap_err().code, ErrorCode::DiskFull);
    finish.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_done_doesnt_wait_long_for_an_absent_reader() {
    // the reader ends without a word, as a killed program does
    let killed = Arc::new(AtomicBool::new(false));
    let mute = killed.clone();
    let bus =
        Lossy::new(move |message| message.subject.ends_with(".ack") && message.headers.status.is_none() && mute.load(Ordering::SeqCst));
    let (mut sender, receiver) = pair(&bus).await;
    sender.send(bytes(10)).await.unwrap();
    killed.store(true, Ordering::SeqCst);
    bus.0.lock().unwrap().subscribers.remove(SUBJECT);
    drop(receiver);
    let began = tokio::time::Instant::now();
    assert_eq!(sender.finish(Ok(())).await.unwrap_err().code, ErrorCode::NoResponders);
    assert!(began.elapsed() < SILENCE / 2);
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_ignores_the_window_is_cut_off() {
    let bus = Lossy::new(|_| false);
    let mut receiver = Receiver::open(bus.clone(), SUBJECT).await.unwrap();
    let (subject, ack): (Arc<str>, Arc<str>) = (SUBJECT.into(), "nobody".into());
    for offset in (0..20).map(|at| at * CHUNK_BYTES as u64) {
        let frame = Frame { offset, position: None, bytes: bytes(CHUNK_BYTES), end: None };
        bus.publish(frame.message(&subject, &ack)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut got = 0;
    let error = loop {
        match receiver.next().await.unwrap() {
            Ok(bytes) => got += bytes.len() as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(got <= WINDOW_BYTES);
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // the clock is paused: a day passes in a moment if nobody does anything but wait
    runtime.block_on(async { tokio::time::timeout(Duration::from_hours(24), test).await }).expect("the stream ends within a day");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is lost on the way, in either direction, and however the reader dawdles: all bytes in order, within the window.
    #[test]
    fn exact_bytes_whatever_is_lost(
        sizes in prop::collection::vec(1usize..80_000, 1..40),
        naps in prop::collection::vec(0u64..3000, 1..20),
        seed in any::<u64>(),
        often in 3u64..12,
    ) {
        run(async move {
            // one in so many, without a rhythm: a loss in step with the repetitions would hit each of them for ever
            let mut state = seed;
            let bus = Lossy::new(move |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % often == 0
            });
            let (mut sender, mut receiver) = pair(&bus).await;
            let sent = bytes(sizes.iter().sum());
            let mut rest = sent.clone();
            let writer = tokio::spawn(async move {
                for size in sizes {
                    sender.send(rest.split_to(size)).await?;
                }
                sender.finish(Ok(())).await
            });
            let mut got: Vec<u8> = vec![];
            let mut naps = naps.into_iter().cycle();
            while let Some(chunk) = receiver.next().await {
                got.extend_from_slice(&chunk.unwrap());
                assert!(bus.furthest() <= got.len() as u64 + WINDOW_BYTES);
                let nap = naps.next().unwrap();
                if nap % 3 == 0 {
                    tokio::time::sleep(Duration::from_millis(nap)).await;
                }
            }
            assert!(got == sent);
            // the last acknowledgement may be the one that was lost; then the writer learns that nobody reads any more
            if let Err(error) = writer.await.unwrap() {
                assert!(matches!(error.code, ErrorCode::NoResponders | ErrorCode::TimedOut), "{error:?}");
            }
        });
    }

    /// A bus that goes silent for good in the middle: the bytes so far are right, and both sides hear of it.
    #[test]
    fn a_cut_is_an_error(cut in 0usize..200) {
        run(async move {
            let mut at = 0;
            let bus = Lossy::new(move |_| { at += 1; at > cut });
            let (mut sender, mut receiver) = pair(&bus).await;
            let sent = bytes(10_000_000);
            let copy = sent.clone();
            let writer = tokio::spawn(async move { sender.send(copy).await });
            let mut got: Vec<u8> = vec![];
            let error = loop {
                match receiver.next().await.unwrap() {
                    Ok(chunk) => got.extend_from_slice(&chunk),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.code, ErrorCode::TimedOut);
            assert!(sent.starts_with(&got) && got.len() < sent.len());
            assert_eq!(writer.await.unwrap().unwrap_err().code, ErrorCode::TimedOut);
        });
    }
}
