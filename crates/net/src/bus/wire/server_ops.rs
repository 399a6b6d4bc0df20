//! What a server sends, read by our own client.

use super::{
    Malformed, Step,
    reading::{Reading, Sizes, args, error_text, number, text},
};

/// One operation of a server, borrowed from the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerOp<'a> {
    /// The JSON of INFO.
    Info(&'a [u8]),
    /// MSG and HMSG; `headers` is empty for MSG.
    Message {
        subject: &'a str,
        sid: u64,
        reply: Option<&'a str>,
        headers: &'a [u8],
        payload: &'a [u8],
    },
    Ping,
    Pong,
    Ok,
    /// The text of -ERR without its quotes.
    Err(&'a str),
}

/// Reads a server's operations from a growing buffer. The bounds are the client's own: a server that exceeds them isn't trusted further.
#[derive(Debug)]
pub(crate) struct ServerParser {
    reading: Reading,
}

impl ServerParser {
    pub(crate) fn new(max_line: usize, max_payload: usize) -> Self {
        Self { reading: Reading::new(max_line, max_payload) }
    }

    pub(crate) fn step<'a>(&mut self, buffer: &'a [u8]) -> Result<Step<ServerOp<'a>>, Malformed> {
        let (line, next) = match self.reading.line(buffer)? {
            Step::Op { op, consumed } => (op, consumed),
            Step::Need(bytes) => return Ok(Step::Need(bytes)),
        };
        let op = if let Some(rest) = line.strip_prefix(b"MSG ") {
            return self.message(buffer, rest, next, false);
        } else if let Some(rest) = line.strip_prefix(b"HMSG ") {
            return self.message(buffer, rest, next, true);
        } else if let Some(rest) = line.strip_prefix(b"INFO ") {
            ServerOp::Info(rest)
        } else if let Some(rest) = line.strip_prefix(b"-ERR") {
            ServerOp::Err(error_text(rest)?)
        } else {
            match line {
                b"PING" => ServerOp::Ping,
                b"PONG" => ServerOp::Pong,
                b"+OK" => ServerOp::Ok,
                _ => return Err(Malformed::Operation),
            }
        };
        Ok(Step::Op { op, consumed: next })
    }

    fn message<'a>(&mut self, buffer: &'a [u8], rest: &'a [u8], next: usize, with_headers: bool) -> Result<Step<ServerOp<'a>>, Malformed> {
        let (all, count) = args::<5>(rest)?;
        let (names, sizes) = Sizes::split(&all[..count], with_headers)?;
        let (subject, sid, reply) = match names {
            [subject, sid] => (subject, sid, None),
            [subject, sid, reply] => (subject, sid, Some(text(reply)?)),
            _ => return Err(Malformed::Operation),
        };
        let ((headers, payload), consumed) = match self.reading.message(buffer, next, sizes)? {
            Step::Op { op, consumed } => (op, consumed),
            Step::Need(bytes) => return Ok(Step::Need(bytes)),
        };
        let (subject, sid) = (text(subject)?, number(sid)? as u64);
        Ok(Step::Op { op: ServerOp::Message { subject, sid, reply, headers, payload }, consumed })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::reading, *};

    fn all(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = ServerParser::new(64, 32);
        reading::all(|buffer| Ok(parser.step(buffer)?.map(|op| Some(format!("{op:?}")))), chunks.iter().copied())
    }

    #[test]
    fn operations() {
        let bytes =
            b"INFO {}\r\nMSG a.b 7 2\r\nhi\r\nHMSG a 8 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n-ERR 'Slow Consumer'\r\nPING\r\nPONG\r\n+OK\r\n";
        let expected = [
            ServerOp::Info(b"{}"),
            ServerOp::Message { subject: "a.b", sid: 7, reply: None, headers: b"", payload: b"hi" },
            ServerOp::Message { subject: "a", sid: 8, reply: Some("r"), headers: b"NATS/1.0\r\n\r\n", payload: b"hi" },
            ServerOp::Err("Slow Consumer"),
            ServerOp::Ping,
            ServerOp::Pong,
            ServerOp::Ok,
        ];
        assert_eq!(all(&[bytes]), expected.map(|op| format!("{op:?}")));
        for bad in ["PUB a 0\r\n\r\n", "MSG a x 0\r\n\r\n", "MSG a 1 33\r\n", "HMSG a 1 3 2\r\n", "MSG a\r\n", "MSG \u{e4} 1 2\r\nhiX\n"] {
            assert_eq!(all(&[bad.as_bytes()]).len(), 1, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), split in any::<prop::sample::Index>()) {
            let (a, b) = bytes.split_at(split.index(bytes.len() + 1));
            prop_assert_eq!(all(&[a, b]), all(&[&bytes]));
        }

        #[test]
        fn splitting_changes_nothing(split in 0..40usize) {
            let bytes = b"HMSG a 8 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPONG\r\nMSG a 1 0\r\n\r\n";
            let (a, b) = bytes.split_at(split);
            prop_assert_eq!(all(&[a, b]), all(&[bytes]));
        }
    }
}
