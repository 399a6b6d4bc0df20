//! Byte streams over the bus, with a window so that a slow reader neither loses bytes nor makes the sender grow.
//!
//! Who receives subscribes first ([`Receiver::open`]), then tells the other side the subject; that side writes ([`Sender::open`]). The
//! wire form is in `docs/reference/byte-streams.md` and in the golden test of [`wire`].
//!
//! Nothing is lost silently, and a connection that breaks and comes back costs time only: the sender keeps what was not acknowledged (it is bounded by
//! the window anyway), the receiver notices a gap in the offsets and asks for the bytes from there, a sender that hears nothing probes once a second, and
//! what arrives twice is dropped. A side that hears nothing at all from the other for [`SILENCE`] ends the stream with an error.

mod receiver;
mod sender;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

pub use receiver::{Chunk, Receiver};
pub use sender::Sender;

/// The largest payload of one message.
pub const CHUNK_BYTES: usize = 32 << 10;
/// How many bytes may be on their way, or wait for the consumer, beyond what was acknowledged.
pub const WINDOW_BYTES: u64 = 256 << 10;
/// How many messages may; it bounds the memory of a stream of tiny chunks.
pub const WINDOW_CHUNKS: usize = 256;
/// How often a side that has nothing to say says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// A side that is silent for so long is gone.
pub const SILENCE: Duration = Duration::from_secs(atoll_contract::agent::EXEC_ORPHAN_SECONDS);
/// How often a sender that waits for an acknowledgement asks for it.
const PROBE: Duration = Duration::from_secs(1);
/// How long a finished sender goes on when the bus says that nobody receives any more.
const ABSENCE_AT_END: Duration = Duration::from_secs(10);
