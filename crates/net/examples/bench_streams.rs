//! Measures logs over the bus against plain SQLite with the same durability, in one run; `cargo xtask bench streams` runs it. The one argument is
//! a directory on the disk that is meant.
//!
//! A client is a program of its own as a rule, so here it has a thread and a runtime of its own and comes over TCP. The anchor does all in its
//! caller's thread.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails ends")]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use atoll_contract::{Error, streams::StreamKind, subject::Permissions};
use atoll_net::{
    bus::{Authenticator, BusLimits, Conn, Credentials, Grant, Router, client},
    clock::SystemClock,
    streams::{RawStream, Roots, StreamLimits, StreamService, WriteOptions, read_from},
};
use bytes::Bytes;
use rusqlite::Connection;
use tokio::{net::TcpStream, time::Instant};
use tokio_util::sync::CancellationToken;

const RECORD: [u8; 128] = [b'x'; 128];
/// Each figure is the median of so many rounds, ours and the anchor's in turns.
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_secs(1);
const WRITERS: usize = 16;
const REPLAYED: u64 = 200_000;

struct Open;

impl Authenticator for Open {
    fn required(&self) -> bool {
        false
    }

    fn connect(&self, _: &Credentials) -> Result<Vec<Grant>, Error> {
        let all = || vec![">".to_owned()];
        let permissions = Permissions { publish: all(), subscribe: all(), ..Permissions::default() };
        Ok(vec![Grant { key: "bench".into(), permissions, account: None, expires_at: None }])
    }
}

struct OneRoot(Arc<Path>);

impl Roots for OneRoot {
    fn root(&self, _: &str) -> Result<Arc<Path>, Error> {
        Ok(self.0.clone())
    }
}

#[tokio::main]
async fn main() {
    let dir = std::env::args().nth(1).expect("a directory");
    let dir = tempfile::tempdir_in(dir).unwrap();
    let router = Router::new(BusLimits::default(), Arc::new(SystemClock));
    let service = StreamService::new(router.connect("streams", None), Arc::new(SystemClock), StreamLimits::default());
    let cancel = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(router.serve_tcp(listener, Arc::new(Open), cancel.clone()));
    let serving = service.listen("bench", Arc::new(OneRoot(dir.path().join("streams").into()))).await.unwrap();
    let serving = tokio::spawn(serving.run(cancel.clone()));

    let mut report = serde_json::json!({ "record_bytes": RECORD.len(), "aim_ratio": 0.7 });
    // what one writer waits for besides the disk, at the least
    report["round_trip"] =
        serde_json::json!({ "per_s": as_client(async move || round_trips(log(addr, "none").await).await).await.round() });
    for (name, writers, ids, over_tcp) in [
        ("one_writer", 1, false, true),
        ("one_writer_in_process", 1, false, false),
        ("sixteen_writers", WRITERS, false, true),
        ("one_writer_with_ids", 1, true, true),
        ("sixteen_writers_with_ids", WRITERS, true, true),
    ] {
        let (mut ours, mut anchors) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let stream = format!("{}-{round}", name.replace('_', "-"));
            ours.push(if over_tcp {
                as_client(async move || {
                    let logs = futures_util::future::join_all((0..writers).map(|_| log(addr, &stream))).await;
                    append_for(logs, ids).await
                })
                .await
            } else {
                let log = RawStream::new(router.connect("writer", None), "bench", StreamKind::Log, &stream.parse().unwrap());
                append_for(vec![log], ids).await
            });
            let file = dir.path().join(format!("{name}-{round}.db"));
            anchors.push(tokio::task::spawn_blocking(move || anchor_append(&file, writers)).await.unwrap());
        }
        report[name] = figures(&ours, &anchors, "plain SQLite, one record a transaction, a connection a thread");
    }
    as_client(async move || fill(&log(addr, "replay").await).await).await;
    let file = dir.path().join("replay.db");
    anchor_fill(&file);
    let (mut ours, mut anchors) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mine = as_client(async move || replay(&log(addr, "replay").await).await).await;
        let file = file.clone();
        let anchor = tokio::task::spawn_blocking(move || anchor_replay(&file)).await.unwrap();
        // the first of each warms the caches up
        if round > 0 {
            ours.push(mine);
            anchors.push(anchor);
        }
    }
    report["replay"] = figures(&ours, &anchors, "plain SQLite, one SELECT, each record copied out");
    println!("{report}");
    cancel.cancel();
    serving.await.unwrap();
}

/// Does something as a program of its own would.
async fn as_client<T: Send + 'static>(work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::spawn_blocking(move || runtime().block_on(work())).await.unwrap()
}

async fn log(addr: SocketAddr, name: &str) -> RawStream {
    let socket = TcpStream::connect(addr).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let conn: Arc<dyn Conn> = Arc::new(client::connect(socket, client::Options::default()).await.unwrap());
    RawStream::new(conn, "bench", StreamKind::Log, &name.parse().unwrap())
}

/// Questions that nobody answers, one after the other: the bus says so itself, so each is a way there and back over the socket and nothing else.
async fn round_trips(log: RawStream) -> f64 {
    let (begin, mut count) = (Instant::now(), 0u64);
    while begin.elapsed() < ROUND {
        log.call("no-such-verb", atoll_net::bus::Headers::default(), Bytes::new()).await.unwrap_err();
        count += 1;
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

/// Medians of records a second, and of the ratios of each round: a disk's pace changes from one minute to the next, less so within a round.
fn figures(ours: &[f64], anchors: &[f64], what: &str) -> serde_json::Value {
    let median = |mut all: Vec<f64>| {
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let ratio = median(ours.iter().zip(anchors).map(|(ours, anchor)| ours / anchor).collect());
    let (ours, anchor) = (median(ours.to_vec()), median(anchors.to_vec()));
    serde_json::json!({ "atoll_per_s": ours.round(), "anchor": { "what": what, "per_s": anchor.round() }, "ratio": (ratio * 100.0).round() / 100.0 })
}

/// Each appends and waits for the acknowledgement before the next.
async fn append_for(logs: Vec<RawStream>, ids: bool) -> f64 {
    let begin = Instant::now();
    let writers = logs.into_iter().enumerate().map(|(writer, log)| {
        tokio::spawn(async move {
            let mut count = 0u64;
            while begin.elapsed() < ROUND {
                let message_id = ids.then(|| format!("{writer}-{count}"));
                log.write("append", Bytes::from_static(&RECORD), WriteOptions { message_id, ..WriteOptions::default() }).await.unwrap();
                count += 1;
            }
            count
        })
    });
    let mut count = 0;
    for writer in writers.collect::<Vec<_>>() {
        count += writer.await.unwrap();
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

fn anchor_open(file: &Path) -> Connection {
    let connection = Connection::open(file).unwrap();
    connection.busy_timeout(Duration::from_mins(1)).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE IF NOT EXISTS record (sequence INTEGER PRIMARY KEY, time INTEGER NOT NULL, data BLOB NOT NULL);",
        )
        .unwrap();
    connection
}

fn anchor_append(file: &Path, writers: usize) -> f64 {
    let connections: Vec<_> = (0..writers).map(|_| anchor_open(file)).collect();
    let begin = Instant::now();
    let count: u64 = std::thread::scope(|scope| {
        let threads = connections.into_iter().map(|connection| {
            scope.spawn(move || {
                let mut count = 0u64;
                while begin.elapsed() < ROUND {
                    connection
                        .prepare_cached("INSERT INTO record (time, data) VALUES (?1, ?2)")
                        .unwrap()
                        .execute((count as i64, &RECORD[..]))
                        .unwrap();
                    count += 1;
                }
                count
            })
        });
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    count as f64 / begin.elapsed().as_secs_f64()
}

async fn fill(log: &RawStream) {
    for _ in 0..REPLAYED / 1000 {
        let appends = (0..1000).map(|_| log.write("append", Bytes::from_static(&RECORD), WriteOptions::default()));
        futures_util::future::join_all(appends).await.into_iter().for_each(|done| drop(done.unwrap()));
    }
}

fn anchor_fill(file: &Path) {
    let mut connection = anchor_open(file);
    let transaction = connection.transaction().unwrap();
    for time in 0..REPLAYED {
        transaction.prepare_cached("INSERT INTO record (time, data) VALUES (?1, ?2)").unwrap().execute((time as i64, &RECORD[..])).unwrap();
    }
    transaction.commit().unwrap();
}

/// Reads all records from the first to the last, as a client that has been away does.
async fn replay(log: &RawStream) -> f64 {
    let (begin, mut count, mut pages) = (Instant::now(), 0u64, log.pages(read_from(1)));
    while let Some(page) = pages.next().await.unwrap() {
        for record in page.records {
            assert_eq!(record.unwrap().data.len(), RECORD.len());
            count += 1;
        }
    }
    assert_eq!(count, REPLAYED);
    count as f64 / begin.elapsed().as_secs_f64()
}

fn anchor_replay(file: &Path) -> f64 {
    let connection = anchor_open(file);
    let begin = Instant::now();
    let mut statement = connection.prepare("SELECT sequence, time, data FROM record ORDER BY sequence").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?))).unwrap();
    let mut count = 0;
    for row in rows {
        assert_eq!(row.unwrap().2.len(), RECORD.len());
        count += 1;
    }
    assert_eq!(count, REPLAYED);
    count as f64 / begin.elapsed().as_secs_f64()
}
