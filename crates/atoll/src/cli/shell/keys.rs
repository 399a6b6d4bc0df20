//! What is typed: all of it goes to the program, but for the key that leaves.

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What to do with some keys.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    Send(Vec<u8>),
    /// `Ctrl-] d` was typed.
    Leave,
}

/// Remembers whether the last key was the escape.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// After Ctrl-], `d` leaves and another Ctrl-] sends one; anything else sends both, so that no key is out of reach.
    pub fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut send = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, b'd' | b'D') => return Typed::Leave,
                (true, ESCAPE) => send.push(ESCAPE),
                (false, ESCAPE) => self.escaped = true,
                (true, other) => send.extend([ESCAPE, other]),
                (false, other) => send.push(other),
            }
        }
        Typed::Send(send)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_escape_and_d_leave() {
        let feed = |parts: &[&[u8]]| {
            let mut keys = Keys::default();
            let mut sent = Vec::new();
            for part in parts {
                match keys.feed(part) {
                    Typed::Leave => return None,
                    Typed::Send(bytes) => sent.extend(bytes),
                }
            }
            Some(sent)
        };
        assert_eq!(feed(&[b"ls\r", b"d"]), Some(b"ls\rd".to_vec()));
        assert_eq!(feed(&[b"\x1dd"]), None);
        assert_eq!(feed(&[b"a\x1d", b"d"]), None);
        assert_eq!(feed(&[b"\x1d\x1d", b"d"]), Some(b"\x1dd".to_vec()));
        assert_eq!(feed(&[b"\x1dx"]), Some(b"\x1dx".to_vec()));
        assert_eq!(feed(&[b"\x1d\x1d\x1dd"]), None);
    }
}
