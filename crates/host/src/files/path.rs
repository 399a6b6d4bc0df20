//! Paths relative to home, as lists of names in bytes. Being one is proof that no name is empty, `.`, `..`, too long, or holds `/` or NUL.

use super::Fault;

/// Bytes of one name: NAME_MAX of Linux.
const MAX_NAME: usize = 255;
/// Bytes of a path: below PATH_MAX of Linux (4096, with the final NUL).
const MAX_PATH: usize = 4000;
/// Names in a path.
pub(super) const MAX_DEPTH: usize = 256;

/// A path relative to home. Without names it is home itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelPath(Vec<Vec<u8>>);

impl RelPath {
    /// Parses the path of a URL: percent-encoded bytes between `/`. One `/` at the end is allowed.
    ///
    /// # Errors
    /// [`Fault::Invalid`].
    pub fn from_url(text: &str) -> Result<Self, Fault> {
        Self::checked(trimmed(text.as_bytes()), percent_decode)
    }

    /// Parses plain bytes with `/` between names. One `/` at the end is allowed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Fault> {
        Self::checked(trimmed(bytes), |name| Ok(name.to_vec()))
    }

    /// Parses an archive member's name, which often begins with `./` and for a directory ends with `/`.
    pub(super) fn from_member(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.starts_with(b"/") {
            return Err(Fault::Invalid("A name in the archive is absolute.".into()));
        }
        let plain: Vec<&[u8]> = bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
        Self::from_bytes(&plain.join(&b'/'))
    }

    fn checked(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<Vec<u8>, Fault>) -> Result<Self, Fault> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let names = bytes.split(|byte| *byte == b'/').map(|name| check_name(decode(name)?)).collect::<Result<Vec<_>, _>>()?;
        let length = names.iter().map(|name| name.len() + 1).sum::<usize>();
        if length > MAX_PATH || names.len() > MAX_DEPTH {
            return Err(Fault::Invalid(format!("The path is longer than {MAX_PATH} bytes or {MAX_DEPTH} names.")));
        }
        Ok(Self(names))
    }

    pub const fn is_home(&self) -> bool {
        self.0.is_empty()
    }

    pub fn names(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The directory above and the last name; none for home itself.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        let (name, above) = self.0.split_last()?;
        Some((Self(above.to_vec()), name))
    }

    /// As the kernel takes it, relative to home; `.` for home itself.
    pub fn bytes(&self) -> Vec<u8> {
        joined(&self.0)
    }

    /// Percent-encoded, as it goes into a URL after `/files/`; empty for home itself.
    pub fn url(&self) -> String {
        self.0.iter().map(|name| encode(name)).collect::<Vec<_>>().join("/")
    }

    /// The encoded path of an entry of this directory.
    pub(super) fn child_url(&self, name: &[u8]) -> String {
        if self.is_home() { encode(name) } else { format!("{}/{}", self.url(), encode(name)) }
    }
}

/// For messages: readable, bytes that aren't UTF-8 as U+FFFD.
impl std::fmt::Display for RelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.bytes()))
    }
}

pub(super) fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    if names.is_empty() { b".".to_vec() } else { names.join(&b'/') }
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"/").unwrap_or(bytes)
}

fn check_name(name: Vec<u8>) -> Result<Vec<u8>, Fault> {
    let wrong = |why: &str| Err(Fault::Invalid(why.into()));
    match name.as_slice() {
        b"" => wrong("The path has an empty name in it."),
        b"." | b".." => wrong("The path has '.' or '..' in it; paths are relative to home and go down only."),
        long if long.len() > MAX_NAME => wrong("A name in the path is longer than 255 bytes."),
        bytes if bytes.contains(&0) || bytes.contains(&b'/') => wrong("A name in the path has a NUL byte or an encoded '/' in it."),
        _ => Ok(name),
    }
}

/// Decodes `%XX` (RFC 3986, section 2.1). Strict: a `%` that isn't followed by two hexadecimal digits is an error and not taken for itself,
/// so that one name has no two readings.
pub fn percent_decode(bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let (Some(high), Some(low)) = (digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) else {
                return Err(Fault::Invalid("The URL has a '%' in it that isn't followed by two hexadecimal digits.".into()));
            };
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(byte);
            at += 1;
        }
    }
    Ok(decoded)
}

/// Encodes all but the unreserved characters of RFC 3986, section 2.3.
pub fn encode(name: &[u8]) -> String {
    use std::fmt::Write;
    name.iter().fold(String::with_capacity(name.len()), |mut text, &byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(byte as char);
        } else {
            // writing to a String can't fail
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_path_is_refused() {
        let long = "a".repeat(256);
        let deep = "a/".repeat(300);
        for bad in [
            "..",
            "a/..",
            "../a",
            "a/../b",
            ".",
            "a/./b",
            "a//b",
            "/a",
            "//",
            "%2e%2e",
            "a/%2E%2e/b",
            "a%2Fb",
            "a%00b",
            "%",
            "%4",
            "%zz",
            "%4g",
            "a/%",
            &long,
            &deep,
        ] {
            assert!(RelPath::from_url(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(RelPath::from_bytes(b"a\0b").is_err());
        assert!(RelPath::from_member(b"/etc/passwd").is_err());
        assert!(RelPath::from_member(b"./a/../../b").is_err());
    }

    #[test]
    fn what_is_a_path_is_taken() {
        for (text, names) in
            [("", vec![]), ("a", vec!["a"]), ("a/", vec!["a"]), ("a/b%20c", vec!["a", "b c"]), ("...", vec!["..."]), ("%25", vec!["%"])]
        {
            let path = RelPath::from_url(text).unwrap();
            assert_eq!(path.names().iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>(), names, "{text:?}");
        }
        assert_eq!(RelPath::from_url("%FF").unwrap().names()[0], [0xff]);
        assert_eq!(RelPath::from_member(b"./a//b/").unwrap().bytes(), b"a/b");
        assert!(RelPath::from_member(b"./").unwrap().is_home());
    }

    proptest! {
        #[test]
        fn a_name_survives_its_url(names in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6)) {
            let bytes = names.join(&b'/');
            if let Ok(path) = RelPath::from_bytes(&bytes) {
                prop_assert!(path.url().bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert_eq!(RelPath::from_url(&path.url()).unwrap(), path);
            }
        }

        #[test]
        fn no_text_makes_a_path_that_goes_up(text in "[a./%20eEfF]{0,24}") {
            if let Ok(path) = RelPath::from_url(&text) {
                prop_assert!(path.names().iter().all(|name| !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/')));
            }
        }
    }
}
