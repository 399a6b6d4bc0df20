//! Opaque bearer tokens: random text with a prefix that says what it is for, so that a token pasted in the wrong place is refused
//! and a leaked one is found by a scanner. Only the SHA-256 is kept; the text has 130 random bits, so nothing slower is needed.

use atoll_net::clock::{Clock, random_text};
use sha2::{Digest, Sha256};

/// A longer text isn't looked at.
const MAX_LEN: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Session,
    Key,
    Join,
    Setup,
}

impl TokenKind {
    const ALL: [Self; 4] = [Self::Session, Self::Key, Self::Join, Self::Setup];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Session => "atl_s_",
            Self::Key => "atl_k_",
            Self::Join => "atl_j_",
            Self::Setup => "atl_i_",
        }
    }
}

/// A token's text. It has no Debug and no Display, so that it doesn't get into a log.
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new(kind: TokenKind, clock: &dyn Clock) -> Self {
        Self(format!("{}{}", kind.prefix(), random_text(clock)))
    }

    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }

    /// The text itself, for the one time that its owner is shown it.
    pub(crate) fn reveal(self) -> String {
        self.0
    }
}

/// SHA-256 of a token's text, in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenHash(String);

impl TokenHash {
    fn of(text: &str) -> Self {
        Self(hex(&Sha256::digest(text.as_bytes())))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What kind of token a text is, and its hash; none if it isn't one.
pub(crate) fn parse(text: &str) -> Option<(TokenKind, TokenHash)> {
    let kind = TokenKind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix()))?;
    (text.len() <= MAX_LEN).then(|| (kind, TokenHash::of(text)))
}

impl TokenKind {
    /// The hash of `text` if it is a token of this kind.
    pub(crate) fn parse(self, text: &str) -> Option<TokenHash> {
        parse(text).filter(|(kind, _)| *kind == self).map(|(_, hash)| hash)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String doesn't fail
        text
    })
}

#[cfg(test)]
mod tests {
    use atoll_net::clock::SystemClock;

    use super::*;

    #[test]
    fn a_token_is_only_of_its_own_kind() {
        let token = Token::new(TokenKind::Key, &SystemClock);
        let hash = token.hash();
        let text = token.reveal();
        assert_eq!(TokenKind::Key.parse(&text), Some(hash));
        assert_eq!(TokenKind::Session.parse(&text), None);
        assert!(parse("atl_x_abc").is_none() && parse("").is_none() && parse(&format!("atl_k_{}", "a".repeat(200))).is_none());
    }
}
