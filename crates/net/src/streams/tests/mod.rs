//! The service over a bus in process, on real files.

mod durability;
mod feeds;
mod model;
mod retention;
mod verbs;

use std::{path::Path, sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    streams::{StreamKind, Written},
};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    RawStream, Roots, StreamId, StreamLimits, StreamService, WriteOptions,
    ask::{Answer, Ask},
    engine::Engine,
};
use crate::{
    bus::{BusLimits, Conn, Headers, Message, Router},
    clock::TestClock,
};

/// The bound of every wait in these tests: far beyond what a slow machine needs.
const SOON: Duration = Duration::from_mins(1);
const PREFIX: &str = "p.one";

/// Each owner's streams are in a folder of its name.
struct Folders(tempfile::TempDir);

impl Roots for Folders {
    fn root(&self, owner: &str) -> Result<Arc<Path>, Error> {
        if owner == "p.none" {
            return Err(Error::not_found("project on this host"));
        }
        let dir = self.0.path().join(owner);
        std::fs::create_dir_all(&dir).unwrap();
        Ok(dir.join("streams").into())
    }
}

/// A service that can be ended and begun again on the same files.
struct Rig {
    folders: Arc<Folders>,
    clock: Arc<TestClock>,
    limits: StreamLimits,
    router: Arc<Router>,
    conn: Arc<dyn Conn>,
    service: StreamService,
    cancel: CancellationToken,
    serving: JoinHandle<()>,
}

impl Rig {
    async fn new() -> Self {
        Self::with(StreamLimits::default()).await
    }

    async fn with(limits: StreamLimits) -> Self {
        let clock = TestClock::at(Timestamp::from_millis(1_795_000_000_000));
        Self::on(Arc::new(Folders(tempfile::tempdir().unwrap())), clock, limits).await
    }

    async fn on(folders: Arc<Folders>, clock: Arc<TestClock>, limits: StreamLimits) -> Self {
        let router = Router::new(BusLimits::default(), clock.clone());
        let service = StreamService::new(router.connect("streams", None), clock.clone(), limits.clone());
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(service.listen("p.*", folders.clone()).await.unwrap().run(cancel.clone()));
        Self { folders, clock, limits, conn: router.connect("test", None), router, service, cancel, serving }
    }

    /// Ends the service in an orderly way and begins another.
    async fn again(self) -> Self {
        let Self { folders, clock, limits, cancel, serving, .. } = self;
        cancel.cancel();
        tokio::time::timeout(SOON, serving).await.unwrap().unwrap();
        Self::on(folders, clock, limits).await
    }

    fn log(&self, name: &str) -> RawStream {
        RawStream::new(self.conn.clone(), PREFIX, StreamKind::Log, &name.parse().unwrap())
    }

    fn kv(&self, name: &str) -> RawStream {
        RawStream::new(self.conn.clone(), PREFIX, StreamKind::Kv, &name.parse().unwrap())
    }

    fn dir(&self) -> std::path::PathBuf {
        self.folders.0.path().join(PREFIX).join("streams")
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir().join(name)
    }

    fn engine(&self) -> &Arc<Engine> {
        self.service.engine()
    }

    /// Files that are here, sorted.
    fn files(&self) -> Vec<String> {
        let mut all: Vec<_> =
            std::fs::read_dir(self.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    /// All files of the owner closed, as when nobody uses them.
    async fn close(&self) {
        drop(tokio::time::timeout(SOON, self.service.close(PREFIX)).await.unwrap());
    }

    /// A request as any NATS client makes it.
    async fn request(&self, subject: &str, headers: Headers, payload: impl Into<Bytes>) -> Message {
        let message = Message { headers, ..Message::new(format!("{PREFIX}.{subject}"), payload) };
        self.conn.request(message, SOON).await.unwrap()
    }

    async fn json(&self, subject: &str, payload: &str) -> serde_json::Value {
        let answer = self.request(subject, Headers::default(), payload.to_owned()).await;
        assert_eq!(answer.headers.status, None, "{subject} {payload}: {:?}", answer.payload);
        serde_json::from_slice(&answer.payload).unwrap()
    }

    async fn error(&self, subject: &str, payload: &str) -> (u16, Error) {
        let answer = self.request(subject, Headers::default(), payload.to_owned()).await;
        (answer.headers.status.unwrap(), serde_json::from_slice(&answer.payload).unwrap())
    }
}

async fn append(log: &RawStream, text: &str) -> Result<Written, Error> {
    log.write("append", Bytes::copy_from_slice(text.as_bytes()), WriteOptions::default()).await
}

async fn put(kv: &RawStream, key: &str, text: &str) -> Result<Written, Error> {
    kv.write(&format!("put.{key}"), Bytes::copy_from_slice(text.as_bytes()), WriteOptions::default()).await
}

fn expect(sequence: u64) -> WriteOptions {
    WriteOptions { expected: Some(sequence), ..WriteOptions::default() }
}

fn with_id(id: &str) -> WriteOptions {
    WriteOptions { message_id: Some(id.into()), ..WriteOptions::default() }
}

/// Sequences and texts of all records that are kept.
async fn all(stream: &RawStream) -> Vec<(u64, String)> {
    let (mut records, mut from) = (Vec::new(), 1);
    loop {
        let page = stream.page("read", super::read_from(from)).await.unwrap();
        records.extend(
            page.records.map(|record| record.map(|record| (record.sequence, String::from_utf8_lossy(&record.data).into_owned())).unwrap()),
        );
        from = page.next;
        if page.next > page.last {
            return records;
        }
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorCode {
    result.unwrap_err().code
}

fn id(kind: StreamKind, name: &str) -> StreamId {
    StreamId { owner: PREFIX.into(), kind, name: name.parse().unwrap() }
}

/// Asks the engine without the bus.
async fn ask(rig: &Rig, kind: StreamKind, name: &str, request: Ask) -> Result<Answer, Error> {
    let dir = rig.folders.root(PREFIX).unwrap();
    tokio::time::timeout(SOON, rig.engine().ask(id(kind, name), dir, request)).await.unwrap()
}
