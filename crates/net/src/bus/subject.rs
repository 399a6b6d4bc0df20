//! What a subject is: tokens separated by dots, `*` for one token, `>` for one or more at the end.
//!
//! As in NATS a `*` or `>` is a wildcard only as a whole token. Stricter than NATS: subjects are UTF-8, hold no control characters, have
//! a bounded number of tokens, and nobody publishes to a wildcard.

/// Whether a message may be published to it.
pub(crate) fn is_literal(subject: &str, max_tokens: usize) -> bool {
    plain(subject) && every_token(subject, max_tokens, |token, _| token != "*" && token != ">")
}

/// Whether one may subscribe to it, or name it in a permission.
pub(crate) fn is_pattern(subject: &str, max_tokens: usize) -> bool {
    plain(subject) && every_token(subject, max_tokens, |token, last| token != ">" || last)
}

/// Whether it names a queue group: as NATS, anything but white space.
pub(crate) fn is_queue(name: &str) -> bool {
    !name.is_empty() && plain(name)
}

fn plain(text: &str) -> bool {
    text.bytes().all(|byte| byte > b' ' && byte != 0x7f)
}

fn every_token(subject: &str, max_tokens: usize, good: impl Fn(&str, bool) -> bool) -> bool {
    let mut tokens = subject.split('.').peekable();
    let mut count = 0;
    while let Some(token) = tokens.next() {
        count += 1;
        if token.is_empty() || count > max_tokens || !good(token, tokens.peek().is_none()) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_patterns() {
        for (subject, literal, pattern) in [
            ("a", true, true),
            ("a.b.c", true, true),
            ("a*.b>", true, true), // wildcards only as whole tokens
            ("ä.ö", true, true),
            ("a.*", false, true),
            ("*", false, true),
            (">", false, true),
            ("a.>", false, true),
            ("a.>.b", false, false),
            ("", false, false),
            (".", false, false),
            ("a.", false, false),
            (".a", false, false),
            ("a..b", false, false),
            ("a b", false, false),
            ("a\tb", false, false),
            ("a\0", false, false),
            ("1.2.3.4.5", false, false), // more tokens than allowed below
        ] {
            assert_eq!((is_literal(subject, 4), is_pattern(subject, 4)), (literal, pattern), "{subject:?}");
        }
    }
}
