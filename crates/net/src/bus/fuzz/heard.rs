//! What a client hears from the bus, read strictly: by a reader that knows nothing of the parsers, and again by our own client's parser.

use crate::bus::{
    subject::is_literal,
    wire::{ServerOp, ServerParser, Step, well_formed},
};

/// Reads what one client hears.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    buffer: Vec<u8>,
    ops: usize,
    /// After this the bus closes the connection; nothing may follow.
    pub last_words: bool,
    pub messages: usize,
}

/// -ERR after which a connection goes on, by how they begin.
const HARMLESS: &[&str] = &[
    "Permissions Violation",
    "Invalid Publish Subject",
    "Invalid Subject",
    "Invalid Reply Subject",
    "Invalid Message Headers",
    "maximum subscriptions exceeded",
];

impl Heard {
    pub(crate) fn hear(&mut self, bytes: &[u8], max_payload: usize) {
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(length) = self.one(at, max_payload) {
            at += length;
        }
        self.buffer.drain(..at);
    }

    /// Whether it ended at an operation's end, as far as it could be sent.
    pub(crate) fn is_whole(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The length of the operation that begins here, if it has all arrived.
    fn one(&mut self, at: usize, max_payload: usize) -> Option<usize> {
        let rest = &self.buffer[at..];
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, next) = (&rest[..end], end + 2);
        assert!(!self.last_words, "nothing follows the last words, but {}", rest.escape_ascii());
        self.ops += 1;
        assert!(self.ops > 1 || line.starts_with(b"INFO {") || line.starts_with(b"-ERR '"), "INFO comes first: {}", line.escape_ascii());
        let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let length = match words[..] {
            [b"MSG", subject, sid, ref reply @ .., total] => {
                let total = number(total);
                message(rest, subject, sid, reply, (next, 0, total), max_payload)?
            }
            [b"HMSG", subject, sid, ref reply @ .., head, total] => {
                let (head, total) = (number(head), number(total));
                assert!(head > 0, "an HMSG has headers");
                message(rest, subject, sid, reply, (next, head, total), max_payload)?
            }
            [b"PING" | b"PONG" | b"+OK"] | [b"INFO", ..] => next,
            [b"-ERR", ..] => {
                let text = std::str::from_utf8(&line[5..]).expect("errors are text");
                let text = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')).expect("errors are quoted");
                self.last_words = !HARMLESS.iter().any(|start| text.starts_with(start));
                next
            }
            _ => panic!("the bus sends what isn't its protocol: {}", line.escape_ascii()),
        };
        self.messages += usize::from(line.starts_with(b"MSG ") || line.starts_with(b"HMSG "));
        again(&rest[..length]);
        Some(length)
    }
}

fn message(
    rest: &[u8],
    subject: &[u8],
    sid: &[u8],
    reply: &[&[u8]],
    (next, head, total): (usize, usize, usize),
    max: usize,
) -> Option<usize> {
    let text = |bytes| std::str::from_utf8(bytes).expect("subjects are text");
    assert!(is_literal(text(subject), usize::MAX) && !sid.is_empty());
    assert!(!subject.starts_with(b"secret."), "nobody on a wire may read it");
    assert!(reply.len() <= 1 && reply.iter().all(|reply| is_literal(text(reply), usize::MAX)));
    assert!(head <= total && total <= max, "{head} of {total} bytes");
    let body = rest.get(next..next + total + 2)?;
    assert!(body.ends_with(b"\r\n"));
    assert!(head == 0 || well_formed(&body[..head]), "{}", body[..head].escape_ascii());
    Some(next + total + 2)
}

fn number(text: &[u8]) -> usize {
    assert!(text == b"0" || !text.starts_with(b"0"), "numbers have one form");
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("sizes are numbers")
}

/// Our own client reads the same operation. Its ids of subscriptions are numbers; others choose what they like.
fn again(op: &[u8]) {
    let sid = op.split(|byte| *byte == b' ').nth(2).filter(|_| op.starts_with(b"MSG ") || op.starts_with(b"HMSG "));
    if sid.is_some_and(|sid| sid.len() > 9 || !sid.iter().all(u8::is_ascii_digit)) {
        return;
    }
    match ServerParser::new(64 << 10, 1 << 20).step(op) {
        Ok(Step::Op { consumed, op: parsed }) => {
            assert_eq!(consumed, op.len(), "{}", op.escape_ascii());
            assert_eq!(sid.is_some(), matches!(parsed, ServerOp::Message { .. }));
        }
        other => panic!("our own client can't read {}: {other:?}", op.escape_ascii()),
    }
}
