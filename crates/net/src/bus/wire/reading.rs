//! What the parsers of all directions have in common: a line, and what follows the line of a message.

use super::{Malformed, Step};

/// How far a growing buffer has been looked at, and the bounds of what it may hold.
#[derive(Debug)]
pub(crate) struct Reading {
    max_line: usize,
    /// Of headers and payload together, in bytes.
    pub max_payload: usize,
    /// Known from the line of a message that hasn't all arrived, so that the line isn't read again at every packet.
    need: usize,
}

impl Reading {
    pub(crate) fn new(max_line: usize, max_payload: usize) -> Self {
        Self { max_line, max_payload, need: 0 }
    }

    /// The buffer's first line, without its end.
    #[inline]
    pub(crate) fn line<'a>(&mut self, buffer: &'a [u8]) -> Result<Step<&'a [u8]>, Malformed> {
        if buffer.len() < self.need {
            return Ok(Step::Need(self.need));
        }
        self.need = 0;
        Ok(match line(buffer, self.max_line)? {
            Some((line, next)) => Step::Op { op: line, consumed: next },
            None => Step::Need(buffer.len() + 1),
        })
    }

    /// The header block and the payload of a message whose line ends at `next`, and which takes the line with it when it has all arrived.
    #[inline]
    pub(crate) fn message<'a>(&mut self, buffer: &'a [u8], next: usize, sizes: Sizes) -> Result<Step<Parts<'a>>, Malformed> {
        let end = next + sizes.total;
        Ok(match body(buffer, next, sizes, self.max_payload)? {
            Some(parts) => Step::Op { op: parts, consumed: end + 2 },
            None => {
                // looked at again as soon as the end's first byte is there, so that a wrong one is told at once, however the bytes are split
                self.need = (end + 1).max(buffer.len() + 1);
                Step::Need(end + 2)
            }
        })
    }
}

/// What the line of a message says of what follows it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Of the header block; 0 for a message without.
    pub head: usize,
    /// Of headers and payload.
    pub total: usize,
}

impl Sizes {
    /// Takes them from the end of a message's arguments, and gives what stands before them.
    #[inline]
    pub(crate) fn split<'l, 'a>(args: &'l [&'a [u8]], with_headers: bool) -> Result<(&'l [&'a [u8]], Self), Malformed> {
        match (with_headers, args) {
            (false, [names @ .., total]) => Ok((names, Self { head: 0, total: number(total)? })),
            (true, [names @ .., head, total]) => Ok((names, Self { head: number(head)?, total: number(total)? })),
            _ => Err(Malformed::Operation),
        }
    }
}

/// The first line of the buffer without its end, and where the next begins. As nats-server, takes a bare line feed for an end, too.
fn line(buffer: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, Malformed> {
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
pub(super) fn args<const N: usize>(line: &[u8]) -> Result<([&[u8]; N], usize), Malformed> {
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
pub(super) fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// A decimal number of up to nine digits.
pub(super) fn number(text: &[u8]) -> Result<usize, Malformed> {
    if text.is_empty() || text.len() > 9 || !text.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Operation);
    }
    Ok(text.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')))
}

/// Of what a server says. Our own side takes text alone.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::Operation)
}

/// The text of -ERR, without its quotes.
pub(crate) fn error_text(rest: &[u8]) -> Result<&str, Malformed> {
    Ok(text(rest.trim_ascii())?.trim_matches('\''))
}

/// A message's header block and its payload.
pub(crate) type Parts<'a> = (&'a [u8], &'a [u8]);

/// The headers and the payload of a message whose line ends at `start`, and CRLF. None while they haven't all arrived.
fn body(buffer: &[u8], start: usize, sizes: Sizes, max: usize) -> Result<Option<Parts<'_>>, Malformed> {
    let Sizes { head, total } = sizes;
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

/// All operations of these bytes as text, or the error that ends them; [`None`] stands for one that doesn't matter. For tests of any parser.
#[cfg(any(test, fuzzing))]
pub(crate) fn all<'c>(
    mut step: impl FnMut(&[u8]) -> Result<Step<Option<String>>, Malformed>,
    chunks: impl IntoIterator<Item = &'c [u8]>,
) -> Vec<String> {
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        loop {
            match step(&buffer) {
                Ok(Step::Op { op, consumed }) => {
                    assert!(0 < consumed && consumed <= buffer.len());
                    found.extend(op);
                    buffer.drain(..consumed);
                }
                Ok(Step::Need(need)) => {
                    assert!(need > buffer.len(), "{need} for {}", buffer.len());
                    break;
                }
                Err(error) => {
                    found.push(error.to_string());
                    return found;
                }
            }
        }
    }
    found
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
