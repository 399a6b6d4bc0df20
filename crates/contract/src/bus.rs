//! What a bus says of itself: the answer to a request at [`BUS_STATS`](crate::subject::BUS_STATS), shown by `atoll bus top`.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A look at one bus. Counts are since it began; bytes are those of headers and payloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusReport {
    pub at: Timestamp,
    /// Made anew with every start, so that whoever compares two looks knows that counts began again.
    pub server_id: String,
    pub connections: u64,
    pub subscriptions: u64,
    pub slow_consumers: u64,
    /// Bytes that wait, of [`memory_limit`](Self::memory_limit).
    pub memory_used: u64,
    pub memory_limit: u64,
    pub traffic: BusTraffic,
    /// Its connection to a NATS cluster, if it is joined to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BusBridge>,
    /// The busiest, by bytes in and out together; at most [`MAX_ROWS`].
    pub by_connection: Vec<BusConnection>,
    /// Likewise.
    pub by_account: Vec<BusAccount>,
    /// Likewise, by the first tokens of the subject.
    pub by_prefix: Vec<BusPrefix>,
}

/// Rows in each list of a [`BusReport`].
pub const MAX_ROWS: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BusTraffic {
    /// Published.
    pub in_messages: u64,
    pub in_bytes: u64,
    /// Delivered; one publication may be delivered many times.
    pub out_messages: u64,
    pub out_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusConnection {
    pub id: u64,
    /// What the client calls itself.
    pub name: String,
    pub peer: String,
    pub account: Option<String>,
    pub grants: Vec<String>,
    pub subscriptions: u64,
    /// Waits to be written to it.
    pub pending_messages: u64,
    pub pending_bytes: u64,
    pub traffic: BusTraffic,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusAccount {
    pub account: String,
    pub connections: u64,
    pub subscriptions: u64,
    pub traffic: BusTraffic,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusPrefix {
    /// Such as `project.<id>` or `_INBOX`.
    pub prefix: String,
    pub traffic: BusTraffic,
}

/// A bus's connection to a NATS cluster. Counts are those of all its connections since the bus began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BusBridge {
    /// Whether there is a connection, with all interest told.
    pub open: bool,
    /// How often there was one.
    pub connects: u64,
    /// Subjects and queue groups of this bus that the cluster knows of or is to know of.
    pub interests: u64,
    pub pending_messages: u64,
    pub pending_bytes: u64,
    /// In: from the cluster. Out: to it.
    pub traffic: BusTraffic,
    /// Messages that could not cross: too large for the other side, or malformed.
    pub refused: u64,
    /// Connections that were cut because the cluster didn't keep up.
    pub slow: u64,
}
