//! Message headers (NATS ADR-4): a status line `NATS/1.0[ code[ text]]`, fields `name: value`, an empty line.

use atoll_contract::Error;
use bytes::{BufMut, Bytes, BytesMut};

use crate::bus::Headers;

const VERSION: &str = "NATS/1.0";
/// The whole header block that says that nobody subscribes.
pub(crate) const NO_RESPONDERS: &[u8] = b"NATS/1.0 503\r\n\r\n";

/// Whether a block is what every client can read. A client that meets another one gives up its connection, so nobody may send them one.
pub(crate) fn well_formed(block: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(block) else { return false };
    let Some(text) = text.strip_suffix("\r\n\r\n") else { return false };
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|first| first.strip_prefix(VERSION)).is_some_and(|rest| {
        let code = rest.trim_start_matches(' ').split(' ').next().unwrap_or_default();
        rest.is_empty()
            || rest.starts_with(' ')
                && good_value(rest)
                && (code.is_empty() || code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit()) && !code.starts_with('0'))
    });
    status && lines.all(|line| line.split_once(':').is_some_and(|(name, value)| good_name(name) && good_value(value)))
}

/// Whether headers made by this program can be sent.
///
/// # Errors
/// `invalid_argument`, naming the field.
pub(crate) fn check_headers(headers: &Headers) -> Result<(), Error> {
    if headers.status.is_some_and(|status| status > 999) || !good_value(&headers.description) {
        return Err(Error::invalid("The status line can't be sent."));
    }
    match headers.fields.iter().find(|(name, value)| !good_name(name) || !good_value(value)) {
        Some((name, _)) => Err(Error::invalid(format!("The header {name:?} has a name or value that can't be sent."))),
        None => Ok(()),
    }
}

fn good_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

fn good_value(value: &str) -> bool {
    !value.contains(['\r', '\n'])
}

/// The block of these headers; empty if there are none.
pub(crate) fn encode_headers(headers: &Headers) -> Bytes {
    if headers.is_empty() {
        return Bytes::new();
    }
    let mut out = BytesMut::with_capacity(
        32 + headers.description.len() + headers.fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>(),
    );
    out.put_slice(VERSION.as_bytes());
    if let Some(status) = headers.status {
        out.put_slice(format!(" {status:03}").as_bytes());
        if !headers.description.is_empty() {
            out.put_u8(b' ');
            out.put_slice(headers.description.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
    for (name, value) in &headers.fields {
        out.put_slice(name.as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

/// Reads a block; what isn't a header in it is left out.
pub(crate) fn decode_headers(block: &[u8]) -> Headers {
    let text = String::from_utf8_lossy(block);
    let mut lines = text.split("\r\n");
    let first = lines.next().and_then(|line| line.strip_prefix(VERSION)).unwrap_or_default();
    let (code, description) = first.trim().split_once(' ').unwrap_or((first.trim(), ""));
    let status: Option<u16> = code.parse().ok();
    let description = if status.is_some() { description.trim().to_owned() } else { String::new() };
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    Headers { status, description, fields: lines.filter_map(field).collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_encoded_is_well_formed_and_comes_back() {
        let headers = Headers { status: Some(503), ..Headers::default() }.with("A", "x").with("a-b", "").with("A", "ü: y");
        let block = encode_headers(&headers);
        let told = Headers { description: "No one there".into(), ..headers.clone() };
        assert_eq!(decode_headers(&encode_headers(&told)), told);
        assert!(well_formed(&encode_headers(&told)) && encode_headers(&told).starts_with(b"NATS/1.0 503 No one there\r\nA: x\r\n"));
        assert_eq!(&block[..], "NATS/1.0 503\r\nA: x\r\na-b: \r\nA: ü: y\r\n\r\n".as_bytes());
        assert!(well_formed(&block));
        assert_eq!(decode_headers(&block), headers);
        assert_eq!(encode_headers(&Headers::default()), Bytes::new());
        assert_eq!(decode_headers(NO_RESPONDERS).status, Some(503));
    }

    #[test]
    fn blocks_that_would_break_a_reader_are_not_well_formed() {
        for (block, good) in [
            ("NATS/1.0\r\n\r\n", true),
            ("NATS/1.0\r\nA:x\r\n\r\n", true),
            ("NATS/1.0 100 Idle Heartbeat\r\n\r\n", true),
            ("NATS/1.0 \r\n\r\n", true),
            ("", false),
            ("NATS/1.0\r\n", false),
            ("NATS/2.0\r\n\r\n", false),
            ("NATS/1.0x\r\n\r\n", false),
            ("NATS/1.0 5033\r\n\r\n", false),
            ("NATS/1.0 000\r\n\r\n", false),
            ("NATS/1.0 abc\r\n\r\n", false),
            ("NATS/1.0 100 Idle\nA: x\r\n\r\n", false),
            ("NATS/1.0\r\nA\r\n\r\n", false),
            ("NATS/1.0\r\n: x\r\n\r\n", false),
            ("NATS/1.0\r\nA b: x\r\n\r\n", false),
            ("NATS/1.0\r\nA: x\ny\r\n\r\n", false),
            ("NATS/1.0\r\nA: x\r\n\r\nB: y\r\n\r\n", false),
        ] {
            assert_eq!(well_formed(block.as_bytes()), good, "{block:?}");
        }
        assert!(!well_formed(b"NATS/1.0\r\nA: \xff\r\n\r\n"));
        for (status, description) in [(1000, ""), (503, "a\r\nB: c"), (503, "a\n")] {
            let headers = Headers { status: Some(status), description: description.into(), ..Headers::default() };
            assert!(check_headers(&headers).is_err(), "{status} {description:?}");
        }
        for (name, value) in [("", "x"), ("a b", "x"), ("a:", "x"), ("a\r\n", "x"), ("a", "x\r\nB: y"), ("a", "x\n")] {
            assert!(check_headers(&Headers::default().with(name, value)).is_err(), "{name:?} {value:?}");
        }
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic(block in prop::collection::vec(any::<u8>(), 0..80)) {
            well_formed(&block);
            decode_headers(&block);
        }
    }
}
