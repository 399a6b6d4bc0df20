//! The two kinds of message of a stream, and their headers. Numbers are decimal.

use std::sync::Arc;

use atoll_contract::Error;
use bytes::Bytes;

use super::CHUNK_BYTES;
use crate::bus::{Headers, Message};

const OFFSET: &str = "Offset";
const POSITION: &str = "Position";
const END: &str = "End";
const MISSING: &str = "Missing";

/// From sender to receiver. Empty and without an end it is a heartbeat: "so far I have sent up to here".
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frame {
    /// Where the payload begins in the stream.
    pub(super) offset: u64,
    /// Where the payload begins in whatever the stream is a view of; see [`super::Chunk::position`].
    pub(super) position: Option<u64>,
    pub(super) bytes: Bytes,
    /// Nothing follows. An error takes the payload for itself, so such a frame has no bytes.
    pub(super) end: Option<Result<(), Error>>,
}

impl Frame {
    pub(super) fn next_offset(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    pub(super) fn message(&self, subject: &Arc<str>, ack: &Arc<str>) -> Message {
        let mut headers = Headers::default().with(OFFSET, self.offset.to_string());
        if let Some(position) = self.position {
            headers = headers.with(POSITION, position.to_string());
        }
        let mut payload = self.bytes.clone();
        match &self.end {
            None => {}
            Some(Ok(())) => headers = headers.with(END, "ok"),
            Some(Err(error)) => {
                headers = headers.with(END, "error");
                payload = serde_json::to_vec(error).unwrap_or_default().into();
            }
        }
        Message { subject: subject.clone(), reply: Some(ack.clone()), headers, payload }
    }

    pub(super) fn parse(message: Message) -> Result<Self, Error> {
        let headers = &message.headers;
        let offset = number(headers, OFFSET)?.ok_or_else(|| malformed("has no Offset"))?;
        let position = number(headers, POSITION)?;
        let mut bytes = message.payload;
        if bytes.len() > CHUNK_BYTES {
            return Err(malformed("has more than 32 KiB"));
        }
        let end = match headers.get(END) {
            None => None,
            Some("ok") => Some(Ok(())),
            Some("error") => {
                let error = serde_json::from_slice(&bytes).map_err(|_| malformed("ends with an error that isn't one"))?;
                bytes = Bytes::new();
                Some(Err(error))
            }
            Some(_) => return Err(malformed("has an End that is neither ok nor error")),
        };
        if offset.checked_add(bytes.len() as u64).is_none() {
            return Err(malformed("has an Offset that is too large"));
        }
        Ok(Self { offset, position, bytes, end })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AckEnd {
    /// The consumer has taken everything, and the end.
    Taken,
    /// The consumer has gone; nothing more is read.
    Closed,
}

/// From receiver to sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    /// The consumer has taken all bytes before this.
    pub(super) taken: u64,
    /// Bytes from here on were lost on the way: send again from there.
    pub(super) missing: Option<u64>,
    pub(super) end: Option<AckEnd>,
}

impl Ack {
    pub(super) fn message(self, subject: &Arc<str>) -> Message {
        let mut headers = Headers::default().with(OFFSET, self.taken.to_string());
        if let Some(missing) = self.missing {
            headers = headers.with(MISSING, missing.to_string());
        }
        match self.end {
            None => {}
            Some(AckEnd::Taken) => headers = headers.with(END, "ok"),
            Some(AckEnd::Closed) => headers = headers.with(END, "closed"),
        }
        Message { subject: subject.clone(), reply: None, headers, payload: Bytes::new() }
    }

    pub(super) fn parse(message: &Message) -> Result<Self, Error> {
        let end = match message.headers.get(END) {
            None => None,
            Some("ok") => Some(AckEnd::Taken),
            Some("closed") => Some(AckEnd::Closed),
            Some(_) => return Err(malformed("is acknowledged with an End that is neither ok nor closed")),
        };
        let taken = number(&message.headers, OFFSET)?.ok_or_else(|| malformed("is acknowledged without an Offset"))?;
        Ok(Self { taken, missing: number(&message.headers, MISSING)?, end })
    }
}

fn number(headers: &Headers, name: &str) -> Result<Option<u64>, Error> {
    // u64's own parser takes a plus sign, which no sender writes
    let parse = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    headers.get(name).map(|text| parse(text).ok_or_else(|| malformed("has a header that isn't a number"))).transpose()
}

pub(super) fn malformed(what: &str) -> Error {
    Error::invalid(format!("A message of the stream {what}.")).mend("The wire form is in docs/reference/byte-streams.md.")
}
