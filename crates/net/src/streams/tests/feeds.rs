//! Changefeeds: nothing missing, nothing twice, nothing out of order.

use std::collections::BTreeMap;

use futures_util::{StreamExt, future::join_all};
use serde::{Deserialize, Serialize};

use super::*;
use crate::streams::{Change, Entry, Feed, Kv, Log, StoredRecord};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    text: String,
}

async fn next(feed: &mut Feed) -> Change<StoredRecord> {
    tokio::time::timeout(SOON, feed.next()).await.expect("the feed goes on").unwrap()
}

async fn sequence(feed: &mut Feed) -> u64 {
    match next(feed).await {
        Change::Record(record) => record.sequence,
        Change::Reset => panic!("the feed begins again"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_begins_while_others_write_has_every_record_once() {
    let rig = Rig::new().await;
    let log = rig.log("l");
    // a feed from beyond the end would begin again: whoever knew such a sequence knew another stream
    let write = async || join_all((0..40).map(|_| append(&log, "x"))).await.into_iter().for_each(|result| drop(result.unwrap()));
    write().await;
    let feeds = (0..4).map(|from| {
        let mut feed = log.follow(from * 10 + 1);
        tokio::spawn(async move {
            for wanted in from * 10 + 1..=400 {
                assert_eq!(sequence(&mut feed).await, wanted);
            }
        })
    });
    let feeds: Vec<_> = feeds.collect();
    for _ in 1..10 {
        write().await;
    }
    for feed in feeds {
        feed.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_fills_holes_and_survives_the_end_of_its_subscription() {
    let rig = Rig::new().await;
    let log = rig.log("l");
    let mut feed = log.follow(1);
    append(&log, "1").await.unwrap();
    assert_eq!(sequence(&mut feed).await, 1);
    // changes that never came: what is written while the service's publications can't be heard
    for _ in 0..3 {
        ask(&rig, StreamKind::Log, "l", Ask::Write(plain("x"))).await.unwrap();
    }
    // a publication that comes late or twice is nobody's
    let identity = log.info().await.unwrap().stream;
    let forged =
        Headers::default().with("Nats-Sequence", "1").with("Atoll-Stream", identity).with("Nats-Time-Stamp", "2026-01-01T00:00:00Z");
    rig.conn.publish(Message { headers: forged.clone(), ..Message::new("p.one.log.l.changes", "old") }).await.unwrap();
    for wanted in 2..=4 {
        assert_eq!(sequence(&mut feed).await, wanted);
    }
    let mut far = forged;
    far.fields[0].1 = "9".into();
    rig.conn.publish(Message { headers: far, ..Message::new("p.one.log.l.changes", "not there") }).await.unwrap();
    append(&log, "5").await.unwrap();
    assert_eq!(sequence(&mut feed).await, 5);
}

fn plain(text: &str) -> crate::streams::write::Write {
    let data = Bytes::copy_from_slice(text.as_bytes());
    crate::streams::write::Write { key: None, delete: false, headers: Bytes::new(), data, message_id: None, expected: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_holds_up_nobody_and_finds_everything_later() {
    let rig = Rig::new().await;
    let log = rig.log("l");
    let mut feed = log.follow(1);
    append(&log, "first").await.unwrap();
    assert_eq!(sequence(&mut feed).await, 1);
    // far more than the bus queues for one who doesn't read
    let data = Bytes::from(vec![b'x'; 500_000]);
    for _ in 0..10 {
        let written = join_all((0..8).map(|_| log.write("append", data.clone(), WriteOptions::default()))).await;
        written.into_iter().for_each(|result| drop(result.unwrap()));
    }
    for wanted in 2..=81 {
        assert_eq!(sequence(&mut feed).await, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_told_and_the_feed_goes_on_with_the_successor() {
    let rig = Rig::new().await;
    let log = rig.log("l");
    let mut feed = log.follow(1);
    append(&log, "1").await.unwrap();
    assert_eq!(sequence(&mut feed).await, 1);
    log.delete().await.unwrap();
    assert_eq!(next(&mut feed).await, Change::Reset);
    append(&log, "again").await.unwrap();
    let Change::Record(record) = next(&mut feed).await else { panic!("it begins again twice") };
    assert_eq!((record.sequence, &record.data[..]), (1, &b"again"[..]));
    // one that hasn't heard of it notices by the identity
    let mut late = log.follow(1);
    assert_eq!(sequence(&mut late).await, 1);
    rig.log("l").delete().await.unwrap();
    append(&log, "a").await.unwrap();
    append(&log, "b").await.unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(match next(&mut late).await {
            Change::Record(record) => String::from_utf8_lossy(&record.data).into_owned(),
            Change::Reset => "reset".into(),
        });
    }
    assert_eq!(told, ["reset", "a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_have_types() {
    let rig = Rig::new().await;
    let log: Log<Note> = Log::new(rig.conn.clone(), PREFIX, &"l".parse().unwrap());
    let note = |text: &str| Note { text: text.into() };
    log.append(&note("a"), WriteOptions::default()).await.unwrap();
    append(log.stream(), "not a note").await.unwrap();
    log.append(&note("b"), WriteOptions::default()).await.unwrap();
    let mut feed = Box::pin(log.follow(1).into_stream());
    let told: Vec<_> = [feed.next().await, feed.next().await, feed.next().await].into_iter().map(Option::unwrap).collect();
    assert!(matches!(&told[0], Ok(Change::Record(Entry { value: Some(value), .. })) if *value == note("a")));
    assert_eq!(told[1].as_ref().unwrap_err().code, ErrorCode::InvalidArgument);
    assert!(matches!(&told[2], Ok(Change::Record(Entry { value: Some(value), sequence: 3, .. })) if *value == note("b")));
    assert_eq!(log.read(1, 1).await.unwrap().1, 2);

    let kv: Kv<Note> = Kv::new(rig.conn.clone(), PREFIX, &"k".parse().unwrap());
    let mut watch = kv.watch();
    kv.put("a.b", &note("1"), WriteOptions::default()).await.unwrap();
    kv.put("c", &note("2"), WriteOptions::default()).await.unwrap();
    kv.delete("a.b", WriteOptions::default()).await.unwrap();
    let mut seen = BTreeMap::new();
    while seen.get("a.b") != Some(&None) {
        let Change::Record(entry) = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap() else { panic!("it begins again") };
        seen.insert(entry.key, entry.value);
    }
    assert_eq!(seen["c"], Some(note("2")));
    assert_eq!(kv.get("c", None).await.unwrap().unwrap().value, Some(note("2")));
    assert_eq!(kv.get("a.b", None).await.unwrap(), None);
    assert_eq!(kv.get("a.b", Some(1)).await.unwrap().unwrap().value, Some(note("1")));
    assert_eq!(kv.history("a.b").await.unwrap().len(), 2);
    assert_eq!(kv.keys(&atoll_contract::streams::KeysRequest::default()).await.unwrap().keys.len(), 1);
}
