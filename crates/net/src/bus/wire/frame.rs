//! How a message is written: as MSG or PUB, with headers as HMSG or HPUB.

use bytes::{Bytes, BytesMut};

/// The parts of a MSG or HMSG (or, from a client, of a PUB or HPUB).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// `MSG ` or `PUB `, without headers.
    pub plain: &'static [u8],
    /// `HMSG ` or `HPUB `.
    pub headed: &'static [u8],
    pub subject: &'a [u8],
    /// Empty for a publication.
    pub sid: &'a [u8],
    pub reply: Option<&'a str>,
    pub headers: &'a [u8],
    pub payload: &'a [u8],
    /// The payload as bytes that can be queued without a copy, if there are such.
    pub shared: Option<&'a Bytes>,
}

impl Frame<'_> {
    /// Bytes that it takes at the most, without looking at its numbers.
    pub(crate) fn most(&self) -> usize {
        self.subject.len() + self.sid.len() + self.reply.map_or(0, str::len) + self.headers.len() + self.payload.len() + 56
    }
}

/// Appends a whole message.
pub(crate) fn put_frame(out: &mut BytesMut, frame: &Frame<'_>) {
    put_head(out, frame);
    out.extend_from_slice(frame.payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends all that stands before the payload.
pub(crate) fn put_head(out: &mut BytesMut, frame: &Frame<'_>) {
    out.extend_from_slice(if frame.headers.is_empty() { frame.plain } else { frame.headed });
    out.extend_from_slice(frame.subject);
    out.extend_from_slice(b" ");
    if !frame.sid.is_empty() {
        out.extend_from_slice(frame.sid);
        out.extend_from_slice(b" ");
    }
    if let Some(reply) = frame.reply {
        out.extend_from_slice(reply.as_bytes());
        out.extend_from_slice(b" ");
    }
    if !frame.headers.is_empty() {
        put_number(out, frame.headers.len());
        out.extend_from_slice(b" ");
    }
    put_number(out, frame.headers.len() + frame.payload.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(frame.headers);
}

/// Appends a number in decimal: `write!` would cost more than the rest of a MSG line.
pub(crate) fn put_number(out: &mut BytesMut, mut value: usize) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for value in [0, 1, 9, 10, 1_048_576, usize::MAX] {
            let mut out = BytesMut::new();
            put_number(&mut out, value);
            assert_eq!(out, value.to_string().as_bytes());
        }
    }
}
