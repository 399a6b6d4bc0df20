//! Records as bytes, many to a message: what a page is made of on its way from the file to a client.
//!
//! Each record: length of what follows (u32), sequence (u64), time in milliseconds since the Unix epoch (i64), flags (u8, 1: the key was
//! deleted), length of the key (u16), length of the headers (u16), key, headers as `name: value` lines that end in CR LF, data. Integers are big-endian.

use atoll_contract::{Error, Timestamp, streams};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a packed record without its key, headers and data.
pub const RECORD_OVERHEAD: usize = 4 + FIXED;
const FIXED: usize = 8 + 8 + 1 + 2 + 2;
const DELETED: u8 = 1;

/// A record as it is read. Parts of a page share its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    pub sequence: u64,
    pub time: Timestamp,
    /// Empty in a log.
    pub key: String,
    pub deleted: bool,
    pub headers: Vec<(String, String)>,
    pub data: Bytes,
}

/// A record that is about to be packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordRef<'a> {
    pub sequence: u64,
    pub millis: i64,
    pub key: &'a str,
    pub deleted: bool,
    pub headers: &'a [u8],
    pub data: &'a [u8],
}

impl RecordRef<'_> {
    /// The bytes that a page has of it. Key and headers are bounded far below 64 KiB before this.
    pub(super) fn packed(&self) -> Vec<u8> {
        let len = RECORD_OVERHEAD + self.key.len() + self.headers.len() + self.data.len();
        let mut out = Vec::with_capacity(len);
        out.put_u32((len - 4) as u32);
        out.put_u64(self.sequence);
        out.put_i64(self.millis);
        out.put_u8(if self.deleted { DELETED } else { 0 });
        out.put_u16(self.key.len() as u16);
        out.put_u16(self.headers.len() as u16);
        out.put_slice(self.key.as_bytes());
        out.put_slice(self.headers);
        out.put_slice(self.data);
        out
    }
}

/// The sequence of one packed record, if its lengths are right.
pub(super) fn packed_sequence(record: &[u8]) -> Option<u64> {
    let mut head = record.get(..RECORD_OVERHEAD)?;
    let (len, sequence) = (head.get_u32() as usize, head.get_u64());
    head.advance(8 + 1);
    let (key, headers) = (usize::from(head.get_u16()), usize::from(head.get_u16()));
    (len + 4 == record.len() && RECORD_OVERHEAD + key + headers <= record.len()).then_some(sequence)
}

/// The records of a packed page, in order. Ends after the first error.
#[derive(Debug, Clone)]
pub struct Records(Bytes);

impl Records {
    pub fn new(packed: Bytes) -> Self {
        Self(packed)
    }
}

impl Iterator for Records {
    type Item = Result<StoredRecord, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = unpack(&mut self.0);
        if record.is_none() {
            self.0.clear();
        }
        Some(record.ok_or_else(|| Error::internal("A page of records isn't in its form.")))
    }
}

fn unpack(page: &mut Bytes) -> Option<StoredRecord> {
    let len = page.try_get_u32().ok()? as usize;
    if len < FIXED || page.len() < len {
        return None;
    }
    let mut record = page.split_to(len);
    let mut head = &record[..FIXED];
    let (sequence, millis, flags) = (head.get_u64(), head.get_i64(), head.get_u8());
    let (key, headers) = (usize::from(head.get_u16()), usize::from(head.get_u16()));
    let data = FIXED + key + headers;
    if record.len() < data {
        return None;
    }
    let headers = unpack_headers(&record[FIXED + key..data])?;
    let key = std::str::from_utf8(&record[FIXED..FIXED + key]).ok()?.to_owned();
    record.advance(data);
    Some(StoredRecord { sequence, time: Timestamp::from_millis(millis), key, deleted: flags & DELETED != 0, headers, data: record })
}

pub(super) fn unpack_headers(block: &[u8]) -> Option<Vec<(String, String)>> {
    if block.is_empty() {
        return Some(Vec::new());
    }
    let text = std::str::from_utf8(block).ok()?.strip_suffix("\r\n")?;
    text.split("\r\n").map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

/// The headers of a request that are kept with its record.
///
/// # Errors
/// `invalid_argument` if they are more than [`streams::MAX_HEADER_BYTES`].
pub(super) fn kept_headers(fields: &[(String, String)]) -> Result<Bytes, Error> {
    let own = |name: &str| ["nats-", "atoll-"].iter().any(|own| name.get(..own.len()).is_some_and(|start| start.eq_ignore_ascii_case(own)));
    let mut out = BytesMut::new();
    for (name, value) in fields.iter().filter(|(name, _)| !own(name)) {
        if out.len() + name.len() + value.len() + 4 > streams::MAX_HEADER_BYTES {
            return Err(Error::invalid(format!("The headers to keep are more than {} bytes.", streams::MAX_HEADER_BYTES)));
        }
        out.put_slice(name.as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.trim().as_bytes());
        out.put_slice(b"\r\n");
    }
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let headers =
            kept_headers(&[("A".into(), "x: y".into()), ("nats-msg-id".into(), "1".into()), ("b".into(), String::new())]).unwrap();
        let mut out = RecordRef { sequence: 7, millis: -1, key: "a.b", deleted: true, headers: &headers, data: b"\0\xff" }.packed();
        // the form is fixed: other programs read it
        let golden = [0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 7, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 3, 0, 14];
        assert_eq!(out[..golden.len()], golden);
        assert_eq!(&out[golden.len()..], b"a.bA: x: y\r\nb: \r\n\0\xff");
        assert_eq!(packed_sequence(&out), Some(7));
        for wrong in [&out[..out.len() - 1], &out[..20], &[&out[..], b"x"].concat()] {
            assert_eq!(packed_sequence(wrong), None);
        }
        out.extend(RecordRef { sequence: 8, millis: 5, key: "", deleted: false, headers: b"", data: b"" }.packed());
        let all: Vec<_> = Records::new(out.into()).map(Result::unwrap).collect();
        assert_eq!(all[0].headers, [("A".to_owned(), "x: y".to_owned()), ("b".to_owned(), String::new())]);
        assert_eq!(
            (all[0].sequence, all[0].time.millis(), &*all[0].key, all[0].deleted, &all[0].data[..]),
            (7, -1, "a.b", true, &b"\0\xff"[..])
        );
        assert_eq!((all[1].sequence, all[1].deleted, all[1].data.len()), (8, false, 0));
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn headers_are_bounded() {
        assert!(kept_headers(&[("A".into(), "x".repeat(streams::MAX_HEADER_BYTES - 5))]).is_ok());
        assert!(kept_headers(&[("A".into(), "x".repeat(streams::MAX_HEADER_BYTES - 4))]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(page in prop::collection::vec(any::<u8>(), 0..200)) {
            let count = Records::new(page.clone().into()).count();
            prop_assert!(count <= page.len());
        }
    }
}
