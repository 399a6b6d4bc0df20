//! Each verb as a plain NATS client uses it.

use std::collections::BTreeSet;

use atoll_contract::{
    Role,
    streams::{self, MAX_RECORD_BYTES, MAX_STREAMS},
    subject,
};
use futures_util::future::join_all;

use super::*;
use crate::streams::END_OF_PAGE;

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_written_and_read_in_all_three_forms() {
    let rig = Rig::new().await;
    let headers = Headers::default().with("Kind", "greeting").with("Nats-Msg-Id", "m1");
    let written = rig.request("log.notes.append", headers, "hello").await;
    let written: serde_json::Value = serde_json::from_slice(&written.payload).unwrap();
    assert_eq!(written["sequence"], 1);
    rig.request("log.notes.append", Headers::default(), vec![0, 255]).await;

    let page = rig.json("log.notes.read", "").await;
    assert_eq!((&page["first_sequence"], &page["last_sequence"], &page["next"]), (&1.into(), &2.into(), &3.into()));
    assert_eq!(page["records"][0]["text"], "hello");
    assert_eq!(page["records"][0]["headers"], serde_json::json!([["Kind", "greeting"]]));
    assert_eq!(page["records"][1]["base64"], "AP8=");
    assert_eq!(page["stream"], written["stream"]);

    let mut inbox = rig.conn.subscribe("_INBOX.me", None).await.unwrap();
    let ask = Message { reply: Some("_INBOX.me".into()), ..Message::new("p.one.log.notes.read", r#"{"format":"messages","max_count":1}"#) };
    rig.conn.publish(ask).await.unwrap();
    let record = inbox.next().await.unwrap();
    assert_eq!(
        (&record.payload[..], record.headers.get("Kind"), record.headers.get(streams::SEQUENCE)),
        (&b"hello"[..], Some("greeting"), Some("1"))
    );
    assert!(record.headers.get(streams::TIME).unwrap().parse::<Timestamp>().is_ok());
    let end = inbox.next().await.unwrap();
    assert_eq!((end.headers.status, end.headers.get(streams::NEXT_SEQUENCE)), (Some(END_OF_PAGE), Some("2")));

    assert_eq!(all(&rig.log("notes")).await[0], (1, "hello".into()));
    let tail = rig.json("log.notes.read", r#"{"last":1}"#).await;
    assert_eq!(tail["records"][0]["sequence"], 2);
    let info = rig.json("log.notes.info", "").await;
    assert_eq!((&info["records"], &info["kind"], &info["name"]), (&2.into(), &"log".into(), &"notes".into()));
    // data, and the kept header as a line
    assert_eq!(info["bytes"], 5 + "Kind: greeting\r\n".len() + 2);
    assert_eq!(rig.json("log.list", "").await["streams"][0]["name"], "notes");
    assert_eq!(rig.json("kv.list", "").await["streams"], serde_json::json!([]));

    rig.json("log.notes.delete", "").await;
    assert_eq!(rig.error("log.notes.read", "").await.0, 404);
    assert_eq!(rig.files(), Vec::<String>::new());
    let again = append(&rig.log("notes"), "x").await.unwrap();
    assert_eq!(again.sequence, 1);
    assert_ne!(again.stream, written["stream"], "a log that begins again is another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_written_and_read() {
    let rig = Rig::new().await;
    let kv = rig.kv("config");
    assert_eq!(put(&kv, "a.b", "one").await.unwrap().sequence, 1);
    assert_eq!(put(&kv, "a.b", "two").await.unwrap().sequence, 2);
    put(&kv, "c", "three").await.unwrap();
    let value = rig.request("kv.config.get.a.b", Headers::default(), "").await;
    assert_eq!(
        (&value.payload[..], value.headers.get(streams::SEQUENCE), value.headers.get(streams::KEY)),
        (&b"two"[..], Some("2"), Some("a.b"))
    );
    assert_eq!(&rig.request("kv.config.get.a.b", Headers::default(), r#"{"revision":1}"#).await.payload[..], b"one");
    assert_eq!(rig.error("kv.config.get.a.b", r#"{"revision":3}"#).await.0, 404, "that is another key's");
    assert_eq!(rig.error("kv.config.get.a", "").await.0, 404);

    assert_eq!(kv.write("delete.a.b", Bytes::new(), WriteOptions::default()).await.unwrap().sequence, 4);
    assert_eq!(code(kv.write("delete.a.b", Bytes::new(), WriteOptions::default()).await), ErrorCode::NotFound);
    let (status, error) = rig.error("kv.config.get.a.b", "").await;
    assert_eq!((status, error.details.unwrap()["deleted"].as_u64()), (404, Some(4)));
    let history = rig.json("kv.config.history.a.b", "").await;
    let revisions: Vec<_> =
        history["records"].as_array().unwrap().iter().map(|record| (record["sequence"].as_u64(), record["deleted"].as_bool())).collect();
    assert_eq!(revisions, [(Some(1), None), (Some(2), None), (Some(4), Some(true))]);
    let newest = rig.json("kv.config.read", r#"{"latest":true}"#).await;
    assert_eq!(newest["records"].as_array().unwrap().len(), 2);

    put(&kv, "a.c", "x").await.unwrap();
    let keys = async |payload: &str| rig.json("kv.config.keys", payload).await;
    let names = |value: &serde_json::Value| {
        value["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&keys("").await), ["a.c", "c"]);
    assert_eq!(names(&keys(r#"{"pattern":"a.>"}"#).await), ["a.c"]);
    let first = keys(r#"{"max_count":1}"#).await;
    assert_eq!((names(&first), &first["next"]), (vec!["a.c".to_owned()], &"a.c".into()));
    assert_eq!(names(&keys(r#"{"after":"a.c"}"#).await), ["c"]);
    assert_eq!(rig.json("kv.config.info", "").await["keys"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_expected_is_compared_and_one_of_many_wins() {
    let rig = Rig::new().await;
    let (log, kv) = (rig.log("l"), rig.kv("k"));
    log.write("append", "a".into(), expect(0)).await.unwrap();
    let headers = Headers::default().with(streams::EXPECTED_LAST, "0");
    let refused = rig.request("log.l.append", headers, "b").await;
    assert_eq!((refused.headers.status, refused.headers.get(streams::LAST_SEQUENCE)), (Some(409), Some("1")));

    for round in 1..=5u64 {
        let racing = (0..16).map(|n| log.write("append", format!("{n}").into(), expect(round)));
        let won: Vec<_> = join_all(racing).await;
        assert_eq!(won.iter().filter(|result| result.is_ok()).count(), 1, "round {round}");
        assert!(won.iter().filter_map(|result| result.as_ref().err()).all(|error| error.code == ErrorCode::Conflict));
    }
    assert_eq!(all(&log).await.len(), 6);

    // 0: the key has no value, also because it was deleted
    let racing = (0..16).map(|n| kv.write("put.key", format!("{n}").into(), expect(0)));
    assert_eq!(join_all(racing).await.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(code(kv.write("delete.key", Bytes::new(), expect(7)).await), ErrorCode::Conflict);
    kv.write("delete.key", Bytes::new(), expect(1)).await.unwrap();
    kv.write("put.key", "x".into(), expect(0)).await.unwrap();
    assert_eq!(kv.write("put.key", "y".into(), expect(3)).await.unwrap().sequence, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_is_known_within_its_window_also_after_a_restart() {
    let rig = Rig::new().await;
    let first = rig.log("l").write("append", "a".into(), with_id("x")).await.unwrap();
    append(&rig.log("l"), "b").await.unwrap();
    let same = rig.log("l").write("append", "a".into(), with_id("x")).await.unwrap();
    assert_eq!((same.sequence, same.duplicate, first.duplicate), (1, true, false));
    // in one transaction, too
    let log = rig.log("l");
    let twins = join_all((0..8).map(|_| log.write("append", "c".into(), with_id("y")))).await;
    assert_eq!(twins.iter().filter(|result| !result.as_ref().unwrap().duplicate).count(), 1);
    rig.log("l").configure(&streams::StreamConfig { max_records: Some(1), ..Default::default() }).await.unwrap();
    let rig = rig.again().await;
    let same = rig.log("l").write("append", "a".into(), with_id("x")).await.unwrap();
    assert!(same.duplicate, "although the record itself was removed");
    rig.clock.advance(Duration::from_secs(streams::DEDUP_SECONDS));
    assert!(rig.log("l").write("append", "a".into(), with_id("x")).await.unwrap().duplicate);
    rig.clock.advance(Duration::from_secs(1));
    let later = rig.log("l").write("append", "a".into(), with_id("x")).await.unwrap();
    assert_eq!((later.sequence, later.duplicate), (4, false));
    let key = rig.kv("k").write("put.a", "1".into(), with_id("x")).await.unwrap();
    assert!(!key.duplicate, "each stream has ids of its own");
    assert!(rig.kv("k").write("put.a", "1".into(), with_id("x")).await.unwrap().duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_what_is_written_and_no_longer_than_asked() {
    let rig = Rig::new().await;
    append(&rig.log("l"), "a").await.unwrap();
    let waits = rig.json("log.l.tail", "");
    let writes = async {
        // the second record is what `tail` waits for, whenever it gets there: until then it is written again and again
        loop {
            append(&rig.log("l"), "b").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let page = tokio::select! {
        page = waits => page,
        () = writes => unreachable!(),
        () = tokio::time::sleep(SOON) => panic!("nothing came"),
    };
    assert_eq!(page["records"][0]["text"], "b");
    let empty = rig.json("log.l.tail", r#"{"wait_millis":50}"#).await;
    assert_eq!(empty["records"], serde_json::json!([]));
    assert_eq!(empty["next"].as_u64().unwrap(), empty["last_sequence"].as_u64().unwrap() + 1);
    assert_eq!(rig.error("log.none.tail", "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_with_its_reason() {
    let rig = Rig::new().await;
    put(&rig.kv("k"), "a", "1").await.unwrap();
    for (subject, payload) in [
        ("log.A.append", "x"),
        ("log.a.read", "{"),
        ("log.a.read", r#"{"form":"json"}"#),
        ("log.a.configure", r#"{"history":3}"#),
        ("log.a.configure", r#"{"max_records":0}"#),
        ("kv.k.configure", r#"{"history":65}"#),
        ("kv.k.keys", r#"{"pattern":"a..b"}"#),
    ] {
        let (status, error) = rig.error(subject, payload).await;
        assert_eq!((status, error.code), (400, ErrorCode::InvalidArgument), "{subject} {payload}");
    }
    for (name, value) in [(streams::EXPECTED_LAST, "x"), (streams::MESSAGE_ID, &"x".repeat(129)), ("Big", &"x".repeat(5000))] {
        let refused = rig.request("log.a.append", Headers::default().with(name, value), "x").await;
        assert_eq!(refused.headers.status, Some(400), "{name}");
    }
    assert_eq!(
        code(rig.log("a").write("append", vec![0; MAX_RECORD_BYTES + 1].into(), WriteOptions::default()).await),
        ErrorCode::TooLarge
    );
    let none = Message::new("p.none.log.a.append", "x");
    assert_eq!(rig.conn.request(none, SOON).await.unwrap().headers.status, Some(404));
    assert_eq!(code(rig.conn.request(Message::new("p.one.log.a.nonsense", ""), SOON).await), ErrorCode::NoResponders);
    assert_eq!(rig.json("log.list", "").await["streams"], serde_json::json!([]), "none of these made a log");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_record_goes_all_ways() {
    let rig = Rig::new().await;
    let mut changes = rig.conn.subscribe("p.one.kv.k.changes.>", None).await.unwrap();
    let key = "k".repeat(streams::MAX_KEY_BYTES);
    let value = vec![7; MAX_RECORD_BYTES - streams::MAX_HEADER_BYTES];
    let headers = vec![("H".to_owned(), "x".repeat(streams::MAX_HEADER_BYTES - 5))];
    let kv = rig.kv("k");
    kv.write(&format!("put.{key}"), value.clone().into(), WriteOptions { headers, ..WriteOptions::default() }).await.unwrap();
    assert_eq!(changes.next().await.unwrap().payload, value);
    assert_eq!(rig.request(&format!("kv.k.get.{key}"), Headers::default(), "").await.payload, value);
    let page = kv.page("read", crate::streams::read_from(1)).await.unwrap();
    assert_eq!(page.records.map(Result::unwrap).next().unwrap().data, value);
    rig.log("l").write("append", vec![1; MAX_RECORD_BYTES].into(), WriteOptions::default()).await.unwrap();
    // as JSON it takes six times the room
    let (status, error) = rig.error("log.l.read", "").await;
    assert_eq!((status, error.code), (413, ErrorCode::TooLarge));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_keeps_its_bounds_and_says_where_to_go_on() {
    let rig = Rig::new().await;
    let log = rig.log("l");
    let records = join_all((0..50).map(|n| log.write("append", vec![n; 50_000].into(), WriteOptions::default()))).await;
    assert!(records.iter().all(Result::is_ok));
    let (mut seen, mut from) = (BTreeSet::new(), 1);
    while from <= 50 {
        let answer = rig.request("log.l.read", Headers::default(), format!(r#"{{"from":{from},"format":"packed"}}"#)).await;
        assert!(answer.payload.len() <= streams::MAX_PAGE_BYTES as usize && answer.payload.len() > 900_000 || from > 30);
        seen.extend(crate::streams::Records::new(answer.payload.clone()).map(|record| record.unwrap().sequence));
        from = answer.headers.get(streams::NEXT_SEQUENCE).unwrap().parse().unwrap();
    }
    assert_eq!(seen.len(), 50);
    // zeros are a hundred thousand bytes in JSON's escapes each, so a page in JSON is shorter than what was read for it
    let page = rig.json("log.l.read", "").await;
    let count = page["records"].as_array().unwrap().len();
    assert!(count > 0 && count < 20, "{count}");
    assert_eq!(page["next"].as_u64().unwrap(), count as u64 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_go_to_inboxes_only() {
    let rig = Rig::new().await;
    append(&rig.log("secret"), "x").await.unwrap();
    let mut forged = rig.conn.subscribe("p.one.log.l.changes", None).await.unwrap();
    let ask = r#"{"format":"messages"}"#;
    rig.conn.publish(Message { reply: Some("p.one.log.l.changes".into()), ..Message::new("p.one.log.secret.read", ask) }).await.unwrap();
    rig.json("log.secret.read", "").await;
    let own = append(&rig.log("l"), "own").await.unwrap();
    let first = forged.next().await.unwrap();
    assert_eq!((&first.payload[..], first.headers.get(streams::STREAM)), (&b"own"[..], Some(&*own.stream)));
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_may_what_the_table_says() {
    let rig = Rig::new().await;
    let project = "0198c0de-0000-7000-8000-000000000003".parse().unwrap();
    let (cancel, clock) = (CancellationToken::new(), rig.clock.clone());
    let service = StreamService::new(rig.router.connect("streams of projects", None), clock, StreamLimits::default());
    let serving = service.listen("project.*", rig.folders.clone()).await.unwrap();
    tokio::spawn(serving.run(cancel.clone()));
    let _end = cancel.drop_guard();
    let conn = |role| rig.router.connect("someone", Some(subject::project_permissions(project, role, "J")));
    let agent = rig.router.connect("agent", Some(subject::agent_permissions(project)));
    for (who, conn, may_write) in [
        ("viewer", conn(Role::Viewer), false),
        ("collaborator", conn(Role::Collaborator), true),
        ("owner", conn(Role::Owner), true),
        ("agent", agent, true),
    ] {
        let at = |rest: &str| Message::new(subject::project(project, rest), "");
        let ask = async |rest: &str| conn.request(at(rest), SOON).await;
        // what is there was written by no one here, so that a viewer has something to read
        let writer = rig.router.connect("writer", None);
        writer.request(at("log.l.append"), SOON).await.unwrap();
        writer.request(at("kv.k.put.a"), SOON).await.unwrap();
        for rest in ["log.l.read", "log.l.info", "log.list", "kv.k.get.a", "kv.k.keys", "kv.k.history.a", "kv.list"] {
            assert_eq!(ask(rest).await.unwrap().headers.status, None, "{who} {rest}");
        }
        for rest in ["log.l.append", "log.l.configure", "kv.k.put.b", "kv.k.delete.b", "kv.k.delete"] {
            assert_eq!(ask(rest).await.is_ok(), may_write, "{who} {rest}");
        }
        for rest in ["log.l.changes", "kv.k.changes.a"] {
            assert_eq!(conn.publish(at(rest)).await.unwrap_err().code, ErrorCode::Forbidden, "{who} forges {rest}");
        }
        for rest in ["log.l.changes", "kv.k.changes.>"] {
            conn.subscribe(&subject::project(project, rest), None).await.unwrap();
        }
        let other = Message::new(format!("project.{}.log.l.read", "0198c0de-0000-7000-8000-000000000004"), "");
        assert_eq!(code(conn.request(other, SOON).await), ErrorCode::Forbidden, "{who}");
        assert_eq!(code(conn.subscribe("project.*.log.l.changes", None).await), ErrorCode::Forbidden, "{who}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_has_a_bounded_number_of_streams() {
    let rig = Rig::new().await;
    append(&rig.log("first"), "x").await.unwrap();
    for n in 1..MAX_STREAMS {
        std::fs::write(rig.file(&format!("kv.n{n}.db")), "").unwrap();
    }
    assert_eq!(code(append(&rig.log("more"), "x").await), ErrorCode::LimitExceeded);
    append(&rig.log("first"), "x").await.unwrap();
    std::fs::remove_file(rig.file("kv.n1.db")).unwrap();
    append(&rig.log("more"), "x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_owner_s_readers_that_wait_are_bounded() {
    let rig = Rig::new().await;
    append(&rig.log("l"), "x").await.unwrap();
    let wait = |millis| {
        let log = rig.log("l");
        async move {
            let request = atoll_contract::streams::ReadRequest { wait_millis: Some(millis), ..crate::streams::read_from(2) };
            log.page("tail", request).await
        }
    };
    let mut waiting = std::pin::pin!(futures_util::future::join_all((0..256).map(|_| wait(20_000))));
    // all are asked in this order, and taken in in this order
    assert!(futures_util::FutureExt::now_or_never(waiting.as_mut()).is_none());
    assert_eq!(code(wait(1).await), ErrorCode::LimitExceeded);
    append(&rig.log("l"), "for all").await.unwrap();
    let pages = tokio::time::timeout(SOON, waiting).await.unwrap();
    assert!(pages.into_iter().all(|page| page.unwrap().next == 3));
    wait(1).await.unwrap();
}
