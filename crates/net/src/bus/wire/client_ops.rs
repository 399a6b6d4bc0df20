//! What clients send.

use super::{
    Malformed, Step,
    reading::{Reading, Sizes, args, blank, number},
};

/// One operation of a client, borrowed from the buffer. Subjects and the like are as they came: nobody has judged them yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClientOp<'a> {
    /// The JSON of CONNECT.
    Connect(&'a [u8]),
    /// PUB and HPUB.
    Publish(Publish<'a>),
    Subscribe {
        subject: &'a [u8],
        queue: Option<&'a [u8]>,
        sid: &'a [u8],
    },
    Unsubscribe {
        sid: &'a [u8],
        /// Unsubscribes after so many messages in all.
        max: Option<usize>,
    },
    Ping,
    Pong,
    /// `+OK`, which a client may send and nobody needs.
    Ok,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    pub subject: &'a [u8],
    pub reply: Option<&'a [u8]>,
    /// The header block as it came; empty for PUB.
    pub headers: &'a [u8],
    /// Whether it was HPUB.
    pub with_headers: bool,
    pub payload: &'a [u8],
}

impl Publish<'_> {
    /// Bytes of headers and payload.
    pub(crate) fn size(&self) -> usize {
        self.headers.len() + self.payload.len()
    }
}

/// Reads clients' operations from a growing buffer.
#[derive(Debug)]
pub(crate) struct ClientParser {
    reading: Reading,
    /// Whether CONNECT has to come first.
    only_connect: bool,
}

impl ClientParser {
    pub(crate) fn new(max_line: usize, max_payload: usize) -> Self {
        Self { reading: Reading::new(max_line, max_payload), only_connect: false }
    }

    /// Whether anything but CONNECT is [`Malformed::Early`]. It is refused here and nowhere else, by its first word: nobody unknown gets memory for a
    /// payload, or hears what is wrong with the rest of a line.
    pub(crate) fn only_connect(&mut self, only_connect: bool) {
        self.only_connect = only_connect;
    }

    /// Looks at the buffer's beginning.
    pub(crate) fn step<'a>(&mut self, buffer: &'a [u8]) -> Result<Step<ClientOp<'a>>, Malformed> {
        let (line, next) = match self.reading.line(buffer)? {
            Step::Op { op, consumed } => (op, consumed),
            Step::Need(bytes) => {
                // a message whose line has been read is
                if !plausible(buffer) {
                    return Err(if self.only_connect { Malformed::Early } else { Malformed::Operation });
                }
                return Ok(Step::Need(bytes));
            }
        };
        let (name, rest) = split_name(line);
        let op = match name.len() {
            _ if self.only_connect && !name.eq_ignore_ascii_case(b"CONNECT") => return Err(Malformed::Early),
            3 if name.eq_ignore_ascii_case(b"PUB") => return self.publish(buffer, rest, next, false),
            4 if name.eq_ignore_ascii_case(b"HPUB") => return self.publish(buffer, rest, next, true),
            3 if name.eq_ignore_ascii_case(b"SUB") => match args::<3>(rest)? {
                ([subject, sid, _], 2) => ClientOp::Subscribe { subject, queue: None, sid },
                ([subject, queue, sid], 3) => ClientOp::Subscribe { subject, queue: Some(queue), sid },
                _ => return Err(Malformed::Operation),
            },
            5 if name.eq_ignore_ascii_case(b"UNSUB") => match args::<2>(rest)? {
                ([sid, _], 1) => ClientOp::Unsubscribe { sid, max: None },
                // as nats-server: what isn't a number counts as none
                ([sid, max], 2) => ClientOp::Unsubscribe { sid, max: number(max).ok() },
                _ => return Err(Malformed::Operation),
            },
            4 if name.eq_ignore_ascii_case(b"PING") => ClientOp::Ping,
            4 if name.eq_ignore_ascii_case(b"PONG") => ClientOp::Pong,
            7 if name.eq_ignore_ascii_case(b"CONNECT") => ClientOp::Connect(rest),
            3 if name.eq_ignore_ascii_case(b"+OK") => ClientOp::Ok,
            _ => return Err(Malformed::Operation),
        };
        Ok(Step::Op { op, consumed: next })
    }

    fn publish<'a>(&mut self, buffer: &'a [u8], rest: &'a [u8], next: usize, with_headers: bool) -> Result<Step<ClientOp<'a>>, Malformed> {
        let (all, count) = args::<4>(rest)?;
        let (subject, reply, head, total) = match (with_headers, count) {
            (false, 2) => (all[0], None, 0, number(all[1])?),
            (false, 3) => (all[0], Some(all[1]), 0, number(all[2])?),
            (true, 3) => (all[0], None, number(all[1])?, number(all[2])?),
            (true, 4) => (all[0], Some(all[1]), number(all[2])?, number(all[3])?),
            _ => return Err(Malformed::Operation),
        };
        let sizes = Sizes { head, total };
        Ok(match self.reading.message(buffer, next, sizes)? {
            Step::Op { op: (headers, payload), consumed } => {
                Step::Op { op: ClientOp::Publish(Publish { subject, reply, headers, with_headers, payload }), consumed }
            }
            Step::Need(bytes) => Step::Need(bytes),
        })
    }
}

fn split_name(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|byte| blank(*byte)).unwrap_or(line.len());
    line.split_at(end)
}

/// Whether a line that hasn't ended can still become an operation: what speaks another protocol is told at once.
fn plausible(start: &[u8]) -> bool {
    const NAMES: [&[u8]; 8] = [b"PUB", b"HPUB", b"SUB", b"UNSUB", b"PING", b"PONG", b"CONNECT", b"+OK"];
    let start = start.strip_suffix(b"\r").unwrap_or(start);
    let (name, rest) = split_name(start);
    let fits = |known: &&[u8]| {
        let known = if rest.is_empty() { known.get(..name.len()) } else { Some(*known) };
        known.is_some_and(|known| known.eq_ignore_ascii_case(name))
    };
    NAMES.iter().any(fits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::reading, *};

    fn all(parser: &mut ClientParser, chunks: &[&[u8]]) -> Vec<String> {
        reading::all(|buffer| Ok(parser.step(buffer)?.map(|op| Some(format!("{op:?}")))), chunks.iter().copied())
    }

    fn parser() -> ClientParser {
        ClientParser::new(64, 32)
    }

    fn one(text: &str) -> Vec<String> {
        all(&mut parser(), &[text.as_bytes()])
    }

    #[test]
    fn operations_in_any_case_and_with_any_blanks() {
        let publish = |subject, reply, headers, with_headers, payload| {
            vec![format!("{:?}", ClientOp::Publish(Publish { subject, reply, headers, with_headers, payload }))]
        };
        assert_eq!(one("PUB a.b 2\r\nhi\r\n"), publish(b"a.b", None, b"", false, b"hi"));
        assert_eq!(one("pub\ta.b \t r  2 \r\nhi\r\n"), publish(b"a.b", Some(b"r"), b"", false, b"hi"));
        assert_eq!(one("PuB a 0\r\n\r\n"), publish(b"a", None, b"", false, b""));
        assert_eq!(one("HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"), publish(b"a", None, b"NATS/1.0\r\n\r\n", true, b"hi"));
        assert_eq!(one("hpub a r 12 12\r\nNATS/1.0\r\n\r\n\r\n"), publish(b"a", Some(b"r"), b"NATS/1.0\r\n\r\n", true, b""));
        assert_eq!(one("sub a.* 1\r\n"), [format!("{:?}", ClientOp::Subscribe { subject: b"a.*", queue: None, sid: b"1" })]);
        assert_eq!(one("SUB a q x9\r\n"), [format!("{:?}", ClientOp::Subscribe { subject: b"a", queue: Some(b"q"), sid: b"x9" })]);
        assert_eq!(one("UNSUB 1\r\n"), [format!("{:?}", ClientOp::Unsubscribe { sid: b"1", max: None })]);
        assert_eq!(one("unsub 1 5\n"), [format!("{:?}", ClientOp::Unsubscribe { sid: b"1", max: Some(5) })]);
        assert_eq!(one("unsub 1 -5\n"), [format!("{:?}", ClientOp::Unsubscribe { sid: b"1", max: None })]);
        assert_eq!(one("sub a\r1\r\r\n"), [format!("{:?}", ClientOp::Subscribe { subject: b"a", queue: None, sid: b"1" })]);
        assert_eq!(one("ping\r\nPONG\r\n+ok\r\n"), ["Ping", "Pong", "Ok"]);
    }

    #[test]
    fn before_connect_nothing_else_is_read() {
        let early = |text: &str| {
            let mut parser = parser();
            parser.only_connect(true);
            all(&mut parser, &[text.as_bytes()])
        };
        for text in ["PING\r\n", "PUB a 2\r\n", "PUB a 33\r\n", "SUB\r\n", "GET / HTTP/1.1\r\n", "GE", "\r\n"] {
            assert_eq!(early(text), ["Authorization Violation"], "{text:?}");
        }
        assert_eq!(early(&format!("PUB {}", "a".repeat(64))), ["maximum control line exceeded"]);
        assert!(early("PU").is_empty(), "it may still go on");
        assert_eq!(early("connect {}\r\nPING\r\n"), [&*format!("{:?}", ClientOp::Connect(b" {}")), "Authorization Violation"]);
    }

    #[test]
    fn what_is_not_the_protocol() {
        let unknown = "Unknown Protocol Operation";
        for (text, error) in [
            ("GET / HTTP/1.1\r\n", unknown),
            ("GE", unknown),
            ("\r\n", unknown),
            (" PUB a 0\r\n", unknown),
            ("PUBX a 0\r\n", unknown),
            ("PUB\r\n", unknown),
            ("PUB a\r\n", unknown),
            ("PUB a b c 1\r\n", unknown),
            ("PUB a b c d e 1\r\n", unknown),
            ("PUB a x\r\n", unknown),
            ("PUB a -1\r\n", unknown),
            ("PUB a 99999999999999999999\r\n", unknown),
            ("PUB a 2\r\nhiXX", unknown),
            ("PUB a 2\r\nhi\nX", unknown),
            ("PUB a 2\r\nhix", unknown),
            ("PUB a 33\r\n", "Maximum Payload Violation"),
            ("HPUB a 1\r\n", unknown),
            ("HPUB a 3 2\r\n", unknown),
            ("SUB a\r\n", unknown),
            ("SUB\r\n", unknown),
            ("SUB a b c d\r\n", unknown),
            ("UNSUB\r\n", unknown),
            ("UNSUB 1 2 3\r\n", unknown),
            ("INFO {}\r\n", unknown),
            ("MSG a 1 0\r\n\r\n", unknown),
            ("\0\0\0\0", unknown),
            (&format!("SUB {} 1\r\n", "a".repeat(64)), "maximum control line exceeded"),
            (&format!("PUB {}", "a".repeat(64)), "maximum control line exceeded"),
        ] {
            assert_eq!(one(text), [error], "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_split_the_operations_are_the_same(
            ops in prop::collection::vec(prop::sample::select(vec![
                "PUB a.b 5\r\nhello\r\n", "PUB a r 0\r\n\r\n", "HPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", "SUB a.> q 77\r\n", "UNSUB 77 3\r\n",
                "PING\r\n", "CONNECT {\"verbose\":false}\r\n", "PUB a 9\r\nPING\r\nxyz\r\n", "PUB a 40\r\n", "garbage\r\n",
            ]), 1..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes = ops.concat().into_bytes();
            let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            at.sort_unstable();
            at.push(bytes.len());
            let mut from = 0;
            let chunks: Vec<_> = at.iter().map(|to| { let chunk = &bytes[from..*to]; from = *to; chunk }).collect();
            prop_assert_eq!(all(&mut parser(), &chunks), all(&mut parser(), &[&bytes]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), split in any::<prop::sample::Index>()) {
            let (a, b) = bytes.split_at(split.index(bytes.len() + 1));
            all(&mut parser(), &[a, b]);
        }

        #[test]
        fn no_damaged_operation_makes_it_panic(at in 0..45usize, byte in any::<u8>()) {
            let mut bytes = b"HPUB a.b r 12 17\r\nNATS/1.0\r\n\r\nhello\r\nSUB a 1\r\n".to_vec();
            bytes[at] = byte;
            all(&mut parser(), &[&bytes]);
        }
    }
}
