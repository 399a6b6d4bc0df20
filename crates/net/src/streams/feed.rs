//! A changefeed: what a stream has, then what is written to it, each record once and in order.
//!
//! It subscribes to the changes, reads up to the end, and goes on with the changes. One whose sequence isn't the next makes it read again from where
//! it is, and so does a silence of some seconds, since a connection that comes back may have missed the last change.

use std::{collections::VecDeque, marker::PhantomData, time::Duration};

use atoll_contract::{
    Error, ErrorCode,
    streams::{self, ReadRequest, StreamKind},
};
use futures_util::Stream;
use serde::de::DeserializeOwned;

use super::{
    BEHIND, REMOVED, StoredRecord,
    client::{Entry, RawStream, entry, record},
};
use crate::bus::{Message, Subscription};

/// A silence after which it looks by itself.
const LOOK: Duration = Duration::from_secs(5);
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// What a feed tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<R> {
    Record(R),
    /// The stream was deleted or began anew, or (a key-value store) deletions were forgotten that this feed hasn't seen: what was told before holds no
    /// more, and what the stream has now comes from the beginning.
    Reset,
}

/// The feed of one stream. Of a key-value store it begins with the newest revision of each key, and revisions that are replaced while it reads may
/// be left out; the newest never is.
pub struct Feed {
    stream: RawStream,
    /// The next sequence wanted.
    next: u64,
    identity: Option<String>,
    changes: Option<Subscription>,
    /// There may be something between `next` and the changes.
    gap: bool,
    /// Read and not yet told.
    ready: VecDeque<StoredRecord>,
    delay: Duration,
}

impl Feed {
    pub(super) fn new(stream: RawStream, from: u64) -> Self {
        Self { stream, next: from.max(1), identity: None, changes: None, gap: true, ready: VecDeque::new(), delay: FIRST_DELAY }
    }

    /// The next record. Waits for it as long as need be, also while the bus or the service is away; can be dropped at any time without losing one.
    ///
    /// # Errors
    /// Those that don't pass by themselves, such as `forbidden` or `storage_failed`. It may be called again all the same.
    pub async fn next(&mut self) -> Result<Change<StoredRecord>, Error> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Ok(Change::Record(record));
            }
            match self.step().await {
                Ok(Some(change)) => return Ok(change),
                Ok(None) => {}
                Err(error) if error.retry || matches!(error.code, ErrorCode::NoResponders | ErrorCode::Unavailable) => {
                    tracing::debug!(%error, "a feed of a stream waits");
                    tokio::time::sleep(self.delay).await;
                    self.delay = (self.delay * 2).min(LAST_DELAY);
                    self.gap = true;
                }
                Err(error) => {
                    self.gap = true;
                    return Err(error);
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Change<StoredRecord>>, Error> {
        let Some(changes) = &mut self.changes else {
            self.changes = Some(self.stream.conn().subscribe(&self.stream.changes(), None).await?);
            self.gap = true;
            return Ok(None);
        };
        if self.gap {
            return self.read().await;
        }
        match tokio::time::timeout(LOOK, changes.next()).await {
            Ok(Some(message)) => self.take(message),
            Ok(None) => {
                self.changes = None;
                // not at once: what ended the subscription may go on
                Err(Error::new(ErrorCode::Unavailable, "The subscription to a stream's changes has ended."))
            }
            Err(_) => {
                self.gap = true;
                Ok(None)
            }
        }
    }

    /// Reads a page.
    async fn read(&mut self) -> Result<Option<Change<StoredRecord>>, Error> {
        let latest = self.stream.kind() == StreamKind::Kv;
        let page = match self.stream.page("read", ReadRequest { from: Some(self.next), latest, ..ReadRequest::default() }).await {
            Ok(page) => page,
            // nobody has written to it yet, or it was deleted
            Err(error) if error.code == ErrorCode::NotFound => {
                self.gap = false;
                return Ok(self.identity.take().map(|_| self.reset()));
            }
            Err(error) if error.code == ErrorCode::Conflict => return Ok(Some(self.reset())),
            Err(error) => return Err(error),
        };
        self.delay = FIRST_DELAY;
        if self.identity.as_ref().is_some_and(|known| *known != page.stream) || self.next > page.last + 1 {
            self.identity = Some(page.stream);
            return Ok(Some(self.reset()));
        }
        self.ready = page.records.collect::<Result<_, Error>>()?;
        self.identity = Some(page.stream);
        self.next = page.next;
        self.gap = page.next <= page.last;
        Ok(None)
    }

    fn reset(&mut self) -> Change<StoredRecord> {
        (self.next, self.gap) = (1, true);
        Change::Reset
    }

    /// Takes what was published.
    fn take(&mut self, message: Message) -> Result<Option<Change<StoredRecord>>, Error> {
        let ours = self.identity.is_some() && message.headers.get(streams::STREAM) == self.identity.as_deref();
        let number = |name: &str| message.headers.get(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(u64::MAX);
        match message.headers.status {
            Some(REMOVED) if ours => {
                self.identity = None;
                return Ok(Some(self.reset()));
            }
            // of one that was deleted before this feed began with its successor
            Some(REMOVED) => {}
            Some(BEHIND) => self.gap = !ours || number(streams::LAST_SEQUENCE) >= self.next,
            _ if !ours || number(streams::SEQUENCE) > self.next => self.gap = true,
            _ if number(streams::SEQUENCE) < self.next => {} // it was read already
            _ => {
                let key = message.headers.get(streams::KEY).unwrap_or_default().to_owned();
                let record = record(&key, message)?;
                self.next = record.sequence + 1;
                return Ok(Some(Change::Record(record)));
            }
        }
        Ok(None)
    }
}

/// A feed of values that are JSON on the wire.
pub struct TypedFeed<T> {
    feed: Feed,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> TypedFeed<T> {
    pub(super) fn new(feed: Feed) -> Self {
        Self { feed, value: PhantomData }
    }

    /// As [`Feed::next`].
    ///
    /// # Errors
    /// Besides its errors `invalid_argument` for a record that isn't a value of this type; the next call goes on after it.
    pub async fn next(&mut self) -> Result<Change<Entry<T>>, Error> {
        match self.feed.next().await? {
            Change::Record(record) => entry(record).map(Change::Record),
            Change::Reset => Ok(Change::Reset),
        }
    }

    /// The same as a stream, which never ends.
    pub fn into_stream(self) -> impl Stream<Item = Result<Change<Entry<T>>, Error>> + Send {
        futures_util::stream::unfold(self, |mut feed| async move { Some((feed.next().await, feed)) })
    }
}
