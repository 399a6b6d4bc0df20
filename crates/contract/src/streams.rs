//! Streams: append-only logs and key-value stores ("kv") that are kept, by name, in a project's `state` volume.
//!
//! Requests go to `<prefix>.log.<name>.<verb>` and `<prefix>.kv.<name>.<verb>`, the prefix being `project.<id>`. An answer without a status in its
//! header line is a success; otherwise the payload is an [`Error`](crate::Error) as JSON. docs/reference/streams.md has every verb.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Timestamp};

/// Request header: the sequence that the log's last record must have. 0: the log must never have had one. As JetStream's.
pub const EXPECTED_LAST: &str = "Nats-Expected-Last-Sequence";
/// Request header: the revision that the key must have; 0: it must have no value. As JetStream's.
pub const EXPECTED_REVISION: &str = "Nats-Expected-Last-Subject-Sequence";
/// Request header: what comes again with the same id within [`DEDUP_SECONDS`] isn't written again. As JetStream's.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// The sequence (of a kv: the revision) of the record in this message.
pub const SEQUENCE: &str = "Nats-Sequence";
/// When the record in this message was written, RFC 3339.
pub const TIME: &str = "Nats-Time-Stamp";
/// The last sequence of the stream.
pub const LAST_SEQUENCE: &str = "Nats-Last-Sequence";
/// `DEL` on a change or record that says that a key was deleted. As NATS's key-value stores.
pub const OPERATION: &str = "KV-Operation";
/// The identity of a stream, made anew when a name is used again after a deletion or a reset.
pub const STREAM: &str = "Atoll-Stream";
/// The oldest sequence that is kept.
pub const FIRST_SEQUENCE: &str = "Atoll-First-Sequence";
/// Where the next read goes on.
pub const NEXT_SEQUENCE: &str = "Atoll-Next-Sequence";
/// The key of the record in this message.
pub const KEY: &str = "Atoll-Key";

/// Bytes of a record: data and kept headers together. What remains of the bus's 1 MiB is for the service's own headers.
pub const MAX_RECORD_BYTES: usize = (1 << 20) - (8 << 10);
/// Bytes of the client's headers that are kept with a record, as `name: value` lines; those that begin with `Nats-` and `Atoll-` are not.
pub const MAX_HEADER_BYTES: usize = 4 << 10;
/// Bytes of a message id.
pub const MAX_MESSAGE_ID_BYTES: usize = 128;
/// Bytes of a key.
pub const MAX_KEY_BYTES: usize = 256;
/// Tokens of a key.
pub const MAX_KEY_TOKENS: usize = 32;
/// A message id is known for so long, also after a restart and after the record itself was removed.
pub const DEDUP_SECONDS: u64 = 120;
/// And no more than so many newest ids of a stream are.
pub const DEDUP_IDS: u64 = 1 << 20;
/// The longest that a read waits for something to read.
pub const MAX_WAIT_MILLIS: u32 = 30_000;
/// What `tail` waits if the request doesn't say.
pub const TAIL_WAIT_MILLIS: u32 = 10_000;
/// Records in one page.
pub const MAX_PAGE_RECORDS: u32 = 10_000;
/// Bytes of one page, as packed.
pub const MAX_PAGE_BYTES: u32 = (1 << 20) - (4 << 10);
/// Keys in one answer of `keys`, at most.
pub const MAX_PAGE_KEYS: u32 = 2_000;
/// Streams of one project.
pub const MAX_STREAMS: usize = 256;
/// Revisions that a kv keeps of one key, at most, and without configuration.
pub const MAX_HISTORY: u32 = 64;
pub const DEFAULT_HISTORY: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamKind {
    Log,
    Kv,
}

impl StreamKind {
    /// The token in subjects, and the beginning of file names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Kv => "kv",
        }
    }
}

/// The name of a log or kv: `[a-z0-9][a-z0-9_-]{0,63}`, so that it is a subject token and a file name as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct StreamName(Box<str>);

impl StreamName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StreamName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let good = |(at, byte): (usize, u8)| plain(byte) || at > 0 && matches!(byte, b'_' | b'-');
        if (1..=64).contains(&text.len()) && text.bytes().enumerate().all(good) {
            return Ok(Self(text.into()));
        }
        Err(Error::invalid(format!("{text:?} isn't the name of a log or kv."))
            .mend("Take 1 to 64 of a-z, 0-9, _ and -, a letter or digit first."))
    }
}

impl TryFrom<String> for StreamName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is a key of a kv: 1 to 32 subject tokens, at most 256 bytes of UTF-8 without white space, control characters, `*` and `>`.
pub fn is_key(text: &str) -> bool {
    text.len() <= MAX_KEY_BYTES
        && text.split('.').count() <= MAX_KEY_TOKENS
        && text
            .split('.')
            .all(|token| !token.is_empty() && token.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '*' && c != '>'))
}

/// Whether a text may say which keys are meant: a key whose tokens may be `*`, the last one also `>`.
pub fn is_key_pattern(text: &str) -> bool {
    let last = text.split('.').count();
    text.len() <= MAX_KEY_BYTES
        && last <= MAX_KEY_TOKENS
        && text.split('.').enumerate().all(|(at, token)| token == "*" || token == ">" && at + 1 == last || is_key(token))
}

/// Whether a pattern covers a key, as subjects do.
pub fn key_matches(pattern: &str, key: &str) -> bool {
    let (mut pattern, mut key) = (pattern.split('.'), key.split('.'));
    loop {
        match (pattern.next(), key.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
}

/// The answer to `append`, `put` and `delete` of a key: it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The stream's identity, as [`STREAM`].
    pub stream: String,
    /// The record's sequence; of a kv: the revision.
    pub sequence: u64,
    /// The message id was known: this is the sequence of the record that it was written with, and nothing was written now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// How the records of a page are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFormat {
    /// One answer: a [`Page`] as JSON.
    #[default]
    Json,
    /// One message a record to the reply subject, its data as payload; then one with status 204 that says where the page ended.
    Messages,
    /// One answer: the records in the binary form that docs/reference/streams.md describes, the page's end in its headers.
    Packed,
}

/// Asks for a page of records: `read`, `tail`, and `history` of a key. All members may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadRequest {
    /// The first sequence wanted. Without it: the oldest that is kept; for `tail` the next one to be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Instead of `from`: begin so many sequences before the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_count: Option<u32>,
    /// As packed. A page has at least one record if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u32>,
    pub format: ReadFormat,
    /// If there is nothing to read yet, wait so long for it; at most [`MAX_WAIT_MILLIS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_millis: Option<u32>,
    /// Of a kv: only the newest revision of each key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub latest: bool,
}

/// A page of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub stream: String,
    /// The oldest sequence that is kept; `last_sequence + 1` if there is none.
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// Read on from here. The page reached the end if this is beyond `last_sequence`.
    pub next: u64,
    pub records: Vec<Record>,
}

/// A record, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub sequence: u64,
    pub time: Timestamp,
    /// Of a kv.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key was deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The writer's headers, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    #[serde(flatten)]
    pub data: Data,
}

/// Bytes in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// They are UTF-8.
    Text(String),
    /// They aren't: RFC 4648 with padding.
    Base64(String),
}

/// What a stream keeps. What is left out isn't limited, but by the project's disk. A log gives up its oldest records first. A kv never gives up the
/// newest value of a key: beyond `max_records` and `max_bytes` a put is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamConfig {
    /// Older records are removed; of a kv, older revisions that were replaced, and deletions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
    /// Records of a log; of a kv, keys with a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_records: Option<u64>,
    /// Bytes of data, headers and keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Of a kv: revisions of one key, 1 to [`MAX_HISTORY`]; [`DEFAULT_HISTORY`] if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<u32>,
}

/// The answer to `info` and `configure`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    pub stream: String,
    pub kind: StreamKind,
    pub name: StreamName,
    pub created_at: Timestamp,
    pub first_sequence: u64,
    pub last_sequence: u64,
    /// Records that are kept; of a kv all revisions.
    pub records: u64,
    /// Of their data, headers and keys.
    pub bytes: u64,
    /// Of a kv: keys with a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Of the file. It isn't made smaller; what retention frees is used again.
    pub file_bytes: u64,
    pub config: StreamConfig,
}

/// The answer to `<prefix>.log.list` and `<prefix>.kv.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamList {
    pub streams: Vec<StreamEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEntry {
    pub name: StreamName,
    pub file_bytes: u64,
    /// It was damaged: the file that was put aside. Every other request is answered `storage_failed` until a `reset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
}

/// Asks for a value at `kv.<name>.get.<key>`. An empty payload asks for the newest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GetRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// Asks for the keys that have a value, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysRequest {
    /// As a subject with `*` and `>`; without it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Go on after this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_count: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    pub stream: String,
    pub last_sequence: u64,
    pub keys: Vec<KeyView>,
    /// There may be more: ask again with this as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    pub key: String,
    pub revision: u64,
    pub time: Timestamp,
}

/// The answer to requests that have nothing else to say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, good) in [
            ("a", true),
            ("0_-x", true),
            ("", false),
            ("_a", false),
            ("-a", false),
            ("A", false),
            ("a.b", false),
            ("ä", false),
            ("a/b", false),
        ] {
            assert_eq!(name.parse::<StreamName>().is_ok(), good, "{name:?}");
        }
        assert!("a".repeat(64).parse::<StreamName>().is_ok());
        assert!("a".repeat(65).parse::<StreamName>().is_err());
    }

    #[test]
    fn keys_and_patterns() {
        for (text, key, pattern) in [
            ("a", true, true),
            ("a.B-_=/.ä", true, true),
            ("a.*", false, true),
            ("*.b", false, true),
            ("a.>", false, true),
            (">", false, true),
            (">.a", false, false),
            ("a*", false, false),
            ("", false, false),
            ("a..b", false, false),
            ("a b", false, false),
            ("a\n", false, false),
        ] {
            assert_eq!((is_key(text), is_key_pattern(text)), (key, pattern), "{text:?}");
        }
        assert!(is_key(&["x"; 32].join(".")) && !is_key(&["x"; 33].join(".")));
        assert!(is_key(&"x".repeat(256)) && !is_key(&"x".repeat(257)));
        for (pattern, key, covered) in [
            ("a", "a", true),
            ("a", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("*.b", "a.b", true),
            (">", "a.b", true),
        ] {
            assert_eq!(key_matches(pattern, key), covered, "{pattern} {key}");
        }
    }
}
