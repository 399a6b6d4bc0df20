//! Streams: append-only logs and key-value stores by name, kept in SQLite, one file each, and served over a bus. docs/reference/streams.md says how
//! they are used. (The windowed bytes of terminals and commands are [`crate::byte_stream`].)
//!
//! `service` takes requests from the bus and publishes changes; `engine` queues them (`ask` is what they say) and bounds files and threads (`places`: what one project may have of it); `turn` does what waits for one
//! stream; `db` and `write` have the SQL; `files` the names on disk. [`Log`], [`Kv`] and [`Feed`] are a client's side.

mod answer;
mod ask;
mod client;
mod db;
mod engine;
mod fault;
mod feed;
mod files;
mod packed;
mod places;
mod publisher;
mod service;
mod turn;
mod write;

pub use answer::END_OF_PAGE;
pub use ask::StreamId;
pub use client::{Entry, Kv, Log, Pages, RawPage, RawStream, WriteOptions};
pub use engine::{Barred, StreamLimits};
pub use feed::{Change, Feed, TypedFeed};
pub use packed::{RECORD_OVERHEAD, Records, StoredRecord};
pub use publisher::{BEHIND, REMOVED};
pub use service::{Roots, Serving, StreamService};

/// A request for a page from a sequence on.
pub fn read_from(sequence: u64) -> atoll_contract::streams::ReadRequest {
    atoll_contract::streams::ReadRequest { from: Some(sequence), ..Default::default() }
}

#[cfg(test)]
mod tests;
