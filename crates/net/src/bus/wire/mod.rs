//! The NATS client protocol as bytes, both directions (<https://docs.nats.io/reference/reference-protocols/nats-protocol>).
//!
//! Parsing works on what has arrived so far and copies nothing: an operation borrows from the buffer, and the caller takes it out when it is done
//! with it. Nothing here does I/O.

mod client_ops;
mod frame;
mod headers;
mod info;
mod server_ops;

pub(crate) use client_ops::{ClientOp, ClientParser, Publish};
pub(crate) use frame::{Frame, put_frame, put_head, put_number};
pub(crate) use headers::{NO_RESPONDERS, check_headers, decode_headers, encode_headers, well_formed};
pub(crate) use info::{Connect, Info};
pub(crate) use server_ops::{ServerOp, ServerParser};

/// What a look at the buffer gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<Op> {
    /// An operation that takes so many bytes from the buffer's beginning.
    Op { op: Op, consumed: usize },
    /// The buffer must hold at least so many bytes before another look can give more.
    Need(usize),
}

/// Why the bytes aren't the protocol. The text is what nats-server says, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("Unknown Protocol Operation")]
    Operation,
    #[error("maximum control line exceeded")]
    ControlLine,
    #[error("Maximum Payload Violation")]
    Payload,
}

/// The first line of the buffer without its end, and where the next begins. As nats-server, takes a bare line feed for an end, too.
pub(super) fn line(buffer: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, Malformed> {
    match memchr::memchr(b'\n', &buffer[..buffer.len().min(max + 2)]) {
        Some(end) => {
            let line = buffer[..end].strip_suffix(b"\r").unwrap_or(&buffer[..end]);
            if line.len() > max { Err(Malformed::ControlLine) } else { Ok(Some((line, end + 1))) }
        }
        None if buffer.len() >= max + 2 => Err(Malformed::ControlLine),
        None => Ok(None),
    }
}

/// Up to `N` arguments, separated by blanks.
fn args<const N: usize>(line: &[u8]) -> Result<([&[u8]; N], usize), Malformed> {
    let mut all = [&line[..0]; N];
    let mut count = 0;
    let mut rest = line;
    loop {
        let Some(start) = rest.iter().position(|byte| !blank(*byte)) else { return Ok((all, count)) };
        rest = &rest[start..];
        let end = rest.iter().position(|byte| blank(*byte)).unwrap_or(rest.len());
        *all.get_mut(count).ok_or(Malformed::Operation)? = &rest[..end];
        count += 1;
        rest = &rest[end..];
    }
}

/// A carriage return, too, as nats-server has it: none gets into a subject or an id, and so into a line that is sent.
fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// A decimal number of up to nine digits.
pub(super) fn number(text: &[u8]) -> Result<usize, Malformed> {
    if text.is_empty() || text.len() > 9 || !text.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Operation);
    }
    Ok(text.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')))
}

/// A message's header block and its payload.
pub(super) type Parts<'a> = (&'a [u8], &'a [u8]);

/// The headers and the payload of a message whose line ends at `start`: `total` bytes, of which the first `head` are headers, and CRLF.
/// None while they haven't all arrived.
pub(super) fn body(buffer: &[u8], start: usize, head: usize, total: usize, max: usize) -> Result<Option<Parts<'_>>, Malformed> {
    if head > total {
        return Err(Malformed::Operation);
    }
    if total > max {
        return Err(Malformed::Payload);
    }
    match buffer.get(start + total..) {
        Some([b'\r', b'\n', ..]) => Ok(Some(buffer[start..start + total].split_at(head))),
        Some([] | [b'\r']) | None => Ok(None),
        Some(_) => Err(Malformed::Operation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"000000012"), Ok(12));
        for bad in [&b""[..], b"-1", b"+1", b"1e3", b"1234567890", b"\xff"] {
            assert_eq!(number(bad), Err(Malformed::Operation), "{bad:?}");
        }
    }

    #[test]
    fn lines_are_bounded_whether_or_not_they_end() {
        assert_eq!(line(b"abc\r\ndef", 3), Ok(Some((&b"abc"[..], 5))));
        assert_eq!(line(b"abc\ndef", 3), Ok(Some((&b"abc"[..], 4))));
        assert_eq!(line(b"abc\r", 3), Ok(None));
        assert_eq!(line(b"abcd\r\n", 3), Err(Malformed::ControlLine));
        assert_eq!(line(b"abcde", 3), Err(Malformed::ControlLine));
    }
}
