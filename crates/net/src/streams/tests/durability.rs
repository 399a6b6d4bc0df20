//! Files that are closed, full, damaged.

use super::*;

fn damage(path: &Path, at: usize, bytes: usize) {
    let mut file = std::fs::read(path).unwrap();
    let end = (at + bytes).min(file.len());
    file[at..end].fill(0xa5);
    std::fs::write(path, file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_put_aside_and_all_others_serve_on() {
    let rig = Rig::new().await;
    for n in 0..200 {
        append(&rig.log("bad"), &format!("{n} {}", "x".repeat(500))).await.unwrap();
    }
    append(&rig.log("good"), "a").await.unwrap();
    rig.close().await;
    damage(&rig.file("log.bad.db"), 3 * 4096, 20 * 4096);
    let broken = async || {
        let mut from = 1;
        loop {
            match rig.log("bad").page("read", crate::streams::read_from(from)).await {
                Ok(page) if page.next > page.last => return None,
                Ok(page) => from = page.next,
                Err(error) => return Some(error),
            }
        }
    };
    let error = broken().await.expect("damage is seen");
    assert_eq!(error.code, ErrorCode::StorageFailed);
    let aside = error.details.unwrap()["quarantined"].as_str().unwrap().to_owned();
    assert!(aside.starts_with("log.bad.damaged-") && rig.file(&aside).exists(), "{aside}");
    assert!(!rig.file("log.bad.db").exists());
    // nothing is written to the name, and nothing shows as empty, until someone says so: not by a restart either
    assert_eq!(code(append(&rig.log("bad"), "x").await), ErrorCode::StorageFailed);
    append(&rig.log("good"), "b").await.unwrap();
    let rig = rig.again().await;
    assert_eq!(code(append(&rig.log("bad"), "x").await), ErrorCode::StorageFailed);
    assert_eq!(code(rig.log("bad").info().await), ErrorCode::StorageFailed);
    assert_eq!(all(&rig.log("good")).await.len(), 2);
    let list = rig.json("log.list", "").await;
    assert_eq!((&list["streams"][0]["name"], &list["streams"][0]["quarantined"]), (&"bad".into(), &aside.as_str().into()));
    assert_eq!(code(rig.log("good").reset().await), ErrorCode::Conflict, "only what is damaged is given up");
    rig.log("bad").reset().await.unwrap();
    assert_eq!(append(&rig.log("bad"), "x").await.unwrap().sequence, 1);
    assert!(rig.file(&aside).exists(), "what was damaged can still be looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_or_lost_its_contents_is_not_taken_for_a_new_one() {
    let rig = Rig::new().await;
    for (name, contents) in [
        ("empty", &b""[..]),
        ("text", b"this is not a database, although it is long enough for a header of one, or is it? It is."),
        ("zeros", &[0; 8192]),
    ] {
        append(&rig.log(name), "a").await.unwrap();
        rig.close().await;
        std::fs::write(rig.file(&format!("log.{name}.db")), contents).unwrap();
        assert_eq!(code(append(&rig.log(name), "b").await), ErrorCode::StorageFailed, "{name}");
        assert_eq!(code(append(&rig.log(name), "b").await), ErrorCode::StorageFailed, "{name}");
    }
    // the file of another kind
    put(&rig.kv("k"), "a", "1").await.unwrap();
    rig.close().await;
    std::fs::rename(rig.file("kv.k.db"), rig.file("log.k.db")).unwrap();
    assert_eq!(code(rig.log("k").info().await), ErrorCode::StorageFailed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_that_was_cut_off_is_finished() {
    let rig = Rig::new().await;
    append(&rig.log("l"), "a").await.unwrap();
    rig.close().await;
    // as a crash after the mark was written leaves it
    std::fs::write(rig.file("log.l.quarantined"), "log.l.damaged-7").unwrap();
    assert_eq!(code(append(&rig.log("l"), "b").await), ErrorCode::StorageFailed);
    assert_eq!(rig.files(), ["log.l.damaged-7", "log.l.quarantined"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_half_made_is_made() {
    let rig = Rig::new().await;
    append(&rig.log("l"), "a").await.unwrap();
    std::fs::write(rig.file("log.m.new"), "half").unwrap();
    // left by a deletion that was cut off: its frames aren't the new file's
    std::fs::copy(rig.file("log.l.db-wal"), rig.file("log.m.db-wal")).unwrap();
    assert_eq!(code(rig.log("m").info().await), ErrorCode::NotFound);
    append(&rig.log("m"), "b").await.unwrap();
    assert_eq!(all(&rig.log("m")).await, [(1, "b".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_loses_nothing() {
    let rig = Rig::new().await;
    append(&rig.log("l"), "a").await.unwrap();
    // the file is with the thread that answered, until that has put it back
    let filled = async {
        while !rig.engine().look_at(&id(StreamKind::Log, "l"), |db| db.fill(true)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, filled).await.unwrap();
    let big = "x".repeat(100_000);
    assert_eq!(code(append(&rig.log("l"), &big).await), ErrorCode::DiskFull);
    assert_eq!(all(&rig.log("l")).await, [(1, "a".into())]);
    assert_eq!(append(&rig.log("l"), &big).await.unwrap().sequence, 2, "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_program_left_is_all_there() {
    let rig = Rig::new().await;
    for n in 0..20 {
        append(&rig.log("l"), &n.to_string()).await.unwrap();
        put(&rig.kv("k"), "a", &n.to_string()).await.unwrap();
    }
    // the files as they are while the program runs are those that it leaves when it is killed
    let left = tempfile::tempdir().unwrap();
    let to = left.path().join(PREFIX).join("streams");
    std::fs::create_dir_all(&to).unwrap();
    for file in rig.files() {
        std::fs::copy(rig.file(&file), to.join(file)).unwrap();
    }
    assert!(to.join("log.l.db-wal").metadata().unwrap().len() > 0);
    let other = Rig::on(Arc::new(Folders(left)), rig.clock.clone(), StreamLimits::default()).await;
    assert_eq!(all(&other.log("l")).await, all(&rig.log("l")).await);
    assert_eq!(all(&other.kv("k")).await, all(&rig.kv("k")).await);
    assert_eq!(append(&other.log("l"), "next").await.unwrap().sequence, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_files_are_bounded_and_idle_ones_closed() {
    let limits =
        StreamLimits { open: 4, threads: 2, idle: Duration::from_millis(30), look: Duration::from_millis(10), ..StreamLimits::default() };
    let rig = Rig::with(limits).await;
    for n in 0..20 {
        append(&rig.log(&format!("l{n}")), "a").await.unwrap();
        assert!(rig.engine().open_now() <= 4 + 2, "{}", rig.engine().open_now());
    }
    let none = async {
        while rig.engine().open_now() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, none).await.unwrap();
    assert!(rig.files().iter().all(|file| file.strip_suffix(".db").is_some()), "{:?}", rig.files());
    for n in 0..20 {
        assert_eq!(append(&rig.log(&format!("l{n}")), "b").await.unwrap().sequence, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_streams_stay_closed_until_allowed() {
    let rig = Rig::new().await;
    append(&rig.log("l"), "a").await.unwrap();
    let barred = rig.service.close(PREFIX).await;
    assert_eq!(rig.engine().open_now(), 0);
    assert_eq!(code(append(&rig.log("l"), "b").await), ErrorCode::Unavailable);
    // looking at what is there may finish a quarantine, so it is a use as any other
    assert_eq!(rig.error("log.list", "").await.1.code, ErrorCode::Unavailable);
    drop(barred);
    append(&rig.log("l"), "b").await.unwrap();
    let listing = rig.engine().begin_listing(&PREFIX.into()).unwrap();
    let mut closing = std::pin::pin!(rig.service.close(PREFIX));
    let mut turns = 0;
    while rig.engine().open_now() > 0 || turns < 10 {
        assert!(futures_util::poll!(closing.as_mut()).is_pending(), "closed while it is being listed");
        turns += 1;
        tokio::task::yield_now().await;
    }
    drop(listing);
    drop(tokio::time::timeout(SOON, closing).await.unwrap());
    assert_eq!(rig.json("log.list", "").await["streams"][0]["name"], "l");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_that_waits_is_refused_and_told() {
    let rig = Rig::with(StreamLimits { waiting: 2, threads: 1, batch: 1, ..StreamLimits::default() }).await;
    let log = rig.log("l");
    let done = futures_util::future::join_all((0..64).map(|_| append(&log, "x"))).await;
    let written = done.iter().filter(|result| result.is_ok()).count();
    assert!(written > 0 && written < 64, "{written}");
    assert!(done.into_iter().filter_map(Result::err).all(|error| error.code == ErrorCode::LimitExceeded && error.retry));
    assert_eq!(all(&log).await.len(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_owner_s_bytes_that_wait_are_bounded() {
    let rig = Rig::with(StreamLimits { waiting_bytes_of_one: 250, threads: 1, batch: 1, ..StreamLimits::default() }).await;
    let log = rig.log("l");
    let data = "x".repeat(100);
    let other = RawStream::new(rig.conn.clone(), "p.two", StreamKind::Log, &"l".parse().unwrap());
    let all_of_one = futures_util::future::join_all((0..64).map(|_| append(&log, &data)));
    let (done, of_another) = tokio::join!(all_of_one, append(&other, &data));
    of_another.unwrap();
    let written = done.iter().filter(|result| result.is_ok()).count();
    assert!(written > 0 && written < 64, "{written}");
    assert!(done.into_iter().filter_map(Result::err).all(|error| error.code == ErrorCode::LimitExceeded && error.retry));
    append(&log, &data).await.unwrap();
    assert_eq!(code(append(&log, &"x".repeat(251)).await), ErrorCode::LimitExceeded);
}

/// Makes a stream's file anew as programs before schema 2 wrote it: headers and data in columns of their own.
fn as_of_schema_1(path: &Path, rows: &[String]) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch(
            "DROP TABLE record;
             CREATE TABLE record (sequence INTEGER PRIMARY KEY, time INTEGER NOT NULL, size INTEGER NOT NULL, total INTEGER, key TEXT,
               deleted INTEGER NOT NULL, headers BLOB, data BLOB NOT NULL);
             PRAGMA user_version = 1;",
        )
        .unwrap();
    for row in rows {
        connection.execute(&format!("INSERT INTO record VALUES ({row})"), []).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_older_schema_is_brought_up_to_date() {
    let rig = Rig::new().await;
    for n in 1..=3 {
        append(&rig.log("l"), &format!("{n}")).await.unwrap();
    }
    put(&rig.kv("k"), "a", "1").await.unwrap();
    rig.kv("k").write("delete.a", Bytes::new(), WriteOptions::default()).await.unwrap();
    put(&rig.kv("k"), "b.c", "2").await.unwrap();
    rig.close().await;
    let headers = "CAST('A: b' || char(13, 10) AS BLOB)";
    as_of_schema_1(
        &rig.file("log.l.db"),
        &["1, 7, 3, 3, NULL, 0, NULL, x'616263'", "2, 7, 8, 11, NULL, 0, HEADERS, x'0078'", "3, 9, 0, 11, NULL, 0, NULL, x''"]
            .map(|row| row.replace("HEADERS", headers)),
    );
    as_of_schema_1(
        &rig.file("kv.k.db"),
        // of the rig's own time, or the deletion would be forgotten
        &["1, NOW, 2, NULL, 'a', 0, NULL, x'31'", "2, NOW, 1, NULL, 'a', 1, NULL, x''", "3, NOW, 4, NULL, 'b.c', 0, NULL, x'32'"]
            .map(|row| row.replace("NOW", "1795000000000")),
    );
    let page = rig.log("l").page("read", crate::streams::read_from(1)).await.unwrap();
    let records: Vec<_> = page.records.map(Result::unwrap).collect();
    assert_eq!(records.iter().map(|record| (record.sequence, record.time.millis())).collect::<Vec<_>>(), [(1, 7), (2, 7), (3, 9)]);
    assert_eq!(records.iter().map(|record| &record.data[..]).collect::<Vec<_>>(), [&b"abc"[..], b"\0x", b""]);
    assert_eq!(records[1].headers, [("A".to_owned(), "b".to_owned())]);
    assert_eq!(rig.log("l").info().await.unwrap().bytes, 11);
    assert_eq!(append(&rig.log("l"), "d").await.unwrap().sequence, 4);

    let all = all(&rig.kv("k")).await;
    assert_eq!(all, [(1, "1".into()), (2, String::new()), (3, "2".into())]);
    let value = rig.request("kv.k.get.b.c", Headers::default(), "").await;
    assert_eq!((&value.payload[..], value.headers.get("Nats-Sequence")), (&b"2"[..], Some("3")));
    assert_eq!(rig.error("kv.k.get.a", "").await.1.code, ErrorCode::NotFound);
    // and its look-up by key goes by the index again
    rig.close().await;
    for file in ["kv.k.db", "log.l.db"] {
        let connection = rusqlite::Connection::open(rig.file(file)).unwrap();
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("PRAGMA user_version"), 2, "{file}");
        assert_eq!(count("SELECT count(*) FROM sqlite_schema WHERE name = 'old'"), 0, "{file}");
        let indices = count("SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'record'");
        assert_eq!(indices, i64::from(file.starts_with("kv")), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_older_schema_that_is_damaged_is_put_aside_as_it_was() {
    let rig = Rig::new().await;
    append(&rig.log("l"), "a").await.unwrap();
    rig.close().await;
    as_of_schema_1(&rig.file("log.l.db"), &["1, 7, 1, 1, NULL, 0, NULL, 'text, which no record is'".to_owned()]);
    let error = rig.log("l").info().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::StorageFailed);
    let aside = error.details.unwrap()["quarantined"].as_str().unwrap().to_owned();
    let connection = rusqlite::Connection::open(rig.file(&aside)).unwrap();
    assert_eq!(connection.query_row("SELECT data FROM record", [], |row| row.get::<_, String>(0)).unwrap(), "text, which no record is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_changed_behind_the_program_is_damage() {
    for wrong in ["x''", "substr(packed, 2)", "packed || x'00'", "'text'", "zeroblob(1048576)"] {
        let rig = Rig::new().await;
        append(&rig.log("l"), "a").await.unwrap();
        rig.close().await;
        let connection = rusqlite::Connection::open(rig.file("log.l.db")).unwrap();
        connection.execute(&format!("UPDATE record SET packed = {wrong}"), []).unwrap();
        drop(connection);
        let read = rig.log("l").page("read", crate::streams::read_from(1)).await;
        assert_eq!(read.unwrap_err().code, ErrorCode::StorageFailed, "{wrong}");
    }
}
