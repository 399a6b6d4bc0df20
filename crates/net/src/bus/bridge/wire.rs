//! The leaf node protocol as bytes. It isn't in NATS's documentation; the facts are those of nats-server 2.9 and later (`server/leafnode.go`,
//! `server/parser.go`), which speak it among themselves.
//!
//! | line | meaning |
//! |---|---|
//! | `INFO {…}` | first the hub's, with `leafnode_urls`; once more after CONNECT, with the permissions of this connection |
//! | `CONNECT {…}` | the leaf's, with a name, credentials and without `lang` (by which a hub tells clients apart) |
//! | `LS+ subject` | interest in a subject; `LS+ subject queue weight` of a queue group with so many members |
//! | `LS- subject [queue]` | it has ended |
//! | `LMSG subject [reply] size` | a message for plain subscriptions |
//! | `LMSG subject + reply queue… size` | also for one member of each of these queue groups |
//! | `LMSG subject \| queue… size` | likewise, without a reply subject |
//! | `HMSG …` | the same forms, with the headers' size before the whole size |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bus::wire::{Malformed, Proof, Reading, Sizes, Step, error_text, json_line};

/// One operation of a hub, borrowed from the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LeafOp<'a> {
    /// The JSON of INFO.
    Info(&'a [u8]),
    /// LS+; a weight comes with every queue and says nothing that a leaf could use.
    Begin(Key<'a>),
    /// LS-
    End(Key<'a>),
    Message(LeafMessage<'a>),
    Ping,
    Pong,
    Ok,
    /// The text of -ERR without its quotes.
    Err(&'a str),
    /// Something that isn't wanted here and can be passed over: a subject that isn't UTF-8 (NATS allows such), or a part of a message that is
    /// larger than this side takes.
    Passed(Passed),
}

/// What was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// A whole operation, or the beginning of a message.
    Beginning,
    /// More of it.
    Rest,
}

/// A subscription as leaf nodes name it: subject and queue group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub subject: &'a str,
    pub queue: Option<&'a str>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeafMessage<'a> {
    pub subject: &'a str,
    pub reply: Option<&'a str>,
    /// Names of queue groups, one member of each of which is to get it.
    pub queues: Vec<&'a str>,
    /// Empty for LMSG.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

/// Reads a hub's operations from a growing buffer.
#[derive(Debug)]
pub(super) struct LeafParser {
    /// Messages above its bound are passed over.
    reading: Reading,
    /// Bytes of a message that are still to be passed over.
    skip: usize,
}

/// Beyond this a hub isn't trusted: nats-server's own limit is 64 MiB.
const ABSURD: usize = 64 << 20;

impl LeafParser {
    pub(super) fn new(max_line: usize, max_payload: usize) -> Self {
        Self { reading: Reading::new(max_line, max_payload), skip: 0 }
    }

    pub(super) fn step<'a>(&mut self, buffer: &'a [u8]) -> Result<Step<LeafOp<'a>>, Malformed> {
        if self.skip > 0 {
            return Ok(self.pass_over(buffer));
        }
        let (line, next) = match self.reading.line(buffer)? {
            Step::Op { op, consumed } => (op, consumed),
            Step::Need(bytes) => return Ok(Step::Need(bytes)),
        };
        let op = if let Some(rest) = line.strip_prefix(b"LMSG ") {
            return self.message(buffer, rest, next, false);
        } else if let Some(rest) = line.strip_prefix(b"HMSG ") {
            return self.message(buffer, rest, next, true);
        } else if let Some(rest) = line.strip_prefix(b"LS+ ") {
            key(rest, true)?.map_or(LeafOp::Passed(Passed::Beginning), LeafOp::Begin)
        } else if let Some(rest) = line.strip_prefix(b"LS- ") {
            key(rest, false)?.map_or(LeafOp::Passed(Passed::Beginning), LeafOp::End)
        } else if let Some(rest) = line.strip_prefix(b"INFO ") {
            LeafOp::Info(rest.trim_ascii())
        } else if let Some(rest) = line.strip_prefix(b"-ERR") {
            LeafOp::Err(error_text(rest)?)
        } else {
            match line {
                b"PING" => LeafOp::Ping,
                b"PONG" => LeafOp::Pong,
                b"+OK" => LeafOp::Ok,
                _ => return Err(Malformed::Operation),
            }
        };
        Ok(Step::Op { op, consumed: next })
    }

    fn pass_over<'a>(&mut self, buffer: &'a [u8]) -> Step<LeafOp<'a>> {
        let consumed = buffer.len().min(self.skip);
        if consumed == 0 {
            return Step::Need(1);
        }
        self.skip -= consumed;
        Step::Op { op: LeafOp::Passed(Passed::Rest), consumed }
    }

    fn message<'a>(&mut self, buffer: &'a [u8], rest: &'a [u8], next: usize, with_headers: bool) -> Result<Step<LeafOp<'a>>, Malformed> {
        let args: Vec<&[u8]> = rest.split(u8::is_ascii_whitespace).filter(|arg| !arg.is_empty()).collect();
        let (names, sizes) = Sizes::split(&args, with_headers)?;
        if sizes.total > ABSURD {
            return Err(Malformed::Payload);
        }
        let (reply, queues) = match names {
            [_] => (None, &names[..0]),
            [_, reply] => (Some(*reply), &names[..0]),
            [_, b"+", reply, queues @ ..] => (Some(*reply), queues),
            [_, b"|", queues @ ..] => (None, queues),
            _ => return Err(Malformed::Operation),
        };
        let texts = || -> Result<_, std::str::Utf8Error> {
            let queues = queues.iter().map(|queue| std::str::from_utf8(queue)).collect::<Result<Vec<_>, _>>()?;
            Ok((std::str::from_utf8(names[0])?, reply.map(std::str::from_utf8).transpose()?, queues))
        };
        let Ok((subject, reply, queues)) = texts() else { return Ok(self.leave_out(next, sizes.total)) };
        if sizes.total > self.reading.max_payload {
            return Ok(self.leave_out(next, sizes.total));
        }
        let message = |(headers, payload)| LeafOp::Message(LeafMessage { subject, reply, queues, headers, payload });
        Ok(self.reading.message(buffer, next, sizes)?.map(message))
    }

    fn leave_out<'a>(&mut self, line: usize, total: usize) -> Step<LeafOp<'a>> {
        self.skip = total + 2;
        Step::Op { op: LeafOp::Passed(Passed::Beginning), consumed: line }
    }
}

/// None if it isn't UTF-8: nobody here could subscribe or publish to it.
fn key(rest: &[u8], begins: bool) -> Result<Option<Key<'_>>, Malformed> {
    let Ok(text) = std::str::from_utf8(rest) else { return Ok(None) };
    let mut args = text.split_ascii_whitespace();
    let subject = args.next().ok_or(Malformed::Operation)?;
    let queue = args.next();
    let weight = args.next();
    if args.next().is_some() || (begins && queue.is_some()) != weight.is_some() {
        return Err(Malformed::Operation);
    }
    Ok(Some(Key { subject, queue }))
}

/// What a hub says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct HubInfo {
    pub server_name: String,
    pub server_id: String,
    pub cluster: String,
    pub headers: bool,
    pub tls_required: bool,
    /// Bytes.
    pub max_payload: usize,
    pub nonce: String,
    /// Only listeners for leaf nodes have it.
    pub leafnode_urls: Option<Vec<String>>,
    /// What the leaf may ask for.
    pub import: Option<Patterns>,
    /// What the leaf may send.
    pub export: Option<Patterns>,
}

/// Permissions as nats-server writes them. No `allow` allows everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Patterns {
    pub allow: Vec<String>,
    pub deny: Vec<String>,
}

/// What a leaf says of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct LeafConnect {
    pub version: &'static str,
    /// Unique: a hub closes the older of two leaf nodes of one name.
    pub name: String,
    pub server_id: String,
    pub headers: bool,
    pub tls_required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<String>,
    #[serde(flatten)]
    pub proof: Proof,
}

impl LeafConnect {
    /// The CONNECT line.
    pub(super) fn line(&self) -> Bytes {
        json_line(b"CONNECT ", self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bus::wire;

    fn all(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = LeafParser::new(128, 32);
        let text = |op: LeafOp<'_>| match op {
            LeafOp::Passed(Passed::Rest) => None, // how many pieces the rest of a large message comes in is the network's choice
            op => Some(format!("{op:?}")),
        };
        wire::all(|buffer| Ok(parser.step(buffer)?.map(text)), chunks.iter().copied())
    }

    fn message<'a>(subject: &'a str, reply: Option<&'a str>, queues: &[&'a str]) -> LeafOp<'a> {
        LeafOp::Message(LeafMessage { subject, reply, queues: queues.to_vec(), headers: b"", payload: b"hi" })
    }

    const STREAM: &[u8] = b"INFO {\"a\":1} \r\nLS+ a.>\r\nLS+ a.* q 3\r\nLS- a.* q\r\nLS- b\r\nLMSG a 2\r\nhi\r\nLMSG a r 2\r\nhi\r\n\
        LMSG a + r q1 q2 2\r\nhi\r\nLMSG a | q1 2\r\nhi\r\nHMSG a + r q 12 14\r\nNATS/1.0\r\n\r\nhi\r\nHMSG a 12 12\r\nNATS/1.0\r\n\r\n\r\n\
        -ERR 'Loop detected'\r\nPING\r\nPONG\r\n+OK\r\nLMSG a 40\r\n0123456789012345678901234567890123456789\r\nPING\r\n";

    fn expected() -> Vec<String> {
        let headed =
            |reply, queues, payload| LeafOp::Message(LeafMessage { subject: "a", reply, queues, headers: b"NATS/1.0\r\n\r\n", payload });
        [
            LeafOp::Info(b"{\"a\":1}"),
            LeafOp::Begin(Key { subject: "a.>", queue: None }),
            LeafOp::Begin(Key { subject: "a.*", queue: Some("q") }),
            LeafOp::End(Key { subject: "a.*", queue: Some("q") }),
            LeafOp::End(Key { subject: "b", queue: None }),
            message("a", None, &[]),
            message("a", Some("r"), &[]),
            message("a", Some("r"), &["q1", "q2"]),
            message("a", None, &["q1"]),
            headed(Some("r"), vec!["q"], b"hi"),
            headed(None, vec![], b""),
            LeafOp::Err("Loop detected"),
            LeafOp::Ping,
            LeafOp::Pong,
            LeafOp::Ok,
            LeafOp::Passed(Passed::Beginning),
            LeafOp::Ping,
        ]
        .map(|op| format!("{op:?}"))
        .to_vec()
    }

    #[test]
    fn operations() {
        assert_eq!(all(&[STREAM]), expected());
        for bad in [
            "MSG a 1 0\r\n\r\n",
            "LS+ \r\n",
            "LS+ a q\r\n",
            "LS- a q 1\r\n",
            "LMSG a\r\n",
            "LMSG 2\r\nhi\r\n",
            "LMSG a b c 2\r\nhi\r\n",
            "LMSG a 2\r\nhiX\n",
            "LMSG a 100000000\r\n",
            "HMSG a 2\r\nhi\r\n",
            "HMSG a 3 2\r\nhi\r\n",
        ] {
            let found = all(&[bad.as_bytes()]);
            assert!(found.len() == 1 && !found[0].contains('('), "{bad:?}: {found:?}");
        }
    }

    #[test]
    fn what_is_not_text_is_passed_over() {
        let passed = format!("{:?}", LeafOp::Passed(Passed::Beginning));
        assert_eq!(all(&[b"LS+ \xff\r\nLMSG a \xff 2\r\nhi\r\nLMSG \xff 2\r\nhi\r\nPING\r\n"]), [&passed, &passed, &passed, "Ping"]);
    }

    #[test]
    fn connect_has_no_lang() {
        let connect = LeafConnect { name: "n".into(), user: Some("u".into()), headers: true, version: "2.10.0", ..LeafConnect::default() };
        let line = connect.line();
        let json = std::str::from_utf8(&line).unwrap().strip_prefix("CONNECT ").unwrap();
        assert_eq!(
            json,
            "{\"version\":\"2.10.0\",\"name\":\"n\",\"server_id\":\"\",\"headers\":true,\"tls_required\":false,\"user\":\"u\"}\r\n"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), split in any::<prop::sample::Index>()) {
            let (a, b) = bytes.split_at(split.index(bytes.len() + 1));
            prop_assert_eq!(all(&[a, b]), all(&[&bytes]));
        }

        #[test]
        fn nor_do_lines_that_are_nearly_right(
            name in prop::sample::select(vec!["LS+", "LS-", "LMSG", "HMSG", "INFO", "-ERR"]),
            args in prop::collection::vec("[a|+0-9 \u{e4}]{0,4}", 0..6),
        ) {
            let line = format!("{name} {}\r\nhi\r\n", args.join(" "));
            let (a, b) = line.as_bytes().split_at(line.len() / 2);
            prop_assert_eq!(all(&[a, b]), all(&[line.as_bytes()]));
        }

        #[test]
        fn splitting_changes_nothing(one in 0..STREAM.len(), other in 0..STREAM.len()) {
            let (one, other) = (one.min(other), one.max(other));
            prop_assert_eq!(all(&[&STREAM[..one], &STREAM[one..other], &STREAM[other..]]), expected());
        }
    }
}
