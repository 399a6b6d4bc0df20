//! What is kept, and what isn't any more.

use atoll_contract::streams::{StreamConfig, StreamInfo};

use super::*;

fn config() -> StreamConfig {
    StreamConfig::default()
}

async fn sequences(stream: &RawStream) -> Vec<u64> {
    all(stream).await.into_iter().map(|(sequence, _)| sequence).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_gives_up_its_oldest_records_by_count_bytes_and_age() {
    let rig = Rig::new().await;
    let log = rig.log("l");
    for n in 1..=10 {
        append(&log, &"x".repeat(n)).await.unwrap();
    }
    let info: StreamInfo = log.configure(&StreamConfig { max_records: Some(6), ..config() }).await.unwrap();
    assert_eq!((info.records, info.first_sequence, info.last_sequence, info.bytes), (6, 5, 10, 5 + 6 + 7 + 8 + 9 + 10));
    append(&log, "0123456789a").await.unwrap();
    assert_eq!(sequences(&log).await, [6, 7, 8, 9, 10, 11]);
    let info = log.configure(&StreamConfig { max_bytes: Some(30), ..config() }).await.unwrap();
    assert_eq!((info.bytes, info.first_sequence), (30, 9), "9 + 10 + 11 bytes");
    assert_eq!(code(append(&log, &"x".repeat(31)).await), ErrorCode::TooLarge);
    log.configure(&StreamConfig { max_age_seconds: Some(60), ..config() }).await.unwrap();
    rig.clock.advance(Duration::from_secs(40));
    append(&log, "young").await.unwrap();
    rig.clock.advance(Duration::from_secs(30));
    assert_eq!(sequences(&log).await, [12], "what is too old isn't shown, although nothing was written");
    rig.clock.advance(Duration::from_mins(1));
    assert_eq!(sequences(&log).await, Vec::<u64>::new());
    // an empty log knows where it was, also after a restart
    let rig = rig.again().await;
    let info = rig.log("l").info().await.unwrap();
    assert_eq!((info.records, info.bytes, info.first_sequence, info.last_sequence), (0, 0, 13, 12));
    assert_eq!(append(&rig.log("l"), "next").await.unwrap().sequence, 13);
    assert_eq!(rig.log("l").info().await.unwrap().bytes, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_goes_although_nobody_asks() {
    let rig = Rig::with(StreamLimits { look: Duration::from_millis(10), ..StreamLimits::default() }).await;
    let log = rig.log("l");
    log.configure(&StreamConfig { max_age_seconds: Some(60), ..config() }).await.unwrap();
    append(&log, "old").await.unwrap();
    rig.clock.advance(Duration::from_secs(61));
    let gone = async {
        loop {
            let mut first = 0;
            if rig.engine().look_at(&id(StreamKind::Log, "l"), |db| first = db.state.first) && first == 2 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_keeps_a_key_s_newest_revisions_and_never_loses_a_value() {
    let rig = Rig::new().await;
    let kv = rig.kv("k");
    kv.configure(&StreamConfig { history: Some(2), max_bytes: Some(12), max_records: Some(2), ..config() }).await.unwrap();
    for text in ["11", "22", "33"] {
        put(&kv, "a", text).await.unwrap();
    }
    assert_eq!(sequences(&kv).await, [2, 3]);
    put(&kv, "b", "44").await.unwrap();
    assert_eq!(code(put(&kv, "c", "5").await), ErrorCode::LimitExceeded, "as many keys as it may have");
    assert_eq!(code(put(&kv, "b", "0123456").await), ErrorCode::LimitExceeded, "9 bytes are used, of 12");
    // what the put itself frees counts
    put(&kv, "a", "55555").await.unwrap();
    assert_eq!(kv.info().await.unwrap().bytes, 3 + 3 + 6);
    // a full store can be emptied
    kv.write("delete.a", Bytes::new(), WriteOptions::default()).await.unwrap();
    assert_eq!(kv.info().await.unwrap().keys, Some(1));
    put(&kv, "c", "5").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_forgets_old_revisions_and_deletions_and_says_so_to_who_missed_them() {
    let rig = Rig::new().await;
    let kv = rig.kv("k");
    kv.configure(&StreamConfig { max_age_seconds: Some(600), ..config() }).await.unwrap();
    for (key, text) in [("a", "1"), ("a", "2"), ("b", "3")] {
        put(&kv, key, text).await.unwrap();
    }
    kv.write("delete.b", Bytes::new(), WriteOptions::default()).await.unwrap();
    rig.clock.advance(Duration::from_secs(700));
    put(&kv, "c", "5").await.unwrap();
    assert_eq!(sequences(&kv).await, [2, 5], "a's value is old and stays");
    let missed = kv.page("read", crate::streams::read_from(4)).await;
    let error = missed.unwrap_err();
    assert_eq!((error.code, error.details.unwrap()["floor"].as_u64()), (ErrorCode::Conflict, Some(4)));
    assert!(kv.page("read", crate::streams::read_from(5)).await.is_ok());
    let rig = rig.again().await;
    let info = rig.kv("k").info().await.unwrap();
    assert_eq!((info.records, info.bytes, info.keys), (2, 4, Some(2)));
    assert_eq!(code(rig.kv("k").page("read", crate::streams::read_from(3)).await), ErrorCode::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_read_before_it_was_asked_for_is_as_if_read_now() {
    let rig = Rig::new().await;
    let log = rig.log("l");
    for n in 1..=8 {
        append(&log, &n.to_string()).await.unwrap();
    }
    let page = async |from| {
        let request = atoll_contract::streams::ReadRequest { max_count: Some(2), ..crate::streams::read_from(from) };
        let page = log.page("read", request).await.unwrap();
        let sequences: Vec<_> = page.records.map(|record| record.unwrap().sequence).collect();
        (sequences, page.next, page.first, page.last)
    };
    assert_eq!(page(1).await, (vec![1, 2], 3, 1, 8));
    append(&log, "9").await.unwrap();
    assert_eq!(page(3).await, (vec![3, 4], 5, 1, 9), "of which the end is known that is there now");
    // what was to come next is given up meanwhile
    log.configure(&StreamConfig { max_records: Some(2), ..config() }).await.unwrap();
    assert_eq!(page(5).await, (vec![8, 9], 10, 8, 9));
    assert_eq!(page(3).await, (vec![8, 9], 10, 8, 9));
    // the next stream of that name has nothing of this one
    append(&log, "10").await.unwrap();
    log.configure(&config()).await.unwrap();
    append(&log, "11").await.unwrap();
    assert_eq!(page(9).await, (vec![9, 10], 11, 9, 11));
    log.delete().await.unwrap();
    append(&log, "anew").await.unwrap();
    assert_eq!(page(11).await, (vec![], 11, 1, 1));
}
