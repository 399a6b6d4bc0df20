//! What a fuzzer's input means: bytes that a client sends, with things that happen in between.
//!
//! 0xFE introduces an act; it is no part of any UTF-8 text, so a seed is the protocol's text as it stands. A second 0xFE sends one.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act<'a> {
    Send(&'a [u8]),
    /// The following bytes are another client's, which connects if it isn't there.
    Switch(usize),
    /// The bus gets its turn before the next bytes come.
    Turn,
    Wait(Duration),
    /// The client is gone without a word.
    Drop,
    /// The client says that it writes no more.
    Shut,
    /// Whether the client reads what comes.
    Reading(bool),
    /// The bus's owner takes a grant away.
    CloseGrant(u8),
    /// Something in this process publishes.
    Publish(u8),
    /// Something in this process subscribes or gives up its subscription.
    Listen(u8),
    Drain,
    /// How the following bytes are framed, over WebSocket.
    Frame(Framing),
}

/// How bytes become a frame of WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// They don't: they are what is on the wire.
    Raw,
    /// A frame with these first bits (FIN, RSV, opcode), masked or not.
    Frame { first: u8, masked: bool },
}

pub(crate) const ESCAPE: u8 = 0xFE;

/// The acts of an input, in order.
pub(crate) fn acts(mut rest: &[u8]) -> impl Iterator<Item = Act<'_>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let until = rest.iter().position(|byte| *byte == ESCAPE).unwrap_or(rest.len());
        if until > 0 {
            let (sent, after) = rest.split_at(until);
            rest = after;
            return Some(Act::Send(sent));
        }
        let code = rest.get(1).copied().unwrap_or(b'.');
        let (act, after) = (act(&rest[..1], code), rest.get(2..).unwrap_or_default());
        rest = after;
        Some(act)
    })
}

/// The codes are letters and digits where there is a choice, so that seeds can be read.
fn act(escape: &[u8], code: u8) -> Act<'_> {
    match code {
        ESCAPE => Act::Send(escape),
        b'0'..=b'3' => Act::Switch(usize::from(code - b'0')),
        b'w' => Act::Wait(Duration::from_millis(20)),
        b'W' => Act::Wait(Duration::from_secs(3)),
        b'L' => Act::Wait(Duration::from_secs(31)),
        b'd' => Act::Drop,
        b's' => Act::Shut,
        b'r' => Act::Reading(false),
        b'R' => Act::Reading(true),
        b'a'..=b'c' => Act::CloseGrant(code - b'a'),
        b'A'..=b'C' => Act::Publish(code - b'A'),
        b'x'..=b'z' => Act::Listen(code - b'x'),
        b'D' => Act::Drain,
        b'=' => Act::Frame(Framing::Raw),
        // FIN and the opcode, then the other bits at will
        0x80..=0xFD | 0x00..=0x0F => Act::Frame(Framing::Frame { first: code, masked: true }),
        0x10..=0x1F => Act::Frame(Framing::Frame { first: 0x80 | code & 0x0F, masked: false }),
        _ => Act::Turn,
    }
}
