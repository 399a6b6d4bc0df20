//! The last bytes of a terminal's output, by their offset in all of it.

use std::collections::VecDeque;

use bytes::Bytes;

#[derive(Debug)]
pub(super) struct Scrollback {
    /// Offset of the first byte that is kept.
    start: u64,
    kept: VecDeque<u8>,
    limit: usize,
}

impl Scrollback {
    /// Keeps at most `limit` bytes; their memory is taken as they come.
    pub(super) fn new(limit: usize) -> Self {
        Self { start: 0, kept: VecDeque::new(), limit }
    }

    /// Offset of the first byte that is kept.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Offset of the next byte that comes.
    pub(super) fn end(&self) -> u64 {
        self.start + self.kept.len() as u64
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let end = self.end() + bytes.len() as u64;
        let bytes = bytes.get(bytes.len().saturating_sub(self.limit)..).unwrap_or_default();
        let over = (self.kept.len() + bytes.len()).saturating_sub(self.limit);
        self.kept.drain(..over);
        self.kept.extend(bytes);
        self.start = end - self.kept.len() as u64;
    }

    /// Up to `most` bytes from `from`, or from the first that is kept if that is later; and where they begin.
    pub(super) fn read(&self, from: u64, most: usize) -> (u64, Bytes) {
        let begin = from.clamp(self.start, self.end());
        // both fit: they are within what is kept
        let at = (begin - self.start) as usize;
        let to = self.kept.len().min(at + most);
        let (first, second) = self.kept.as_slices();
        let mut bytes = Vec::with_capacity(to - at);
        bytes.extend_from_slice(first.get(at.min(first.len())..to.min(first.len())).unwrap_or_default());
        bytes.extend_from_slice(second.get(at.saturating_sub(first.len())..to.saturating_sub(first.len())).unwrap_or_default());
        (begin, bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_end_of_everything(
            pushes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
            limit in 1usize..64,
            reads in prop::collection::vec((0u64..1400, 0usize..80), 1..20),
        ) {
            let mut scrollback = Scrollback::new(limit);
            let mut all: Vec<u8> = vec![];
            for push in &pushes {
                scrollback.push(push);
                all.extend(push);
            }
            let first = all.len().saturating_sub(limit);
            prop_assert_eq!((scrollback.start(), scrollback.end()), (first as u64, all.len() as u64));
            for (from, most) in reads {
                let (begin, bytes) = scrollback.read(from, most);
                let expected = (from as usize).clamp(first, all.len());
                prop_assert_eq!(begin, expected as u64);
                prop_assert_eq!(&bytes[..], &all[expected..all.len().min(expected + most)]);
            }
        }
    }
}
