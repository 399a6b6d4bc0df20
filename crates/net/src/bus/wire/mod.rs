//! The NATS client protocol as bytes, both directions (<https://docs.nats.io/reference/reference-protocols/nats-protocol>).
//!
//! Parsing works on what has arrived so far and copies nothing: an operation borrows from the buffer, and the caller takes it out when it is done
//! with it. Nothing here does I/O.

mod client_ops;
mod frame;
mod headers;
mod info;
mod reading;
mod server_ops;

pub(crate) use client_ops::{ClientOp, ClientParser, Publish};
pub(crate) use frame::{Frame, put_frame, put_head, put_number};
pub(crate) use headers::{NO_RESPONDERS, check_headers, decode_headers, encode_headers, well_formed};
pub(crate) use info::{Connect, Info, Proof, json_line};
#[cfg(any(test, fuzzing))]
pub(crate) use reading::all;
pub(crate) use reading::{Reading, Sizes, error_text};
pub(crate) use server_ops::{ServerOp, ServerParser};

/// What a look at the buffer gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<Op> {
    /// An operation that takes so many bytes from the buffer's beginning.
    Op { op: Op, consumed: usize },
    /// The buffer must hold at least so many bytes before another look can give more.
    Need(usize),
}

impl<Op> Step<Op> {
    #[inline]
    pub(crate) fn map<T>(self, make: impl FnOnce(Op) -> T) -> Step<T> {
        match self {
            Self::Op { op, consumed } => Step::Op { op: make(op), consumed },
            Self::Need(bytes) => Step::Need(bytes),
        }
    }
}

/// Why the bytes aren't the protocol. The text is what nats-server says, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub(crate) enum Malformed {
    Operation,
    ControlLine,
    Payload,
    /// Something else than CONNECT from a client that has to say that first.
    Early,
}

/// What a client hears that isn't who it says, or doesn't say it.
pub(crate) const AUTHORIZATION_VIOLATION: &str = "Authorization Violation";

impl Malformed {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Operation => "Unknown Protocol Operation",
            Self::ControlLine => "maximum control line exceeded",
            Self::Payload => "Maximum Payload Violation",
            Self::Early => AUTHORIZATION_VIOLATION,
        }
    }
}
