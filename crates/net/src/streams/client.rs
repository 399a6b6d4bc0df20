//! A client's side of streams: logs and key-value stores of typed values, over any connection to a bus.

use std::{
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    streams::{
        self, Done, GetRequest, Keys, KeysRequest, MAX_PAGE_BYTES, MAX_PAGE_RECORDS, ReadFormat, ReadRequest, StreamConfig, StreamInfo,
        StreamKind, StreamName, Written,
    },
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Records, StoredRecord,
    feed::{Feed, TypedFeed},
};
use crate::bus::{BoxFuture, Conn, Headers, Message, answered_error};

/// How long an answer may take: longer than a disk that has to be waited for.
const ANSWER: Duration = Duration::from_secs(30);

/// A value with what the stream knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// Of a key-value store: the revision.
    pub sequence: u64,
    pub time: Timestamp,
    /// Empty in a log.
    pub key: String,
    pub headers: Vec<(String, String)>,
    /// None: the key was deleted.
    pub value: Option<T>,
}

/// What may go with a write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// Of a log the last sequence of all, of a key the revision; 0: none. The write is refused with `conflict` if it is another.
    pub expected: Option<u64>,
    /// Lets a write be sent again without being written twice.
    pub message_id: Option<String>,
    /// Kept with the record.
    pub headers: Vec<(String, String)>,
}

/// A page of records as a client reads them.
#[derive(Debug, Clone)]
pub struct RawPage {
    pub stream: String,
    pub first: u64,
    pub last: u64,
    /// Read on from here; beyond `last` at the end.
    pub next: u64,
    pub records: Records,
}

/// Pages one after the other, up to the end. While one is used the next is on its way.
pub struct Pages {
    stream: RawStream,
    request: ReadRequest,
    coming: Option<BoxFuture<'static, Result<RawPage, Error>>>,
}

impl Pages {
    /// The next page; none after the one that reached the end.
    ///
    /// # Errors
    /// As [`RawStream::page`].
    pub async fn next(&mut self) -> Result<Option<RawPage>, Error> {
        let Some(coming) = &mut self.coming else { return Ok(None) };
        let page = coming.await;
        self.coming = None;
        let page = page?;
        if page.next <= page.last {
            self.request.from = Some(page.next);
            let mut coming = self.stream.clone().owned_page(self.request.clone());
            // begins now, not when it is asked for
            self.coming = Some(match coming.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(page) => Box::pin(std::future::ready(page)),
                Poll::Pending => coming,
            });
        }
        Ok(Some(page))
    }
}

/// One stream as bytes: what the typed ones stand on.
#[derive(Clone)]
pub struct RawStream {
    conn: Arc<dyn Conn>,
    kind: StreamKind,
    /// `<prefix>.<kind>.<name>`
    base: String,
}

impl RawStream {
    /// `prefix` is that of the owner, such as `project.<id>`.
    pub fn new(conn: Arc<dyn Conn>, prefix: &str, kind: StreamKind, name: &StreamName) -> Self {
        Self { conn, kind, base: format!("{prefix}.{}.{name}", kind.as_str()) }
    }

    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    pub(super) fn conn(&self) -> &Arc<dyn Conn> {
        &self.conn
    }

    /// Where changes are published.
    pub(super) fn changes(&self) -> String {
        match self.kind {
            StreamKind::Log => format!("{}.changes", self.base),
            StreamKind::Kv => format!("{}.changes.>", self.base),
        }
    }

    /// # Errors
    /// Those that the service answers with, and those of the connection.
    pub async fn call(&self, verb: &str, headers: Headers, payload: Bytes) -> Result<Message, Error> {
        let message = Message { headers, ..Message::new(format!("{}.{verb}", self.base), payload) };
        let answer = self.conn.request(message, ANSWER).await?;
        match answered_error(&answer) {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, verb: &str, request: &impl Serialize) -> Result<T, Error> {
        let request = serde_json::to_vec(request).map_err(|error| Error::internal(format!("A request can't be written: {error}.")))?;
        read_json(&self.call(verb, Headers::default(), request.into()).await?.payload)
    }

    /// Writes: `append`, or `put.<key>` or `delete.<key>`. When this returns it is on disk.
    ///
    /// # Errors
    /// `conflict` if something else was expected, `too_large`, `disk_full`, `quota_exceeded`, `limit_exceeded`, `storage_failed`.
    pub async fn write(&self, verb: &str, data: Bytes, options: WriteOptions) -> Result<Written, Error> {
        let mut headers = Headers { fields: options.headers, ..Headers::default() };
        if let Some(expected) = options.expected {
            let name = if self.kind == StreamKind::Log { streams::EXPECTED_LAST } else { streams::EXPECTED_REVISION };
            headers = headers.with(name, expected.to_string());
        }
        if let Some(id) = options.message_id {
            headers = headers.with(streams::MESSAGE_ID, id);
        }
        read_json(&self.call(verb, headers, data).await?.payload)
    }

    /// Reads a page; with `verb` `history.<key>` that of a key.
    ///
    /// # Errors
    /// `not_found` if there is no such stream, `conflict` if deletions since then are forgotten (a key-value store), `storage_failed`.
    pub async fn page(&self, verb: &str, request: ReadRequest) -> Result<RawPage, Error> {
        let request = ReadRequest {
            format: ReadFormat::Packed,
            max_count: request.max_count.or(Some(MAX_PAGE_RECORDS)),
            max_bytes: Some(MAX_PAGE_BYTES),
            ..request
        };
        let request = serde_json::to_vec(&request).map_err(|error| Error::internal(format!("A request can't be written: {error}.")))?;
        let answer = self.call(verb, Headers::default(), request.into()).await?;
        let number = |name: &str| {
            let value = answer.headers.get(name).and_then(|text| text.parse().ok());
            value.ok_or_else(|| Error::internal(format!("A page of {} comes without {name}.", self.base)))
        };
        Ok(RawPage {
            stream: answer.headers.get(streams::STREAM).unwrap_or_default().into(),
            first: number(streams::FIRST_SEQUENCE)?,
            last: number(streams::LAST_SEQUENCE)?,
            next: number(streams::NEXT_SEQUENCE)?,
            records: Records::new(answer.payload),
        })
    }

    /// All pages from where the request begins up to the end, each read while the one before is used.
    pub fn pages(&self, request: ReadRequest) -> Pages {
        Pages {
            stream: self.clone(),
            coming: Some(self.clone().owned_page(request.clone())),
            request: ReadRequest { last: None, ..request },
        }
    }

    fn owned_page(self, request: ReadRequest) -> BoxFuture<'static, Result<RawPage, Error>> {
        Box::pin(async move { self.page("read", request).await })
    }

    /// # Errors
    /// `not_found`, `storage_failed`.
    pub async fn info(&self) -> Result<StreamInfo, Error> {
        self.ask("info", &Done {}).await
    }

    /// Sets what is kept; makes the stream if it isn't there.
    ///
    /// # Errors
    /// `invalid_argument`, `storage_failed`.
    pub async fn configure(&self, config: &StreamConfig) -> Result<StreamInfo, Error> {
        self.ask("configure", config).await
    }

    /// Deletes the whole stream.
    ///
    /// # Errors
    /// `not_found`, `storage_failed`.
    pub async fn delete(&self) -> Result<(), Error> {
        self.call("delete", Headers::default(), Bytes::new()).await.map(drop)
    }

    /// Lets a stream that was damaged and put aside begin anew.
    ///
    /// # Errors
    /// `conflict` if it isn't damaged.
    pub async fn reset(&self) -> Result<(), Error> {
        self.call("reset", Headers::default(), Bytes::new()).await.map(drop)
    }

    /// All records from a sequence on, and then what is written, as it is written.
    pub fn follow(&self, from: u64) -> Feed {
        Feed::new(self.clone(), from)
    }
}

/// A log of values that are JSON on the wire.
#[derive(Clone)]
pub struct Log<T> {
    stream: RawStream,
    value: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> Log<T> {
    /// `prefix` is that of the owner, such as `project.<id>`.
    pub fn new(conn: Arc<dyn Conn>, prefix: &str, name: &StreamName) -> Self {
        Self { stream: RawStream::new(conn, prefix, StreamKind::Log, name), value: PhantomData }
    }

    pub fn stream(&self) -> &RawStream {
        &self.stream
    }

    /// As [`RawStream::write`].
    pub async fn append(&self, value: &T, options: WriteOptions) -> Result<Written, Error> {
        self.stream.write("append", write_json(value)?, options).await
    }

    /// A page of at most so many values, and where to read on. As [`RawStream::page`].
    pub async fn read(&self, from: u64, max_count: u32) -> Result<(Vec<Entry<T>>, u64), Error> {
        let page = self.stream.page("read", ReadRequest { from: Some(from), max_count: Some(max_count), ..ReadRequest::default() }).await?;
        Ok((entries(page.records)?, page.next))
    }

    /// All values from a sequence on, and then what is appended, without a gap.
    pub fn follow(&self, from: u64) -> TypedFeed<T> {
        TypedFeed::new(self.stream.follow(from))
    }
}

/// A key-value store of values that are JSON on the wire.
#[derive(Clone)]
pub struct Kv<T> {
    stream: RawStream,
    value: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> Kv<T> {
    /// `prefix` is that of the owner, such as `project.<id>`.
    pub fn new(conn: Arc<dyn Conn>, prefix: &str, name: &StreamName) -> Self {
        Self { stream: RawStream::new(conn, prefix, StreamKind::Kv, name), value: PhantomData }
    }

    pub fn stream(&self) -> &RawStream {
        &self.stream
    }

    /// The newest value of a key, or that of a revision. None if it has none.
    ///
    /// # Errors
    /// `invalid_argument` if it isn't a value of this type, `storage_failed`.
    pub async fn get(&self, key: &str, revision: Option<u64>) -> Result<Option<Entry<T>>, Error> {
        let request = serde_json::to_vec(&GetRequest { revision }).unwrap_or_default();
        match self.stream.call(&format!("get.{key}"), Headers::default(), request.into()).await {
            Ok(message) => Ok(Some(entry(record(key, message)?)?)),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`RawStream::write`].
    pub async fn put(&self, key: &str, value: &T, options: WriteOptions) -> Result<Written, Error> {
        self.stream.write(&format!("put.{key}"), write_json(value)?, options).await
    }

    /// As [`RawStream::write`]; `not_found` if the key has no value.
    pub async fn delete(&self, key: &str, options: WriteOptions) -> Result<Written, Error> {
        self.stream.write(&format!("delete.{key}"), Bytes::new(), options).await
    }

    /// The revisions of a key that are kept, oldest first, at most one page.
    ///
    /// # Errors
    /// As [`RawStream::page`].
    pub async fn history(&self, key: &str) -> Result<Vec<Entry<T>>, Error> {
        entries(self.stream.page(&format!("history.{key}"), ReadRequest::default()).await?.records)
    }

    /// Keys with a value, in order, at most one page.
    ///
    /// # Errors
    /// `not_found` if there is no such store, `storage_failed`.
    pub async fn keys(&self, request: &KeysRequest) -> Result<Keys, Error> {
        self.stream.ask("keys", request).await
    }

    /// The newest value of every key, and then every change, without a gap.
    pub fn watch(&self) -> TypedFeed<T> {
        TypedFeed::new(self.stream.follow(1))
    }
}

pub(super) fn entry<T: DeserializeOwned>(record: StoredRecord) -> Result<Entry<T>, Error> {
    let value = if record.deleted { None } else { Some(read_json(&record.data)?) };
    Ok(Entry { sequence: record.sequence, time: record.time, key: record.key, headers: record.headers, value })
}

fn entries<T: DeserializeOwned>(records: Records) -> Result<Vec<Entry<T>>, Error> {
    records.map(|record| entry(record?)).collect()
}

/// A record that came as a message of its own.
pub(super) fn record(key: &str, message: Message) -> Result<StoredRecord, Error> {
    let headers = &message.headers;
    let sequence = headers.get(streams::SEQUENCE).and_then(|text| text.parse().ok());
    let time = headers.get(streams::TIME).and_then(|text| text.parse().ok());
    let (Some(sequence), Some(time)) = (sequence, time) else {
        return Err(Error::internal("A record comes without its sequence and time."));
    };
    let deleted = headers.get(streams::OPERATION) == Some("DEL");
    let own = [streams::SEQUENCE, streams::TIME, streams::STREAM, streams::KEY, streams::OPERATION];
    let headers = headers.fields.iter().filter(|(name, _)| !own.contains(&name.as_str())).cloned().collect();
    Ok(StoredRecord { sequence, time, key: key.into(), deleted, headers, data: message.payload })
}

fn write_json<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Error::invalid(format!("The value can't be written as JSON: {error}.")))
}

fn read_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|error| Error::invalid(format!("What came isn't the JSON that was expected: {error}.")))
}
